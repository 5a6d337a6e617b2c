"""Time as the relay sees it: one seam, so that tests inject it instead of sleeping. Not a scheduler."""

import asyncio
import time
from typing import Protocol

Instant = int
"""A point in time: integer nanoseconds since 1970-01-01T00:00:00Z."""

SECOND: Instant = 1_000_000_000
MILLISECOND: Instant = 1_000_000


class Clock(Protocol):
    """Tells the time and waits. `now` may jump (it is the wall clock), `monotonic` never does."""

    def now(self) -> Instant:
        """The wall clock, in nanoseconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow; for measuring durations and deadlines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits that long on the monotonic clock."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> Instant:
        """The wall clock, in nanoseconds since the epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits on the event loop."""
        await asyncio.sleep(seconds)
