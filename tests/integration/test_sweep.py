"""The sweep finds what polls cannot see, of any age, and believes a disappearance only when the API says so twice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.clock import SECOND
from relay.errors import SourceUnavailable
from relay.incidents import Observed
from relay.passes import SAMPLE_SIZE
from relay.simulator import Fault
from tests.support.passes import Bench, kinds, make_bench

LADDER = ["keyset", "ordered", "scan"]
FAULTS = {"ordered": "refuse_filter", "scan": "ignore_order"}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A tenant with 60 incidents of a day, all known, and polls that look back a minute."""
    async with make_bench(tmp_path) as made:
        made.tenant.create_many(60, spread_seconds=86_400)
        made.clock.advance(1)
        poller = made.poller(lookback_seconds=60)
        await poller.poll()
        await poller.backfill()
        made.clock.advance(3600)
        await poller.poll()
        yield made


async def news(bench: Bench) -> list[tuple[str, str, int]]:
    """Everything emitted beyond the first version of each of the 60: kind, uuid, sequence."""
    return [(d.kind, d.uuid, d.sequence) for d in (await bench.deliveries())[60:]]


@pytest.fixture(params=LADDER)
def mode(request: pytest.FixtureRequest, bench: Bench) -> str:
    if request.param in FAULTS:
        bench.simulator.faults.inject(Fault(effect=FAULTS[request.param]))  # type: ignore[arg-type]
    return str(request.param)


@pytest.mark.parametrize("page_size", [1, 7, 1000])
async def test_a_sweep_over_what_is_known_finds_nothing(bench: Bench, mode: str, page_size: int) -> None:
    report = await bench.poller(page_size=page_size).sweep()
    assert await news(bench) == []
    assert report.incidents >= 60
    assert not [request for request in bench.api.requests if "uuid" in request]
    assert bench.lease.progress is not None
    assert bench.lease.progress.sweep is None
    assert bench.lease.progress.swept is not None


@pytest.mark.parametrize("page_size", [1, 7, 1000])
async def test_late_arrivals_silent_edits_and_disappearances_are_found(bench: Bench, mode: str, page_size: int) -> None:
    tenant = bench.tenant
    uuids = tenant.uuids()
    late = tenant.arrive_late(age_seconds=50_000)
    tenant.edit_silently(uuids[7], {"displayName": "another name"})
    tenant.delete([uuids[3], uuids[4], uuids[59]])
    poller = bench.poller(lookback_seconds=60, page_size=page_size)
    bench.clock.advance(60)
    await poller.poll()
    if mode == "keyset":  # the other ways show more than they are asked for
        assert await news(bench) == []
    report = await poller.sweep()
    assert sorted(await news(bench)) == sorted(
        [
            ("created", late, 1),
            ("updated", uuids[7], 2),
            ("missing", uuids[3], 2),
            ("missing", uuids[4], 2),
            ("missing", uuids[59], 2),
        ]
    )
    swept = bench.lease.progress.swept if bench.lease.progress else None
    assert swept is not None
    assert (swept.missing, swept.suspended) == (3, False)
    assert (swept.late, swept.silent) == (report.late, report.silent)
    assert mode != "keyset" or (swept.late, swept.silent) == (1, 1)
    tenant.restore(uuids[3])
    await poller.sweep()
    assert (await news(bench))[5:] == [("restored", uuids[3], 3)]
    await poller.sweep()
    assert len(await news(bench)) == 6


async def test_what_the_list_leaves_out_and_get_still_shows_is_not_missing(bench: Bench) -> None:
    hidden = bench.tenant.uuids()[5]
    record = bench.tenant.store.incidents[hidden].listed
    bench.api.rewrite = lambda _number, body: body.replace(record + b",", b"")
    await bench.poller().sweep()
    assert await news(bench) == []
    assert [request["uuid"] for request in bench.api.requests if "uuid" in request] == [hidden]


async def test_too_many_missing_are_not_believed_until_a_person_says_so(bench: Bench) -> None:
    """Lost rights look like a mass deletion: none is emitted, and polling goes on."""
    gone = bench.tenant.uuids()[10:40]
    bench.tenant.delete(gone)
    poller = bench.poller()
    await poller.sweep()
    assert await news(bench) == []
    assert bench.lease.progress is not None
    assert bench.lease.progress.swept is not None
    assert bench.lease.progress.swept.suspended
    assert bench.metrics.reconcile_suspended.labels("acme")._value.get() == 1
    assert not [request for request in bench.api.requests if "uuid" in request]
    await poller.accept_missing()
    await poller.sweep()
    assert sorted(await news(bench)) == sorted(("missing", uuid, 2) for uuid in gone)
    assert bench.metrics.reconcile_suspended.labels("acme")._value.get() == 0
    assert not bench.lease.progress.accept_missing


async def test_rights_that_come_back_end_the_suspension(bench: Bench) -> None:
    gone = bench.tenant.uuids()[10:40]
    bench.tenant.delete(gone)
    poller = bench.poller()
    await poller.sweep()
    bench.tenant.restore(gone)
    await poller.sweep()
    assert await news(bench) == []
    assert bench.lease.progress is not None
    assert bench.lease.progress.swept is not None
    assert not bench.lease.progress.swept.suspended


async def test_an_older_version_counts_only_with_proof(bench: Bench) -> None:
    """A page may be older than the ledger; what GET shows as well has really gone back."""
    uuid, other = bench.tenant.uuids()[:2]
    bench.tenant.update([uuid, other])
    bench.clock.advance(1)
    poller = bench.poller(lookback_seconds=60)
    await poller.poll()
    bench.tenant.regress(uuid, by_seconds=500, fields={"displayName": "as it was"})
    before = bench.tenant.store.incidents[other].listed
    bench.clock.advance(400)
    bench.tenant.update(other)
    bench.clock.advance(1)
    await poller.poll()
    now = bench.tenant.store.incidents[other].listed
    bench.api.rewrite = lambda _number, body: body.replace(now, before)
    await poller.sweep()
    found = [d for d in await bench.deliveries() if d.uuid == uuid]
    assert [d.sequence for d in found] == [1, 2, 3]
    assert found[2].updated < found[1].updated
    assert len({d.id for d in found}) == 3
    assert [d.sequence for d in await bench.deliveries("other") if d.uuid == other] == [1, 2, 3]


async def test_an_interrupted_sweep_goes_on_where_it_stood(bench: Bench) -> None:
    bench.tenant.delete(bench.tenant.uuids()[2])
    late = bench.tenant.arrive_late(age_seconds=80_000)
    started = len(bench.api.requests)
    bench.api.fails = lambda number: number == started + 14
    with pytest.raises(SourceUnavailable):
        await bench.poller(page_size=6).sweep()
    bench.api.fails = lambda _number: False
    asked = len(bench.api.requests)
    await bench.poller(page_size=6).sweep()
    assert len(bench.api.requests) - asked < 10
    assert sorted(kinds(await bench.deliveries())[60:]) == ["created", "missing"]
    assert late in {d.uuid for d in await bench.deliveries("late")}


async def test_what_was_last_updated_before_start_from_is_learned_without_an_event(tmp_path: Path) -> None:
    async with make_bench(tmp_path) as bench:
        old = bench.tenant.create_many(5, spread_seconds=3600)
        bench.clock.advance(1)
        poller = bench.poller(start_from="now")
        await poller.poll()
        await poller.sweep()
        assert await bench.deliveries() == []
        assert await bench.lease.count() == 5
        bench.tenant.delete(old[0])
        bench.clock.advance(10)
        bench.tenant.update(old[1])
        bench.clock.advance(10)
        await poller.poll()
        await poller.sweep()
        bench.tenant.restore(old[0])
        await poller.sweep()
        assert kinds(await bench.deliveries()) == ["updated"]


async def test_an_old_page_does_not_undo_a_silent_edit(tmp_path: Path) -> None:
    """Asked for before the edit, committed after a poll saw it: the incident is asked for by itself instead."""
    async with make_bench(tmp_path) as bench:
        uuid = bench.tenant.create({"displayName": "A"}, created=bench.clock.now() - 100 * SECOND)
        poller = bench.poller()
        await poller.poll()
        await poller.backfill()
        bench.clock.advance(1)
        caller = bench.api.list_incidents
        held = asyncio.Event()
        asked = asyncio.Event()

        async def slow(**request: Any) -> Any:
            answer = await caller(**request)
            if request["lane"] == "sweep" and request["page_size"] > SAMPLE_SIZE:
                asked.set()
                await held.wait()
                bench.clock.advance(1)
            return answer

        bench.api.list_incidents = slow  # type: ignore[method-assign]
        sweep = asyncio.create_task(poller.sweep())
        await asked.wait()
        bench.clock.advance(1)
        bench.tenant.edit_silently(uuid, {"displayName": "B"})
        bench.clock.advance(1)
        await poller.poll()
        held.set()
        await sweep
        await poller.poll()
        assert [d.sequence for d in await bench.deliveries()] == [1, 2]
        assert {"acme", uuid} >= {request["uuid"] for request in bench.api.requests if "uuid" in request}


async def enriching(bench: Bench, answer: Callable[[str], Observed | None]) -> None:
    real = bench.api.get_incident

    async def scripted(uuid: str, *, lane: str = "live") -> Observed | None:
        await real(uuid, lane=lane)  # type: ignore[arg-type]
        return answer(uuid)

    bench.api.get_incident = scripted  # type: ignore[method-assign]


async def test_a_changed_incident_is_enriched_with_what_the_list_leaves_out(bench: Bench) -> None:
    bench.clock.advance(60)
    changed = bench.tenant.pick(3)
    bench.tenant.update(changed)
    bench.clock.advance(1)
    await bench.poller(enrich=True).poll()
    found = (await bench.deliveries())[60:]
    assert sorted(d.uuid for d in found) == sorted(changed)
    assert all(b'"enriched":true' in d.body and b'"deviceUuids":' in d.body for d in found)
    asked = [request for request in bench.api.requests if "uuid" in request]
    assert sorted(request["uuid"] for request in asked) == sorted(changed)
    assert {request["lane"] for request in asked} == {"enrich"}


async def test_an_enriched_version_that_is_newer_than_the_list_is_that_version(bench: Bench) -> None:
    bench.clock.advance(60)
    uuid = bench.tenant.pick(1)[0]
    bench.tenant.update(uuid)
    bench.clock.advance(1)
    changed_again = False

    def meanwhile(number: int) -> None:
        nonlocal changed_again
        if "uuid" in bench.api.requests[number] and not changed_again:
            changed_again = True
            bench.clock.advance(1)
            bench.tenant.close(uuid)

    bench.api.before = meanwhile
    poller = bench.poller(enrich=True)
    await poller.poll()
    await poller.poll()
    found = (await bench.deliveries())[60:]
    newest = bench.tenant.history[-1]
    assert [(d.kind, d.updated) for d in found] == [("closed", newest.updated)]


async def test_an_incident_that_cannot_be_asked_for_goes_without(bench: Bench) -> None:
    """404, a failure, or an answer older than the list: the event says that it is not enriched."""
    bench.clock.advance(60)
    changed = bench.tenant.pick(2)
    bench.tenant.update(changed)
    bench.clock.advance(1)
    await enriching(bench, lambda _uuid: None)
    await bench.poller(enrich=True).poll()
    bench.tenant.update(changed[0])
    bench.clock.advance(1)
    bench.api.fails = lambda number: "uuid" in bench.api.requests[number]
    await bench.poller(enrich=True).poll()
    found = (await bench.deliveries())[60:]
    assert len(found) == 3
    assert all(b'"enriched":false' in d.body for d in found)


async def test_without_enrich_an_event_says_nothing_of_it(bench: Bench) -> None:
    bench.clock.advance(60)
    bench.tenant.update(bench.tenant.pick(1))
    bench.clock.advance(1)
    await bench.poller().poll()
    assert b"enriched" not in (await bench.deliveries())[60].body
