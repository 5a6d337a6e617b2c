"""Changes a tenant while a relay reads it, so that every version is owed: none is replaced before a whole poll saw it.

When that is so is told from the requests that the simulator met, never from what the relay says.
"""

import asyncio
import random
from collections import deque
from collections.abc import Iterator

from relay.clock import SECOND, Instant
from relay.simulator import SeenRequest, Simulator
from relay.simulator.samples import CLOSED
from relay.simulator.times import parse_time
from tests.e2e.stage import LOOKBACK_SECONDS, USER, Stage


class Polls:
    """The live polls of one relay after another. Takes the simulator's log of requests for itself."""

    def __init__(self, simulator: Simulator) -> None:
        self.read_up_to: Instant = 0
        """What was shown by then has been read: a poll that began later went to its end."""
        self._simulator = simulator
        self._live_from = simulator.clock.now() - (LOOKBACK_SECONDS + 10) * SECOND
        self._pages = 0
        self._view = ""
        self._began: Instant | None = None

    async def answered(self, pages: int) -> None:
        """Waits until so many more pages were answered, of live polls or of the backfill."""
        self.look()
        wanted = self._pages + pages
        while self._pages < wanted:
            await asyncio.sleep(0.002)
            self.look()

    def new_life(self) -> None:
        """Another process polls from now on; the poll that its predecessor had in hand does not count."""
        self.look()
        self._view, self._began = "", None

    def look(self) -> None:
        """Takes in the requests since the last look.

        A poll reads by update time, then by create time. A new process first ends the poll that another left, which
        began before; so the first that counts is the one after a request by create time.
        """
        for view in self._live_views():
            self._met(*view)

    def _met(self, view: str, at: Instant) -> None:
        if (self._view, view) == ("create_time", "update_time"):
            self.read_up_to = max(self.read_up_to, self._began or 0)
            self._began = at
        self._view = view

    def _live_views(self) -> Iterator[tuple[str, Instant]]:
        """The view and time of each live request; the backfill asks for older times."""
        while self._simulator.requests:
            seen = self._simulator.requests.popleft()
            if seen.operation == "list" and seen.status == 200 and seen.query.get("filter"):
                self._pages += 1
                if _since(seen) >= self._live_from:
                    yield seen.query["orderBy"].partition(",")[0], seen.at


class Unrest:
    """Creates, updates, closes and reopens, one incident at a time. The past rests until `stir_the_past`."""

    def __init__(self, stage: Stage, polls: Polls, rng: random.Random) -> None:
        self.changes = 0
        self.last_change: Instant = 0
        self._stage = stage
        self._tenant = stage.tenant
        self._polls = polls
        self._rng = rng
        self._untouched: list[str] = []
        self._unread: deque[tuple[Instant, str]] = deque()
        self._read: list[str] = []

    def stir_the_past(self) -> None:
        """From now on incidents of the past change too: all of them have been read."""
        self._untouched = self._stage.simulator.tenants[USER].pick(len(self._tenant), which="oldest")
        touched = {uuid for _, uuid in self._unread} | set(self._read)
        self._untouched = [uuid for uuid in self._untouched if uuid not in touched]
        self._rng.shuffle(self._untouched)

    async def spread(self, changes: int, *, over_seconds: float) -> None:
        """So many changes at random instants, about that long."""
        for _ in range(changes):
            await asyncio.sleep(self._rng.uniform(0, 2 * over_seconds / changes))
            self.change()

    def change(self) -> None:
        """One change of one incident whose version of before has been read, or a new incident."""
        self._settle()
        uuid = self._choose()
        if uuid is None:
            uuid = self._tenant.create()
        elif self._tenant.get(uuid)["status"] == CLOSED:
            self._tenant.reopen(uuid)
        elif self._rng.random() < 0.3:
            self._tenant.close(uuid)
        else:
            self._tenant.update(uuid)
        self.last_change = self._tenant.history[-1].since
        self._unread.append((self.last_change, uuid))
        self.changes += 1

    def _settle(self) -> None:
        self._polls.look()
        while self._unread and self._unread[0][0] < self._polls.read_up_to:
            self._read.append(self._unread.popleft()[1])

    def _choose(self) -> str | None:
        """None: a new one."""
        roll = self._rng.random()
        if self._read and roll < 0.5:
            at = self._rng.randrange(len(self._read))
            self._read[at], self._read[-1] = self._read[-1], self._read[at]
            return self._read.pop()
        if self._untouched and roll < 0.85:
            return self._untouched.pop()
        return None


def _since(seen: SeenRequest) -> Instant:
    """The time of a filter such as `incident.update_time >= timestamp("…")`."""
    return parse_time(seen.query["filter"].partition('"')[2].partition('"')[0])
