"""The story of a fleet among faults: dense changes all the while, then rest, then the verdict. Knows no pytest."""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.replicas.faults import Director, Kind, deck
from tests.replicas.scene import Plan, Scene, scene
from tests.replicas.verdict import Judgement
from tests.support.broker import Cluster

LAST_FAULT_BEFORE_THE_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How it ended. `numbers` is for the report."""

    judgement: Judgement
    inflicted: int
    fenced: int
    ended_by_themselves: list[str]
    exit_codes: dict[int, int]
    numbers: dict[str, Any]


async def chaos(
    folder: Path,
    cluster: Cluster,
    plan: Plan,
    *,
    seconds: float,
    faults: int,
    changes_per_second: float,
    kinds: tuple[Kind, ...] = (),
) -> Ending:
    """Raises TimeoutError when what was struck does not become well again, or does not come to rest."""
    rng = random.Random(plan.seed)
    began = time.monotonic()
    async with scene(folder, cluster.bootstrap, plan) as set_up:
        await set_up.fleet.start()
        await set_up.past_arrived()
        started = time.monotonic() - began
        unrest = set_up.unrest(per_second=changes_per_second)
        director = Director(set_up.fleet, cluster, set_up.watched, rng)
        since, playing = set_up.watched.clock.now(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(unrest.run(), name="unrest")
            planned = [rng.choice(kinds) for _ in range(faults)] if kinds else deck(faults, rng)
            await director.play(planned, seconds=seconds - LAST_FAULT_BEFORE_THE_END_SECONDS)
            await asyncio.sleep(max(0.0, playing + seconds - time.monotonic()))
            unrest.stop()
        until, played = set_up.watched.clock.now(), time.monotonic() - playing
        await set_up.come_to_rest(unrest)
        rested = time.monotonic() - playing - played
        lease_lost = await _lease_lost(set_up)
        await set_up.fleet.stop()
        judgement = await set_up.judgement()
        losses = set_up.losses()
        return Ending(
            judgement=judgement,
            inflicted=director.inflicted.total(),
            fenced=losses.get("fenced", 0),
            ended_by_themselves=set_up.fleet.ended_by_itself(),
            exit_codes=set_up.fleet.exit_codes(),
            numbers={
                "replicas": plan.replicas,
                "sources": len(plan.tenants),
                "seconds": round(played, 1),
                "faults": dict(sorted(director.inflicted.items())),
                "changes": unrest.changes,
                "versions": judgement.kafka.versions,
                "records": judgement.kafka.arrivals,
                "missing": judgement.kafka.missing,
                "duplicates": judgement.kafka.doubled,
                "gaps": judgement.kafka.gapped,
                "out_of_order": judgement.kafka.disordered,
                "foreign": judgement.kafka.foreign + judgement.strayed,
                "aborted_records": await set_up.aborted_records(),
                "webhook_ids": judgement.webhook.arrivals,
                "webhook_missing": judgement.webhook.missing,
                "webhook_repeats": judgement.repeats,
                "webhook_out_of_order": judgement.webhook.disordered + judgement.webhook.gapped,
                "partitions_lost": losses,
                "lease_lost_of_the_last_lives": lease_lost,
                "longest_pause_of_a_source_seconds": round(
                    set_up.watched.longest_pause_seconds(since=since, until=until), 1
                ),
                "start_seconds": round(started, 1),
                "rest_seconds": round(rested, 1),
                "did_not_start": set_up.fleet.did_not_start(),
                "ended_by_themselves": len(set_up.fleet.ended_by_itself()),
                "exit_codes": set_up.fleet.exit_codes(),
            },
        )


async def _lease_lost(set_up: Scene) -> int:
    """What the metric says of the processes that run now; those that were killed took theirs with them."""
    counted = [
        await replica.process.metric("relay_errors_total", component="journal", reason="lease_lost")
        for replica in set_up.fleet.replicas
    ]
    return round(sum(counted))
