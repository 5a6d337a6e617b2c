"""Versions, digest, identity and diff: what makes an event, and what it is called."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import incidents
from relay.clock import SECOND
from relay.incidents import (
    Known,
    Observed,
    Scope,
    diff,
    digest_of,
    event_id,
    format_instant,
    missing,
    parse_instant,
    severity_name,
    tracked,
    tracked_values,
)
from tests.support.incidents import SCOPE, START, seen, versions


def compare(known: Known | None, sight: Observed, scope: Scope = SCOPE) -> incidents.Diff:
    return diff(known, sight, scope=scope, now=START)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T00:00:00.1Z", 100_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:00:00.5-01:00", 500_000_000),
        ("1970-01-01T00:00:00.1234567891Z", 123_456_789),
        ("1970-01-01t00:00:01z", SECOND),
        ("1970-01-01T00:00:60Z", 60 * SECOND),
        ("0001-01-01T00:00:00Z", -62_135_596_800 * SECOND),
        ("9999-12-31T23:59:59.999999999Z", 253_402_300_799 * SECOND + 999_999_999),
    ],
)
def test_times_are_instants_at_nanosecond_precision(text: str, nanoseconds: int) -> None:
    assert parse_instant(text) == nanoseconds


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "2026-01-01T25:00:00Z",
             "2026-01-01T00:00:61Z", "2026-01-01T00:00:00+99:00", "٢٠٢٦-01-01T00:00:00Z"]
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_instant(text)


@given(st.datetimes(timezones=st.just(UTC)), st.integers(0, 999))
def test_every_instant_survives_its_text(moment: datetime, nanos: int) -> None:
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    instant = (delta // timedelta(microseconds=1)) * 1000 + nanos
    assert parse_instant(format_instant(instant)) == instant


def test_filter_times_are_rounded_down() -> None:
    assert format_instant(1_999_999, digits=3) == "1970-01-01T00:00:00.001Z"
    assert format_instant(-1, digits=3) == "1969-12-31T23:59:59.999Z"


def test_absent_null_and_default_are_the_same() -> None:
    absent = tracked_values({}, None)
    null = tracked_values(dict.fromkeys(("status", "severity", "tags", "description")), {"deviceCount": None})
    default = tracked_values(
        {"status": "INCIDENT_STATUS_UNSPECIFIED", "tags": [], "assigneeUuid": ""},
        {"deviceCount": 0, "processCount": "0"},
    )
    assert absent == null == default


def test_integers_in_strings_are_integers_and_tags_are_a_set() -> None:
    one = tracked_values({"tags": ["b", "a", "b"]}, {"deviceCount": "12"})
    other = tracked_values({"tags": ["a", "b"]}, {"deviceCount": 12, "newField": 3})
    assert one == other


def test_values_of_unexpected_types_still_tell_versions_apart() -> None:
    odd: list[dict[str, Any]] = [{"status": 5}, {"status": 6}, {"tags": {"a": 1}}, {"tags": [1, "a"]}, {"tags": [{}]}]
    assert len({digest_of(tracked_values(fields, "metrics?"))[0] for fields in odd}) == len(odd)


def test_first_sight_is_created_whatever_the_status() -> None:
    event = compare(None, seen(status="INCIDENT_STATUS_CLOSED")).event
    assert event is not None
    assert (event.kind, event.sequence, event.changed, event.previous) == ("created", 1, [], {})


def test_first_sight_of_an_incident_with_an_unread_past_is_updated() -> None:
    scope = Scope(source="acme", start_from=START, first_start=START)
    event = compare(None, seen(created=-60, at=5), scope).event
    assert event is not None
    assert (event.kind, event.changed, event.previous) == ("updated", None, None)


def test_what_was_last_updated_before_start_from_enters_the_ledger_silently() -> None:
    scope = Scope(source="acme", start_from=START, first_start=START)
    found = compare(None, seen(created=-60, at=-5), scope)
    assert found.verdict == "learned"
    assert found.event is None
    assert found.row is not None
    later = compare(found.row, seen(created=-60, at=5, displayName="renamed"), scope).event
    assert later is not None
    assert (later.kind, later.sequence, later.changed) == ("updated", 1, ["displayName"])


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("OPEN", "IN_PROGRESS", "updated"),
        ("OPEN", "CLOSED", "closed"),
        ("CLOSED", "OPEN", "reopened"),
        ("CLOSED", "CLOSED", "updated"),
        ("SOMETHING_NEW", "CLOSED", "closed"),
    ],
)
def test_kind_follows_the_status(before: str, after: str, kind: str) -> None:
    _, known = versions("u1", seen(status=f"INCIDENT_STATUS_{before}"))
    event = compare(known, seen(at=1, status=f"INCIDENT_STATUS_{after}")).event
    assert event is not None
    assert event.kind == kind


def test_changed_and_previous_name_tracked_fields_only() -> None:
    _, known = versions("u1", seen(assigneeUuid=None, metrics={"deviceCount": 1}, triageDuration="1s"))
    event = compare(known, seen(at=1, assigneeUuid="bob", metrics={"deviceCount": "2"}, triageDuration="9s")).event
    assert event is not None
    assert event.changed == ["assigneeUuid", "metrics.deviceCount"]
    assert event.previous == {"assigneeUuid": "", "metrics.deviceCount": 1}


def test_a_new_update_time_alone_is_a_version() -> None:
    _, known = versions("u1", seen())
    event = compare(known, seen(at=1)).event
    assert event is not None
    assert (event.kind, event.changed, event.previous) == ("updated", [], {})


def test_equal_update_time_with_other_content_is_a_silent_change_with_its_sequence_as_revision() -> None:
    _, known = versions("u1", seen(displayName="A"))
    found = compare(known, seen(displayName="B"))
    assert found.verdict == "silent"
    assert found.event is not None
    digest, _ = digest_of(seen(displayName="B").values)
    assert found.event.id == event_id(source="acme", uuid="u1", updated=START, revision=2, digest=digest)


def test_silent_edits_there_and_back_have_three_names() -> None:
    events, _ = versions("u1", seen(displayName="A"), seen(displayName="B"), seen(displayName="A"))
    assert len({event.id for event in events}) == 3


def test_durations_and_unknown_fields_make_no_version() -> None:
    _, known = versions("u1", seen(triageDuration="1s", brandNew=1))
    assert compare(known, seen(triageDuration="2s", brandNew=2)).verdict == "unchanged"


def test_an_older_update_time_is_stale() -> None:
    _, known = versions("u1", seen(at=5))
    assert compare(known, seen(at=4, displayName="old")).verdict == "stale"


def test_the_name_of_a_version_rests_on_its_parts_alone() -> None:
    base: dict[str, Any] = {"source": "a", "uuid": "u", "updated": 1, "revision": 0, "digest": b"d"}
    assert event_id(**base) == event_id(**base)
    assert len(event_id(**base)) == 32
    others: list[dict[str, Any]] = [{"source": "b"}, {"uuid": "v"}, {"updated": 2}, {"revision": 1}, {"digest": b"e"}]
    assert len({event_id(**{**base, **other}) for other in others} | {event_id(**base)}) == 6


def test_missing_then_seen_again_is_restored() -> None:
    events, known = versions("u1", seen(displayName="gone soon", metrics={"deviceCount": 3}))
    gone = missing(known, scope=SCOPE, now=START)
    assert gone.event is not None
    assert gone.row is not None
    assert (gone.event.kind, gone.event.sequence, gone.row.gone) == ("missing", 2, True)
    assert b'"displayName":"gone soon"' in gone.event.incident
    assert b'"metrics":{"deviceCount":3' in gone.event.incident
    back = compare(gone.row, seen(displayName="gone soon", metrics={"deviceCount": 3}))
    assert back.event is not None
    assert back.row is not None
    assert (back.event.kind, back.event.changed, back.row.gone) == ("restored", [], False)
    assert len({events[0].id, gone.event.id, back.event.id}) == 3


def test_long_strings_are_kept_by_length_and_still_compared_whole() -> None:
    _, known = versions("u1", seen(description="x" * 5000))
    assert len(known.fields) < 400
    event = compare(known, seen(at=1, description="x" * 4999 + "y")).event
    assert event is not None
    assert event.changed == ["description"]
    assert event.previous == {"description": {"truncated": True, "bytes": 5000}}
    assert tracked(known)["description"] == {"truncated": True, "bytes": 5000}


def test_our_own_digest_upgrade_floods_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    _, known = versions("u1", seen(displayName="A"))
    fewer = incidents.TRACKED[1][:-1]
    old = Known(**{**{f: getattr(known, f) for f in known.__struct_fields__}, "digest_version": 0, "digest": b"old"})
    values = list(seen(displayName="A").values)[:-1]
    old = Known(**{**{f: getattr(old, f) for f in old.__struct_fields__}, "fields": digest_of(values)[1]})
    monkeypatch.setattr(incidents, "TRACKED", {0: fewer, **incidents.TRACKED})
    found = compare(old, seen(displayName="A"))
    assert found.verdict == "learned"
    assert found.event is None
    assert found.row is not None
    assert found.row.digest_version == 1
    changed = compare(old, seen(displayName="B"))
    assert changed.verdict == "silent"


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["A", "B"]), st.sampled_from(["OPEN", "CLOSED"])), max_size=12
    )
)
def test_any_history_has_rising_sequences_and_no_name_twice(sights: list[tuple[int, str, str]]) -> None:
    events, known = versions(
        "u1",
        seen(),
        *(seen(at=at, displayName=name, status=f"INCIDENT_STATUS_{status}") for at, name, status in sights),
    )
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len({event.id for event in events}) == len(events)
    assert [event.updated for event in events] == sorted(event.updated for event in events)
    assert known.updated == known.newest == max([START, *(START + at * SECOND for at, _, _ in sights)])


def test_severity_has_a_short_name() -> None:
    assert severity_name("INCIDENT_SEVERITY_LEVEL_HIGH") == "HIGH"
    assert severity_name("SOMETHING") == "SOMETHING"
    assert severity_name("") == "UNSPECIFIED"
