"""How durations, sizes and starting points are written, and read back. Pure; raises ValueError with the cure."""

import re
from datetime import timedelta
from typing import Final, Literal

from relay.clock import Instant
from relay.incidents import parse_instant

LONGEST = timedelta(days=3650)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SIZE = re.compile(r"(\d+) ?([A-Za-z]+)", re.ASCII)
_BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_DIGITS = 15


def parse_duration(text: str) -> timedelta:
    """`500ms`, `30s`, `5m`, `24h`, `7d`, or larger units before smaller ones: `1h30m`. At most ten years."""
    if _NUMBER.fullmatch(text):
        raise ValueError("has no unit; add one: ms, s, m, h or d, such as 30s")
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError("is not a duration; write 500ms, 30s, 5m, 24h, 7d or 1h30m")
    parts = [part or "0" for part in match.groups()]
    if max(map(len, parts)) > _DIGITS:
        raise ValueError("is too long; at most 3650d")
    days, hours, minutes, seconds, milliseconds = map(int, parts)
    total = ((days * 24 + hours) * 60 + minutes) * 60_000 + seconds * 1000 + milliseconds
    if total > LONGEST // timedelta(milliseconds=1):
        raise ValueError("is too long; at most 3650d")
    return timedelta(milliseconds=total)


def format_duration(duration: timedelta) -> str:
    """The shortest spelling that `parse_duration` reads back; whole milliseconds, rounded down."""
    rest = duration // timedelta(milliseconds=1)
    text = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_size(text: str) -> int:
    """`900KiB`, `2GiB`, `10MB` in bytes."""
    if _NUMBER.fullmatch(text):
        raise ValueError("has no unit; add one, such as KiB, MiB or GiB (or B)")
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _BYTES or len(match[1]) > _DIGITS:
        raise ValueError("is not a size; write a whole number and B, KiB, MiB, GiB, TiB, KB, MB, GB or TB")
    return int(match[1]) * _BYTES[match[2]]


def format_size(size: int) -> str:
    """The shortest spelling that `parse_size` reads back, in binary units."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def parse_start(text: str) -> Literal["all", "now"] | Instant:
    """Where reading begins: `all`, `now`, or an RFC 3339 time as nanoseconds since the epoch."""
    if text == "all":
        return "all"
    if text == "now":
        return "now"
    try:
        return parse_instant(text)
    except ValueError:
        raise ValueError("is not all, now or a time with its zone, such as 2026-01-01T00:00:00Z") from None
