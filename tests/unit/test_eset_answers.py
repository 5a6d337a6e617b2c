"""The table of answers, and the arithmetic of waiting."""

from email.utils import formatdate

import pytest

from relay.clock import SECOND
from relay.eset.answers import (
    backoff_seconds,
    classify,
    collect_wait_seconds,
    http_date,
    is_throttling,
    one_line,
    retry_after_seconds,
    server_time,
)

NOW = 1_780_000_000 * SECOND


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (200, "read"),
        (202, "retry"),
        (204, "retry"),
        (206, "retry"),
        (301, "denied"),
        (302, "denied"),
        (400, "reauthorize"),
        (401, "reauthorize"),
        (403, "denied"),
        (404, "denied"),
        (405, "denied"),
        (408, "retry"),
        (415, "denied"),
        (422, "denied"),
        (425, "retry"),
        (429, "pause"),
        (500, "retry"),
        (501, "denied"),
        (502, "retry"),
        (503, "retry"),
        (504, "afresh"),
        (520, "retry"),
    ],
)
def test_every_status_has_its_step(status: int, step: str) -> None:
    assert classify(status) == step


def test_response_id_changes_what_202_and_404_mean() -> None:
    assert classify(202, offers_id=True) == "collect"
    assert classify(202, asked_with_id=True) == "collect"
    assert classify(404, asked_with_id=True) == "afresh"
    assert classify(404, offers_id=True) == "denied"


@pytest.mark.parametrize("status", range(100, 600))
def test_only_200_is_read(status: int) -> None:
    assert (classify(status) == "read") is (status == 200)


def test_throttling_is_429_and_the_fair_use_layer() -> None:
    assert [status for status in range(100, 600) if is_throttling(status)] == [202, 429, 500, 502, 503, 504]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("7200", 3600.0),
        ("9" * 5000, 3600.0),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("nan", None),
        ("Fri, 99 Foo 2026 00:00:00 GMT", None),
        (formatdate(NOW // SECOND + 90, usegmt=True), 90.0),
        (formatdate(NOW // SECOND - 90, usegmt=True), 0.0),
        (formatdate(NOW // SECOND + 90_000, usegmt=True), 3600.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_at_most_an_hour(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW) == seconds


def test_http_date_of_any_age_is_an_instant() -> None:
    assert http_date("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert http_date("Wed, 28 May 2026 20:26:40 +0000") == NOW
    assert http_date(None) is None
    assert http_date("28 May") is None


def test_backoff_doubles_up_to_its_maximum_and_jitter_is_full() -> None:
    ceilings = [backoff_seconds(attempt, initial=1, maximum=300, random=1.0) for attempt in (1, 2, 3, 9, 10, 5000)]
    assert ceilings == [1, 2, 4, 256, 300, 300]
    assert backoff_seconds(5, initial=1, maximum=300, random=0.0) == 0
    assert backoff_seconds(5, initial=1, maximum=300, random=0.25) == 4


def test_a_202_is_asked_for_again_after_1_2_4_seconds() -> None:
    assert [collect_wait_seconds(collected) for collected in (0, 1, 2, 5, 6, 5000)] == [1, 2, 4, 32, 60, 60]


def test_texts_of_others_become_one_short_line() -> None:
    assert one_line("a\r\nb\tc\x1b[31m\u202e  d") == "a b c [31m d"
    assert len(one_line("x" * 1000)) == 256


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "yesterday", "0", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"),
        *("Mon, 01 Jan 0001 00:00:00 GMT", "Thu, 28 May 2026 99:99:99 GMT", "Thu, 28 May 2026 20:26:40 +9999"),
    ],
)
def test_date_that_is_nonsense_says_nothing(header: str | None) -> None:
    assert server_time(header) is None


@pytest.mark.parametrize("skew_seconds", [-3600, 0, 3600])
def test_date_of_a_clock_that_is_off_says_so(skew_seconds: int) -> None:
    seconds = NOW // SECOND + skew_seconds
    assert server_time(formatdate(seconds, usegmt=True)) == seconds * SECOND
