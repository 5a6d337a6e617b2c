"""The health of one sink's far side: failing, paused, parked, and how long until the next try. Pure but for time."""

import random
from collections.abc import Sequence
from typing import Final

import msgspec

from relay.clock import SECOND, Clock
from relay.errors import SinkError, Unavailable
from relay.journal import EndpointStatus
from relay.logs import hide

FIRST_PROBE_SECONDS = 1.0
LAST_PROBE_SECONDS = 30.0
"""Brokers and disks are probed often: a probe is cheap there, and a backlog waits behind it."""
OPENING_FAILURES: Final = 5
"""So many failures in a row are the endpoint's, not the messages'."""
MESSAGE_PROBES_SECONDS: Final = (5.0, 300.0)
"""First and longest wait between two probes of an endpoint that people or services run."""
PARKED_AFTER_SECONDS: Final = 120 * 3600.0
"""A far side that has failed for so long is not coming back by itself: a person has to look."""
LONGEST_PAUSE_SECONDS: Final = 24 * 3600.0
DISABLED: Final = "disabled by an operator"
UNREACHED: Final = frozenset({"dns", "connect", "tls", "proxy", "address"})
"""Reasons that no message can be at fault for: the first one is enough."""


class Endpoint:
    """What is known of a far side that takes batches. A parked one gets a new chance at the next start."""

    def __init__(self, status: EndpointStatus, *, clock: Clock) -> None:
        self.status = EndpointStatus() if status.state == "parked" else status
        self.failures_before = 0
        self._clock = clock

    def failed(self, error: SinkError, *, gone: bool) -> bool:
        """Notes one more failure; True when that changed the state."""
        state = "parked" if gone else "failing"
        changed = self.status.state != state
        self.status = msgspec.structs.replace(
            self.status,
            state=state,
            since=self._clock.now() if changed else self.status.since,
            failures=self.status.failures + 1,
            reason=hide(str(error))[:256],
            label=error.reason,
        )
        return changed

    def recovered(self) -> bool:
        """Notes a success; True when that changed the state."""
        if self.status.state == "ok":
            return False
        self.failures_before = self.status.failures
        self.status = EndpointStatus()
        return True

    def enable(self) -> None:
        """Whatever it was, it is tried again now."""
        self.status = EndpointStatus()

    def disable(self) -> None:
        """A person wants nothing sent."""
        self.status = EndpointStatus(state="disabled", since=self._clock.now(), reason=DISABLED, label="disabled")

    def next_probe_seconds(self, error: SinkError | None = None) -> float:
        """Doubling, ±20 %; at least what the far side asked for."""
        seconds = _doubled(self.status.failures, FIRST_PROBE_SECONDS, LAST_PROBE_SECONDS)
        asked = error.retry_after_seconds if isinstance(error, Unavailable) else None
        return max(seconds, asked or 0.0)


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """One failure of the endpoint's kind, while it was believed to be well. `attempts` is what there was before."""

    position: int
    incident: tuple[str, str]
    attempts: int


class Breaker:
    """Tells a message that fails from an endpoint that does, and how long to wait for the latter.

    ok ─5 in a row, or no connection─► failing ─first success─► ok. Retry-After: paused until then. Gone, or failing for
    120 h: parked, until a person enables it. `status` is what survives a restart.
    """

    def __init__(self, status: EndpointStatus, *, clock: Clock) -> None:
        self.status = status
        self.failures_before = 0
        self.probes = 0
        """How many probes in a row have failed; each takes another incident."""
        self._clock = clock
        self._row: list[Strike] = []
        self._before: dict[int, int] = {}
        self._next_probe: float | None = None

    @property
    def sending(self) -> bool:
        """Whether messages may go out at will."""
        return self.status.state == "ok"

    @property
    def stopped(self) -> bool:
        """Whether a person has to act first."""
        return self.status.state in ("parked", "disabled")

    def wait_seconds(self) -> float:
        """How long until the next message may go out; infinite when a person has to act."""
        if self.stopped:
            return float("inf")
        if self.status.state == "paused":
            until = self.status.paused_until or 0
            return max(0.0, (until - self._clock.now()) / SECOND)
        if self.status.state == "failing" and self._next_probe is not None:
            return max(0.0, self._next_probe - self._clock.monotonic())
        return 0.0

    def unpaused(self) -> bool:
        """Ends a pause that is over; True when that changed the state."""
        if self.status.state != "paused" or self.wait_seconds() > 0:
            return False
        self.status = EndpointStatus()
        return True

    def struck(self, strikes: Sequence[Strike], error: Unavailable, *, alone: bool) -> Sequence[Strike] | None:
        """A send failed for the endpoint's sake. None: not yet, the messages are tried again by their own schedule.

        Otherwise the endpoint is not believed to be well any more: the strikes whose attempts are given back.
        `alone`: no other incident waits. What was under way when the endpoint was stopped or paused changes nothing.
        """
        if self.stopped:
            return self._as_before(strikes)
        if error.retry_after_seconds is not None:
            self._pause(error)
            return self._as_before([*self._forgiven(), *strikes])
        if self.status.state != "ok":
            if self.status.state != "paused":
                self._fail(error)
            return self._as_before(strikes)
        self._row += strikes
        several = len({strike.incident for strike in self._row}) > 1
        if error.reason in UNREACHED or (len(self._row) >= OPENING_FAILURES and (several or alone)):
            self._fail(error)
            return self._forgiven()
        return None

    def succeeded(self) -> bool:
        """A send was acknowledged; True when that changed the state."""
        self._row = []
        self._before = {}
        self.probes = 0
        if self.status.state != "failing":
            return False
        self.failures_before = self.status.failures
        self.status = EndpointStatus()
        return True

    def park(self, reason: str, label: str) -> None:
        """Nothing more is sent until a person enables it."""
        self._stop("parked", reason, label)

    def disable(self) -> None:
        """A person wants nothing sent."""
        self._stop("disabled", DISABLED, "disabled")

    def enable(self) -> bool:
        """Whatever it was, it is tried again now; True when that changed the state."""
        changed = self.status.state != "ok"
        self.status = EndpointStatus()
        self._row = []
        self._before = {}
        self.probes = 0
        return changed

    def told(self) -> None:
        """The sink named in `notify` knows that this one is parked."""
        self.status = msgspec.structs.replace(self.status, told=True)

    def _pause(self, error: Unavailable) -> None:
        seconds = min(error.retry_after_seconds or 0.0, LONGEST_PAUSE_SECONDS)
        until = self._clock.now() + int(seconds * SECOND)
        self.status = EndpointStatus(
            state="paused",
            since=self.status.since if self.status.state == "paused" else self._clock.now(),
            failures=self.status.failures + 1,
            paused_until=max(until, self.status.paused_until or until),
            reason=hide(str(error))[:256],
            label=error.reason,
        )

    def _fail(self, error: Unavailable) -> None:
        since = self.status.since if self.status.state == "failing" and self.status.since else self._clock.now()
        failures = self.status.failures + 1
        if self._clock.now() - since >= int(PARKED_AFTER_SECONDS * SECOND):
            self.park(f"it has failed for {PARKED_AFTER_SECONDS / 3600:.0f} h: {error}", error.reason)
            return
        self.probes += self.status.state == "failing"
        self._next_probe = self._clock.monotonic() + _doubled(self.probes + 1, *MESSAGE_PROBES_SECONDS)
        self.status = EndpointStatus(
            state="failing", since=since, failures=failures, reason=hide(str(error))[:256], label=error.reason
        )

    def _forgiven(self) -> list[Strike]:
        row, self._row = self._row, []
        for strike in row:
            self._before.setdefault(strike.position, strike.attempts)
        return row

    def _as_before(self, strikes: Sequence[Strike]) -> list[Strike]:
        """A message that was under way again while its attempts were given back does not bring them along."""
        return [
            msgspec.structs.replace(strike, attempts=self._before.get(strike.position, strike.attempts))
            for strike in strikes
        ]

    def _stop(self, state: str, reason: str, label: str) -> None:
        self.status = EndpointStatus(
            state="parked" if state == "parked" else "disabled",
            since=self._clock.now(),
            failures=self.status.failures,
            reason=hide(reason)[:256],
            label=label,
        )
        self._row = []


def _doubled(times: int, first: float, last: float) -> float:
    """`first`, doubled for each time beyond one, at most `last`; ±20 %, so that relays don't knock in step."""
    return min(last, first * 2.0 ** min(16, max(0, times - 1))) * random.uniform(0.8, 1.2)
