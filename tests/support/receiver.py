"""A receiver of webhooks over a real socket: records what it is sent, checks nothing, and answers as it is told.

Also the table of all statuses, which every sink that speaks HTTP goes through.
"""

import asyncio
import json
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any, Final

from relay.errors import Gone, Refused, SinkError, Unavailable
from relay.sinks import Delivery, Sink

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Writes what it likes to the socket; closing is up to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer to give. `length` overrides the true one."""

    status: int = 200
    reason: str = "Reason"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None

    def bytes(self) -> bytes:
        """As it goes over the wire. Some statuses have no body, and no length either."""
        lines = [f"HTTP/1.1 {self.status} {self.reason}", *(f"{name}: {value}" for name, value in self.headers.items())]
        if self.status >= 200 and self.status not in {204, 304}:
            lines.append(f"content-length: {len(self.body) if self.length is None else self.length}")
        return "\r\n".join([*lines, "", ""]).encode() + (self.body if self.status >= 200 else b"")


FINE: Final = Told()


@dataclass(kw_only=True)
class Receiver:
    """Where it listens, what it got, and what it says to it."""

    port: int = 0
    scheme: str = "http"
    answer: Callable[[Asked], Told | Script] = lambda _asked: FINE
    greet: Script | None = None
    """Serves a connection instead, whatever is asked."""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    _open: dict[asyncio.Task[Any], asyncio.StreamWriter] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """With a secret in its path and its query."""
        return f"{self.scheme}://127.0.0.1:{self.port}/hooks/canary-of-the-path?token=canary-of-the-query"

    def says(self, *answers: Told | Script) -> None:
        """Gives these answers in turn, the last one for ever."""
        left = list(answers)
        self.answer = lambda _asked: left.pop(0) if len(left) > 1 else left[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            if self.greet is not None:
                await self.greet(reader, writer)
            while self.greet is None and not writer.is_closing():
                asked = await _read(reader)
                self.asked.append(asked)
                answer = self.answer(asked)
                if isinstance(answer, Told):
                    writer.write(answer.bytes())
                else:
                    await answer(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, asyncio.LimitOverrunError):
            pass
        finally:
            del self._open[task]
            writer.close()

    def hang_up(self) -> None:
        """Closes every connection."""
        for writer in self._open.values():
            writer.close()

    async def end(self) -> None:
        """Lets nothing be left of any connection."""
        left = dict(self._open)
        for task, writer in left.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method=method, target=target, headers=headers, body=body)


@asynccontextmanager
async def receiving(*, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver that listens on a port of its own, or on this one."""
    receiver = Receiver(scheme="https" if tls else "http")
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", port, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await receiver.end()


def unused_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


# -- answers that are none ----------------------------------------------------------------------------------------


async def stall(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Never says anything."""
    await reader.read()


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends the connection the hard way."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends the connection politely."""
    writer.close()


def truncated(status: int) -> Script:
    """Promises more than it sends."""

    async def run(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Told(status=status, body=b"<html>the start", length=1000).bytes())
        writer.close()

    return run


def dripping(status: int) -> Script:
    """A body of one byte at a time, for ever."""

    async def run(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Told(status=status, length=1 << 40).bytes())
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    return run


def endless(status: int) -> Script:
    """A body as fast as the line takes it, for ever."""

    async def run(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Told(status=status, length=1 << 40).bytes())
        while not writer.is_closing():
            writer.write(b"." * 65_536)
            await writer.drain()

    return run


def bomb(status: int, *, encoding: str = "gzip") -> Script:
    """A packed body of half a megabyte that unfolds to half a gigabyte; it was not asked for."""

    async def run(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Told(status=status, body=_packed(), headers={"content-encoding": encoding}).bytes())

    _packed()
    return run


@cache
def _packed() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(512)) + packer.flush()


def raw(text: bytes, *, repeated: bool = False, close: bool = True) -> Script:
    """These bytes, once or for ever."""

    async def run(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        while repeated and not writer.is_closing():
            writer.write(text)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return run


# -- every status -------------------------------------------------------------------------------------------------

STATUSES: Final = (100, 101, 103, 199, *range(200, 600), 600, 999)


def contracted(status: int) -> str:
    """What a status means to a sink for which any 2xx is success, as `outcome` says it; by the table of the design."""
    if 200 <= status < 300:
        return "delivered"
    if status == 410:
        return "gone"
    if status == 429:
        return "unavailable, 60 s"
    if 400 <= status < 500 and status not in {401, 403, 404, 408, 425}:
        return "refused"
    return "unavailable"


async def outcome(sink: Sink, delivery: Delivery) -> str:
    """What becomes of one delivery, in a word and, where one is asked for, a pause."""
    try:
        await sink.send([delivery], upto=delivery.position)
    except SinkError as exc:
        error = exc
    else:
        return "delivered"
    assert "canary" not in f"{error} {error.__cause__!r} {error.__context__!r}"
    if isinstance(error, Refused):
        assert list(error.positions) == [delivery.position]
        return "refused"
    if isinstance(error, Gone):
        return "gone"
    assert isinstance(error, Unavailable)
    pause = error.retry_after_seconds
    return "unavailable" if pause is None else f"unavailable, {pause:g} s"


async def outcomes_by_status(
    receiver: Receiver,
    sink: Sink,
    delivery: Delivery,
    *,
    told: Callable[[int], Told] = lambda status: Told(status=status),
    statuses: Sequence[int] = STATUSES,
) -> dict[int, str]:
    """Each status through the sink, over the socket; `told` makes the answer of one (a body, say).

    1xx is no final answer: it lasts until the sink's time is over, so give it little.
    """
    outcomes = {}
    for status in statuses:
        receiver.says(told(status))
        outcomes[status] = await outcome(sink, delivery)
    return outcomes


def table(outcomes: Mapping[int, str]) -> str:
    """A line per run of statuses with one outcome."""
    lines = []
    for word, run in groupby(sorted(outcomes), key=lambda status: (outcomes[status], status // 100)):
        statuses = list(run)
        shown = f"{statuses[0]}" if len(statuses) == 1 else f"{statuses[0]} to {statuses[-1]}"
        lines.append(f"{shown:<12} {word[0]}")
    return "\n".join(lines)
