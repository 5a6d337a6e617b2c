"""What a chat message says: facts of an event, of a digest, and of notices."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.clock import SECOND
from relay.formats.message import (
    DESCRIPTION_CHARACTERS,
    TITLE_CHARACTERS,
    Fact,
    Parked,
    Skipped,
    Value,
    cut,
    digest_of,
    facts_of,
    foreign,
    line,
    link_of,
    source_list,
)
from tests.pictures.samples import LINKS, NOW, UUID, closed, created, event, many, parked_slack, skipped


def test_a_new_incident_says_where_it_stands_and_where_it_was_seen() -> None:
    facts = facts_of(created(), links=LINKS)
    assert (facts.severity, facts.phrase, facts.source) == (Value("HIGH"), "created in", "acme")
    assert facts.facts == [
        Fact(label="Status", after=Value("OPEN, not assigned")),
        Fact(label="Seen on", after=Value("3 devices, 2 executables, 5 processes")),
    ]
    assert facts.link == f"https://console.example/incidents/{UUID}"


def test_a_change_says_old_and_new_of_each_field() -> None:
    facts = facts_of(closed())
    assert facts.outcome == Value("FALSE_POSITIVE")
    assert facts.facts == [
        Fact(label="Status", before=Value("OPEN"), after=Value("CLOSED")),
        Fact(label="Reason", before=Value("none"), after=Value("FALSE_POSITIVE")),
    ]
    assert not facts.link


def test_every_tracked_field_has_a_label_and_both_values() -> None:
    facts = facts_of(
        event(
            kind="updated",
            changed=[
                *("severity", "assigneeUuid", "displayName", "description", "tags"),
                *("metrics.deviceCount", "metrics.processCount"),
            ],
            previous={
                "severity": "INCIDENT_SEVERITY_LEVEL_LOW",
                "assigneeUuid": "",
                "displayName": "old",
                "description": {"truncated": True, "bytes": 31_000},
                "tags": ["a"],
                "metrics.deviceCount": 1,
                "metrics.processCount": "7",
            },
            status="INCIDENT_STATUS_IN_PROGRESS",
            assigneeUuid=UUID,
            displayName="new",
            description="y",
            tags=["a", "b"],
            metrics={"deviceCount": "1200", "processCount": 8},
        )
    )
    shown = {fact.label: (fact.before.text if fact.before else "", fact.after.text) for fact in facts.facts}
    assert shown == {
        "Severity": ("LOW", "HIGH"),
        "Assignee": ("none", UUID),
        "Title": ("old", "new"),
        "Description": ("a text of 31,000 bytes", "y"),
        "Tags": ("a", "a, b"),
        "Devices": ("1", "1,200"),
        "Processes": ("7", "8"),
        "Status": ("", "IN_PROGRESS"),
    }
    assert facts.description == "y"


def test_a_change_of_something_else_says_who_works_on_it() -> None:
    facts = facts_of(
        event(
            kind="updated",
            changed=["severity"],
            previous={"severity": "INCIDENT_SEVERITY_LEVEL_LOW"},
            status="INCIDENT_STATUS_IN_PROGRESS",
            assigneeUuid=UUID,
        )
    )
    assert facts.facts[1] == Fact(label="Status", after=Value(f"IN_PROGRESS, assigned to {UUID}"))


def test_two_long_texts_that_begin_alike_do_not_look_unchanged() -> None:
    [fact, *_] = facts_of(
        event(kind="updated", changed=["displayName"], previous={"displayName": "a" * 500}, displayName="a" * 501)
    ).facts
    assert fact.before is not None
    assert fact.before.text != fact.after.text


def test_an_unknown_enum_value_is_foreign_and_keeps_its_name() -> None:
    facts = facts_of(event(severity="*CRITICAL*", status="<!here>"))
    assert facts.severity == Value("*CRITICAL*", foreign=True)
    assert facts.facts[0].after == Value("<!here>, not assigned", foreign=True)


@pytest.mark.parametrize("kind", ["created", "updated", "closed", "reopened", "missing", "restored"])
def test_an_incident_of_which_everything_is_missing_makes_a_message(kind: Any) -> None:
    facts = facts_of(event(kind=kind))
    assert facts.title == "Incident without a name"
    assert (facts.description, facts.link) == ("", "")
    assert facts.facts[0].after.text == "not known"


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"event":1,"incident":[]}', b"[" * 100_000, b"\xff"])
def test_whatever_the_body_is_there_is_a_message(body: bytes) -> None:
    facts = facts_of(msgspec.structs.replace(created(), body=body), links=LINKS)
    assert (facts.severity.text, facts.source, facts.uuid) == ("HIGH", "acme", UUID)


def test_halves_of_surrogate_pairs_become_visible() -> None:
    body = json.dumps({"event": {"changed": [], "previous": {}}, "incident": {"displayName": "a\ud800b"}}).encode()
    assert facts_of(msgspec.structs.replace(created(), body=body)).title == "aU+D800b"


def test_what_is_omitted_is_nowhere() -> None:
    everything = ["description", "displayName", "severity", "uuid", "assigneeUuid", "status", "metrics"]
    shown = repr(facts_of(created(), omit=everything, links=LINKS))
    for secret in ("LSASS", "Credential", "'HIGH'", UUID, "OPEN", "3 devices"):
        assert secret not in shown
    changed = facts_of(closed(), omit=["status", "resolveReason"])
    assert "OPEN" not in repr(changed)
    assert "FALSE_POSITIVE" not in repr(changed)
    assert "description" not in repr(facts_of(created(), omit=["description"]).description)
    listed = digest_of(many(), omit=["severity"])
    assert listed.severities == {"UNSPECIFIED": 37}


def test_an_omitted_body_that_cannot_be_read_shows_nothing_of_it() -> None:
    body = b'{"event":{},"incident":{"description":"secret","displayName":"\\ud800 name"'
    assert "secret" not in repr(facts_of(msgspec.structs.replace(created(), body=body), omit=["description"]))


@given(st.text(max_size=400), st.integers(2, 60))
def test_a_line_is_bounded_visible_and_one(text: str, limit: int) -> None:
    shown = line(text, limit)
    assert len(shown.encode("utf-16-le", "surrogatepass")) <= 2 * limit
    assert not any(character in shown for character in "\n\r\t\x00\x1b\u202e\u200b\u2066\ufeff")
    shown.encode()


def test_long_names_are_cut_in_time() -> None:
    facts = facts_of(event(displayName="\u202e" * 30_000, description="x\n" * 400_000))
    assert facts.title.startswith("U+202EU+202E")
    assert facts.title.endswith("…")
    assert len(facts.title) <= TITLE_CHARACTERS
    assert len(facts.description) == DESCRIPTION_CHARACTERS
    assert cut("😀" * 10, 5) == "😀😀…"


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("FALSE_POSITIVE", True),
        ("Slack answered 404 no_service: this webhook was removed", True),
        (UUID, True),
        ("_x_", False),
        ("*x*", False),
        ("`x`", False),
        ("~x~", False),
        ("<!channel>", False),
        ("@here", False),
        ("http://evil.example", False),
        ("[x](y)", False),
        ("{{DATE(x)}}", False),
        ("a & b", False),
        ("é", False),
    ],
)
def test_only_what_can_be_no_markup_is_not_foreign(text: str, harmless: bool) -> None:
    assert foreign(text, 100).foreign is not harmless


@pytest.mark.parametrize(
    ("template", "uuid", "link"),
    [
        ("https://c.example/i/{uuid}", "a b/../<>|`{x}", "https://c.example/i/a%20b%2F..%2F%3C%3E%7C%60%7Bx%7D"),
        ("http://c.example/?q={uuid}&x=1", "é", "http://c.example/?q=%C3%A9&x=1"),
        ("https://c.example/{uuid}", "\ud800", "https://c.example/%3F"),
        ("https://c.example/{uuid}", "", ""),
        ("https://c.example/{uuid}", "u" * 30_000, ""),
        ("", "u1", ""),
        ("javascript:alert('{uuid}')", "u1", ""),
        ("https://{uuid}", "", ""),
        ("https:///{uuid}", "u1", ""),
        ("//c.example/{uuid}", "u1", ""),
        ("https://c.example/ {uuid}", "u1", ""),
        ("https://[c.example/{uuid}", "u1", ""),
    ],
)
def test_a_link_is_http_encoded_or_none(template: str, uuid: str, link: str) -> None:
    assert link_of(template, uuid) == link


def test_a_digest_counts_ranks_and_names_the_rest() -> None:
    digest = digest_of(many(), links=LINKS, above=20)
    assert digest.title == "37 changes: 4 HIGH, 12 MEDIUM, 21 LOW"
    assert digest.sources == {"acme": 22, "globex": 9, "initech": 6}
    assert [facts.severity.text for facts in digest.worst] == ["HIGH"] * 4 + ["MEDIUM"] * 6
    assert digest.worst[0].time > digest.worst[1].time
    assert digest.why == (
        "27 more are not listed. More than 20 changes waited, so one message stands for all",
        "digest_above",
    )
    assert digest_of(many()[:2]).why[0] == "So many changes waited that one message stands for all"
    assert digest_of(many()[:2]).heading == "All of them, the worst first:"


def test_a_severity_that_nobody_knows_is_listed_first_and_counted_apart() -> None:
    digest = digest_of([event(1, severity="HIGH"), event(2, severity="CRITICAL"), event(3, severity="LOW")])
    assert [facts.severity.text for facts in digest.worst] == ["CRITICAL", "HIGH", "LOW"]
    assert digest.severities == {"HIGH": 1, "LOW": 1, "other": 1}


def test_a_digest_of_many_sources_names_five() -> None:
    digest = digest_of([event(at, source=f"s{at:03d}") for at in range(50)])
    assert source_list(digest, lambda source, _: source) == "s000, s001, s002, s003, s004 and 45 more sources"


def test_a_parked_notice_takes_its_cure_from_the_reason() -> None:
    notice = parked_slack()
    assert notice.what == Value("Slack answered 404 no_service: this webhook was removed")
    assert notice.way_out == ("Create a new incoming webhook in Slack, write its URL to the sink's url_file, then run:")
    assert (notice.run, notice.waits(NOW)) == ("relay sinks enable soc", "118 events")


def test_a_parked_notice_trusts_no_hint_of_the_far_side() -> None:
    notice = Parked(sink="soar", reason="answered 410: x; <!channel> [y](z)", since=0, waiting=1, oldest=0)
    assert notice.way_out == "Correct the cause, then run:"
    assert notice.waits(90 * SECOND) == "1 event, oldest 1 min"


def test_a_skipped_notice_counts_by_severity() -> None:
    assert skipped().title == "43 changes were skipped: 2 HIGH, 11 MEDIUM, 30 LOW"
    assert skipped().why == ("They were older than 24 h when soc could be reached again", "max_age")
    one = Skipped(sink="soc", severities={"INCIDENT_SEVERITY_LEVEL_LOW": 1}, max_age_seconds=90, begin=0, end=0)
    assert one.title == "1 change was skipped: 1 LOW"
    assert one.why[0] == "It was older than 1 min 30 s when soc could be reached again"
