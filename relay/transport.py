"""How the relay's HTTP clients reach the network: pool, proxy, TLS, and why a request got no answer.

Not here: what is asked, and whether to ask again.
"""

import base64
import ipaddress
import ssl
from collections.abc import Mapping
from os import environ
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from relay.errors import ConfigError

FailureReason = Literal["dns", "connect", "tls", "proxy", "timeout", "reset", "truncated", "protocol"]
"""Why there is no answer, or no whole one; fit for a metric label."""
FAILURE_REASONS: Final[tuple[FailureReason, ...]] = get_args(FailureReason)

NETWORK_ERRORS: Final = (httpx.HTTPError, aiohttp.ClientError, OSError)
"""What a request over `http_client` may raise. Their texts may hold URLs with secrets: never show them."""

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
    cause = (error.__cause__ if isinstance(error, httpx.HTTPError) else None) or error
    for kind, reason in _REASONS:
        if isinstance(cause, kind):
            return reason
    return "protocol"


def tls_context(
    *, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """The system's authorities and those of `ca_file`; with `cert_file`, a client certificate as well.

    Costs 18 ms: make one for all that share the options. Raises ConfigError.
    """
    context = ssl.create_default_context()
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
    *, proxy: str = "env", tls: ssl.SSLContext | None = None, max_connections: int = 100
) -> httpx.AsyncClient:
    """A client that follows no redirects and keeps no secrets: `proxy` is `none`, `env` or the proxy's URL.

    `env` honours HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY as they are now. The pool is aiohttp's: httpx's own
    leaks slots when requests are cancelled. Raises ConfigError.
    """
    tls = tls or tls_context()
    transport: httpx.AsyncBaseTransport
    if proxy == "none":
        transport = _transport(tls, None, max_connections)
    elif proxy == "env":
        transport = _ByEnvironment(tls, dict(environ), max_connections)
    else:
        transport = _transport(tls, proxy, max_connections)
    return httpx.AsyncClient(transport=transport, trust_env=False)


def _transport(tls: ssl.SSLContext, proxy: str | None, max_connections: int) -> AiohttpTransport:
    limits = httpx.Limits(max_connections=max_connections, keepalive_expiry=30)
    if proxy is None:
        return AiohttpTransport(verify=tls, limits=limits)
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
    return AiohttpTransport(verify=tls, limits=limits, proxy=parsed)


class _ByEnvironment(httpx.AsyncBaseTransport):
    """Chooses the proxy by each request's URL, as the environment says."""

    def __init__(self, tls: ssl.SSLContext, environment: Mapping[str, str], max_connections: int) -> None:
        self._environment = environment
        proxies = {_proxy_of(scheme, environment) for scheme in ("http", "https")} | {None}
        self._transports = {proxy: _transport(tls, proxy, max_connections) for proxy in proxies}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends it through the proxy that the environment names for its URL, or directly."""
        return await self._transports[proxy_for(str(request.url), self._environment)].handle_async_request(request)

    async def aclose(self) -> None:
        """Closes every pool."""
        for transport in self._transports.values():
            await transport.aclose()


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


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _contains(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
