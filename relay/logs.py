"""How the relay logs: structlog for us, the same lines for libraries, and no secret in either. Not where logs go.

Secrets are kept out where messages are written; what `protect` was told is masked here all the same.
"""

import html
import itertools
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO
from urllib.parse import quote, quote_plus

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from relay.clock import SECOND, Clock, Instant

MASK = "***"
SHORTEST_SECRET = 4
"""Shorter ones would mask half of every line."""
REPEAT_SECONDS: Final = 600.0
"""How often the same failure is worth a line while it lasts; each one is counted in the metrics."""

_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_OURS: Final = frozenset({"timestamp", "level"})
# Incident text is attacker-influenced: what moves a terminal's cursor or turns its text around is shown by its number.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_ESCAPED: Final = re.compile(r"""["'/]""")
_polls = itertools.count(secrets.randbits(32))


class _Masks:
    """The known secrets, in every spelling in which they are likely to meet a log line."""

    def __init__(self) -> None:
        self._spellings: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, secret: str) -> None:
        """Masks it from now on."""
        before = len(self._spellings)
        for part in {secret, *(line for line in secret.splitlines() if not line.startswith("-----"))}:
            self._spellings |= {spelling for spelling in _spellings(part) if len(spelling) >= SHORTEST_SECRET}
        if len(self._spellings) > before:
            longest_first = sorted(self._spellings, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(_escaped_at_will, longest_first)))

    def hide(self, text: str) -> str:
        """The text without any known secret."""
        return self._pattern.sub(MASK, text) if self._pattern else text


_masks = _Masks()


def protect(secret: str) -> None:
    """Masks this value in everything that is logged from now on, for as long as the process lives.

    Values under 4 characters are not masked. To be called again when a secret was read anew.
    """
    if len(secret) >= SHORTEST_SECRET:
        _masks.add(secret)


def hide(text: str) -> str:
    """The text without any protected value: for what is kept or shown of a far side's words."""
    return _masks.hide(text)


@contextmanager
def one_poll() -> Iterator[None]:
    """Every line that is written inside, and in tasks begun inside, carries the same new `poll_id`.

    Ids are counted from a random number: no two alike in a process, hardly any in two.
    """
    with structlog.contextvars.bound_contextvars(poll_id=f"{next(_polls) & 0xFFFF_FFFF:08x}"):
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """One failure among its like: whether it is worth a line, the how manyth it is, and since when they come."""

    due: bool
    times: int
    since: str


class Repeats:
    """Tells which of many failures in a row are worth a line: the first of each reason, then one an interval.

    Writes nothing. A row ends with `over`, or when none has come for `rest_seconds`.
    """

    def __init__(
        self, clock: Clock, *, interval_seconds: float = REPEAT_SECONDS, rest_seconds: float = float("inf")
    ) -> None:
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._rest_seconds = rest_seconds
        self._told: dict[str, float] = {}
        self._times = 0
        self._began: Instant = 0
        self._began_monotonic = self._last = clock.monotonic()

    def again(self, reason: str) -> Repeat:
        """One more has come. `reason` is of a closed set."""
        now = self._clock.monotonic()
        if self._times and now - self._last >= self._rest_seconds:
            self.over()
        if not self._times:
            self._began, self._began_monotonic = self._clock.now(), now
        self._times += 1
        self._last = now
        told = self._told.get(reason)
        due = told is None or now - told >= self._interval_seconds
        if due:
            self._told[reason] = now
        return Repeat(due=due, times=self._times, since=utc(self._began))

    def over(self) -> float:
        """Ends the row; how long it was, in seconds."""
        seconds = self._clock.monotonic() - self._began_monotonic if self._times else 0.0
        self._told.clear()
        self._times = 0
        return round(seconds, 1)


def utc(instant: Instant) -> str:
    """An instant as lines show it: UTC, milliseconds."""
    time = datetime.fromtimestamp(instant // SECOND, UTC).replace(microsecond=instant % SECOND // 1_000_000 * 1000)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["auto", "console", "json"] = "auto",  # noqa: A002 - the setting's name
    stream: TextIO | None = None,
) -> None:
    """Sends our lines, and libraries' from warning on, to the stream (standard error), a line each.

    `auto` is `console` on a terminal and `json` elsewhere. May be called again; the last call counts.
    """
    stream = sys.stderr if stream is None else stream
    console = format == "console" or (format == "auto" and stream.isatty())
    threshold = _LEVELS[level]
    describe: list[Processor] = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, _lead]
    finish: list[Processor] = [structlog.processors.format_exc_info, _mask, *_rendering(stream, console=console)]
    structlog.configure(
        processors=[*describe, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *describe],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(threshold, logging.WARNING))


def _rendering(stream: TextIO, *, console: bool) -> list[Processor]:
    if not console:
        return [structlog.processors.JSONRenderer(sort_keys=False)]
    # The exception is text by now; the plain formatter shows neither locals nor a warning.
    renderer = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )
    return [_show_unsafe, renderer]


def _lead(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Time (UTC, milliseconds), level and event first."""
    return {"timestamp": utc(time.time_ns()), "level": event.pop("level"), "event": event.pop("event", ""), **event}


def _mask(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Plain JSON types without secrets, so that no renderer can bring one back by a repr of its own."""
    return {key: value if key in _OURS else _plain(value, _masks.hide) for key, value in event.items()}


def _show_unsafe(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: _plain(value, _visible) for key, value in event.items()}


def _visible(text: str) -> str:
    return _UNSAFE.sub(lambda found: f"U+{ord(found[0]):04X}", text)


def _plain(value: Any, change: Callable[[str], str]) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): _plain(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, change) for item in value]
    return change(repr(value))


def _escaped_at_will(spelling: str) -> str:
    """The pattern of a spelling in which quotes and slashes may be escaped: JSON in JSON does so several times."""
    return _ESCAPED.sub(lambda found: rf"\\*{found[0]}", re.escape(spelling))


def _spellings(secret: str) -> set[str]:
    return {
        secret,
        quote(secret, safe="", errors="replace"),
        quote(secret, errors="replace"),
        quote_plus(secret, errors="replace"),
        html.escape(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        repr(secret.encode("utf-8", "surrogatepass"))[2:-1],
    }
