"""What every journal promises about what operators do: redrive, discard, replay, rename, backup, and what is listed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from relay.clock import SECOND
from relay.errors import ConfigError, JournalFull
from relay.formats import native
from relay.incidents import BadRecord
from relay.journal import (
    Claim,
    EndpointStatus,
    Journal,
    Outcome,
    PageCommit,
    SinkLease,
)
from relay.journal.sqlite import MIGRATIONS, SqliteJournal
from relay.sinks import Position
from tests.integration.test_journal_contract import (
    KEEP_SECONDS,
    PROGRESS,
    OpenJournal,
    fill,
    fill_up,
    ids,
    outcomes,
    page,
    uuids,
)
from tests.support.clock import FakeClock
from tests.support.incidents import START, chain
from tests.support.journals import JOURNALS, journal_maker

BAD = [BadRecord(reason="no uuid", raw=b'{"uuid":1}'), BadRecord(reason="no time", raw=b'{"uuid":"x"}')]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture(params=JOURNALS)
def open_journal(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> OpenJournal:
    """Opens a journal of this test, by default the same one again and again."""
    make = journal_maker(request, tmp_path, clock)

    @asynccontextmanager
    async def opened(
        *, file: str = "relay.db", max_bytes: int = 1 << 30, retention_seconds: float = 7200.0
    ) -> AsyncIterator[Journal]:
        journal = make(file.removesuffix(".db"), max_bytes=max_bytes, retention_seconds=retention_seconds)
        await journal.open()
        try:
            yield journal
        finally:
            await journal.close()

    return opened


async def sink_of(journal: Journal, name: str = "soar", *, keep_seconds: float = KEEP_SECONDS) -> SinkLease:
    return await journal.sink(name, start="earliest", keep_seconds=keep_seconds)


async def take(sink: SinkLease, limit: int = 10, *, in_order: bool = False) -> Claim:
    return await sink.claim(limit, in_order=in_order, wait=False)


async def deliver(sink: SinkLease, *, in_order: bool = False) -> list[str]:
    """Everything that is due; the ids in the order of their arrival."""
    found: list[str] = []
    while (claim := await take(sink, in_order=in_order)).deliveries:
        found += ids(claim)
        await sink.settle(outcomes(claim))
    return found


async def bury(sink: SinkLease, wanted: Sequence[str], *, in_order: bool = False) -> None:
    """Delivers everything but these, which become dead letters."""
    while (claim := await take(sink, in_order=in_order)).deliveries:
        await sink.settle(
            [
                Outcome(positions=[d.position], kind="dead", reason="http_422: no")
                if d.id in wanted
                else Outcome(positions=[d.position], kind="done")
                for d in claim.deliveries
            ]
        )


def origins(claim: Claim) -> set[str]:
    return {delivery.origin for delivery in claim.deliveries} | {
        msgspec.json.decode(delivery.body)["event"]["origin"] for delivery in claim.deliveries
    }


# -- redrive ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_redriven_letter_arrives_once_with_its_id_and_is_dead_no_more(
    open_journal: OpenJournal, in_order: bool
) -> None:
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 4)
        sink = await sink_of(journal)
        await bury(sink, expected[1:3], in_order=in_order)
        waiting = asyncio.create_task(sink.claim(10, in_order=in_order))
        await asyncio.sleep(0)
        done = await sink.redrive([expected[1]])
        assert (done.events, done.older) == (1, ())
        claim = await asyncio.wait_for(waiting, 5)
        assert ids(claim) == [expected[1]]
        assert claim.upto is None
        assert (claim.deliveries[0].attempts, claim.deliveries[0].origin) == (0, "poll")
        await sink.settle(outcomes(claim))
        assert (await sink.buried()).letters == 1
        assert (await sink.redrive(None)).events == 1
        assert await deliver(sink, in_order=in_order) == [expected[2]]
        assert (await sink.buried()).letters == 0
        assert (await sink.redrive(None)).events == 0
    async with open_journal() as journal:
        assert await deliver(await sink_of(journal), in_order=in_order) == []


async def test_a_redriven_letter_survives_a_restart_and_may_die_again(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 2)
        sink = await sink_of(journal)
        await bury(sink, expected[:1])
        await sink.redrive(None)
    async with open_journal() as journal:
        sink = await sink_of(journal)
        assert (await sink.backlog()).events == 1
        claim = await take(sink)
        assert ids(claim) == expected[:1]
        await sink.settle(outcomes(claim, "dead", reason="http_400: still no"))
        letters = [letter async for letter in sink.dead_letters()]
        assert [(letter.id, letter.reason, letter.attempts) for letter in letters] == [
            (expected[0], "http_400: still no", 1)
        ]


async def test_a_letter_whose_event_has_left_is_redriven_all_the_same(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    """Also when it is retried, and when it dies again; its age counts from the redrive."""
    async with open_journal(retention_seconds=60) as journal:
        expected = await fill(await journal.source("acme"), 2)
        sink = await sink_of(journal, keep_seconds=60)
        await bury(sink, expected[:1])
        clock.advance(100)
        assert (await journal.tend()).deleted == 2
        assert (await sink.redrive(None)).events == 1
        redriven = clock.now()
        clock.advance(30)
        assert (await journal.tend()).expired == {}
        backlog = await sink.backlog()
        assert (backlog.events, backlog.oldest) == (1, redriven)
        claim = await take(sink)
        body = claim.deliveries[0].body
        assert native.id_of(body) == expected[0]
        await sink.settle(outcomes(claim, "retry", due=clock.now() + SECOND, reason="http_500"))
        assert ids(await take(sink)) == []
        clock.advance(1)
        claim = await take(sink)
        assert (claim.deliveries[0].attempts, claim.deliveries[0].body) == (1, body)
        await sink.settle(outcomes(claim, "dead", reason="http_500: no"))
        (letter,) = [letter async for letter in sink.dead_letters()]
        assert (letter.id, letter.attempts, letter.event.body) == (expected[0], 2, body)


async def test_what_is_redriven_and_not_taken_within_keep_expires(open_journal: OpenJournal, clock: FakeClock) -> None:
    async with open_journal(retention_seconds=60) as journal:
        expected = await fill(await journal.source("acme"), 3)
        sink = await sink_of(journal, keep_seconds=60)
        await bury(sink, expected[:2])
        clock.advance(100)
        await journal.tend()
        await sink.redrive(None)
        claim = await take(sink, 1)
        clock.advance(61)
        assert (await journal.tend()).expired == {"soar": {"INCIDENT_SEVERITY_LEVEL_UNSPECIFIED": 1}}
        await sink.settle(outcomes(claim))
        assert await deliver(sink) == []


async def test_a_version_older_than_one_that_was_sent_is_redriven_only_when_told(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        events, known = chain("u1", 3)
        await (await journal.source("acme")).commit(page((events, known)))
        sink = await sink_of(journal)
        await bury(sink, [events[0].id, events[1].id])
        refused = await sink.redrive(None)
        assert (refused.events, set(refused.older)) == (0, {events[0].id, events[1].id})
        assert (await sink.buried()).letters == 2
        assert (await sink.redrive(None, superseded=True)).events == 2
        assert await deliver(sink) == [events[0].id, events[1].id]


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_redriven_version_goes_before_a_newer_one_that_waits(open_journal: OpenJournal, in_order: bool) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        events, known = chain("u1", 4)
        sink = await sink_of(journal)
        await lease.commit(page((events[:2], msgspec.structs.replace(known, sequence=2))))
        await bury(sink, [events[0].id, events[1].id], in_order=in_order)
        await lease.commit(page((events[2:], known)))
        held = await take(sink, in_order=in_order)
        await sink.settle(outcomes(held, "held"))
        assert (await sink.redrive(None)).older == ()
        assert await deliver(sink, in_order=in_order) == [event.id for event in events]


async def test_a_redriven_version_is_late_once_a_newer_one_is_on_its_way(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        events, known = chain("u1", 2)
        sink = await sink_of(journal)
        await lease.commit(page((events[:1], msgspec.structs.replace(known, sequence=1))))
        await bury(sink, [events[0].id])
        await lease.commit(page((events[1:], known)))
        flying = await take(sink)
        assert ids(flying) == [events[1].id]
        assert (await sink.redrive(None)).older == (events[0].id,)
        await sink.settle(outcomes(flying))


async def test_nothing_read_ahead_overtakes_a_version_that_is_retried(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    async with open_journal() as journal:
        await (await journal.source("acme")).commit(page(chain("u1", 3), chain("u2", 1)))
        sink = await sink_of(journal)
        claim = await take(sink)
        assert uuids(claim) == ["u1", "u2"]
        await sink.settle(outcomes(claim, "retry", due=clock.now() + SECOND, reason="http_500"))
        assert uuids(await take(sink)) == []
        clock.advance(1)
        claim = await take(sink)
        assert [(d.uuid, d.sequence) for d in claim.deliveries] == [("u1", 1), ("u2", 1)]
        await sink.settle(outcomes(claim))
        assert [d.sequence for d in (await take(sink)).deliveries] == [2]


@pytest.mark.parametrize("how", ["redrive", "discard"])
async def test_a_letter_that_was_seen_to_above_the_position_is_not_found_again_after_a_restart(
    open_journal: OpenJournal, how: str
) -> None:
    """The first version of a batch still waits, so that the position stands before all of it."""
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 3)
        sink = await sink_of(journal)
        claim = await take(sink)
        await sink.settle([Outcome(positions=[claim.deliveries[1].position], kind="dead", reason="no")])
        if how == "redrive":
            await sink.redrive(None)
            again = await take(sink)
            assert ids(again) == expected[1:2]
            await sink.settle(outcomes(again))
        else:
            assert await journal.discard("sink", "soar") == 1
    async with open_journal() as journal:
        sink = await sink_of(journal)
        assert await deliver(sink) == [expected[0], expected[2]]
        await journal.tend()
        assert await deliver(sink) == []


async def test_redriven_letters_survive_what_an_atomic_far_side_says(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 4)
        sink = await sink_of(journal)
        claim = await take(sink, 4, in_order=True)
        await sink.settle([Outcome(positions=[claim.deliveries[1].position], kind="dead", reason="too_large")])
        await sink.redrive(None)
        reached = Position(journal_id=journal.id, position=claim.deliveries[3].position)
    async with open_journal() as journal:
        sink = await sink_of(journal)
        assert await sink.resume(reached)
        assert await deliver(sink, in_order=True) == [expected[1]]


# -- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_replay_sends_what_was_committed_in_that_time_again_to_this_sink_alone(
    open_journal: OpenJournal, clock: FakeClock, in_order: bool
) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        sink, other = await sink_of(journal), await sink_of(journal, "other")
        expected = []
        for batch in range(4):
            expected.append(await fill(lease, 2, prefix=f"b{batch}-"))
            clock.advance(10)
        await deliver(sink, in_order=in_order)
        await deliver(other, in_order=in_order)
        assert await sink.replay(START + 10 * SECOND, START + 30 * SECOND) == 4
        backlog = await sink.backlog()
        assert (backlog.events, backlog.oldest) == (4, clock.now())
        claim = await take(sink, in_order=in_order)
        assert ids(claim) == [*expected[1], *expected[2]]
        assert claim.upto is None
        assert origins(claim) == {"replay"}
        await sink.settle(outcomes(claim))
        assert (await take(other, in_order=in_order)).deliveries == []
        assert await sink.replay(START, clock.now(), "b3-1") == 1
        assert await deliver(sink, in_order=in_order) == [expected[3][1]]
        new = await fill(lease, 1, prefix="new")
        assert await deliver(sink, in_order=in_order) == new
    async with open_journal() as journal:
        assert await deliver(await sink_of(journal), in_order=in_order) == []


async def test_a_replay_leaves_out_what_waits_and_what_is_dead(open_journal: OpenJournal, clock: FakeClock) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        expected = await fill(lease, 5)
        sink = await sink_of(journal)
        claim = await take(sink, 4)
        done, dead, retried, flying = claim.deliveries
        await sink.settle(
            [
                Outcome(positions=[done.position], kind="done"),
                Outcome(positions=[dead.position], kind="dead", reason="no"),
                Outcome(positions=[retried.position], kind="retry", due=clock.now() + SECOND, reason="no"),
            ]
        )
        clock.advance(1)
        assert await sink.replay(0, clock.now()) == 1
        assert await sink.replay(0, clock.now()) == 0
        found = await take(sink)
        await sink.settle([Outcome(positions=[flying.position], kind="done"), *outcomes(found)])
        again = await take(sink)
        await sink.settle(outcomes(again))
        assert sorted(ids(found) + ids(again)) == sorted([expected[0], expected[2], expected[4]])
        assert await deliver(sink) == []


async def test_a_replay_survives_a_restart_and_takes_turns_with_new_events(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await fill(lease, 100)
        sink = await sink_of(journal)
        await deliver(sink)
        assert await sink.replay(0, START + 1) == 100
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await fill(lease, 40, prefix="new")
        sink = await sink_of(journal)
        kinds = []
        for _ in range(8):
            claim = await take(sink)
            kinds.append({delivery.origin for delivery in claim.deliveries})
            await sink.settle(outcomes(claim))
        assert kinds.count({"poll"}) == kinds.count({"replay"}) == 4
        assert len(await deliver(sink)) == 60


async def test_a_replay_holds_back_no_newer_version_and_is_held_back_by_none(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        events, known = chain("u1", 3)
        await lease.commit(page((events[:1], msgspec.structs.replace(known, sequence=1))))
        sink = await sink_of(journal)
        await deliver(sink)
        await sink.replay(0, START + 1)
        replay = await take(sink)
        await sink.settle(outcomes(replay, "retry", due=clock.now() + 60 * SECOND, reason="http_500"))
        await lease.commit(page((events[1:], known)))
        assert await deliver(sink) == [events[1].id, events[2].id]
        clock.advance(60)
        again = await take(sink)
        assert (ids(again), origins(again)) == ([events[0].id], {"replay"})
        await sink.settle(outcomes(again, "dead", reason="http_400: no"))
        (letter,) = [letter async for letter in sink.dead_letters()]
        assert (letter.id, letter.event.origin, letter.attempts) == (events[0].id, "replay", 2)


async def test_events_stay_while_their_replay_waits_and_a_replay_expires_as_well(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    async with open_journal(retention_seconds=60) as journal:
        await fill(await journal.source("acme"), 3)
        sink = await sink_of(journal, keep_seconds=60)
        await deliver(sink)
        clock.advance(50)
        assert await sink.replay(0, clock.now()) == 3
        clock.advance(50)
        tended = await journal.tend()
        assert (tended.deleted, tended.expired) == (0, {})
        clock.advance(11)
        tended = await journal.tend()
        assert (tended.deleted, tended.expired) == (3, {"soar": {"INCIDENT_SEVERITY_LEVEL_UNSPECIFIED": 3}})
        assert await deliver(sink) == []


async def test_a_full_journal_takes_no_replay(open_journal: OpenJournal) -> None:
    async with open_journal(max_bytes=2 << 20) as journal:
        lease, sink = await journal.source("acme"), await sink_of(journal)
        await fill_up(journal, lease)
        with pytest.raises(JournalFull):
            await sink.replay(0, START + 1)


# -- dead letters -----------------------------------------------------------------------------------------------------


async def test_dead_letters_are_listed_newest_first_and_found_by_how_their_id_begins(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        expected = await fill(lease, 3)
        sink = await sink_of(journal)
        await bury(sink, expected)
        clock.advance(1)
        await lease.commit(PageCommit(progress=PROGRESS, bad=BAD))
        found = await journal.dead_letters(limit=2)
        assert (found.total, [letter.component for letter in found.newest]) == (5, ["source", "source"])
        assert found.newest[0].committed > START
        of_sink = await journal.dead_letters(component="sink", name="soar", limit=10)
        assert {letter.id for letter in of_sink.newest} == set(expected)
        assert of_sink.total == 3
        (letter,) = (await journal.dead_letters(prefix=expected[1][:20], limit=10)).newest
        assert (letter.id, letter.event.uuid) == (expected[1], "u1")
        assert (await journal.dead_letters(prefix="%", limit=10)).total == 0


async def test_bad_records_are_discarded_by_id_or_all(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await lease.commit(PageCommit(progress=PROGRESS, bad=BAD))
        first, second = [letter async for letter in lease.dead_letters()]
        assert await journal.discard("source", "acme", [first.id, "unknown"]) == 1
        assert [letter.id async for letter in lease.dead_letters()] == [second.id]
        assert await journal.discard("source", "globex") == 0
        assert await journal.discard("source", "acme") == 1
        assert (await lease.buried()).letters == 0


# -- what is known, and names -----------------------------------------------------------------------------------------


async def test_sinks_and_sources_are_listed_with_what_is_kept_for_them(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    parked = EndpointStatus(state="parked", since=START, reason="gone")
    async with open_journal() as journal:
        lease = await journal.source("acme")
        expected = await fill(lease, 3)
        await bury(await sink_of(journal, "b"), expected[:1])
        await (await sink_of(journal, "a")).settle([], parked)
        assert [(one.name, one.backlog.events, one.dead) for one in await journal.sinks()] == [("a", 3, 0), ("b", 0, 1)]
        assert (await journal.sinks())[0].endpoint == parked
        (source,) = await journal.sources()
        assert (source.name, source.progress, source.incidents, source.dead) == ("acme", PROGRESS, 3, 0)
        assert journal.held_sink("a") is not None
        assert journal.held_sink("c") is None
    async with open_journal() as journal:
        assert [one.name for one in await journal.sinks()] == ["a", "b"]
        assert journal.held_sink("a") is None


async def test_a_removed_sink_is_forgotten_after_keep_and_comes_back_before_that(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        first = await fill(lease, 2)
        await bury(await sink_of(journal, "old", keep_seconds=60), first[:1])
    async with open_journal() as journal:
        assert (await journal.tend()).forgotten == ()
        (stored,) = await journal.sinks()
        assert stored.removed == START
        clock.advance(59)
        await journal.tend()
        assert len(await journal.sinks()) == 1
    async with open_journal() as journal:
        assert await deliver(await sink_of(journal, "old", keep_seconds=60)) == []
        (stored,) = await journal.sinks()
        assert stored.removed is None
    async with open_journal() as journal:
        await journal.tend()
        clock.advance(60)
        assert (await journal.tend()).forgotten == ("old",)
        assert await journal.sinks() == []
        assert (await journal.dead_letters(limit=10)).total == 1
        assert await journal.discard("sink", "old") == 1


async def test_a_renamed_source_keeps_ledger_progress_and_letters_and_its_events_their_label(
    open_journal: OpenJournal,
) -> None:
    events, known = chain("u1", 2)
    renamed, _ = chain("u1", 3, source="globex")
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await lease.commit(page((events[:1], msgspec.structs.replace(known, sequence=1))))
        await lease.commit(PageCommit(progress=PROGRESS, bad=BAD))
        await bury(await sink_of(journal), [events[0].id])
        await lease.commit(page((events[1:], known)))
    async with open_journal() as journal:
        await journal.rename_source("acme", "globex")
        with pytest.raises(ConfigError, match="knows no source acme: use one of globex"):
            await journal.rename_source("acme", "initech")
    async with open_journal() as journal:
        lease = await journal.source("globex")
        assert lease.progress == PROGRESS
        assert await lease.known(["u1"]) == {"u1": known}
        assert (await lease.buried()).letters == 2
        row = msgspec.structs.replace(known, sequence=3)
        await lease.commit(PageCommit(progress=PROGRESS, rows=[row], events=renamed[2:]))
        sink = await sink_of(journal)
        assert (await sink.redrive(None)).older == ()
        found = []
        while (claim := await take(sink)).deliveries:
            found += [(d.sequence, d.source, d.id, d.body) for d in claim.deliveries]
            await sink.settle(outcomes(claim))
        assert [(number, label, id_) for number, label, id_, _body in found] == [
            (1, "acme", events[0].id),
            (2, "acme", events[1].id),
            (3, "globex", renamed[2].id),
        ]
        assert [msgspec.json.decode(body)["event"]["source"] for *_, body in found] == ["acme", "acme", "globex"]
        assert [source.name for source in await journal.sources()] == ["globex"]


async def test_a_label_that_is_free_again_is_another_source(open_journal: OpenJournal) -> None:
    events, known = chain("u1", 2)
    async with open_journal() as journal:
        lease = await journal.source("acme")
        await lease.commit(page((events[:1], msgspec.structs.replace(known, sequence=1))))
        await bury(await sink_of(journal), [events[0].id])
    async with open_journal() as journal:
        await journal.rename_source("acme", "globex")
        other = await journal.source("acme")
        assert await other.known(["u1"]) == {}
        await other.commit(page(chain("u1", 2)))
        sink = await sink_of(journal)
        await deliver(sink)
        assert (await sink.redrive(None)).older == ()


async def test_a_name_with_a_past_is_not_renamed_over(open_journal: OpenJournal) -> None:
    async with open_journal() as journal:
        await fill(await journal.source("acme"), 1)
        await fill(await journal.source("globex"), 1)
        await journal.source("unread")
        await sink_of(journal, "a")
        await sink_of(journal, "b")
    async with open_journal() as journal:
        with pytest.raises(ConfigError, match="already holds a source globex"):
            await journal.rename_source("acme", "globex")
        with pytest.raises(ConfigError, match="already holds a sink b"):
            await journal.rename_sink("a", "b")
        with pytest.raises(ConfigError, match="knows no sink c: use one of a, b"):
            await journal.rename_sink("c", "d")
        await journal.rename_source("acme", "unread")
        assert [source.name for source in await journal.sources()] == ["globex", "unread"]


async def test_a_renamed_sink_keeps_what_waits_its_state_and_its_letters(
    open_journal: OpenJournal, clock: FakeClock
) -> None:
    parked = EndpointStatus(state="parked", since=START, reason="gone")
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 5)
        sink = await sink_of(journal, "old")
        claim = await take(sink, 4)
        done, dead, retried, _flying = claim.deliveries
        await sink.settle(
            [
                Outcome(positions=[done.position], kind="done"),
                Outcome(positions=[dead.position], kind="dead", reason="no"),
                Outcome(positions=[retried.position], kind="retry", due=clock.now(), reason="no"),
            ],
            parked,
        )
    async with open_journal() as journal:
        await journal.rename_sink("old", "new")
        assert [one.name for one in await journal.sinks()] == ["new"]
        sink = await sink_of(journal, "new")
        assert sink.endpoint == parked
        assert await deliver(sink) == expected[2:]
        assert (await sink.redrive(None)).events == 1
        assert await deliver(sink) == [expected[1]]


# -- backup -----------------------------------------------------------------------------------------------------------


async def test_a_backup_is_a_journal_as_of_then(open_journal: OpenJournal, tmp_path: Path) -> None:
    async with open_journal() as journal:
        lease = await journal.source("acme")
        expected = await fill(lease, 3)
        sink = await sink_of(journal)
        claim = await take(sink, 1)
        await sink.settle(outcomes(claim))
        await journal.backup(tmp_path / "copy.db")
        new = await fill(lease, 1, prefix="new")
        assert await deliver(sink) == [*expected[1:], *new]
        ident = journal.id
    async with open_journal(file="copy.db") as copy:
        assert copy.id == ident
        assert (await copy.source("acme")).progress == PROGRESS
        assert await deliver(await sink_of(copy)) == expected[1:]


# -- migration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_journal", ["sqlite"], indirect=True)
async def test_what_an_older_relay_left_is_taken_over(
    open_journal: OpenJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    """A file of the schema before these commands, with a retry and a dead letter in it."""
    async with open_journal() as journal:
        expected = await fill(await journal.source("acme"), 3)
        sink = await sink_of(journal)
        claim = await take(sink)
        await sink.settle(
            [
                Outcome(positions=[claim.deliveries[0].position], kind="retry", due=clock.now(), reason="no"),
                Outcome(positions=[claim.deliveries[1].position], kind="dead", reason="no"),
                Outcome(positions=[claim.deliveries[2].position], kind="done"),
            ]
        )
        assert isinstance(journal, SqliteJournal)

        def undo(db: object) -> None:
            for statement in (
                "DROP INDEX incident_created",
                "DROP INDEX dead_committed",
                "DROP INDEX dead_since",
                "DROP INDEX pending_own",
                "DROP TABLE renamed",
                "DROP TABLE done",
                "ALTER TABLE sink DROP COLUMN removed",
                *(f"ALTER TABLE pending DROP COLUMN {name}" for name in ("cause", "since", "body")),
                "PRAGMA user_version = 1",
            ):
                db.execute(statement)  # type: ignore[attr-defined]

        await journal.run(undo, write=True)
    async with open_journal() as journal:
        assert len(MIGRATIONS) == 2
        sink = await sink_of(journal)
        assert await deliver(sink) == expected[:1]
        assert (await sink.redrive(None)).events == 1
        assert await deliver(sink) == expected[1:2]
        assert await sink.replay(0, START + 1) == 3
