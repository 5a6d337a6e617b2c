"""What the status remembers of the last hour: the newest events, the lag of each minute, growth, and pace."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from relay.clock import SECOND
from relay.journal import PassState, Progress
from relay.recent import Pace, Recent, event_facts
from relay.status import MAX_EVENTS, ChangeFacts, EventFacts, LagFacts
from tests.support.deliveries import START, deliveries, delivery

HOUR = 3600 * SECOND
MINUTE = 60 * SECOND
NOON = START - START % HOUR
LINK = {"acme": "https://console.example/incidents/{uuid}"}


def recent(*, titles: bool = True) -> Recent:
    return Recent(titles=titles, links=LINK)


def shown(body: dict[str, Any], *, titles: bool = True) -> EventFacts:
    """The facts of an event with this body."""
    made = msgspec.structs.replace(delivery(1), body=json.dumps(body).encode())
    return event_facts(made, titles=titles, links=LINK)


def changes(**fields: tuple[Any, Any]) -> dict[str, Any]:
    """The body of an update in which these fields changed from one value to another."""
    return {
        "event": {"changed": list(fields), "previous": {name: old for name, (old, _new) in fields.items()}},
        "incident": {name: new for name, (_old, new) in fields.items()},
    }


def test_the_newest_events_are_kept_newest_first() -> None:
    kept = recent()
    kept.committed(deliveries(1, MAX_EVENTS)[::-1])
    kept.committed(deliveries(MAX_EVENTS + 1, MAX_EVENTS + 3)[::-1])
    kept.committed([])
    assert [event.sequence for event in kept.events] == list(range(MAX_EVENTS + 3, 3, -1))
    assert kept.position == MAX_EVENTS + 3


def test_an_event_is_shown_with_short_names_its_changes_and_its_link() -> None:
    made = delivery(7, displayName="Beacon over DNS", status="INCIDENT_STATUS_IN_PROGRESS")
    event = event_facts(made, titles=True, links=LINK)
    assert (event.title, event.severity, event.status) == ("Beacon over DNS", "HIGH", "IN_PROGRESS")
    assert event.changed == [ChangeFacts(field="status", old="OPEN", new="IN_PROGRESS")]
    assert event.link == "https://console.example/incidents/uuid-7"
    assert event.observed == event.updated == START + 7 * SECOND
    assert event_facts(delivery(7, source="globex"), titles=True, links=LINK).link == ""


def test_without_titles_neither_the_name_nor_the_description_is_shown() -> None:
    body = changes(displayName=("the old name", "the new name"), description=("a", "b"), severity=("", "X"))
    event = shown(body, titles=False)
    assert "name" not in repr(replace(event, changed=[]))
    assert event.changed == [
        ChangeFacts(field="displayName", old=None, new=None),
        ChangeFacts(field="description", old=None, new=None),
        ChangeFacts(field="severity", old=None, new="X"),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("", "a-uuid"), (None, "a-uuid")),
        ((["x"], []), ('["x"]', None)),
        ((4, 11), ("4", "11")),
        (("x" * 257, "y"), (None, None)),
        (({"truncated": True, "bytes": 2000}, "y"), (None, None)),
    ],
)
def test_a_value_is_text_or_nothing(values: tuple[Any, Any], expected: tuple[str | None, str | None]) -> None:
    (change,) = shown(changes(assigneeUuid=values)).changed
    assert (change.old, change.new) == expected


def test_a_metric_is_found_where_it_stands() -> None:
    body = {
        "event": {"changed": ["metrics.deviceCount"], "previous": {"metrics.deviceCount": 4}},
        "incident": {"metrics": {"deviceCount": 11}},
    }
    assert shown(body).changed == [ChangeFacts(field="metrics.deviceCount", old="4", new="11")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"event":[],"incident":1}',
        b'{"event":{"changed":[1,null],"previous":3}}',
        b"[" * 9999,
    ],
)
def test_a_body_that_is_none_still_gives_an_event(body: bytes) -> None:
    event = event_facts(msgspec.structs.replace(delivery(3), body=body), titles=True, links=LINK)
    assert (event.title, list(event.changed), event.sequence) == ("", [], 3)


def test_halves_of_surrogate_pairs_can_be_sent() -> None:
    body = b'{"event":{"changed":["status"]},"incident":{"displayName":"a\\ud800b","status":"\\udfff"}}'
    event = event_facts(msgspec.structs.replace(delivery(3), body=body), titles=True, links=LINK)
    assert (event.title, event.status) == ("a?b", "?")


def test_a_minute_shows_its_greatest_lag() -> None:
    kept = recent()
    kept.lagged(NOON + SECOND, read=NOON, delivered=None)
    kept.lagged(NOON + 50 * SECOND, read=NOON, delivered=NOON + 10 * SECOND)
    kept.lagged(NOON + 55 * SECOND, read=NOON + 54 * SECOND, delivered=NOON + 54 * SECOND)
    kept.lagged(NOON + 61 * SECOND, read=NOON + 60 * SECOND, delivered=None)
    lag = kept.lag(NOON + 2 * MINUTE + 30 * SECOND)
    assert lag.end == NOON + 2 * MINUTE
    assert (lag.read_seconds[-2:], lag.delivered_seconds[-2:]) == ([50.0, 1.0], [40.0, None])
    assert set(lag.read_seconds[:-2]) == {None}


def test_the_lag_covers_an_hour_and_leaves_gaps_where_nothing_was_measured() -> None:
    kept = recent()
    for minute in range(90):
        if minute != 80:
            kept.lagged(NOON + minute * MINUTE, read=NOON + minute * MINUTE - minute * SECOND, delivered=None)
    lag = kept.lag(NOON + 90 * MINUTE)
    assert lag.read_seconds == [None if minute == 80 else float(minute) for minute in range(30, 90)]


def test_nothing_measured_is_an_hour_of_nothing() -> None:
    assert recent().lag(NOON) == LagFacts(end=NOON, read_seconds=[None] * 60, delivered_seconds=[None] * 60)


def test_a_clock_that_is_set_back_gives_no_negative_lag() -> None:
    kept = recent()
    kept.lagged(NOON, read=NOON + MINUTE, delivered=NOON + MINUTE)
    assert kept.lag(NOON + MINUTE).read_seconds[-1] == 0.0


def test_growth_is_known_after_an_hour_and_looks_back_a_day() -> None:
    kept = recent()
    kept.used(NOON, 1000)
    assert kept.growth_bytes_per_day(NOON + HOUR - 1, 2000) is None
    assert kept.growth_bytes_per_day(NOON + HOUR, 2000) == 24_000
    for hour in range(1, 31):
        kept.used(NOON + hour * HOUR, 1000 + 10 * hour)
    assert kept.growth_bytes_per_day(NOON + 30 * HOUR, 1300) == 240
    assert recent().growth_bytes_per_day(NOON, 1) is None


# -- when a backfill ends ---------------------------------------------------------------------------------------------


def backfill(*passes: PassState) -> Progress:
    return Progress(identity="eu", first_start=NOON, start_from=0, backfill=passes)


def one(
    cursor: int, *, first: int | None = NOON - 100 * HOUR, done: bool = False, view: Any = "create_time"
) -> PassState:
    return PassState(view=view, cursor=cursor, first=first, done=done)


def end_of(pace: Pace, progress: Progress, now: int) -> int | None:
    pace.saw(progress, now)
    return pace.end


def test_a_backfill_ends_as_much_later_as_its_pace_says() -> None:
    pace = Pace()
    assert end_of(pace, backfill(one(NOON - 100 * HOUR)), NOON) is None
    assert end_of(pace, backfill(one(NOON - 90 * HOUR)), NOON + 5 * SECOND) is None  # too soon to tell
    assert end_of(pace, backfill(one(NOON - 75 * HOUR)), NOON + 25 * SECOND) == NOON + 100 * SECOND
    assert end_of(pace, backfill(one(NOON, done=True)), NOON + 100 * SECOND) is None


def test_a_second_pass_counts_before_it_has_begun() -> None:
    pace = Pace()
    ahead = one(NOON - 100 * HOUR, first=None)
    pace.saw(backfill(one(NOON - 100 * HOUR, view="update_time"), ahead), NOON)
    assert (
        end_of(pace, backfill(one(NOON - 50 * HOUR, view="update_time"), ahead), NOON + 50 * SECOND)
        == NOON + 200 * SECOND
    )
    done = one(NOON, view="update_time", done=True)
    assert (
        end_of(pace, backfill(done, one(NOON - 100 * HOUR)), NOON + 100 * SECOND) is None
    )  # its own pace is not known yet
    assert end_of(pace, backfill(done, one(NOON - 50 * HOUR)), NOON + 150 * SECOND) == NOON + 200 * SECOND


def test_a_backfill_that_stands_still_has_no_end() -> None:
    pace = Pace()
    for seconds in (0, 60, 600):
        assert end_of(pace, backfill(one(NOON - 100 * HOUR)), NOON + seconds * SECOND) is None
