"""Changes many tenants all the time, so that every version is owed: none is replaced before it is known to be read."""

import asyncio
import random
from collections import deque
from typing import Final

from relay.clock import Instant
from relay.simulator.samples import CLOSED
from tests.replicas.watched import Watched

SHARE_OF_NEW: Final = 0.15
SHARE_OF_CLOSED: Final = 0.3
SHARE_OF_BULK: Final = 0.02
LARGEST_BULK: Final = 12


class Unrest:
    """Creates, updates, closes and reopens, now and then several incidents at one instant.

    Whatever the tenants have when it is made counts as read.
    """

    def __init__(self, watched: Watched, rng: random.Random, *, per_second: float) -> None:
        self.changes = 0
        self._watched = watched
        self._rng = rng
        self._per_second = per_second
        self._read = {label: tenant.uuids() for label, tenant in watched.tenants.items()}
        self._unread: dict[str, deque[tuple[Instant, str]]] = {label: deque() for label in watched.tenants}
        self._stopped = False

    async def run(self) -> None:
        """Changes something about that often, until it is stopped."""
        while not self._stopped:
            await asyncio.sleep(self._rng.expovariate(self._per_second))
            self.change()

    def stop(self) -> None:
        """Lets `run` return."""
        self._stopped = True

    def all_read(self) -> bool:
        """Whether the last version of everything is known to be read."""
        for label in self._read:
            self._take_read(label)
        return not any(self._unread.values())

    def unread(self) -> dict[str, int]:
        """How many changes are not known to be read, by tenant."""
        return {label: len(waiting) for label, waiting in self._unread.items() if waiting}

    def change(self) -> None:
        """One change of one tenant."""
        label = self._rng.choice(list(self._read))
        self._take_read(label)
        tenant = self._watched.tenants[label]
        chosen = self._choose(self._read[label])
        if not chosen:
            chosen = [tenant.create()]
        elif len(chosen) > 1 or (self._rng.random() < SHARE_OF_CLOSED and not self._closed(label, chosen[0])):
            tenant.close(chosen)
        elif self._closed(label, chosen[0]):
            tenant.reopen(chosen)
        else:
            tenant.update(chosen)
        at = tenant.history[-1].since
        self._unread[label].extend((at, uuid) for uuid in chosen)
        self.changes += len(chosen)

    def _closed(self, label: str, uuid: str) -> bool:
        return bool(self._watched.tenants[label].get(uuid)["status"] == CLOSED)

    def _choose(self, read: list[str]) -> list[str]:
        """Takes one, or several; none: a new one."""
        if not read or self._rng.random() < SHARE_OF_NEW:
            return []
        several = self._rng.random() < SHARE_OF_BULK
        count = min(self._rng.randrange(2, LARGEST_BULK) if several else 1, len(read))
        self._rng.shuffle(read)
        return [read.pop() for _ in range(count)]

    def _take_read(self, label: str) -> None:
        unread, up_to = self._unread[label], self._watched.read_up_to(label)
        while unread and unread[0][0] < up_to:
            self._read[label].append(unread.popleft()[1])
