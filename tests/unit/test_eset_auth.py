"""Logins, refreshes, refused passwords; and that no secret ever shows."""

import asyncio
import json
import traceback
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import structlog

from relay.clock import SECOND
from relay.errors import BadAnswer, LoginRefused, SourceError, SourceUnavailable
from relay.eset.auth import Ticket
from relay.eset.client import Patience
from relay.eset.wire import decode_page
from tests.support.clock import START
from tests.support.eset import PASSWORD, TOKEN_URL, Bench


async def ask(bench: Bench) -> None:
    await bench.client.list_incidents(filter="f", order_by="o", page_size=1, decode=decode_page)


async def test_login_is_a_form_with_the_password_encoded() -> None:
    bench = Bench()
    await bench.account.token()
    (request,) = bench.far.iam_requests
    assert str(request.url) == TOKEN_URL
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["3rd-integration"] == "incident-relay"
    assert parse_qs(request.content.decode("ascii"), strict_parsing=True) == {
        "grant_type": ["password"],
        "username": ["api@acme.example"],
        "password": [PASSWORD],
    }


async def test_token_serves_until_shortly_before_it_expires() -> None:
    bench = Bench()
    bench.far.expires_in = 1000
    await ask(bench)
    bench.clock.advance(939)
    await ask(bench)
    assert bench.far.grants() == ["password"]
    bench.clock.advance(2)
    await ask(bench)
    assert bench.far.grants() == ["password", "refresh_token"]


async def test_refresh_tokens_rotate() -> None:
    bench = Bench()
    for _ in range(4):
        await ask(bench)
        bench.clock.advance(3600)
    sent = [parse_qs(request.content.decode()).get("refresh_token") for request in bench.far.iam_requests]
    assert sent == [None, ["canary-refresh-1"], ["canary-refresh-2"], ["canary-refresh-3"]]


@pytest.mark.parametrize("expires_in", [None, 0, -1, "soon", "Infinity", "NaN"])
async def test_token_without_a_usable_expiry_serves_until_a_401(expires_in: Any) -> None:
    bench = Bench()
    bench.far.expires_in = expires_in
    await ask(bench)
    bench.clock.advance(1e6)
    await ask(bench)
    assert bench.far.grants() == ["password"]
    bench.far.api = [httpx.Response(401)]
    await ask(bench)
    assert bench.far.grants() == ["password", "refresh_token"]


async def test_expiry_in_a_string_counts() -> None:
    bench = Bench()
    bench.far.expires_in = "100"
    await ask(bench)
    bench.clock.advance(91)
    await ask(bench)
    assert len(bench.far.iam_requests) == 2


@pytest.mark.parametrize("token_type", ["bearer", "BEARER", None])
async def test_token_type_has_no_case(token_type: str | None) -> None:
    bench = Bench()
    bench.far.iam = [lambda _: bench.far.token(token_type=token_type)]
    await ask(bench)
    assert bench.far.api_requests[0].headers["authorization"] == "Bearer canary-access-1"


@pytest.mark.parametrize(
    "changes",
    [
        {"token_type": "mac"},
        {"access_token": ""},
        {"access_token": "canary\r\nx: y"},
        {"access_token": "canary ☃"},
        {"access_token": None},
    ],
)
async def test_token_that_cannot_be_used_is_a_bad_answer(changes: dict[str, Any]) -> None:
    bench = Bench(patience=Patience(tries=1))
    bench.far.iam = [lambda _: bench.far.token(**changes)]
    with pytest.raises(BadAnswer) as caught:
        await ask(bench)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "refused", [httpx.Response(400), httpx.Response(401), httpx.Response(403), httpx.Response(404)]
)
async def test_refused_refresh_falls_back_to_the_password(refused: httpx.Response) -> None:
    bench = Bench()
    await ask(bench)
    bench.far.api = [httpx.Response(401)]
    bench.far.iam = [refused]
    await ask(bench)
    assert bench.far.grants() == ["password", "refresh_token", "password"]


async def test_refresh_whose_answer_was_lost_is_never_sent_again() -> None:
    """The server may have rotated the token already."""
    bench = Bench(patience=Patience(tries=1))
    await ask(bench)
    bench.clock.advance(3600)
    bench.far.iam = [httpx.ReadError("lost")]
    with pytest.raises(SourceUnavailable):
        await ask(bench)
    await ask(bench)
    assert bench.far.grants() == ["password", "refresh_token", "password"]


async def test_login_without_a_refresh_token_logs_in_again() -> None:
    bench = Bench()
    bench.far.iam = [lambda _: bench.far.token(refresh_token=None)]
    await ask(bench)
    bench.clock.advance(3600)
    await ask(bench)
    assert bench.far.grants() == ["password", "password"]


async def test_token_endpoint_may_answer_202_and_be_slow_or_broken() -> None:
    bench = Bench()
    bench.far.iam = [
        httpx.Response(503),
        httpx.Response(429, headers={"retry-after": "5"}),
        httpx.Response(202, headers={"response-id": "r1"}),
        httpx.Response(202, headers={"response-id": "r1"}),
        httpx.Response(404),
        httpx.Response(200, text="<html>"),
    ]
    await ask(bench)
    ids = [request.headers.get("response-id", "") for request in bench.far.iam_requests]
    assert ids == ["", "", "", "r1", "r1", "", ""]
    assert len({request.content for request in bench.far.iam_requests}) == 1


ODD_LOGINS: list[tuple[Any, type[SourceError], str]] = [
    (lambda: httpx.Response(202), SourceUnavailable, "unavailable"),
    (lambda: httpx.Response(202, headers={"response-id": "r"}), SourceUnavailable, "pending"),
    (lambda: httpx.Response(403, text="<html>"), LoginRefused, "login_refused"),
    (lambda: httpx.Response(500), SourceUnavailable, "unavailable"),
    (lambda: httpx.Response(504), SourceUnavailable, "expired"),
    (lambda: httpx.Response(200, text="<html>log in</html>"), BadAnswer, "bad_answer"),
    (lambda: httpx.Response(200, text="null"), BadAnswer, "bad_answer"),
    (lambda: httpx.Response(200, text="[]"), BadAnswer, "bad_answer"),
    (lambda: httpx.Response(200, text='{"access_token":"canary"'), BadAnswer, "bad_answer"),
    (lambda: httpx.Response(200, content=b'{"access_token":"\xff"}'), BadAnswer, "bad_answer"),
    (lambda: httpx.Response(200, text='{"new":' + "[" * 5000 + "]" * 5000 + "}"), BadAnswer, "bad_answer"),
    (lambda: httpx.Response(429, headers={"retry-after": "3600"}), SourceUnavailable, "throttled"),
]


@pytest.mark.parametrize(("odd", "kind", "reason"), ODD_LOGINS)
async def test_login_that_stays_odd_fails_by_its_name(odd: Any, kind: type[SourceError], reason: str) -> None:
    bench = Bench()
    bench.far.iam = [odd() for _ in range(40)]
    with pytest.raises(SourceError) as caught:
        await ask(bench)
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert "canary" not in str(caught.value)
    assert not bench.far.api_requests
    bench.far.iam = []
    bench.clock.advance(3600)
    await ask(bench)


async def test_expiry_beyond_every_number_is_none() -> None:
    bench = Bench()
    bench.far.iam = [httpx.Response(200, text='{"access_token":"canary-access-1","expires_in":' + "9" * 400 + "}")]
    await ask(bench)
    bench.clock.advance(1e6)
    await ask(bench)
    assert bench.far.grants() == ["password"]


@pytest.mark.parametrize("password", ["&=+%", "%26%3D", "a b\tc", "ü☃😀", "\x00", "+" * 64, 'quote"\\'])
async def test_odd_passwords_arrive_as_they_are(password: str) -> None:
    bench = Bench(secret=lambda: password)
    await bench.account.token()
    sent = parse_qs(bench.far.iam_requests[0].content.decode("ascii"), strict_parsing=True)
    assert sent["password"] == [password]


async def test_password_that_is_no_text_is_a_refused_login_without_a_request() -> None:
    bench = Bench(secret=lambda: "canary\udcff")
    with pytest.raises(LoginRefused):
        await ask(bench)
    assert not bench.far.iam_requests


# -- refused logins ---------------------------------------------------------------------------------------------------


def refusal(status: int = 401) -> httpx.Response:
    return httpx.Response(status, json={"error": "invalid_grant", "detail": PASSWORD}, headers={"request-id": "q-1"})


@pytest.mark.parametrize(
    ("status", "hint"), [(400, "password"), (401, "password"), (403, "rights"), (404, "token_url")]
)
async def test_refused_login_says_what_to_look_at(status: int, hint: str) -> None:
    bench = Bench()
    bench.far.iam = [refusal(status)]
    with pytest.raises(LoginRefused) as caught:
        await ask(bench)
    assert caught.value.status == status
    assert hint in caught.value.hint
    assert "q-1" in str(caught.value)
    assert not bench.far.api_requests


async def test_refused_login_backs_off_from_a_minute_to_an_hour_without_a_request() -> None:
    bench = Bench()
    bench.far.iam = [refusal() for _ in range(9)]
    waits = []
    for tries in range(1, 10):
        with pytest.raises(LoginRefused):
            await ask(bench)
        until = bench.account.refused_until
        assert until is not None
        waits.append(round((until - bench.clock.now()) / SECOND))
        for _ in range(5):
            with pytest.raises(LoginRefused):
                await ask(bench)
        assert len(bench.far.iam_requests) == tries
        bench.clock.advance(waits[-1] + 0.001)
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    await ask(bench)
    assert bench.account.refused_until is None


async def test_changed_secret_ends_the_backoff_and_begins_a_new_one() -> None:
    secrets = ["wrong-1"]
    bench = Bench(secret=lambda: secrets[0])
    bench.far.iam = [refusal(), refusal(), refusal()]
    for password in ("wrong-1", "wrong-2", "wrong-2"):
        secrets[0] = password
        with pytest.raises(LoginRefused):
            await ask(bench)
    assert len(bench.far.iam_requests) == 2
    assert bench.account.refused_until == START + 60 * SECOND
    secrets[0] = PASSWORD
    bench.far.iam = []
    await ask(bench)
    assert bench.account.refused_until is None


@pytest.mark.parametrize("trouble", [FileNotFoundError("gone"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")])
async def test_secret_that_cannot_be_read_is_a_refused_login_without_a_request(trouble: Exception) -> None:
    def unreadable() -> str:
        raise trouble

    bench = Bench(secret=unreadable)
    with pytest.raises(LoginRefused):
        await ask(bench)
    assert not bench.far.iam_requests


# -- many at once -----------------------------------------------------------------------------------------------------


async def test_twenty_401_at_once_make_one_refresh() -> None:
    bench = Bench()
    await ask(bench)
    gate = asyncio.Event()
    stale = 0

    async def far(request: httpx.Request) -> httpx.Response:
        nonlocal stale
        if request.headers.get("authorization") == "Bearer canary-access-1":
            stale += 1
            if stale == 20:
                gate.set()
            await gate.wait()
            return httpx.Response(401)
        await asyncio.sleep(0)
        return bench.far.handle(request)

    bench.http._transport = httpx.MockTransport(far)
    await asyncio.gather(*(ask(bench) for _ in range(20)))
    assert bench.far.grants() == ["password", "refresh_token"]


async def test_twenty_requests_share_one_failed_login() -> None:
    bench = Bench(patience=Patience(tries=2))

    async def far(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        bench.far.iam_requests.append(request)
        return httpx.Response(503)

    bench.http._transport = httpx.MockTransport(far)
    results = await asyncio.gather(*(ask(bench) for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {SourceUnavailable}
    assert len(bench.far.iam_requests) == 2


async def test_cancelled_login_leaves_the_next_one_free() -> None:
    bench = Bench()

    async def stall(_request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    transport = bench.http._transport
    bench.http._transport = httpx.MockTransport(stall)
    first = asyncio.create_task(ask(bench))
    second = asyncio.create_task(ask(bench))
    await asyncio.sleep(0.01)
    bench.http._transport = transport
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second


# -- secrets ----------------------------------------------------------------------------------------------------------


async def test_reprs_show_no_secret() -> None:
    bench = Bench()
    bench.far.iam = [refusal()]
    with pytest.raises(LoginRefused):
        await bench.account.token()
    bench.clock.advance(61)
    token = await bench.account.token()
    ticket = Ticket(bench.account)
    await ticket.header()
    for thing in (bench.account, token, ticket, bench.client):
        assert "canary" not in repr(thing)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 429, 500, 501, 504])
@pytest.mark.parametrize("where", ["api", "iam", "refresh"])
async def test_no_error_and_no_log_line_ever_holds_a_secret(status: int, where: str) -> None:
    """The far side echoes everything it was sent, and everything it ever issued."""
    bench = Bench(patience=Patience(tries=2, total_seconds=50))

    def echo(request: httpx.Request) -> httpx.Response:
        said = f"{dict(request.headers)} {request.content.decode()} {PASSWORD} " + " ".join(
            f"canary-{kind}-{n}" for kind in ("access", "refresh") for n in range(1, 9)
        )
        return httpx.Response(status, text=json.dumps({"message": said}), headers={"request-id": "q"})

    if where == "refresh":
        await ask(bench)
        bench.clock.advance(3600)
    script = bench.far.api if where == "api" else bench.far.iam
    script += [echo] * 40
    with structlog.testing.capture_logs() as lines, pytest.raises(SourceError) as caught:
        await ask(bench)
    # Tokens that were never issued to us in this test are not ours to know.
    issued = len(bench.far.iam_requests)
    shown = str(lines) + "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__)
    assert PASSWORD not in shown
    assert not any(f"canary-{kind}-{n}" in shown for kind in ("access", "refresh") for n in range(1, issued + 1))
    assert caught.value.__context__ is None or "canary" not in repr(caught.value.__context__)
