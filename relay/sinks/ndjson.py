"""Sinks that write one event a line: a file that never repeats one, and standard output. Nothing is rotated here."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from relay.errors import ConfigError, Gone, Unavailable
from relay.formats import native
from relay.sinks import Delivery, Position
from relay.sinks.worker import Worker

TAIL_LINES: Final = 4096
"""How many of the last ids are remembered: several times what can be in flight."""

_CHUNK_BYTES: Final = 1 << 20
_GIB: Final = 1 << 30
Result = TypeVar("Result")


class StdoutSink:
    """Writes to an open file descriptor, acknowledges when the kernel has it all, and may repeat after a crash."""

    max_batch = 1000
    atomic = False

    def __init__(self, descriptor: int = 1, *, omit: Collection[str] = ()) -> None:
        self._descriptor = descriptor
        self._omit = frozenset(omit)
        self._worker = Worker("sink stdout")

    async def open(self) -> Position | None:
        """Nothing to connect to. Raises Gone when the descriptor is closed."""
        await self._worker.run(self._check)
        return None

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        """Returns when all lines are handed over. Raises Gone when nobody reads, Unavailable on other trouble."""
        lines = b"".join(_line(delivery, self._omit) for delivery in batch)
        await self._worker.run(partial(self._write, lines))

    async def probe(self) -> str:
        """Looks whether the descriptor is open."""
        await self._worker.run(self._check)
        return "stdout: open; nothing was written"

    async def close(self, timeout_seconds: float) -> None:
        """Waits that long for a line in hand; the descriptor stays open, it is not ours."""
        await self._worker.finish(lambda: None, timeout_seconds)

    def _check(self) -> None:
        try:
            os.fstat(self._descriptor)
        except OSError as exc:
            raise Gone("stdout is closed", reason="closed") from exc

    def _write(self, lines: bytes) -> None:
        try:
            _write_all(self._descriptor, lines)
        except OSError as exc:
            if exc.errno in {errno.EPIPE, errno.EBADF}:
                raise Gone("stdout is closed: nobody reads it any more", reason="closed") from exc
            raise Unavailable(f"stdout: {os.strerror(exc.errno or 0).lower()}", reason="io") from exc


class FileSink:
    """Appends to a file, acknowledges after fsync.

    A line is whole or absent: a torn one is cut when the file is opened, and an event that the file's tail already
    holds is not written again, replays excepted. A file that was moved away (logrotate) is followed by a new one.
    """

    max_batch = 1000
    atomic = False

    def __init__(self, path: Path, *, omit: Collection[str] = ()) -> None:
        self._path = path
        self._omit = frozenset(omit)
        self._worker = Worker(f"sink {path.name}")
        self._descriptor: int | None = None
        self._recent: dict[str, None] = {}

    async def open(self) -> Position | None:
        """Creates the file or reads its tail. Raises Unavailable; ConfigError when the path is no regular file."""
        await self._worker.run(partial(self._guarded, self._reopen))
        return None

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        """Returns when the lines are on the disk. Raises Unavailable; what was written by then is not repeated."""
        await self._worker.run(partial(self._guarded, partial(self._append, batch)))

    async def probe(self) -> str:
        """Looks whether the file, or the folder in which it would be made, can be written."""
        return await self._worker.run(partial(self._guarded, self._look))

    async def close(self, timeout_seconds: float) -> None:
        """Waits that long for a write in hand."""
        await self._worker.finish(self._let_go, timeout_seconds)

    def _guarded(self, job: Callable[[], Result]) -> Result:
        """After a failure the state of the file is unknown: it is let go, and the next batch opens it afresh."""
        try:
            return job()
        except OSError as exc:
            self._let_go()
            full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
            text = os.strerror(exc.errno or 0).lower()
            raise Unavailable(f"file {self._path}: {text}", reason="disk_full" if full else "io") from exc

    def _append(self, batch: Sequence[Delivery]) -> None:
        descriptor = self._current()
        fresh = [delivery for delivery in batch if delivery.id not in self._recent or delivery.origin == "replay"]
        before = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, b"".join(_line(delivery, self._omit) for delivery in fresh))
            os.fsync(descriptor)
        except OSError:
            # After a failed fsync the page cache may show lines that no disk has.
            with suppress(OSError):
                os.ftruncate(descriptor, before)
            raise
        self._remember(delivery.id for delivery in fresh)

    def _current(self) -> int:
        """The descriptor of the file that the path names now."""
        if self._descriptor is not None and _names(self._path, self._descriptor):
            return self._descriptor
        return self._reopen()

    def _reopen(self) -> int:
        self._let_go()
        if self._path.exists() and not self._path.is_file():
            raise ConfigError(f"file {self._path}: not a regular file; for a pipe or a terminal use `type: stdout`")
        created = not self._path.exists()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = descriptor = os.open(self._path, flags, 0o640)
        if created:
            _sync_folder(self._path.parent)
        tail = _cut_torn_line(descriptor)
        ids = (native.id_of(line) for line in _lines_from(self._path, tail))
        self._remember(id_ for id_ in ids if id_ is not None)
        return descriptor

    def _remember(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            self._recent[id_] = None
        for id_ in list(self._recent)[:-TAIL_LINES]:
            del self._recent[id_]

    def _look(self) -> str:
        target = self._path if self._path.exists() else self._path.parent
        if not os.access(target, os.W_OK):
            raise Unavailable(f"file {self._path}: {target} cannot be written by this user", reason="io")
        free = shutil.disk_usage(target).free / _GIB
        return f"file: {self._path} can be written, {free:.1f} GiB free"

    def _let_go(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def _line(delivery: Delivery, omit: Collection[str]) -> bytes:
    return native.omit(delivery.body, omit) + b"\n"


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    """A new file outlives a power cut only when its folder is on the disk as well."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return stat.S_ISREG(named.st_mode) and (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


def _cut_torn_line(descriptor: int) -> int:
    """Cuts what follows the last line end; returns where the last `TAIL_LINES` lines begin."""
    ends = list(islice(_line_ends(descriptor), TAIL_LINES + 1))
    last = ends[0] if ends else 0
    if last < os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, last)
        os.fsync(descriptor)
    return ends[-1] if len(ends) > TAIL_LINES else 0


def _line_ends(descriptor: int) -> Iterator[int]:
    """The offsets after each line end, from the end of the file to its beginning."""
    position = os.fstat(descriptor).st_size
    while position > 0:
        start = max(0, position - _CHUNK_BYTES)
        chunk = os.pread(descriptor, position - start, start)
        at = len(chunk)
        while (at := chunk.rfind(b"\n", 0, at)) >= 0:
            yield start + at + 1
        position = start


def _lines_from(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        yield from file
