"""Real sockets that misbehave: every failure gets its reason, nothing is leaked, and the next request works."""

import asyncio
import gzip
import json
import random
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from relay.clock import SystemClock
from relay.errors import BadAnswer, SourceError, SourceUnavailable
from relay.eset import exchange
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import Answer, EsetClient, Patience
from relay.eset.wire import DecodedPage, decode_page
from relay.transport import http_client, tls_context
from tests.support.tls import Certificates, make_certificates, server_tls

PASSWORD = "canary-password"
TOKEN = json.dumps({"access_token": "canary-access", "refresh_token": "canary-refresh", "expires_in": 3600}).encode()
PAGE = b'{"incidents":[],"nextPageToken":""}'

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Wire:
    """A server that reads each request and lets the script answer it. The login always works."""

    script: Script
    port: int = 0
    heads: int = 0
    seen: bytes = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads += 1
                self.seen = head
                if b"/oauth/token" in head:
                    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                    await reader.readexactly(length)
                    writer.write(http_answer(TOKEN))
                else:
                    await self.script(reader, writer)
                if writer.is_closing():
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def http_answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def listening(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    wire = Wire(script)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0, ssl=tls)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()


@asynccontextmanager
async def client_of(
    base_url: str, *, token_url: str = "", http: httpx.AsyncClient | None = None, patience: Patience | None = None
) -> AsyncIterator[EsetClient]:
    patience = patience or Patience(tries=1, read_seconds=5)
    clock, budget = SystemClock(), RateBudget(1_000_000)
    http = http or http_client(proxy="none")
    account = Account(
        token_url=token_url or f"{base_url}/oauth/token",
        username="api@acme.example",
        secret=lambda: PASSWORD,
        http=http,
        budget=budget,
        clock=clock,
        patience=patience,
    )
    client = EsetClient(
        source="acme", base_url=base_url, account=account, http=http, budget=budget, clock=clock, patience=patience
    )
    try:
        yield client
    finally:
        await client.close()
        await account.close()


async def ask(client: EsetClient, where: str = "") -> Answer[DecodedPage]:
    return await client.list_incidents(filter=where, order_by="", page_size=1, decode=decode_page)


async def failure(client: EsetClient) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await ask(client)
    assert "canary" not in f"{caught.value} {caught.value.hint} {caught.value.__context__!r}"
    return caught.value


async def fine(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http_answer(PAGE))


# -- what breaks on the way -------------------------------------------------------------------------------------------


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def cut_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http_answer(PAGE, length=1000))
    writer.close()


async def cut_off_chunked(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{" + b'"inc\r\n')
    writer.close()


async def no_http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 smtp.test ESMTP\r\n\r\n")


async def endless_header(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n")


async def no_gzip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http_answer(PAGE, "content-encoding: gzip"))


async def cut_off_gzip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    packed = gzip.compress(b'{"incidents":[' + b'{"uuid":"u"},' * 1000)
    writer.write(http_answer(packed[: len(packed) // 2], "content-encoding: gzip", length=len(packed)))
    writer.close()


async def no_text_in_its_reason(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 \xff\xfe\r\ncontent-length: 0\r\n\r\n")


async def bad_chunks(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n")
    writer.close()


async def stall(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def stall_in_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http_answer(PAGE, length=1000))
    await reader.read()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (reset, "reset"),
        (hang_up, "reset"),
        (cut_off, "truncated"),
        (cut_off_chunked, "truncated"),
        (no_http, "protocol"),
        (endless_header, "protocol"),
        (no_gzip, "protocol"),
        (cut_off_gzip, "truncated"),
        (no_text_in_its_reason, "protocol"),
        (bad_chunks, "protocol"),
        (stall, "timeout"),
        (stall_in_body, "timeout"),
    ],
)
async def test_broken_answers_have_their_reason_and_the_next_request_works(script: Script, reason: str) -> None:
    patience = Patience(tries=1, read_seconds=0.2)
    async with listening(script) as wire, client_of(f"http://127.0.0.1:{wire.port}", patience=patience) as client:
        error = await failure(client)
        assert (type(error), error.reason) == (SourceUnavailable, reason)
        wire.script = fine
        await ask(client)


@pytest.mark.parametrize(
    "script",
    [
        lambda packed: http_answer(packed, "content-encoding: identity"),  # packed, and not said so
        lambda packed: http_answer(packed[: len(packed) // 2], "content-encoding: gzip"),  # ends early, and is closed
        lambda packed: http_answer(packed, "content-encoding: br"),
        lambda packed: http_answer(b"", "content-encoding: gzip"),
    ],
)
async def test_wrongly_packed_pages_are_bad_answers_and_the_next_request_works(
    script: Callable[[bytes], bytes],
) -> None:
    packed = gzip.compress(b'{"incidents":[' + b'{"uuid":"u"},' * 1000)

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(script(packed))

    async with listening(serve) as wire, client_of(f"http://127.0.0.1:{wire.port}") as client:
        assert isinstance(await failure(client), BadAnswer)
        wire.script = fine
        await ask(client)


@pytest.mark.parametrize("encoding", ["br", "made-up", "identity", ""])
async def test_page_that_is_not_packed_is_read_whatever_its_encoding_claims(encoding: str) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(PAGE, f"content-encoding: {encoding}"))

    async with listening(serve) as wire, client_of(f"http://127.0.0.1:{wire.port}") as client:
        await ask(client)


async def test_mutated_heads_of_answers_end_in_our_errors() -> None:
    """A status line or a header with odd bytes is the library's to refuse, and ours to call by its name."""
    rng = random.Random(1)
    whole = http_answer(PAGE, "date: Thu, 28 May 2026 20:26:40 GMT", "request-id: q", "content-type: application/json")
    head = whole[: -len(PAGE)]
    body = b""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(body)
        writer.close()

    patience = Patience(tries=1, rounds=1, read_seconds=2, collect_seconds=1, total_seconds=3)
    outcomes = []
    async with listening(serve) as wire, client_of(f"http://127.0.0.1:{wire.port}", patience=patience) as client:
        for _ in range(400):
            mutated = bytearray(head)
            for _ in range(rng.choice((1, 2, 4))):
                at = rng.randrange(len(mutated))
                mutated[at : at + rng.randrange(2)] = rng.choice(
                    (b"\xff", b"\x00", b":", b"\r\n", b" ", b"9", b"\xc3", b"")
                )
            body = bytes(mutated) + PAGE
            try:
                await ask(client)
                outcomes.append("read")
            except SourceError as error:
                outcomes.append(error.reason)
    assert {"read", "protocol"} <= set(outcomes)


async def test_dripping_answer_ends_by_the_attempt_deadline() -> None:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(b"", length=10**6))
        for _ in range(1000):
            writer.write(b" ")
            await asyncio.sleep(0.05)

    patience = Patience(tries=1, read_seconds=5, attempt_seconds=0.3)
    async with listening(drip) as wire, client_of(f"http://127.0.0.1:{wire.port}", patience=patience) as client:
        assert (await failure(client)).reason == "timeout"


async def test_broken_body_of_a_refusal_does_not_hide_the_status() -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(b"<html>no", length=1000, status="403 Forbidden"))
        writer.close()

    async with listening(refuse) as wire, client_of(f"http://127.0.0.1:{wire.port}") as client:
        error = await failure(client)
        assert (error.reason, error.status) == ("access_denied", 403)
        assert "<html>no" in str(error)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("base_url", "reason"),
    [
        ("http://127.0.0.1:{port}", "connect"),
        ("http://no-such-host.invalid", "dns"),
        ("https://127.0.0.1:{port}", "connect"),
    ],
)
async def test_unreachable_hosts_have_their_reason(base_url: str, reason: str) -> None:
    async with client_of(base_url.format(port=unused_port())) as client:
        assert (await failure(client)).reason == reason


async def test_no_listener_behind_a_full_backlog_times_out() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        try:
            patience = Patience(tries=1, connect_seconds=0.2)
            async with client_of(f"http://127.0.0.1:{port}", patience=patience) as client:
                assert (await failure(client)).reason == "timeout"
        finally:
            for filler in fillers:
                filler.close()


# -- size -------------------------------------------------------------------------------------------------------------


async def test_oversize_answer_is_refused_while_it_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_BODY_BYTES", 1 << 20)
    sent = 0

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(http_answer(b"", length=1 << 40))
        while not writer.is_closing():
            writer.write(b" " * 65_536)
            sent += 65_536
            await writer.drain()

    async with listening(endless) as wire, client_of(f"http://127.0.0.1:{wire.port}") as client:
        error = await failure(client)
        assert (type(error), error.reason) == (BadAnswer, "too_large")
    assert sent < 64 << 20


async def test_gzip_bomb_is_refused_before_it_unfolds() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(512)) + packer.flush()

    async def explode(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(bomb, "content-encoding: gzip"))

    async with listening(explode) as wire, client_of(f"http://127.0.0.1:{wire.port}") as client:
        assert (await failure(client)).reason == "too_large"


async def test_packed_pages_are_unpacked() -> None:
    async def packed(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(gzip.compress(PAGE), "content-encoding: gzip"))

    async with listening(packed) as wire, client_of(f"http://127.0.0.1:{wire.port}") as client:
        await ask(client)
        assert b"gzip" in wire.seen.lower()


# -- pool -------------------------------------------------------------------------------------------------------------


async def test_3000_cancelled_requests_leave_the_pool_usable() -> None:
    """httpx's own pool leaks a slot with each, until every request fails."""
    http = http_client(proxy="none", max_connections=20)
    patience = Patience(tries=1, connect_seconds=2, read_seconds=5)

    async with (
        listening(stall) as wire,
        client_of(f"http://127.0.0.1:{wire.port}", http=http, patience=patience) as client,
    ):
        for batch in range(30):
            tasks = [asyncio.create_task(ask(client)) for _ in range(100)]
            await asyncio.sleep(0.005 * (batch % 4))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        wire.script = fine
        for _ in range(3):
            await asyncio.gather(*(ask(client) for _ in range(20)))


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def test_unknown_authority_is_a_tls_failure(certificates: Certificates) -> None:
    async with listening(fine, server_tls(certificates)) as wire, client_of(f"https://127.0.0.1:{wire.port}") as client:
        assert (await failure(client)).reason == "tls"


async def test_own_authority_is_added_by_its_file(certificates: Certificates) -> None:
    http = http_client(proxy="none", tls=tls_context(ca_file=certificates.ca))
    async with (
        listening(fine, server_tls(certificates)) as wire,
        client_of(f"https://127.0.0.1:{wire.port}", http=http) as client,
    ):
        await ask(client)


async def test_certificate_of_another_host_is_a_tls_failure(certificates: Certificates) -> None:
    http = http_client(proxy="none", tls=tls_context(ca_file=certificates.ca))
    async with (
        listening(fine, server_tls(certificates)) as wire,
        client_of(f"https://localhost:{wire.port}", http=http) as client,
    ):
        assert (await failure(client)).reason == "tls"


async def test_client_certificate_is_shown_when_asked_for(certificates: Certificates) -> None:
    tls = tls_context(ca_file=certificates.ca, cert_file=certificates.client, key_file=certificates.client)
    async with listening(fine, server_tls(certificates, ask_client=True)) as wire:
        url = f"https://127.0.0.1:{wire.port}"
        async with client_of(url, http=http_client(proxy="none", tls=tls)) as client:
            await ask(client)
        async with client_of(url, http=http_client(proxy="none", tls=tls_context(ca_file=certificates.ca))) as client:
            assert (await failure(client)).reason in {"tls", "reset"}


async def test_plain_http_behind_https_is_a_tls_failure() -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(b"", status="400 Bad Request"))
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server, client_of(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        assert (await failure(client)).reason == "tls"


# -- proxy ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def proxying(*, status: str = "200 Connected") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A CONNECT proxy, and the heads of what it was asked."""
    heads: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head)
            writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
            if not status.startswith("200"):
                return
            host, _, port = head.split()[1].decode().rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.wait(
                [asyncio.ensure_future(pump(reader, back)), asyncio.ensure_future(pump(there, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
            back.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        server.close()


@pytest.mark.parametrize("how", ["url", "env"])
async def test_https_goes_through_the_proxy(
    how: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(fine, server_tls(certificates)) as wire, proxying() as (port, heads):
        proxy = f"http://user:canary%20pass@127.0.0.1:{port}"
        for name in ("NO_PROXY", "no_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        http = http_client(proxy=proxy if how == "url" else "env", tls=tls_context(ca_file=certificates.ca))
        async with client_of(f"https://127.0.0.1:{wire.port}", http=http) as client:
            await ask(client)
    assert heads[0].startswith(f"CONNECT 127.0.0.1:{wire.port}".encode())
    assert b"Proxy-Authorization: Basic dXNlcjpjYW5hcnkgcGFzcw==" in heads[0]


async def test_no_proxy_and_none_go_directly(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(fine, server_tls(certificates)) as wire, proxying() as (port, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        tls = tls_context(ca_file=certificates.ca)
        async with client_of(f"https://127.0.0.1:{wire.port}", http=http_client(proxy="env", tls=tls)) as client:
            await ask(client)
        monkeypatch.delenv("NO_PROXY")
        async with client_of(f"https://127.0.0.1:{wire.port}", http=http_client(proxy="none", tls=tls)) as client:
            await ask(client)
    assert not heads


@pytest.mark.parametrize("trouble", ["refuses", "is not there"])
async def test_proxy_trouble_is_called_that(trouble: str) -> None:
    async with proxying(status="407 Proxy Authentication Required") as (port, _):
        at = port if trouble == "refuses" else unused_port()
        http = http_client(proxy=f"http://user:canary@127.0.0.1:{at}")
        async with client_of("https://127.0.0.1:1", http=http) as client:
            assert (await failure(client)).reason == "proxy"
