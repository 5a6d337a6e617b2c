"""Rows as records: what a transaction on the local cache changed, and how the cache is made again from the topics.

Each row is one record, its key the table and the primary key, its value the row as it is now, none when it is gone.
Compaction keeps the last of each, which is the table. Values carry the version of their shape.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from relay.errors import JournalIncompatible
from relay.journal.kafka.broker import Message, Record

SHAPE: Final = 1
"""The version of the rows' shape. A release reads the next one before any release writes it: columns are only added."""

KEYS: Final[dict[str, tuple[str, ...]]] = {
    "meta": ("key",),
    "source": ("id",),
    "incident": ("id",),
    "renamed": ("source", "upto"),
    "sink": ("name",),
    "pending": ("sink", "position"),
    "done": ("sink", "position"),
    "expired": ("sink", "severity"),
    "executed": ("id",),
    "dead": ("component", "name", "id"),
}
"""What is kept in Kafka, with its primary key; a column of a key never changes its meaning."""
LOCAL: Final = ("id", "cache")
"""Rows of `meta` that are this file's own."""
_TABLES: Final = tuple(KEYS)
_MOST_KEYS: Final = 3
_encode_key = msgspec.json.Encoder().encode
_decode_key: Final = msgspec.json.Decoder(list[Any]).decode
_encode_row = msgspec.msgpack.Encoder().encode
_decode_row: Final = msgspec.msgpack.Decoder(list[Any]).decode
_SECONDARY: Final = (
    "CREATE UNIQUE INDEX IF NOT EXISTS incident_uuid ON incident (source, uuid)",
    "CREATE INDEX IF NOT EXISTS incident_created ON incident (source, created, uuid)",
)


class Changelog:
    """The tables of one cache. For the thread of its connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.execute("CREATE TABLE IF NOT EXISTS executed (id TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID")
        self._columns = {table: _columns(db, table) for table in _TABLES}

    def watch(self) -> None:
        """From now on every change of a row is noted, until it is taken."""
        db = self._db
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("CREATE TEMP TABLE changed (t, a, b, c, PRIMARY KEY (t, a, b, c)) WITHOUT ROWID")
        for number, (table, keys) in enumerate(KEYS.items()):
            own = " AND ".join(f"{{row}}.key <> '{key}'" for key in LOCAL) if table == "meta" else "1"
            for verb, rows in (("INSERT", ("NEW",)), ("UPDATE", ("OLD", "NEW")), ("DELETE", ("OLD",))):
                notes = "".join(_note(number, [f"{row}.{key}" for key in keys], own.format(row=row)) for row in rows)
                db.execute(f"CREATE TEMP TRIGGER {table}_{verb} AFTER {verb} ON main.{table} BEGIN {notes} END")

    def taken(self) -> list[tuple[str, bytes, bytes | None]]:
        """What was changed since the last time: table, key and value. To be called within the transaction."""
        db = self._db
        found: list[tuple[str, bytes, bytes | None]] = []
        for (number,) in db.execute("SELECT DISTINCT t FROM changed").fetchall():
            table = _TABLES[number]
            keys = KEYS[table]
            on = " AND ".join(f"r.{key} = c.{place}" for key, place in zip(keys, "abc", strict=False))
            rows = db.execute(
                f"SELECT {', '.join(f'c.{place}' for place in 'abc'[: len(keys)])}, r.{keys[0]} IS NOT NULL, r.* "  # noqa: S608
                f"FROM changed c LEFT JOIN {table} r ON {on} WHERE c.t = ?",
                (number,),
            )
            count = len(keys)
            for row in rows:
                value = _encode_row((SHAPE, *row[count + 1 :])) if row[count] else None
                found.append((table, _encode_key((table, *row[:count])), value))
        if found:
            db.execute("DELETE FROM changed")
        return found

    def forget(self) -> None:
        """What was changed came from Kafka itself."""
        self._db.execute("DELETE FROM changed")

    def apply(self, messages: Iterable[Message]) -> None:
        """Brings rows up to what these say, in their order."""
        written: dict[str, list[tuple[Any, ...]]] = {}
        for message in messages:
            table, *key = _decode_key(message.key)
            if table not in KEYS:  # of a later release
                continue
            if message.value is None:
                self._write(written)
                where = " AND ".join(f"{column} = ?" for column in KEYS[table])
                self._db.execute(f"DELETE FROM {table} WHERE {where}", key)  # noqa: S608  # only our names
                continue
            written.setdefault(table, []).append(self._row(table, message.value))
        self._write(written)

    def _write(self, written: dict[str, list[tuple[Any, ...]]]) -> None:
        for table, rows in written.items():
            places = ", ".join("?" * len(self._columns[table]))
            self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)  # noqa: S608
        written.clear()

    def _row(self, table: str, value: bytes) -> tuple[Any, ...]:
        """Columns that this release does not know are left out, those that an earlier one did not have get defaults."""
        shape, *row = _decode_row(value)
        columns = self._columns[table]
        if shape > SHAPE + 1:
            raise JournalIncompatible(
                f"the journal was written by a newer relay (shape {shape}, this one reads up to {SHAPE + 1}); run that "
                "version"
            )
        if len(row) == len(columns):
            return tuple(row)
        return (*row[: len(columns)], *(default for default in columns[len(row) :]))

    def hurry(self) -> None:
        """Much will be applied: what can be made at the end is left out."""
        self._db.execute("DROP INDEX IF EXISTS incident_uuid")
        self._db.execute("DROP INDEX IF EXISTS incident_created")

    def ready(self) -> None:
        """Everything was applied."""
        for statement in _SECONDARY:
            self._db.execute(statement)


def record_of(row: tuple[str, bytes, bytes | None], topic: str, partition: int) -> Record:
    """The record of a changed row."""
    return Record(topic, partition, row[1], row[2])


def whole_row(table: str, key: Sequence[Any], row: Sequence[Any]) -> tuple[str, bytes, bytes]:
    """Table, key and value of a row that was read from somewhere else."""
    return table, _encode_key((table, *key)), _encode_row((SHAPE, *row))


def dead_row(values: Sequence[Any]) -> tuple[bytes, bytes]:
    """Key and value of a dead letter, as the table `dead` would have it."""
    component, name, ident = values[1], values[2], values[0]
    return _encode_key(("dead", component, name, ident)), _encode_row((SHAPE, *values))


def _columns(db: sqlite3.Connection, table: str) -> list[Any]:
    """The default of each column, in the order of the table."""
    rows = db.execute(f"PRAGMA table_info({table})").fetchall()
    return [db.execute(f"SELECT {row[4]}").fetchone()[0] if row[4] is not None else None for row in rows]


def _note(number: int, columns: Sequence[str], condition: str) -> str:
    """Not OR IGNORE: within a trigger the statement's own way with conflicts holds.

    The plus takes off the affinity that a rowid has: with it every row noted before is looked at, and not the index.
    """
    padded = [*columns, *(["''"] * (_MOST_KEYS - len(columns)))]
    same = " AND ".join(f"{place} = +{column}" for place, column in zip("abc", padded, strict=True))
    return (
        f"INSERT INTO changed SELECT {number}, {', '.join(padded)} WHERE {condition} "  # noqa: S608  # only our names
        f"AND NOT EXISTS (SELECT 1 FROM changed WHERE t = {number} AND {same});"
    )
