"""A clock that stands still until it is told to move; sleeping moves it at once."""

import asyncio

from relay.clock import SECOND, Instant

START: Instant = 1_780_000_000 * SECOND
"""2026-05-28T20:26:40Z: where a fake clock begins unless told otherwise."""


class FakeClock:
    """A `relay.clock.Clock` for tests. Sleepers are not ordered: whoever sleeps moves the time for all."""

    def __init__(self, now: Instant = START) -> None:
        self._now = now
        self._elapsed_nanoseconds = 0
        self.slept: list[float] = []
        """Every sleep that was asked for, in seconds."""

    def now(self) -> Instant:
        """The wall clock."""
        return self._now + self._elapsed_nanoseconds

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._elapsed_nanoseconds / SECOND

    async def sleep(self, seconds: float) -> None:
        """Moves the time on and lets other tasks run."""
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Lets time pass, on both clocks."""
        self._elapsed_nanoseconds += round(seconds * SECOND)

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forward or, if negative, back; the monotonic one does not notice."""
        self._now += round(seconds * SECOND)
