"""One body posted to one URL, within a time and a size; shared by every sink that speaks HTTP.

Not here: what is sent, what a body of an answer means, and whether to try again. No error shows the URL: its path or
query may be the secret.
"""

import asyncio
import base64
import re
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Final, Literal
from urllib.parse import unquote

import httpx
import msgspec

from relay import __version__
from relay.clock import Clock, Instant
from relay.errors import ConfigError, Gone, Refused, Unavailable
from relay.transport import (
    FAILURE_REASONS,
    NETWORK_ERRORS,
    FailureReason,
    Line,
    connect,
    failure_reason,
    retry_after_seconds,
    server_time,
)
from relay.words import one_line

MAX_BODY_BYTES: Final = 64 * 1024
"""Of an answer; what follows is not read."""
MAX_RETRY_AFTER_SECONDS: Final = 24 * 3600.0
THROTTLED_SECONDS: Final = 60.0
"""The pause after a 429 that names no time."""
ENDPOINT_STATUSES: Final = frozenset({401, 403, 404, 408, 425, 429})
"""The 4xx for which the endpoint is at fault and not the message."""

CONFIGURATION: Final = "configuration"
"""The reason when the URL, a header or a secret cannot be used."""
_KNOWN_STATUSES: Final = frozenset(status.value for status in HTTPStatus)
REASONS: Final[tuple[str, ...]] = (
    *FAILURE_REASONS,
    CONFIGURATION,
    "gone",
    "throttled",
    *(f"http_{status}" for status in sorted(_KNOWN_STATUSES - {410, 429}) if not 200 <= status < 300),
    *("http_1xx", "http_3xx", "http_4xx", "http_5xx", "http_other"),
)
"""Every reason of the errors raised here."""

_OWN_HEADERS: Final = {"user-agent": f"incident-relay/{__version__}", "accept-encoding": "identity"}
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST: Final = re.compile(r"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%.+)?")
_PORTS: Final = range(1, 65_536)
_CLOSE_SECONDS: Final = 1.0
_PIECE_BYTES: Final = 1 << 18
"""aiohttp warns of bodies that are handed over in one piece of more than a mebibyte."""
_MASK: Final = b"***"
_SHORTEST_WHOLE: Final = 4
_SHORTEST_PART: Final = 12
"""Parts of a URL that are shorter are words such as `services`, and stay readable when an answer repeats them."""

_CAUSES: Final[Mapping[FailureReason, str]] = {
    "address": "its address is link-local, a metadata service's, or none to send to",
    "dns": "its name has no address",
    "connect": "it accepts no connection",
    "tls": "no TLS connection: is its certificate in time, for this name, from a known authority (tls.ca_file)?",
    "proxy": "the proxy is not there, or refuses",
    "timeout": "no whole answer in time",
    "reset": "it closed the connection before it answered",
    "truncated": "its answer ended early",
    "protocol": "its answer is not HTTP",
}


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. `body` is its start; what of the URL or our headers it repeats is masked."""

    status: int
    headers: httpx.Headers | Mapping[str, str] = {}
    body: bytes = b""
    host: str = ""

    @property
    def text(self) -> str:
        """The start of the body on one line, fit for an error message."""
        return one_line(self.body.decode(errors="replace"))


class Poster:
    """Posts to the URL that `url` names at that moment, over a client of its own."""

    def __init__(
        self, name: str, *, url: Callable[[], str], http: httpx.AsyncClient, timeout_seconds: float, clock: Clock
    ) -> None:
        self._name = name
        self._url = url
        self._http = http
        self._timeout_seconds = timeout_seconds
        self._clock = clock

    def __repr__(self) -> str:
        return f"Poster({self._name!r})"

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """The answer, whatever its status; redirects are not followed.

        A 2xx is only given when its body came whole (or up to the limit) in time; of another status, what came of the
        body will do. Raises Unavailable, whose reason is a `FailureReason` or `configuration`.
        """
        return await self._answered(self._target(), "POST", body, headers)

    async def ask(
        self, method: Literal["GET", "POST"], path: re.Pattern[str], body: bytes, headers: Mapping[str, str]
    ) -> Reply | None:
        """The answer to a request that carries no message; None, and nothing is asked, for a URL of another path.

        Raises as `post` does.
        """
        url = self._target()
        return await self._answered(url, method, body, headers) if path.fullmatch(url.path) else None

    async def _answered(self, url: httpx.URL, method: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        request = self._request(url, method, body, headers)
        began = self._clock.monotonic()
        got = await self._exchange(request)
        # Raised here and not where it was caught: what is behind it holds the URL in its text.
        if isinstance(got, str):
            raise self._failure(url, got, began)
        status, answered, received = got
        return Reply(status=status, headers=answered, body=_masked(received, _secrets(url, request)), host=url.host)

    async def _exchange(self, request: httpx.Request) -> tuple[int, httpx.Headers, bytes] | FailureReason:
        until = asyncio.get_running_loop().time() + self._timeout_seconds
        try:
            async with asyncio.timeout_at(until):
                response = await self._http.send(request, stream=True)
        except NETWORK_ERRORS as exc:
            return failure_reason(exc)
        body = b""
        try:
            async with asyncio.timeout_at(until):
                body = await _start_of_body(response)
        except NETWORK_ERRORS as exc:
            if response.is_success:
                return failure_reason(exc)
        finally:
            await _let_go(response)
        return response.status_code, response.headers, body

    async def probe(self) -> str:
        """Connects without sending a request: `soar.example resolves to a public address and accepts TLS`.

        Through a proxy, that is as far as the proxy gets. Raises Unavailable; ConfigError when there is no URL.
        """
        url = _parsed(self._name, self._url())
        began = self._clock.monotonic()
        line = await self._connect(url)
        if isinstance(line, str):
            raise self._failure(url, line, began)
        way = "is reached through the proxy" if line.proxied else f"resolves to a {line.network} address"
        return f"{url.host} {way} and accepts {'TLS' if url.scheme == 'https' else 'connections, without TLS'}"

    async def _connect(self, url: httpx.URL) -> Line | FailureReason:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await connect(self._http, str(url.copy_with(userinfo=b"", raw_path=b"/", fragment=None)))
        except NETWORK_ERRORS as exc:
            return failure_reason(exc)

    async def close(self) -> None:
        """Closes the connections. A client of `http_client` opens new ones when it is used again."""
        with suppress(*NETWORK_ERRORS):
            await self._http.aclose()

    def _target(self) -> httpx.URL:
        try:
            return _parsed(self._name, self._url())
        except ConfigError as exc:
            raise Unavailable(str(exc), reason=CONFIGURATION) from None

    def _request(self, url: httpx.URL, method: str, body: bytes, headers: Mapping[str, str]) -> httpx.Request:
        own = dict(_OWN_HEADERS)
        if url.userinfo:
            # aiohttp refuses credentials in a URL beside a header of that name.
            own["authorization"] = f"Basic {base64.b64encode(unquote(url.userinfo.decode()).encode()).decode()}"
        own |= {name.lower(): value for name, value in headers.items()}
        for name, value in own.items():
            if not _TOKEN.fullmatch(name) or not value.isascii() or not value.isprintable():
                raise Unavailable(
                    f"{self._name}: header {one_line(name, characters=40)!r} cannot be sent: expected a name without "
                    "spaces and a value of printable ASCII, without a line end (its value is not shown)",
                    reason=CONFIGURATION,
                )
        return self._http.build_request(
            method,
            url.copy_with(userinfo=b"", fragment=None),
            content=body if len(body) <= _PIECE_BYTES else _pieces(body),
            headers=own if method == "GET" else {**own, "content-length": str(len(body))},
            timeout=self._timeout_seconds,
        )

    def _failure(self, url: httpx.URL, reason: FailureReason, began: float) -> Unavailable:
        took = self._clock.monotonic() - began
        return Unavailable(f"{self._name}: {url.host}: {_CAUSES[reason]} ({took:.1f} s)", reason=reason)


def require_success(name: str, reply: Reply, *, positions: Collection[int], now: Instant) -> None:
    """Returns for a 2xx. Raises Gone for 410, Unavailable when the endpoint is at fault, Refused when the message is.

    `retry_after_seconds` is what the answer asks for, at most a day; after a 429 that asks for nothing, a minute. What
    no client can make sense of (1xx, an unknown class) is the endpoint's fault. `now` is the wall clock.
    """
    status = reply.status
    if 200 <= status < 300:
        return
    reason = reason_of(status)
    what = f"{name}: {reply.host or 'the endpoint'} answered {_named(status)}"
    if reply.text:
        what = f"{what}: {reply.text}"
    if status == 410:
        raise Gone(what, reason=reason)
    if 400 <= status < 500 and status not in ENDPOINT_STATUSES:
        detail = f"status {status}: {reply.text}" if reply.text else f"status {status}"
        raise Refused(what, positions=dict.fromkeys(positions, detail), reason=reason)
    raise Unavailable(what, retry_after_seconds=_retry_after(reply, now), reason=reason)


def reason_of(status: int) -> str:
    """The label of a status that is no success, one of `REASONS`."""
    if status == 410:
        return "gone"
    if status == 429:
        return "throttled"
    if status in _KNOWN_STATUSES:
        return f"http_{status}"
    return f"http_{status // 100}xx" if status // 100 in {1, 3, 4, 5} else "http_other"


def _retry_after(reply: Reply, now: Instant) -> float | None:
    """The server's own clock counts where it is known; a time that is over asks for nothing."""
    server = server_time(reply.headers.get("date"))
    seconds = retry_after_seconds(
        reply.headers.get("retry-after"), now if server is None else server, at_most=MAX_RETRY_AFTER_SECONDS
    )
    return seconds or (THROTTLED_SECONDS if reply.status == 429 else None)


def _named(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}" if status in _KNOWN_STATUSES else str(status)


def _parsed(name: str, text: str) -> httpx.URL:
    try:
        url = httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    good = _HOST.fullmatch(url.raw_host.decode("ascii")) and (url.port is None or url.port in _PORTS)
    if url.scheme not in {"http", "https"} or not good:
        raise ConfigError(f"{name}: url: expected an http:// or https:// URL (its value is not shown)")
    return url


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


async def _start_of_body(response: httpx.Response) -> bytes:
    packed = bytearray()
    async for chunk in response.aiter_raw():
        packed += chunk
        if len(packed) > MAX_BODY_BYTES:
            break
    if response.headers.get("content-encoding", "").strip().lower() in {"gzip", "x-gzip", "deflate"}:
        # Not asked for; unpacked here all the same, and only as far as needed: a few bytes may unfold to gigabytes.
        with suppress(zlib.error):
            return zlib.decompressobj(wbits=47).decompress(packed, MAX_BODY_BYTES)
    return bytes(packed[:MAX_BODY_BYTES])


async def _let_go(response: httpx.Response) -> None:
    """Ends the exchange: a server may have answered without having read what was sent."""
    with suppress(*NETWORK_ERRORS):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await response.aclose()


def _secrets(url: httpx.URL, request: httpx.Request) -> set[bytes]:
    """What an error page might repeat: the URL's path, query and credentials, and the values of our headers."""
    target = url.raw_path.decode("ascii")
    whole = {target, url.path, url.query.decode("ascii"), url.userinfo.decode("ascii"), url.password}
    parts = {part for part in re.split(r"[/?&=;]", target) if len(part) >= _SHORTEST_PART}
    sent = {value for name, value in request.headers.items() if name not in {"host", "content-type", "content-length"}}
    words = {part for value in sent for part in value.split() if len(part) >= _SHORTEST_PART}
    spellings = {spelling for text in whole | parts | words for spelling in (text, unquote(text))}
    return {text.encode() for text in spellings if len(text) >= _SHORTEST_WHOLE}


def _masked(body: bytes, secrets: Collection[bytes]) -> bytes:
    for secret in sorted(secrets, key=len, reverse=True):
        body = body.replace(secret, _MASK)
    return body
