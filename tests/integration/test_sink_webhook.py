"""The webhook sink over real sockets: what every answer means, signatures, addresses, and receivers that misbehave."""

import asyncio
import base64
import email.utils
import gzip
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp.abc import ResolveResult
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from relay.clock import SECOND, Clock, SystemClock
from relay.errors import ConfigError, Gone, Refused, SinkError, Unavailable
from relay.formats import native
from relay.sinks.post import REASONS, Poster
from relay.sinks.webhook import WebhookSink
from relay.transport import FAILURE_REASONS, http_client, tls_context
from tests.support.clock import FakeClock
from tests.support.deliveries import delivery
from tests.support.receiver import (
    FINE,
    Asked,
    Script,
    Told,
    bomb,
    contracted,
    dripping,
    endless,
    hang_up,
    outcomes_by_status,
    raw,
    receiving,
    reset,
    stall,
    table,
    truncated,
    unused_port,
)
from tests.support.tls import Certificates, make_certificates, server_tls

OLD, NEW = "whsec_" + base64.b64encode(b"the old key of the receiver").decode(), "canary: a new key, in plain text"
LARGE = "x" * 20_000_000
PLAIN = base64.b64encode(NEW.encode()).decode()


@dataclass
class Given:
    """What the sink reads anew before each attempt."""

    url: str
    secrets: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


@asynccontextmanager
async def webhook(
    given: Given | str,
    *,
    http: httpx.AsyncClient | None = None,
    timeout_seconds: float = 5.0,
    omit: Sequence[str] = (),
    clock: Clock | None = None,
) -> AsyncIterator[WebhookSink]:
    asked = Given(given) if isinstance(given, str) else given
    sink = WebhookSink(
        "soar",
        url=lambda: asked.url,
        secrets=lambda: asked.secrets,
        headers=lambda: asked.headers,
        http=http or http_client(proxy="none", guarded=True),
        timeout_seconds=timeout_seconds,
        omit=omit,
        clock=clock or SystemClock(),
    )
    try:
        yield sink
    finally:
        await sink.close(1)


async def failure(sink: WebhookSink, position: int = 1) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.send([delivery(position)], upto=None)
    error = caught.value
    assert "canary" not in f"{error!r} {error} {error.__cause__!r} {error.__context__!r}"
    assert "soar" in str(error)
    assert error.reason in REASONS
    return error


# -- what is sent -----------------------------------------------------------------------------------------------------


async def test_event_is_a_cloudevent_whose_data_is_the_kafka_value_byte_for_byte() -> None:
    odd = delivery(7, title='"quoted" \\ é ☃ \u202e', number=1.50, severity="INCIDENT_SEVERITY_LEVEL_LOW")
    async with receiving() as receiver, webhook(receiver.url) as sink:
        await sink.send([odd], upto=7)
    (asked,) = receiver.asked
    assert (asked.method, asked.target) == ("POST", "/hooks/canary-of-the-path?token=canary-of-the-query")
    assert asked.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert asked.headers["user-agent"].startswith("incident-relay/")
    event = asked.json()
    assert json.loads(odd.body) == event.pop("data")
    assert asked.body.endswith(b',"data":' + odd.body + b"}")
    assert event == {
        "specversion": "1.0",
        "id": odd.id,
        "source": "/eset-connect/acme",
        "type": "incident-relay.incident.updated",
        "subject": "uuid-7",
        "time": "2023-11-14T22:13:27Z",
        "dataschema": "urn:incident-relay:incident:1",
        "datacontenttype": "application/json",
        "sequence": "00000000000000000007",
        "origin": "poll",
    }


async def test_omitted_fields_are_not_sent() -> None:
    one = delivery(1, padding=50)
    async with receiving() as receiver, webhook(receiver.url, omit=["description", "status"]) as sink:
        await sink.send([one], upto=1)
    data = receiver.asked[0].json()["data"]
    assert data == json.loads(native.omit(one.body, ["description", "status"]))
    assert "description" not in data["incident"]
    assert data["event"]["changed"] == []


async def test_headers_of_the_configuration_are_sent_and_read_anew() -> None:
    async with receiving() as receiver:
        given = Given(receiver.url, headers={"Authorization": "Bearer first", "x-tenant": "acme"})
        async with webhook(given) as sink:
            await sink.send([delivery(1)], upto=1)
            given.headers = {"authorization": "Bearer second"}
            await sink.send([delivery(2)], upto=2)
    assert [asked.headers["authorization"] for asked in receiver.asked] == ["Bearer first", "Bearer second"]
    assert receiver.asked[0].headers["x-tenant"] == "acme"


@pytest.mark.parametrize(
    "name", ["Content-Type", "webhook-id", "Webhook-Signature", "WEBHOOK-TIMESTAMP", "transfer-encoding", "host"]
)
async def test_header_that_is_the_relays_own_is_refused_by_name_and_nothing_is_sent(name: str) -> None:
    async with receiving() as receiver, webhook(Given(receiver.url, headers={name: "canary"})) as sink:
        with pytest.raises(ConfigError, match=f"headers: {name} is set by the relay"):
            await sink.open()
        assert (await failure(sink)).reason == "configuration"
    assert not receiver.asked


@pytest.mark.parametrize(
    "headers",
    [{"x-a": "canary\r\nx-b: c"}, {"x-a": "canary-é"}, {"x a": "canary"}, {"x-a": "canary\0"}, {"": "canary"}],
)
async def test_header_that_cannot_be_sent_holds_the_sink_and_is_not_shown(headers: dict[str, str]) -> None:
    async with receiving() as receiver, webhook(Given(receiver.url, headers=headers)) as sink:
        assert (await failure(sink)).reason == "configuration"
    assert not receiver.asked


async def test_credentials_in_the_url_become_a_header() -> None:
    async with receiving() as receiver:
        url = receiver.url.replace("127", "us%20er:canary%3Apass@127")
        async with webhook(url) as sink:
            await sink.send([delivery(1)], upto=1)
            assert "canary" not in await sink.probe()
            receiver.says(Told(status=500))
            await failure(sink)
        async with webhook(Given(url, headers={"authorization": "Bearer x"})) as sink:
            receiver.says(FINE)
            await sink.send([delivery(1)], upto=1)
    assert receiver.asked[0].headers["authorization"] == "Basic " + base64.b64encode(b"us er:canary:pass").decode()
    assert receiver.asked[-1].headers["authorization"] == "Bearer x"


async def test_url_is_read_before_each_attempt_and_trouble_with_it_holds_the_sink() -> None:
    async with receiving() as first, receiving() as second:
        given = Given(first.url)
        async with webhook(given) as sink:
            await sink.send([delivery(1)], upto=1)
            for broken in (
                "",
                "canary",
                "ftp://canary.test/x",
                "https://",
                "http://[canary",
                "http://canary:99999999/",
            ):
                given.url = broken
                assert (await failure(sink)).reason == "configuration"
                with pytest.raises(ConfigError, match="its value is not shown"):
                    await sink.probe()
            given.url = f" {second.url}\n"
            await sink.send([delivery(2)], upto=2)
    assert [len(first.asked), len(second.asked)] == [1, 1]


async def test_file_that_cannot_be_read_holds_the_sink() -> None:
    def unreadable() -> str:
        raise ConfigError("sinks.soar.url_file: /run/secrets/soar cannot be read")

    poster = Poster("soar", url=unreadable, http=http_client(), timeout_seconds=1, clock=SystemClock())
    with pytest.raises(Unavailable, match="cannot be read") as caught:
        await poster.post(b"{}", {})
    assert caught.value.reason == "configuration"


# -- signatures -------------------------------------------------------------------------------------------------------


def verified(asked: Asked, *secrets: str) -> bool:
    """Whether the reference library accepts it with one of these secrets."""
    for secret in secrets:
        try:
            Webhook(secret).verify(asked.body, dict(asked.headers))
        except WebhookVerificationError:
            continue
        return True
    return False


async def test_signature_is_what_the_reference_library_expects() -> None:
    async with receiving() as receiver, webhook(Given(receiver.url, secrets=[OLD])) as sink:
        one = delivery(1, title="é ☃ \U0001f600")
        await sink.send([one], upto=1)
    (asked,) = receiver.asked
    assert asked.headers["webhook-id"] == one.id
    assert abs(int(asked.headers["webhook-timestamp"]) - time.time()) < 60
    assert verified(asked, OLD)
    assert not verified(asked, PLAIN)
    forged = Asked(method="POST", target="", headers=asked.headers, body=asked.body.replace(b"poll", b"pole"))
    assert not verified(forged, OLD)


async def test_plain_secret_signs_with_its_bytes() -> None:
    async with receiving() as receiver, webhook(Given(receiver.url, secrets=[f"{NEW}\n"])) as sink:
        await sink.send([delivery(1)], upto=1)
    assert verified(receiver.asked[0], PLAIN)


async def test_each_attempt_has_its_own_time_and_the_same_id() -> None:
    clock = FakeClock()
    async with receiving() as receiver, webhook(Given(receiver.url, secrets=[OLD]), clock=clock) as sink:
        receiver.says(Told(status=503), FINE)
        await failure(sink)
        clock.advance(30)
        await sink.send([delivery(1)], upto=1)
    first, second = receiver.asked
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 30
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    assert first.body == second.body


async def test_without_secrets_nothing_is_signed_and_the_probe_says_so() -> None:
    async with receiving() as receiver, webhook(receiver.url) as sink:
        await sink.send([delivery(1)], upto=1)
        assert "unsigned" in await sink.probe()
    assert "webhook-signature" not in receiver.asked[0].headers
    assert receiver.asked[0].headers["webhook-id"] == delivery(1).id


@pytest.mark.parametrize("secret", ["", " \n", "whsec_", "whsec_canary!", "whsec_canary-of-url_safe_base64"])
async def test_secret_that_is_none_is_refused_and_not_shown(secret: str) -> None:
    async with receiving() as receiver, webhook(Given(receiver.url, secrets=[OLD, secret])) as sink:
        with pytest.raises(ConfigError, match="secrets") as caught:
            await sink.open()
        assert "canary" not in f"{caught.value}"
        assert (await failure(sink)).reason == "configuration"
    assert not receiver.asked


async def test_rotation_from_old_over_both_to_new_loses_no_delivery() -> None:
    """Sender and receiver change over in turn, never together; what is refused is sent again, under the same id."""
    known = [OLD]
    taken: list[str] = []

    def check(asked: Asked) -> Told:
        if not verified(asked, *known):
            return Told(status=401)
        taken.append(asked.headers["webhook-id"])
        return FINE

    async with receiving() as receiver:
        receiver.answer = check
        given = Given(receiver.url, secrets=[OLD])
        steps: list[Callable[[], None]] = [
            lambda: None,
            lambda: setattr(given, "secrets", [OLD, NEW]),
            lambda: known.__setitem__(slice(None), [PLAIN]),
            lambda: setattr(given, "secrets", [NEW]),
        ]
        async with webhook(given) as sink:
            for number, step in enumerate(steps):
                step()
                for position in range(number * 10 + 1, number * 10 + 11):
                    await sink.send([delivery(position)], upto=position)
            given.secrets = [OLD]  # a mistake: held, not lost
            error = await failure(sink, 41)
            assert (type(error), error.reason) == (Unavailable, "http_401")
            given.secrets = [NEW]
            await sink.send([delivery(41)], upto=41)
    assert taken == [delivery(position).id for position in range(1, 42)]
    assert receiver.asked[10].headers["webhook-signature"].count("v1,") == 2


# -- what answers mean ------------------------------------------------------------------------------------------------


async def test_every_status_means_what_the_contract_says(capsys: pytest.CaptureFixture[str]) -> None:
    async with receiving() as receiver, webhook(Given(receiver.url, secrets=[OLD, NEW]), timeout_seconds=0.5) as sink:
        outcomes = await outcomes_by_status(receiver, sink, delivery(1))
    with capsys.disabled():
        print(f"\nwebhook\n{table(outcomes)}")  # noqa: T201
    assert outcomes == {status: contracted(status) for status in outcomes}


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (400, Refused, "http_400"),
        (401, Unavailable, "http_401"),
        (410, Gone, "gone"),
        (413, Refused, "http_413"),
        (429, Unavailable, "throttled"),
        (302, Unavailable, "http_302"),
        (503, Unavailable, "http_503"),
        (499, Refused, "http_4xx"),
        (520, Unavailable, "http_5xx"),
        (399, Unavailable, "http_3xx"),
        (999, Unavailable, "http_other"),
    ],
)
async def test_reason_is_one_of_a_closed_set_and_the_text_says_what_was_answered(
    status: int, kind: type[SinkError], reason: str
) -> None:
    async with receiving() as receiver, webhook(receiver.url) as sink:
        receiver.says(Told(status=status, body=b'{"error":\n\x1b[31m"no such tenant"}' + b"x" * 10_000))
        error = await failure(sink)
        assert (type(error), error.reason) == (kind, reason)
        assert f"webhook soar: 127.0.0.1 answered {status}" in str(error)
        assert '"no such tenant"' in str(error)
        assert len(str(error)) < 400
        assert str(error).isprintable()
        if isinstance(error, Refused):
            assert error.positions[1].startswith(f"status {status}: ")


async def test_redirects_are_not_followed() -> None:
    async with receiving() as elsewhere, receiving() as receiver, webhook(receiver.url) as sink:
        for status in (301, 302, 303, 307, 308):
            receiver.says(Told(status=status, headers={"location": elsewhere.url}))
            assert (await failure(sink)).reason == f"http_{status}"
    assert not elsewhere.asked


async def test_answer_that_repeats_our_secrets_shows_none_of_them() -> None:
    def echo(asked: Asked) -> Told:
        headers = "\n".join(asked.headers.values())
        return Told(status=400, body=f"cannot POST {asked.target}\n{headers}".encode())

    async with receiving() as receiver:
        receiver.answer = echo
        given = Given(receiver.url, headers={"authorization": "Bearer canary-of-a-header"}, secrets=[OLD])
        async with webhook(given) as sink:
            error = await failure(sink)
    assert isinstance(error, Refused)
    assert "canary" not in str(error.positions)
    assert "cannot POST ***" in str(error)


NOW = 1_780_000_000
HTTP_NOW = email.utils.formatdate(NOW, usegmt=True)
IN_5_MINUTES = email.utils.formatdate(NOW + 300, usegmt=True)


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "7"}, 7),
        (503, {"retry-after": "120"}, 120),
        (301, {"retry-after": "5"}, 5),
        (401, {"retry-after": "5"}, 5),
        (503, {"retry-after": " 0000000000120 "}, 120),
        (503, {"retry-after": IN_5_MINUTES}, 300),
        (503, {"retry-after": "Fri, 29 May 2099 20:26:40 GMT"}, 86_400),
        (503, {"retry-after": "86401"}, 86_400),
        (503, {"retry-after": "9" * 4000}, 86_400),
        # A server whose clock is an hour ahead means five minutes all the same.
        (
            503,
            {
                "date": email.utils.formatdate(NOW + 3600, usegmt=True),
                "retry-after": email.utils.formatdate(NOW + 3900, usegmt=True),
            },
            300,
        ),
        (503, {"date": "yesterday", "retry-after": IN_5_MINUTES}, 300),
        (503, {}, None),
        (503, {"retry-after": "soon"}, None),
        (503, {"retry-after": "-5"}, None),
        (503, {"retry-after": "1.5"}, None),
        (503, {"retry-after": ""}, None),
        (503, {"retry-after": "0"}, None),
        (503, {"retry-after": HTTP_NOW}, None),
        (429, {}, 60),
        (429, {"retry-after": "soon"}, 60),
        (429, {"retry-after": "0"}, 60),
        (429, {"retry-after": HTTP_NOW}, 60),
        (429, {"retry-after": "Sun, 31 Feb 2026 99:99:99 GMT"}, 60),
        (429, {"retry-after": "\xe9"}, 60),
    ],
)
async def test_retry_after(status: int, headers: dict[str, str], seconds: float | None) -> None:
    async with receiving() as receiver, webhook(receiver.url, clock=FakeClock(NOW * SECOND)) as sink:
        receiver.says(Told(status=status, headers=headers))
        error = await failure(sink)
    assert isinstance(error, Unavailable)
    assert error.retry_after_seconds == seconds


# -- what is no answer ------------------------------------------------------------------------------------------------


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (stall, "timeout"),
        (raw(HEAD, close=False), "timeout"),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n", close=False), "timeout"),
        (raw(b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n", repeated=True), "timeout"),
        (dripping(200), "timeout"),
        (raw(HEAD + b"content-length: 100\r\n\r\nstart", close=False), "timeout"),
        (reset, "reset"),
        (hang_up, "reset"),
        (truncated(200), "truncated"),
        (raw(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nabc"), "truncated"),
        (raw(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"), "protocol"),
        (raw(b"220 smtp.test ESMTP canary\r\n\r\n"), "protocol"),
        (raw(b"HTTP/1.1 20 OK\r\n\r\n"), "protocol"),
        (raw(b"HTTP/1.1 -200 OK\r\n\r\n"), "protocol"),
        (raw(b"HTTP/1.1 2000 OK\r\n\r\n"), "protocol"),
        (raw(b"HTTP/9.9 200 OK\r\n\r\n"), "protocol"),
        (raw(b"HTTP/1.1 200 \xff\xfe\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"), "protocol"),
        (raw(HEAD + b"x: " + b"y" * 100_000 + b"\r\n\r\n"), "protocol"),
        (raw(HEAD + b"".join(b"x-%d: y\r\n" % n for n in range(100_000)) + b"\r\n"), "protocol"),
        (raw(HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcde"), "protocol"),
        (raw(HEAD + b"no colon\r\n\r\n"), "protocol"),
        (raw(b"\0" * 1000), "protocol"),
        (raw(b"x" * 1000, repeated=True), "protocol"),
    ],
)
async def test_what_is_no_whole_answer_is_unavailable_in_time_and_the_next_event_gets_through(
    script: Script, reason: str
) -> None:
    async with receiving() as receiver, webhook(receiver.url, timeout_seconds=0.3) as sink:
        receiver.says(script)
        began = time.monotonic()
        error = await failure(sink)
        assert time.monotonic() - began < 1.5
        assert (type(error), error.reason) == (Unavailable, reason)
        assert "127.0.0.1" in str(error)
        receiver.says(FINE)
        await sink.send([delivery(2)], upto=2)


async def test_mutated_heads_of_answers_end_in_our_errors() -> None:
    """Whatever a library makes of odd bytes, cookies and dates included, it must not end the relay."""
    rng = random.Random(1)
    cookie = "set-cookie: a=1; expires=Thu, 28 May 2026 20:26:40 GMT; max-age=9; version=1; path=/x"
    cookies = "\r\n".join((cookie, cookie.replace("cookie", "cookie2")))
    head = f"HTTP/1.1 503 No\r\ndate: {HTTP_NOW}\r\nretry-after: {IN_5_MINUTES}\r\n{cookies}\r\n".encode()
    outcomes = set()
    async with receiving() as receiver, webhook(receiver.url, timeout_seconds=0.3) as sink:
        for _ in range(400):
            mutated = bytearray(head)
            for _ in range(rng.choice((1, 2, 4))):
                at = rng.randrange(len(mutated))
                odd = (b"\xff", b"\0", b":", b"\r\n", b" ", b"9", b"\xc3", b";", b"=", b'"', b"")
                mutated[at : at + rng.randrange(2)] = rng.choice(odd)
            receiver.says(raw(bytes(mutated) + b"content-length: 2\r\n\r\n{}"))
            try:
                await sink.send([delivery(1)], upto=1)
                outcomes.add("delivered")
            except SinkError as error:
                outcomes.add(error.reason)
    assert {"http_503", "protocol"} <= outcomes <= {"delivered", *REASONS}


@pytest.mark.parametrize("script", [truncated, dripping, endless, bomb])
async def test_broken_body_of_a_refusal_does_not_hide_what_the_status_says(script: Callable[[int], Script]) -> None:
    async with receiving() as receiver, webhook(receiver.url, timeout_seconds=0.3) as sink:
        for status, kind in ((400, Refused), (410, Gone), (503, Unavailable)):
            receiver.says(script(status))
            began = time.monotonic()
            assert isinstance(await failure(sink), kind)
            assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("script", [endless(200), bomb(200), bomb(200, encoding="deflate"), bomb(200, encoding="br")])
async def test_success_with_more_body_than_anybody_wants_is_success(script: Script) -> None:
    async with receiving() as receiver, webhook(receiver.url) as sink:
        receiver.says(script)
        began = time.monotonic()
        await sink.send([delivery(1)], upto=1)
        assert time.monotonic() - began < 4


async def test_body_of_an_answer_is_cut_and_unpacked() -> None:
    async with receiving() as receiver:
        poster = Poster(
            "x", url=lambda: receiver.url, http=http_client(proxy="none"), timeout_seconds=5, clock=SystemClock()
        )
        for told, body in [
            (Told(body=b"ok"), b"ok"),
            (Told(body=b"." * 100_000), b"." * 65_536),
            (Told(body=gzip.compress(b"ok"), headers={"content-encoding": "GZIP"}), b"ok"),
            (Told(body=b"ok", headers={"content-encoding": "gzip"}), b"ok"),
            (Told(body=b"ok", headers={"content-encoding": "gzip, gzip"}), b"ok"),
        ]:
            receiver.says(told)
            reply = await poster.post(b"{}", {"content-type": "application/json"})
            assert (reply.body, reply.host) == (body, "127.0.0.1")
        assert reply.headers["content-encoding"] == "gzip, gzip"
        await poster.close()
    assert receiver.asked[0].headers["accept-encoding"] == "identity"


async def test_large_event_that_is_refused_before_it_was_read_is_refused_in_time() -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Told(status=413).bytes())
        await asyncio.sleep(5)

    async with receiving() as receiver, webhook(receiver.url, timeout_seconds=2) as sink:
        receiver.greet = refuse
        began = time.monotonic()
        with pytest.raises(Refused):
            await sink.send([delivery(1, text=LARGE)], upto=1)
        assert time.monotonic() - began < 3.5


async def test_receiver_that_reads_nothing_is_a_timeout() -> None:
    async def ignore(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        await asyncio.sleep(3)

    async with receiving() as receiver, webhook(receiver.url, timeout_seconds=0.5) as sink:
        receiver.greet = ignore
        with pytest.raises(Unavailable) as caught:
            await sink.send([delivery(1, text=LARGE)], upto=1)
        assert caught.value.reason == "timeout"


async def test_large_event_is_sent_whole() -> None:
    async with receiving() as receiver, webhook(receiver.url) as sink:
        large = delivery(1, text=LARGE)
        await sink.send([large], upto=1)
    (asked,) = receiver.asked
    assert large.body in asked.body
    assert "transfer-encoding" not in asked.headers


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{port}/canary", "connect"),
        ("https://127.0.0.1:{port}/canary", "connect"),
        ("http://no-such-host.invalid/canary", "dns"),
    ],
)
async def test_receiver_that_is_not_there_is_unavailable_to_open_probe_and_send(url: str, reason: str) -> None:
    async with webhook(url.format(port=unused_port())) as sink:
        assert (await failure(sink)).reason == reason
        for call in (sink.open, sink.probe):
            with pytest.raises(Unavailable) as caught:
                await call()
            assert caught.value.reason == reason
            assert "canary" not in f"{caught.value} {caught.value.__context__!r}"


async def test_receiver_that_accepts_and_then_says_no_tls_in_time_is_a_timeout_to_the_probe() -> None:
    async with receiving() as receiver, webhook(receiver.url.replace("http", "https"), timeout_seconds=0.3) as sink:
        with pytest.raises(Unavailable) as caught:
            await sink.probe()
        assert caught.value.reason in {"timeout", "tls"}


async def test_cookies_of_a_receiver_are_dropped() -> None:
    """Each answer may bring another; kept, they would grow for ever, and go back to whoever asks."""
    async with receiving() as receiver, webhook(receiver.url) as sink:
        receiver.says(Told(headers={"set-cookie": "session=1; path=/"}))
        for position in range(3):
            await sink.send([delivery(position)], upto=None)
    assert not any("cookie" in asked.headers for asked in receiver.asked)


async def test_1000_cancelled_sends_leave_the_sink_usable() -> None:
    async with receiving() as receiver, webhook(receiver.url) as sink:
        receiver.says(stall)
        for batch in range(10):
            tasks = [asyncio.create_task(sink.send([delivery(n)], upto=None)) for n in range(100)]
            await asyncio.sleep(0.005 * (batch % 4))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        receiver.says(FINE)
        await asyncio.gather(*(sink.send([delivery(n)], upto=None) for n in range(100)))


async def test_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async with receiving() as receiver, webhook(receiver.url) as sink:
        for position in range(5):
            await sink.send([delivery(position)], upto=None)
            receiver.hang_up()
            await asyncio.sleep(0.05)
    assert len(receiver.asked) == receiver.connections == 5


async def test_open_leaves_the_line_open_for_the_first_event() -> None:
    async with receiving() as receiver, webhook(receiver.url) as sink:
        await sink.open()
        assert not receiver.asked
        await sink.send([delivery(1)], upto=1)
    assert receiver.connections == 1


def test_representation_shows_nothing() -> None:
    sink = WebhookSink(
        "soar",
        url=lambda: "https://canary.test",
        secrets=lambda: ["canary"],
        headers=lambda: {"x": "canary"},
        http=http_client(proxy="none"),
        timeout_seconds=1,
        omit=(),
        clock=SystemClock(),
    )
    assert repr(sink) == "WebhookSink('webhook soar')"


# -- TLS and proxies --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def test_certificate_of_nobody_known_is_a_tls_failure_until_its_authority_is_named(
    certificates: Certificates,
) -> None:
    async with receiving(tls=server_tls(certificates)) as receiver:
        async with webhook(receiver.url) as sink:
            assert (await failure(sink)).reason == "tls"
            with pytest.raises(Unavailable, match="TLS") as caught:
                await sink.probe()
            assert caught.value.reason == "tls"
        trusting = http_client(proxy="none", tls=tls_context(ca_file=certificates.ca), guarded=True)
        async with webhook(receiver.url, http=trusting) as sink:
            assert await sink.probe() == (
                "127.0.0.1 resolves to a loopback address and accepts TLS; events are unsigned: secrets is empty"
            )
            await sink.send([delivery(1)], upto=1)
        async with webhook(receiver.url.replace("127.0.0.1", "localhost"), http=trusting) as sink:
            assert (await failure(sink)).reason == "tls"
    assert len(receiver.asked) == 1


async def test_client_certificate_is_shown_when_asked_for(certificates: Certificates) -> None:
    tls = tls_context(ca_file=certificates.ca, cert_file=certificates.client, key_file=certificates.client)
    async with receiving(tls=server_tls(certificates, ask_client=True)) as receiver:
        async with webhook(receiver.url, http=http_client(proxy="none", tls=tls, guarded=True)) as sink:
            await sink.send([delivery(1)], upto=1)
        without = http_client(proxy="none", tls=tls_context(ca_file=certificates.ca), guarded=True)
        async with webhook(receiver.url, http=without) as sink:
            assert (await failure(sink)).reason in {"tls", "reset"}


@asynccontextmanager
async def proxying(target_port: int) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy that leads everybody to this port, whatever they ask for; and the heads of what it was asked."""
    heads: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", target_port)
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head)
            if head.startswith(b"CONNECT"):
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                back.write(head)
            pumps = [asyncio.ensure_future(pump(reader, back)), asyncio.ensure_future(pump(there, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
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


async def test_events_and_probes_go_through_the_proxy(certificates: Certificates) -> None:
    async with receiving(tls=server_tls(certificates)) as receiver, proxying(receiver.port) as (port, heads):
        tls = tls_context(ca_file=certificates.ca)
        http = http_client(proxy=f"http://user:canary@127.0.0.1:{port}", tls=tls, guarded=True)
        async with webhook(receiver.url, http=http) as sink:
            assert (await sink.probe()).startswith("127.0.0.1 is reached through the proxy and accepts TLS")
            await sink.send([delivery(1)], upto=1)
        assert receiver.connections == 1
        assert heads[0].startswith(b"CONNECT 127.0.0.1:")
        assert b"canary" not in b"".join(heads)

        gone = http_client(proxy=f"http://user:canary@127.0.0.1:{unused_port()}", tls=tls, guarded=True)
        async with webhook(receiver.url, http=gone) as sink:
            assert (await failure(sink)).reason == "proxy"


async def test_address_rules_are_the_proxys_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay never learns to which address a proxy goes; NO_PROXY brings the rules back."""
    url = "http://169.254.169.254/canary"
    async with receiving() as receiver, proxying(receiver.port) as (port, _):
        async with webhook(url, http=http_client(proxy=f"http://127.0.0.1:{port}", guarded=True)) as sink:
            await sink.send([delivery(1)], upto=1)
        assert len(receiver.asked) == 1
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "169.254.169.254")
        async with webhook(url, http=http_client(proxy="env", guarded=True)) as sink:
            assert (await failure(sink)).reason == "address"


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "[::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[FD00:0EC2:0:0:0:0:0:0254]",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::169.254.169.254]",
        "[::169.254.169.254]",
        "[2002:a9fe:a9fe::1]",
        "[ff02::1]",
        "0xa9fea9fe",
        "0xa9.0xfe.0xa9.0xfe",
        "0251.0376.0251.0376",
        "2852039166",
        "169.254.43518",
        "169.16689662",
        "0",
        "0x0",
        "169.254.169.254.",
        "１６９.２５４.１６９.２５４",
        "169。254。169。254",
    ],
)
async def test_no_spelling_of_a_refused_address_is_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sockets are real up to the moment in which they would connect."""
    tried: list[Any] = []

    async def connecting(_loop: object, _socket: socket.socket, address: Any) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("asyncio.selector_events.BaseSelectorEventLoop.sock_connect", connecting)
    async with webhook(f"http://{host}:8080/canary") as sink:
        error = await failure(sink)
        assert isinstance(error, Unavailable)
        # What aiohttp or httpx do not take for a host at all never gets as far as an address.
        assert error.reason in {"address", "protocol", "configuration", "dns"}
        with pytest.raises((Unavailable, ConfigError)):
            await sink.probe()
    assert tried == []


@pytest.mark.parametrize(
    "found", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1%lo", "fd00:ec2::254", "0.0.0.0"]
)
async def test_name_that_leads_to_a_refused_address_is_refused_after_dns(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, [found])
    async with webhook("http://harmless.example/canary") as sink:
        assert (await failure(sink)).reason == "address"
        with pytest.raises(Unavailable, match=r"harmless\.example: its address is link-local") as caught:
            await sink.probe()
        assert caught.value.reason == "address"


async def test_name_that_changes_its_address_between_two_requests_is_refused_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with receiving() as receiver, webhook(f"http://harmless.example:{receiver.port}/") as sink:
        resolve_to(monkeypatch, ["127.0.0.1"])
        await sink.send([delivery(1)], upto=1)
        await sink.close(1)
        resolve_to(monkeypatch, ["169.254.169.254"])
        assert (await failure(sink)).reason == "address"
    assert len(receiver.asked) == 1


async def test_name_with_a_good_address_beside_a_refused_one_is_reached_at_the_good_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve_to(monkeypatch, ["fe80::1", "169.254.169.254", "127.0.0.1"])
    async with receiving() as receiver, webhook(f"http://harmless.example:{receiver.port}/") as sink:
        await sink.send([delivery(1)], upto=1)
        assert "resolves to a loopback address and accepts connections, without TLS" in await sink.probe()


async def test_client_that_is_not_guarded_connects_anywhere() -> None:
    """What a source names is the administrator's own; and the tests above would pass if nothing ever connected."""
    async with receiving() as receiver:
        for host, http in (
            ("0.0.0.0", http_client(proxy="none")),
            ("127.0.0.1", http_client(proxy="none", guarded=True)),
            ("localhost", http_client(proxy="none", guarded=True)),
            ("0x7f.1", http_client(proxy="none", guarded=True)),
        ):
            async with webhook(f"http://{host}:{receiver.port}/", http=http) as sink:
                await sink.send([delivery(1)], upto=1)
        assert len(receiver.asked) == 4


def resolve_to(monkeypatch: pytest.MonkeyPatch, addresses: Sequence[str]) -> None:
    async def resolve(
        _self: object, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in addresses
        ]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)


def test_reasons_are_a_closed_set_without_repeats() -> None:
    assert len(set(REASONS)) == len(REASONS)
    assert set(FAILURE_REASONS) < set(REASONS)
