"""What is done to a fleet and to its brokers: which faults, in which order, when and to whom is drawn from a seed.

At least one replica and a majority of the brokers are left alone at any time, if there are as many.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal, get_args

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.e2e.stage import until
from tests.replicas.fleet import Fleet, Replica
from tests.replicas.watched import Watched
from tests.support.broker import Cluster

Kind = Literal["SIGKILL", "long freeze", "SIGTERM", "broker SIGKILL", "transaction timeout", "rolling restart"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

SESSION_TIMEOUT_SECONDS: Final = 6.0
TRANSACTION_TIMEOUT_SECONDS: Final = 4.0
"""A broker looks for such transactions every half second: see the properties of `Cluster`."""
HEARTBEAT_SECONDS: Final = 1.0
OUTLASTS_A_SESSION: Final = (SESSION_TIMEOUT_SECONDS + 1.5, SESSION_TIMEOUT_SECONDS + 5.0)
OUTLASTS_A_TRANSACTION: Final = (TRANSACTION_TIMEOUT_SECONDS + 0.6, SESSION_TIMEOUT_SECONDS - HEARTBEAT_SECONDS - 0.1)
BROKER_DOWN: Final = (0.5, 4.0)
CUE_WITHIN_SECONDS: Final = 3.0
LONGEST_COMMIT_SECONDS: Final = 0.03
"""After a page was answered, its changes are committed about that long."""
IN_SYNC_WITHIN_SECONDS: Final = 90.0


def deck(faults: int, rng: random.Random) -> list[Kind]:
    """So many faults, of each kind as many as of any other, in random order."""
    drawn = [KINDS[number % len(KINDS)] for number in range(faults)]
    rng.shuffle(drawn)
    return drawn


class Director:
    """Inflicts faults; each lasts until what it struck is well again."""

    def __init__(self, fleet: Fleet, cluster: Cluster, watched: Watched, rng: random.Random) -> None:
        self.inflicted: Counter[Kind] = Counter()
        self._fleet = fleet
        self._cluster = cluster
        self._watched = watched
        self._rng = rng
        self._places = asyncio.Semaphore(max(1, len(fleet.replicas) - 1))
        self._struck = {replica.name: asyncio.Lock() for replica in fleet.replicas}
        self._broker = asyncio.Lock()
        self._rolling = asyncio.Lock()

    async def play(self, kinds: Sequence[Kind], *, seconds: float) -> None:
        """At random instants within so many seconds; several at a time, if it happens so."""
        began = asyncio.get_running_loop().time()
        instants = sorted(self._rng.uniform(0, seconds) for _ in kinds)
        async with asyncio.TaskGroup() as group:
            for kind, instant in zip(kinds, instants, strict=True):
                await asyncio.sleep(began + instant - asyncio.get_running_loop().time())
                group.create_task(self.inflict(kind), name=kind)

    async def inflict(self, kind: Kind) -> None:
        """One fault, and what it struck is well again. Raises TimeoutError when that does not happen."""
        match kind:
            case "broker SIGKILL":
                await self._kill_a_broker()
            case "rolling restart":
                await self._restart_all()
            case _:
                async with self._victim() as replica:
                    await self._strike(kind, replica)
        self.inflicted[kind] += 1

    async def _strike(self, kind: Kind, replica: Replica) -> None:
        if kind in {"long freeze", "transaction timeout"} or self._rng.random() < 0.5:
            await self._amid_a_commit(replica)
        match kind:
            case "SIGKILL":
                await replica.kill()
                away = self._rng.choice((0.0, self._rng.uniform(0, 3), self._rng.uniform(*OUTLASTS_A_SESSION)))
                await asyncio.sleep(away)
                await replica.start()
            case "SIGTERM":
                await replica.stop()
                await asyncio.sleep(self._rng.uniform(0, 2))
                await replica.start()
            case "long freeze":
                await self._freeze(replica, self._rng.uniform(*OUTLASTS_A_SESSION))
            case "transaction timeout":
                await self._freeze(replica, self._rng.uniform(*OUTLASTS_A_TRANSACTION))
        await replica.ready()

    async def _amid_a_commit(self, replica: Replica) -> None:
        await self._watched.page_for(replica.name, within=CUE_WITHIN_SECONDS)
        await asyncio.sleep(self._rng.uniform(0, LONGEST_COMMIT_SECONDS))

    async def _freeze(self, replica: Replica, seconds: float) -> None:
        replica.freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            replica.thaw()

    async def _restart_all(self) -> None:
        async with self._rolling:
            for replica in self._fleet.replicas:
                async with self._places, self._struck[replica.name]:
                    await replica.stop()
                    await replica.start()
                    await replica.ready()

    async def _kill_a_broker(self) -> None:
        async with self._broker:
            node = self._rng.randrange(len(self._cluster.process_ids))
            await asyncio.to_thread(self._cluster.kill, node)
            await asyncio.sleep(self._rng.uniform(*BROKER_DOWN))
            await asyncio.to_thread(self._cluster.restart, node)
            await in_sync(self._cluster)

    @asynccontextmanager
    async def _victim(self) -> AsyncIterator[Replica]:
        async with self._places:
            free = [replica for replica in self._fleet.replicas if not self._struck[replica.name].locked()]
            replica = self._rng.choice(free or self._fleet.replicas)
            async with self._struck[replica.name]:
                yield replica


async def in_sync(cluster: Cluster) -> None:
    """Waits until every node has all of every partition again. Raises TimeoutError."""
    options: dict[str, str | int | float | bool] = {"bootstrap.servers": cluster.bootstrap, "log_level": 2}
    admin = AdminClient(options)

    async def has_all() -> bool:
        try:
            topics = (await asyncio.to_thread(admin.list_topics, timeout=10)).topics.values()
        except KafkaException:
            return False
        return all(len(part.isrs) == len(part.replicas) for topic in topics for part in topic.partitions.values())

    await until(has_all, "every node is in sync", within=IN_SYNC_WITHIN_SECONDS)
