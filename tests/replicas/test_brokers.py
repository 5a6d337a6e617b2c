"""Three brokers, of which one is killed and returns under load: polling resumes without it, nothing lost or doubled."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.e2e.stage import report, until
from tests.replicas.faults import in_sync
from tests.replicas.scene import Plan, Scene, scene, tenants
from tests.support.broker import Cluster

pytestmark = pytest.mark.kafka

CALM_SECONDS = 3.0
RESUMED_WITHIN_SECONDS = 60.0


async def resumed(set_up: Scene) -> float:
    """Waits until every source was read whole and committed again; the longest that one waited, in seconds."""
    watched, began = set_up.watched, time.monotonic()
    killed = watched.clock.now()

    async def all_read() -> bool:
        return all(watched.read_up_to(label) > killed for label in set_up.plan.tenants)

    await until(all_read, "every source is polled again", within=RESUMED_WITHIN_SECONDS)
    return time.monotonic() - began


async def story(folder: Path, cluster: Cluster, plan: Plan, *, nodes: Sequence[int], changes_per_second: float) -> None:
    async with scene(folder, cluster.bootstrap, plan) as set_up:
        await set_up.fleet.start()
        await set_up.past_arrived()
        unrest = set_up.unrest(per_second=changes_per_second)
        without_it = []
        async with asyncio.TaskGroup() as group:
            group.create_task(unrest.run(), name="unrest")
            for node in nodes or [await transaction_coordinator(cluster)]:
                await asyncio.sleep(CALM_SECONDS)
                await asyncio.to_thread(cluster.kill, node)
                without_it.append(await resumed(set_up))
                await asyncio.to_thread(cluster.restart, node)
                await in_sync(cluster)
            await asyncio.sleep(CALM_SECONDS)
            unrest.stop()
        await set_up.come_to_rest(unrest)
        await set_up.fleet.stop()
        judgement = await set_up.judgement()
        report(
            "One broker of three killed",
            replicas=plan.replicas,
            sources=len(plan.tenants),
            kills=len(without_it),
            complete_polls_of_all_sources_after_seconds=[round(seconds, 1) for seconds in without_it],
            changes=unrest.changes,
            versions=judgement.kafka.versions,
            records=judgement.kafka.arrivals,
            missing=judgement.kafka.missing,
            duplicates=judgement.kafka.doubled,
            webhook_ids=judgement.webhook.arrivals,
            webhook_repeats=judgement.repeats,
            partitions_lost=set_up.losses(),
        )
        assert judgement.right, judgement
        assert set_up.fleet.ended_by_itself() == []
        assert set(set_up.fleet.exit_codes()) == {0}


async def test_polling_resumes_without_the_broker_that_coordinates_transactions_and_all_arrives_once(
    three_brokers: Cluster, tmp_path: Path
) -> None:
    plan = Plan(replicas=2, tenants=tenants(12), seed=3)
    await story(tmp_path, three_brokers, plan, nodes=(), changes_per_second=15)


@pytest.mark.prove
@pytest.mark.timeout(900)
async def test_polling_resumes_without_any_one_broker_in_turn_and_all_arrives_once(
    three_brokers: Cluster, tmp_path: Path
) -> None:
    await story(tmp_path, three_brokers, Plan(replicas=3, seed=4), nodes=(0, 1, 2, 0, 1, 2), changes_per_second=20)


async def transaction_coordinator(cluster: Cluster) -> int:
    """The node that decides about every transaction: the topic of its state has one partition here."""
    options: dict[str, str | int | float | bool] = {"bootstrap.servers": cluster.bootstrap, "log_level": 2}
    topics = (await asyncio.to_thread(AdminClient(options).list_topics, timeout=10)).topics
    leader: int = topics["__transaction_state"].partitions[0].leader
    return leader - 1
