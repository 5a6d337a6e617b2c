"""Durations, sizes and starting points are read back as they are written, and refused with the cure."""

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.incidents import parse_instant
from relay.settings.units import LONGEST, format_duration, format_size, parse_duration, parse_size, parse_start


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("0s", timedelta()),
        ("500ms", timedelta(milliseconds=500)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("1d2h3m4s5ms", timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=5)),
        ("2m5ms", timedelta(minutes=2, milliseconds=5)),
        ("3650d", LONGEST),
    ],
)
def test_duration_is_read(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["60", "1.5", "0"])
def test_duration_without_unit_is_told_to_add_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"^has no unit; add one: ms, s, m, h or d, such as 30s$"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "-5s", "5", "5 s", "1.5h", "30m1h", "5w", "5S", "s", "1h 30m", "٣s", "PT5M"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|has no unit"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["3651d", "3650d1ms", "9" * 15 + "d", "9" * 5000 + "s"])
def test_duration_beyond_ten_years_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is too long; at most 3650d$"):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(), max_value=LONGEST))
def test_duration_round_trip(duration: timedelta) -> None:
    whole = duration - timedelta(microseconds=duration.microseconds % 1000)
    assert parse_duration(format_duration(duration)) == whole


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert timedelta() <= parse_duration(text) <= LONGEST


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512B", 512),
        ("900KiB", 900 * 1024),
        ("2GiB", 2 * 2**30),
        ("10MB", 10_000_000),
        ("1kB", 1000),
        ("1 TiB", 2**40),
    ],
)
def test_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_size_without_unit_is_told_to_add_one() -> None:
    with pytest.raises(ValueError, match=r"^has no unit; add one, such as KiB, MiB or GiB \(or B\)$"):
        parse_size("900")


@pytest.mark.parametrize("text", ["", "KiB", "-1KiB", "1.5GiB", "1Gi", "1gib", "1KiBs", "9" * 16 + "B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**49))
def test_size_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_start_is_all_now_or_an_instant() -> None:
    assert parse_start("all") == "all"
    assert parse_start("now") == "now"
    assert parse_start("2026-01-01T01:00:00+01:00") == parse_instant("2026-01-01T00:00:00Z")


@pytest.mark.parametrize("text", ["", "ALL", "yesterday", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"])
def test_other_starts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not all, now or a time with its zone, such as 2026-01-01T00:00:00Z$"):
        parse_start(text)
