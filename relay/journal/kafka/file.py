"""A Kafka journal as a file of the embedded one: for backups, and on the way to another journal.

Each partition of the state is read into a file of its own, where its rows are as its owner has them; then all are
brought together, with one numbering for all of their positions. Not the way back: that is `relay.journal.copy`.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec

from relay.clock import Clock
from relay.journal.kafka.broker import Broker, Message, Reader
from relay.journal.kafka.changelog import Changelog
from relay.journal.kafka.meta import Meta
from relay.journal.kafka.partition import INLINE_POSITION, Numbering, Topics, committed_of, delivery_of, events_in
from relay.journal.sqlite import SqliteJournal
from relay.sinks import Delivery, Position

Tell = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is, and of how much."""

UNLIMITED_BYTES: Final = 1 << 43
_BATCH: Final = 2_000
_LEDGER_BATCH: Final = 20_000
_OWN_POSITIONS: Final = INLINE_POSITION // 2
"""From here on positions stand for no event: they only tell dead letters of inline sinks from each other."""
_INCIDENT: Final = "uuid, created, updated, newest, sequence, digest, digest_version, fields, gone"


class Copy(SqliteJournal):
    """A file that is being filled. It gets its id at the end: no relay takes half of it for a journal."""

    def begin(self, db: sqlite3.Connection) -> None:
        """It has no id yet."""

    def stored_id(self, db: sqlite3.Connection) -> str:
        """None yet."""
        return ""

    async def fetch(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """What is read."""
        return await self.run(lambda db: db.execute(query, values).fetchall(), write=False)

    async def write(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """The same statement for each of these; it need not outlive a loss of power yet."""
        if rows:
            await self.run(lambda db: db.executemany(statement, rows), write=True, durable=False)

    async def finish(self) -> None:
        """It is a journal from now on; durable on return."""
        await self.run(lambda db: db.execute("INSERT INTO meta VALUES ('id', ?)", (self.id,)), write=True)


@dataclass(slots=True, kw_only=True)
class _Part:
    """One partition: its file, how it numbers events, and the number that each of its sources gets in the copy."""

    number: int
    path: Path
    numbering: Numbering
    sources: list[tuple[int, str, bytes | None]]
    mapped: dict[int, int] = field(default_factory=dict)


def quiet(_doing: str, _done: int, _of: int) -> None:
    """Tells nobody."""


async def write_file(path: Path, broker: Broker, topics: Topics, meta: Meta, *, clock: Clock) -> None:
    """Makes a journal of this file, which must be empty or absent, as of now. Others may go on to write meanwhile.

    Raises JournalError.
    """
    copy = Copy(path, max_bytes=UNLIMITED_BYTES, retention_seconds=0, clock=clock)
    await copy.open()
    try:
        await fill(copy, broker, topics, meta, clock=clock)
        await copy.finish()
    finally:
        await copy.close()
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


async def fill(
    copy: Copy,
    broker: Broker,
    topics: Topics,
    meta: Meta,
    *,
    reached: Mapping[str, Position] | None = None,
    clock: Clock,
    tell: Tell = quiet,
) -> int:
    """Brings all of the journal into the file, but for its id, which stays to be written.

    `reached`: how far atomic sinks say they are. What was committed while it was read is left out as a whole, as if it
    came later. Returns how many events waited for a sink and had left Kafka. Raises JournalError.
    """
    copy.id = meta.id
    with TemporaryDirectory(prefix=f"{copy.path.name}.", dir=copy.path.parent) as folder:
        parts = [
            await _read_part(broker, topics.state, number, Path(folder), clock=clock, tell=tell)
            for number in range(meta.partitions)
        ]
        letters = await _read_part(broker, topics.dead_letters, 0, Path(folder), clock=clock, tell=tell)
        filling = _Filling(copy, parts, meta, dict(reached or {}), tell)
        events = await broker.reader(topics.changes, 0, 0)
        try:
            await filling.run(letters, events)
        finally:
            await events.close()
    return await filling.forget_lost()


async def _read_part(broker: Broker, topic: str, number: int, folder: Path, *, clock: Clock, tell: Tell) -> _Part:
    """One partition of a compacted topic, as a file with its rows."""
    path = folder / f"{topic}-{number}.db"
    file = Copy(path, max_bytes=UNLIMITED_BYTES, retention_seconds=0, clock=clock)
    await file.open()
    try:
        await file.fetch("PRAGMA synchronous = OFF")  # it goes when all is done
        rows = await file.run(Changelog, write=False)
        await file.run(lambda _db: rows.hurry(), write=False)
        reader = await broker.reader(topic, number, 0)
        try:
            await _apply(file, rows, reader, f"reading {topic}, partition {number}", tell)
        finally:
            await reader.close()
        stored = await file.fetch("SELECT value FROM meta WHERE key = 'numbering'")
        steps = msgspec.json.decode(stored[0][0], type=list[tuple[int, int]]) if stored else ((0, 1),)
        sources = await file.fetch("SELECT id, name, progress FROM source ORDER BY id")
    finally:
        await file.close()
    return _Part(number=number, path=path, numbering=Numbering(steps), sources=sources)


async def _apply(file: Copy, rows: Changelog, reader: Reader, doing: str, tell: Tell) -> None:
    end = await reader.end()
    applying: asyncio.Task[None] | None = None
    while reader.reached() < end:
        messages = await reader.read(_BATCH)  # while those before are applied
        if applying is not None:
            await applying
            applying = None
        if messages:
            work = file.run(lambda _db, found=messages: rows.apply(found), write=True)  # type: ignore[misc]
            applying = asyncio.create_task(work)
        tell(doing, min(reader.reached(), end), end)
    if applying is not None:
        await applying


class _Filling:
    """Brings the parts together. Positions are those of the part that numbers highest, so that none is used twice."""

    def __init__(
        self, copy: Copy, parts: Sequence[_Part], meta: Meta, reached: Mapping[str, Position], tell: Tell
    ) -> None:
        self._copy = copy
        self._parts = parts
        self._meta = meta
        self._reached = {name: one.position for name, one in reached.items() if one.journal_id == meta.id}
        self._tell = tell
        self._numberings = list({tuple(part.numbering.steps): part.numbering for part in parts}.values())
        self._end = 0

    async def run(self, letters: _Part, events: Reader) -> None:
        """All of it, in the order in which one needs the other."""
        self._end = await events.end()  # behind every event of the ledgers that were read
        await self._sources()
        for part in self._parts:
            await self._attached(part, partial(self._ledger, part))
        await self._events(events)
        for part in self._parts:
            await self._attached(part, partial(self._sinks, part))
        await self._attached(letters, self._letters)
        await self._copy.run(self._number, write=True)

    async def forget_lost(self) -> int:
        """Nothing that waits for an event that is nowhere may hold back the versions behind it; how many these are."""
        gone = "body IS NULL AND NOT EXISTS (SELECT 1 FROM event e WHERE e.position = pending.position)"
        forgotten = await self._copy.run(
            lambda db: db.execute(f"DELETE FROM pending WHERE {gone}").rowcount,  # noqa: S608  # only our names
            write=True,
        )
        return int(forgotten)

    # -- positions --------------------------------------------------------------------------------------------------

    def _position(self, offset: int) -> int:
        return max(numbering.position(offset) for numbering in self._numberings)

    def _of_event(self, part: _Part, position: int) -> int:
        """The position in the copy of the event that has this one in that part."""
        if position >= _OWN_POSITIONS or len(self._numberings) == 1:
            return position
        return self._position(part.numbering.offset(position))

    def _passed(self, part: _Part, position: int) -> int:
        """The position up to which nothing is left when in that part nothing is up to this one."""
        if position >= INLINE_POSITION:
            return self._position(self._end) - 1
        if len(self._numberings) == 1:
            return position
        return self._position(part.numbering.offset(position + 1)) - 1

    def _number(self, db: sqlite3.Connection) -> None:
        """Events that are committed to the copy have positions above all others."""
        highest = db.execute("SELECT coalesce(max(position), 0) FROM sink").fetchone()[0]
        self._copy.number_above(db, max(highest, self._position(self._end) - 1))

    # -- rows ---------------------------------------------------------------------------------------------------------

    async def _attached(self, part: _Part, work: Callable[[], Any]) -> None:
        await self._copy.fetch("ATTACH DATABASE ? AS part", (str(part.path),))
        await work()
        await self._copy.fetch("DETACH DATABASE part")

    async def _sources(self) -> None:
        """Each label is one source; what is known of it is in the partition that is its home."""
        copy = self._copy
        at_home = [
            (part, row)
            for part in self._parts
            for row in part.sources
            if self._meta.place("source", row[1]) == part.number
        ]
        await copy.write("INSERT INTO source (name, progress) VALUES (?, ?)", [row[1:] for _part, row in at_home])
        names = sorted({row[1] for part in self._parts for row in part.sources})
        await copy.write("INSERT INTO source (name) VALUES (?) ON CONFLICT DO NOTHING", [(name,) for name in names])
        known = await self._by_name()
        for part in self._parts:
            part.mapped = {local: known[name] for local, name, _progress in part.sources}

    async def _by_name(self) -> dict[str, int]:
        return dict(await self._copy.fetch("SELECT name, id FROM source"))

    async def _ledger(self, part: _Part) -> None:
        """The incidents, and the labels that its sources had before."""
        copy = self._copy
        home = {local for local, name, _ in part.sources if self._meta.place("source", name) == part.number}
        await copy.fetch("CREATE TEMP TABLE IF NOT EXISTS mapped (local INTEGER PRIMARY KEY, own INTEGER NOT NULL)")
        await copy.run(lambda db: db.execute("DELETE FROM mapped"), write=True, durable=False)
        await copy.write("INSERT INTO mapped VALUES (?, ?)", [(local, part.mapped[local]) for local in sorted(home)])
        renamed = [
            (part.mapped[local], self._passed(part, upto), name)
            for local, upto, name in await copy.fetch("SELECT source, upto, name FROM part.renamed")
            if local in home
        ]
        await copy.write("INSERT INTO renamed VALUES (?, ?, ?) ON CONFLICT DO NOTHING", renamed)
        of = (await copy.fetch("SELECT count(*) FROM part.incident"))[0][0]
        after = done = 0
        slice_ = "SELECT max(id), count(*) FROM (SELECT id FROM part.incident WHERE id > ? ORDER BY id LIMIT ?)"
        while True:
            ((last, count),) = await copy.fetch(slice_, (after, _LEDGER_BATCH))
            if last is None:
                return
            await copy.write(
                f"INSERT INTO incident (source, {_INCIDENT}) SELECT m.own, {_INCIDENT} FROM part.incident i "  # noqa: S608
                "JOIN mapped m ON m.local = i.source WHERE i.id > ? AND i.id <= ? ORDER BY i.id",
                [(after, last)],
            )
            after, done = last, done + count
            self._tell(f"copying the ledger of partition {part.number}", done, of)

    async def _events(self, reader: Reader) -> None:
        """Every event that Kafka still has; those that the ledger does not know came after it was read."""
        before = await self._copy.fetch("SELECT name, upto, source FROM renamed ORDER BY upto")
        known = await self._by_name()

        def source_of(one: Delivery) -> int:
            earlier = (source for name, upto, source in before if name == one.source and upto >= one.position)
            return next(earlier, known.get(one.source, 0))

        def keep(messages: Sequence[Message], db: sqlite3.Connection) -> None:
            rows = []
            for message in messages:
                one = delivery_of(message, self._position(message.offset))
                source = source_of(one)
                if self._copy.newest_sequence(db, source, one.uuid) >= one.sequence:
                    rows.append(_event_row(one, source, message))
            db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

        first = await reader.begin()
        while reader.reached() < self._end:
            messages = [one for one in events_in(await reader.read(_BATCH)) if one.offset < self._end]
            if messages:
                await self._copy.run(partial(keep, messages), write=True, durable=False)
            self._tell("copying events", min(reader.reached(), self._end) - first, self._end - first)

    async def _sinks(self, part: _Part) -> None:
        """Where each sink stands, what is pending for it, and what is finished above that."""
        copy = self._copy
        sinks = await copy.fetch("SELECT * FROM part.sink ORDER BY name")
        ours = [row for row in sinks if self._meta.place("sink", row[0]) == part.number]
        stand = {row[0]: max(row[1], self._reached.get(row[0], 0)) for row in ours}
        rows = [(name, self._passed(part, stand[name]), *rest) for name, _position, *rest in ours]
        await copy.write("INSERT INTO sink VALUES (?, ?, ?, ?, ?)", rows)
        async for found in self._pages("pending", 10):
            await copy.write(
                "INSERT INTO pending VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [row for one in found for row in self._pending(part, one, stand)],
            )
        async for found in self._pages("done", 2):
            kept = [(name, self._of_event(part, at)) for name, at in found if name in stand]
            await copy.write("INSERT INTO done VALUES (?, ?)", kept)
        expired = await copy.fetch("SELECT * FROM part.expired")
        await copy.write("INSERT INTO expired VALUES (?, ?, ?, ?, ?)", [row for row in expired if row[0] in stand])

    def _pending(self, part: _Part, row: Sequence[Any], stand: Mapping[str, int]) -> Iterator[tuple[Any, ...]]:
        name, position, source, uuid, attempts, due, reason, cause, since, body = row
        if name not in stand or (not cause and position <= self._reached.get(name, 0)):
            return
        at = self._of_event(part, position)
        own = part.mapped.get(source, 0)
        yield (name, at, own, uuid, attempts, due, reason, cause, since, _moved(body, position, at))

    async def _pages(self, table: str, columns: int) -> Any:
        """The rows of a table of the part whose key is sink and position."""
        after: tuple[Any, ...] = ("", -1)
        query = f"SELECT * FROM part.{table} WHERE (sink, position) > (?, ?) ORDER BY sink, position LIMIT ?"  # noqa: S608
        while found := await self._copy.fetch(query, (*after, _BATCH)):
            yield found
            after = found[-1][:2]

    async def _letters(self) -> None:
        """What was refused for good, by sources and sinks."""
        copy = self._copy
        after: tuple[Any, ...] = ("", "", "")
        query = "SELECT * FROM part.dead WHERE (component, name, id) > (?, ?, ?) ORDER BY component, name, id LIMIT ?"
        while found := await copy.fetch(query, (*after, _BATCH)):
            rows = []
            for ident, component, name, position, reason, attempts, committed, body in found:
                part = self._parts[self._meta.place(component, name)]
                at = self._of_event(part, position) if component == "sink" else position
                moved = _moved(body, position, at)
                rows.append((ident, component, name, at, reason, attempts, committed, moved))
            await copy.write("INSERT INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            after = (found[-1][1], found[-1][2], found[-1][0])


def _moved(body: bytes | None, position: int, at: int) -> bytes | None:
    """The event that is kept in a row knows its position as well."""
    if body is None or position == at:
        return body
    delivery = msgspec.msgpack.decode(body, type=Delivery)
    return msgspec.msgpack.encode(msgspec.structs.replace(delivery, position=at))


def _event_row(one: Delivery, source: int, message: Message) -> tuple[Any, ...]:
    return (
        one.position,
        one.id,
        one.kind,
        source,
        one.origin,
        one.uuid,
        one.sequence,
        one.updated,
        one.severity,
        committed_of(message),
        one.body,
    )
