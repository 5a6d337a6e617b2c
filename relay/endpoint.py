"""The health of one sink's far side: failing, recovered, parked, and how long until the next try. Pure but for time."""

import random

import msgspec

from relay.clock import Clock
from relay.errors import SinkError, Unavailable
from relay.journal import EndpointStatus

FIRST_PROBE_SECONDS = 1.0
LAST_PROBE_SECONDS = 30.0
"""Brokers and disks are probed often: a probe is cheap there, and a backlog waits behind it."""


class Endpoint:
    """What is known of a far side. `status` is what survives a restart; a parked one gets a new chance by it."""

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
            reason=str(error)[:256],
        )
        return changed

    def recovered(self) -> bool:
        """Notes a success; True when that changed the state."""
        if self.status.state == "ok":
            return False
        self.failures_before = self.status.failures
        self.status = EndpointStatus()
        return True

    def next_probe_seconds(self, error: SinkError | None = None) -> float:
        """Doubling, ±20 %; at least what the far side asked for."""
        doubled = FIRST_PROBE_SECONDS * 2.0 ** min(16, max(0, self.status.failures - 1))
        seconds = min(LAST_PROBE_SECONDS, doubled) * random.uniform(0.8, 1.2)
        asked = error.retry_after_seconds if isinstance(error, Unavailable) else None
        return max(seconds, asked or 0.0)
