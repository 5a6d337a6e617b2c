"""The judge is not blind: each way in which delivery can go wrong is found, and what is right is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from relay.simulator import Simulator, Version
from tests.e2e.verdict import Arrival, Verdict, judge
from tests.support.clock import FakeClock


@pytest.fixture
def history() -> list[Version]:
    """Three incidents, one of them in three versions."""
    clock = FakeClock()
    tenant = Simulator(clock).add_tenant("acme", incidents=3, spread_seconds=60)
    for _ in range(2):
        clock.advance(1)
        tenant.update(tenant.uuids()[0])
    return tenant.history


@pytest.fixture
def arrivals(history: list[Version]) -> list[Arrival]:
    """All of it, as it should arrive; the versions of the first incident are number 0, 3 and 4."""
    return [
        Arrival(id=str(number), uuid=version.uuid, sequence=max(1, number - 1), content=version.content, place=0)
        for number, version in enumerate(history)
    ]


def test_what_is_right_is_found_right(history: list[Version], arrivals: list[Arrival]) -> None:
    verdict = judge(history, arrivals)
    assert verdict.exactly_once_in_order
    assert verdict == Verdict(versions=5, arrivals=5, missing=0, doubled=0, foreign=0, disordered=0, gapped=0)


Change = Callable[[list[Arrival]], list[Arrival]]
WRONGS: dict[str, tuple[Change, str]] = {
    "a version is lost": (lambda a: [*a[:3], *a[4:]], "missing"),
    "an incident is lost": (lambda a: [a[0], *a[2:]], "missing"),
    "an event is repeated": (lambda a: [*a, a[4]], "doubled"),
    "a version is repeated under another name": (lambda a: [*a, replace(a[4], id="5", sequence=4)], "doubled"),
    "two versions have one name": (lambda a: [*a[:4], replace(a[4], id="0")], "doubled"),
    "an event is of nobody": (lambda a: [*a, replace(a[1], id="5", uuid="nobody")], "foreign"),
    "an incident was altered": (lambda a: [*a[:4], replace(a[4], content=b"{}")], "foreign"),
    "a newer version came first": (lambda a: [a[0], a[1], a[2], a[4], a[3]], "disordered"),
    "an incident is in two partitions": (lambda a: [*a[:4], replace(a[4], place=1)], "disordered"),
    "a number is left out": (lambda a: [*a[:4], replace(a[4], sequence=4)], "gapped"),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_what_is_wrong_is_found(wrong: str, history: list[Version], arrivals: list[Arrival]) -> None:
    change, found = WRONGS[wrong]
    verdict = judge(history, change(arrivals))
    assert not verdict.exactly_once_in_order
    assert getattr(verdict, found) >= 1
