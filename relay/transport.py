"""How the relay's HTTP clients reach the network: pool, proxy, TLS, refused addresses; and how a failure is called.

Also what `Retry-After` and `Date` say. Not here: what is asked, and whether to ask again.
"""

import asyncio
import base64
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar
from os import environ
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from relay.clock import SECOND, Instant
from relay.errors import ConfigError

FailureReason = Literal["address", "dns", "connect", "tls", "proxy", "timeout", "reset", "truncated", "protocol"]
"""Why there is no answer, or no whole one; fit for a metric label. `address`: a guarded client refuses it."""
FAILURE_REASONS: Final[tuple[FailureReason, ...]] = get_args(FailureReason)

NETWORK_ERRORS: Final = (httpx.HTTPError, aiohttp.ClientError, OSError, UnicodeError)
"""What a request over `http_client` may raise; the last when the reason of a status line is no text.

Their texts may hold URLs with secrets: never show them.
"""

# The first that fits is the reason; the order goes from special to general.
_REASONS: Final[tuple[tuple[type[BaseException], FailureReason], ...]] = (
    (aiohttp.ClientProxyConnectionError, "proxy"),
    (aiohttp.ClientHttpProxyError, "proxy"),
    (httpx.ProxyError, "proxy"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientSSLError, "tls"),
    (ssl.SSLError, "tls"),
    (aiohttp.ServerTimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorError, "connect"),
    (aiohttp.ServerDisconnectedError, "reset"),
    (aiohttp.ClientOSError, "reset"),
    (ConnectionError, "reset"),
    (aiohttp.ClientPayloadError, "truncated"),
    (aiohttp.ClientConnectionError, "reset"),
    (aiohttp.ClientError, "protocol"),
    (httpx.DecodingError, "protocol"),
    (httpx.TimeoutException, "timeout"),
    (httpx.NetworkError, "reset"),
)


def failure_reason(error: BaseException) -> FailureReason:
    """The reason behind one of NETWORK_ERRORS.

    httpx-aiohttp reports most failures as `ConnectTimeout`; what happened is in the cause.
    """
    cause = _cause(error)
    if isinstance(cause, aiohttp.ClientConnectorError) and isinstance(cause.os_error, _ForbiddenAddress):
        return "address"
    for kind, reason in _REASONS:
        if isinstance(cause, kind):
            return reason
    return "protocol"


def proxy_status(error: BaseException) -> int | None:
    """The status with which a proxy refused to connect, of one of NETWORK_ERRORS; None when none did."""
    cause = _cause(error)
    return cause.status if isinstance(cause, aiohttp.ClientHttpProxyError) else None


def certificate_fault(error: BaseException) -> int | None:
    """OpenSSL's code of what is wrong with the far side's certificate, of one of NETWORK_ERRORS; None: not known.

    Source: X509_V_ERR_* in https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error
    """
    cause = _cause(error)
    fault = cause.certificate_error if isinstance(cause, aiohttp.ClientConnectorCertificateError) else cause
    return fault.verify_code if isinstance(fault, ssl.SSLCertVerificationError) else None


def _cause(error: BaseException) -> BaseException:
    return (error.__cause__ if isinstance(error, httpx.HTTPError) else None) or error


def tls_context(
    *, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """The system's authorities and those of `ca_file`; with `cert_file`, a client certificate as well.

    Costs 18 ms: make one for all that share the options. Raises ConfigError.
    """
    context = ssl.create_default_context()
    # Set by default since Python 3.13: it refuses certificates that lack extensions, as those of many companies' own
    # authorities do, which every version before and most other programs accept. Nothing else is verified less.
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    try:
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    except OSError as exc:
        raise ConfigError(f"tls.ca_file {ca_file}: no certificates in PEM can be read from it") from exc
    try:
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except OSError as exc:
        raise ConfigError(f"tls.cert_file {cert_file}, key_file {key_file}: not a certificate and its key") from exc
    return context


def http_client(
    *,
    proxy: str = "env",
    tls: ssl.SSLContext | None = None,
    max_connections: int = 100,
    guarded: bool = False,
) -> httpx.AsyncClient:
    """A client that follows no redirects and keeps no secrets: `proxy` is `none`, `env` or the proxy's URL.

    `env` honours HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY as they are now. The pool is aiohttp's: httpx's own
    leaks slots when requests are cancelled. Raises ConfigError.

    `guarded` is for URLs that a receiver named: no connection is opened to an address that `forbidden` names, whatever
    name or spelling led there, and cookies are dropped. A proxy resolves names itself, so what goes through one is
    under the proxy's rules; the connection to the proxy is not guarded.
    """
    tls = tls or tls_context()
    transport: httpx.AsyncBaseTransport
    if proxy == "none":
        transport = _transport(tls, None, max_connections, guarded=guarded)
    elif proxy == "env":
        transport = _ByEnvironment(tls, dict(environ), max_connections, guarded=guarded)
    else:
        transport = _transport(tls, proxy, max_connections, guarded=guarded)
    cookies = _NoCookies() if guarded else None
    return _Client(transport=transport, trust_env=False, cookies=cookies)


class _NoCookies(CookieJar):
    """Does not even read them: the standard library stumbles over odd ones, and warns."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Nothing."""


class _Client(httpx.AsyncClient):
    """Can be used again after it was closed."""

    async def aclose(self) -> None:
        """Closes every connection; the next request opens new ones."""
        await self._transport.aclose()


def _transport(
    tls: ssl.SSLContext, proxy: str | None, max_connections: int, *, guarded: bool = False
) -> "_PooledTransport":
    limits = httpx.Limits(max_connections=max_connections, keepalive_expiry=30)
    if proxy is None:
        return _PooledTransport(tls, limits, guarded=guarded)
    try:
        parsed = httpx.Proxy(proxy)
    except (ValueError, httpx.InvalidURL):
        parsed = None
    if parsed is None or parsed.url.scheme not in ("http", "https") or not parsed.url.host:
        raise ConfigError("proxy: expected none, env, or an http:// or https:// URL (its value is not shown)")
    if parsed.auth is not None:
        # aiohttp's own way to log in warns, and knows Latin-1 only; it moves this header to where it belongs.
        credentials = base64.b64encode(":".join(parsed.auth).encode()).decode("ascii")
        parsed = httpx.Proxy(parsed.url, headers={"authorization": f"Basic {credentials}"})
    return _PooledTransport(tls, limits, proxy=parsed, guarded=guarded)


class _PooledTransport(AiohttpTransport):
    """One pool of connections, which can also be asked for a connection alone."""

    def __init__(
        self, tls: ssl.SSLContext, limits: httpx.Limits, *, proxy: httpx.Proxy | None = None, guarded: bool = False
    ) -> None:
        super().__init__(verify=tls, limits=limits, proxy=proxy)
        self._guarded = guarded

    def get_client(self) -> aiohttp.ClientSession:
        """The session over the pool; made when it is first needed."""
        if isinstance(self.client, aiohttp.ClientSession):
            return self.client
        connector = aiohttp.TCPConnector(
            ssl=self.ssl_context,
            limit=self.limits.max_connections or 0,
            keepalive_timeout=self.limits.keepalive_expiry,
            socket_factory=_open_guarded if self._guarded and self.proxy is None else None,
        )
        jar = aiohttp.DummyCookieJar() if self._guarded else None
        self.client = aiohttp.ClientSession(connector=connector, cookie_jar=jar)
        return self.client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends it; or, for `connect`, stops when it could be sent."""
        if _CONNECT_ONLY not in request.extensions:
            return await super().handle_async_request(request)
        line = await self._connect(str(request.url))
        return httpx.Response(204, request=request, extensions={_CONNECT_ONLY: line})

    async def aclose(self) -> None:
        """Closes the pool; the next request makes another."""
        session, self.client = self.client, None
        if isinstance(session, aiohttp.ClientSession):
            await session.close()

    async def _connect(self, url: str) -> "Line":
        """Over the same pool, so that the next request finds the connection open."""
        session = self.get_client()
        assert session.connector is not None  # noqa: S101 - of a session that is open
        asked = aiohttp.ClientRequest(
            "POST",
            URL(url, encoded=True),
            loop=asyncio.get_running_loop(),
            session=session,
            proxy=URL(str(self.proxy.url)) if self.proxy else None,
            proxy_headers=self.proxy.headers if self.proxy else None,
        )
        connection = await session.connector.connect(asked, traces=[], timeout=aiohttp.ClientTimeout())
        try:
            peer = connection.transport.get_extra_info("peername") if connection.transport else None
        finally:
            connection.release()
        return Line(address=str(peer[0]) if peer else "", proxied=self.proxy is not None)


class _ByEnvironment(httpx.AsyncBaseTransport):
    """Chooses the proxy by each request's URL, as the environment says."""

    def __init__(
        self, tls: ssl.SSLContext, environment: Mapping[str, str], max_connections: int, *, guarded: bool
    ) -> None:
        self._environment = environment
        proxies = {_proxy_of(scheme, environment) for scheme in ("http", "https")} | {None}
        self._transports = {proxy: _transport(tls, proxy, max_connections, guarded=guarded) for proxy in proxies}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends it through the proxy that the environment names for its URL, or directly."""
        return await self._transports[proxy_for(str(request.url), self._environment)].handle_async_request(request)

    async def aclose(self) -> None:
        """Closes every pool."""
        for transport in self._transports.values():
            await transport.aclose()


# -- connecting alone ---------------------------------------------------------------------------------------------

_CONNECT_ONLY: Final = "relay.connect_only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An open connection: to which address, and whether that is a proxy's."""

    address: str
    proxied: bool

    @property
    def network(self) -> Literal["loopback", "private", "public"]:
        """Where the address lies."""
        address = _address(self.address)
        if address is None or address.is_global:
            return "public"
        return "loopback" if address.is_loopback else "private"


async def connect(http: httpx.AsyncClient, url: str) -> Line:
    """DNS, TCP and TLS to the URL's host as a request of this client would have them, but no request.

    The connection stays in the pool for the next one. `http` comes from `http_client`. Raises NETWORK_ERRORS.
    """
    response = await http.get(url, extensions={_CONNECT_ONLY: True}, timeout=None)
    line: Line = response.extensions[_CONNECT_ONLY]
    return line


# -- addresses that are refused -----------------------------------------------------------------------------------

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_FORBIDDEN: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host, whatever it listens on
        "169.254.0.0/16",  # link-local: the metadata service of AWS, Azure, Google and most others
        "224.0.0.0/4",  # multicast
        "255.255.255.255/32",
        "100.100.100.200/32",  # metadata: Alibaba
        "168.63.129.16/32",  # metadata: Azure's host agent
        "192.0.0.192/32",  # metadata: Oracle
        "::/128",
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, out of use
        "ff00::/8",  # multicast
        "fd00:ec2::/32",  # metadata: AWS
        "fd20:ce::254/128",  # metadata: Google
        "fd00:c1::a9fe:a9fe/128",  # metadata: Oracle
        "fd00:42::42/128",  # metadata: Scaleway
    )
)
_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")


def forbidden(address: str) -> bool:
    """Whether a guarded client refuses this IP address: link-local, metadata, multicast, or none at all.

    An IPv4 address inside an IPv6 one (mapped, NAT64, 6to4, Teredo) counts as itself. Loopback and private networks
    are fine: receivers on premises are normal. What is no IP address is refused.
    """
    parsed = _address(address.partition("%")[0])
    return parsed is None or any(found in network for found in _meant(parsed) for network in _FORBIDDEN)


def _meant(address: _Address) -> list[_Address]:
    """The address, and those inside it to which a gateway may carry what is sent there."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inside: list[_Address] = [found for found in (address.ipv4_mapped, address.sixtofour) if found is not None]
    if address.teredo is not None:
        inside.extend(address.teredo)
    if any(address in network for network in _NAT64) or (address in _COMPATIBLE and int(address) > 1):
        inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [address, *inside]


class _ForbiddenAddress(OSError):
    """A guarded client was about to connect to an address that it refuses."""


def _open_guarded(info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for the address to which it is connected next: after DNS, so that no name can change in between."""
    family, kind, protocol, _, where = info
    if forbidden(str(where[0])):
        raise _ForbiddenAddress("refused address")
    return socket.socket(family=family, type=kind, proto=protocol)


# -- when to ask again --------------------------------------------------------------------------------------------

PLAUSIBLE: Final = range(1_577_836_800 * SECOND, 7_258_118_400 * SECOND)
"""From 2020 to before 2200: a server that names another time says nothing of ours."""


def retry_after_seconds(header: str | None, now: Instant, *, at_most: float) -> float | None:
    """How long `Retry-After` asks to wait (seconds or an HTTP date), at most that long; None: nothing usable.

    `now` is the server's clock where known.
    """
    text = (header or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), at_most)
    date = http_date(text)
    if date is None:
        return None
    return min(max((date - now) / SECOND, 0.0), at_most)


def http_date(header: str | None) -> Instant | None:
    """An HTTP date as an instant; None when absent or malformed."""
    if not header:
        return None
    try:
        return int(parsedate_to_datetime(header).timestamp()) * SECOND
    except (ValueError, TypeError, OverflowError):
        return None


def server_time(header: str | None) -> Instant | None:
    """What a `Date` says of the server's clock; None when absent, malformed, or not of this age."""
    date = http_date(header)
    return date if date is not None and date in PLAUSIBLE else None


# -- which proxy --------------------------------------------------------------------------------------------------


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy's URL that the environment names for `url`, or None: go directly.

    NO_PROXY holds, separated by commas: `*`, host names (with or without a leading dot; subdomains are meant too), IP
    addresses, networks such as `10.0.0.0/8`; each but networks may end in `:port`.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    names = _lookup(environment, "no_proxy").split(",")
    if any(_names_host(name.strip().lower(), host, port) for name in names if name.strip()):
        return None
    return _proxy_of(parts.scheme, environment)


def _proxy_of(scheme: str, environment: Mapping[str, str]) -> str | None:
    proxy = _lookup(environment, f"{scheme}_proxy") or _lookup(environment, "all_proxy")
    if not proxy:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _lookup(environment: Mapping[str, str], name: str) -> str:
    """Lower case wins, as with curl; an HTTP_PROXY in capitals may be a CGI client's header."""
    if name == "http_proxy" and "REQUEST_METHOD" in environment:
        return environment.get(name, "")
    return environment.get(name) or environment.get(name.upper(), "")


def _names_host(pattern: str, host: str, port: int) -> bool:
    if pattern == "*":
        return True
    address = _address(host)
    if address is not None and "/" in pattern:
        return _contains(pattern, address)
    name, _, suffix = pattern.rpartition(":")
    if name and suffix.isdecimal() and (":" not in name or name.endswith("]")):
        if int(suffix) != port:
            return False
        pattern = name
    pattern = pattern.strip("[]")
    if address is not None:
        return _address(pattern) == address
    pattern = pattern.removeprefix("*").strip(".")
    return bool(pattern) and (host == pattern or host.endswith(f".{pattern}"))


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _contains(network: str, address: _Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
