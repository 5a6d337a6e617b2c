"""How the simulator tells who reads a tenant, and how far; and that no version is replaced before it was read."""

import random
from urllib.parse import urlencode

import pytest

from relay.clock import SECOND, Instant
from relay.simulator import Request
from relay.simulator.times import render_time
from tests.replicas.unrest import Unrest
from tests.replicas.watched import LOOKBACK_SECONDS, PASSWORD, Watched
from tests.support.clock import FakeClock

LABEL = "acme"


class Reader:
    """One replica, as the simulator meets it."""

    def __init__(self, watched: Watched, name: str) -> None:
        self._watched = watched
        form = urlencode({"grant_type": "password", "username": LABEL, "password": PASSWORD}).encode()
        headers = {"content-type": "application/x-www-form-urlencoded"}
        login = watched.handle(Request(method="POST", path=watched.login_path(name), headers=headers, body=form))
        self._token: str = login.json()["access_token"]

    def read(self, since: Instant, view: str = "update_time") -> None:
        """As a poll that is complete up to `since` asks."""
        lookback = render_time(since - LOOKBACK_SECONDS * SECOND, digits=3)
        query = {"filter": f'incident.{view} >= timestamp("{lookback}")', "orderBy": f"{view},uuid"}
        headers = {"authorization": f"Bearer {self._token}"}
        answer = self._watched.handle(Request(method="GET", path="/v2/incidents", query=query, headers=headers))
        assert answer.status == 200


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def watched(clock: FakeClock) -> Watched:
    simulated = Watched(clock)
    simulated.add_tenant(LABEL, PASSWORD)
    return simulated


def test_a_read_is_known_by_its_replica(watched: Watched, clock: FakeClock) -> None:
    first, second = Reader(watched, "r0"), Reader(watched, "r1")
    first.read(clock.now())
    assert (watched.reader(LABEL), watched.held_by("r0"), watched.held_by("r1")) == ("r0", [LABEL], [])
    clock.advance(5)
    second.read(clock.now())
    assert (watched.reader(LABEL), watched.held_by("r0"), watched.held_by("r1")) == ("r1", [], [LABEL])
    assert [read.replica for read in watched.reads_since(clock.now() - SECOND)] == ["r1"]


def test_a_version_counts_as_read_when_a_later_poll_builds_on_it(watched: Watched, clock: FakeClock) -> None:
    reader, began = Reader(watched, "r0"), clock.now()
    reader.read(began)
    clock.advance(2)
    reader.read(began)
    assert watched.read_up_to(LABEL) == began
    clock.advance(2)
    reader.read(began + 2 * SECOND)
    assert watched.read_up_to(LABEL) == began + 2 * SECOND


def test_a_page_further_on_or_of_another_view_says_nothing(watched: Watched, clock: FakeClock) -> None:
    reader, began = Reader(watched, "r0"), clock.now()
    reader.read(began)
    clock.advance(2)
    reader.read(began)
    reader.read(clock.now() + LOOKBACK_SECONDS * SECOND)
    reader.read(clock.now(), "create_time")
    assert watched.read_up_to(LABEL) == began


def test_an_old_owner_takes_nothing_back(watched: Watched, clock: FakeClock) -> None:
    zombie, owner, began = Reader(watched, "r0"), Reader(watched, "r1"), clock.now()
    zombie.read(began)
    clock.advance(2)
    owner.read(began + 1)
    zombie.read(began - SECOND)
    assert watched.read_up_to(LABEL) == began


def test_no_version_is_replaced_before_it_was_read(watched: Watched, clock: FakeClock) -> None:
    tenant, reader = watched.tenants[LABEL], Reader(watched, "r0")
    unrest = Unrest(watched, random.Random(1), per_second=1)
    complete_up_to = clock.now()
    for _ in range(50):
        reader.read(complete_up_to)
        complete_up_to = clock.now()
        for _ in range(10):
            clock.advance(0.1)
            read = watched.read_up_to(LABEL)
            unrest.change()
            assert all(version.since < read for version in tenant.history if version.until == clock.now())
    assert not unrest.all_read()
    clock.advance(1)
    reader.read(complete_up_to)
    complete_up_to = clock.now()
    clock.advance(1)
    reader.read(complete_up_to)
    assert unrest.all_read()
    assert len({version.uuid for version in tenant.history}) < len(tenant.history) == unrest.changes
