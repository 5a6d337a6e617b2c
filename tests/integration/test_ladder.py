"""Every view is read in the best way that the server understands, and nothing is lost in a lesser one."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.errors import BadAnswer, QueryRefused
from relay.journal import FilterTimes
from relay.passes import BEYOND, MAX_IDLE_PAGES, sound
from relay.simulator import Fault
from relay.states import Mode
from tests.support.passes import Bench, kinds, make_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with make_bench(tmp_path) as made:
        made.tenant.create_many(30, spread_seconds=86_400)
        made.clock.advance(1)
        yield made


def effect(name: str, **more: Any) -> Fault:
    return Fault(effect=name, **more)  # type: ignore[arg-type]


Rung = tuple[list[str], Mode, FilterTimes, bool, str]
LADDER: list[Rung] = [
    ([], "keyset", "milliseconds", True, ""),
    (["refuse_z"], "keyset", "offset", True, ""),
    (["refuse_uuid_order"], "keyset", "milliseconds", False, ""),
    (["refuse_z", "refuse_uuid_order"], "keyset", "offset", False, ""),
    (["refuse_filter"], "ordered", "milliseconds", True, "the filter was refused with 400"),
    (["ignore_filter"], "ordered", "milliseconds", True, "the filter was ignored"),
    (["ignore_filter", "refuse_uuid_order"], "ordered", "milliseconds", False, "the filter was ignored"),
    (["ignore_order"], "scan", "milliseconds", True, "the order was ignored"),
    (["ignore_order", "refuse_filter"], "scan", "milliseconds", True, "the order was ignored"),
]


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: "+".join(rung[0]) or "nothing")
@pytest.mark.parametrize("page_size", [7, 1000])
async def test_every_refusal_and_every_silence_has_its_way(bench: Bench, rung: Rung, page_size: int) -> None:
    """What is refused or ignored is found out by samples; past and changes arrive all the same, in order."""
    effects, mode, times, by_uuid, reason = rung
    for name in effects:
        bench.simulator.faults.inject(effect(name))
    poller = bench.poller(page_size=page_size)
    await poller.poll()
    await poller.backfill()
    way = poller.ways["update_time"]
    assert (way.mode, way.times, way.by_uuid, way.reason) == (mode, times, by_uuid, reason)
    uuids = bench.tenant.uuids()
    for _ in range(3):
        bench.clock.advance(60)
        bench.tenant.update(uuids[::4])
        new = bench.tenant.create(updated="never")
        bench.clock.advance(1)
        await poller.poll()
        uuids.append(new)
    found = await bench.deliveries()
    assert {(v.uuid, v.updated or 0) for v in bench.tenant.history if v.updated} <= {(d.uuid, d.updated) for d in found}
    assert {d.uuid for d in found} == set(uuids)
    for uuid in uuids:
        sequences = [d.sequence for d in found if d.uuid == uuid]
        assert sequences == list(range(1, len(sequences) + 1))


async def test_the_mode_is_shown(bench: Bench) -> None:
    """`relay_source_mode` is 1 for the present mode alone."""
    bench.simulator.faults.inject(effect("refuse_filter"))
    await bench.poller().poll()
    shown = {
        (sample.labels["view"], sample.labels["mode"]): sample.value
        for metric in bench.metrics.source_mode.collect()
        for sample in metric.samples
    }
    assert {key for key, value in shown.items() if value} == {("update_time", "ordered"), ("create_time", "ordered")}
    assert len(shown) == 6


async def test_a_better_way_is_tried_again_after_an_hour(bench: Bench) -> None:
    rule = bench.simulator.faults.inject(effect("refuse_filter"))
    poller = bench.poller()
    await poller.poll()
    bench.simulator.faults.remove(rule)
    bench.clock.advance(3000)
    await poller.poll()
    assert poller.ways["update_time"].mode == "ordered"
    bench.clock.advance(700)
    bench.tenant.update(bench.tenant.pick(1))
    await poller.poll()
    assert {way.mode for way in poller.ways.values()} == {"keyset"}
    assert "updated" in kinds(await bench.deliveries()) or "closed" in kinds(await bench.deliveries())


async def test_the_mode_survives_a_restart(bench: Bench) -> None:
    bench.simulator.faults.inject(effect("ignore_order"))
    await bench.poller().poll()
    asked = len(bench.api.requests)
    again = bench.poller()
    await again.poll()
    assert again.ways["update_time"].mode == "scan"
    assert [request["order_by"] for request in bench.api.requests[asked:]] == [""]


@pytest.mark.parametrize(("name", "mode"), [("refuse_filter", "ordered"), ("ignore_filter", "ordered")])
async def test_a_filter_that_stops_working_costs_no_poll(bench: Bench, name: str, mode: Mode) -> None:
    """Found out amid a poll, which then completes in the other way."""
    poller = bench.poller()
    await poller.poll()
    await poller.backfill()
    assert poller.ways["update_time"].mode == "keyset"
    bench.clock.advance(4000)
    changed = bench.tenant.pick(5)
    bench.tenant.update(changed)
    bench.clock.advance(1)
    bench.simulator.faults.inject(effect(name))
    before = bench.lease.progress
    await poller.poll()
    assert poller.ways["update_time"].mode == mode
    assert {d.uuid for d in await bench.deliveries() if d.sequence == 2} == set(changed)
    assert before is not None
    assert bench.lease.progress is not None
    assert (bench.lease.progress.complete_up_to or 0) > (before.complete_up_to or 0)


async def test_one_refusal_is_no_reason_to_leave_the_filter(bench: Bench) -> None:
    """The samples are answered: the poll fails, the next one reads as before."""
    poller = bench.poller()
    await poller.poll()
    bench.simulator.faults.inject(effect("refuse_filter", count=1))
    with pytest.raises(QueryRefused):
        await poller.poll()
    assert poller.ways["update_time"].mode == "keyset"
    await poller.poll()


async def test_rows_that_break_the_order_twice_end_the_trust(bench: Bench) -> None:
    """Samples may look right while pages are wrong: two such passes in a row are enough."""
    poller = bench.poller()
    await poller.poll()
    old = bench.tenant.store.incidents[bench.tenant.pick(1, which="oldest")[0]].listed

    def with_an_old_row(number: int, body: bytes) -> bytes:
        asked = bench.api.requests[number]["filter"]
        return body.replace(b'"incidents":[', b'"incidents":[' + old + b",") if asked and BEYOND not in asked else body

    bench.api.rewrite = with_an_old_row
    bench.clock.advance(10)
    bench.tenant.create()
    bench.clock.advance(10)
    for _pass in ("update_time", "update_time, which is given up, and create_time"):
        with pytest.raises(BadAnswer, match="the filter was ignored"):
            await poller.poll()
    await poller.poll()
    assert poller.ways["update_time"].mode == "ordered"
    assert poller.ways["update_time"].reason == "the filter was ignored"


async def test_an_order_that_looks_right_by_luck_is_seen_through(bench: Bench) -> None:
    """With rows that happen to come ascending, only asking both ways round tells."""
    bench.simulator.settings.default_order = "update_time"
    bench.simulator.faults.inject(effect("ignore_order"))
    way = await sound(bench.api, "update_time")
    assert (way.mode, way.reason) == ("scan", "the order was ignored")


async def test_a_tenant_without_incidents_is_sounded_again(tmp_path: Path) -> None:
    """Nothing can be told from no rows: keyset is hoped for, and looked at again soon."""
    async with make_bench(tmp_path) as bench:
        bench.simulator.faults.inject(effect("ignore_filter"))
        poller = bench.poller()
        await poller.poll()
        assert (poller.ways["update_time"].mode, poller.ways["update_time"].sure) == ("keyset", False)
        for _ in range(3):
            bench.tenant.create()
            bench.clock.advance(120)
        await poller.poll()
        assert poller.ways["update_time"].mode == "ordered"


async def test_a_listing_is_read_again_when_rows_left_it_meanwhile(bench: Bench) -> None:
    """Tokens are offsets: a row deleted before them shifts the rest, and one is skipped."""
    bench.simulator.faults.inject(effect("refuse_filter"))
    poller = bench.poller(page_size=5)
    await poller.poll()
    await poller.backfill()
    bench.clock.advance(600)
    uuids = bench.tenant.uuids()
    for uuid in uuids[:20]:
        bench.tenant.update(uuid)
        bench.clock.advance(1)
    bench.clock.advance(10)
    gone = iter([uuids[19], uuids[18]])

    def vanish(number: int) -> None:
        if bench.api.requests[number]["page_token"] and (uuid := next(gone, None)):
            bench.tenant.delete(uuid)

    bench.api.before = vanish
    await poller.poll()
    assert {d.uuid for d in await bench.deliveries() if d.sequence == 2} >= set(uuids[:18])


@pytest.mark.parametrize("name", ["refuse_filter", "ignore_order"])
async def test_a_listing_whose_token_repeats_fails_the_poll(bench: Bench, name: str) -> None:
    bench.simulator.faults.inject(effect(name))
    poller = bench.poller(page_size=3)
    await poller.poll()
    bench.tenant.update(bench.tenant.uuids())
    bench.simulator.faults.inject(effect("loop_token"))
    with pytest.raises(BadAnswer, match="token came twice"):
        await poller.poll()


async def test_empty_pages_with_ever_new_tokens_end(bench: Bench) -> None:
    """Some empty pages are followed; no end of them is a fault."""
    bench.simulator.faults.inject(effect("refuse_filter"))
    tokens = iter(range(10_000))
    poller = bench.poller(page_size=3)
    await poller.poll()
    caller_page = bench.api.page
    bench.api.page = lambda *args, **more: caller_page("", "", page_size=3)
    bench.api.rewrite = lambda _number, _body: b'{"incidents":[],"nextPageToken":"t%d"}' % next(tokens)
    with pytest.raises(BadAnswer, match="pages in a row were empty"):
        await poller.poll()
    assert next(tokens) <= MAX_IDLE_PAGES + 2


@pytest.mark.parametrize("body", [b'"incidents":[]', b'"incidents":[{"uuid":"u","createTime":"2026-05-01T00:00:00Z"}]'])
@pytest.mark.parametrize("name", ["short_page", "refuse_filter"])
async def test_the_same_page_with_ever_new_tokens_ends(bench: Bench, name: str, body: bytes) -> None:
    """In every mode, whether the page is empty or not: nothing new for so long is a fault."""
    bench.simulator.faults.inject(effect(name))
    poller = bench.poller(page_size=3)
    await poller.poll()
    page, tokens = bench.api.page, iter(range(100_000))
    bench.api.page = lambda *args, **more: page("", "", page_size=3)
    bench.api.rewrite = lambda _number, _body: b'{%s,"nextPageToken":"t%d"}' % (body, next(tokens))
    with pytest.raises(BadAnswer):
        await poller.poll()
    assert next(tokens) < 20 * MAX_IDLE_PAGES


async def test_an_empty_page_with_a_token_for_the_last_one_is_followed_to_the_end(bench: Bench) -> None:
    poller = bench.poller(page_size=3)
    await poller.poll()
    bench.clock.advance(1)
    asked = len(bench.api.requests)
    page = bench.api.page
    bench.api.page = lambda *args, **more: page("", "", page_size=3)
    bench.api.rewrite = lambda number, _body: (
        b'{"incidents":[]}' if bench.api.requests[number]["page_token"] else b'{"incidents":[],"nextPageToken":"t"}'
    )
    await poller.poll()
    assert len(bench.api.requests) - asked < 20


async def test_a_scan_reads_once_for_both_views(bench: Bench) -> None:
    bench.simulator.faults.inject(effect("ignore_order"))
    poller = bench.poller()
    await poller.poll()
    asked = len(bench.api.requests)
    await poller.poll()
    assert len(bench.api.requests) - asked == 1
    assert not any(BEYOND in request["filter"] for request in bench.api.requests[asked:])
