"""A Kafka cluster in memory, behind the protocol of `relay.journal.kafka.broker`: no socket, no thread, no waiting.

The cluster outlives the processes that use it: each has a `FakeBroker`, and what that holds open dies with it. Offsets
have the gaps that markers of transactions leave, readers see what is committed and stop before what is open, whoever
was fenced writes no more. What goes wrong is put into `troubles`, one for each of the next commits.
"""

import asyncio
import threading
import time
import zlib
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Literal

from relay.errors import JournalMisplaced, JournalUnavailable
from relay.journal.kafka.broker import Change, Doubtful, Fenced, Message, Record, RecordsRefused, TopicPlan

USUAL_RECORD_BYTES: Final = 1_048_588
"""What a topic takes that says nothing of it."""
KEPT_TOMBSTONE_SECONDS: Final = 86_400.0
"""For so long compaction leaves what says that a key is gone."""

Trouble = Literal["lost", "kept", "late", "open", "fenced", "slow"]
"""What becomes of a commit.

lost: in doubt, and nothing was written. kept: in doubt, and all was. late: in doubt, and it arrives `late_seconds`
later, unless the id is fenced by then. open: in doubt, the records are there, and their transaction ends with the next
fence or by its timeout. fenced: somebody else was faster. slow: no trouble at all, which lets others come later.
"""


@dataclass(slots=True, kw_only=True)
class Transaction:
    """What becomes of records all at once. `firsts` are its first offsets, by log."""

    state: Literal["open", "committed", "aborted"] = "open"
    began: float
    firsts: dict["Log", int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record in a log; `transaction` None when it was written outside of any."""

    message: Message
    at: float
    transaction: Transaction | None

    @property
    def offset(self) -> int:
        """Where it stands."""
        return self.message.offset

    @property
    def committed(self) -> bool:
        """Whether readers may see it, once they come there."""
        return self.transaction is None or self.transaction.state == "committed"


class Log:
    """One partition."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.begin = 0
        self.end = 0
        self.open: list[Transaction] = []

    def append(self, record: Record, transaction: Transaction | None, at: float) -> int:
        """The offset of this record."""
        offset = self.end
        message = Message(offset, record.key, record.value, record.headers)
        self.entries.append(Entry(message=message, at=at, transaction=transaction))
        self.end += 1
        if transaction is not None and self not in transaction.firsts:
            transaction.firsts[self] = offset
            self.open.append(transaction)
        return offset

    def stable(self) -> int:
        """Where readers stop: at the first record of a transaction that is open."""
        return min((one.firsts[self] for one in self.open), default=self.end)

    def visible(self, start: int, end: int) -> Iterator[Entry]:
        """What is committed between these offsets."""
        for index in range(bisect_left(self.entries, start, key=attrgetter("offset")), len(self.entries)):
            entry = self.entries[index]
            if entry.offset >= end:
                return
            if entry.committed:
                yield entry

    def compact(self, tombstones_before: float) -> None:
        """Keeps the last of each key below the first open transaction; drops what is gone since before that time."""
        stable = self.stable()
        last = {entry.message.key: entry for entry in self.visible(self.begin, stable)}
        self.entries = [
            entry
            for entry in self.entries
            if entry.offset >= stable
            or (
                last.get(entry.message.key) is entry
                and (entry.message.value is not None or entry.at >= tombstones_before)
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coming:
    """A transaction that is on its way to the brokers."""

    due: float
    ident: str
    epoch: int
    records: Sequence[Record]


class FakeCluster:
    """Topics, transactions and groups.

    `clock` tells seconds. `moment_seconds` is how long a reader waits for something to read; None: for ever. `later`
    is asked to call back after so many seconds; without it the loop at hand is. `hook` is told "sending" before and
    "sent" after each commit, in the writer's thread, with its transactional id; what it raises comes out there, as if
    the process had died.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        moment_seconds: float | None = 0.05,
        later: Callable[[float, Callable[[], None]], Any] | None = None,
        hook: Callable[[str, str], None] = lambda label, ident: None,
    ) -> None:
        self.clock = clock
        self.moment_seconds = moment_seconds
        self.hook = hook
        self.troubles: deque[Trouble] = deque()
        self.late_seconds: Callable[[], float] = lambda: 1.0
        self.races: Callable[[], bool] = lambda: False
        """Whether what is on its way arrives just before the fence that is asked for now."""
        self.travel: Callable[[], float] = lambda: 0.0
        """How long records take to a reader, in seconds."""
        self.refuses: Callable[[Record], str] = lambda record: ""
        """Why a record of this name is not taken; empty when it is."""
        self.join_seconds = 0.0
        self.session_seconds = 6.0
        self.release_seconds = 8.0
        self.transaction_seconds = 60.0
        self.commits = 0
        self.down = False
        self.lock = threading.RLock()
        self.logs: dict[str, list[Log]] = {}
        self.settings: dict[str, dict[str, str]] = {}
        self.groups: dict[str, Group] = {}
        self._later = later
        self._epochs: defaultdict[str, int] = defaultdict(int)
        self._open: dict[str, Transaction] = {}
        self._coming: list[_Coming] = []
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls back after so many seconds, or now."""
        if seconds <= 0:
            call()
        elif self._later is not None:
            self._later(seconds, call)
        else:
            asyncio.get_running_loop().call_later(seconds, call)

    # -- what a test asks of it -------------------------------------------------------------------------------------

    def create_topic(self, name: str, partitions: int = 1, settings: Mapping[str, str] | None = None) -> None:
        """A topic with these settings, unless there is one."""
        with self.lock:
            if name not in self.logs:
                self.logs[name] = [Log() for _ in range(partitions)]
                self.settings[name] = dict(settings or {})

    def committed(self, topic: str, partition: int = 0, *, after: int = -1) -> list[Message]:
        """What was committed behind this offset, whatever is open before it."""
        with self.lock:
            self.expire()
            logs = self.logs.get(topic)
            return [] if logs is None else [entry.message for entry in logs[partition].visible(after + 1, 1 << 62)]

    def table(self, topic: str, partition: int = 0) -> dict[bytes, bytes]:
        """The last value of each key that is not gone."""
        last = {message.key: message.value for message in self.committed(topic, partition)}
        return {key: value for key, value in last.items() if value is not None}

    def compact(self, topic: str, *, tombstones_after: float = KEPT_TOMBSTONE_SECONDS) -> None:
        """Compacts every partition; records that say that a key is gone go when they are older than so many seconds."""
        with self.lock:
            self.expire()
            for log in self.logs.get(topic, ()):
                log.compact(self.clock() - tombstones_after)

    def delete_before(self, topic: str, offset: int, partition: int = 0) -> None:
        """Retention: what stands before this offset is gone."""
        with self.lock:
            log = self.logs[topic][partition]
            log.begin = max(log.begin, min(offset, log.end))
            log.entries = [entry for entry in log.entries if entry.offset >= log.begin]

    def fence(self, ident: str) -> int:
        """Whoever wrote under this transactional id writes no more; returns the new epoch."""
        with self.lock:
            self.expire()
            self._epochs[ident] += 1
            if (transaction := self._open.pop(ident, None)) is not None:
                self._end(transaction, "aborted")
            self._wake()
            return self._epochs[ident]

    def idents(self) -> list[str]:
        """Every transactional id that was ever fenced."""
        return sorted(self._epochs)

    def go_down(self) -> None:
        """From now on every call fails."""
        with self.lock:
            self.down = True
            self._wake()

    def come_back(self) -> None:
        """What was committed is still there."""
        with self.lock:
            self.down = False

    # -- what the clients do ----------------------------------------------------------------------------------------

    @contextmanager
    def up(self, doing: str) -> Iterator[None]:
        """One call. Raises JournalUnavailable while the brokers are down."""
        with self.lock:
            if self.down:
                raise JournalUnavailable(f"the journal on Kafka: {doing}: no broker answers")
            self.expire()
            yield

    def log(self, topic: str, partition: int) -> Log:
        """Raises JournalUnavailable when there is no such topic."""
        logs = self.logs.get(topic)
        if logs is None or partition >= len(logs):
            raise JournalUnavailable(f"the journal on Kafka: topic {topic} [{partition}] does not exist")
        return logs[partition]

    def write(self, records: Iterable[Record], transaction: Transaction | None) -> dict[tuple[str, int], int]:
        """The last offset of these by topic and partition. Nobody is told yet."""
        ends: dict[tuple[str, int], int] = {}
        for record in records:
            logs = self.logs[record.topic]
            number = record.partition if record.partition is not None else zlib.crc32(record.key) % len(logs)
            ends[record.topic, number] = logs[number].append(record, transaction, self.clock())
        return ends

    def begin(self, ident: str) -> Transaction:
        """An open transaction under this id, until it ends or times out."""
        transaction = self._open[ident] = Transaction(began=self.clock())
        return transaction

    def leave_open(self) -> None:
        """A transaction stays open: somebody has to look when its time is over."""
        if self._later is not None:
            self._later(self.transaction_seconds + 0.001, self._poke)

    def finish(self, ident: str, how: Literal["committed", "aborted"]) -> None:
        """Ends the open transaction of this id, with its marker in every partition."""
        self._end(self._open.pop(ident), how)
        self._wake()

    def send_late(self, ident: str, epoch: int, records: Sequence[Record]) -> None:
        """These arrive in a while, unless the id has another owner by then."""
        seconds = self.late_seconds()
        self._coming.append(_Coming(due=self.clock() + seconds, ident=ident, epoch=epoch, records=records))
        if self._later is not None:
            self._later(seconds + 0.001, self._poke)

    def epoch(self, ident: str) -> int:
        """Who may write under this id."""
        return self._epochs[ident]

    def waiter(self) -> asyncio.Event:
        """Is set when something has changed."""
        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        return event

    def limit(self, topic: str) -> int:
        """The largest record that this topic takes, in bytes."""
        return int(self.settings[topic].get("max.message.bytes", USUAL_RECORD_BYTES))

    def expire(self) -> None:
        """Does what time has brought: late commits arrive, transactions that are open for too long are aborted."""
        now = self.clock()
        self._arrive([one for one in self._coming if one.due <= now])
        for ident, transaction in list(self._open.items()):
            if now - transaction.began >= self.transaction_seconds:
                self._epochs[ident] += 1
                self.finish(ident, "aborted")

    def hurry(self, ident: str) -> None:
        """What is on its way under this id arrives now."""
        self._arrive([one for one in self._coming if one.ident == ident])

    def _arrive(self, due: Sequence[_Coming]) -> None:
        for one in due:
            self._coming.remove(one)
            if one.epoch == self._epochs[one.ident] and one.ident not in self._open:
                self.write(one.records, self.begin(one.ident))
                self.finish(one.ident, "committed")
                self.commits += 1

    def _poke(self) -> None:
        with self.lock:
            self.expire()

    def _end(self, transaction: Transaction, how: Literal["committed", "aborted"]) -> None:
        transaction.state = how
        for log in transaction.firsts:
            log.open.remove(transaction)
            log.end += 1  # the marker

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def wake(self) -> None:
        """Something has changed."""
        self._wake()


class FakeBroker:
    """The cluster as one process sees it, until it dies."""

    def __init__(self, cluster: FakeCluster, *, member: str = "one") -> None:
        self.cluster = cluster
        self.dead = False
        self._member = member
        self._memberships: list[FakeMembership] = []

    def die(self) -> None:
        """The process is killed: what it holds open is not ended, and the group waits for it as for any dead member."""
        self.dead = True
        for membership in self._memberships:
            membership.die()

    @contextmanager
    def up(self, doing: str) -> Iterator[None]:
        """One call of this process. Raises JournalUnavailable when it is dead, or the brokers are down."""
        if self.dead:
            raise JournalUnavailable(f"the journal on Kafka: {doing}: the process is dead")
        with self.cluster.up(doing):
            yield

    async def connect(self) -> None:
        """Reaches the cluster."""
        with self.up("connecting"):
            pass

    async def ensure(self, topics: Sequence[TopicPlan]) -> Mapping[str, int]:
        """Makes what is missing, verifies the rest."""
        with self.up("looking at topics"):
            return {plan.name: self._ensure(plan) for plan in topics}

    def _ensure(self, plan: TopicPlan) -> int:
        self.cluster.create_topic(plan.name, plan.partitions, plan.settings)
        found, has = len(self.cluster.logs[plan.name]), self.cluster.settings[plan.name]
        wrong = [f"{key}={has.get(key)}" for key in plan.must if has.get(key) != plan.settings[key]]
        if found != plan.partitions:
            wrong.append(f"{found} partitions")
        if wrong:
            raise JournalMisplaced(f"topic {plan.name} has {' and '.join(wrong)}: mend it, or set another kafka_prefix")
        return found

    async def partitions(self, topic: str) -> int:
        """How many the topic has, 0 when there is none."""
        with self.up(f"looking at topic {topic}"):
            return len(self.cluster.logs.get(topic, ()))

    def ensure_topic(self, topic: str, *, create: bool, partitions: int, replication_factor: int) -> None:
        """A topic of the user exists. Blocks."""
        del replication_factor
        with self.up(f"looking at topic {topic}"):
            if topic not in self.cluster.logs and not create:
                raise JournalUnavailable(f"topic {topic} does not exist; make it, or set create_topic")
            self.cluster.create_topic(topic, partitions)

    def writer(self, transactional_id: str) -> "FakeWriter":
        """A producer under this id, not fenced yet."""
        return FakeWriter(self, transactional_id)

    async def reader(self, topic: str, partition: int, offset: int) -> "FakeReader":
        """Reads from this offset on."""
        return FakeReader(self, topic, partition, offset)

    async def end(self, topic: str, partition: int) -> int:
        """The offset behind the last record, of open transactions as well."""
        with self.up(f"looking for the end of {topic}"):
            return self.cluster.log(topic, partition).end

    async def join(self, group: str, topic: str) -> "FakeMembership":
        """Takes part in the sharing of this topic's partitions."""
        with self.up("joining"):
            found = self.cluster.groups.get(group)
            if found is None:
                found = self.cluster.groups[group] = Group(self.cluster, len(self.cluster.logs[topic]))
            membership = FakeMembership(found, self._member)
            self._memberships.append(membership)
            found.join(membership)
            return membership

    async def members(self, group: str) -> list[str]:
        """Who takes part at present."""
        with self.up("looking at the group"):
            found = self.cluster.groups.get(group)
            return [] if found is None else sorted(f"{one.name} on fake" for one in found.members)

    async def post(self, topic: str, records: Sequence[Record]) -> None:
        """Writes outside any transaction."""
        with self.up(f"writing to {topic}"):
            self.cluster.write(
                (record._replace(topic=topic, partition=record.partition or 0) for record in records), None
            )
            self.cluster.wake()

    async def close(self) -> None:
        """Lets go of everything."""


class FakeWriter:
    """One transactional id."""

    def __init__(self, broker: FakeBroker, ident: str) -> None:
        self._broker = broker
        self._cluster = broker.cluster
        self._ident = ident
        self._epoch: int | None = None

    def fence(self) -> None:
        """Ends whoever used this id before."""
        with self._broker.up("fencing"):
            if self._cluster.races():
                self._cluster.hurry(self._ident)
            self._epoch = self._cluster.fence(self._ident)

    def commit(self, records: Sequence[Record]) -> Mapping[tuple[str, int], int]:
        """All of them in one transaction."""
        cluster = self._cluster
        if self._epoch is None or self._broker.dead:
            raise Doubtful("the writer has to be fenced first")
        cluster.hook("sending", self._ident)
        with cluster.lock:
            cluster.expire()
            trouble: Trouble = cluster.troubles.popleft() if cluster.troubles else "slow"
            epoch, self._epoch = self._epoch, None
            if cluster.down:
                raise Doubtful("committing: no broker answers")
            if trouble == "fenced":
                cluster.fence(self._ident)
            if epoch != cluster.epoch(self._ident):
                raise Fenced(f"committing: {self._ident} has another owner")
            self._require_accepted(records)
            ends: Mapping[tuple[str, int], int] = {}
            if trouble == "late":
                cluster.send_late(self._ident, epoch, records)
            elif trouble != "lost":
                ends = cluster.write(records, cluster.begin(self._ident))
                if trouble == "open":
                    cluster.leave_open()
                else:
                    cluster.finish(self._ident, "committed")
                    cluster.commits += 1
        cluster.hook("sent", self._ident)
        if trouble not in {"slow", "fenced"}:
            raise Doubtful(f"committing: no answer from the brokers ({trouble})")
        self._epoch = epoch
        return ends

    def _require_accepted(self, records: Sequence[Record]) -> None:
        """Raises RecordsRefused; what was written before that is aborted, and leaves a hole."""
        cluster = self._cluster
        for index, record in enumerate(records):
            if record.topic not in cluster.logs:
                raise Doubtful(f"committing: topic {record.topic} does not exist")
            size = len(record.key) + len(record.value or b"")
            reason = "too_large" if size > cluster.limit(record.topic) else cluster.refuses(record)
            if reason:
                if index:
                    cluster.write(records[:index], cluster.begin(self._ident))
                    cluster.finish(self._ident, "aborted")
                if record.name:
                    raise RecordsRefused({record.name: reason})
                raise Doubtful(f"committing: a record of {record.topic} was refused ({reason})")

    def close(self) -> None:
        """Lets go at once."""
        self._epoch = None


class FakeReader:
    """One partition; as with a real client, its end is told by itself, after the records before it."""

    def __init__(self, broker: FakeBroker, topic: str, partition: int, offset: int) -> None:
        self._broker = broker
        self._cluster = broker.cluster
        self._topic = topic
        self._partition = partition
        self._reached = offset

    async def begin(self) -> int:
        """The first offset that is still there."""
        with self._broker.up(f"looking for the beginning of {self._topic}"):
            return self._log().begin

    async def end(self) -> int:
        """The offset behind the last record."""
        with self._broker.up(f"looking for the end of {self._topic}"):
            return self._log().end

    async def read(self, limit: int, *, wait: bool = True) -> list[Message]:
        """The next records."""
        if seconds := self._cluster.travel():
            await asyncio.sleep(seconds)
        while True:
            with self._broker.up(f"reading {self._topic}"):
                found = self._next(limit)
                if found is not None:
                    return found
                waiter = self._cluster.waiter()
            if not wait:
                return []
            try:
                async with asyncio.timeout(self._cluster.moment_seconds):
                    await waiter.wait()
            except TimeoutError:
                return []

    def _next(self, limit: int) -> list[Message] | None:
        """None when there is nothing to tell."""
        log = self._log()
        if not log.begin <= self._reached <= log.end:
            self._reached = log.begin
        stable = log.stable()
        found: list[Message] = []
        for entry in log.visible(self._reached, stable):
            found.append(entry.message)
            if len(found) == limit:
                break
        if found:
            self._reached = found[-1].offset + 1
            return found
        if stable > self._reached:
            self._reached = stable
            return found
        return None

    def _log(self) -> Log:
        return self._cluster.log(self._topic, self._partition)

    def reached(self) -> int:
        """The offset of what would be read next."""
        return self._reached

    async def close(self) -> None:
        """Lets go."""


class Group:
    """Shares partitions as evenly as can be, and moves no more of them than that takes."""

    def __init__(self, cluster: FakeCluster, partitions: int) -> None:
        self.cluster = cluster
        self.members: list[FakeMembership] = []
        self.owners: dict[int, FakeMembership | None] = dict.fromkeys(range(partitions))
        self.leaving: dict[int, FakeMembership] = {}
        """Partitions that were revoked and are not given back yet."""

    def join(self, member: "FakeMembership") -> None:
        """One more, in a while."""

        def joined() -> None:
            if not member.gone:
                self.members.append(member)
                self.balance()
                if member not in self.owners.values():
                    member.tell(Change("assigned", frozenset()))

        self.cluster.later(self.cluster.join_seconds, joined)

    def balance(self) -> None:
        """Takes from whoever has too much, gives what nobody has."""
        if not self.members:
            return
        held = {
            member: sorted(
                number for number, owner in self.owners.items() if owner is member and number not in self.leaving
            )
            for member in self.members
        }
        least, extra = divmod(len(self.owners), len(self.members))
        ranked = sorted(self.members, key=lambda member: -len(held[member]))
        share = {member: least + (rank < extra) for rank, member in enumerate(ranked)}
        given: dict[FakeMembership, set[int]] = {member: set() for member in self.members}
        for number in sorted(number for number, owner in self.owners.items() if owner is None):
            room = {member: share[member] - len(held[member]) - len(given[member]) for member in ranked}
            roomiest = max(ranked, key=lambda member: room[member])
            if room[roomiest] > 0:
                self.owners[number] = roomiest
                given[roomiest].add(number)
        for member in ranked:
            if given[member]:
                member.tell(Change("assigned", frozenset(given[member])))
            if surplus := held[member][share[member] :]:
                self._revoke(member, frozenset(surplus))

    def _revoke(self, member: "FakeMembership", partitions: frozenset[int]) -> None:
        self.leaving |= dict.fromkeys(partitions, member)
        member.tell(Change("revoked", partitions))
        self.cluster.later(self.cluster.release_seconds, lambda: self.released(member, partitions))

    def released(self, member: "FakeMembership", partitions: frozenset[int]) -> None:
        """These are given back, or were waited for in vain."""
        mine = frozenset(number for number in partitions if self.leaving.get(number) is member)
        if not mine:
            return
        for number in mine:
            del self.leaving[number]
            self.owners[number] = None
        member.tell(Change("lost", mine))
        self.balance()

    def remove(self, member: "FakeMembership") -> frozenset[int]:
        """Somebody is gone; what was theirs is others' now. Returns what that was."""
        if member not in self.members:
            return frozenset()
        self.members.remove(member)
        had = frozenset(number for number, owner in self.owners.items() if owner is member)
        for number in had:
            self.owners[number] = None
            self.leaving.pop(number, None)
        self.balance()
        return had


class FakeMembership:
    """One process in the group."""

    def __init__(self, group: Group, name: str) -> None:
        self.name = name
        self.gone = False
        self._group = group
        self._changes: asyncio.Queue[Change] = asyncio.Queue()

    def tell(self, change: Change) -> None:
        """To be found by `change`."""
        self._changes.put_nowait(change)

    def die(self) -> None:
        """No word any more: the group notices after a while."""
        self.gone = True
        self._group.cluster.later(self._group.cluster.session_seconds, self._forget)

    def _forget(self) -> None:
        self._group.remove(self)

    def lose_session(self, *, unaware_seconds: float) -> None:
        """The group takes it for dead; it hears of that so much later, and joins again."""
        cluster = self._group.cluster
        had = self._group.remove(self)

        def hears() -> None:
            if self.gone:
                return
            if had:
                self.tell(Change("lost", had))
            self._group.join(self)

        cluster.later(unaware_seconds, hears)

    async def change(self) -> Change:
        """The next change."""
        return await self._changes.get()

    def let_go(self, partitions: frozenset[int]) -> None:
        """Nothing of ours writes to them any more."""
        self._group.released(self, partitions)

    async def confirms(self, partition: int) -> bool:
        """Asks the group whether the partition is still ours."""
        with self._group.cluster.up("asking the group"):
            return self._group.owners[partition] is self and partition not in self._group.leaving

    async def leave(self) -> None:
        """Lets others have everything, now."""
        self.gone = True
        self._group.remove(self)
