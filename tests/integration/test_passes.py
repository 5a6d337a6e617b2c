"""Reading pages: nothing is skipped, whatever moves, ties, leaves or fails while we read."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from relay.clock import SECOND
from relay.errors import BadAnswer, SourceUnavailable
from relay.simulator import Fault
from tests.support.passes import Bench, kinds, make_bench, owed


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with make_bench(tmp_path) as made:
        yield made


async def poll_seeing_everything(bench: Bench) -> None:
    poller = bench.poller()
    await poller.poll()
    await poller.backfill()


async def test_backfill_reads_everything_once(bench: Bench) -> None:
    bench.tenant.create_many(2500, spread_seconds=86_400)
    bench.clock.advance(1)
    poller = bench.poller()
    await poller.poll()
    report = await poller.backfill()
    found = await bench.deliveries()
    assert len(found) == len({d.uuid for d in found}) == 2500
    assert report.pages >= 3
    assert {d.origin for d in found} == {"backfill"}
    assert set(kinds(found)) == {"created"}


async def test_a_change_of_status_arrives(bench: Bench) -> None:
    uuid = bench.tenant.create()
    bench.clock.advance(1)
    poller = bench.poller()
    await poller.poll()
    await poller.backfill()
    bench.clock.advance(60)
    bench.tenant.close(uuid)
    bench.clock.advance(1)
    await poller.poll()
    bench.tenant.reopen(uuid)
    await poller.poll()
    found = await bench.deliveries()
    assert kinds(found) == ["created", "closed", "reopened"]
    assert [d.origin for d in found] == ["backfill", "poll", "poll"]
    assert [d.sequence for d in found] == [1, 2, 3]


async def test_an_unchanged_source_emits_nothing_and_is_not_looked_up(bench: Bench) -> None:
    bench.tenant.create_many(50)
    poller = bench.poller()
    await poll_seeing_everything(bench)
    await poller.poll()
    before = len(await bench.deliveries())
    looked_up = 0
    known = bench.lease.known

    async def counting(uuids: list[str]) -> object:
        nonlocal looked_up
        looked_up += len(uuids)
        return await known(uuids)

    bench.lease.known = counting  # type: ignore[method-assign,assignment]
    for _ in range(3):
        bench.clock.advance(1)
        report = await poller.poll()
        assert (report.events, report.incidents) == (0, 100)
    assert looked_up == 0
    assert len(await bench.deliveries("again")) == before


async def test_the_same_bytes_in_both_views_are_two_pages(bench: Bench) -> None:
    """What was remembered of a page in one view says nothing of where the other view goes on."""
    poller = bench.poller(page_size=2, lookback_seconds=3600)
    await poller.poll()
    await poller.backfill()
    base = bench.clock.now()
    bench.clock.advance(1500)
    for uuid, created, updated in (("a", 0, 400), ("b", 1, 401), ("z", 700, 1200)):
        bench.tenant.create(uuid=uuid, created=base + created * SECOND, updated=base + updated * SECOND)
    bench.clock.advance(30)
    await poller.poll()
    for uuid, created in (("late1", 100), ("late2", 101)):
        bench.tenant.create(uuid=uuid, created=base + created * SECOND, updated="never")
    bench.clock.advance(30)
    before = len(bench.api.requests)
    await poller.poll()
    assert len(bench.api.requests) - before < 40
    assert {d.uuid for d in await bench.deliveries()} == {"a", "b", "z", "late1", "late2"}


async def test_a_silent_change_within_the_lookback_arrives_even_when_it_goes_back(bench: Bench) -> None:
    uuid = bench.tenant.create({"displayName": "A"})
    poller = bench.poller()
    for name in ("A", "B", "A"):
        bench.tenant.edit_silently(uuid, {"displayName": name})
        bench.clock.advance(1)
        await poller.poll()
    await poller.poll()
    found = await bench.deliveries()
    assert [d.sequence for d in found] == [1, 2, 3]
    assert len({d.id for d in found}) == 3


async def test_a_late_arrival_within_the_lookback_arrives(bench: Bench) -> None:
    poller = bench.poller(lookback_seconds=60)
    await poller.poll()
    for _ in range(5):
        bench.clock.advance(30)
        await poller.poll()
    late = bench.tenant.arrive_late(age_seconds=50)
    bench.clock.advance(1)
    await poller.poll()
    assert [d.uuid for d in await bench.deliveries()] == [late]


async def test_an_incident_that_was_never_updated_arrives(bench: Bench) -> None:
    poller = bench.poller()
    await poller.poll()
    uuid = bench.tenant.create(updated="never")
    bench.clock.advance(1)
    await poller.poll()
    bench.clock.advance(1)
    bench.tenant.update(uuid)
    await poller.poll()
    assert kinds(await bench.deliveries()) == ["created", "updated"]


@pytest.mark.parametrize("page_size", [1, 2, 7, 1000])
async def test_more_changes_in_one_instant_than_fit_a_page(bench: Bench, page_size: int) -> None:
    uuids = [bench.tenant.create() for _ in range(25)]
    poller = bench.poller(page_size=page_size)
    await poller.poll()
    await poller.backfill()
    bench.clock.advance(30)
    bench.tenant.close(uuids)
    bench.clock.advance(30)
    await poller.poll()
    closed = [d.uuid for d in await bench.deliveries() if d.kind == "closed"]
    assert sorted(closed) == sorted(uuids)


async def test_rows_that_leave_a_tie_while_it_is_paged_hide_no_other(bench: Bench) -> None:
    """With offset tokens, each row that moves away shifts the rest and one is skipped: 905 of 3,000 in a simulation."""
    uuids = sorted(bench.tenant.create() for _ in range(60))
    poller = bench.poller(page_size=10)
    await poller.poll()
    await poller.backfill()
    bench.clock.advance(30)
    bench.tenant.close(uuids)
    bench.clock.advance(30)
    started = len(bench.api.requests)
    moving = iter(uuids[:8])

    def move_one(number: int) -> None:
        if bench.api.requests[number]["page_token"] and number > started and (uuid := next(moving, None)):
            bench.tenant.update(uuid)

    bench.api.before = move_one
    await poller.poll()
    await poller.poll()
    assert next(moving, None) is None
    emitted = await bench.versions()
    tie = {(v.uuid, v.updated) for v in bench.tenant.history if v.uuid in uuids[8:]}
    assert tie <= emitted


async def test_a_tie_that_never_comes_to_rest_fails_the_poll(bench: Bench) -> None:
    uuids = [bench.tenant.create() for _ in range(40)]
    poller = bench.poller(page_size=5)
    await poller.poll()
    await poller.backfill()
    bench.clock.advance(10)
    bench.tenant.close(uuids)
    tie = bench.clock.now()
    bench.clock.advance(10)

    def grow(number: int) -> None:
        if bench.api.requests[number]["page_token"] == "":
            bench.tenant.create(created=tie, updated=tie)

    before = bench.lease.progress
    bench.api.before = grow
    with pytest.raises(BadAnswer, match="did not come to rest"):
        await poller.poll()
    assert before is not None
    assert bench.lease.progress is not None
    assert bench.lease.progress.complete_up_to == before.complete_up_to


async def test_a_failed_page_leaves_the_watermark_and_the_next_poll_goes_on(bench: Bench) -> None:
    poller = bench.poller(page_size=10)
    await poller.poll()
    for _ in range(50):
        bench.clock.advance(2)
        bench.tenant.create()
    bench.clock.advance(10)
    before = bench.lease.progress
    assert before is not None
    started = len(bench.api.requests)
    bench.api.fails = lambda number: number == started + 3
    with pytest.raises(SourceUnavailable):
        await poller.poll()
    failed = bench.lease.progress
    assert failed is not None
    assert failed.complete_up_to == before.complete_up_to
    assert failed.poll is not None
    bench.clock.advance(60)
    resumed = len(bench.api.requests)
    await bench.poller(page_size=10).poll()
    assert bench.api.requests[resumed]["filter"] != bench.api.requests[started]["filter"]
    assert len(await bench.deliveries()) == 50
    assert failed.poll.as_of is not None
    assert bench.lease.progress is not None
    assert bench.lease.progress.complete_up_to is not None
    assert bench.lease.progress.complete_up_to > failed.poll.as_of


async def test_complete_up_to_is_when_the_first_request_was_sent(bench: Bench) -> None:
    bench.tenant.create_many(30)
    poller = bench.poller(page_size=10)
    await poller.poll()
    bench.clock.advance(30)
    sent = bench.clock.now()
    await poller.poll()
    assert bench.lease.progress is not None
    assert bench.lease.progress.complete_up_to == sent


async def test_what_changes_while_the_backfill_runs_arrives_in_order(bench: Bench) -> None:
    uuids = bench.tenant.create_many(200, spread_seconds=86_400)
    bench.clock.advance(1)
    poller = bench.poller(page_size=10)
    await poller.poll()

    def change(number: int) -> None:
        if bench.api.requests[number]["lane"] == "backfill":
            bench.tenant.update(uuids[number * 7 % 200])

    bench.api.before = change
    backfill = asyncio.create_task(poller.backfill())
    while not backfill.done():
        await poller.poll()
        await asyncio.sleep(0)
    await poller.poll()
    found = await bench.deliveries()
    for uuid in uuids:
        own = [d for d in found if d.uuid == uuid]
        assert [d.sequence for d in own] == list(range(1, len(own) + 1))
        assert [d.updated for d in own] == sorted(d.updated for d in own)
        assert own[0].kind == "created"
    newest = {v.uuid: v.updated for v in bench.tenant.history if v.until is None}
    assert set(newest.items()) <= {(d.uuid, d.updated) for d in found}


async def test_backfill_resumes_where_it_stood(bench: Bench) -> None:
    bench.tenant.create_many(100, spread_seconds=86_400)
    bench.clock.advance(1)
    poller = bench.poller(page_size=10)
    await poller.poll()
    started = len(bench.api.requests)
    bench.api.fails = lambda number: number == started + 6
    with pytest.raises(SourceUnavailable):
        await poller.backfill()
    half = len(await bench.deliveries("half"))
    assert 0 < half < 100
    asked = len(bench.api.requests)
    bench.api.fails = lambda number: False
    await bench.poller(page_size=10).backfill()
    assert len(await bench.deliveries()) == 100
    assert len(bench.api.requests) - asked < 10
    again = len(bench.api.requests)
    await bench.poller(page_size=10).backfill()
    assert len(bench.api.requests) == again


async def test_start_from_now_reads_nothing_old(bench: Bench) -> None:
    old = bench.tenant.create_many(30, spread_seconds=3600)
    bench.clock.advance(1)
    poller = bench.poller(start_from="now")
    await poller.poll()
    assert (await poller.backfill()).pages == 0
    bench.clock.advance(10)
    bench.tenant.update(old[3])
    new = bench.tenant.create()
    bench.clock.advance(1)
    await poller.poll()
    found = {d.uuid: d for d in await bench.deliveries()}
    assert set(found) == {old[3], new}
    assert found[new].kind == "created"
    assert found[old[3]].kind == "updated"
    assert b'"changed":null,"previous":null' in found[old[3]].body or found[old[3]].sequence == 1


async def test_start_from_a_time_reads_what_was_updated_since(bench: Bench) -> None:
    ancient = bench.tenant.create(created=bench.clock.now() - 900 * SECOND)
    touched = bench.tenant.create(created=bench.clock.now() - 900 * SECOND)
    since = bench.clock.now() + 10 * SECOND
    bench.clock.advance(20)
    bench.tenant.update(touched)
    recent = bench.tenant.create(updated="never")
    bench.clock.advance(1000)
    poller = bench.poller(start_from=since)
    await poller.poll()
    await poller.backfill()
    found = {d.uuid: d.kind for d in await bench.deliveries()}
    assert found == {touched: "updated", recent: "created"}
    assert ancient not in found


async def test_a_bad_record_becomes_a_dead_letter_and_the_rest_goes_on(bench: Bench) -> None:
    good = bench.tenant.create()
    bench.tenant.put_raw(b'{"displayName":"no uuid","updateTime":"2026-05-28T20:26:40Z"}', uuid="bad")
    bench.clock.advance(1)
    await poll_seeing_everything(bench)
    assert [d.uuid for d in await bench.deliveries()] == [good]
    letters = [letter async for letter in bench.lease.dead_letters()]
    assert len(letters) == 1
    assert b"no uuid" in letters[0].body


async def test_a_token_that_repeats_fails_the_poll(bench: Bench) -> None:
    uuids = [bench.tenant.create() for _ in range(30)]
    poller = bench.poller(page_size=5)
    await poller.poll()
    await poller.backfill()
    bench.clock.advance(10)
    bench.tenant.close(uuids)
    bench.clock.advance(10)
    bench.simulator.faults.inject(Fault(effect="loop_token"))
    with pytest.raises(BadAnswer, match="token came twice"):
        await poller.poll()


async def test_an_empty_last_page_and_short_pages_are_no_trouble(bench: Bench) -> None:
    bench.simulator.settings.trailing_empty_page = True
    bench.simulator.faults.inject(Fault(effect="short_page"))
    bench.tenant.create_many(60, spread_seconds=3600)
    bench.clock.advance(1)
    poller = bench.poller(page_size=10)
    await poller.poll()
    await poller.backfill()
    assert len(await bench.deliveries()) == 60


Op = tuple[str, int]
OPS = st.lists(
    st.tuples(st.sampled_from(["create", "never", "update", "tie", "close", "late", "wait"]), st.integers(0, 9)),
    max_size=6,
)


def change(bench: Bench, op: str, number: int) -> None:
    tenant = bench.tenant
    some = tenant.uuids()
    match op:
        case "create":
            tenant.create()
        case "never":
            tenant.create(updated="never")
        case "late":
            tenant.arrive_late(age_seconds=number * 20)
        case "wait":
            bench.clock.advance(number * 5)
        case "update" if some:
            tenant.update(some[number * 7 % len(some)])
        case "tie" if some:
            tenant.update(some[: number * 3 + 1])
        case "close" if some:
            tenant.close(some[number % 5 :: 3])


def play(bench: Bench, scripted: dict[int, list[Op]], number: int) -> None:
    for op, argument in scripted.get(number, []):
        change(bench, op, argument)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate, Phase.shrink]
)
@given(
    rounds=st.lists(st.tuples(OPS, st.lists(OPS, max_size=4), st.booleans()), min_size=1, max_size=6),
    page_size=st.integers(1, 6),
    old=st.integers(0, 12),
)
def test_every_version_that_stays_for_one_whole_poll_is_emitted(
    tmp_path_factory: pytest.TempPathFactory,
    rounds: list[tuple[list[Op], list[list[Op]], bool]],
    page_size: int,
    old: int,
) -> None:
    """Guarantee *Complete*: whatever happens between and during the requests, and whichever of them fail."""

    async def story() -> None:
        async with make_bench(tmp_path_factory.mktemp("passes"), incidents=old, spread_seconds=3600) as bench:
            bench.clock.advance(1)
            whole: list[tuple[int, int]] = []
            for between, during, failing in [*rounds, ([], [], False)]:
                for op, number in between:
                    change(bench, op, number)
                bench.clock.advance(0.5)
                first = len(bench.api.requests)
                scripted = dict(enumerate(during, start=first))
                bench.api.before = partial(play, bench, scripted)
                bench.api.fails = {first + 2}.__contains__ if failing else set[int]().__contains__
                started = bench.clock.now()
                try:
                    await bench.poller(page_size=page_size).poll()
                    await bench.poller(page_size=page_size).backfill()
                except (SourceUnavailable, BadAnswer):
                    continue
                whole.append((started, bench.clock.now()))
            emitted = await bench.versions()
            missing = owed(bench.tenant, whole) - emitted
            assert not missing
            by_incident: dict[str, list[int]] = {}
            for delivery in await bench.deliveries("order"):
                by_incident.setdefault(delivery.uuid, []).append(delivery.updated)
            assert all(times == sorted(times) for times in by_incident.values())

    asyncio.run(story())
