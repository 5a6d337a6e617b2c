"""Every row of the table of answers, end to end through the client, against a scripted far side."""

import asyncio
import html
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest
import structlog

from relay import __version__
from relay.clock import SECOND
from relay.errors import AccessDenied, BadAnswer, QueryRefused, RelayError, SourceError, SourceUnavailable
from relay.eset.client import Answer, Patience
from relay.eset.wire import DecodedPage, decode_page
from relay.incidents import Observed
from tests.support.clock import START
from tests.support.eset import API, EMPTY_PAGE, PASSWORD, Bench, date_header

FILTER = 'incident.update_time >= timestamp("2026-05-28T20:26:40.000Z")'
RECORD = {"uuid": "u/1", "createTime": "2026-01-02T03:04:05Z"}


def answer(status: int, body: str | bytes = b"", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=body, headers=named)


def pending(response_id: str = "r1", **headers: str) -> httpx.Response:
    return answer(202, "null", response_id=response_id, **headers)


async def ask(
    bench: Bench, where: str = FILTER, order: str = "update_time,uuid", token: str = ""
) -> Answer[DecodedPage]:
    return await bench.client.list_incidents(
        filter=where, order_by=order, page_size=1000, page_token=token, decode=decode_page
    )


async def failure(bench: Bench, **kwargs: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await ask(bench, **kwargs)
    return caught.value


# -- the request ------------------------------------------------------------------------------------------------------


async def test_request_says_what_is_asked_and_by_whom() -> None:
    bench = Bench()
    await ask(bench, token="t/o+k=e&n")
    (request,) = bench.far.api_requests
    assert request.url.path == "/v2/incidents"
    assert dict(request.url.params) == {
        "filter": FILTER,
        "orderBy": "update_time,uuid",
        "pageSize": "1000",
        "pageToken": "t/o+k=e&n",
    }
    assert request.headers["3rd-integration"] == "incident-relay"
    assert request.headers["user-agent"] == f"incident-relay/{__version__}"
    assert request.headers["accept"] == "application/json"
    assert request.headers["authorization"] == "Bearer canary-access-1"
    assert "response-id" not in request.headers


async def test_empty_texts_are_not_sent() -> None:
    bench = Bench()
    await ask(bench, where="", order="")
    assert dict(bench.far.api_requests[0].url.params) == {"pageSize": "1000"}


async def test_answer_carries_content_and_request_id() -> None:
    bench = Bench()
    bench.far.api = [answer(200, json.dumps({"incidents": [RECORD], "nextPageToken": "t"}), request_id="q-1")]
    found = await ask(bench)
    assert found.content.observed[0].uuid == "u/1"
    assert found.content.next_page_token == "t"
    assert found.request_id == "q-1"
    assert bench.noted.codes == ["200", "200"]


# -- time -------------------------------------------------------------------------------------------------------------


async def test_without_a_date_times_are_those_of_our_clock() -> None:
    bench = Bench()
    found = await ask(bench)
    assert (found.as_of, found.until, found.skew_seconds) == (START, START, None)


@pytest.mark.parametrize("skew", [-3600, -90, 0, 90, 3600])
async def test_as_of_takes_the_earlier_clock_and_until_the_later(skew: int) -> None:
    bench = Bench()
    bench.far.api = [httpx.Response(200, json=EMPTY_PAGE, headers=date_header(START + skew * SECOND))]
    found = await ask(bench)
    assert found.as_of == START + min(skew, 0) * SECOND
    assert found.until == START + max(skew, 0) * SECOND
    assert found.skew_seconds == skew


@pytest.mark.parametrize("date", ["nonsense", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_date_that_is_nonsense_leaves_the_times_to_our_clock(date: str) -> None:
    bench = Bench()
    bench.far.api = [httpx.Response(200, json=EMPTY_PAGE, headers={"date": date})]
    found = await ask(bench)
    assert (found.as_of, found.until, found.skew_seconds) == (START, START, None)


async def test_as_of_goes_back_to_when_a_202_chain_began() -> None:
    bench = Bench()
    bench.far.api = [pending(), pending(), pending()]
    found = await ask(bench)
    assert bench.clock.slept == [1, 2, 4]
    assert found.as_of == START
    assert found.until == START + 7 * SECOND


async def test_as_of_of_a_request_sent_afresh_starts_with_it() -> None:
    bench = Bench()
    bench.far.api = [pending(), pending(), answer(404)]
    assert (await ask(bench)).as_of == START + 3 * SECOND


# -- 202 and response-id ----------------------------------------------------------------------------------------------


async def test_202_is_collected_with_its_response_id_by_the_same_request() -> None:
    bench = Bench()
    bench.far.api = [pending("r1"), pending("r1"), answer(202, request_id="no new id")]
    await ask(bench)
    assert bench.far.response_ids() == ["", "r1", "r1", "r1"]
    assert len({request.url for request in bench.far.api_requests}) == 1
    assert bench.noted.throttles == [("202", 1), ("202", 2), ("202", 4)]


async def test_response_id_that_changes_within_its_chain_is_followed() -> None:
    bench = Bench()
    bench.far.api = [pending("r1"), pending("r2"), pending("r3"), answer(404), pending("r4")]
    await ask(bench)
    assert bench.far.response_ids() == ["", "r1", "r2", "r3", "", "r4"]


@pytest.mark.parametrize("odd", ["\xfc", "r\x01", ""])
async def test_response_id_that_cannot_be_sent_back_is_none(odd: str) -> None:
    bench = Bench()
    bench.far.api = [httpx.Response(202, headers=[(b"response-id", odd.encode("latin-1"))])]
    await ask(bench)
    assert bench.far.response_ids() == ["", ""]


async def test_202_for_ever_without_an_id_fails() -> None:
    bench = Bench()
    bench.far.api = [answer(202) for _ in range(4)]
    assert (await failure(bench)).reason == "unavailable"


async def test_response_id_is_forgotten_after_the_200() -> None:
    """A stale id kept after the 200 gave another integration endless 404s."""
    bench = Bench()
    bench.far.api = [pending("r1")]
    await ask(bench)
    await ask(bench)
    assert bench.far.response_ids() == ["", "r1", ""]


async def test_response_id_is_forgotten_when_its_200_cannot_be_read() -> None:
    bench = Bench()
    bench.far.api = [pending("r1"), answer(200, '{"incidents":[')]
    await ask(bench)
    assert bench.far.response_ids() == ["", "r1", ""]


async def test_202_chain_survives_401_and_5xx_with_its_id() -> None:
    bench = Bench()
    bench.far.api = [pending("r1"), answer(401), answer(502), httpx.ReadError("x")]
    await ask(bench)
    assert bench.far.response_ids() == ["", "r1", "r1", "r1", "r1"]
    assert bench.far.authorizations() == ["canary-access-1", "canary-access-1", *["canary-access-2"] * 3]


async def test_202_chain_is_given_up_after_10_minutes() -> None:
    bench = Bench()
    bench.far.api = [pending() for _ in range(100)]
    error = await failure(bench)
    assert isinstance(error, SourceUnavailable)
    assert error.reason == "pending"
    assert 540 <= bench.clock.monotonic() <= 600


async def test_202_without_an_id_is_sent_again() -> None:
    bench = Bench()
    bench.far.api = [answer(202)]
    await ask(bench)
    assert bench.far.response_ids() == ["", ""]


@pytest.mark.parametrize("ending", [404, 504])
async def test_expired_id_or_504_begins_afresh(ending: int) -> None:
    bench = Bench()
    bench.far.api = [pending("r1"), answer(ending), pending("r2"), answer(ending), pending("r3")]
    await ask(bench)
    assert bench.far.response_ids() == ["", "r1", "", "r2", "", "r3"]


async def test_three_rounds_are_enough() -> None:
    bench = Bench()
    bench.far.api = [answer(504), pending("r1"), answer(404), answer(504, request_id="q-9")]
    error = await failure(bench)
    assert (type(error), error.reason, error.status) == (SourceUnavailable, "expired", 504)
    assert "q-9" in str(error)
    assert len(bench.far.api_requests) == 4


# -- 401 and 400 ------------------------------------------------------------------------------------------------------


async def test_401_refreshes_once_then_logs_in_once_then_fails() -> None:
    bench = Bench()
    bench.far.api = [answer(401), answer(401), answer(401, request_id="q-1")]
    error = await failure(bench)
    assert bench.far.grants() == ["password", "refresh_token", "password"]
    assert bench.far.authorizations() == ["canary-access-1", "canary-access-2", "canary-access-3"]
    assert isinstance(error, AccessDenied)
    assert error.status == 401
    assert "region" in error.hint


@pytest.mark.parametrize("refusals", [1, 2])
async def test_401_with_a_token_that_can_be_replaced_is_no_failure(refusals: int) -> None:
    bench = Bench()
    bench.far.api = [answer(401) for _ in range(refusals)]
    await ask(bench)
    assert bench.far.grants() == ["password", "refresh_token", "password"][: refusals + 1]


async def test_token_revoked_amid_paging_costs_no_page() -> None:
    bench = Bench()
    more = [answer(200, json.dumps({"incidents": [RECORD], "nextPageToken": f"t{n}"})) for n in range(2)]
    bench.far.api = [more[0], answer(401), more[1]]
    for token in ("", "t0"):
        await ask(bench, token=token)
    tokens = [request.url.params.get("pageToken", "") for request in bench.far.api_requests]
    assert tokens == ["", "t0", "t0"]
    assert bench.far.grants() == ["password", "refresh_token"]


async def test_400_may_be_the_authorization_and_is_tried_with_another_token() -> None:
    bench = Bench()
    bench.far.api = [answer(400)]
    await ask(bench)
    assert bench.far.grants() == ["password", "refresh_token"]


async def test_400_is_the_query_when_a_fresh_token_does_not_help() -> None:
    bench = Bench()
    bench.far.api = [answer(400), answer(400, '{"code":3,"message":"bad\\nfilter"}', request_id="q-1")]
    error = await failure(bench)
    assert isinstance(error, QueryRefused)
    assert error.status == 400
    assert 'bad\\nfilter"}' in str(error)
    assert "q-1" in str(error)


async def test_400_costs_one_token_an_access_token() -> None:
    bench = Bench()
    bench.far.api = [answer(400) for _ in range(20)]
    for _ in range(10):
        assert isinstance(await failure(bench), QueryRefused)
    assert bench.far.grants() == ["password", "refresh_token"]
    assert len(bench.far.api_requests) == 11


async def test_400_doubts_the_next_access_token_once_more() -> None:
    bench = Bench()
    bench.far.api = [answer(400), answer(400), answer(401), answer(400), answer(400)]
    await failure(bench)
    await failure(bench)
    assert bench.far.grants() == ["password", "refresh_token", "refresh_token", "refresh_token"]


async def test_400_without_filter_and_order_is_no_matter_of_the_query() -> None:
    """A page token that expired may be the cause: the next poll begins anew."""
    bench = Bench()
    bench.far.api = [answer(400), answer(400)]
    error = await failure(bench, where="", order="", token="old")
    assert (type(error), error.reason) == (SourceUnavailable, "bad_request")


async def test_body_in_an_error_is_short_and_without_secrets() -> None:
    bench = Bench()
    echo = f"Bearer canary-access-2 canary-refresh-2 {PASSWORD} canary-access-1 " + "x" * 10_000
    bench.far.api = [answer(400), answer(400, echo)]
    error = await failure(bench)
    assert "canary" not in str(error)
    assert "*** *** ***" in str(error)
    assert len(str(error)) < 256 + 80


@pytest.mark.parametrize("spelled", ["json", "html", "url", "form", "go"])
async def test_secrets_are_found_in_an_error_however_they_are_escaped(spelled: str) -> None:
    bench = Bench()
    spellings = {
        "json": json.dumps(PASSWORD),
        "html": html.escape(PASSWORD),
        "url": quote(PASSWORD, safe=""),
        "form": quote_plus(PASSWORD),
        "go": json.dumps(PASSWORD).replace("&", "\\u0026"),
    }
    bench.far.api = [answer(403, f"<p>{spellings[spelled]}</p>", request_id=quote_plus(PASSWORD))]
    error = await failure(bench)
    assert "canary" not in str(error)
    assert "<p>" in str(error)


async def test_echoed_request_id_and_credentials_of_a_proxy_are_masked() -> None:
    bench = Bench()
    echo = "Proxy-Authorization: Basic Y2FuYXJ5OmNhbmFyeQ== needs basic authentication"
    bench.far.api = [answer(407, echo, request_id="canary-access-1")]
    with structlog.testing.capture_logs() as lines:
        error = await failure(bench)
    assert "Basic *** needs basic authentication" in str(error)
    assert "canary" not in str(error) + str(lines)
    assert "Y2Fu" not in str(error)


async def test_our_tokens_are_masked_in_records_before_anything_is_made_of_them() -> None:
    """A gateway that mirrors requests must not bring a live token into dead letters or to sinks."""
    bench = Bench()
    echo = "Bearer canary-access-1, canary-refresh-1"
    records = [RECORD | {"displayName": echo}, {"displayName": echo}]
    bench.far.api = [answer(200, json.dumps({"incidents": records}))]
    found = (await ask(bench)).content
    assert found.observed[0].values[4] == "Bearer ***, ***"
    assert found.bad[0].raw == b'{"displayName":"Bearer ***, ***"}'
    bench.far.api = [answer(200, json.dumps({"incident": records[0]}))]
    single = await bench.client.get_incident("u/1")
    assert single is not None
    assert b"canary" not in single.raw


async def test_page_token_too_long_for_a_url_is_a_bad_answer_without_a_request() -> None:
    bench = Bench()
    assert isinstance(await failure(bench, token="t" * 70_000), BadAnswer)
    assert not bench.far.api_requests


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "hint"),
    [(403, "permission"), (404, "region"), (501, "licence"), (302, "gateway"), (415, "gateway")],
)
async def test_denials_are_final_and_name_the_likely_cause(status: int, hint: str) -> None:
    bench = Bench()
    bench.far.api = [answer(status, "<html>no</html>", location="https://elsewhere.test")]
    error = await failure(bench)
    assert isinstance(error, AccessDenied)
    assert error.status == status
    assert hint in error.hint
    assert len(bench.far.api_requests) == 1


# -- retries ----------------------------------------------------------------------------------------------------------

BROKEN: list[tuple[Any, type[SourceError], str]] = [
    *((lambda status=status: answer(status), SourceUnavailable, "unavailable") for status in (408, 500, 502, 503, 520)),
    (lambda: httpx.ReadTimeout("canary"), SourceUnavailable, "timeout"),
    (lambda: httpx.ReadError("canary"), SourceUnavailable, "reset"),
    (lambda: httpx.ProxyError("canary"), SourceUnavailable, "proxy"),
    (lambda: httpx.RemoteProtocolError("canary"), SourceUnavailable, "protocol"),
    (lambda: answer(200, '{"incidents":[{"uuid":"u1"'), BadAnswer, "bad_answer"),
    (lambda: answer(200, "<html>maintenance</html>"), BadAnswer, "bad_answer"),
    (lambda: answer(200, "null"), BadAnswer, "bad_answer"),
    (lambda: answer(200, "[]"), BadAnswer, "bad_answer"),
    (lambda: answer(200, ""), BadAnswer, "bad_answer"),
    (lambda: answer(204), SourceUnavailable, "unavailable"),
]


@pytest.mark.parametrize(("broken", "kind", "reason"), BROKEN)
async def test_what_may_pass_is_tried_again_and_then_fails(broken: Any, kind: type[SourceError], reason: str) -> None:
    bench = Bench()
    bench.far.api = [broken() for _ in range(4)]
    error = await failure(bench)
    assert (type(error), error.reason) == (kind, reason)
    assert bench.clock.slept == [1, 2, 4]
    assert "list incidents" in str(error)
    assert "canary" not in str(error)
    await ask(bench)


@pytest.mark.parametrize(("broken", "kind", "reason"), BROKEN)
async def test_what_passes_is_no_failure(broken: Any, kind: type[SourceError], reason: str) -> None:
    bench = Bench()
    bench.far.api = [broken() for _ in range(3)]
    await ask(bench)
    assert issubclass(kind, RelayError), reason


@pytest.mark.parametrize("status", range(300, 600))
async def test_every_status_for_ever_ends_in_one_of_our_errors(status: int) -> None:
    bench = Bench(patience=Patience(total_seconds=100))
    bench.far.api = [answer(status, "<html>" + "x" * 5000) for _ in range(60)]
    error = await failure(bench)
    assert len(str(error)) < 256 + 100
    assert error.status == status


async def test_503_with_retry_after_pauses_the_account() -> None:
    bench = Bench()
    bench.far.api = [answer(503, retry_after="30")]
    await ask(bench)
    assert sum(bench.clock.slept) == 30
    assert bench.noted.throttles == [("503", 30)]


async def test_total_patience_bounds_the_retries() -> None:
    bench = Bench(patience=Patience(total_seconds=2.5))
    bench.far.api = [answer(500) for _ in range(9)]
    error = await failure(bench)
    assert isinstance(error, SourceUnavailable)
    assert bench.clock.slept == [1]


async def test_stalled_answer_ends_by_the_attempt_deadline() -> None:
    bench = Bench(patience=Patience(attempt_seconds=0.02, tries=1))

    async def stall(_request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    await bench.account.token()
    bench.http._transport = httpx.MockTransport(stall)
    error = await failure(bench)
    assert error.reason == "timeout"


async def test_body_packed_twice_is_refused_unread() -> None:
    bench = Bench(patience=Patience(tries=1))
    bench.far.api = [lambda _: httpx.Response(200, headers={"content-encoding": "gzip, gzip"}, stream=_Untouchable())]
    assert (await failure(bench)).reason == "protocol"


class _Untouchable(httpx.AsyncByteStream):
    def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError


# -- 429 --------------------------------------------------------------------------------------------------------------


async def test_429_with_retry_after_waits_that_long_and_goes_on() -> None:
    bench = Bench()
    bench.far.api = [answer(429, retry_after="17")]
    await ask(bench)
    assert bench.clock.slept == [17]
    assert bench.noted.throttles == [("429", 17)]
    assert bench.noted.backoffs == [START + 17 * SECOND, None]
    assert bench.account.paused_until is None


async def test_429_with_a_date_is_measured_by_the_servers_clock() -> None:
    bench = Bench()
    skewed = START + 1000 * SECOND
    headers = date_header(skewed) | {"retry-after": date_header(skewed + 20 * SECOND)["date"]}
    bench.far.api = [httpx.Response(429, headers=headers)]
    await ask(bench)
    assert bench.clock.slept == [20]


async def test_429_without_retry_after_backs_off_exponentially_and_never_runs_out_of_tries() -> None:
    bench = Bench()
    bench.far.api = [answer(429) for _ in range(8)]
    await ask(bench)
    assert bench.clock.slept == [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize("retry_after", ["0", "nonsense", "Thu, 01 Jan 1970 00:00:00 GMT"])
async def test_429_that_asks_for_no_wait_still_backs_off(retry_after: str) -> None:
    bench = Bench()
    bench.far.api = [answer(429, retry_after=retry_after) for _ in range(3)]
    await ask(bench)
    assert bench.clock.slept == [1, 2, 4]


async def test_backoff_after_429_starts_anew_once_served() -> None:
    bench = Bench()
    for _ in range(2):
        bench.far.api = [answer(429), answer(429)]
        await ask(bench)
    assert bench.clock.slept == [1, 2, 1, 2]


async def test_pause_beyond_patience_refuses_this_and_the_next_call_without_a_request() -> None:
    bench = Bench(patience=Patience(total_seconds=60))
    bench.far.api = [answer(429, retry_after="7200")]
    error = await failure(bench)
    assert (type(error), error.reason, error.status) == (SourceUnavailable, "throttled", 429)
    assert bench.account.paused_until == START + 3600 * SECOND
    assert (await failure(bench)).reason == "throttled"
    assert len(bench.far.api_requests) == 1
    bench.clock.advance(3590)
    await ask(bench)
    assert bench.clock.slept == [10]


async def test_429_pauses_every_source_of_the_account() -> None:
    bench = Bench()
    bench.far.api = [answer(429, retry_after="30")]
    other = bench.another_client()
    sent: list[float] = []

    def note(_request: httpx.Request) -> httpx.Response:
        sent.append(bench.clock.monotonic())
        return httpx.Response(200, json=EMPTY_PAGE)

    bench.far.api += [note, note]
    await asyncio.gather(ask(bench), other.list_incidents(filter="", order_by="", page_size=1, decode=decode_page))
    assert min(sent) >= 30


async def test_twenty_429_at_once_are_one_strike() -> None:
    bench = Bench()
    await bench.account.token()
    gate = asyncio.Event()

    async def far(request: httpx.Request) -> httpx.Response:
        if len(bench.far.api_requests) < 20:
            bench.far.api_requests.append(request)
            if len(bench.far.api_requests) == 20:
                gate.set()
            await gate.wait()
            return answer(429)
        return httpx.Response(200, json=EMPTY_PAGE)

    bench.http._transport = httpx.MockTransport(far)
    await asyncio.gather(*(ask(bench) for _ in range(20)))
    assert max(bench.clock.slept) == 1


# -- get --------------------------------------------------------------------------------------------------------------


async def test_get_brings_one_incident_and_its_uuid_is_opaque_text() -> None:
    bench = Bench()
    bench.far.api = [answer(200, json.dumps({"incident": RECORD}))]
    found = await bench.client.get_incident("u/1", lane="enrich")
    assert isinstance(found, Observed)
    assert found.uuid == "u/1"
    assert str(bench.far.api_requests[0].url) == f"{API}/v2/incidents/u%2F1"


async def test_get_of_what_is_gone_is_none() -> None:
    bench = Bench()
    bench.far.api = [answer(404, '{"code":5}')]
    assert await bench.client.get_incident("u1") is None


async def test_get_whose_response_id_expired_is_not_taken_for_gone() -> None:
    bench = Bench()
    bench.far.api = [pending(), answer(404), answer(200, json.dumps({"incident": RECORD}))]
    assert await bench.client.get_incident("u/1") is not None


async def test_get_that_answers_another_incident_is_a_bad_answer() -> None:
    bench = Bench()
    bench.far.api = [answer(200, json.dumps({"incident": RECORD})) for _ in range(4)]
    with pytest.raises(BadAnswer):
        await bench.client.get_incident("u2")


async def test_get_denied_is_not_gone() -> None:
    bench = Bench()
    bench.far.api = [answer(403)]
    with pytest.raises(AccessDenied):
        await bench.client.get_incident("u1")


async def test_get_brings_what_is_newer_than_the_list() -> None:
    bench = Bench()
    newer = RECORD | {"updateTime": "2026-02-02T00:00:00Z", "status": "INCIDENT_STATUS_CLOSED"}
    bench.far.api = [answer(200, json.dumps({"incidents": [RECORD]})), answer(200, json.dumps({"incident": newer}))]
    (listed,) = (await ask(bench)).content.observed
    single = await bench.client.get_incident("u/1")
    assert single is not None
    assert single.updated > listed.updated


async def test_get_that_is_slow_is_collected() -> None:
    bench = Bench()
    bench.far.api = [httpx.ReadTimeout("x"), pending(), pending(), answer(200, json.dumps({"incident": RECORD}))]
    assert await bench.client.get_incident("u/1") is not None
    assert bench.far.response_ids() == ["", "", "r1", "r1"]


@pytest.mark.parametrize(
    "body", ["null", "[]", "<html>", '{"incident":{"uuid":"u/1"}}', '{"incident":', '{"incident":' + "[" * 5000]
)
async def test_get_that_cannot_be_read_is_a_bad_answer_and_not_gone(body: str) -> None:
    bench = Bench()
    bench.far.api = [answer(200, body) for _ in range(4)]
    with pytest.raises(BadAnswer):
        await bench.client.get_incident("u/1")
