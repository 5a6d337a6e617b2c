"""Three replicas among faults of every kind carry every version: to Kafka exactly once, to the webhook at least so."""

from pathlib import Path

import pytest

from tests.e2e.stage import report
from tests.replicas.chaos import Ending, chaos
from tests.replicas.faults import KINDS
from tests.replicas.scene import Plan
from tests.support.broker import Cluster

pytestmark = pytest.mark.kafka

CHANGES_PER_SECOND = 20.0


async def story(folder: Path, cluster: Cluster, *, seconds: float, faults: int, seed: int) -> Ending:
    ending = await chaos(
        folder,
        cluster,
        Plan(replicas=3, seed=seed),
        seconds=seconds,
        faults=faults,
        changes_per_second=CHANGES_PER_SECOND,
    )
    report(f"Chaos, seed {seed}", **ending.numbers)
    assert ending.judgement.right, ending.judgement
    assert ending.inflicted == faults
    assert ending.ended_by_themselves == []
    assert set(ending.exit_codes) == {0}
    return ending


async def test_nothing_is_lost_or_doubled_through_1_minute_of_faults(three_brokers: Cluster, tmp_path: Path) -> None:
    ending = await story(tmp_path, three_brokers, seconds=60, faults=len(KINDS), seed=1)
    assert ending.judgement.kafka.versions > 60 * CHANGES_PER_SECOND / 2


@pytest.mark.prove
@pytest.mark.timeout(2400)
async def test_nothing_is_lost_or_doubled_through_15_minutes_and_60_faults(
    three_brokers: Cluster, tmp_path: Path
) -> None:
    ending = await story(tmp_path, three_brokers, seconds=900, faults=60, seed=15)
    assert ending.judgement.kafka.versions > 900 * CHANGES_PER_SECOND / 2
    assert ending.fenced > 0
