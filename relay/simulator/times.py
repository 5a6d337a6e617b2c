"""Times and durations as the simulator reads and writes them. Not the relay's own code, so that a bug is not shared."""

import re
from datetime import UTC, datetime, timedelta

from relay.clock import SECOND, Instant

_TIME = re.compile(
    r"(?P<base>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,9}))?(?P<zone>Z|[+-]\d\d:\d\d)", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_time(text: str) -> Instant:
    """RFC 3339 with 0 to 9 fractional digits and `Z` or an offset. Raises ValueError for anything else."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time: {text[:40]!r}")
    zone = match["zone"].replace("Z", "+00:00")
    since = datetime.fromisoformat(match["base"] + zone) - _EPOCH
    fraction = int(match["fraction"].ljust(9, "0")) if match["fraction"] else 0
    return (since.days * 86_400 + since.seconds) * SECOND + fraction


def render_time(instant: Instant, *, digits: int, offset_minutes: int = 0) -> str:
    """RFC 3339 with exactly `digits` fractional digits, rounded down; `Z` when the offset is 0."""
    seconds, nanos = divmod(instant, SECOND)
    text = (_EPOCH + timedelta(seconds=seconds + offset_minutes * 60)).isoformat()[:19]
    if digits:
        text = f"{text}.{nanos:09d}"[: 20 + digits]
    if not offset_minutes:
        return text + "Z"
    hours, minutes = divmod(abs(offset_minutes), 60)
    return f"{text}{'-' if offset_minutes < 0 else '+'}{hours:02d}:{minutes:02d}"


def rounded_down(instant: Instant, *, digits: int) -> Instant:
    """The instant as `digits` fractional digits can show it."""
    step: int = 10 ** (9 - digits)
    return instant - instant % step


def parse_duration(value: str | float) -> float:
    """Seconds out of `500ms`, `9s`, `5m`, `2h`, `30d` or a number of seconds. Raises ValueError for anything else."""
    if not isinstance(value, str):
        if value < 0:
            raise ValueError(f"not a duration: {value}")
        return float(value)
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError(f"not a duration: {value[:40]!r}; write 500ms, 9s, 5m, 2h or 30d")
    return float(match[1]) * _UNIT_SECONDS[match[2]]
