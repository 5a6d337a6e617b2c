"""Where the journal of a schedule lives: a file, or a fake of Kafka with a cache beside it. Outlives every process."""

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec

from relay.errors import JournalError
from relay.journal import Journal
from relay.journal.kafka import InlineSink, KafkaJournal
from relay.journal.kafka.broker import Change, Record
from relay.journal.kafka.partition import delivery_of
from relay.journal.sqlite import SqliteJournal
from relay.metrics import SinkMetrics
from relay.sinks.kafka_shape import Shape
from tests.hunt.checker import Arrival, Emitted, Violation, emitted
from tests.hunt.far import Shore
from tests.hunt.script import Op, Setup
from tests.hunt.virtual import Hand, VirtualLoop
from tests.support.fake_kafka import FakeBroker, FakeCluster, FakeMembership, Group

MAX_BYTES: Final = 1 << 30
RETENTION_SECONDS: Final = 1e9
INLINE: Final = "inline"
"""The Kafka sink whose events are written with the poll."""
EVENTS_TOPIC: Final = "events"
EVENTS_PARTITIONS: Final = 3
PREFIX: Final = "relay"
_COLUMNS: Final = "position, id, kind, origin, uuid, sequence, updated, body"


class Deaf:
    """Stands for counters that nobody reads."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return nothing


def nothing(*args: Any, **named: Any) -> None:
    """Does it."""


class Surroundings(Protocol):
    """What a home needs of the world."""

    setup: Setup
    loop: VirtualLoop
    local: Hand
    rng: Any
    shores: dict[str, Shore]

    def point(self, label: str) -> None:
        """Something can happen here. Raises Crashed."""
        ...

    def happens(self, op: Op) -> None:
        """It does. Raises Crashed."""
        ...

    def travel(self) -> float:
        """How long the network takes one way, in seconds."""
        ...


class Home(Protocol):
    """What a schedule asks of the place of its journal."""

    def journal(self) -> Journal:
        """That of a new process, not opened yet."""
        ...

    def written(self) -> bool:
        """A job of the process is done; whether something was committed since the last time."""
        ...

    def die(self, mode: str) -> None:
        """The process is killed at this moment."""
        ...

    def bury(self) -> None:
        """Nothing of it runs any more."""
        ...

    async def give_up(self) -> None:
        """The process could not begin: lets go of its journal."""
        ...

    def ended(self) -> None:
        """The process has closed its journal."""
        ...

    def events(self, after: int) -> Iterable[Emitted]:
        """What was committed behind this position, in order."""
        ...

    def letters(self, component: str, name: str | None = None) -> list[bytes]:
        """The bodies of the dead letters of a component."""
        ...

    def calm(self) -> None:
        """No fault any more."""
        ...


class FileHome:
    """One file. A loss of power takes what was not synced."""

    def __init__(self, world: Surroundings, path: Path, blank: bytes) -> None:
        self._world = world
        self.path = path
        self._log = path.with_name(f"{path.name}-wal")
        for end in ("", "-wal"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        path.write_bytes(blank)
        self._journal: SqliteJournal | None = None
        self._kept: tuple[bytes, bytes] | None = None
        self._durable_bytes = self._log_bytes = 0

    def journal(self) -> SqliteJournal:
        """That of a new process."""
        clock = self._world.local
        self._journal = SqliteJournal(self.path, max_bytes=MAX_BYTES, retention_seconds=RETENTION_SECONDS, clock=clock)
        return self._journal

    def written(self) -> bool:
        """Notes up to where the write-ahead log is synced."""
        journal = self._journal
        if journal is None or not self._log.exists():
            return False
        before, self._log_bytes = self._log_bytes, self._log.stat().st_size
        if journal._durable:
            self._durable_bytes = self._log_bytes
        return self._log_bytes > before

    def die(self, mode: str) -> None:
        """With `power` the machine is killed."""
        if mode == "power":
            self._kept = (self.path.read_bytes(), self._wal().read_bytes()[: self._durable_bytes])
        else:
            self._kept = None

    def _wal(self) -> Path:
        self._log.touch()
        return self._log

    def bury(self) -> None:
        """Closes the file, and lets it be what survived."""
        self._drop()
        if self._kept is not None:
            self.path.write_bytes(self._kept[0])
            self._wal().write_bytes(self._kept[1])
            self._kept = None

    async def give_up(self) -> None:
        """Closes the file."""
        self._drop()

    def ended(self) -> None:
        """All is in the file."""

    def _drop(self) -> None:
        journal = self._journal
        if journal is not None:
            if journal._db is not None:
                journal._db.close()
                journal._db = None
            journal._release_lock()

    def _ask(self, query: str, *values: Any) -> list[Any]:
        assert self._journal is not None
        db = self._journal._db
        return db.execute(query, values).fetchall() if db is not None else []

    def events(self, after: int) -> Iterator[Emitted]:
        """Reads the table."""
        for row in self._ask(f"SELECT {_COLUMNS} FROM event WHERE position > ? ORDER BY position", after):
            yield emitted(row)

    def letters(self, component: str, name: str | None = None) -> list[bytes]:
        """Reads the table."""
        query = "SELECT body FROM dead WHERE component = ?1 AND (?2 IS NULL OR name = ?2)"
        return [row[0] for row in self._ask(query, component, name)]

    def calm(self) -> None:
        """It has no faults of its own."""


class KafkaHome:
    """Topics in memory, and a folder with the cache of the process."""

    def __init__(self, world: Surroundings, folder: Path, blank: bytes) -> None:
        self._world = world
        self._folder = folder
        self._blank = blank
        shutil.rmtree(folder, ignore_errors=True)
        self._lives = 0
        self._cache: dict[str, bytes] = {}
        self._journal: KafkaJournal | None = None
        self._broker: FakeBroker | None = None
        self._commits = 0
        self._dies_sending = ""
        self._broken = 0
        self._ghost: Ghost | None = None
        loop = world.loop
        self.cluster = FakeCluster(clock=loop.time, moment_seconds=None, later=loop.call_later, hook=self._hook)
        self.cluster.travel = world.travel
        self.cluster.late_seconds = lambda: float(world.rng.choice((0.001, 0.05, 0.5, 3.0, 20.0)))
        self.cluster.races = lambda: bool(world.rng.random() < 0.5)
        self.cluster.join_seconds = 0.3
        self.cluster.refuses = self._refuses
        self.cluster.create_topic(EVENTS_TOPIC, EVENTS_PARTITIONS)

    # -- the process ----------------------------------------------------------------------------------------------

    def journal(self) -> KafkaJournal:
        """That of a new process, in a folder of its own with the cache that the one before it has left."""
        self._lives += 1
        folder = self._folder / str(self._lives)
        folder.mkdir(parents=True)
        for number in range(self._world.setup.partitions):
            (folder / f"{number}.db").write_bytes(self._blank)
        for name, content in self._cache.items():
            (folder / name).write_bytes(content)
        if self._lives > 2:
            shutil.rmtree(self._folder / str(self._lives - 2), ignore_errors=True)
        self._broker = broker = FakeBroker(self.cluster)
        self._journal = KafkaJournal(
            broker,
            prefix=PREFIX,
            partitions=self._world.setup.partitions,
            cache_dir=folder,
            max_bytes=MAX_BYTES,
            retention_seconds=RETENTION_SECONDS,
            inline=[self._inline(broker)] if INLINE in self._world.shores else (),
            clock=self._world.local,
        )
        return self._journal

    def _inline(self, broker: FakeBroker) -> InlineSink:
        def ensure(topic: str) -> None:
            broker.ensure_topic(topic, create=False, partitions=1, replication_factor=-1)

        return InlineSink(
            INLINE,
            shape=Shape(topic=EVENTS_TOPIC, omit=(), max_event_bytes=1 << 20),
            rule=None,
            ensure=ensure,
            metrics=cast(SinkMetrics, Deaf()),
            clock=self._world.local,
        )

    def _refuses(self, record: Record) -> str:
        """Some events of the sink that is written with the poll are refused, for ever."""
        if not record.name:
            return ""
        shore, ident = self._world.shores[INLINE], record.name.split()[1]
        if shore.refusing and ident not in shore.refused:
            shore.refusing -= 1
            shore.refused.add(ident)
        return "not wanted" if ident in shore.refused else ""

    def _hook(self, label: str, ident: str) -> None:
        if ident.endswith("-meta"):
            return
        if label == "sent" and self._dies_sending:
            self._dies_sending = ""
            self._world.happens(Op(name="crash"))
        self._world.point(label)
        if label == "sending" and self._dies_sending:
            self.cluster.troubles.appendleft("late" if self._dies_sending == "late" else "open")
        if label == "sent" and self._broken:
            self._broken -= 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR  # as the module itself sets it
            raise error

    def written(self) -> bool:
        """Whether Kafka has more than the last time."""
        before, self._commits = self._commits, self.cluster.commits
        return self._commits > before

    def die(self, mode: str) -> None:
        """With `cache` its folder is gone; with `power` the logs of the files in it lose some of their end."""
        self._dies_sending = ""
        self._broken = 0
        if self._broker is not None:
            self._broker.die()
        self._cache = {} if mode == "cache" else self._files()
        if mode == "power":
            for name, content in self._cache.items():
                if name.endswith("-wal"):
                    self._cache[name] = content[: self._world.rng.randrange(len(content) + 1)]

    def _files(self) -> dict[str, bytes]:
        """What a process that ends here leaves: the log that lies beside a file is part of it."""
        folder = self._folder / str(self._lives)
        return {
            path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.endswith((".db", "-wal"))
        }

    def bury(self) -> None:
        """Closes what can be closed; the next process has another folder."""
        for partition in self._journal._held.values() if self._journal is not None else ():
            if partition._db is not None:
                partition._db.close()
                partition._db = None
            partition._release_lock()
        if self._journal is not None:
            self._journal._held.clear()
            self._journal._unlock_cache()

    async def give_up(self) -> None:
        """As a process that ends in order."""
        assert self._journal is not None
        with suppress(JournalError):
            await self._journal.close()
        self.ended()

    def ended(self) -> None:
        """The process has closed its journal."""
        self._cache = self._files()

    # -- what is there --------------------------------------------------------------------------------------------

    def events(self, after: int) -> Iterator[Emitted]:
        """Reads the topic of changes."""
        for message in self.cluster.committed(f"{PREFIX}.changes", after=after - 1):
            d = delivery_of(message, message.offset + 1)
            yield emitted((d.position, d.id, d.kind, d.origin, d.uuid, d.sequence, d.updated, d.body))

    def letters(self, component: str, name: str | None = None) -> list[bytes]:
        """Reads the topic of dead letters."""
        found = []
        for key, value in self.cluster.table(f"{PREFIX}.dead-letters").items():
            _table, its_component, its_name, _ident = msgspec.json.decode(key)
            if its_component == component and name in {None, its_name}:
                found.append(msgspec.msgpack.decode(value)[-1])
        return found

    def inline_arrivals(self, positions: dict[str, int]) -> list[Arrival]:
        """What the topic of the sink that is written with the poll holds. Raises Violation when it is out of order."""
        found: list[Arrival] = []
        for number in range(EVENTS_PARTITIONS):
            arrivals = [
                Arrival(
                    position=positions.get(ident, -1), id=ident, uuid=message.key.decode(), body=message.value or b""
                )
                for message in self.cluster.committed(EVENTS_TOPIC, number)
                for ident in (dict(message.headers)["ce_id"].decode(),)
            ]
            order = [arrival.position for arrival in arrivals]
            if order != sorted(order):
                raise Violation("sink", f"{INLINE} got its events in the order {order}")
            found += arrivals
        return sorted(found, key=lambda arrival: arrival.position)

    # -- what goes wrong ------------------------------------------------------------------------------------------

    def happens(self, op: Op) -> None:
        """One operation that only Kafka knows."""
        _HAPPENS[op.name](self, op)

    def trouble(self, op: Op) -> None:
        """Coming commits end otherwise than they should."""
        self.cluster.troubles.extend([op.mode] * op.count)  # type: ignore[list-item]  # the script knows them

    def go_down(self, op: Op) -> None:
        """No broker answers for so long."""
        self.cluster.go_down()
        self._world.loop.call_later(op.seconds, self.cluster.come_back)

    def fence(self, op: Op) -> None:
        """Somebody takes over partitions, and then does nothing with them."""
        idents = self.cluster.idents()
        for index in range(min(op.count, len(idents))):
            self.cluster.fence(idents[(op.pick + index) % len(idents)])

    def lose_session(self, op: Op) -> None:
        """The group takes the process for dead, which hears of it only then."""
        for member in list(self._group().members) if self._group() is not None else []:
            if member is not self._ghost:
                member.lose_session(unaware_seconds=op.seconds)

    def haunt(self, op: Op) -> None:
        """A second process takes its share for so long; it fences, and does nothing else."""
        group = self._group()
        if group is not None and self._ghost is None:
            ghost = self._ghost = Ghost(group, self.cluster, self._world.travel)
            group.join(ghost)
            self._world.loop.call_later(op.seconds, self._exorcise, ghost)

    def _exorcise(self, ghost: "Ghost") -> None:
        if self._ghost is ghost:
            self._ghost = None
            ghost.gone = True
            self._group().remove(ghost)

    def _group(self) -> Any:
        return self.cluster.groups.get(PREFIX)

    def compact(self, op: Op) -> None:
        """The brokers clean up."""
        for topic in (f"{PREFIX}.state", f"{PREFIX}.dead-letters", f"{PREFIX}.control"):
            self.cluster.compact(topic)

    def die_sending(self, op: Op) -> None:
        """The process is killed during its next commit, which arrives later, or stays open."""
        self._dies_sending = op.mode

    def break_cache(self, op: Op) -> None:
        """The local file cannot be written when Kafka has it already."""
        self._broken += op.count

    def calm(self) -> None:
        """No fault any more."""
        self.cluster.troubles.clear()
        self.cluster.come_back()
        self._dies_sending = ""
        self._broken = 0
        if self._ghost is not None:
            self._exorcise(self._ghost)


class Ghost(FakeMembership):
    """Another process as the first one meets it: it fences what it gets, gives back what it is asked for."""

    def __init__(self, group: Group, cluster: FakeCluster, travel: Callable[[], float]) -> None:
        super().__init__(group, "ghost")
        self._cluster = cluster
        self._travel = travel

    def tell(self, change: Change) -> None:
        """Acts at once, or nearly so."""
        if change.kind == "assigned":
            for number in change.partitions:
                self._cluster.later(self._travel(), lambda number=number: self._take(number))  # type: ignore[misc]
        elif change.kind == "revoked":
            self._cluster.later(self._travel(), lambda: self.let_go(change.partitions))

    def _take(self, number: int) -> None:
        if self._group.owners[number] is self:
            self._cluster.fence(f"{PREFIX}-{number}")


_HAPPENS: Final[dict[str, Callable[[KafkaHome, Op], None]]] = {
    "broker": KafkaHome.trouble,
    "brokers": KafkaHome.go_down,
    "fence": KafkaHome.fence,
    "session": KafkaHome.lose_session,
    "member": KafkaHome.haunt,
    "compact": KafkaHome.compact,
    "sending": KafkaHome.die_sending,
    "cache": KafkaHome.break_cache,
}
KAFKA_OPS: Final = frozenset(_HAPPENS)


def require_nothing_by_hand(name: str, arrivals: Sequence[Arrival]) -> None:
    """What is written with the poll is sent by nobody else. Raises Violation."""
    if arrivals:
        raise Violation("sink", f"{name} was sent {len(arrivals)} events that are written with the poll")
