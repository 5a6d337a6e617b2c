"""One partition of the Kafka journal: the tasks that hash to it, on a local cache whose every change is in Kafka first.

The cache is a file like that of the embedded journal, with the same leases on it. A transaction is worked out there,
its changed rows are committed to the state topic (events to the topic of changes, and to the user's, in the same Kafka
transaction), and only then is it committed in the file. What is in doubt is settled by fencing and reading Kafka back.
"""

import asyncio
import contextlib
import ctypes
import sqlite3
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec
import structlog

from relay.clock import SECOND, Clock, Instant
from relay.errors import JournalDamaged, JournalIncompatible, JournalUnavailable, LeaseLost
from relay.formats import native
from relay.incidents import Event
from relay.journal import JournalUse
from relay.journal.kafka import changelog
from relay.journal.kafka.broker import (
    Broker,
    Doubtful,
    Fenced,
    Membership,
    Message,
    Reader,
    Record,
    RecordsRefused,
    Writer,
)
from relay.journal.kafka.changelog import Changelog
from relay.journal.kafka.inline import InlineSink, Outcome
from relay.journal.sqlite import SqliteJournal, SqliteSinkLease, SqliteSourceLease, transaction
from relay.sinks import Delivery

T = TypeVar("T")
log = structlog.get_logger()

Why = Literal["fenced", "session", "revoked", "cache"]
"""Why a partition is ours no longer: somebody fenced us, the group took it, we gave it back, its file is damaged."""

INLINE_POSITION: Final = 1 << 62
"""Where a sink stands whose events are written with the poll: behind everything."""
CAUGHT_UP_SECONDS: Final = 10.0
"""How long it is waited for events that this process has committed to come back from Kafka."""
SHORTLY_SECONDS: Final = 0.3
RETRY_SECONDS: Final = 1.0
_BATCH: Final = 2_000
_TRIM_EVERY: Final = 20_000
_OLDEST_CACHE: Final = 6 * 3600 * SECOND
"""An older cache is made anew: the topics tell for a day only that a row is gone."""
_ENVELOPE: Final = 1
_envelope = msgspec.msgpack.Encoder().encode
_opened: Final = msgspec.msgpack.Decoder(list[Any]).decode
_NO_LIMIT: Final = 1 << 50
EXECUTED: Final[ContextVar[str]] = ContextVar("command", default="")
"""The id of the command that is executed at present: what it changes notes it, so that it is done once."""
_COMMAND_SECONDS: Final = 3600
"""How long it is remembered that a command was executed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """The names of the relay's own topics."""

    prefix: str

    @property
    def state(self) -> str:
        """What every task knows, a row a record; compacted."""
        return f"{self.prefix}.state"

    @property
    def changes(self) -> str:
        """Every event, once; one partition, so that all sinks see one order."""
        return f"{self.prefix}.changes"

    @property
    def dead_letters(self) -> str:
        """What was refused for good; compacted."""
        return f"{self.prefix}.dead-letters"

    @property
    def control(self) -> str:
        """What all processes must know of each other; compacted."""
        return f"{self.prefix}.control"

    @property
    def cure(self) -> str:
        """How whatever is in them is got rid of. Positions of sinks are in another one, and stay."""
        own = f"{self.state}, {self.changes}, {self.dead_letters} and {self.control}"
        return f"delete the topics {own} (no other), or set another kafka_prefix"


@dataclass(slots=True, kw_only=True)
class Common:
    """What the partitions of one process share. `produced` is the offset behind the last event that it knows of.

    `made` tells the journal from copies of it, which have the same id.
    """

    journal_id: str
    made: str = ""
    topics: Topics
    broker: Broker
    membership: Membership
    place: Callable[[str, str], int]
    """The partition of a task, by component and name."""
    inline: Sequence[InlineSink] = ()
    limit_bytes: int = _NO_LIMIT
    produced: int = 0
    event_bytes: float = 1000.0
    """How large events are on average."""
    others_used: Callable[[], int] = field(default=lambda: 0)
    """How much the sinks of other processes hold, in bytes."""
    partitions: dict[int, "Partition"] = field(default_factory=dict)
    """Those that are held, by number."""

    def used_bytes(self) -> int:
        """How much the sink holds that is furthest behind: what its events take up, here or in another process."""
        own = (partition.held_bytes() for partition in self.partitions.values())
        return max((*own, self.others_used()), default=0)


class _Stale(Exception):
    """An earlier call has left a doubt: the cache may be behind."""


class Numbering:
    """Positions from offsets: one more, until something of a later journal makes them go on above it."""

    def __init__(self, steps: Sequence[tuple[int, int]] = ((0, 1),)) -> None:
        self.steps = [(first, shift) for first, shift in steps]

    def position(self, offset: int) -> int:
        """The position of the event at this offset."""
        _first, shift = self.steps[bisect_right(self.steps, (offset, _NO_LIMIT)) - 1]
        return offset + shift

    def offset(self, position: int) -> int:
        """The first offset whose position is at least this one."""
        for index, (first, shift) in enumerate(self.steps):
            end = self.steps[index + 1][0] if index + 1 < len(self.steps) else _NO_LIMIT
            if position - shift < end:
                return max(first, position - shift)
        raise AssertionError("the last step has no end")

    def above(self, position: int, offset: int) -> None:
        """From this offset on, positions are above this one."""
        self.steps = [step for step in self.steps if step[0] < offset]
        self.steps.append((offset, position + 1 - offset))


class Partition(SqliteJournal):
    """The tasks of one partition, as long as it is ours. A lost one never writes again; another is made for it then."""

    def __init__(self, number: int, *, path: Path, common: Common, retention_seconds: float, clock: Clock) -> None:
        super().__init__(path, max_bytes=common.limit_bytes, retention_seconds=retention_seconds, clock=clock)
        self.number = number
        self.lost = asyncio.Event()
        self.why: Why | None = None
        self.leases = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._common = common
        self._topics = common.topics
        self._writer: Writer | None = None
        self._changelog: Changelog | None = None
        self._doubt = False
        self._recovering = asyncio.Lock()
        self._outgoing: list[Record] = []
        self._letters: dict[str, str] = {}
        self._outcomes: list[tuple[InlineSink, list[Outcome]]] = []
        self._told: deque[tuple[InlineSink, list[Outcome]]] = deque()
        self._offsets = {"state": 0, "dead": 0}
        self._numbering = Numbering()
        self._end = 0
        self._covered: tuple[int, int] | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._fed = asyncio.Condition()
        self._feed_reached = 0
        self._used = 0
        self._used_upto = 0
        self._tending = asyncio.Lock()
        self._asking = False

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Fences whoever had it before, then makes the cache current. Raises JournalError."""
        try:
            await super().open()
        except (JournalIncompatible, JournalDamaged):
            self._wipe()
            await super().open()
        try:
            await self._in_thread(self._fence)
            await self._make_current()
            await self._in_thread(self._start)
            await self._feed()
        except BaseException:
            await self._let_go()
            raise

    async def close(self) -> None:
        """Lets go of it; what was committed stays."""
        self.lose("revoked")
        await self._let_go()

    async def _let_go(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
            self._feeding = None
        await self._in_thread(self._drop_writer)
        damaged = self._damage is not None
        await super().close()
        if damaged:
            self._wipe()

    def lose(self, why: Why) -> None:
        """It is somebody else's: every waiting or later call raises LeaseLost."""
        if self.why is None:
            self.why = why
            self.lost.set()
            self._roomy.set()
            self.wake_sinks()

    def require_held(self) -> None:
        """Raises LeaseLost when it is somebody else's by now."""
        if self.why is not None:
            raise LeaseLost(f"partition {self.number} of {self._topics.state} is no longer ours: {_WHY[self.why]}")

    def taken(self) -> None:
        """A task works on it."""
        self.leases += 1
        self.idle.clear()

    def released(self) -> None:
        """A task does so no longer."""
        self.leases -= 1
        if not self.leases:
            self.idle.set()

    def _connect(self) -> None:
        super()._connect()
        db = self._connected()
        db.execute("PRAGMA synchronous = NORMAL")  # what a loss of power takes is read from Kafka again
        db.execute("PRAGMA max_page_count = 4294967294")
        stored = db.execute("SELECT value FROM meta WHERE key = 'cache'").fetchone()
        cache = msgspec.json.decode(stored[0]) if stored else {}
        self._changelog = Changelog(db)
        journal = [self._common.journal_id, self._common.made]
        usable = cache.get("journal") == journal and cache.get("shape") == changelog.SHAPE
        if usable and self._clock.now() - cache.get("seen", 0) < _OLDEST_CACHE:
            self._offsets = {"state": cache["state"], "dead": cache["dead"]}
            self._covered = tuple(cache["covered"]) if cache.get("covered") else None
        elif stored:
            raise JournalIncompatible("this cache is of another journal, or too old")
        self.id = self._common.journal_id

    def _verify(self, db: sqlite3.Connection) -> None:
        """A cache is not looked through: what is wrong with it shows, and then it is made anew."""

    def _wipe(self) -> None:
        for path in (self.path, self._log, self.path.with_name(f"{self.path.name}-shm"), self._damage_mark):
            path.unlink(missing_ok=True)
        self._damage = None
        self._offsets = {"state": 0, "dead": 0}
        self._covered = None

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            raise JournalUnavailable(f"the cache {self.path} is closed")
        return self._db

    def _log_of_changes(self) -> Changelog:
        assert self._changelog is not None  # noqa: S101  # made with the connection
        return self._changelog

    def _synchronize(self, db: sqlite3.Connection, *, durable: bool) -> None:
        """Kafka is what is durable here."""

    def damaged(self, found: str) -> JournalDamaged:
        """A cache that is damaged is thrown away, with nothing lost."""
        if self._damage is None:
            self._damage = JournalDamaged(f"the cache {self.path} is damaged ({found}) and is made anew from Kafka")
        return self._damage

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Whatever is done with the cache: it may be closed at any moment, or its volume be full."""

        @wraps(work)
        def mapped() -> T:
            try:
                return work()
            except sqlite3.Error as exc:
                raise self._mapped(exc) from exc

        try:
            return await super()._in_thread(mapped)
        except RuntimeError:
            self.require_held()  # it was closed while this was on its way
            raise

    # -- Kafka --------------------------------------------------------------------------------------------------

    def _fence(self) -> None:
        self._drop_writer()
        self._writer = self._common.broker.writer(f"{self._topics.prefix}-{self.number}")
        with self._asking_brokers():
            self._writer.fence()

    @contextlib.contextmanager
    def _asking_brokers(self) -> Iterator[None]:
        self._asking = True
        try:
            yield
        finally:
            self._asking = False

    def oldest_call_seconds(self) -> float:
        """Of calls that wait for the disk: those for brokers end by themselves, and a restart would not help them."""
        return 0.0 if self._asking else super().oldest_call_seconds()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _start(self) -> None:
        self._log_of_changes().watch()
        self._read_numbering(self._connected())

    def _read_numbering(self, db: sqlite3.Connection) -> None:
        stored = db.execute("SELECT value FROM meta WHERE key = 'numbering'").fetchone()
        self._numbering = Numbering(msgspec.json.decode(stored[0], type=list[tuple[int, int]]) if stored else ((0, 1),))

    async def run(self, work: Callable[[sqlite3.Connection], T], *, write: bool, durable: bool = True) -> T:
        """One piece of work; what it changes is in Kafka when this returns. Raises LeaseLost, JournalUnavailable."""
        while True:
            self.require_held()
            if self._doubt:
                await self._recover()
            try:
                result = await super().run(self._once(work) if write else work, write=write, durable=durable)
            except _Stale:
                continue
            except RecordsRefused as refused:
                self._letters.update(refused.names)
                continue
            except Fenced as exc:
                self.lose("fenced")
                raise LeaseLost(str(exc)) from exc
            except JournalDamaged as exc:
                self.lose("cache")
                raise LeaseLost(str(exc)) from exc
            self._tell()
            return result

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
        """The same work, and a note of the command that it belongs to."""
        command = EXECUTED.get()
        if not command:
            return work
        now = self._clock.now()

        def noted(db: sqlite3.Connection) -> T:
            result = work(db)
            db.execute("DELETE FROM executed WHERE at < ?", (now - _COMMAND_SECONDS * SECOND,))
            db.execute("INSERT INTO executed VALUES (?, ?) ON CONFLICT DO NOTHING", (command, now))
            return result

        return noted

    async def executed(self, command: str) -> bool:
        """Whether a command has changed something here already."""
        return await self.run(
            lambda db: db.execute("SELECT 1 FROM executed WHERE id = ?", (command,)).fetchone() is not None, write=False
        )

    def _tell(self) -> None:
        while self._told:
            sink, outcomes = self._told.popleft()
            sink.took(outcomes)

    def _in_transaction(self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._doubt:
            raise _Stale
        self.require_held()
        self._outgoing = []
        self._outcomes = []
        written = False
        try:
            with transaction(db):
                result = work(db)
                records = self._rows() + self._outgoing
                if records:
                    written = True
                    with self._asking_brokers():
                        ends = self._writing().commit(records)
                    self._note(db, ends)
        except BaseException:
            self._doubt = written  # from here on only Kafka knows
            raise
        self._letters.clear()
        self._told.extend(self._outcomes)
        self._used = _used(db)
        return result

    def _writing(self) -> Writer:
        if self._writer is None:
            raise Doubtful(f"partition {self.number} of {self._topics.state} has to be fenced first")
        return self._writer

    def _rows(self) -> list[Record]:
        rows = self._log_of_changes().taken()
        topics = self._topics
        return [
            changelog.record_of(row, topics.dead_letters, 0)
            if row[0] == "dead"
            else changelog.record_of(row, topics.state, self.number)
            for row in rows
        ]

    def _note(self, db: sqlite3.Connection, ends: Any) -> None:
        """How far the cache is: only we write to this partition of the state."""
        state = ends.get((self._topics.state, self.number))
        if state is not None:
            self._offsets["state"] = state + 1
            self._store_offsets(db)
        changes = ends.get((self._topics.changes, 0))
        if changes is not None:
            self._common.produced = max(self._common.produced, changes + 1)

    def _store_offsets(self, db: sqlite3.Connection) -> None:
        cache = {
            "journal": [self._common.journal_id, self._common.made],
            "shape": changelog.SHAPE,
            "seen": self._clock.now(),
            "covered": self._covered,
            **self._offsets,
        }
        db.execute("INSERT OR REPLACE INTO meta VALUES ('cache', ?)", (msgspec.json.encode(cache).decode(),))

    async def _recover(self) -> None:
        """Whatever went wrong: fence, then see what Kafka has. Raises JournalError; the next call tries again."""
        async with self._recovering:
            if not self._doubt:
                return
            if not await self._common.membership.confirms(self.number):
                self.lose("session")
                self.require_held()
            await self._in_thread(self._fence)
            await self._make_current()
            await self._in_thread(lambda: self._read_numbering(self._connected()))
            self._doubt = False
            log.info("partition recovered", partition=self.number)

    # -- restoring ----------------------------------------------------------------------------------------------

    async def _make_current(self) -> None:
        """Applies what the cache has not seen yet. Nobody writes meanwhile: everybody is fenced."""
        if not await self._follow("state", self._topics.state, self.number):
            log.warning("cache thrown away", partition=self.number, reason="the topic begins anew")
            await self._in_thread(self._start_anew)
            await self._follow("state", self._topics.state, self.number)
        await self._follow("dead", self._topics.dead_letters, 0)

    def _start_anew(self) -> None:
        self._disconnect()
        self._wipe()
        self._connect()

    async def _follow(self, name: str, topic: str, partition: int) -> bool:
        """Reads a topic from where it was left to its end; False when the topic has less than was read already."""
        start = self._offsets[name]
        reader = await self._common.broker.reader(topic, partition, start)
        try:
            end = await reader.end()
            if start > end:
                if name == "state":
                    return False
                self._offsets[name] = 0
            await self._apply_all(name, reader, end, whole=start == 0 and name == "state")
        finally:
            await reader.close()
        return True

    async def _apply_all(self, name: str, reader: Reader, end: int, *, whole: bool) -> None:
        log_of_changes = self._log_of_changes()
        if whole:
            await self._in_thread(log_of_changes.hurry)
        applying: asyncio.Future[None] | None = None
        read = 0
        while reader.reached() < end:
            self.require_held()
            messages = await reader.read(_BATCH)  # while the batch before is applied
            if applying is not None:
                await applying
                applying = None
            if messages:
                read += len(messages)
                if read >= _TRIM_EVERY:
                    read = 0
                    await self._in_thread(_trim)
                applying = asyncio.ensure_future(self._in_thread(partial(self._apply, name, messages)))
        if applying is not None:
            await applying
        self._offsets[name] = max(self._offsets[name], end)
        if name == "state":  # whoever began to make it whole may have been killed before this
            await self._in_thread(log_of_changes.ready)

    def _apply(self, name: str, messages: Sequence[Message]) -> None:
        db = self._connected()
        upto = messages[-1].offset + 1
        if name == "dead":
            messages = [message for message in messages if self._is_ours(message)]
        with transaction(db):
            self._log_of_changes().apply(messages)
            if db.execute("SELECT 1 FROM temp.sqlite_master WHERE name = 'changed'").fetchone():
                self._log_of_changes().forget()
            self._offsets[name] = upto
            self._store_offsets(db)

    def _is_ours(self, message: Message) -> bool:
        _table, component, name, _ident = msgspec.json.decode(message.key)
        return self._common.place(component, name) == self.number

    async def refresh_letters(self) -> None:
        """Dead letters of sinks that are written with the poll come from whoever polls."""
        if any(self._common.place("sink", sink.name) == self.number for sink in self._common.inline):
            async with self._recovering:
                self.require_held()
                await self._follow("dead", self._topics.dead_letters, 0)

    # -- events -------------------------------------------------------------------------------------------------

    def store(
        self, db: sqlite3.Connection, source: int, name: str, events: Sequence[Event], now: Instant
    ) -> list[Delivery]:
        """Lets them be written with the rows; they come back to the sinks from Kafka."""
        deliveries = []
        for event in events:
            body = native.render(event)
            delivery = Delivery.of(0, event, body)
            deliveries.append(delivery)
            self._outgoing.append(record_of(delivery, now, self._topics.changes))
        size = sum(len(delivery.body) for delivery in deliveries) / len(deliveries)
        self._common.event_bytes += (size - self._common.event_bytes) / 8
        for sink in self._common.inline:
            outcomes = sink.write(deliveries, self._letters)
            self._outcomes.append((sink, outcomes))
            for outcome in outcomes:
                if outcome.record is not None:
                    self._outgoing.append(outcome.record)
                elif outcome.refused:
                    self._outgoing.append(_letter(self._topics.dead_letters, sink.name, outcome, now))
        return []

    def require_room(self, db: sqlite3.Connection) -> None:
        """Raises JournalFull when the sink that is furthest behind holds too much."""
        limit = self._common.limit_bytes
        if self._common.used_bytes() >= 0.9 * limit:
            raise self.full(f"events that a sink has not taken yet hold 90% of max_bytes = {limit}")

    def has_room(self) -> None:
        """Whoever waits for room may go on."""
        self._roomy.set()

    def held_bytes(self) -> int:
        """What the events of this partition's sinks take up, those that have not come back from Kafka included."""
        if self._feeding is None:
            return 0
        coming = max(0, self._common.produced - max(self._feed_reached, self._used_upto))
        return self._used + int(1.5 * coming * self._common.event_bytes)

    async def use(self) -> JournalUse:
        """What the sink that is furthest behind holds, of what it may."""
        used = await super().use()
        return JournalUse(
            used_bytes=self._common.used_bytes(), limit_bytes=self._max_bytes, oldest_event=used.oldest_event
        )

    def end(self, db: sqlite3.Connection) -> int:
        """The position before the next event."""
        return self._numbering.position(self._end) - 1

    async def refresh(self) -> None:
        """Learns how far the events go."""
        self._end = await self._common.broker.end(self._topics.changes, 0)

    def number_above(self, db: sqlite3.Connection, position: int) -> None:
        """Events that are committed from now on have positions above this one."""
        self._numbering.above(position, self._end)
        steps = msgspec.json.encode(self._numbering.steps).decode()
        db.execute("INSERT OR REPLACE INTO meta VALUES ('numbering', ?)", (steps,))

    def waiting_after(self, db: sqlite3.Connection, position: int) -> int:
        """How many events stand behind this position: offsets have holes."""
        row: tuple[int] = db.execute("SELECT count(*) FROM event WHERE position > ?", (position,)).fetchone()
        return row[0]

    def newest_sequence(self, db: sqlite3.Connection, source: int, uuid: str) -> int:
        """The number of the last version of an incident, as far as events are kept."""
        row = db.execute("SELECT max(sequence) FROM event WHERE source = ? AND uuid = ?", (source, uuid)).fetchone()
        return int(row[0] or 0)

    # -- leases ---------------------------------------------------------------------------------------------------

    async def source(self, name: str) -> SqliteSourceLease:
        """The lease of this source."""
        lease = await super().source(name)
        self.taken()
        return lease

    # -- feeding the sinks --------------------------------------------------------------------------------------

    async def sink(self, name: str, *, start: Literal["now", "earliest"], keep_seconds: float) -> SqliteSinkLease:
        """The lease of this sink; its events come from the topic of changes, unless they are written with the poll."""
        if any(sink.name == name for sink in self._common.inline):
            lease = await super().sink(name, start="now", keep_seconds=keep_seconds)
            if lease.reached < INLINE_POSITION:
                await self._begin_inline(lease)
        else:
            lease = await super().sink(name, start=start, keep_seconds=keep_seconds)
            if lease.reached >= INLINE_POSITION:
                await lease.pass_over(self.end(self._connected()))
        await self._feed()
        await self.caught_up()
        self.taken()
        return lease

    async def _begin_inline(self, lease: SqliteSinkLease) -> None:
        """From now on it is written with the polls; it is said how much it had not taken before."""
        passed = self.end(self._connected()) - lease.reached
        if passed > 0:
            log.warning(
                "sink is written with the polls from now on",
                sink=lease.name,
                positions_passed_over=passed,
                hint=f"what it had not taken yet: relay replay --sink {lease.name} --since TIME",
            )
        await lease.pass_over(INLINE_POSITION)

    async def _feed(self) -> None:
        """Begins to feed, from the first event that a sink may need."""
        needed = await super().run(_first_needed, write=False)
        if needed is None:
            return
        covered = self._covered
        if self._feeding is not None and covered is not None and covered[0] <= needed:
            return
        if covered is not None and covered[0] <= needed <= covered[1] + 1:
            offset = self._numbering.offset(covered[1] + 1)
        else:
            offset = self._numbering.offset(needed)
            self._covered = (needed, needed - 1)
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        self._common.produced = max(self._common.produced, await self._common.broker.end(self._topics.changes, 0))
        self._feed_reached = offset
        self._feeding = asyncio.create_task(self._feed_from(offset), name=f"feed partition {self.number}")
        self._feeding.add_done_callback(self._fed_up)

    def _fed_up(self, task: "asyncio.Task[None]") -> None:
        """A feed that ends by itself would leave its sinks waiting for ever: the partition is taken anew."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("feed broke off", partition=self.number, error=type(error).__name__, exc_info=error)
            self.lose("cache")

    async def _feed_from(self, offset: int) -> None:
        """For as long as the partition is ours."""
        while self.why is None:
            try:
                reader = await self._common.broker.reader(self._topics.changes, 0, offset)
            except JournalUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                first = await reader.begin()
                if first > offset:
                    log.warning(
                        "events had left Kafka before a sink took them", partition=self.number, offsets=first - offset
                    )
                while self.why is None:
                    messages = events_in(await reader.read(_BATCH))
                    if messages:
                        await self._take_in(messages)
                    offset = max(offset, reader.reached())
                    if offset > self._feed_reached:
                        async with self._fed:
                            self._feed_reached = offset
                            self._fed.notify_all()
            except JournalUnavailable as error:
                log.debug("events could not be read", partition=self.number, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except LeaseLost:
                return
            finally:
                await reader.close()

    async def _take_in(self, messages: Sequence[Message]) -> None:
        """Puts events into the cache, and tells the sinks."""
        deliveries = [delivery_of(message, self._numbering.position(message.offset)) for message in messages]
        ids = await self._source_ids(deliveries)
        rows = [
            (
                one.position,
                one.id,
                one.kind,
                ids[one.source, one.position],
                one.origin,
                one.uuid,
                one.sequence,
                one.updated,
                one.severity,
                committed_of(message),
                one.body,
            )
            for message, one in zip(messages, deliveries, strict=True)
        ]

        def work() -> int:
            db = self._connected()
            before = self._covered
            try:
                with transaction(db):
                    db.executemany("INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
                    # Here, so that no commit in between says that the cache has them already.
                    self._covered = (before[0] if before is not None else rows[0][0], rows[-1][0])
                    self._store_offsets(db)
            except BaseException:
                self._covered = before
                raise
            self._used, self._used_upto = _used(db), max(self._used_upto, messages[-1].offset + 1)
            return before[1] if before is not None else rows[0][0] - 1

        after = await self._in_thread(work)
        self.committed(deliveries, after=after)

    async def _source_ids(self, deliveries: Sequence[Delivery]) -> dict[tuple[str, int], int]:
        """The number of each event's source in this partition; labels that are new here get one."""
        labels = {delivery.source for delivery in deliveries}
        wanted = msgspec.json.encode(sorted(labels)).decode()

        def look(db: sqlite3.Connection) -> tuple[dict[str, int], list[tuple[str, int, int]]]:
            chosen = "name IN (SELECT value FROM json_each(?))"
            now = dict(db.execute(f"SELECT name, id FROM source WHERE {chosen}", (wanted,)))  # noqa: S608
            before = db.execute(
                f"SELECT name, upto, source FROM renamed WHERE {chosen} ORDER BY upto",  # noqa: S608
                (wanted,),
            )
            return now, before.fetchall()

        def number(one: Delivery) -> int | None:
            earlier = (source for name, upto, source in before if name == one.source and upto >= one.position)
            return next(earlier, now.get(one.source))

        now, before = await self.run(look, write=False)
        new = sorted({one.source for one in deliveries if number(one) is None})
        if new:

            def add(db: sqlite3.Connection) -> None:
                db.executemany("INSERT INTO source (name) VALUES (?) ON CONFLICT DO NOTHING", [(name,) for name in new])

            await self.run(add, write=True)
            now, before = await self.run(look, write=False)
        return {(one.source, one.position): number(one) or 0 for one in deliveries}

    async def rename_label(self, old: str, new: str) -> None:
        """A source of another partition has another label from now on; its events here stay those of one source."""
        await self.refresh()

        def work(db: sqlite3.Connection) -> None:
            empty = "NOT EXISTS (SELECT 1 FROM event WHERE source = source.id)"
            db.execute(f"DELETE FROM source WHERE name = ? AND progress IS NULL AND {empty}", (new,))  # noqa: S608
            db.execute("INSERT INTO source (name) VALUES (?) ON CONFLICT DO NOTHING", (old,))
            db.execute(
                "INSERT INTO renamed SELECT id, ?, name FROM source WHERE name = ? ON CONFLICT DO NOTHING",
                (self.end(db), old),
            )
            db.execute("UPDATE OR IGNORE source SET name = ?2 WHERE name = ?1", (old, new))

        await self.run(work, write=True)

    async def caught_up(self, *, patient: bool = True) -> None:
        """Returns when the sinks may have all that this process has committed; without patience after a moment."""
        wanted = self._common.produced
        if self._feeding is None or self._feed_reached >= wanted:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUGHT_UP_SECONDS if patient else SHORTLY_SECONDS), self._fed:
                await self._fed.wait_for(lambda: self._feed_reached >= wanted or self.why is not None)

    async def recall(self) -> None:
        """Reads the events back that are still in Kafka, and have left the cache or were never in it."""
        await self.refresh_letters()
        covered = self._covered
        reader = await self._common.broker.reader(self._topics.changes, 0, 0)
        try:
            end = self._numbering.offset(covered[0]) if covered is not None else await reader.end()
            while reader.reached() < end:
                messages = [message for message in events_in(await reader.read(_BATCH)) if message.offset < end]
                if messages:
                    await self._take_back(messages)
        finally:
            await reader.close()

    async def _take_back(self, messages: Sequence[Message]) -> None:
        covered, self._covered = self._covered, None
        try:
            await self._take_in(messages)
        finally:
            self._covered = covered

    async def tend(self) -> Any:
        """Housekeeping of this partition."""
        async with self._tending:
            await self.refresh_letters()
            return await super().tend()


def _trim() -> None:
    """Gives freed memory back: a restore frees as much as it reads, in pieces that glibc would keep."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


_WHY: Final = {
    "fenced": "another process has fenced this one",
    "session": "the group has given it to another process",
    "revoked": "it was given back",
    "cache": "its cache is damaged, and is made anew",
}


def _first_needed(db: sqlite3.Connection) -> int | None:
    """The position of the first event that a sink may still claim; None when no sink takes events from here."""
    found = db.execute(
        "SELECT min(at) FROM (SELECT min(position) + 1 AS at FROM sink WHERE position < ?1 UNION ALL "
        "SELECT min(position) FROM pending WHERE body IS NULL AND position < ?1)",
        (INLINE_POSITION,),
    ).fetchone()[0]
    return None if found is None else int(found)


def _used(db: sqlite3.Connection) -> int:
    pages = db.execute("PRAGMA page_count").fetchone()[0] - db.execute("PRAGMA freelist_count").fetchone()[0]
    return int(pages * db.execute("PRAGMA page_size").fetchone()[0])


def _letter(topic: str, sink: str, outcome: Outcome, now: Instant) -> Record:
    """The dead letter of an event that a sink written with the poll can't take. Its position only has to be its own."""
    delivery = outcome.delivery
    position = INLINE_POSITION // 2 + int(delivery.id[:14], 16)
    kept = msgspec.structs.replace(delivery, position=position, attempts=1)
    body = msgspec.msgpack.encode(kept)
    key, value = changelog.dead_row((delivery.id, "sink", sink, position, outcome.refused, 1, now, body))
    return Record(topic, 0, key, value)


def events_in(messages: Iterable[Message]) -> list[Message]:
    """Without what only keeps the place of a position that no event has, in a journal that was copied."""
    return [message for message in messages if message.headers]


def filler(topic: str) -> Record:
    """What keeps such a place."""
    return Record(topic, 0, b"", None)


def committed_of(message: Message) -> Instant:
    """When the event was committed first."""
    committed: Instant = _opened(dict(message.headers)["e"])[8]
    return committed


def record_of(delivery: Delivery, committed: Instant, topic: str) -> Record:
    """The record of an event in the topic of changes."""
    one = delivery
    kept = (_ENVELOPE, one.id, one.kind, one.source, one.origin, one.sequence, one.updated, one.severity, committed)
    return Record(topic, 0, one.uuid.encode("utf-8", "surrogatepass"), one.body, (("e", _envelope(kept)),))


def delivery_of(message: Message, position: int) -> Delivery:
    """The event that a message of the topic of changes is."""
    ident, kind, source, origin, sequence, updated, severity, _committed = _opened(dict(message.headers)["e"])[1:]
    return Delivery(
        position=position,
        id=ident,
        kind=kind,
        source=source,
        origin=origin,
        uuid=message.key.decode("utf-8", "surrogatepass"),
        sequence=sequence,
        updated=updated,
        severity=severity,
        body=message.value or b"",
    )
