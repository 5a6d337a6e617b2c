"""From one journal to another: the file of one process becomes topics of Kafka, and topics become such a file.

Ids, versions and positions stay what they are, so that nothing is sent again and far sides that know how far they are
stay right. A journal gets its description last, so that half a copy is recognised. Of sinks only names are known here.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeVar

import msgspec

from relay.clock import Clock, Instant
from relay.errors import ConfigError, JournalLocked, RelayError
from relay.journal import EndpointStatus
from relay.journal.kafka.broker import Broker, Record
from relay.journal.kafka.changelog import KEYS, record_of, whole_row
from relay.journal.kafka.file import Copy, Tell, fill, quiet
from relay.journal.kafka.journal import topic_plans
from relay.journal.kafka.meta import Meta, new_meta, read_meta, write_meta
from relay.journal.kafka.partition import INLINE_POSITION, Numbering, Topics, filler
from relay.journal.kafka.partition import record_of as record_of_event
from relay.journal.sqlite import SqliteJournal
from relay.sinks import Delivery, Position
from relay.words import count

Page = TypeVar("Page")
Row = tuple[Any, ...]

BATCH_ROWS: Final = 2_000
BATCH_BYTES: Final = 8 << 20
"""What one transaction holds at most, and with another that is read meanwhile all that is in memory."""
_FILLED: Final = 16
"""So many positions that no event has are kept by records of their own; longer holes by a step of the numbering."""
_TABLES: Final = ("source", "renamed", "incident", "dead", "sink", "pending", "done", "expired")
_WORDS: Final = {"incident": "the ledger", "dead": "dead letters", "pending": "what is pending"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a journal file holds."""

    sources: int
    incidents: int
    events: int
    dead_letters: int


async def held(journal: SqliteJournal) -> Held:
    """How much there is to copy, or was."""

    def work(db: sqlite3.Connection) -> Held:
        found = [_count(db, table) for table in ("source", "incident", "event", "dead")]
        return Held(sources=found[0], incidents=found[1], events=found[2], dead_letters=found[3])

    return await journal.run(work, write=False)


class KafkaOrigin:
    """A journal on Kafka that is copied. From `open` on nobody can have written to it that is not found out."""

    def __init__(self, broker: Broker, *, prefix: str, clock: Clock, tell: Tell = quiet) -> None:
        self.meta = Meta(id="", partitions=0)
        self._broker = broker
        self._topics = Topics(prefix=prefix)
        self._clock = clock
        self._tell = tell

    async def open(self) -> None:
        """Raises JournalLocked when relays use it, ConfigError when there is none, JournalError."""
        await self._broker.connect()
        await require_unused(self._broker, self._topics)
        begun = await self._broker.partitions(self._topics.control)
        meta = await read_meta(self._broker, self._topics) if begun else None
        if meta is None:
            raise ConfigError(
                f"there is no journal {self._topics.prefix} on Kafka: check kafka_prefix and bootstrap.servers"
            )
        meta.require_usable(self._topics)
        self.meta = meta
        await asyncio.gather(*(self._fence(number) for number in range(meta.partitions)))

    async def fill(self, copy: Copy, reached: Mapping[str, Position]) -> int:
        """Brings all of it into this file, which stays to be finished; see `relay.journal.kafka.file`.

        Raises JournalLocked when a relay was started meanwhile.
        """
        lost = await fill(
            copy, self._broker, self._topics, self.meta, reached=reached, clock=self._clock, tell=self._tell
        )
        await require_unused(self._broker, self._topics)
        return lost

    async def close(self) -> None:
        """Lets go."""
        await self._broker.close()

    async def _fence(self, partition: int) -> None:
        """A process that hangs, and is no member any more, can't wake up and write."""
        writer = self._broker.writer(f"{self._topics.prefix}-{partition}")
        try:
            await asyncio.to_thread(writer.fence)
        finally:
            await asyncio.to_thread(writer.close)


class KafkaTarget:
    """A journal on Kafka that begins as a copy of a file."""

    def __init__(
        self,
        broker: Broker,
        *,
        prefix: str,
        partitions: int,
        retention_seconds: float,
        clock: Clock,
        tell: Tell = quiet,
    ) -> None:
        self._broker = broker
        self._topics = Topics(prefix=prefix)
        self._partitions = partitions
        self._retention_seconds = retention_seconds
        self._clock = clock
        self._tell = tell
        self._begun = False

    @property
    def half(self) -> str:
        """What to do about what was written, once it is clear that the rest will not be; empty before that."""
        return self._topics.cure if self._begun else ""

    async def open(self) -> None:
        """Makes the topics that are missing. Raises ConfigError unless they are empty, JournalError."""
        await self._broker.connect()
        await require_unused(self._broker, self._topics)
        plans = topic_plans(self._topics, self._partitions, self._retention_seconds)
        await self._broker.ensure(plans)
        meta = await read_meta(self._broker, self._topics)
        if meta is not None:
            raise self._not_empty(meta)
        ends = [await self._broker.end(plan.name, number) for plan in plans for number in range(plan.partitions)]
        if any(ends):
            raise ConfigError(
                f"the topics of {self._topics.prefix} on Kafka hold records, and belong to no journal: "
                f"{self._topics.cure}"
            )

    async def fill(self, origin: SqliteJournal, *, inline: Collection[str]) -> None:
        """Writes all that the file holds. `inline` sinks are written with the polls: none of them is owed anything.

        Raises ConfigError, JournalError; what was written until then is half a copy.
        """
        await self._require_nothing_owed(origin, inline)
        made = new_meta(self._partitions, ident=origin.id, whole=False)
        await write_meta(self._broker, self._topics, lambda found: self._first(found, made), clock=self._clock)
        self._begun = True
        writer = self._broker.writer(f"{self._topics.prefix}-copy")
        try:
            await asyncio.to_thread(writer.fence)
            numbering = await self._events(origin, writer.commit)
            await self._rows(origin, writer.commit, made, inline)
            await self._number(writer.commit, numbering)
        finally:
            await asyncio.to_thread(writer.close)
        whole = msgspec.structs.replace(made, whole=True)
        await write_meta(self._broker, self._topics, lambda found: self._last(found, whole), clock=self._clock)

    async def close(self) -> None:
        """Lets go."""
        await self._broker.close()

    # -- what may be, and what is wrong -------------------------------------------------------------------------------

    def _not_empty(self, meta: Meta) -> ConfigError:
        meta.require_usable(self._topics)
        return ConfigError(
            f"the journal {self._topics.prefix} on Kafka has begun already, and a copy begins a new one: "
            f"{self._topics.cure}"
        )

    def _first(self, found: Meta | None, made: Meta) -> Meta:
        if found is not None:
            raise self._not_empty(found)
        return made

    def _last(self, found: Meta | None, whole: Meta) -> Meta:
        if found is None or found.made != whole.made:
            raise ConfigError(f"the journal {self._topics.prefix} on Kafka was changed while it was made")
        return whole

    @staticmethod
    async def _require_nothing_owed(origin: SqliteJournal, inline: Collection[str]) -> None:
        for name, events in await origin.run(_owed, write=False):
            if name in inline and events:
                raise RelayError(
                    f"{count(events, 'event')} still {'waits' if events == 1 else 'wait'} for {name}, which is written "
                    "with the polls on Kafka, and would get them out of order: let the relay deliver them before; "
                    "`relay sinks list` shows what waits, and why"
                )

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _events(self, origin: SqliteJournal, commit: "Commit") -> Numbering:
        """Every event, in order; returns the numbering with which each has the position that it had."""
        topic = self._topics.changes
        of = (await held(origin)).events
        steps: list[tuple[int, int]] = []
        done = 0

        async def read(after: int) -> list[tuple[Delivery, Instant]]:
            return await origin.events_after(after, limit=BATCH_ROWS, max_bytes=BATCH_BYTES)

        async for found in _ahead(read, 0, lambda page: page[-1][0].position):
            records, runs = _laid_out(found, topic)
            ends = await asyncio.to_thread(commit, records)
            first = ends[topic, 0] - len(records) + 1
            for index, position in runs:
                shift = position - first - index
                if not steps or steps[-1][1] != shift:
                    steps.append((first + index if steps else 0, shift))
            done += len(found)
            self._tell("copying events", done, of)
        last = await origin.run(origin.end, write=False)
        numbering = Numbering(steps or ((0, 1),))
        end = await self._broker.end(topic, 0)
        if numbering.position(end) <= last:
            numbering.above(last, end)
        return numbering

    async def _rows(self, origin: SqliteJournal, commit: "Commit", meta: Meta, inline: Collection[str]) -> None:
        """Every row, into the partitions of those who need it."""
        names = dict(await origin.run(lambda db: db.execute("SELECT id, name FROM source").fetchall(), write=False))
        homes = {ident: meta.place("source", name) for ident, name in names.items()}
        placing = _Placing(meta, homes, frozenset(inline))
        for table in _TABLES:
            of = await origin.run(lambda db, name=table: _count(db, name), write=False)  # type: ignore[misc]
            done = 0
            columns = await origin.run(lambda db, name=table: _columns(db, name), write=False)  # type: ignore[misc]
            chosen = [columns.index(name) for name in KEYS[table]]

            def key_of(row: Row, chosen: Sequence[int] = chosen) -> Row:
                return tuple(row[index] for index in chosen)

            async def read(after: Row | None, table: str = table) -> list[Row]:
                return await origin.run(lambda db: _page(db, table, after), write=False)

            async for found in _ahead(read, None, lambda page: key_of(page[-1])):
                records = [
                    record_of(whole_row(table, key_of(row), row), topic, partition)
                    for one in found
                    for topic, partition, row in self._placed(placing, table, one)
                ]
                if records:
                    await asyncio.to_thread(commit, records)
                done += len(found)
                self._tell(f"copying {_WORDS.get(table, table)}", done, of)

    def _placed(self, placing: "_Placing", table: str, row: Row) -> Iterator[tuple[str, int, Row]]:
        if table == "dead":
            yield self._topics.dead_letters, 0, row
            return
        for partition, placed in placing.of(table, row):
            yield self._topics.state, partition, placed

    async def _number(self, commit: "Commit", numbering: Numbering) -> None:
        steps = msgspec.json.encode(numbering.steps).decode()
        row = whole_row("meta", ("numbering",), ("numbering", steps))
        topic = self._topics.state
        await asyncio.to_thread(commit, [record_of(row, topic, number) for number in range(self._partitions)])


Commit = Callable[[Sequence[Record]], Mapping[tuple[str, int], int]]


@dataclass(frozen=True, slots=True)
class _Placing:
    """Which partitions need a row, and what it is there. `homes`: of each source, by its number."""

    meta: Meta
    homes: Mapping[int, int]
    inline: frozenset[str]

    def of(self, table: str, row: Row) -> Iterator[tuple[int, Row]]:
        """Labels are needed wherever there are sinks, what is known of a source in its home alone."""
        if table == "source":
            ident, name, _progress = row
            for number in range(self.meta.partitions):
                yield number, row if number == self.homes[ident] else (ident, name, None)
        elif table == "renamed":
            yield from ((number, row) for number in range(self.meta.partitions))
        elif table == "incident":
            yield self.homes[row[1]], row
        elif table == "sink" and row[0] in self.inline:
            name, _position, keep, _endpoint, removed = row
            fresh = msgspec.json.encode(EndpointStatus())
            yield self.meta.place("sink", name), (name, INLINE_POSITION, keep, fresh, removed)
        elif table != "done" or row[0] not in self.inline:
            yield self.meta.place("sink", row[0]), row


async def require_unused(broker: Broker, topics: Topics) -> None:
    """Raises JournalLocked with the names of the relays that use this journal on Kafka."""
    members = await broker.members(topics.prefix)
    if members:
        raise JournalLocked(
            f"the journal {topics.prefix} on Kafka is used by {', '.join(members)}; stop every relay of it first (one "
            "that was killed is forgotten after a few seconds)"
        )


def _laid_out(found: Sequence[tuple[Delivery, Instant]], topic: str) -> tuple[list[Record], list[tuple[int, int]]]:
    """The records of events, and where among them runs without a hole begin: index and position of the first."""
    first, committed = found[0]
    records = [record_of_event(first, committed, topic)]
    runs = [(0, first.position)]
    for (before, _), (one, committed) in pairwise(found):
        hole = one.position - before.position - 1
        if hole <= _FILLED:
            records += [filler(topic)] * hole
        else:
            runs.append((len(records), one.position))
        records.append(record_of_event(one, committed, topic))
    return records, runs


Key = TypeVar("Key")


async def _ahead(
    read: Callable[[Key], Awaitable[list[Page]]], first: Key, key_of: Callable[[list[Page]], Key]
) -> AsyncIterator[list[Page]]:
    """Page after page; the next is read while one is worked on."""
    coming = asyncio.ensure_future(read(first))
    try:
        while page := await coming:
            coming = asyncio.ensure_future(read(key_of(page)))
            yield page
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def _page(db: sqlite3.Connection, table: str, after: Row | None) -> list[Row]:
    """The next rows of a table in the order of its key; few when they are large."""
    key = ", ".join(KEYS[table])
    where = f"WHERE ({key}) > ({', '.join('?' * len(KEYS[table]))})" if after else ""
    found: list[Row] = []
    size = 0
    for row in db.execute(f"SELECT * FROM {table} {where} ORDER BY {key}", after or ()):  # noqa: S608  # our names
        found.append(row)
        size += sum(len(value) for value in row if isinstance(value, bytes | str))
        if len(found) >= BATCH_ROWS or size >= BATCH_BYTES:
            break
    return found


def _owed(db: sqlite3.Connection) -> list[Row]:
    """How many events each sink has not got yet, without what it is to get again."""
    return db.execute(
        "SELECT s.name, (SELECT count(*) FROM event e WHERE e.position > s.position) + "
        "(SELECT count(*) FROM pending p WHERE p.sink = s.name AND p.position <= s.position AND p.cause = '') "
        "FROM sink s ORDER BY s.name"
    ).fetchall()


def _count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  # only our names


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
