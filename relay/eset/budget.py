"""The request rate of this process towards ESET Connect: evenly spaced, live polling first, the rest under ceilings.

ESET counts calls by originating address too, so one budget serves every source. Not here: waiting after a 429, which
is the account's (`relay.eset.exchange`).
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final, Literal

from aiolimiter import AsyncLimiter

Lane = Literal["live", "backfill", "sweep", "enrich"]

CEILINGS: Final[Mapping[Lane, float]] = {"backfill": 0.5, "sweep": 0.25, "enrich": 0.25}
"""The most that a lane may take of the budget; live polling may take all of it."""
USED_SPAN_SECONDS: Final = 60.0


class RateBudget:
    """Hands out turns to send a request, never two closer than 1 / rate seconds."""

    def __init__(self, requests_per_second: float = 8.0, *, share: float = 1.0) -> None:
        self._requests_per_second = requests_per_second
        self._share = share
        self._live_waiting = 0
        self._no_live = asyncio.Event()
        self._no_live.set()
        self._others = asyncio.Lock()
        self._waits: dict[asyncio.Timeout, None] = {}
        self._turns: deque[float] = deque()
        self._set_limiters()

    @property
    def used_per_second(self) -> float:
        """How many requests were sent a second, over the last minute."""
        self._forget_old_turns(asyncio.get_running_loop().time())
        return len(self._turns) / USED_SPAN_SECONDS

    @property
    def requests_per_second(self) -> float:
        """What this process may send: the address's budget times our share of it."""
        return self._requests_per_second * self._share

    def change(self, *, requests_per_second: float | None = None, share: float | None = None) -> None:
        """Sets another budget for the address, or this process's share of it (its sources / all sources).

        Who waits already goes on under the new one.
        """
        before = self.requests_per_second
        if requests_per_second is not None:
            self._requests_per_second = requests_per_second
        if share is not None:
            self._share = share
        if self.requests_per_second == before:
            return
        self._set_limiters()
        for wait in self._waits:
            if not wait.expired():  # an earlier change has just woken it
                wait.reschedule(0)

    async def turn(self, lane: Lane) -> None:
        """Returns when one request of this lane may be sent.

        A live request waits for at most one request of another lane; other lanes wait while a live one does.
        """
        if lane == "live":
            await self._live_turn()
        else:
            await self._pass(lane)
            async with self._others:
                await self._no_live.wait()
                await self._pass("live")
        now = asyncio.get_running_loop().time()
        self._turns.append(now)
        self._forget_old_turns(now)

    def _forget_old_turns(self, now: float) -> None:
        while self._turns and self._turns[0] <= now - USED_SPAN_SECONDS:
            self._turns.popleft()

    async def _live_turn(self) -> None:
        self._live_waiting += 1
        self._no_live.clear()
        try:
            await self._pass("live")
        finally:
            self._live_waiting -= 1
            if not self._live_waiting:
                self._no_live.set()

    async def _pass(self, lane: Lane) -> None:
        while True:
            try:
                async with asyncio.timeout(None) as wait:
                    self._waits[wait] = None
                    await self._limiters[lane].acquire()
                    return
            except TimeoutError:
                continue  # the rate changed: wait under the new one
            finally:
                self._waits.pop(wait)

    def _set_limiters(self) -> None:
        rate = self.requests_per_second
        ceilings: dict[Lane, float] = {"live": 1.0, **CEILINGS}
        # One unit a period: no burst, ever.
        self._limiters = {lane: AsyncLimiter(1, 1 / (rate * ceiling)) for lane, ceiling in ceilings.items()}
