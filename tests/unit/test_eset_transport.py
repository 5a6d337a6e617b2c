"""Which proxy a URL goes through, and what a failure is called."""

import ssl
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey

from relay.errors import ConfigError
from relay.transport import FAILURE_REASONS, NETWORK_ERRORS, failure_reason, http_client, proxy_for, tls_context

PROXY = {"HTTPS_PROXY": "http://proxy.test:3128"}
KEY = ConnectionKey("host", 443, True, True, None, None, None)


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("https://api.test/x", {}, None),
        ("https://api.test/x", PROXY, "http://proxy.test:3128"),
        ("http://api.test/x", PROXY, None),
        ("http://api.test/x", {"http_proxy": "http://p"}, "http://p"),
        ("https://api.test/x", {"ALL_PROXY": "http://p"}, "http://p"),
        ("https://api.test/x", {"HTTPS_PROXY": "proxy.test:3128"}, "http://proxy.test:3128"),
        ("https://api.test/x", {"HTTPS_PROXY": "http://upper", "https_proxy": "http://lower"}, "http://lower"),
        ("https://api.test/x", {"HTTPS_PROXY": ""}, None),
        ("http://api.test/x", {"HTTP_PROXY": "http://from-a-cgi-client", "REQUEST_METHOD": "GET"}, None),
    ],
)
def test_environment_names_the_proxy(url: str, environment: Mapping[str, str], proxy: str | None) -> None:
    assert proxy_for(url, environment) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("*", "api.test", True),
        ("api.test", "api.test", True),
        ("API.TEST", "api.test", True),
        ("test", "api.test", True),
        (".test", "api.test", True),
        ("*.test", "api.test", True),
        (".api.test", "api.test", True),
        ("pi.test", "api.test", False),
        ("api.test.example", "api.test", False),
        ("other.test, api.test", "api.test", True),
        (",,", "api.test", False),
        ("api.test:443", "api.test", True),
        ("api.test:8443", "api.test", False),
        ("api.test:8443", "api.test:8443", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "api.test", False),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("1.2.3", "10.1.2.3", False),
        ("::1", "[::1]", True),
        ("[::1]", "[::1]", True),
        ("[::1]:443", "[::1]:443", True),
        ("fd00::/8", "[fd00::5]", True),
        ("localhost,127.0.0.1,.svc,.cluster.local", "relay.ns.svc.cluster.local", True),
    ],
)
def test_no_proxy_names_hosts_addresses_and_networks(no_proxy: str, host: str, direct: bool) -> None:
    assert (proxy_for(f"https://{host}/x", PROXY | {"NO_PROXY": no_proxy}) is None) is direct


@pytest.mark.parametrize("proxy", ["socks5://canary:pass@host", "canary", "http://", "//canary"])
def test_proxy_that_cannot_be_used_is_refused_without_showing_it(proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        http_client(proxy=proxy)
    assert "canary" not in str(caught.value)


async def test_environment_whose_no_proxy_names_everything_else_still_has_its_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", ".invalid")
    async with http_client(proxy="env") as http:
        with pytest.raises(httpx.HTTPError) as caught:
            await http.get("https://api.test")
    assert failure_reason(caught.value) == "proxy"


def test_certificate_files_that_are_none_are_a_matter_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for options in ({"ca_file": tmp_path / "absent.pem"}, {"ca_file": tmp_path / "empty.pem"}):
        with pytest.raises(ConfigError, match="ca_file"):
            tls_context(**options)
    with pytest.raises(ConfigError, match="cert_file"):
        tls_context(cert_file=tmp_path / "empty.pem")


def caused(error: httpx.HTTPError, cause: BaseException) -> httpx.HTTPError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (caused(httpx.ConnectTimeout("x"), aiohttp.ClientConnectorDNSError(KEY, OSError(1, "x"))), "dns"),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ClientConnectorError(KEY, OSError(1, "x"))), "connect"),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLError())), "tls"),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ServerDisconnectedError()), "reset"),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ClientOSError(104, "x")), "reset"),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ClientProxyConnectionError(KEY, OSError(1, "x"))), "proxy"),
        (caused(httpx.ReadTimeout("x"), aiohttp.SocketTimeoutError()), "timeout"),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ConnectionTimeoutError()), "timeout"),
        (caused(httpx.ReadError("x"), aiohttp.ClientPayloadError()), "truncated"),
        (aiohttp.InvalidURL("canary"), "protocol"),
        (httpx.DecodingError("x"), "protocol"),
        (httpx.ReadTimeout("x"), "timeout"),
        (httpx.ConnectError("x"), "reset"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "reset"),
        (ssl.SSLError(), "tls"),
        (OSError("x"), "protocol"),
    ],
)
def test_reason_is_that_of_the_cause(error: BaseException, reason: str) -> None:
    assert failure_reason(error) == reason
    assert reason in FAILURE_REASONS
    assert isinstance(error, NETWORK_ERRORS)
