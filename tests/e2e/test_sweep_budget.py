"""A sweep keeps to its share of the rate while live polling keeps its interval, and finds what it is for."""

import json
from collections import Counter
from pathlib import Path

import pytest

from relay.clock import SECOND, Instant
from tests.e2e.stage import SOURCE, Stage, report, stage
from tests.support.process import Child

POLL_SECONDS = 2
FEW = 5


async def story(folder: Path, *, incidents: int, page_size: int, requests_per_second: int, within: float) -> None:
    """The first sweep follows the backfill; the second is asked for by command, after changes that no poll sees."""
    async with stage(folder, incidents=incidents, seed=4) as set_up:
        set_up.configure(
            {"disk": {"type": "file", "path": "events.ndjson"}},
            source={"page_size": page_size, "poll_interval": f"{POLL_SECONDS}s"},
            api={"requests_per_second": requests_per_second},
        )
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("sweep completed", within=within)
            wanted = change_unseen(set_up)
            asked = await set_up.command("sources", "accept-missing", SOURCE)
            assert asked.code == 0, asked
            assert "a sweep of acme begins" in asked.stdout
            before = len(relay.log)
            began = set_up.simulator.clock.now()
            await relay.logged("sweep completed", after=before, within=within)
            ended = set_up.simulator.clock.now()
            polls = polls_in(relay, before)
            assert await relay.stop() == 0
        seen = [request.at for request in set_up.simulator.requests if began <= request.at <= ended]
    seconds = (ended - began) / SECOND
    lines = [json.loads(line)["event"] for line in (folder / "events.ndjson").read_bytes().splitlines()]
    late = Counter(line["kind"] for line in lines[incidents:])
    live = 2 * polls
    report(
        "sweep",
        incidents=incidents,
        seconds=round(seconds, 1),
        requests=len(seen),
        sweep_requests_per_second=round((len(seen) - live) / seconds, 2),
        most_requests_in_one_second=busiest(seen),
        budget=requests_per_second,
        polls=polls,
        polls_due=round(seconds / POLL_SECONDS),
        found=dict(late),
    )
    assert late == wanted
    assert len({line["id"] for line in lines}) == len(lines) == incidents + wanted.total()
    assert (len(seen) - live) / seconds <= requests_per_second / 4 * 1.1
    assert busiest(seen) <= requests_per_second + 1
    assert polls >= 0.8 * seconds / POLL_SECONDS - 1


def change_unseen(set_up: Stage) -> Counter[str]:
    """What no poll can see, and the events that it has to make."""
    tenant = set_up.tenant
    old = tenant.pick(2 * FEW, which="oldest")
    tenant.delete(old[:FEW])
    tenant.edit_silently(old[FEW:], {"displayName": "edited in silence"})
    for number in range(FEW):
        tenant.arrive_late(age_seconds=86_400.0 * (number + 1))
    return Counter(missing=FEW, updated=FEW, created=FEW)


def polls_in(relay: Child, after: int) -> int:
    """How many polls have ended since that line of the log."""
    return sum(line.get("event") == "poll completed" for line in relay.log[after:])


def busiest(times: list[Instant]) -> int:
    """The most requests within any one second."""
    most = start = 0
    for end, time in enumerate(times):
        while times[start] <= time - SECOND:
            start += 1
        most = max(most, end - start + 1)
    return most


async def test_a_sweep_of_3000_keeps_to_its_share(tmp_path: Path) -> None:
    await story(tmp_path, incidents=3000, page_size=100, requests_per_second=16, within=60)


@pytest.mark.prove
@pytest.mark.timeout(1200)
async def test_a_sweep_of_200_000_keeps_to_its_share(tmp_path: Path) -> None:
    await story(tmp_path, incidents=200_000, page_size=1000, requests_per_second=8, within=600)
