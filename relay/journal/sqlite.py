"""The embedded journal: one SQLite file, one process, one connection in one thread.

WAL, synchronous FULL, exclusive lock; every method that writes is one transaction. Not a queue for other programs.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import socket
import sqlite3
import struct
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from relay.clock import SECOND, Clock, Instant
from relay.errors import (
    ConfigError,
    JournalDamaged,
    JournalDiskFull,
    JournalError,
    JournalFull,
    JournalIncompatible,
    JournalLocked,
    JournalMisplaced,
    JournalMissing,
    JournalReadOnly,
    JournalUnavailable,
)
from relay.formats import native
from relay.incidents import Event, Known
from relay.journal import (
    Backlog,
    Buried,
    Claim,
    Component,
    DeadLetter,
    DeadLetters,
    EndpointStatus,
    JournalUse,
    Outcome,
    PageCommit,
    Peer,
    Progress,
    Redriven,
    Report,
    StoredSink,
    StoredSource,
    Task,
    Tended,
)
from relay.sinks import Delivery, Position

T = TypeVar("T")

APPLICATION_ID = 0x49524A31  # "IRJ1"
MIGRATIONS: Final = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE source (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, progress BLOB);
    CREATE TABLE incident (
        id INTEGER PRIMARY KEY, source INTEGER NOT NULL, uuid TEXT NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL, newest INTEGER NOT NULL, sequence INTEGER NOT NULL,
        digest BLOB NOT NULL, digest_version INTEGER NOT NULL, fields BLOB NOT NULL, gone INTEGER NOT NULL
    );
    CREATE UNIQUE INDEX incident_uuid ON incident (source, uuid);
    CREATE TABLE event (
        position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, kind TEXT NOT NULL, source INTEGER NOT NULL,
        origin TEXT NOT NULL, uuid TEXT NOT NULL, sequence INTEGER NOT NULL, updated INTEGER NOT NULL,
        severity TEXT NOT NULL, committed INTEGER NOT NULL, body BLOB NOT NULL
    );
    CREATE TABLE sink (
        name TEXT PRIMARY KEY, position INTEGER NOT NULL, keep_seconds REAL NOT NULL, endpoint BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE pending (
        sink TEXT NOT NULL, position INTEGER NOT NULL, source INTEGER NOT NULL, uuid TEXT NOT NULL,
        attempts INTEGER NOT NULL, due INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (sink, position)
    ) WITHOUT ROWID;
    CREATE INDEX pending_incident ON pending (sink, source, uuid, position);
    CREATE TABLE dead (
        id TEXT NOT NULL, component TEXT NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL, reason TEXT NOT NULL,
        attempts INTEGER NOT NULL, committed INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (component, name, id)
    ) WITHOUT ROWID;
    CREATE INDEX dead_position ON dead (component, name, position);
    CREATE TABLE expired (
        sink TEXT NOT NULL, severity TEXT NOT NULL, events INTEGER NOT NULL, first INTEGER NOT NULL,
        last INTEGER NOT NULL, PRIMARY KEY (sink, severity)
    ) WITHOUT ROWID;
    """,
    """
    CREATE INDEX incident_created ON incident (source, created, uuid);
    CREATE TABLE renamed (
        source INTEGER NOT NULL, upto INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (source, upto)
    ) WITHOUT ROWID;
    CREATE TABLE done (sink TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (sink, position)) WITHOUT ROWID;
    CREATE INDEX dead_committed ON dead (committed);
    CREATE INDEX dead_since ON dead (component, name, committed);
    ALTER TABLE sink ADD COLUMN removed INTEGER;
    ALTER TABLE pending ADD COLUMN cause TEXT NOT NULL DEFAULT '';
    ALTER TABLE pending ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pending ADD COLUMN body BLOB;
    CREATE INDEX pending_own ON pending (sink, position) WHERE cause <> 'replay';
    """,
)
"""One script a schema version, for ever: a released one is never edited."""

FULL_RATIO: Final = 0.9
"""Above it new changes are refused, so that acknowledgements still fit."""
SHORT_RATIO: Final = 0.75
"""Above it delivered events go before their retention ends; below where the journal is said to fill, which is work."""
TAIL_BYTES: Final = 16 * 2**20
"""How much of what was committed last is kept at hand, so that sinks that keep up need not read it back."""
VERIFIED_BYTES: Final = 2**30
"""Files up to this size are looked through at every start, which takes a second or two; larger ones after damage."""
_SLICE = 2_000
"""Events deleted in one transaction: a few milliseconds, so that nothing waits long behind it."""
_LOCK_TRIES_SECONDS = 0.2
_LABEL = (
    "coalesce((SELECT r.name FROM renamed r WHERE r.source = e.source AND r.upto >= e.position ORDER BY r.upto LIMIT "
    "1), s.name)"
)
"""An event keeps the label under which it was committed: its id contains it."""
_EVENT_COLUMNS = f"e.position, e.id, e.kind, {_LABEL}, e.origin, e.uuid, e.sequence, e.updated, e.severity, e.body"
_LETTER_COLUMNS = "id, component, name, position, reason, attempts, committed, body"
_INCIDENT_COLUMNS = "i.uuid, i.created, i.updated, i.newest, i.sequence, i.digest, i.digest_version, i.fields, i.gone"
_KNOWN_AT_ONCE = 2_000
"""Ledger rows read in one call: a few milliseconds, so that nothing waits long behind it."""
_LOCKED_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_FOUND_CHARACTERS = 120
"""How much of what SQLite found wrong is shown."""
_PROBE_BYTES = 4096
_FLOCK = "hhqqi"
"""struct flock of 64-bit Linux."""
_SQLITE_LOCK_BYTES = (0x4000_0000, 512)
"""Where SQLite's locks lie in a database file, and on how many bytes."""
_ROWS_A_STATEMENT = 500
"""Rows in one INSERT: each statement lets go of Python's lock once, so fewer statements mean less waiting for it."""


def _insert(
    table: str, columns: int, tail: str = ""
) -> Callable[[sqlite3.Connection, Sequence[tuple[Any, ...]]], None]:
    """A function that inserts many rows in few statements; `table` is `name (columns)`."""
    row = f"({', '.join('?' * columns)})"
    many = f"INSERT INTO {table} VALUES {', '.join([row] * _ROWS_A_STATEMENT)} {tail}"  # noqa: S608  # only our names
    one = f"INSERT INTO {table} VALUES {row} {tail}"  # noqa: S608

    def insert(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        whole = len(rows) - len(rows) % _ROWS_A_STATEMENT
        for start in range(0, whole, _ROWS_A_STATEMENT):
            db.execute(many, tuple(chain.from_iterable(rows[start : start + _ROWS_A_STATEMENT])))
        db.executemany(one, rows[whole:])

    return insert


_insert_events = _insert("event (id, kind, source, origin, uuid, sequence, updated, severity, committed, body)", 10)
_upsert_incidents = _insert(
    "incident (source, uuid, created, updated, newest, sequence, digest, digest_version, fields, gone)",
    10,
    "ON CONFLICT (source, uuid) DO UPDATE SET updated = excluded.updated, newest = excluded.newest, "
    "sequence = excluded.sequence, digest = excluded.digest, digest_version = excluded.digest_version, "
    "fields = excluded.fields, gone = excluded.gone",
)


class SqliteJournal:
    """One relay's journal in one file. `path` is created when missing."""

    def __init__(self, path: Path, *, max_bytes: int, retention_seconds: float, clock: Clock) -> None:
        self.path = path
        self.id = ""
        self._max_bytes = max_bytes
        self._retention_seconds = retention_seconds
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._db: sqlite3.Connection | None = None
        self._lock_file: int | None = None
        self._sinks: dict[str, SqliteSinkLease] = {}
        self._roomy = asyncio.Event()
        self._durable = True
        self._tail: deque[Delivery] = deque()
        self._tail_bytes = 0
        self._tail_after = 0
        self._calls: dict[asyncio.Future[Any], float] = {}
        self._max_pages = 0
        self._files: tuple[tuple[int, int] | None, ...] = ()
        self._damage: JournalDamaged | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Locks, verifies, migrates. Raises JournalLocked, JournalIncompatible, JournalUnavailable."""
        self._require_place()
        self._take_lock()
        try:
            await self._in_thread(self._connect)
        except BaseException:
            self._release_lock()
            raise
        self._roomy.set()

    async def close(self) -> None:
        """Lets go of the file; what was committed stays."""
        if self._db is not None:
            await self._in_thread(self._disconnect)
        self._thread.shutdown()
        self._release_lock()

    @property
    def _log(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    @property
    def _damage_mark(self) -> Path:
        """Tells the next start that the whole file is to be looked through, however large it is."""
        return self.path.with_name(f"{self.path.name}.damaged")

    def _require_place(self) -> None:
        """What can be told without opening the file. Raises JournalIncompatible, JournalUnavailable."""
        try:
            if self.path.is_dir():
                raise JournalMisplaced(f"journal.path {self.path} is a folder; name a file in it")
            if self.path.exists() and not self.path.is_file():
                raise JournalMisplaced(f"journal.path {self.path} is not a regular file; name another one")
            log_bytes = self._log.stat().st_size if self._log.exists() else 0
            empty = not self.path.exists() or self.path.stat().st_size == 0
        except OSError as exc:
            raise self._refused(exc) from exc
        if empty and log_bytes:  # SQLite would begin anew, and delete the log
            raise self.damaged(f"it is empty or gone, but its log {self._log.name} is there")

    def _take_lock(self) -> None:
        """Names the holder to whoever comes second; SQLite's own exclusive lock stays the real guard."""
        try:
            descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise self._refused(exc) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise JournalLocked(
                f"the journal {self.path} is held by {holder or 'another process'}; stop that relay first"
            ) from exc
        except OSError as exc:
            os.close(descriptor)
            raise JournalUnavailable(
                f"the journal {self.path} cannot be locked: {_words(exc)}; put it on a volume with file locks"
            ) from exc
        with contextlib.suppress(OSError):  # it only names us: a full disk is no reason to stay away
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._lock_file = descriptor

    def _release_lock(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _connect(self) -> None:
        new = not self.path.exists() or self.path.stat().st_size == 0
        db: sqlite3.Connection | None = None
        try:
            db = sqlite3.connect(self.path, isolation_level=None, timeout=_LOCK_TRIES_SECONDS, cached_statements=64)
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            if new:
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            else:
                self._require_ours(db)
                self._verify(db)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA cache_size = -32768")
            db.execute("PRAGMA wal_autocheckpoint = 8000")
            self._migrate(db)
            self._max_pages = max(1, self._max_bytes // _pragma(db, "page_size"))
            db.execute(f"PRAGMA max_page_count = {self._max_pages}")
            self.id = self.stored_id(db)
        except sqlite3.Error as exc:
            _abandon(db)
            if _primary_code(exc) in _LOCKED_CODES:
                raise JournalLocked(
                    f"the journal {self.path} is locked by {_lock_holder(self.path)}, which is no relay; stop it first"
                ) from exc
            raise self._mapped(exc) from exc
        except BaseException:
            _abandon(db)
            raise
        self._db = db
        self._files = self._found_files()

    def _require_ours(self, db: sqlite3.Connection) -> None:
        """Raises JournalIncompatible for another program's database, and for ours with a damaged header."""
        if _pragma(db, "application_id") == APPLICATION_ID:
            return
        ours = "SELECT count(*) FROM sqlite_schema WHERE name IN ('meta', 'incident', 'event', 'sink', 'pending')"
        if db.execute(ours).fetchone()[0] == 5:
            raise self.damaged("its header was overwritten")
        raise JournalMisplaced(
            f"{self.path} is a database, but not a journal of Incident Relay; name another journal.path"
        )

    def _verify(self, db: sqlite3.Connection) -> None:
        """Looks through the file before anything is written into it. Raises JournalDamaged."""
        if self.path.stat().st_size > VERIFIED_BYTES and not self._damage_mark.exists():
            return
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self.damaged(str(found))
        with contextlib.suppress(OSError):  # a backup was restored, or what failed then was the reading
            self._damage_mark.unlink(missing_ok=True)

    def _migrate(self, db: sqlite3.Connection) -> None:
        version = _pragma(db, "user_version")
        if version > len(MIGRATIONS):
            raise JournalIncompatible(
                f"{self.path} was written by a newer relay (schema {version}, this one knows {len(MIGRATIONS)}); "
                "run that version, or restore the backup beside the file"
            )
        if version == len(MIGRATIONS):
            db.execute("BEGIN IMMEDIATE")  # takes the exclusive lock now, not at the first write
            db.execute("COMMIT")
            return
        if version:
            copy = self.path.with_name(f"{self.path.name}.v{version}.bak")
            copy.unlink(missing_ok=True)
            try:
                db.execute("VACUUM INTO ?", (str(copy),))
            except sqlite3.Error:
                copy.unlink(missing_ok=True)  # half a copy must not pass for a backup
                raise
        with transaction(db):
            for script in MIGRATIONS[version:]:
                for statement in filter(str.strip, script.split(";")):
                    db.execute(statement)
            if not version:
                self.begin(db)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def begin(self, db: sqlite3.Connection) -> None:
        """A new journal gets its id."""
        db.execute("INSERT INTO meta VALUES ('id', ?)", (secrets.token_hex(8),))

    def stored_id(self, db: sqlite3.Connection) -> str:
        """The journal's id, which a copy gets last. Raises JournalMisplaced when it never did."""
        row = db.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()
        if row is None:
            raise JournalMisplaced(
                f"the journal {self.path} is half a copy: `relay journal copy` was interrupted; delete the file, and "
                f"{self._log.name} if there is one, and run that again"
            )
        return str(row[0])

    def _disconnect(self) -> None:
        if self._damage is not None:
            _abandon(self._db)
        elif self._db is not None:
            self._db.close()
        self._db = None

    # -- calls --------------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Runs in the connection's thread. A cancelled caller leaves a begun transaction to end by itself."""
        call = asyncio.get_running_loop().run_in_executor(self._thread, work)
        self._calls[call] = self._clock.monotonic()
        call.add_done_callback(self._ended)
        return await asyncio.shield(call)

    def _ended(self, call: "asyncio.Future[Any]") -> None:
        del self._calls[call]
        if not call.cancelled():
            call.exception()  # its caller may be gone: an unread error is not a second one

    def oldest_call_seconds(self) -> float:
        """For how long the oldest unfinished call has been waiting for the disk; 0 when none is."""
        return self._clock.monotonic() - min(self._calls.values(), default=self._clock.monotonic())

    async def run(self, work: Callable[[sqlite3.Connection], T], *, write: bool, durable: bool = True) -> T:
        """One piece of work with the connection; `write` makes it one transaction. Raises JournalError.

        What is not `durable` survives the death of the process, and may be lost with everything after it when the
        machine loses its power: right for what can be done again, and saves waiting for the disk.
        """

        def call() -> T:
            if self._damage is not None:
                raise self._damage
            db = self._db
            if db is None:
                raise JournalUnavailable(f"the journal {self.path} is closed")
            try:
                if not write:
                    return work(db)
                self._require_in_place()
                self._synchronize(db, durable=durable)
                return self._in_transaction(db, work)
            except sqlite3.Error as exc:
                if write and _primary_code(exc) == sqlite3.SQLITE_FULL and self._exceeds_limit(db, work):
                    raise self.full(f"what comes next does not fit into max_bytes = {self._max_bytes}") from exc
                error = self._mapped(exc)
                if isinstance(error, JournalDamaged):
                    self._disconnect()
                raise error from exc

        try:
            return await self._in_thread(call)
        except JournalDamaged:
            self._roomy.set()  # nobody shall wait for room in it
            raise

    def _in_transaction(self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        with transaction(db):
            return work(db)

    def _found_files(self) -> tuple[tuple[int, int] | None, ...]:
        return _identity(self.path), _identity(self._log)

    def _require_in_place(self) -> None:
        """Raises JournalMissing when what would be written now would be in no file that a restart finds."""
        if self._found_files() != self._files:
            raise JournalMissing(
                f"the journal {self.path} or its log {self._log.name} was moved, deleted or replaced while the relay "
                "runs; put the same files back, or restart the relay to use what is there now"
            )

    def _exceeds_limit(self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], Any]) -> bool:
        """Tells max_bytes from the volume, for both are SQLITE_FULL: does the same work, but without the limit.

        Nothing of it is kept.
        """
        try:
            db.execute("PRAGMA max_page_count = 4294967294")
            db.execute("BEGIN IMMEDIATE")
            work(db)
            return _pragma(db, "page_count") > self._max_pages
        except (sqlite3.Error, JournalError):
            return False
        finally:
            with contextlib.suppress(sqlite3.Error):
                if db.in_transaction:
                    db.execute("ROLLBACK")
                db.execute(f"PRAGMA max_page_count = {self._max_pages}")

    def _synchronize(self, db: sqlite3.Connection, *, durable: bool) -> None:
        if durable != self._durable:
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable

    def _mapped(self, exc: sqlite3.Error) -> JournalError:
        primary = _primary_code(exc)
        if primary in _LOCKED_CODES:
            return JournalLocked(f"the journal {self.path} is locked by another process; stop it first")
        if primary in _DAMAGED_CODES or (primary is None and isinstance(exc, sqlite3.OperationalError)):
            return self.damaged(str(exc))  # without a code: text that is none
        if primary == sqlite3.SQLITE_FULL:
            return self._refused(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if (refused := _refusal(self.path)) is not None:
            return self._refused(refused)
        if primary == sqlite3.SQLITE_READONLY:
            return self._refused(OSError(errno.EACCES, os.strerror(errno.EACCES)))
        return JournalUnavailable(
            f"the journal {self.path} could not be used: {exc}; look for a failing disk or a limit on the size of "
            "files; the relay tries again by itself"
        )

    def _refused(self, exc: OSError) -> JournalError:
        """What the operating system said of the file or its folder."""
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            return JournalDiskFull(
                f"no room is left on the volume of the journal {self.path}: {_words(exc)}; make room there, the relay "
                "goes on by itself"
            )
        if exc.errno == errno.EROFS:
            return JournalReadOnly(
                f"the volume of the journal {self.path} is read-only; mount it writable, the relay goes on by itself"
            )
        if exc.errno in {errno.EACCES, errno.EPERM}:
            return JournalMisplaced(
                f"this user may not write the journal {self.path} and beside it; give the relay a folder that it can "
                "write, or name another journal.path"
            )
        if exc.errno in {errno.ENOENT, errno.ENOTDIR}:
            return JournalMisplaced(
                f"the folder of the journal {self.path} does not exist; make it, or name another journal.path"
            )
        return JournalUnavailable(
            f"the journal {self.path} could not be used: {_words(exc)}; look at its volume, the relay tries again by "
            "itself"
        )

    def damaged(self, found: str) -> JournalDamaged:
        """What to raise when the content is not what was written; from now on it is neither read nor written."""
        if self._damage is None:
            backups = sorted(self.path.parent.glob(f"{self.path.name}.v*.bak"), key=lambda path: path.stat().st_mtime)
            cure = f"restore {backups[-1].name}" if backups else "restore your latest backup (none lies beside it)"
            text = " ".join(found.removeprefix("*** in database main ***").replace(";", ",").split())
            self._damage = JournalDamaged(
                f"the journal {self.path} is damaged ({text[:_FOUND_CHARACTERS]}) and is left as it is; stop the "
                f"relay, move {self.path.name} and {self._log.name} away together, and {cure}; without one the relay "
                "begins anew, and sends again what start_from covers"
            )
            with contextlib.suppress(OSError):
                self._damage_mark.write_text(f"{text}\n")
        return self._damage

    def full(self, what: str) -> JournalFull:
        """What to raise when changes no longer fit; `room` waits from now on."""
        self._roomy.clear()
        return JournalFull(
            f"the journal {self.path} is full: {what}; bring back the sink that events wait for, or raise "
            "journal.max_bytes"
        )

    # -- leases -------------------------------------------------------------------------------------------------

    def holding(self, component: Component, name: str) -> int | None:
        """The process owns all, for as long as it runs."""
        return 1

    async def reassigned(self, seen: int) -> int:
        """What is held never changes."""
        if seen != 0:
            return 0
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        return await never

    async def settled(self) -> None:
        """All is held at once."""

    def released(self) -> None:
        """A task has ended that had a lease: here nobody waits for that."""

    async def source(self, name: str) -> "SqliteSourceLease":
        """The lease of this source; on this journal the process owns all, for as long as it runs."""

        def work(db: sqlite3.Connection) -> tuple[int, bytes | None]:
            db.execute("INSERT INTO source (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
            row: tuple[int, bytes | None] = db.execute(
                "SELECT id, progress FROM source WHERE name = ?", (name,)
            ).fetchone()
            return row

        ident, progress = await self.run(work, write=True)
        decoded = self._decoded(progress, Progress) if progress else None
        return SqliteSourceLease(self, name, ident, decoded, self._clock)

    async def sink(self, name: str, *, start: Literal["now", "earliest"], keep_seconds: float) -> "SqliteSinkLease":
        """The lease of this sink; `start` counts only the first time that the name is seen."""

        def work(db: sqlite3.Connection) -> tuple[int, bytes, set[int], bool]:
            first = self.end(db) if start == "now" else 0
            fresh = msgspec.json.encode(EndpointStatus())
            db.execute(
                "INSERT INTO sink (name, position, keep_seconds, endpoint) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (name, first, keep_seconds, fresh),
            )
            db.execute("UPDATE sink SET removed = NULL WHERE name = ? AND removed IS NOT NULL", (name,))
            # Only what differs is written: a restart on a full disk needs no room.
            db.execute("UPDATE sink SET keep_seconds = ?1 WHERE name = ?2 AND keep_seconds <> ?1", (keep_seconds, name))
            position, endpoint = db.execute("SELECT position, endpoint FROM sink WHERE name = ?", (name,)).fetchone()
            return position, endpoint, _settled_above(db, name, position), _has_pending(db, name)

        await self.refresh()
        position, endpoint, settled, pending = await self.run(work, write=True)
        status = self._decoded(endpoint, EndpointStatus)
        lease = SqliteSinkLease(
            self, name, position=position, settled=settled, pending=pending, endpoint=status, clock=self._clock
        )
        self._sinks[name] = lease
        return lease

    @property
    def peers(self) -> dict[str, Peer]:
        """There is one process only."""
        return {}

    def report(self, component: Component, name: str) -> Report | None:
        """Nobody else says anything."""
        return None

    async def publish(self, facts: bytes, reports: Mapping[Task, bytes]) -> None:
        """Nobody listens."""

    async def ask(self, to: Task | None, command: bytes, *, seconds: float) -> dict[str, bytes]:
        """Nobody is there."""
        return {}

    def obey(self, execute: Callable[[bytes, bool], Awaitable[bytes]]) -> None:
        """Nobody asks."""

    def written(self) -> dict[str, tuple[int, Instant | None]]:
        """No sink is written with a poll."""
        return {}

    def held_sink(self, name: str) -> "SqliteSinkLease | None":
        """The lease of this sink, if it was taken."""
        return self._sinks.get(name)

    # -- what is known, and what operators change ---------------------------------------------------------------

    async def sinks(self) -> list[StoredSink]:
        """Every sink that the journal knows, by name; those that were removed from the configuration as well."""

        def work(db: sqlite3.Connection) -> list[StoredSink]:
            rows = db.execute("SELECT name, position, endpoint, removed FROM sink ORDER BY name").fetchall()
            return [
                StoredSink(
                    name=name,
                    endpoint=self._decoded(endpoint, EndpointStatus),
                    backlog=self.backlog(db, name, position),
                    dead=_buried(db, "sink", name).letters,
                    removed=removed,
                )
                for name, position, endpoint, removed in rows
            ]

        return await self.run(work, write=False)

    async def sources(self) -> list[StoredSource]:
        """Every source that the journal knows, by name."""

        def work(db: sqlite3.Connection) -> list[StoredSource]:
            rows = db.execute("SELECT id, name, progress FROM source ORDER BY name").fetchall()
            return [
                StoredSource(
                    name=name,
                    progress=self._decoded(progress, Progress) if progress else None,
                    incidents=_count_incidents(db, ident),
                    dead=_buried(db, "source", name).letters,
                )
                for ident, name, progress in rows
            ]

        return await self.run(work, write=False)

    async def latest_events(self, limit: int, *, after: int = 0) -> list[Delivery]:
        """Up to `limit` of the events committed last, newest first, of those beyond the position `after`."""

        def work(db: sqlite3.Connection) -> list[Delivery]:
            rows = db.execute(
                f"SELECT {_EVENT_COLUMNS}, 0 FROM event e JOIN source s ON s.id = e.source "  # noqa: S608
                "WHERE e.position > ? ORDER BY e.position DESC LIMIT ?",
                (after, limit),
            ).fetchall()
            return [_delivery(row) for row in rows]

        return await self.run(work, write=False)

    async def events_after(self, position: int, *, limit: int, max_bytes: int) -> list[tuple[Delivery, Instant]]:
        """The next events behind this position, and when each was committed; few when they are large."""

        def work(db: sqlite3.Connection) -> list[tuple[Delivery, Instant]]:
            rows = db.execute(
                f"SELECT {_EVENT_COLUMNS}, 0, e.committed FROM event e JOIN source s ON s.id = e.source "  # noqa: S608
                "WHERE e.position > ? ORDER BY e.position LIMIT ?",
                (position, limit),
            )
            found: list[tuple[Delivery, Instant]] = []
            size = 0
            for row in rows:
                found.append((_delivery(row), row[-1]))
                size += len(row[9])
                if size >= max_bytes:
                    break
            return found

        return await self.run(work, write=False)

    async def latest_incidents(self, limit: int) -> list[tuple[str, Known]]:
        """Those that were met last, newest first, with the label of their source; without those that are gone."""

        def work(db: sqlite3.Connection) -> list[tuple[str, Known]]:
            rows = db.execute(
                f"SELECT {_INCIDENT_COLUMNS}, s.name FROM incident i "  # noqa: S608  # only our names
                "CROSS JOIN source s ON s.id = i.source WHERE NOT i.gone ORDER BY i.id DESC LIMIT ?",
                (limit,),
            ).fetchall()
            return [(row[-1], _known_row(row)) for row in rows]

        return await self.run(work, write=False)

    async def rename_sink(self, old: str, new: str) -> None:
        """All that was kept for the old name is the new one's. Raises ConfigError."""
        await self.refresh()

        def work(db: sqlite3.Connection) -> None:
            _require_names(db, "sink", old, new)
            db.execute("UPDATE sink SET name = ?2, removed = NULL WHERE name = ?1", (old, new))
            for table in ("pending", "expired", "done"):
                db.execute(f"UPDATE {table} SET sink = ?2 WHERE sink = ?1", (old, new))  # noqa: S608  # only our names
            _rename_dead(db, "sink", old, new)

        await self.run(work, write=True)

    async def rename_source(self, old: str, new: str) -> None:
        """The same for a source; events in the journal keep the old label. Raises ConfigError."""
        await self.refresh()

        def work(db: sqlite3.Connection) -> None:
            # A relay that was started too early has made room for it, and read nothing.
            db.execute(
                "DELETE FROM source WHERE name = ? AND progress IS NULL AND NOT EXISTS "
                "(SELECT 1 FROM incident WHERE source = source.id)",
                (new,),
            )
            _require_names(db, "source", old, new)
            db.execute(
                "INSERT INTO renamed SELECT id, ?, name FROM source WHERE name = ? ON CONFLICT DO NOTHING",
                (self.end(db), old),
            )
            db.execute("UPDATE source SET name = ?2 WHERE name = ?1", (old, new))
            _rename_dead(db, "source", old, new)

        await self.run(work, write=True)

    async def dead_letters(
        self, *, component: Component | None = None, name: str | None = None, prefix: str = "", limit: int
    ) -> DeadLetters:
        """Those of one component or of all, whose id begins with `prefix`; newest first."""
        chosen = "(?1 IS NULL OR component = ?1) AND (?2 IS NULL OR name = ?2) AND substr(id, 1, length(?3)) = ?3"
        values = (component, name, prefix)

        def work(db: sqlite3.Connection) -> DeadLetters:
            total = db.execute(f"SELECT count(*) FROM dead WHERE {chosen}", values).fetchone()[0]  # noqa: S608
            newest = db.execute(
                f"SELECT {_LETTER_COLUMNS} FROM dead WHERE {chosen} "  # noqa: S608  # only our names
                "ORDER BY committed DESC, position DESC LIMIT ?4",
                (*values, limit),
            )
            return DeadLetters(total=total, newest=[_letter(row) for row in newest])

        return await self.run(work, write=False)

    async def discard(self, component: Component, name: str, ids: Collection[str] | None = None) -> int:
        """Forgets dead letters for good, all of them without `ids`; returns how many."""

        def work(db: sqlite3.Connection) -> int:
            letters = _letters(db, component, name, ids)
            for letter in letters:
                _unbury(db, letter)
            return len(letters)

        return await self.run(work, write=True)

    async def backup(self, path: Path) -> None:
        """Writes a copy of all of it into this file, which must be empty or absent; durable on return."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("VACUUM INTO ?", (str(path),))

        await self.run(work, write=False)
        await self._in_thread(lambda: _sync(path))

    def _decoded(self, stored: bytes, type_: type[T]) -> T:
        try:
            return msgspec.json.decode(stored, type=type_)
        except (msgspec.MsgspecError, TypeError) as exc:
            raise self.damaged("a stored state cannot be read") from exc

    # -- what a journal that others write to as well does more -----------------------------------------------------

    def require_held(self) -> None:
        """Raises LeaseLost when this is somebody else's by now: a file never is."""

    async def refresh(self) -> None:
        """Learns how far the events go: here all is known."""

    async def caught_up(self, *, patient: bool = True) -> None:
        """Returns when the sinks may have all that was committed here: at once, in a file."""

    async def recall(self) -> None:
        """Makes sure that every event that is still kept is at hand: here they are."""

    # -- events -------------------------------------------------------------------------------------------------

    def end(self, db: sqlite3.Connection) -> int:
        """The position of the last event that was committed; 0 before the first."""
        return _last_position(db)

    def number_above(self, db: sqlite3.Connection, position: int) -> None:
        """Events that are committed from now on have positions above this one."""
        _number_above(db, position)

    def store(
        self, db: sqlite3.Connection, source: int, name: str, events: Sequence[Event], now: Instant
    ) -> list[Delivery]:
        """Writes the events of one commit; returns those that the sinks may have at once."""
        bodies = [native.render(event) for event in events]
        _insert_events(db, [_event_row(source, event, now, body) for event, body in zip(events, bodies, strict=True)])
        first = _last_position(db) - len(events) + 1
        return [Delivery.of(first + index, event, bodies[index]) for index, event in enumerate(events)]

    def waiting_after(self, db: sqlite3.Connection, position: int) -> int:
        """How many events were committed behind this position. There are no holes behind a sink's."""
        return max(0, _last_position(db) - position)

    def newest_sequence(self, db: sqlite3.Connection, source: int, uuid: str) -> int:
        """The number of the last version of an incident, 0 when there is none."""
        row = db.execute("SELECT sequence FROM incident WHERE source = ? AND uuid = ?", (source, uuid)).fetchone()
        return int(row[0]) if row else 0

    def backlog(self, db: sqlite3.Connection, sink: str, position: int) -> Backlog:
        """What waits above that position, and what is pending below it. A command's age counts from the command."""
        pending, retrying, first_pending, first_command = db.execute(
            "SELECT count(*), count(*) FILTER (WHERE attempts > 0), min(position) FILTER (WHERE cause = ''), "
            "min(since) FILTER (WHERE cause <> '') FROM pending WHERE sink = ? AND position <= ?",
            (sink, position),
        ).fetchone()
        first = db.execute(
            "SELECT committed FROM event WHERE position >= ? ORDER BY position LIMIT 1",
            (min(position + 1, first_pending or position + 1),),
        ).fetchone()
        times = [first[0]] if first else []
        times += [] if first_command is None else [first_command]
        waiting = pending + self.waiting_after(db, position)
        return Backlog(events=waiting, oldest=min(times, default=None), retrying=retrying)

    # -- space --------------------------------------------------------------------------------------------------

    async def use(self) -> JournalUse:
        """Pages in use (free ones don't count) against the limit."""

        def work(db: sqlite3.Connection) -> JournalUse:
            oldest = db.execute("SELECT committed FROM event ORDER BY position LIMIT 1").fetchone()
            return JournalUse(
                used_bytes=_used_bytes(db),
                limit_bytes=self._max_bytes,
                oldest_event=oldest[0] if oldest else None,
            )

        return await self.run(work, write=False)

    def committed(self, deliveries: Sequence[Delivery], *, after: int | None = None) -> None:
        """New events are durable: keeps them at hand for the sinks that are close behind, and wakes all.

        `after`: between this position and the first of them there is none; None: they have no holes.
        """
        if not deliveries:
            return
        follows = deliveries[0].position - 1 if after is None else after
        if not self._tail or follows != self._tail[-1].position:
            self._tail.clear()  # a commit whose caller was cancelled is missing: the sinks read the file instead
            self._tail_bytes = 0
            self._tail_after = follows
        self._tail.extend(deliveries)
        self._tail_bytes += sum(len(delivery.body) for delivery in deliveries)
        while self._tail_bytes > TAIL_BYTES:
            gone = self._tail.popleft()
            self._tail_after = gone.position
            self._tail_bytes -= len(gone.body)
        self.wake_sinks()

    def wake_sinks(self) -> None:
        """There may be something to claim."""
        for lease in self._sinks.values():
            lease.wake()

    def tail_after(self, position: int, limit: int) -> list[Delivery]:
        """Up to `limit` events that follow this position, when they are still at hand; else none."""
        if not self._tail or not self._tail_after <= position < self._tail[-1].position:
            return []
        start = bisect_right(self._tail, position, key=attrgetter("position"))
        return list(islice(self._tail, start, start + limit))

    def require_room(self, db: sqlite3.Connection) -> None:
        """Raises JournalFull when changes no longer fit beside the acknowledgements."""
        if _used_bytes(db) >= FULL_RATIO * self._max_bytes:
            raise self.full(f"{FULL_RATIO:.0%} of max_bytes = {self._max_bytes} are in use")

    async def room(self) -> None:
        """Returns when a commit can succeed again; tend() is what makes room."""
        await self._roomy.wait()

    async def tend(self) -> Tended:
        """Lets expire what no sink took within `keep`, and deletes delivered events: old ones, and all when short."""
        await self.caught_up()
        now = self._clock.now()
        names = await self.run(lambda db: [row[0] for row in db.execute("SELECT name FROM sink")], write=False)
        expired = {name: await self._expire(name, now) for name in names}
        held = set(self._sinks)
        forgotten = await self.run(lambda db: _forget(db, held, now), write=True)
        deleted = 0
        while slice_deleted := await self.run(lambda db: self._delete_slice(db, now), write=True):
            deleted += slice_deleted
        use = await self.use()
        if use.used_bytes < FULL_RATIO * use.limit_bytes:
            self._roomy.set()
        return Tended(
            deleted=deleted,
            expired={name: counted for name, counted in expired.items() if counted},
            forgotten=tuple(forgotten),
        )

    async def _expire(self, name: str, now: Instant) -> Counter[str]:
        lease = self._sinks.get(name)
        ceiling = lease.first_in_flight() if lease else None
        flight = lease.in_flight() if lease else frozenset()

        def work(db: sqlite3.Connection) -> Counter[str]:
            position, keep = db.execute("SELECT position, keep_seconds FROM sink WHERE name = ?", (name,)).fetchone()
            before = now - int(keep * SECOND)
            last = _last_committed_before(db, before)
            if ceiling is not None:
                last = min(last, ceiling - 1)
            db.execute("DELETE FROM done WHERE sink = ? AND position <= ?", (name, position))
            return _expire_up_to(db, name, position, last) + _expire_commanded(db, name, before, flight)

        counted = await self.run(work, write=True)
        if counted and lease:
            await lease.reload()
        return counted

    def _delete_slice(self, db: sqlite3.Connection, now: Instant) -> int:
        """Deletes one slice of what every sink has finished; returns how many."""
        floor = db.execute(
            "SELECT min(position) FROM (SELECT min(position) AS position FROM sink UNION ALL "
            "SELECT min(position) - 1 FROM pending WHERE body IS NULL)"
        ).fetchone()[0]
        if floor is None:
            return 0
        short = _used_bytes(db) >= SHORT_RATIO * self._max_bytes
        before = now if short else now - int(self._retention_seconds * SECOND)
        return db.execute(
            "DELETE FROM event WHERE position IN "
            "(SELECT position FROM event WHERE position <= ? AND committed <= ? ORDER BY position LIMIT ?)",
            (floor, before, _SLICE),
        ).rowcount


class SqliteSourceLease:
    """The right to poll one source; never lost, since the process owns the file."""

    def __init__(self, journal: SqliteJournal, name: str, ident: int, progress: Progress | None, clock: Clock) -> None:
        self.name = name
        self.progress = progress
        self._journal = journal
        self._id = ident
        self._clock = clock
        self._unsure = False

    async def known(self, uuids: Sequence[str]) -> dict[str, Known]:
        """What the ledger holds of these; includes every commit that returned."""
        wanted = msgspec.json.encode(uuids).decode()
        return await self._journal.run(lambda db: _known(db, self._id, wanted), write=False)

    async def known_created(self, start: Instant, end: Instant) -> AsyncIterator[Known]:
        """The incidents created from `start` to before `end`, ascending by time and uuid."""
        after: tuple[Instant, str] = (start, "")
        while rows := await self._journal.run(partial(_known_created, self._id, after, end), write=False):
            for row in rows:
                yield row
            after = (rows[-1].created, rows[-1].uuid)

    async def count(self) -> int:
        """How many incidents the ledger holds of this source."""
        return await self._journal.run(lambda db: _count_incidents(db, self._id), write=False)

    async def commit(self, page: PageCommit) -> None:
        """Writes all or none; durable on return, and only then visible to sinks.

        Raises JournalFull, JournalUnavailable.
        """
        unsure, self._unsure = self._unsure, True
        now = self._clock.now()

        def work(db: sqlite3.Connection) -> list[Delivery]:
            if page.rows or page.events or page.bad:
                self._journal.require_room(db)
            events = page.events
            if unsure and events:
                events = self._not_yet_there(db, events)
            added = self._journal.store(db, self._id, self.name, events, now) if events else []
            if page.rows:
                by_uuid = sorted(page.rows, key=attrgetter("uuid"))  # neighbours in the index are written together
                _upsert_incidents(db, [_incident_row(self._id, row) for row in by_uuid])
            for bad in page.bad:
                db.execute(
                    "INSERT INTO dead VALUES (?, 'source', ?, 0, ?, 1, ?, ?) ON CONFLICT DO NOTHING",
                    (bad.id, self.name, bad.reason, now, bad.raw),
                )
            db.execute("UPDATE source SET progress = ? WHERE id = ?", (msgspec.json.encode(page.progress), self._id))
            return added

        added = await self._journal.run(work, write=True)
        self._unsure = False
        self.progress = page.progress
        self._journal.committed(added)
        if unsure:
            self._journal.wake_sinks()  # what was found there already was announced to nobody

    def _not_yet_there(self, db: sqlite3.Connection, events: Sequence[Event]) -> list[Event]:
        """After a commit whose outcome is unknown: the events that the ledger does not have."""
        known = _known(db, self._id, msgspec.json.encode([event.uuid for event in events]).decode())
        return [e for e in events if e.uuid not in known or known[e.uuid].sequence < e.sequence]

    async def room(self) -> None:
        """Returns when a commit can succeed again."""
        await self._journal.room()

    async def release(self) -> None:
        """Nothing is in flight any more, and nothing will be."""
        self._journal.released()

    async def buried(self) -> Buried:
        """The records of this source that could not be read."""
        return await self._journal.run(lambda db: _buried(db, "source", self.name), write=False)

    async def dead_letters(self) -> AsyncIterator[DeadLetter]:
        """Records that could not be read, oldest first."""
        for letter in await self._journal.run(lambda db: _dead_letters(db, "source", self.name), write=False):
            yield letter


class _Settlement:
    """Outcomes that wait to be recorded."""

    __slots__ = ("done", "durable", "endpoint", "outcomes")

    def __init__(self, outcomes: Sequence[Outcome], endpoint: EndpointStatus | None, durable: bool) -> None:
        self.outcomes = outcomes
        self.endpoint = endpoint
        self.durable = durable
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class SqliteSinkLease:
    """The right to send for one sink.

    In memory: how far events were read (`_scanned`), which of them are not settled (`_open`, waiting or in flight).
    On disk: the position below which all is finished or pending. A crash forgets only the memory.
    """

    def __init__(
        self,
        journal: SqliteJournal,
        name: str,
        *,
        position: int,
        settled: set[int],
        pending: bool,
        endpoint: EndpointStatus,
        clock: Clock,
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self._journal = journal
        self._clock = clock
        self._wake = asyncio.Event()
        self._position = position
        self._scanned = position
        self._settled = settled
        self._pending = pending
        self._open: dict[int, Delivery] = {}
        self._flight: set[int] = set()
        self._settling = asyncio.Lock()
        self._settlements: list[_Settlement] = []
        self._claiming = asyncio.Lock()
        self._replays_turn = False

    def wake(self) -> None:
        """There may be something to claim."""
        self._wake.set()

    def first_in_flight(self) -> int | None:
        """The lowest position that is out for delivery."""
        return min(self._flight, default=None)

    def in_flight(self) -> frozenset[int]:
        """The positions that are out for delivery."""
        return frozenset(self._flight)

    @property
    def reached(self) -> int:
        """The position up to which everything is finished or pending."""
        return self._position

    async def pass_over(self, position: int) -> None:
        """Goes on behind this position, forward or back: what lies between is somebody else's to send."""

        def work(db: sqlite3.Connection) -> set[int]:
            db.execute("UPDATE sink SET position = ?1 WHERE name = ?2 AND position <> ?1", (position, self.name))
            return _settled_above(db, self.name, position)

        self._settled = await self._journal.run(work, write=True)
        self._position = self._scanned = position
        self._open.clear()

    async def reload(self) -> None:
        """Reads the position again after it was moved by expiry; what is in flight stays."""

        def work(db: sqlite3.Connection) -> tuple[int, set[int]]:
            position = db.execute("SELECT position FROM sink WHERE name = ?", (self.name,)).fetchone()[0]
            return position, _settled_above(db, self.name, position)

        self._position, self._settled = await self._journal.run(work, write=False)
        self._scanned = max(self._scanned, self._position)
        self._open = {at: delivery for at, delivery in self._open.items() if at > self._position}
        self.wake()

    async def resume(self, position: Position) -> bool:
        """Takes over what an atomic sink's far side already holds; see the contract."""
        if position.journal_id != self._journal.id:
            return False
        if position.position <= self._position:
            return True
        await self._journal.refresh()

        def work(db: sqlite3.Connection) -> set[int]:
            if position.position > self._journal.end(db):
                self._journal.number_above(db, position.position)
            db.execute("UPDATE sink SET position = ? WHERE name = ?", (position.position, self.name))
            db.execute(
                "DELETE FROM pending WHERE sink = ? AND position <= ? AND cause = ''", (self.name, position.position)
            )
            return _settled_above(db, self.name, position.position)

        self._settled = await self._journal.run(work, write=True)
        self._position = position.position
        self._scanned = max(self._scanned, self._position)
        self._open = {at: delivery for at, delivery in self._open.items() if at > self._position}
        return True

    async def claim(self, limit: int, *, in_order: bool, wait: bool = True) -> Claim:
        """Waits for work, then hands out up to `limit` deliveries, oldest first; see the contract."""
        if self._at_hand(limit) < limit:
            await self._journal.caught_up(patient=not wait)
        while True:
            self._wake.clear()
            self._journal.require_held()
            async with self._claiming:
                found, next_due = await self._claim_due(limit, replays=self._replays_turn)
                upto = None
                if not found:
                    found = await self._claim_new(limit, in_order=in_order)
                    upto = found[-1].position if in_order and found else None
                if not found and not self._replays_turn:
                    found, next_due = await self._claim_due(limit, replays=True)
                self._replays_turn = not self._replays_turn
                if found or not wait:
                    self._flight.update(delivery.position for delivery in found)
                    return Claim(deliveries=found, upto=upto)
            await self._wait_until(next_due)

    def _at_hand(self, limit: int) -> int:
        """How many events can be handed out without a look at the file."""
        return len(self._open) - len(self._flight) + len(self._journal.tail_after(self._scanned, limit))

    async def _wait_until(self, due: Instant | None) -> None:
        seconds = None if due is None else max(0.0, (due - self._clock.now()) / SECOND)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _claim_due(self, limit: int, *, replays: bool) -> tuple[list[Delivery], Instant | None]:
        """Pending deliveries whose time has come and that are the oldest unfinished of their incident."""
        if not self._pending:
            return [], None
        now = self._clock.now()
        flight = set(self._flight)
        # By itself, so that it is found by its own index however many replays wait.
        chosen = "" if replays else "AND p.cause <> 'replay' "

        def work(db: sqlite3.Connection) -> tuple[list[Delivery], Instant | None]:
            rows = db.execute(
                f"SELECT {_EVENT_COLUMNS}, p.attempts, p.position, p.cause, p.body FROM pending p "  # noqa: S608
                "LEFT JOIN event e ON e.position = p.position LEFT JOIN source s ON s.id = e.source "
                f"WHERE p.sink = ? AND p.due <= ? {chosen}AND (p.body IS NOT NULL OR e.position IS NOT NULL) "
                "AND NOT EXISTS (SELECT 1 FROM pending o WHERE o.sink = p.sink AND o.source = p.source "
                "AND o.uuid = p.uuid AND (o.cause = 'replay') = (p.cause = 'replay') AND o.position < p.position) "
                "ORDER BY p.position LIMIT ?",
                (self.name, now, limit + len(flight)),
            ).fetchall()
            found = [_pending_delivery(row) for row in rows if row[11] not in flight][:limit]
            next_due = None
            if not found:
                next_due = db.execute(
                    "SELECT min(due) FROM pending WHERE sink = ? AND due > ?", (self.name, now)
                ).fetchone()[0]
            return found, next_due

        return await self._journal.run(work, write=False)

    async def _claim_new(self, limit: int, *, in_order: bool) -> list[Delivery]:
        waiting = [d for at, d in self._open.items() if at not in self._flight]
        if waiting and self._pending and not in_order:
            waiting = await self._not_behind_pending(waiting)
        if len(waiting) < limit:
            waiting += await self._scan(limit - len(waiting), park_behind_pending=not in_order)
        if in_order:
            return waiting[:limit]
        return self._one_an_incident(waiting, limit)

    async def _not_behind_pending(self, waiting: list[Delivery]) -> list[Delivery]:
        """An older version of their incident may have become pending since they were read: then they do as well."""
        behind = await self._journal.run(lambda db: _behind_pending(db, self.name, waiting), write=True)
        for position in behind:
            del self._open[position]
        return [delivery for delivery in waiting if delivery.position not in behind]

    async def _scan(self, limit: int, *, park_behind_pending: bool) -> list[Delivery]:
        """Reads on in the journal. What stands behind a pending version of its incident becomes pending too."""
        settled = self._settled
        if not self._pending and (at_hand := self._journal.tail_after(self._scanned, limit)):
            self._scanned = at_hand[-1].position
            found = [delivery for delivery in at_hand if delivery.position not in settled]
            self._open.update((delivery.position, delivery) for delivery in found)
            return found

        def work(db: sqlite3.Connection) -> tuple[list[Delivery], int]:
            rows = db.execute(
                f"SELECT {_EVENT_COLUMNS}, 0 FROM event e JOIN source s ON s.id = e.source "  # noqa: S608
                "WHERE e.position > ? ORDER BY e.position LIMIT ?",
                (self._scanned, limit),
            ).fetchall()
            last = rows[-1][0] if rows else self._scanned
            found = [_delivery(row) for row in rows if row[0] not in settled]
            if park_behind_pending and self._pending and found:
                behind = _behind_pending(db, self.name, found)
                found = [d for d in found if d.position not in behind]
            return found, last

        found, self._scanned = await self._journal.run(work, write=park_behind_pending and self._pending)
        self._open.update((delivery.position, delivery) for delivery in found)
        return found

    def _one_an_incident(self, waiting: Iterable[Delivery], limit: int) -> list[Delivery]:
        busy = {(d.source, d.uuid) for at, d in self._open.items() if at in self._flight}
        chosen: list[Delivery] = []
        for delivery in waiting:
            key = (delivery.source, delivery.uuid)
            if key not in busy:
                busy.add(key)
                chosen.append(delivery)
                if len(chosen) == limit:
                    break
        return chosen

    async def later_versions(self, deliveries: Sequence[Delivery]) -> dict[int, list[Delivery]]:
        """Versions of the same incidents that wait behind these, by position; see the contract."""
        asked = {(one.source, one.uuid): one.position for one in deliveries}
        waiting = [one for at, one in self._open.items() if at not in self._flight and (one.source, one.uuid) in asked]
        if self._pending:
            uuids = msgspec.json.encode([one.uuid for one in deliveries]).decode()
            rows = await self._journal.run(lambda db: _pending_of(db, self.name, uuids), write=False)
            waiting += [one for one in map(_pending_delivery, rows) if one.position not in self._flight]
        found: dict[int, list[Delivery]] = {}
        for one in sorted(waiting, key=attrgetter("position")):
            before = asked.get((one.source, one.uuid))
            if before is not None and one.position > before:
                found.setdefault(before, []).append(one)
        return found

    async def settle(
        self, outcomes: Sequence[Outcome], endpoint: EndpointStatus | None = None, *, durable: bool = True
    ) -> None:
        """Records what became of claimed deliveries, in one transaction. Raises JournalUnavailable.

        What is to be recorded while another record is under way goes into one transaction after that.
        """
        settlement = _Settlement(outcomes, endpoint, durable)
        self._settlements.append(settlement)
        async with self._settling:
            if settlement.done.done():
                settlement.done.result()
                return
            together, self._settlements = self._settlements, []
            try:
                await self._settle(
                    [outcome for one in together for outcome in one.outcomes],
                    next((one.endpoint for one in reversed(together) if one.endpoint is not None), None),
                    durable=any(one.durable for one in together),
                )
            except BaseException as exc:
                told = exc if isinstance(exc, Exception) else JournalUnavailable("the record was cut short")
                for one in together:
                    one.done.set_exception(told)
                    one.done.exception()  # whoever has gone does not ask
                raise
            for one in together:
                one.done.set_result(None)
        self.wake()

    async def _settle(self, outcomes: Sequence[Outcome], endpoint: EndpointStatus | None, *, durable: bool) -> None:
        ended = {at for outcome in outcomes if outcome.kind != "held" for at in outcome.positions}
        first_open = next((at for at in self._open if at not in ended), None)
        position = self._scanned if first_open is None else first_open - 1
        recorded = [o for o in outcomes if o.kind in {"retry", "dead"} or self._pending]
        maybe = self._pending
        now = self._clock.now()

        def work(db: sqlite3.Connection) -> bool:
            for outcome in recorded:
                for at in outcome.positions:
                    _settle_one(db, self.name, outcome, at, now)
            encoded = msgspec.json.encode(endpoint) if endpoint is not None else None
            db.execute(
                "UPDATE sink SET position = max(position, ?), endpoint = coalesce(?, endpoint) WHERE name = ?",
                (position, encoded, self.name),
            )
            return (maybe or bool(recorded)) and _has_pending(db, self.name)

        self._pending = await self._journal.run(work, write=True, durable=durable or bool(recorded))
        if endpoint is not None:
            self.endpoint = endpoint
        self._position = max(self._position, position)
        self._settled = {at for at in self._settled if at > self._position}
        for outcome in outcomes:
            self._flight.difference_update(outcome.positions)
        for at in ended:
            self._open.pop(at, None)

    async def backlog(self) -> Backlog:
        """What waits, in flight included."""
        await self._journal.caught_up(patient=False)
        return await self._journal.run(lambda db: self._journal.backlog(db, self.name, self._position), write=False)

    async def release(self) -> None:
        """Nothing is in flight any more, and nothing will be."""
        self._journal.released()

    async def redrive(self, ids: Collection[str] | None, *, superseded: bool = False) -> Redriven:
        """Lets dead letters wait again; see the contract."""
        await self._journal.recall()
        async with self._claiming, self._settling:
            now = self._clock.now()
            unsent = {(d.source, d.uuid, d.sequence) for at, d in self._open.items() if at not in self._flight}
            flight = set(self._flight)

            def work(db: sqlite3.Connection) -> Redriven:
                letters = _letters(db, "sink", self.name, ids)
                older = set() if superseded else self._older_than_sent(db, letters, unsent, flight)
                for letter in letters:
                    if letter.id not in older:
                        _await_again(db, letter, now)
                return Redriven(events=len(letters) - len(older), older=tuple(sorted(older)))

            done = await self._journal.run(work, write=True)
            self._pending = self._pending or bool(done.events)
        self.wake()
        return done

    def _older_than_sent(
        self,
        db: sqlite3.Connection,
        letters: Sequence[DeadLetter],
        unsent: Collection[tuple[str, str, int]],
        flight: Collection[int],
    ) -> set[str]:
        """The ids of letters that a newer version of their incident has overtaken.

        Every version has a number, so one that is newer and neither waits nor is dead was sent (or passed by a rule of
        the sink). `unsent` are versions that were read and wait.
        """
        behind: dict[tuple[int, str], list[tuple[int, str]]] = {}
        newest: dict[tuple[int, str], int] = {}
        for letter in letters:
            delivery = letter.event
            key = (_source_of(db, delivery), delivery.uuid)
            last = self._journal.newest_sequence(db, *key)
            if last > delivery.sequence:
                behind.setdefault(key, []).append((delivery.sequence, letter.id))
                newest[key] = last
        if not behind:
            return set()
        sink = self.name
        waiting: dict[tuple[int, str], set[int]] = {key: set() for key in behind}
        for source, uuid, sequence in db.execute(
            "SELECT source, uuid, sequence FROM event WHERE position > ?", (self._scanned,)
        ):
            waiting.get((source, uuid), set()).add(sequence)
        for _name, uuid, sequence in unsent:
            for key in behind:
                if key[1] == uuid:
                    waiting[key].add(sequence)
        for key, numbers in waiting.items():
            numbers.update(
                sequence
                for position, sequence in db.execute(
                    "SELECT p.position, e.sequence FROM pending p JOIN event e ON e.position = p.position "
                    "WHERE p.sink = ? AND p.source = ? AND p.uuid = ? AND p.cause <> 'replay'",
                    (sink, *key),
                )
                if position not in flight
            )
        for letter in _letters(db, "sink", sink, None):
            delivery = letter.event
            waiting.get((_source_of(db, delivery), delivery.uuid), set()).add(delivery.sequence)
        return {
            id_
            for key, versions in behind.items()
            for sequence, id_ in versions
            if not set(range(sequence + 1, newest[key] + 1)) <= waiting[key]
        }

    async def replay(self, since: Instant, until: Instant, uuid: str | None = None) -> int:
        """Sends again what was committed in that time, as far as it is still here; see the contract."""
        await self._journal.recall()
        async with self._claiming, self._settling:
            now = self._clock.now()
            waiting = msgspec.json.encode(list(self._open)).decode()
            finished = self._scanned

            def work(db: sqlite3.Connection) -> int:
                self._journal.require_room(db)
                return db.execute(
                    "INSERT INTO pending (sink, position, source, uuid, attempts, due, reason, cause, since) "
                    "SELECT ?1, e.position, e.source, e.uuid, 0, 0, 'replay', 'replay', ?2 FROM event e "
                    "WHERE e.position > ?3 AND e.position <= ?4 AND (?5 IS NULL OR e.uuid = ?5) "
                    "AND e.position NOT IN (SELECT value FROM json_each(?6)) "
                    "AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.sink = ?1 AND p.position = e.position) "
                    "AND NOT EXISTS (SELECT 1 FROM dead d WHERE d.component = 'sink' AND d.name = ?1 "
                    "AND d.position = e.position)",
                    (
                        self.name,
                        now,
                        _last_committed_before(db, since),
                        min(finished, _last_committed_before(db, until)),
                        uuid,
                        waiting,
                    ),
                ).rowcount

            events = await self._journal.run(work, write=True)
            self._pending = self._pending or bool(events)
        self.wake()
        return events

    async def buried(self) -> Buried:
        """The dead letters of this sink."""
        return await self._journal.run(lambda db: _buried(db, "sink", self.name), write=False)

    async def dead_letters(self) -> AsyncIterator[DeadLetter]:
        """Oldest first."""
        rows = await self._journal.run(lambda db: _dead_letters(db, "sink", self.name), write=False)
        for row in rows:
            yield row


def _primary_code(exc: sqlite3.Error) -> int | None:
    """The code without its details; None for what Python found wrong."""
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _abandon(db: sqlite3.Connection | None) -> None:
    """Closes without writing: an interrupted connection leaves its log as it is, for whoever opens the file next."""
    if db is not None:
        db.interrupt()
        db.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of the file that the path names now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _refusal(path: Path) -> OSError | None:
    """What the volume says to a small durable write beside the journal: SQLite only says that there was an error."""
    probe = path.with_name(f"{path.name}.probe")
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(_PROBE_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as exc:
        return exc
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _lock_holder(path: Path) -> str:
    """Who holds SQLite's own lock. Never asked while it is ours: closing the file here would let go of it."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, *_SQLITE_LOCK_BYTES, 0)
    try:
        with path.open("rb+") as file:
            kind, _whence, _start, _length, process = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
        if kind == fcntl.F_UNLCK or process <= 0:
            return "another process"
        return f"process {process} ({Path(f'/proc/{process}/comm').read_text().strip()})"
    except OSError:
        return "another process"


def _words(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Any:
    """Commits what is done within, or nothing of it."""
    if db.in_transaction:  # a roll-back failed as well
        db.execute("ROLLBACK")
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _used_bytes(db: sqlite3.Connection) -> int:
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _last_position(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
    return int(row[0]) if row else 0


def _number_above(db: sqlite3.Connection, position: int) -> None:
    if db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'event'", (position,)).rowcount == 0:
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('event', ?)", (position,))


def _known(db: sqlite3.Connection, source: int, uuids_json: str) -> dict[str, Known]:
    rows = db.execute(
        f"SELECT {_INCIDENT_COLUMNS} FROM json_each(?) j "  # noqa: S608  # only our names
        "CROSS JOIN incident i ON i.source = ? AND i.uuid = j.value",
        (uuids_json, source),
    ).fetchall()
    return {row[0]: _known_row(row) for row in rows}


def _known_created(source: int, after: tuple[Instant, str], end: Instant, db: sqlite3.Connection) -> list[Known]:
    """The next rows behind a time and uuid; no uuid is empty, so a bare time includes itself."""
    rows = db.execute(
        f"SELECT {_INCIDENT_COLUMNS} FROM incident i WHERE i.source = ? "  # noqa: S608  # only our names
        "AND (i.created, i.uuid) > (?, ?) AND i.created < ? ORDER BY i.created, i.uuid LIMIT ?",
        (source, *after, end, _KNOWN_AT_ONCE),
    ).fetchall()
    return [_known_row(row) for row in rows]


def _known_row(row: Sequence[Any]) -> Known:
    return Known(
        uuid=row[0],
        created=row[1],
        updated=row[2],
        newest=row[3],
        sequence=row[4],
        digest=row[5],
        digest_version=row[6],
        fields=row[7],
        gone=bool(row[8]),
    )


def _incident_row(source: int, row: Known) -> tuple[Any, ...]:
    return (
        source,
        row.uuid,
        row.created,
        row.updated,
        row.newest,
        row.sequence,
        row.digest,
        row.digest_version,
        row.fields,
        row.gone,
    )


def _event_row(source: int, event: Event, now: Instant, body: bytes) -> tuple[Any, ...]:
    return (
        event.id,
        event.kind,
        source,
        event.origin,
        event.uuid,
        event.sequence,
        event.updated,
        event.severity,
        now,
        body,
    )


def _delivery(row: Sequence[Any]) -> Delivery:
    return Delivery(
        position=row[0],
        id=row[1],
        kind=row[2],
        source=row[3],
        origin=row[4],
        uuid=row[5],
        sequence=row[6],
        updated=row[7],
        severity=row[8],
        body=row[9],
        attempts=row[10],
    )


def _pending_delivery(row: Sequence[Any]) -> Delivery:
    """What a row of `pending` stands for: an event of the journal, or the one that a dead letter kept."""
    *event, attempts, _position, cause, kept = row
    if kept is None:
        delivery = _delivery((*event, attempts))
    else:
        delivery = msgspec.structs.replace(msgspec.msgpack.decode(kept, type=Delivery), attempts=attempts)
    if cause == "replay":
        return msgspec.structs.replace(delivery, origin="replay", body=native.replayed(delivery.body))
    return delivery


def _settled_above(db: sqlite3.Connection, sink: str, position: int) -> set[int]:
    """Positions above the cursor that must not be claimed from the journal again."""
    rows = db.execute(
        "SELECT position FROM pending WHERE sink = ?1 AND position > ?2 UNION "
        "SELECT position FROM dead WHERE component = 'sink' AND name = ?1 AND position > ?2 UNION "
        "SELECT position FROM done WHERE sink = ?1 AND position > ?2",
        (sink, position),
    )
    return {row[0] for row in rows}


def _pending_of(db: sqlite3.Connection, sink: str, uuids_json: str) -> list[Any]:
    """What is pending of these incidents, of whichever source, but for what is sent again."""
    return db.execute(
        f"SELECT {_EVENT_COLUMNS}, p.attempts, p.position, p.cause, p.body FROM pending p "  # noqa: S608
        "LEFT JOIN event e ON e.position = p.position LEFT JOIN source s ON s.id = e.source WHERE p.sink = ? "
        "AND p.uuid IN (SELECT value FROM json_each(?)) AND p.cause <> 'replay' "
        "AND (p.body IS NOT NULL OR e.position IS NOT NULL)",
        (sink, uuids_json),
    ).fetchall()


def _has_pending(db: sqlite3.Connection, sink: str) -> bool:
    return db.execute("SELECT 1 FROM pending WHERE sink = ? LIMIT 1", (sink,)).fetchone() is not None


def _behind_pending(db: sqlite3.Connection, sink: str, found: Collection[Delivery]) -> set[int]:
    behind = set()
    for delivery in found:
        blocked = db.execute(
            "SELECT p.source FROM event e JOIN pending p ON p.sink = ? AND p.source = e.source AND p.uuid = e.uuid "
            "AND p.position < e.position WHERE e.position = ? AND p.cause <> 'replay' LIMIT 1",
            (sink, delivery.position),
        ).fetchone()
        if blocked:
            db.execute(
                "INSERT INTO pending (sink, position, source, uuid, attempts, due, reason) "
                "VALUES (?, ?, ?, ?, 0, 0, 'behind') ON CONFLICT DO NOTHING",
                (sink, delivery.position, blocked[0], delivery.uuid),
            )
            behind.add(delivery.position)
    return behind


def _settle_one(db: sqlite3.Connection, sink: str, outcome: Outcome, at: int, now: Instant) -> None:
    if outcome.kind == "held":
        return
    if outcome.kind == "retry":
        values = (sink, outcome.attempts, outcome.due, outcome.reason, at)
        again = db.execute(
            "UPDATE pending SET attempts = coalesce(?2, attempts + 1), due = ?3, reason = ?4 "
            "WHERE sink = ?1 AND position = ?5",
            values,
        )
        if not again.rowcount:
            db.execute(
                "INSERT INTO pending (sink, position, source, uuid, attempts, due, reason) "
                "SELECT ?1, position, source, uuid, coalesce(?2, 1), ?3, ?4 FROM event WHERE position = ?5",
                values,
            )
        return
    if outcome.kind == "dead":
        row = db.execute(
            f"SELECT {_EVENT_COLUMNS}, coalesce(p.attempts, 0) + 1, a.at, p.cause, p.body "  # noqa: S608
            "FROM (SELECT ? AS sink, ? AS at) a LEFT JOIN pending p ON p.sink = a.sink AND p.position = a.at "
            "LEFT JOIN event e ON e.position = a.at LEFT JOIN source s ON s.id = e.source",
            (sink, at),
        ).fetchone()
        letter = _pending_delivery(row)
        db.execute(
            "INSERT INTO dead VALUES (?, 'sink', ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET reason = excluded.reason, "
            "attempts = excluded.attempts, committed = excluded.committed, body = excluded.body",
            (letter.id, sink, at, outcome.reason, letter.attempts, now, msgspec.msgpack.encode(letter)),
        )
    db.execute("DELETE FROM pending WHERE sink = ? AND position = ?", (sink, at))


def _buried(db: sqlite3.Connection, component: str, name: str) -> Buried:
    letters, since = db.execute(
        "SELECT count(*), min(committed) FROM dead WHERE component = ? AND name = ?", (component, name)
    ).fetchone()
    return Buried(letters=letters, since=since)


def _count_incidents(db: sqlite3.Connection, source: int) -> int:
    row: tuple[int] = db.execute("SELECT count(*) FROM incident WHERE source = ?", (source,)).fetchone()
    return row[0]


def _dead_letters(db: sqlite3.Connection, component: str, name: str) -> list[DeadLetter]:
    rows = db.execute(
        f"SELECT {_LETTER_COLUMNS} FROM dead "  # noqa: S608  # only our names
        "WHERE component = ? AND name = ? ORDER BY committed, position",
        (component, name),
    )
    return [_letter(row) for row in rows]


def _letter(row: Sequence[Any]) -> DeadLetter:
    return DeadLetter(
        id=row[0],
        component=row[1],
        name=row[2],
        position=row[3],
        reason=row[4],
        attempts=row[5],
        committed=row[6],
        body=row[7],
    )


def _letters(db: sqlite3.Connection, component: Component, name: str, ids: Collection[str] | None) -> list[DeadLetter]:
    """Those with these ids, in the order of the journal; all of them without."""
    wanted = None if ids is None else msgspec.json.encode(list(ids)).decode()
    rows = db.execute(
        f"SELECT {_LETTER_COLUMNS} FROM dead WHERE component = ?1 AND name = ?2 "  # noqa: S608  # only our names
        "AND (?3 IS NULL OR id IN (SELECT value FROM json_each(?3))) ORDER BY position",
        (component, name, wanted),
    )
    return [_letter(row) for row in rows]


def _unbury(db: sqlite3.Connection, letter: DeadLetter) -> None:
    """A dead letter no more. Above the cursor it is remembered, or a restart would find its event untouched."""
    db.execute(
        "DELETE FROM dead WHERE component = ? AND name = ? AND id = ?", (letter.component, letter.name, letter.id)
    )
    if letter.component == "sink":
        db.execute(
            "INSERT INTO done SELECT name, ?2 FROM sink WHERE name = ?1 AND position < ?2 ON CONFLICT DO NOTHING",
            (letter.name, letter.position),
        )


def _await_again(db: sqlite3.Connection, letter: DeadLetter, now: Instant) -> None:
    """From dead to pending, with the event that the letter kept: the journal may have lost its own by now."""
    delivery = letter.event
    db.execute(
        "INSERT INTO pending (sink, position, source, uuid, attempts, due, reason, cause, since, body) "
        "VALUES (?, ?, ?, ?, 0, 0, 'redriven', 'redrive', ?, ?) ON CONFLICT DO UPDATE SET cause = excluded.cause, "
        "since = excluded.since, body = excluded.body",
        (letter.name, letter.position, _source_of(db, delivery), delivery.uuid, now, letter.body),
    )
    _unbury(db, letter)


def _source_of(db: sqlite3.Connection, delivery: Delivery) -> int:
    """The source whose label this event carries: it may have another one by now, and another source this one."""
    row = db.execute(
        "SELECT source FROM renamed WHERE name = ? AND upto >= ? ORDER BY upto LIMIT 1",
        (delivery.source, delivery.position),
    ).fetchone()
    row = row or db.execute("SELECT id FROM source WHERE name = ?", (delivery.source,)).fetchone()
    return int(row[0]) if row else 0


def _require_names(db: sqlite3.Connection, table: Component, old: str, new: str) -> None:
    """Raises ConfigError unless there is something to rename, and nothing that it would hide."""
    names = [row[0] for row in db.execute(f"SELECT name FROM {table} ORDER BY name")]  # noqa: S608  # only our names
    if old not in names:
        raise ConfigError(f"the journal knows no {table} {old}: use one of {', '.join(names) or 'none'}")
    if new in names:
        raise ConfigError(
            f"the journal already holds a {table} {new} with what it did under that name: restore a backup of before, "
            f"or choose another name than {new}"
        )


def _rename_dead(db: sqlite3.Connection, component: Component, old: str, new: str) -> None:
    """Dead letters of the new name, of a sink that was removed long ago, stay beside them."""
    db.execute("UPDATE OR IGNORE dead SET name = ?3 WHERE component = ?1 AND name = ?2", (component, old, new))


def _forget(db: sqlite3.Connection, held: Collection[str], now: Instant) -> list[str]:
    """Notes when a sink left the configuration, and lets go of it once its `keep` has passed since.

    Its dead letters stay until they are discarded.
    """
    forgotten = []
    for name, keep, removed in db.execute("SELECT name, keep_seconds, removed FROM sink").fetchall():
        if name in held:
            continue
        if removed is None:
            db.execute("UPDATE sink SET removed = ? WHERE name = ?", (now, name))
        elif removed + int(keep * SECOND) <= now:
            db.execute("DELETE FROM sink WHERE name = ?", (name,))
            for table in ("pending", "expired", "done"):
                db.execute(f"DELETE FROM {table} WHERE sink = ?", (name,))  # noqa: S608  # only our names
            forgotten.append(name)
    return forgotten


def _last_committed_before(db: sqlite3.Connection, before: Instant) -> int:
    """The last position of the leading run of events committed before that instant; 0 when there is none.

    Positions ascend with time, so a bisection over the rowid finds it in a few look-ups.
    """
    low, high = db.execute(  # each by itself is a look-up; both in one SELECT read every event
        "SELECT (SELECT coalesce(min(position), 0) - 1 FROM event), (SELECT coalesce(max(position), 0) FROM event)"
    ).fetchone()
    while low < high:
        middle = (low + high + 1) // 2
        row = db.execute("SELECT committed FROM event WHERE position <= ? ORDER BY position DESC LIMIT 1", (middle,))
        found = row.fetchone()
        if found is None or found[0] < before:
            low = middle
        else:
            high = middle - 1
    return max(0, int(low))


def _expire_up_to(db: sqlite3.Connection, sink: str, position: int, last: int) -> Counter[str]:
    """Moves a sink's cursor past what it did not take in time; returns how many that were per severity."""
    rows = db.execute(
        "SELECT e.severity, count(*), min(e.committed), max(e.committed) FROM event e WHERE e.position <= ?2 AND "
        "(e.position > ?3 AND NOT EXISTS (SELECT 1 FROM dead d WHERE d.component = 'sink' AND d.name = ?1 "
        "AND d.position = e.position) AND NOT EXISTS (SELECT 1 FROM done d WHERE d.sink = ?1 "
        "AND d.position = e.position) OR EXISTS (SELECT 1 FROM pending p WHERE p.sink = ?1 "
        "AND p.position = e.position AND p.cause = '')) GROUP BY e.severity",
        (sink, last, position),
    ).fetchall()
    for severity, events, first, final in rows:
        db.execute(
            "INSERT INTO expired VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET events = events + excluded.events, "
            "last = excluded.last",
            (sink, severity, events, first, final),
        )
    if rows:
        db.execute("DELETE FROM pending WHERE sink = ? AND position <= ? AND cause = ''", (sink, last))
        db.execute("UPDATE sink SET position = max(position, ?) WHERE name = ?", (last, sink))
    return Counter({severity: events for severity, events, _first, _final in rows})


def _expire_commanded(db: sqlite3.Connection, sink: str, before: Instant, flight: Collection[int]) -> Counter[str]:
    """Lets go of what was redriven or replayed and not taken in time either, which began with the command."""
    rows = db.execute(
        "SELECT p.position, e.severity, p.body FROM pending p LEFT JOIN event e ON e.position = p.position "
        "WHERE p.sink = ? AND p.cause <> '' AND p.since < ?",
        (sink, before),
    ).fetchall()
    counted: Counter[str] = Counter()
    for position, severity, kept in rows:
        if position in flight:
            continue
        raw = severity if kept is None else msgspec.msgpack.decode(kept, type=Delivery).severity
        counted[raw] += 1
        db.execute("DELETE FROM pending WHERE sink = ? AND position = ?", (sink, position))
    for severity, events in counted.items():
        db.execute(
            "INSERT INTO expired VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET events = events + excluded.events, "
            "last = max(last, excluded.last)",
            (sink, severity, events, before, before),
        )
    return counted


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
