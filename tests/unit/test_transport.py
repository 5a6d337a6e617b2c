"""Which addresses a guarded client refuses, how long an answer asks to wait, which certificates count. Not proxies."""

import ipaddress
import ssl
from email.utils import formatdate

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey
from hypothesis import given
from hypothesis import strategies as st

from relay import transport
from relay.clock import SECOND
from relay.transport import Line, failure_reason, forbidden, http_client, retry_after_seconds, tls_context

NOW = 1_780_000_000 * SECOND
DAY = 86_400.0


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.251",
        "239.255.255.255",
        "255.255.255.255",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "febf::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
        "::ffff:100.100.100.200",
        "::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1:ffff::169.254.169.254",
        "2002:a9fe:a9fe::",
        "2001:0:a9fe:a9fe::",  # Teredo, as the server
        "2001:0:1:1:0:0:5601:5601",  # Teredo, as the client
        "harmless.example",
        "",
    ],
)
def test_refused(address: str) -> None:
    assert forbidden(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.201",
        "93.184.216.34",
        "::1",
        "fd12:3456::1",
        "2606:4700::1111",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "2002:0a00:0001::",
    ],
)
def test_allowed(address: str) -> None:
    assert not forbidden(address)


@given(st.ip_addresses(v=4))
def test_every_address_inside_another_counts_as_itself(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for inside in (
        0xFFFF << 32 | number,
        int(ipaddress.IPv6Address("64:ff9b::")) | number,
        0x2002 << 112 | number << 80,
    ):
        assert forbidden(str(ipaddress.IPv6Address(inside))) is forbidden(str(address))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("10.1.2.3", "private"),
        ("fd12::1", "private"),
        ("9.9.9.9", "public"),
    ],
)
def test_where_an_address_lies(address: str, network: str) -> None:
    assert Line(address=address, proxied=False).network == network


def test_refused_address_has_its_own_reason() -> None:
    key = ConnectionKey("host", 443, True, True, None, None, None)
    error = httpx.ConnectTimeout("x")
    error.__cause__ = aiohttp.ClientConnectorError(key, transport._ForbiddenAddress())
    assert failure_reason(error) == "address"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        (" 7 ", 7),
        ("000000000007", 7),
        ("86401", DAY),
        ("9" * 4000, DAY),
        (formatdate(NOW // SECOND + 90, usegmt=True), 90),
        (formatdate(NOW // SECOND - 90, usegmt=True), 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("\u0661", None),
        ("soon", None),
        ("Sun, 31 Feb 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW, at_most=DAY) == seconds


@given(st.text())
def test_no_retry_after_breaks_anything_or_exceeds_its_limit(header: str) -> None:
    seconds = retry_after_seconds(header, NOW, at_most=DAY)
    assert seconds is None or 0 <= seconds <= DAY


async def test_client_that_was_closed_can_be_used_again() -> None:
    http = http_client(proxy="none")
    for _ in range(2):
        with pytest.raises(httpx.HTTPError) as caught:
            await http.get("http://127.0.0.1:1/")
        assert failure_reason(caught.value) == "connect"
        await http.aclose()
        await http.aclose()


def test_certificates_of_companies_own_authorities_are_taken_on_every_python(monkeypatch: pytest.MonkeyPatch) -> None:
    make = ssl.create_default_context

    def newer() -> ssl.SSLContext:
        context = make()
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # as since Python 3.13
        return context

    monkeypatch.setattr(ssl, "create_default_context", newer)
    context = tls_context()
    assert not context.verify_flags & ssl.VerifyFlags.VERIFY_X509_STRICT
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
