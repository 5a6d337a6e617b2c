"""Slack payloads: their shape, their limits, and that no text of an incident is ever parsed."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats import slack
from relay.formats.message import Parked, digest_of, facts_of
from relay.incidents import Kind
from tests.pictures.samples import LINKS, NOW, UUID, closed, created, event, many, parked_slack, parked_webhook, skipped

HOSTILE = (
    "\u202e\u200b\x00\x1b[31m\ufeff "
    "<!channel> <!here> <@U1> <#C1> @here @everyone <https://evil.example|ESET> *b* _i_ ~s~ `c` ```p``` :fire: "
    "> quote & &lt; {{DATE(x)}} [a](http://b) <b>x</b> \n\n\u2028 "
)
NAMES = st.sampled_from(
    ["status", "severity", "resolveReason", "assigneeUuid", "displayName", "description", "tags", "metrics", "other"]
)
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=40) | st.just(HOSTILE) | st.just("😀é" * 15_000)
INCIDENTS = st.dictionaries(
    NAMES, VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(NAMES, VALUES, max_size=2), max_size=8
)


def texts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object with a type and a text."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), str) and "type" in value:
            yield value
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def parsed(payload: dict[str, Any]) -> str:
    """All that Slack parses: the texts in mrkdwn, but for links whose foreign part is percent-encoded."""
    found = "\n".join(text["text"] for text in texts(payload["blocks"]) if text["type"] == "mrkdwn")
    return re.sub(r"<https://console\.example/incidents/[A-Za-z0-9%._~-]*\|Open the incident>", "", found)


def check_limits(payload: dict[str, Any]) -> None:
    """https://docs.slack.dev/reference/block-kit: refused by Slack with invalid_blocks otherwise."""
    msgspec.json.encode(payload)
    assert set(payload) == {"text", "blocks", "unfurl_links", "unfurl_media"}
    assert 1 <= len(payload["text"]) <= 3000
    assert 1 <= len(payload["blocks"]) <= 50
    for block in payload["blocks"]:
        assert block["type"] in {"section", "header", "context", "rich_text"}
        assert len(block.get("fields", [])) <= 10
        assert len(block.get("elements", [])) <= 10
        if block["type"] == "section":
            assert ("text" in block) != ("fields" in block)
            assert block.get("fields") != []
        if block["type"] == "header":
            assert block["text"]["type"] == "plain_text"
            assert 1 <= len(block["text"]["text"].encode("utf-16-le")) // 2 <= 150
        for field in block.get("fields", []):
            assert 1 <= len(field["text"]) <= 2000
    for text in texts(payload["blocks"]):
        assert 1 <= len(text["text"]) <= 3000
        if text["type"] == "plain_text":
            assert text["emoji"] is False
        if text["type"] == "mrkdwn":
            assert text["verbatim"] is True
        if text["type"] == "link":
            assert text["url"].startswith("https://console.example/incidents/")


def test_a_new_incident_is_written_as_designed() -> None:
    facts = facts_of(created(), links=LINKS)
    payload = slack.message(facts)
    check_limits(payload)
    assert [block["type"] for block in payload["blocks"]] == ["section", "header", "section", "section", "context"]
    first, header, fields, description, last = payload["blocks"]
    assert first["text"]["text"] == (
        "*HIGH* created in *acme*, <!date^1795342460^{date_short_pretty} {time_secs}|2026-11-22 10:14:20 UTC>"
    )
    assert header["text"]["text"].startswith("Credential dumping on FIN-LT-0231 <!channel> ")
    assert [field["text"] for field in fields["fields"]] == [
        "*Status*\nOPEN, not assigned",
        "*Seen on*\n3 devices, 2 executables, 5 processes",
    ]
    assert description["text"]["type"] == "plain_text"
    assert [part["text"] for part in last["elements"]] == [
        f"<https://console.example/incidents/{UUID}|Open the incident>",
        f"`{UUID}`",
    ]
    assert payload["text"].startswith("HIGH in acme, created: Credential dumping on FIN-LT-0231 &lt;!channel&gt; ")


def test_a_closed_incident_says_what_changed() -> None:
    payload = slack.message(facts_of(closed(), links=LINKS))
    check_limits(payload)
    assert payload["text"].startswith("HIGH in acme, closed as FALSE_POSITIVE: Credential dumping: LSASS")
    assert [field["text"] for field in payload["blocks"][2]["fields"]] == [
        "*Status*\nOPEN → *CLOSED*",
        "*Reason*\nnone → *FALSE_POSITIVE*",
    ]


def test_a_digest_is_written_as_designed() -> None:
    payload = slack.digest(digest_of(many(), links=LINKS, above=20))
    check_limits(payload)
    header, section, rows, context = payload["blocks"]
    assert header["text"]["text"] == "37 changes: 4 HIGH, 12 MEDIUM, 21 LOW"
    assert section["text"]["text"].startswith("in *acme* (22), *globex* (9) and *initech* (6), <!date^1795341482^")
    [listed] = rows["elements"]
    assert (listed["type"], listed["style"], len(listed["elements"])) == ("rich_text_list", "ordered", 10)
    assert listed["elements"][0]["elements"] == [
        {"type": "text", "text": "HIGH", "style": {"bold": True}},
        {"type": "text", "text": " created  "},
        {
            "type": "link",
            "url": f"https://console.example/incidents/{UUID[:-2]}00",
            "text": "Ransomware behaviour: 1,204 files renamed in 40 s on SRV-FILE-02",
        },
        {"type": "text", "text": "  acme"},
    ]
    assert context["elements"][0]["text"] == (
        "27 more are not listed. More than 20 changes waited, so one message stands for all (`digest_above`)."
    )
    assert payload["text"] == "37 changes in acme, globex and initech: 4 HIGH, 12 MEDIUM, 21 LOW"


def test_notices_are_written_as_designed() -> None:
    payload = slack.notice(parked_webhook(), now=NOW)
    check_limits(payload)
    assert payload["text"] == (
        "Sink soar is parked since 10:14:20 UTC: soar.example answered 410 Gone. 9 events wait. relay sinks enable soar"
    )
    assert [field["text"].partition("\n")[0] for field in payload["blocks"][1]["fields"]] == [
        *("*Reason*", "*Since*", "*Waiting*", "*Kept until*")
    ]
    check_limits(slack.notice(parked_slack(), now=NOW))
    check_limits(slack.notice(skipped(), now=NOW))


def test_a_reason_from_the_far_side_is_not_parsed() -> None:
    payload = slack.notice(Parked(sink="soar", reason=f"answered 410: {HOSTILE}", since=NOW, waiting=1), now=NOW)
    check_limits(payload)
    assert "channel" not in parsed(payload)
    assert "&lt;!channel&gt;" in payload["text"]


@pytest.mark.parametrize("kind", ["created", "updated", "closed", "reopened", "missing", "restored"])
def test_no_text_of_an_incident_is_parsed(kind: Kind) -> None:
    hostile = event(
        kind=kind,
        uuid=HOSTILE,
        severity=HOSTILE,
        changed=["status", "severity", "resolveReason", "assigneeUuid", "displayName", "description", "tags"],
        previous=dict.fromkeys(("status", "severity", "resolveReason", "assigneeUuid", "displayName"), HOSTILE),
        status=HOSTILE,
        resolveReason=HOSTILE,
        assigneeUuid=HOSTILE,
        displayName=HOSTILE,
        description=HOSTILE,
        tags=[HOSTILE],
    )
    for payload in (
        slack.message(facts_of(hostile, links=LINKS)),
        slack.digest(digest_of([hostile, hostile], links=LINKS)),
    ):
        check_limits(payload)
        for piece in ("channel", "@U1", "@here", "evil", "fire", "quote", "```"):
            assert piece not in parsed(payload), piece
        for piece in ("<", ">", "\x00", "\x1b", "\u202e", "\u200b"):
            assert piece not in payload["text"]
        whole = msgspec.json.encode(payload).decode()
        assert "U+202E" in whole
        assert "\\n\\n" not in whole


@given(INCIDENTS, st.text(max_size=60), st.sampled_from(["created", "updated", "closed", "missing"]))
def test_whatever_an_incident_holds_the_limits_are_kept(incident: dict[str, Any], uuid: str, kind: Kind) -> None:
    fields = {name: value for name, value in incident.items() if name != "severity"}
    severity = incident.get("severity")
    one = event(
        kind=kind,
        uuid=uuid,
        severity=severity if isinstance(severity, str) else "LOW",
        changed=list(fields),
        previous=fields,
        **fields,
    )
    check_limits(slack.message(facts_of(one, links=LINKS)))
    check_limits(slack.digest(digest_of([one] * 50, links=LINKS)))


def test_a_title_too_long_for_a_header_is_bold_text_and_not_lost() -> None:
    payload = slack.message(facts_of(event(displayName=f"{'long ' * 40}on FIN-LT-0231")))
    check_limits(payload)
    [title] = payload["blocks"][1]["elements"]
    assert title["elements"][0]["text"].endswith("on FIN-LT-0231")
