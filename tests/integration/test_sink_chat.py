"""Slack and Teams over a real socket: what is posted, how fast, and what every answer means."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from relay.clock import Clock, SystemClock
from relay.errors import Gone, Refused, SinkError, Unavailable
from relay.formats.message import Parked
from relay.sinks import MessageSink, slack, teams
from relay.sinks.post import REASONS
from relay.sinks.slack import SlackSink
from relay.sinks.teams import TeamsSink
from relay.transport import http_client
from tests.pictures.samples import LINKS, NOW, closed, created, many, parked_slack, skipped
from tests.support.clock import FakeClock
from tests.support.receiver import Receiver, Told, contracted, outcomes_by_status, receiving, stall

OK = Told(body=b"ok")
ACCEPTED = Told(status=202)
SLACK_STATUSES = {
    **dict.fromkeys(("action_prohibited", "invalid_token", "posting_to_general_channel_denied", "team_disabled"), 403),
    **dict.fromkeys(("channel_not_found", "no_active_hooks", "no_service", "no_service_id", "no_team"), 404),
    **dict.fromkeys(("message_limit_exceeded", "rate_limited", "ratelimited"), 429),
    **dict.fromkeys(("fatal_error", "internal_error", "rollup_error"), 500),
    "channel_is_archived": 410,
    "service_unavailable": 503,
}
"""The status beside each text; 400 for the others."""


@asynccontextmanager
async def chat(
    kind: Literal["slack", "teams"],
    receiver: Receiver,
    *,
    clock: Clock | None = None,
    omit: tuple[str, ...] = (),
    timeout_seconds: float = 5.0,
) -> AsyncIterator[MessageSink]:
    made: type[SlackSink | TeamsSink] = SlackSink if kind == "slack" else TeamsSink
    sink = made(
        "soc",
        url=lambda: receiver.url,
        http=http_client(proxy="none"),
        timeout_seconds=timeout_seconds,
        omit=omit,
        links=LINKS,
        clock=clock or FakeClock(NOW),
        digest_above=20,
    )
    try:
        yield sink
    finally:
        await sink.close(1.0)


async def failure(sink: MessageSink) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.send([created()], upto=None)
    error = caught.value
    assert error.reason in REASONS
    assert len(str(error)) <= 256
    assert "canary" not in str(error)
    return error


async def test_one_event_is_one_message_and_several_are_one_digest() -> None:
    async with receiving() as receiver, chat("slack", receiver) as sink:
        receiver.says(OK)
        await sink.send([], upto=None)
        await sink.send([created()], upto=None)
        await sink.send(many(), upto=None)
        await sink.tell(parked_slack())
        await sink.tell(skipped())
        texts = [asked.json()["text"] for asked in receiver.asked]
        assert texts[0].startswith("HIGH in acme, created: Credential dumping")
        assert texts[1] == "37 changes in acme, globex and initech: 4 HIGH, 12 MEDIUM, 21 LOW"
        assert texts[2].startswith("Sink soc is parked since 21:40:12 UTC: Slack answered 404 no_service")
        assert texts[3].startswith("43 changes were skipped")
        assert {asked.headers["content-type"] for asked in receiver.asked} == {"application/json; charset=utf-8"}
        assert sink.outcome == "delivered"


async def test_teams_gets_a_card_in_the_envelope_and_says_accepted() -> None:
    async with receiving() as receiver, chat("teams", receiver) as sink:
        receiver.says(ACCEPTED, Told(status=200))
        await sink.send([created()], upto=None)
        await sink.send(many(), upto=None)
        await sink.tell(parked_slack())
        cards = [asked.json()["attachments"][0]["content"] for asked in receiver.asked]
        assert [card["fallbackText"].partition(":")[0] for card in cards] == [
            "HIGH created in acme",
            "37 changes in acme, globex and initech",
            "Sink soc is parked",
        ]
        assert sink.outcome == "accepted"


@pytest.mark.parametrize("kind", ["slack", "teams"])
async def test_omitted_fields_do_not_leave(kind: Literal["slack", "teams"]) -> None:
    async with receiving() as receiver, chat(kind, receiver, omit=("description", "displayName")) as sink:
        receiver.says(OK)
        await sink.send([created()], upto=None)
        await sink.send([created(), closed()], upto=None)
        for asked in receiver.asked:
            assert b"LSASS" not in asked.body
            assert b"Credential" not in asked.body


async def test_slack_gets_at_most_one_message_a_second() -> None:
    clock = FakeClock(NOW)
    async with receiving() as receiver, chat("slack", receiver, clock=clock) as sink:
        receiver.says(OK)
        times = []
        for _ in range(4):
            await sink.send([created()], upto=None)
            times.append(clock.monotonic())
        clock.advance(0.25)
        await sink.tell(skipped())
        times.append(clock.monotonic())
        clock.advance(60)
        await sink.send([created()], upto=None)
        times.append(clock.monotonic())
    assert times == [0, 1, 2, 3, 4, 64]
    assert clock.slept == [1, 1, 1, 0.75]


async def test_a_failed_message_takes_its_turn_too() -> None:
    clock = FakeClock(NOW)
    async with receiving() as receiver, chat("slack", receiver, clock=clock) as sink:
        receiver.says(Told(status=500), OK)
        with pytest.raises(Unavailable):
            await sink.send([created()], upto=None)
        await sink.send([created()], upto=None)
    assert clock.slept == [1]


async def test_probing_posts_nothing() -> None:
    async with receiving() as receiver:
        for kind in ("slack", "teams"):
            async with chat(kind, receiver) as sink:
                assert "accepts connections" in await sink.probe()
        assert not receiver.asked


async def test_every_status_through_teams() -> None:
    async with receiving() as receiver, chat("teams", receiver, clock=SystemClock(), timeout_seconds=0.5) as sink:
        outcomes = await outcomes_by_status(receiver, sink, created())
    assert outcomes == {status: contracted(status) for status in outcomes}


@pytest.mark.parametrize("body", [b"", b"ok", b"<html>a proxy</html>"])
async def test_every_status_through_slack(body: bytes) -> None:
    """Only 200 with the body `ok` is success; other successes are somebody else's."""
    statuses = range(200, 600)
    async with receiving() as receiver, chat("slack", receiver) as sink:
        outcomes = await outcomes_by_status(
            receiver, sink, created(), told=lambda status: Told(status=status, body=body), statuses=statuses
        )
    expected = {status: contracted(status) for status in statuses}
    expected.update(dict.fromkeys(range(200, 300), "unavailable"))
    if body == b"ok":
        expected[200] = "delivered"
    assert outcomes == expected


@pytest.mark.parametrize("word", sorted(slack.PERMANENT))
async def test_what_is_permanent_parks_and_says_what_to_do(word: str) -> None:
    status = SLACK_STATUSES.get(word, 403)
    async with receiving() as receiver, chat("slack", receiver) as sink:
        receiver.says(Told(status=status, body=word.encode()))
        error = await failure(sink)
        assert isinstance(error, Gone)
        meaning, cure = slack.PERMANENT[word]
        assert str(error) == f"Slack answered {status} {word}: {meaning}; {cure}"
        notice = Parked(sink="soc", reason=str(error), since=NOW, waiting=1)
        assert not notice.what.foreign
        assert notice.way_out == f"{cure[0].upper()}{cure[1:]}, then run:"


async def test_the_gone_text_is_that_of_the_status_page() -> None:
    async with receiving() as receiver, chat("slack", receiver) as sink:
        receiver.says(Told(status=404, body=b"no_service\n"))
        assert str(await failure(sink)).startswith("Slack answered 404 no_service: this webhook was removed; ")


@pytest.mark.parametrize("word", sorted(slack.MESSAGE_AT_FAULT))
async def test_what_slack_does_not_take_is_the_message(word: str) -> None:
    async with receiving() as receiver, chat("slack", receiver) as sink:
        receiver.says(Told(status=400, body=word.encode()))
        error = await failure(sink)
        assert isinstance(error, Refused)
        assert error.positions == {1: f"Slack answered 400 {word}"}
        with pytest.raises(Refused) as caught:
            await sink.send(many(), upto=None)
        assert set(caught.value.positions) == set(range(1, 38))
        with pytest.raises(Refused) as caught:
            await sink.tell(skipped())
        assert not caught.value.positions


@pytest.mark.parametrize("word", sorted(slack.ENDPOINT_AT_FAULT))
async def test_trouble_of_slack_is_waited_out(word: str) -> None:
    status = SLACK_STATUSES.get(word, 400)
    async with receiving() as receiver, chat("slack", receiver) as sink:
        receiver.says(Told(status=status, body=word.encode()))
        error = await failure(sink)
        assert isinstance(error, Unavailable)
        assert error.retry_after_seconds == (60 if status == 429 else None)
        receiver.says(Told(status=429, body=word.encode(), headers={"retry-after": "30"}))
        asked = await failure(sink)
        assert isinstance(asked, Unavailable)
        assert asked.retry_after_seconds == 30


async def test_a_word_that_asks_to_slow_down_counts_without_its_status() -> None:
    async with receiving() as receiver, chat("slack", receiver) as sink:
        for status in (200, 400, 410, 503):
            receiver.says(Told(status=status, body=b"rate_limited"))
            error = await failure(sink)
            assert isinstance(error, Unavailable)
            assert error.retry_after_seconds == 60


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (Told(status=403, body=b'{"ok":false,"error":"invalid_token"}'), Gone),
        (Told(status=200, body=b'{"ok":false,"error":"invalid_blocks"}'), Refused),
        (Told(status=200, body=b"no_service"), Gone),
        (Told(status=200, body=b"{not json"), Unavailable),
        (Told(status=200, body=b"[]"), Unavailable),
        (Told(status=404, body=b"something_new"), Unavailable),
        (Told(status=400, body=b"something_new"), Refused),
        (Told(status=302, body=b"ok", headers={"location": "/"}), Unavailable),
    ],
)
async def test_odd_answers_of_slack(told: Told, kind: type[SinkError]) -> None:
    async with receiving() as receiver, chat("slack", receiver) as sink:
        receiver.says(told)
        assert isinstance(await failure(sink), kind)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        *((400, code, Refused) for code in sorted(teams.MESSAGE_AT_FAULT)),
        *((403, code, Gone) for code in sorted(teams.PERMANENT)),
        (400, "WorkflowTriggerIsNotEnabled", Gone),
        (404, "WorkflowNotFound", Gone),
        (401, "DirectApiAuthorizationRequired", Gone),
        (400, "SomethingNew", Refused),
        (401, "SomethingNew", Unavailable),
        (429, "TooManyRequests", Unavailable),
        (502, "NoResponse", Unavailable),
    ],
)
async def test_every_error_of_a_flow(status: int, code: str, kind: type[SinkError]) -> None:
    body = json.dumps({"error": {"code": code, "message": "The workflow 'canary' could not do it."}}).encode()
    async with receiving() as receiver, chat("teams", receiver) as sink:
        receiver.says(Told(status=status, body=body))
        with pytest.raises(SinkError) as caught:
            await sink.send([created()], upto=None)
        assert isinstance(caught.value, kind)
        assert caught.value.reason in REASONS
        if kind is Gone:
            meaning, cure = teams.PERMANENT[code]
            assert str(caught.value) == f"Teams answered {status} {code}: {meaning}; {cure}"
            assert len(str(caught.value)) <= 256
            assert Parked(sink="t", reason=str(caught.value), since=NOW, waiting=1).way_out.endswith(", then run:")


@pytest.mark.parametrize("body", [b"", b"[]", b'"error"', b'{"error":"x"}', b'{"error":{"code":1}}', b"\xff", b"{"])
async def test_an_error_of_a_flow_that_cannot_be_read_counts_by_its_status(body: bytes) -> None:
    async with receiving() as receiver, chat("teams", receiver) as sink:
        receiver.says(Told(status=400, body=body), Told(status=403, body=body))
        assert isinstance(await failure(sink), Refused)
        assert isinstance(await failure(sink), Unavailable)


@pytest.mark.parametrize("kind", ["slack", "teams"])
async def test_silence_is_the_endpoint(kind: Any) -> None:
    async with receiving() as receiver, chat(kind, receiver, clock=SystemClock(), timeout_seconds=0.2) as sink:
        receiver.says(stall)
        error = await failure(sink)
        assert isinstance(error, Unavailable)
        assert error.reason == "timeout"
