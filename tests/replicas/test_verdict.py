"""The judge of a fleet is not blind: what is wrong at either far side is found; a webhook's repeats are not wrong."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from relay.simulator import Simulator, Version
from tests.e2e.verdict import Arrival
from tests.replicas.verdict import Told, judged
from tests.support.clock import FakeClock

Change = Callable[[list[Told]], list[Told]]
WRONGS: dict[str, Change] = {
    "a version is lost": lambda told: told[:-1],
    "a newer version came first": lambda told: [*told[:-2], told[-1], told[-2]],
    "an event bears the label of another tenant": lambda told: [*told[:-1], replace(told[-1], source=told[0].source)],
    "a version came again under another name": lambda told: [*told, renamed(told[-1], "another")],
    "a number is left out": lambda told: [*told[:-1], renumbered(told[-1], 5)],
}


@pytest.fixture
def histories() -> dict[str, list[Version]]:
    """One incident of one tenant, and one of another that has three versions."""
    clock = FakeClock()
    simulator = Simulator(clock)
    found = {label: simulator.add_tenant(label, incidents=1, spread_seconds=60) for label in ("here", "there")}
    for _ in range(2):
        clock.advance(1)
        found["there"].update(found["there"].uuids()[0])
    return {label: tenant.history for label, tenant in found.items()}


@pytest.fixture
def told(histories: dict[str, list[Version]]) -> list[Told]:
    """All of it, as it should arrive."""
    return [
        Told(
            arrival=Arrival(
                id=f"{label}{number}", uuid=version.uuid, sequence=number, content=version.content, place=0
            ),
            source=f"/eset-connect/{label}",
        )
        for label, history in histories.items()
        for number, version in enumerate(history, start=1)
    ]


def renamed(told: Told, name: str) -> Told:
    return replace(told, arrival=replace(told.arrival, id=name))


def renumbered(told: Told, sequence: int) -> Told:
    return replace(told, arrival=replace(told.arrival, sequence=sequence))


def test_what_is_right_is_found_right(histories: dict[str, list[Version]], told: list[Told]) -> None:
    judgement = judged(histories, told, told)
    assert judgement.right
    assert judgement.kafka.versions == judgement.kafka.arrivals == judgement.webhook.arrivals == 4


def test_the_webhook_may_be_told_an_older_version_again(histories: dict[str, list[Version]], told: list[Told]) -> None:
    judgement = judged(histories, told, [*told, told[1], told[2]])
    assert judgement.right
    assert judgement.repeats == 2


def test_kafka_may_not(histories: dict[str, list[Version]], told: list[Told]) -> None:
    assert not judged(histories, [*told, told[1]], told).right


@pytest.mark.parametrize("wrong", WRONGS)
def test_what_is_wrong_in_kafka_is_found(wrong: str, histories: dict[str, list[Version]], told: list[Told]) -> None:
    assert not judged(histories, WRONGS[wrong](told), told).right


@pytest.mark.parametrize("wrong", WRONGS)
def test_what_is_wrong_at_the_webhook_is_found(
    wrong: str, histories: dict[str, list[Version]], told: list[Told]
) -> None:
    assert not judged(histories, told, WRONGS[wrong](told)).right


def test_the_same_version_under_two_names_is_found(histories: dict[str, list[Version]], told: list[Told]) -> None:
    judgement = judged(histories, told, [*told[:-1], renamed(told[-1], "another")])
    assert not judgement.right
    assert judgement.only_in_kafka == judgement.only_at_the_webhook == 1
