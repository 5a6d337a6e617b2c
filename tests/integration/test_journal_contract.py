"""What every journal promises, run against each kind. A new kind is one more parameter of `make_journal`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.clock import SECOND
from relay.errors import JournalFull, JournalLocked
from relay.incidents import BadRecord, Event, Known
from relay.journal import (
    Buried,
    Claim,
    EndpointStatus,
    Journal,
    Outcome,
    PageCommit,
    PassState,
    PollState,
    Progress,
    SourceLease,
)
from relay.sinks import Position
from tests.support.clock import FakeClock
from tests.support.incidents import START, chain
from tests.support.journals import JOURNALS, journal_maker

PROGRESS = Progress(identity="eu/api-user", first_start=START, start_from=0)
KEEP_SECONDS = 3600.0

OpenJournal = Callable[..., Any]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture(params=JOURNALS)
def open_journal(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> OpenJournal:
    """Opens the one journal of this test, again and again; what is in it stays."""
    make = journal_maker(request, tmp_path, clock)

    @asynccontextmanager
    async def opened(*, max_bytes: int = 1 << 30, retention_seconds: float = 7200.0) -> AsyncIterator[Journal]:
        journal = make("relay", max_bytes=max_bytes, retention_seconds=retention_seconds)
        await journal.open()
        try:
            yield journal
        finally:
            await journal.close()

    return opened


def page(*histories: tuple[list[Event], Known], progress: Progress = PROGRESS) -> PageCommit:
    return PageCommit(
        progress=progress,
        rows=[known for _, known in histories],
        events=[event for events, _ in histories for event in events],
    )


async def fill(lease: SourceLease, count: int, *, prefix: str = "u") -> list[str]:
    """Commits so many new incidents; returns their event ids in order."""
    histories = [chain(f"{prefix}{n}", 1) for n in range(count)]
    await lease.commit(page(*histories))
    return [event.id for events, _ in histories for event in events]


def outcomes(claim: Claim, kind: Any = "done", **more: Any) -> list[Outcome]:
    return [Outcome(positions=[delivery.position for delivery in claim.deliveries], kind=kind, **more)]


def ids(claim: Claim) -> list[str]:
    return [delivery.id for delivery in claim.deliveries]


def uuids(claim: Claim) -> list[str]:
    return [delivery.uuid for delivery in claim.deliveries]


async def test_a_commit_is_durable_and_whole(open_journal: OpenJournal) -> None:
    progress = Progress(
        identity="eu/api-user",
        first_start=START,
        start_from=5,
        complete_up_to=START + 7,
        poll=PollState(as_of=START, passes=(PassState(view="update_time", cursor=3, until=9),)),
        backfill=(PassState(view="create_time", cursor=4, done=True),),
    )
    events, known = chain("u1", 2)
    async with open_journal() as journal:
        lease = await journal.source("acme")
        before = lease.progress
        assert before is None
        await lease.commit(page((events, known), progress=progress))
        assert lease.progress == progress
    async with open_journal() as journal:
        lease = await journal.source("acme")
        assert lease.progress == progress
        assert await lease.known(["u1", "u2"]) == {"u1": known}
        assert await lease.count() == 1
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        claim = await sink.claim(10, in_order=True)
        assert ids(claim) == [event.id for event in events]
        first = claim.deliveries[0]
        assert (first.kind, first.source, first.origin, first.uuid) == ("created", "acme", "poll", "u1")
        assert (first.sequence, first.updated, first.attempts) == (1, START, 0)
        assert b'"incident":{"uuid":"u1"' in first.body


async def test_a_commit_that_fails_leaves_nothing(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        events, known = chain("u1", 1)
        broken = PageCommit(
            progress=PROGRESS,
            rows=[known],
            events=events,
            bad=[BadRecord(reason="no uuid", raw=None)],  # type: ignore[arg-type]  # the last of the writes fails
        )
        with pytest.raises(TypeError):
            await lease.commit(broken)
        assert await lease.known(["u1"]) == {}
        assert (await sink.claim(10, in_order=True, wait=False)).deliveries == []
        await lease.commit(page((events, known)))
        assert uuids(await sink.claim(10, in_order=True)) == ["u1"]


async def test_a_commit_given_again_after_an_unknown_outcome_adds_nothing(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        commit = page(chain("u1", 2), chain("u2", 1))
        giving = asyncio.create_task(lease.commit(commit))
        await asyncio.sleep(0)
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)
        await lease.commit(commit)
        assert uuids(await sink.claim(10, in_order=True)) == ["u1", "u1", "u2"]


async def test_a_commit_whose_caller_was_cancelled_reaches_the_sinks_in_its_place(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        await lease.commit(page(chain("u1", 1)))
        giving = asyncio.create_task(lease.commit(page(chain("u2", 1))))
        await asyncio.sleep(0)
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)
        await lease.commit(page(chain("u3", 1)))
        assert uuids(await sink.claim(10, in_order=True)) == ["u1", "u2", "u3"]


async def test_sources_do_not_see_each_other(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        one, other = await journal.source("acme"), await journal.source("globex")
        await one.commit(page(chain("u1", 1)))
        assert await other.known(["u1"]) == {}
        assert await other.count() == 0
        assert other.progress is None


async def test_known_holds_the_last_version(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await lease.commit(page(chain("u1", 1)))
        events, known = chain("u1", 3)
        await lease.commit(page((events[1:], known)))
        assert await lease.known(["u1"] * 3) == {"u1": known}


async def test_a_bad_record_is_kept_once(open_journal: OpenJournal) -> None:
    bad = BadRecord(reason="no uuid", raw=b'{"uuid":1}')
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await lease.commit(PageCommit(progress=PROGRESS, bad=[bad, bad]))
        await lease.commit(PageCommit(progress=PROGRESS, bad=[bad]))
        letters = [letter async for letter in lease.dead_letters()]
        assert [(letter.component, letter.name, letter.reason, letter.body) for letter in letters] == [
            ("source", "acme", "no uuid", bad.raw)
        ]


async def test_a_claim_waits_for_a_commit(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        claiming = asyncio.create_task(sink.claim(10, in_order=True))
        await asyncio.sleep(0.02)
        assert not claiming.done()
        await fill(lease, 1)
        assert uuids(await claiming) == ["u0"]


async def test_in_order_claims_hand_out_every_position_once(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        expected = await fill(lease, 25)
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        found: list[str] = []
        while (claim := await sink.claim(10, in_order=True, wait=False)).deliveries:
            assert claim.upto == claim.deliveries[-1].position
            found += ids(claim)
            await sink.settle(outcomes(claim))
        assert found == expected


async def test_what_is_not_settled_comes_again_after_a_restart_with_the_same_id(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 5)
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        claim = await sink.claim(3, in_order=True)
        await sink.settle([Outcome(positions=[d.position for d in claim.deliveries[:2]], kind="done")])
    async with open_journal() as journal:
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        assert ids(await sink.claim(10, in_order=True)) == expected[2:]


async def test_held_deliveries_come_again_in_order_without_an_attempt(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 5)
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        await sink.settle(outcomes(await sink.claim(3, in_order=True), "held"))
        claim = await sink.claim(10, in_order=True)
        assert ids(claim) == expected
        assert {delivery.attempts for delivery in claim.deliveries} == {0}


async def test_one_incident_has_at_most_one_unfinished_delivery(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await lease.commit(page(chain("u1", 2), chain("u2", 1)))
        sink = await journal.sink("soar", start="earliest", keep_seconds=KEEP_SECONDS)
        first = await sink.claim(10, in_order=False)
        assert [(d.uuid, d.sequence) for d in first.deliveries] == [("u1", 1), ("u2", 1)]
        assert (await sink.claim(10, in_order=False, wait=False)).deliveries == []
        await sink.settle(outcomes(first))
        second = await sink.claim(10, in_order=False)
        assert [(d.uuid, d.sequence) for d in second.deliveries] == [("u1", 2)]


async def test_nothing_overtakes_a_version_that_is_retried(open_journal: OpenJournal, clock: FakeClock) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await lease.commit(page(chain("u1", 2), chain("u2", 1)))
        sink = await journal.sink("soar", start="earliest", keep_seconds=KEEP_SECONDS)
        claim = await sink.claim(1, in_order=False)
        await sink.settle(outcomes(claim, "retry", due=clock.now() + 5 * SECOND, reason="http_500"))
        claim = await sink.claim(10, in_order=False)
        assert uuids(claim) == ["u2"]
        await sink.settle(outcomes(claim))
        assert (await sink.claim(10, in_order=False, wait=False)).deliveries == []
    clock.advance(5)
    async with open_journal() as journal:
        sink = await journal.sink("soar", start="earliest", keep_seconds=KEEP_SECONDS)
        claim = await sink.claim(10, in_order=False)
        assert [(d.uuid, d.sequence, d.attempts) for d in claim.deliveries] == [("u1", 1, 1)]
        await sink.settle(outcomes(claim))
        claim = await sink.claim(10, in_order=False)
        assert [(d.uuid, d.sequence, d.attempts) for d in claim.deliveries] == [("u1", 2, 0)]


async def test_a_claim_wakes_when_a_retry_is_due(open_journal: OpenJournal, clock: FakeClock) -> None:
    async with open_journal() as journal:
        await fill(await journal.source("acme"), 1)
        sink = await journal.sink("soar", start="earliest", keep_seconds=KEEP_SECONDS)
        claim = await sink.claim(1, in_order=False)
        await sink.settle(outcomes(claim, "retry", due=clock.now() + SECOND // 50, reason="http_500"))
        waiting = asyncio.create_task(sink.claim(1, in_order=False))
        await asyncio.sleep(0)
        clock.advance(0.02)
        assert uuids(await asyncio.wait_for(waiting, 5)) == ["u0"]


async def test_a_dead_letter_is_kept_and_never_claimed_again(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 4)
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        claim = await sink.claim(10, in_order=True)
        await sink.settle([Outcome(positions=[claim.deliveries[2].position], kind="dead", reason="too_large")])
        assert await sink.buried() == Buried(letters=1, since=START)
    async with open_journal() as journal:
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        assert ids(await sink.claim(10, in_order=True)) == [*expected[:2], expected[3]]
        letters = [letter async for letter in sink.dead_letters()]
        assert [(letter.id, letter.reason, letter.attempts) for letter in letters] == [(expected[2], "too_large", 1)]


async def test_a_new_sink_starts_where_it_was_told(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await fill(lease, 2)
        late = await journal.sink("late", start="now", keep_seconds=KEEP_SECONDS)
        early = await journal.sink("early", start="earliest", keep_seconds=KEEP_SECONDS)
        await fill(lease, 1, prefix="new")
        assert uuids(await late.claim(10, in_order=True)) == ["new0"]
        assert uuids(await early.claim(10, in_order=True)) == ["u0", "u1", "new0"]
    async with open_journal() as journal:
        again = await journal.sink("early", start="now", keep_seconds=KEEP_SECONDS)
        assert len((await again.claim(10, in_order=True)).deliveries) == 3


async def test_one_sinks_backlog_is_its_own(open_journal: OpenJournal, clock: FakeClock) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        slow = await journal.sink("slow", start="earliest", keep_seconds=KEEP_SECONDS)
        fast = await journal.sink("fast", start="earliest", keep_seconds=KEEP_SECONDS)
        assert (await slow.backlog()).oldest is None
        await fill(lease, 3)
        committed = clock.now()
        clock.advance(10)
        await fast.settle(outcomes(await fast.claim(10, in_order=True)))
        assert (await fast.backlog()).events == 0
        backlog = await slow.backlog()
        assert (backlog.events, backlog.oldest) == (3, committed)


async def test_a_backlog_tells_how_many_were_tried_before(open_journal: OpenJournal, clock: FakeClock) -> None:
    async with open_journal() as journal:
        await fill(await journal.source("acme"), 3)
        sink = await journal.sink("soar", start="earliest", keep_seconds=KEEP_SECONDS)
        claim = await sink.claim(2, in_order=False)
        assert (await sink.backlog()).retrying == 0
        await sink.settle(outcomes(claim, "retry", due=clock.now() + 60 * SECOND, reason="http_500"))
        backlog = await sink.backlog()
        assert (backlog.events, backlog.retrying) == (3, 2)


async def test_the_latest_events_come_newest_first(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        assert await journal.latest_events(10) == []
        lease = await journal.source("acme")
        expected = await fill(lease, 5)
        newest = await journal.latest_events(3)
        assert [event.id for event in newest] == expected[:1:-1]
        more = await fill(lease, 2, prefix="new")
        found = await journal.latest_events(10, after=newest[0].position)
        assert [event.id for event in found] == more[::-1]
        assert await journal.latest_events(10, after=found[0].position) == []


async def test_dead_letters_are_counted_from_the_oldest(open_journal: OpenJournal, clock: FakeClock) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        assert await sink.buried() == await lease.buried() == Buried(letters=0, since=None)
        for _ in range(2):
            await fill(lease, 1, prefix=str(clock.now()))
            clock.advance(60)
            await sink.settle(outcomes(await sink.claim(1, in_order=True), "dead", reason="no"))
        assert await sink.buried() == Buried(letters=2, since=START + 60 * SECOND)
        assert (await lease.buried()).letters == 0


async def test_an_atomic_sinks_position_wins_over_ours(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 4)
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        claim = await sink.claim(2, in_order=True)
        assert claim.upto is not None
        reached = Position(journal_id=journal.id, position=claim.upto)
    async with open_journal() as journal:
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        await sink.resume(Position(journal_id="of another journal", position=99))
        await sink.resume(reached)
        assert ids(await sink.claim(10, in_order=True)) == expected[2:]


async def test_numbering_goes_on_above_a_position_from_the_future(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await fill(lease, 2)
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        await sink.resume(Position(journal_id=journal.id, position=1000))
        assert (await sink.claim(10, in_order=True, wait=False)).deliveries == []
        await fill(lease, 1, prefix="new")
        claim = await sink.claim(10, in_order=True)
        assert uuids(claim) == ["new0"]
        assert claim.deliveries[0].position > 1000


async def test_the_state_of_an_endpoint_survives(open_journal: OpenJournal) -> None:
    status = EndpointStatus(state="failing", since=START, failures=3, reason="connection refused")
    async with open_journal() as journal:
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        assert sink.endpoint == EndpointStatus()
        await sink.settle([], status)
    async with open_journal() as journal:
        assert (await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)).endpoint == status


async def test_delivered_events_go_after_their_retention_and_waiting_ones_stay(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    async with open_journal(retention_seconds=60) as journal:
        lease = await journal.source("acme")
        fast = await journal.sink("fast", start="earliest", keep_seconds=KEEP_SECONDS)
        slow = await journal.sink("slow", start="earliest", keep_seconds=KEEP_SECONDS)
        await fill(lease, 4)
        await fast.settle(outcomes(await fast.claim(10, in_order=True)))
        clock.advance(61)
        assert (await journal.tend()).deleted == 0
        await slow.settle(outcomes(await slow.claim(3, in_order=True)))
        assert (await journal.tend()).deleted == 3
        assert uuids(await slow.claim(10, in_order=True)) == ["u3"]


async def test_what_a_sink_did_not_take_within_keep_expires_for_it_alone(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        dead = await journal.sink("dead", start="earliest", keep_seconds=60)
        slow = await journal.sink("slow", start="earliest", keep_seconds=KEEP_SECONDS)
        await fill(lease, 3)
        clock.advance(61)
        await fill(lease, 1, prefix="new")
        tended = await journal.tend()
        assert tended.expired == {"dead": {"INCIDENT_SEVERITY_LEVEL_UNSPECIFIED": 3}}
        assert (await journal.tend()).expired == {}
        assert uuids(await dead.claim(10, in_order=True)) == ["new0"]
        assert len((await slow.claim(10, in_order=True)).deliveries) == 4


async def test_what_is_in_flight_does_not_expire(open_journal: OpenJournal, clock: FakeClock) -> None:
    async with open_journal() as journal:
        sink = await journal.sink("siem", start="earliest", keep_seconds=60)
        await fill(await journal.source("acme"), 2)
        claim = await sink.claim(1, in_order=True)
        clock.advance(61)
        assert (await journal.tend()).expired == {}
        await sink.settle(outcomes(claim))
        assert (await journal.tend()).expired == {"siem": {"INCIDENT_SEVERITY_LEVEL_UNSPECIFIED": 1}}


async def test_the_unfinished_work_of_a_removed_sink_goes_after_keep(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    async with open_journal(retention_seconds=60) as journal:
        await journal.sink("removed", start="earliest", keep_seconds=60)
        await fill(await journal.source("acme"), 2)
    async with open_journal(retention_seconds=60) as journal:
        clock.advance(30)
        assert (await journal.tend()).deleted == 0
        clock.advance(31)
        tended = await journal.tend()
        assert (tended.expired, tended.deleted) == ({"removed": {"INCIDENT_SEVERITY_LEVEL_UNSPECIFIED": 2}}, 2)


async def fill_up(journal: Journal, lease: SourceLease) -> int:
    for batch in range(10_000):
        try:
            await fill(lease, 100, prefix=f"b{batch}-")
        except JournalFull:
            return batch
    raise AssertionError("max_bytes was ignored")


async def test_a_full_journal_refuses_changes_and_still_records_acknowledgements(open_journal: OpenJournal) -> None:
    async with open_journal(max_bytes=4 << 20) as journal:
        lease = await journal.source("acme")
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        assert await fill_up(journal, lease) > 10
        use = await journal.use()
        assert use.used_bytes <= 0.95 * use.limit_bytes
        await lease.commit(PageCommit(progress=PROGRESS))
        refused = await sink.claim(100, in_order=True)
        await sink.settle(outcomes(refused, "dead", reason="too large"))
        assert (await sink.buried()).letters == 100
        waiting = asyncio.create_task(lease.room())
        await journal.tend()
        await asyncio.sleep(0)
        assert not waiting.done()
        while (claim := await sink.claim(1000, in_order=True, wait=False)).deliveries:
            await sink.settle(outcomes(claim))
        assert (await journal.tend()).deleted > 0
        await asyncio.wait_for(waiting, 5)
        await fill(lease, 1, prefix="after")
        assert uuids(await sink.claim(10, in_order=True)) == ["after0"]


async def test_a_second_process_is_refused_by_name(open_journal: OpenJournal) -> None:
    async with open_journal():
        with pytest.raises(JournalLocked, match=r"held by process \d+ on "):
            async with open_journal():
                pass
    async with open_journal():
        pass


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_cancelled_claim_loses_nothing(open_journal: OpenJournal, in_order: bool) -> None:
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 20)
        sink = await journal.sink("siem", start="earliest", keep_seconds=KEEP_SECONDS)
        found: list[str] = []
        for turns in range(40):
            claiming = asyncio.create_task(sink.claim(3, in_order=in_order, wait=False))
            for _ in range(turns % 7):
                await asyncio.sleep(0.0005)
            claiming.cancel()
            results: Sequence[Claim | BaseException] = await asyncio.gather(claiming, return_exceptions=True)
            for claim in results:
                if isinstance(claim, Claim):
                    found += ids(claim)
                    await sink.settle(outcomes(claim))
        while (claim := await sink.claim(3, in_order=in_order, wait=False)).deliveries:
            found += ids(claim)
            await sink.settle(outcomes(claim))
        assert found == expected


async def test_the_ledger_is_read_by_create_time(open_journal: OpenJournal) -> None:
    """From `start` to before `end`, ascending by time and uuid, whatever the order of arrival; one source only."""
    histories = [chain(f"uuid-{number % 7}{number}", 1) for number in range(40)]
    async with open_journal() as journal:
        lease = await journal.source("acme")
        rows = [
            msgspec.structs.replace(known, created=START + (index * 7 % 10) * SECOND)
            for index, (_events, known) in enumerate(histories)
        ]
        await lease.commit(PageCommit(progress=PROGRESS, rows=rows))
        other = await journal.source("other")
        await other.commit(PageCommit(progress=PROGRESS, rows=rows[:5]))
        found = [row async for row in lease.known_created(START + 2 * SECOND, START + 5 * SECOND)]
        wanted = sorted(
            (row for row in rows if START + 2 * SECOND <= row.created < START + 5 * SECOND),
            key=lambda row: (row.created, row.uuid),
        )
        assert found == wanted
        assert len(found) == 12


async def test_the_incidents_that_were_met_last_come_first_with_their_source(open_journal: OpenJournal) -> None:
    """A change of one that is known makes it no newer; those that are gone are left out."""
    known = [chain(f"uuid-{number}", 1)[1] for number in range(4)]
    async with open_journal() as journal:
        assert await journal.latest_incidents(10) == []
        acme, other = await journal.source("acme"), await journal.source("other")
        gone = msgspec.structs.replace(known[2], gone=True)
        for lease, row in ((acme, known[0]), (other, known[1]), (acme, gone), (other, known[0]), (acme, known[3])):
            await lease.commit(PageCommit(progress=PROGRESS, rows=[row]))
        changed = msgspec.structs.replace(known[0], updated=START + 60 * SECOND, newest=START + 60 * SECOND)
        await acme.commit(PageCommit(progress=PROGRESS, rows=[changed]))
        expected = [("acme", known[3]), ("other", known[0]), ("other", known[1]), ("acme", changed)]
        assert await journal.latest_incidents(10) == expected
        assert await journal.latest_incidents(2) == expected[:2]
