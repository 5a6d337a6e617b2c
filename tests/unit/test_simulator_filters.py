"""The filter and order languages: the documented subset is understood, all else is refused."""

from typing import Any

import pytest

from relay.clock import SECOND
from relay.simulator.filters import Condition, InvalidArgument, parse_filter, parse_order
from relay.simulator.times import parse_duration, parse_time, render_time
from tests.support.clock import START


def only(text: str) -> Condition:
    (condition,) = parse_filter(text)
    return condition


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ('display_name == "a"', "a", True),
        ('incident.displayName == "a"', "b", False),
        ("displayName != 'it\\'s'", "it's", False),
        ('assignee_uuid in ["a", "b"]', "b", True),
        ('assignee_uuid in ["a"]', "b", False),
        ('incident.displayName.contains("bc")', "abcd", True),
        ('display_name.contains("&&")', "a && b", True),
        ("severity == INCIDENT_SEVERITY_LEVEL_HIGH", 3, True),
        ("incident.severity in [INCIDENT_SEVERITY_LEVEL_LOW,INCIDENT_SEVERITY_LEVEL_HIGH]", 2, False),
        ("severity >= INCIDENT_SEVERITY_LEVEL_MEDIUM", 3, True),
        ("status <= INCIDENT_STATUS_OPEN", 2, False),
        ('"vip" in incident.tags', ["vip"], True),
        ('tags.contains("vip")', [], False),
        ("size(incident.tags) == 2", ["a", "b"], True),
        ("device_uuids.size() >= 1", [], False),
        ("has(incident.assignee_uuid)", "", False),
        ("has(tags)", ["a"], True),
        ("has(update_time)", 0, True),
        ("has(update_time)", None, False),
        ('update_time != timestamp("2026-01-01T00:00:00Z")', None, False),
        ('update_time in [timestamp("1970-01-01T00:00:01+00:00")]', SECOND, True),
    ],
)
def test_condition_holds_as_documented(text: str, value: Any, expected: bool) -> None:
    assert only(text).holds(value) is expected


@pytest.mark.parametrize(
    "text",
    [
        'display_name = "a"',
        'display_name == "a" || display_name == "b"',
        'display_name == "a" AND display_name == "b"',
        '(display_name == "a")',
        '!has(tags) && display_name == "a"',
        'update_time > timestamp("2026-01-01T00:00:00Z")',
        'update_time < timestamp("2026-01-01T00:00:00Z")',
        'update_time >= "2026-01-01T00:00:00Z"',
        'update_time >= timestamp("2026-01-01 00:00:00Z")',
        'update_time >= timestamp("2026-01-01T00:00:00 01:00")',
        'update_time >= timestamp("2026-13-01T00:00:00Z")',
        'update_time >= timestamp("yesterday")',
        "update_time >=",
        'display_name == "a" &&',
        'display_name == "a',
        'severity == "INCIDENT_SEVERITY_LEVEL_HIGH"',
        "severity == HIGH",
        "severity == INCIDENT_STATUS_OPEN",
        'uuid == "a"',
        'description.contains("a")',
        "sevrity == INCIDENT_SEVERITY_LEVEL_HIGH",
        'other.severity == "a"',
        'tags == "a"',
        '"a" in display_name',
        "size(severity) == 1",
        'size(tags) == "1"',
        'severity.contains("a")',
        'display_name.matches("a")',
        "has(nothing)",
        '"==" "a"',
        "display_name",
        "5 == 5",
    ],
)
def test_anything_beyond_the_subset_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="filter: "):
        parse_filter(text)


def test_an_empty_filter_has_no_conditions() -> None:
    assert parse_filter("  ") == ()


def test_conditions_are_joined_by_and() -> None:
    assert [c.field.path for c in parse_filter("has(tags)&&has(status) && size(tags) == 1")] == [
        "tags",
        "status",
        "tags",
    ]


def test_a_server_that_wants_offsets_refuses_z_alone() -> None:
    assert parse_filter('update_time >= timestamp("2026-01-01T00:00:00+00:00")', accept_z=False)
    with pytest.raises(InvalidArgument, match="offset"):
        parse_filter('update_time >= timestamp("2026-01-01T00:00:00Z")', accept_z=False)


@pytest.mark.parametrize(
    ("op", "fraction", "stored", "whole_seconds", "within"),
    [
        (">=", ".5", 1_500_000_000, False, True),
        (">=", ".5", 1_499_999_999, False, False),
        (">=", ".5", 1_999_999_999, True, False),
        (">=", "", 1_000_000_000, True, True),
        ("<=", "", 1_000_000_001, False, False),
        ("<=", "", 1_999_999_999, True, True),
        ("==", "", 1_999_999_999, True, True),
        ("==", ".5", 1_500_000_000, True, False),
    ],
)
def test_interval_of_a_time_comparison(op: str, fraction: str, stored: int, whole_seconds: bool, within: bool) -> None:
    low, high = only(f'update_time {op} timestamp("1970-01-01T00:00:01{fraction}Z")').interval(
        whole_seconds=whole_seconds
    )
    assert (low <= stored < high) is within


def test_order_takes_several_fields_in_snake_case() -> None:
    terms = parse_order("update_time desc, uuid,metrics.device_count desc")
    assert [(t.field.path, t.descending) for t in terms] == [
        ("updateTime", True),
        ("uuid", False),
        ("metrics.deviceCount", True),
    ]


@pytest.mark.parametrize(
    "text", ["updateTime", "update_time asc", "update_time desc desc", "uuid,", "tags", "nothing", "SeverityLevel desc"]
)
def test_order_by_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="order_by: "):
        parse_order(text)


def test_camel_case_order_is_a_setting() -> None:
    assert parse_order("updateTime", camel_case=True)[0].field.path == "updateTime"


@pytest.mark.parametrize(
    ("digits", "offset_minutes", "expected"),
    [
        (0, 0, "2026-05-28T20:26:40Z"),
        (1, 0, "2026-05-28T20:26:40.9Z"),
        (9, -330, "2026-05-28T14:56:40.987654321-05:30"),
        (3, 60, "2026-05-28T21:26:40.987+01:00"),
    ],
)
def test_times_are_rendered_and_read_back(digits: int, offset_minutes: int, expected: str) -> None:
    instant = START + 987_654_321
    text = render_time(instant, digits=digits, offset_minutes=offset_minutes)
    assert text == expected
    assert parse_time(text) == instant - instant % 10 ** (9 - digits)


def test_durations() -> None:
    assert [parse_duration(text) for text in ("500ms", "9s", "1.5m", "2h", "1d", 4)] == [0.5, 9, 90, 7200, 86_400, 4]
    for wrong in ("9", "9 s", "-1s", -1):
        with pytest.raises(ValueError, match="not a duration"):
            parse_duration(wrong)
