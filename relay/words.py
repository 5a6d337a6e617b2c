"""How times, durations, numbers and foreign text are written for people: on the terminal and in the status. Pure."""

import re
from datetime import UTC, datetime
from typing import Final

from relay.clock import SECOND, Instant

FAR_SECONDS: Final = 200 * 86_400
"""Moments further away than that carry their year instead of their time of day."""
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Control, bidirectional and invisible characters, and halves of a surrogate pair, which no terminal can be sent.
_HIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def number(value: int) -> str:
    """With thousands set apart: `121,902`."""
    return f"{value:,}"


def count(value: int, noun: str) -> str:
    """`1 event`, `118 events`."""
    return f"{number(value)} {noun}" if value == 1 else f"{number(value)} {noun}s"


def span(seconds: float, *, units: int = 2) -> str:
    """A duration in at most two units, rounded down: `12 s`, `1 min 22 s`, `14 min`, `12 h 34 min`, `3 d 20 h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        parts = [(whole, "s")]
    elif whole < 600:
        parts = [(whole // 60, "min"), (whole % 60, "s")]
    elif whole < 3600:
        parts = [(whole // 60, "min")]
    elif whole < 86_400:
        parts = [(whole // 3600, "h"), (whole // 60 % 60, "min")]
    else:
        parts = [(whole // 86_400, "d"), (whole // 3600 % 24, "h")]
    shown = [parts[0], *(part for part in parts[1:units] if part[0])]
    return " ".join(f"{amount} {unit}" for amount, unit in shown)


def moment(instant: Instant, now: Instant) -> str:
    """A point in time, UTC: `10:14:32` today, else `21 Nov 21:40`, else `14 Oct 2025`."""
    time, today = _utc(instant), _utc(now)
    if time.date() == today.date():
        return f"{time:%H:%M:%S}"
    day = f"{time.day} {_MONTHS[time.month - 1]}"
    return f"{day} {time:%H:%M}" if abs(instant - now) < FAR_SECONDS * SECOND else f"{day} {time.year}"


def size(used: int, limit: int) -> str:
    """Space in use, both in the unit of the limit: `3.94 of 5.00 GiB`."""
    unit, name = (1 << 30, "GiB") if limit >= 1 << 30 else (1 << 20, "MiB")
    return f"{used / unit:.2f} of {limit / unit:.2f} {name}"


def sentence(text: str) -> str:
    """The same text, ended with a full stop if nothing ends it yet."""
    stripped = text.strip()
    return stripped if stripped.endswith((".", "?", ":")) else f"{stripped}."


def inert(text: str) -> str:
    """Foreign text that can do nothing: hidden characters appear by their number, as `U+202E`."""
    return _HIDDEN.sub(lambda match: f"U+{ord(match[0]):04X}", text)


def one_line(text: str, *, characters: int = 256) -> str:
    """The start of a text on one line, fit for an error message."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:characters]


def _utc(instant: Instant) -> datetime:
    return datetime.fromtimestamp(instant // SECOND, UTC)
