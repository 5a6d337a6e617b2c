"""What a send that was under way means once the endpoint is stopped or paused: nothing new."""

import pytest

from relay.clock import SECOND
from relay.endpoint import OPENING_FAILURES, Breaker, Strike
from relay.errors import Unavailable
from relay.journal import EndpointStatus
from tests.support.clock import FakeClock

DOWN = Unavailable("down", reason="http_503")
LATER = Unavailable("later", retry_after_seconds=60.0, reason="throttled")


def strike(position: int, *, attempts: int = 0) -> Strike:
    return Strike(position=position, incident=("acme", f"u{position}"), attempts=attempts)


@pytest.mark.parametrize("error", [DOWN, LATER], ids=["down", "retry-after"])
@pytest.mark.parametrize("stop", ["park", "disable"])
def test_a_late_failure_starts_no_stopped_endpoint_again(stop: str, error: Unavailable) -> None:
    breaker = Breaker(EndpointStatus(), clock=FakeClock())
    if stop == "park":
        breaker.park("answered 410", "gone")
    else:
        breaker.disable()
    stopped = breaker.status
    assert breaker.struck([strike(1)], error, alone=False) == [strike(1)]
    assert breaker.status == stopped


def test_a_late_failure_ends_no_pause_and_a_shorter_one_does_not_shorten_it() -> None:
    clock = FakeClock()
    breaker = Breaker(EndpointStatus(), clock=clock)
    breaker.struck([strike(1)], LATER, alone=False)
    until = clock.now() + 60 * SECOND
    assert breaker.struck([strike(2)], DOWN, alone=False) == [strike(2)]
    assert (breaker.status.state, breaker.status.paused_until) == ("paused", until)
    breaker.struck([strike(3)], Unavailable("soon", retry_after_seconds=5.0), alone=False)
    assert (breaker.status.state, breaker.status.paused_until) == ("paused", until)


def test_a_message_under_way_while_its_attempts_are_given_back_does_not_bring_them_along() -> None:
    breaker = Breaker(EndpointStatus(), clock=FakeClock())
    struck = [breaker.struck([strike(at)], DOWN, alone=False) for at in range(OPENING_FAILURES)]
    assert struck[-1] == [strike(at) for at in range(OPENING_FAILURES)]
    assert breaker.status.state == "failing"
    assert breaker.struck([strike(0, attempts=1)], DOWN, alone=False) == [strike(0)]
    breaker.succeeded()
    assert breaker.struck([strike(0, attempts=1)], DOWN, alone=False) is None
