"""Teams payloads: valid Adaptive Cards 1.4, under 20 KiB, and no text of an incident is ever parsed.

`SCHEMA` is what our cards use of the 1.4 schema, stricter than Microsoft's. Microsoft's own is used as well once
`python -m tests.pictures` has fetched it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats import teams
from relay.formats.message import Parked, digest_of, facts_of
from relay.incidents import Kind
from tests.pictures.samples import LINKS, NOW, UUID, closed, created, event, many, parked_slack, parked_webhook, skipped

OFFICIAL = Path(__file__).parents[2] / ".cache" / "pictures" / "adaptive-card-1.4.json"
HOSTILE = (
    "\u202e\u200b\x00\x1b[31m\ufeff "
    "<at>everyone</at> @channel {{DATE(2020-01-01T00:00:00Z)}} {{{{TIME(x)}}}} {{{ [a](https://evil.example) **b** _i_ "
    "\\_ # h ${x} @{triggerBody()} <b>x</b> \n\n- item\r\n1. item "
)
NAMES = st.sampled_from(
    ["status", "resolveReason", "assigneeUuid", "displayName", "description", "tags", "metrics", "other"]
)
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=40) | st.just(HOSTILE) | st.just("漢" * 30_000)
INCIDENTS = st.dictionaries(
    NAMES, VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(NAMES, VALUES, max_size=2), max_size=8
)
TIME = re.compile(r"\{\{(DATE\([0-9TZ:-]{20}, SHORT\)|TIME\([0-9TZ:-]{20}\))\}\}")


def _object(type_: str, required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": type_}, **properties},
        "required": ["type", *required],
        "additionalProperties": False,
    }


_TEXT = {"type": "string", "minLength": 1}
_SPACING = {"enum": ["None", "Small"]}
_OPEN = _object("Action.OpenUrl", ("title", "url"), title=_TEXT, url={"type": "string", "pattern": "^https?://"})
_RUN = _object(
    "TextRun",
    ("text",),
    text=_TEXT,
    size={"enum": ["Small", "Medium"]},
    weight={"const": "Bolder"},
    color={"enum": ["Attention", "Warning", "Accent"]},
    fontType={"const": "Monospace"},
    isSubtle={"type": "boolean"},
    selectAction=_OPEN,
)
_RICH = _object(
    "RichTextBlock", ("inlines",), inlines={"type": "array", "minItems": 1, "items": _RUN}, spacing=_SPACING
)
_BLOCK = _object(
    "TextBlock",
    ("text", "wrap"),
    text=_TEXT,
    wrap={"const": True},
    isSubtle={"type": "boolean"},
    size={"const": "Small"},
    spacing=_SPACING,
)
_FACT = {
    "type": "object",
    "properties": {"title": _TEXT, "value": _TEXT},
    "required": ["title", "value"],
    "additionalProperties": False,
}
_FACTS = _object("FactSet", ("facts",), facts={"type": "array", "minItems": 1, "items": _FACT})
_COLUMN = _object(
    "Column", ("items",), width={"const": "auto"}, items={"type": "array", "items": {"anyOf": [_RICH, _BLOCK]}}
)
_COLUMNS = _object("ColumnSet", ("columns",), columns={"type": "array", "items": _COLUMN}, spacing=_SPACING)
_CONTAINER = _object(
    "Container",
    ("items",),
    style={"const": "emphasis"},
    spacing=_SPACING,
    items={"type": "array", "minItems": 1, "items": _RICH},
)
_CARD = _object(
    "AdaptiveCard",
    ("version", "body", "fallbackText"),
    **{"$schema": {"const": "http://adaptivecards.io/schemas/adaptive-card.json"}},
    version={"const": "1.4"},
    fallbackText=_TEXT,
    msteams={"const": {"width": "Full"}},
    body={"type": "array", "minItems": 1, "items": {"anyOf": [_RICH, _BLOCK, _FACTS, _COLUMNS, _CONTAINER]}},
    actions={"type": "array", "minItems": 1, "items": _OPEN},
)
_ATTACHMENT = {
    "type": "object",
    "properties": {
        "contentType": {"const": "application/vnd.microsoft.card.adaptive"},
        "contentUrl": {"type": "null"},
        "content": _CARD,
    },
    "required": ["contentType", "contentUrl", "content"],
    "additionalProperties": False,
}
SCHEMA = _object(
    "message", ("attachments",), attachments={"type": "array", "minItems": 1, "maxItems": 1, "items": _ATTACHMENT}
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from objects(inner)


def parsed(payload: dict[str, Any]) -> str:
    """All that Teams reads as Markdown."""
    found = [payload["attachments"][0]["content"]["fallbackText"]]
    for one in objects(payload):
        if one.get("type") == "TextBlock":
            found.append(one["text"])
        if "value" in one:
            found.append(one["value"])
    return "\n".join(found)


def check(payload: dict[str, Any]) -> None:
    """Valid, small, and nothing in it is expanded but our own times."""
    VALIDATOR.validate(payload)
    assert len(msgspec.json.encode(payload)) < teams.MAX_BYTES
    for one in objects(payload):
        for name in ("text", "value", "title", "fallbackText"):
            text = one.get(name)
            if isinstance(text, str):
                left = text if one.get("type") == "TextRun" else TIME.sub("", text)
                assert "{{" not in left


def test_a_new_incident_is_written_as_designed() -> None:
    payload = teams.message(facts_of(created(), links=LINKS))
    check(payload)
    card = payload["attachments"][0]["content"]
    assert card["fallbackText"] == "HIGH created in acme"
    first, title, facts, description, name = card["body"]
    assert [item["type"] for column in first["columns"] for item in column["items"]] == ["RichTextBlock", "TextBlock"]
    assert first["columns"][0]["items"][0]["inlines"] == [
        {"type": "TextRun", "text": "HIGH", "weight": "Bolder", "color": "Attention"},
        {"type": "TextRun", "text": "  created in "},
        {"type": "TextRun", "text": "acme", "weight": "Bolder"},
    ]
    assert first["columns"][1]["items"][0]["text"] == (
        "{{DATE(2026-11-22T10:14:20Z, SHORT)}} {{TIME(2026-11-22T10:14:20Z)}}"
    )
    assert title["inlines"][0]["text"].endswith("*urgent* { {DATE(2020-01-01T00:00:00Z)}}")
    assert [fact["value"] for fact in facts["facts"]] == ["OPEN, not assigned", "3 devices, 2 executables, 5 processes"]
    assert description["inlines"][0]["text"].startswith("LSASS memory")
    assert name["inlines"][0]["text"] == UUID
    assert card["actions"] == [
        {
            "type": "Action.OpenUrl",
            "title": "Open the incident",
            "url": f"https://console.example/incidents/{UUID}",
        }
    ]


def test_a_closed_incident_says_what_changed() -> None:
    payload = teams.message(facts_of(closed(), links=LINKS))
    check(payload)
    assert payload["attachments"][0]["content"]["body"][2]["facts"] == [
        {"title": "Status", "value": "OPEN → **CLOSED**"},
        {"title": "Reason", "value": "none → **FALSE\\_POSITIVE**"},
    ]


def test_a_digest_is_written_as_designed_and_has_no_columns() -> None:
    payload = teams.digest(digest_of(many(), links=LINKS, above=20))
    check(payload)
    card = payload["attachments"][0]["content"]
    assert card["fallbackText"] == "37 changes in acme, globex and initech: 4 HIGH, 12 MEDIUM, 21 LOW"
    assert [block["type"] for block in card["body"]] == [
        *("RichTextBlock", "TextBlock"),
        *["RichTextBlock"] * 10,
        "TextBlock",
    ]
    assert card["body"][1]["text"] == (
        "in **acme** (22), **globex** (9) and **initech** (6), {{DATE(2026-11-22T09:58:02Z, SHORT)}} "
        "{{TIME(2026-11-22T09:58:02Z)}} to {{TIME(2026-11-22T10:14:20Z)}}. The ten worst:"
    )
    assert [run.get("color") for run in card["body"][2]["inlines"]] == ["Attention", None, "Accent", None]
    assert card["body"][-1]["text"].endswith("stands for all (digest\\_above).")


def test_a_digest_over_midnight_names_both_days() -> None:
    payload = teams.notice(skipped(), now=NOW)
    check(payload)
    assert payload["attachments"][0]["content"]["body"][1]["text"].count("DATE(") == 2


def test_notices_are_written_as_designed() -> None:
    payload = teams.notice(parked_slack(), now=NOW)
    check(payload)
    body = payload["attachments"][0]["content"]["body"]
    assert [fact["title"] for fact in body[1]["facts"]] == ["Reason", "Since", "Waiting", "Skipped from"]
    assert body[1]["facts"][0]["value"] == "Slack answered 404 no\\_service: this webhook was removed"
    assert body[2]["text"].startswith("Create a new incoming webhook in Slack, write its URL to the sink's url\\_file")
    assert body[3]["items"][0]["inlines"][0]["text"] == "relay sinks enable soc"
    check(teams.notice(parked_webhook(), now=NOW))


def test_a_reason_from_the_far_side_is_not_parsed() -> None:
    payload = teams.notice(Parked(sink="soar", reason=f"answered 410: {HOSTILE}", since=NOW, waiting=1), now=NOW)
    check(payload)
    assert "everyone" not in parsed(payload)


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
        teams.message(facts_of(hostile, links=LINKS)),
        teams.digest(digest_of([hostile, hostile], links=LINKS)),
    ):
        check(payload)
        for piece in ("everyone", "channel", "evil", "2020", "item", "triggerBody", "<b>"):
            assert piece not in parsed(payload), piece
        whole = json.dumps(payload, ensure_ascii=False)
        for piece in ("\u202e", "\u200b", "\\u0000", "\\u001b", "\\n"):
            assert piece not in whole
        assert "U+202E" in whole


@given(INCIDENTS, st.text(max_size=60), st.sampled_from(["created", "updated", "closed", "missing"]))
def test_whatever_an_incident_holds_the_card_is_valid_and_small(
    incident: dict[str, Any], uuid: str, kind: Kind
) -> None:
    one = event(kind=kind, uuid=uuid, changed=list(incident), previous=incident, **incident)
    check(teams.message(facts_of(one, links=LINKS)))
    check(teams.digest(digest_of([one] * 50, links=LINKS)))


@pytest.mark.parametrize("character", ["漢", "😀", '"', "\\", "\u202e"])
def test_the_largest_card_is_small(character: str) -> None:
    text = character * 30_000
    tracked = ["displayName", "description", "tags", "assigneeUuid", "status", "severity", "resolveReason"]
    one = event(
        kind="updated",
        uuid=text[:30],
        severity=text,
        changed=tracked,
        previous=dict.fromkeys(tracked, text),
        status=text,
        resolveReason=text,
        assigneeUuid=text,
        displayName=text,
        description=text,
        tags=[text],
    )
    sources = [msgspec.structs.replace(one, source=f"{at:02d}{'s' * 38}") for at in range(50)]
    links = {each.source: f"https://console.example/{'p' * 180}/{{uuid}}" for each in sources}
    check(teams.message(facts_of(sources[0], links=links)))
    check(teams.digest(digest_of(sources, links=links)))


@pytest.mark.skipif(not OFFICIAL.exists(), reason="Microsoft's schema is not here: python -m tests.pictures fetches it")
def test_the_cards_fit_the_schema_of_microsoft() -> None:
    validator = jsonschema.Draft6Validator(json.loads(OFFICIAL.read_bytes()))
    for payload in (
        teams.message(facts_of(created(), links=LINKS)),
        teams.message(facts_of(closed())),
        teams.message(facts_of(event(severity=HOSTILE, status=HOSTILE, kind="missing"), links=LINKS)),
        teams.digest(digest_of(many(), links=LINKS)),
        teams.notice(parked_slack(), now=NOW),
        teams.notice(skipped(), now=NOW),
    ):
        card = dict(payload["attachments"][0]["content"])
        # Teams' own extension, which the schema of the format does not know.
        del card["msteams"]
        validator.validate(card)
