"""The pace of requests, on the loop's own clock: rates are high, so that nothing takes long."""

import asyncio
import time
from itertools import pairwise
from typing import get_args

import pytest

from relay.eset.budget import Lane, RateBudget


async def turns(budget: RateBudget, lane: Lane, count: int, taken: list[tuple[Lane, float]]) -> None:
    for _ in range(count):
        await budget.turn(lane)
        taken.append((lane, time.monotonic()))


async def test_requests_are_evenly_spaced_and_never_a_burst() -> None:
    budget = RateBudget(100)
    await asyncio.sleep(0.1)
    taken: list[tuple[Lane, float]] = []
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(turns(budget, "live", 1, taken))
    gaps = [later - earlier for (_, earlier), (_, later) in pairwise(taken)]
    # A late wake-up shortens the gap behind it; what counts is that the sum never runs ahead.
    assert taken[-1][1] - taken[0][1] >= 0.19 - 0.002
    assert sorted(gaps)[len(gaps) // 2] > 0.008


async def test_lane_stays_under_its_ceiling() -> None:
    budget = RateBudget(200)
    taken: list[tuple[Lane, float]] = []
    began = time.monotonic()
    await turns(budget, "sweep", 11, taken)
    assert time.monotonic() - began >= 10 / 50 - 0.005


async def test_live_goes_first() -> None:
    budget = RateBudget(100)
    taken: list[tuple[Lane, float]] = []
    async with asyncio.TaskGroup() as tasks:
        others: tuple[Lane, ...] = ("backfill", "sweep", "enrich")
        for lane in others:
            tasks.create_task(turns(budget, lane, 2, taken))
        await asyncio.sleep(0)
        for _ in range(10):
            tasks.create_task(turns(budget, "live", 1, taken))
    order = [lane for lane, _ in taken]
    assert len(order) == 16
    assert order.index("live") <= 2
    first = order.index("live")
    assert order[first : first + 10] == ["live"] * 10


async def test_cancelled_waiters_cost_nothing() -> None:
    budget = RateBudget(20)
    lanes: tuple[Lane, ...] = ("live", "backfill", "sweep", "enrich")
    await budget.turn("live")
    waiting = [asyncio.create_task(budget.turn(lanes[n % 4])) for n in range(400)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    began = time.monotonic()
    await budget.turn("live")
    await budget.turn("enrich")
    assert time.monotonic() - began < 0.5


async def test_change_reaches_those_who_wait() -> None:
    budget = RateBudget(0.01)
    await budget.turn("live")
    taken: list[tuple[Lane, float]] = []
    waiting = [asyncio.create_task(turns(budget, lane, 3, taken)) for lane in get_args(Lane)]
    await asyncio.sleep(0.01)
    budget.change(requests_per_second=100)
    began = time.monotonic()
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert time.monotonic() - began >= 0.1


async def test_cancelling_and_changing_at_once_still_cancels() -> None:
    budget = RateBudget(0.01)
    await budget.turn("live")
    waiting = asyncio.create_task(budget.turn("live"))
    await asyncio.sleep(0.01)
    budget.change(requests_per_second=0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_share_is_a_factor_of_the_address_budget() -> None:
    budget = RateBudget(8)
    budget.change(share=0.25)
    assert budget.requests_per_second == pytest.approx(2)
    budget.change(requests_per_second=4)
    assert budget.requests_per_second == pytest.approx(1)


async def test_what_was_used_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = RateBudget(1000)
    assert budget.used_per_second == 0
    await budget.turn("live")
    await budget.turn("sweep")
    assert budget.used_per_second == 2 / 60
    loop = asyncio.get_running_loop()
    later = loop.time() + 61
    monkeypatch.setattr(loop, "time", lambda: later)
    assert budget.used_per_second == 0


async def test_changes_that_follow_each_other_at_once_wake_who_waits_once() -> None:
    """Tasks come and go several at a time, each with another share of the rate."""
    budget = RateBudget(0.01)
    await budget.turn("live")
    waiting = asyncio.create_task(budget.turn("live"))
    await asyncio.sleep(0)
    budget.change(share=0.5)
    await asyncio.sleep(0)
    budget.change(share=1.0)
    budget.change(requests_per_second=1000)
    await asyncio.wait_for(waiting, 5)
