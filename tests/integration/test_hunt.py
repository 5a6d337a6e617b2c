"""The hunt: no schedule of changes, faults and crashes that was drawn loses, invents, reorders or renames a version."""

import random

import pytest

from tests.hunt.hunting import examine, hunt, schedule
from tests.hunt.script import read, written


def require_nothing_found(*, schedules: int, seed: int, seconds: float, journal: str = "sqlite") -> None:
    tally = hunt(schedules=schedules, seed=seed, workers=2, seconds=seconds, stop_at_first=True, journal=journal)
    if tally.finds:
        minimal = examine(schedule(tally.finds[0].seed, journal))
        text = f"{minimal.violation}\n\n{written(minimal.script)}" if minimal else "which did not fail again"
        pytest.fail(f"seed {tally.finds[0].seed}: {tally.finds[0].text}\n\n{text}")
    rate = tally.schedules / tally.seconds * 60
    print(f"{tally.schedules} schedules in {tally.seconds:.0f} s, {rate:.0f} a minute, from seed {seed}")  # noqa: T201


@pytest.mark.parametrize("journal", ["sqlite", "kafka"])
def test_a_script_survives_being_written_and_read(journal: str) -> None:
    for seed in range(200):
        assert read(written(schedule(seed, journal))) == schedule(seed, journal)


def test_a_slice_of_the_hunt_finds_nothing() -> None:
    """The same schedules every time."""
    require_nothing_found(schedules=600, seed=1, seconds=45)


def test_a_slice_of_the_hunt_on_kafka_finds_nothing() -> None:
    """Brokers that leave commits in doubt, fences, takeovers and lost caches beside all that."""
    require_nothing_found(schedules=300, seed=1, seconds=30, journal="kafka")


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_ten_thousand_schedules_find_nothing() -> None:
    """Other schedules every time."""
    require_nothing_found(schedules=10_000, seed=random.randrange(1 << 40), seconds=1700)


@pytest.mark.prove
@pytest.mark.timeout(2400)
def test_ten_thousand_schedules_on_kafka_find_nothing() -> None:
    """Other schedules every time."""
    require_nothing_found(schedules=10_000, seed=random.randrange(1 << 40), seconds=2300, journal="kafka")
