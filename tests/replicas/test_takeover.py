"""A source whose replica is gone is polled by another soon, however much is known of it; and what that costs."""

import asyncio
import time
from pathlib import Path

import pytest

from relay.clock import SECOND
from tests.e2e.stage import report, until
from tests.replicas.faults import SESSION_TIMEOUT_SECONDS
from tests.replicas.fleet import Replica
from tests.replicas.restore import make_known, restored
from tests.replicas.scene import Plan, Scene, scene, tenants
from tests.support.kafka import Kafka, fresh

pytestmark = pytest.mark.kafka

LARGE = "large"
LIVE_ONLY = "event.origin == 'poll'"
"""The past becomes known and is not sent: this is about what is known."""
CALM_SECONDS = 5.0
GENEROUS_SECONDS = 60.0
MOST_MEGABYTES = 400


async def past_is_known(set_up: Scene, *, within: float) -> None:
    """Waits until the backfill of the large tenant is at its end. Raises TimeoutError."""

    async def has_ended() -> bool:
        return any(line["source"] == LARGE for line in set_up.fleet.told("backfill completed"))

    await until(has_ended, "the past was read", within=within)


async def taken_over(set_up: Scene, victim: Replica) -> dict[str, float]:
    """SIGKILL; the seconds until each source that was lost was polled again. Raises TimeoutError."""
    watched = set_up.watched
    lost = watched.held_by(victim.name)
    killed = watched.clock.now()
    await victim.kill()

    def found() -> dict[str, float]:
        """The latest first, so that the first of each source remains."""
        reads = [read for read in watched.reads_since(killed) if read.replica != victim.name]
        return {read.source: (read.at - killed) / SECOND for read in reads if read.source in lost}

    async def all_polled() -> bool:
        return len(found()) == len(lost)

    await until(all_polled, f"{len(lost)} lost sources are polled again", within=GENEROUS_SECONDS)
    return found()


async def takeover_story(
    kafka: Kafka, folder: Path, *, incidents: int, small: int, rounds: int, within: float
) -> list[float]:
    """How long the large source waited, in each round."""
    plan = Plan(
        replicas=2,
        tenants={LARGE: incidents, **tenants(small, incidents=5)},
        poll_seconds=1,
        keep_history=False,
        when=LIVE_ONLY,
    )
    waited: list[float] = []
    others: list[float] = []
    async with scene(folder, kafka.bootstrap, plan) as set_up:
        await set_up.fleet.start()
        began = time.monotonic()
        await past_is_known(set_up, within=within)
        backfill_seconds = time.monotonic() - began
        for _ in range(rounds):
            await asyncio.sleep(CALM_SECONDS)
            victim = set_up.fleet[set_up.watched.reader(LARGE)]
            seconds = await taken_over(set_up, victim)
            waited.append(seconds.pop(LARGE))
            others += seconds.values()
            await victim.start()
            await victim.ready()
        await set_up.fleet.stop()
        assert set_up.fleet.ended_by_itself() == []
        assert set(set_up.fleet.exit_codes()) == {0}
    report(
        "Take-over after SIGKILL",
        ledger_incidents=incidents,
        session_timeout_seconds=SESSION_TIMEOUT_SECONDS,
        polled_again_after_seconds=[round(seconds, 2) for seconds in waited],
        small_sources_after_at_most_seconds=round(max(others, default=0.0), 2),
        backfill_seconds=round(backfill_seconds, 1),
    )
    return waited


async def test_a_source_of_a_killed_replica_is_polled_by_another(kafka: Kafka, tmp_path: Path) -> None:
    assert await takeover_story(kafka, tmp_path, incidents=3000, small=6, rounds=1, within=GENEROUS_SECONDS)


@pytest.mark.prove
@pytest.mark.timeout(900)
async def test_a_source_of_100_000_incidents_is_polled_again_2_s_after_the_session_timeout(
    kafka: Kafka, tmp_path: Path
) -> None:
    waited = await takeover_story(kafka, tmp_path, incidents=100_000, small=20, rounds=5, within=300)
    assert max(waited) <= SESSION_TIMEOUT_SECONDS + 2


async def restore_story(kafka: Kafka, folder: Path, *, incidents: int) -> float:
    """One process commits the ledger, another whose disk is empty takes it over. Its largest resident set, in MB."""
    prefix = fresh("restore")
    committed = await make_known(kafka.bootstrap, prefix, folder / "first", incidents)
    found = await asyncio.to_thread(restored, kafka.bootstrap, prefix, folder / "second")
    again = await asyncio.to_thread(restored, kafka.bootstrap, prefix, folder / "second")
    assert found["incidents"] == again["incidents"] == incidents
    report(
        "Restore of a ledger",
        ledger_incidents=incidents,
        committed_within_seconds=round(committed, 1),
        restore_seconds=found["restore_seconds"],
        with_its_cache_seconds=again["restore_seconds"],
        most_megabytes=found["most_megabytes"],
    )
    return float(found["most_megabytes"])


async def test_a_ledger_is_restored_by_who_has_nothing_of_it(kafka: Kafka, tmp_path: Path) -> None:
    assert await restore_story(kafka, tmp_path, incidents=20_000) <= MOST_MEGABYTES


@pytest.mark.prove
@pytest.mark.timeout(2400)
async def test_a_ledger_of_1_000_000_incidents_is_restored_within_400_mb(kafka: Kafka, tmp_path: Path) -> None:
    assert await restore_story(kafka, tmp_path, incidents=1_000_000) <= MOST_MEGABYTES
