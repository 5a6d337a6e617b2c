from datetime import UTC, datetime

import pytest

from relay.clock import SECOND, Instant
from relay.words import count, inert, moment, number, sentence, size, span


def at(text: str) -> Instant:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


NOW = at("2026-11-22T10:14:32")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0 s"),
        (0.9, "0 s"),
        (59.99, "59 s"),
        (60, "1 min"),
        (82, "1 min 22 s"),
        (599, "9 min 59 s"),
        (870, "14 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (45_240, "12 h 34 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d"),
        (331_200, "3 d 20 h"),
    ],
)
def test_spans_have_at_most_two_units_and_are_rounded_down(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def test_a_span_of_one_unit_drops_the_smaller() -> None:
    assert [span(seconds, units=1) for seconds in (82, 45_240, 331_200)] == ["1 min", "12 h", "3 d"]


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        ("2026-11-22T00:00:00", "00:00:00"),
        ("2026-11-22T23:59:59", "23:59:59"),
        ("2026-11-21T21:40:12", "21 Nov 21:40"),
        ("2026-11-23T00:00:01", "23 Nov 00:00"),
        ("2025-10-14T02:11:09", "14 Oct 2025"),
        ("1960-03-01T00:00:00", "1 Mar 1960"),
    ],
)
def test_moments_of_today_show_the_time_others_the_day(time: str, shown: str) -> None:
    assert moment(at(time), NOW) == shown


def test_numbers_are_set_apart_and_counted_in_the_right_number() -> None:
    assert number(121_902) == "121,902"
    assert [count(amount, "event") for amount in (0, 1, 2310)] == ["0 events", "1 event", "2,310 events"]


def test_space_is_shown_in_the_unit_of_its_limit() -> None:
    assert size(4_230_542_786, 5 << 30) == "3.94 of 5.00 GiB"
    assert size(1 << 20, 64 << 20) == "1.00 of 64.00 MiB"


def test_a_sentence_ends_once() -> None:
    assert [sentence(text) for text in ("no answer", "why?", "done. ", "run:")] == [
        "no answer.",
        "why?",
        "done.",
        "run:",
    ]


def test_hidden_characters_appear_by_their_number() -> None:
    hostile = "invoice\u202efdp.exe\x1b[31m\u200b\n\ud800\U000e0041"
    assert inert(hostile) == "invoiceU+202Efdp.exeU+001B[31mU+200BU+000AU+D800U+E0041"


def test_visible_text_of_any_script_is_left_alone() -> None:
    assert inert("Zürich – 東京 – עברית – 👩‍💻") == "Zürich – 東京 – עברית – 👩‍💻"
