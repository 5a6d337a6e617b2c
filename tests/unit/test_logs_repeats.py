"""A failure that lasts is worth few lines: the first, one an interval, and how many there were when it is over."""

import pytest
import structlog

from relay.logs import REPEAT_SECONDS, Repeats, one_poll, utc
from tests.support.clock import START, FakeClock

AT_START = "2026-05-28T20:26:40.000Z"


def due(repeats: Repeats, clock: FakeClock, *, seconds: float, every: float, reason: str = "timeout") -> list[float]:
    """When, in seconds, one of many failures was worth a line."""
    told = []
    for step in range(int(seconds / every)):
        if repeats.again(reason).due:
            told.append(step * every)
        clock.advance(every)
    return told


def test_the_first_is_told_and_then_one_an_interval() -> None:
    clock = FakeClock()
    assert due(Repeats(clock), clock, seconds=3 * 3600, every=15) == [n * REPEAT_SECONDS for n in range(18)]


def test_each_one_is_counted_since_the_first() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    clock.advance(100)
    since = utc(clock.now())
    for times in range(1, 100):
        repeat = repeats.again("timeout")
        assert (repeat.times, repeat.since) == (times, since)
        clock.advance(15)


def test_another_reason_is_told_at_once_and_does_not_repeat_the_first() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    told = []
    for number in range(2 * int(REPEAT_SECONDS) // 15):
        told.append(repeats.again(("timeout", "503")[number % 2]).due)
        clock.advance(15)
    assert [number for number, one in enumerate(told) if one] == [0, 1, 40, 41]


def test_what_is_over_begins_anew_and_says_how_long_it_was() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    repeats.again("timeout")
    clock.advance(42.25)
    assert not repeats.again("timeout").due
    clock.advance(0.5)
    assert repeats.over() == pytest.approx(42.8, abs=0.06)
    assert repeats.over() == 0
    clock.advance(10)
    repeat = repeats.again("timeout")
    assert (repeat.due, repeat.times) == (True, 1)
    assert repeat.since == utc(clock.now()) != AT_START


def test_a_row_without_an_end_of_its_own_ends_when_none_comes_for_long_enough() -> None:
    clock = FakeClock()
    repeats = Repeats(clock, rest_seconds=REPEAT_SECONDS)
    assert [repeats.again("503").times for _ in range(3)] == [1, 2, 3]
    clock.advance(REPEAT_SECONDS - 1)
    assert repeats.again("503").times == 4
    clock.advance(REPEAT_SECONDS)
    assert (repeats.again("503").times, repeats.again("503").since) == (1, utc(clock.now()))


def test_a_wall_clock_that_jumps_neither_mutes_nor_floods() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    assert repeats.again("timeout").due
    clock.jump(-86_400)
    assert not repeats.again("timeout").due
    clock.jump(3 * 86_400)
    assert not repeats.again("timeout").due
    clock.advance(REPEAT_SECONDS)
    assert repeats.again("timeout").due
    assert repeats.again("timeout").since == AT_START


def test_times_are_shown_in_milliseconds_rounded_down() -> None:
    assert utc(START) == AT_START
    assert utc(START + 999_999_999) == "2026-05-28T20:26:40.999Z"


def test_each_poll_has_an_id_of_its_own_and_leaves_none_behind() -> None:
    ids = []
    for _ in range(1000):
        with one_poll():
            ids.append(structlog.contextvars.get_contextvars()["poll_id"])
    assert len(set(ids)) == 1000
    assert all(len(one) == 8 and int(one, 16) >= 0 for one in ids)
    assert "poll_id" not in structlog.contextvars.get_contextvars()
