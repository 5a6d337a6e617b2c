"""What happened lately, kept in memory for the status: newest events, lag by the minute, growth, pace of a backfill.

Nothing rests on it; after a restart it begins anew, except for the events, which the journal still holds.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from relay.clock import SECOND, Instant
from relay.formats.message import PREFIXES, field_of, halves, link_of
from relay.incidents import parse_instant, severity_name
from relay.journal import PassState, Progress
from relay.sinks import Delivery
from relay.status import MAX_EVENTS, TEXT_CHARACTERS, TITLE_CHARACTERS, ChangeFacts, EventFacts, LagFacts

MINUTES: Final = 60
_MINUTE: Final = 60 * SECOND
PACE_LEAST: Final = 10 * SECOND
"""How long a backfill is watched before its end is estimated."""
GROWTH_EVERY: Final = 600 * SECOND
GROWTH_SPAN: Final = 86_400 * SECOND
GROWTH_LEAST: Final = 3600 * SECOND
"""Before that much time has been seen, nothing is said of the growth: the first hour may be a backfill."""
_NAMES: Final = ("displayName", "description")
"""What `titles: false` hides."""


class Recent:
    """Fed from time to time; holds as much as the status shows."""

    def __init__(self, *, titles: bool, links: Mapping[str, str]) -> None:
        """`titles`: with the names of incidents. `links` maps sources to templates."""
        self._titles = titles
        self._links = links
        self._events: deque[EventFacts] = deque(maxlen=MAX_EVENTS)
        self._lags: deque[tuple[Instant, float | None, float | None]] = deque(maxlen=MINUTES + 1)
        self._sizes: deque[tuple[Instant, int]] = deque()
        self.position = 0
        """That of the newest event."""

    @property
    def events(self) -> Sequence[EventFacts]:
        """The newest, newest first."""
        return list(self._events)

    def committed(self, newest: Sequence[Delivery]) -> None:
        """These were added to the journal; newest first."""
        for delivery in reversed(newest):
            self._events.appendleft(event_facts(delivery, titles=self._titles, links=self._links))
            self.position = max(self.position, delivery.position)

    def lagged(self, now: Instant, *, read: Instant | None, delivered: Instant | None) -> None:
        """Up to where everything is read, and delivered; None: not known yet."""
        minute = now - now % _MINUTE
        lags = [None if up_to is None else max(0.0, (now - up_to) / SECOND) for up_to in (read, delivered)]
        if self._lags and self._lags[-1][0] == minute:
            _minute, *before = self._lags.pop()
            lags = [_greater(one, other) for one, other in zip(before, lags, strict=True)]
        self._lags.append((minute, lags[0], lags[1]))

    def lag(self, now: Instant) -> LagFacts:
        """The greatest lag of each whole minute of the last hour; None where nothing is known."""
        end = now - now % _MINUTE
        known = {minute: (read, delivered) for minute, read, delivered in self._lags}
        minutes = [known.get(end - ago * _MINUTE, (None, None)) for ago in range(MINUTES, 0, -1)]
        return LagFacts(
            end=end, read_seconds=[one[0] for one in minutes], delivered_seconds=[one[1] for one in minutes]
        )

    def used(self, now: Instant, used_bytes: int) -> None:
        """So much of the journal is in use."""
        if self._sizes and now - self._sizes[-1][0] < GROWTH_EVERY:
            return
        self._sizes.append((now, used_bytes))
        while self._sizes[0][0] < now - GROWTH_SPAN:
            self._sizes.popleft()

    def growth_bytes_per_day(self, now: Instant, used_bytes: int) -> float | None:
        """By how much the journal grew within the last day, as far as it was seen; None when that is under an hour."""
        if not self._sizes or now - self._sizes[0][0] < GROWTH_LEAST:
            return None
        since, before = self._sizes[0]
        return (used_bytes - before) * GROWTH_SPAN / (now - since)


class Pace:
    """How fast a backfill gets on in this process, and when it will end."""

    def __init__(self) -> None:
        self.end: Instant | None = None
        """None: not running, or not seen for long enough."""
        self._pass: PassState | None = None
        self._began = (0, 0)

    def saw(self, progress: Progress, now: Instant) -> None:
        """Where it stands now."""
        left = [one for one in progress.backfill if not one.done]
        self.end = None
        if not left or left[0].first is None:
            return
        current, first = left[0], left[0].first
        if self._pass is None or (self._pass.view, self._pass.since) != (current.view, current.since):
            self._pass, self._began = current, (now, current.cursor)
        since, start = self._began
        gone, read = now - since, current.cursor - start
        if gone >= PACE_LEAST and read > 0:
            span = progress.first_start - first
            ahead = max(0, progress.first_start - current.cursor) + span * (len(left) - 1)
            self.end = now + ahead * gone // read


def event_facts(delivery: Delivery, *, titles: bool, links: Mapping[str, str]) -> EventFacts:
    """What the status shows of one event. Whatever its body holds, there are facts; what can't be read is left out."""
    event, incident = halves(delivery.body)
    previous = event.get("previous")
    before = previous if isinstance(previous, dict) else {}
    changed = event.get("changed")
    names = [name for name in changed if isinstance(name, str)] if isinstance(changed, list) else []
    return EventFacts(
        id=delivery.id,
        observed=_observed(event, delivery.updated),
        updated=delivery.updated,
        source=delivery.source,
        origin=delivery.origin,
        kind=delivery.kind,
        sequence=delivery.sequence,
        uuid=_sendable(delivery.uuid),
        title=(_short("displayName", incident.get("displayName")) or "")[:TITLE_CHARACTERS] if titles else "",
        severity=_sendable(severity_name(delivery.severity)),
        status=_short("status", incident.get("status")) or "",
        changed=[_change(name, before.get(name), field_of(incident, name), titles=titles) for name in names],
        link=link_of(links.get(delivery.source, ""), delivery.uuid),
    )


def _change(name: str, before: Any, after: Any, *, titles: bool) -> ChangeFacts:
    old, new = _short(name, before), _short(name, after)
    cut = isinstance(before, dict) or max(len(old or ""), len(new or "")) > TEXT_CHARACTERS
    if cut or (name in _NAMES and not titles):
        return ChangeFacts(field=_sendable(name), old=None, new=None)
    return ChangeFacts(field=_sendable(name), old=old, new=new)


def _short(field: str, value: Any) -> str | None:
    """The value as text, enums by their short names; None when there is none."""
    if value is None or value in ("", [], {}):
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _sendable(text.removeprefix(PREFIXES.get(field, "")))


def _sendable(text: str) -> str:
    """Without halves of surrogate pairs, which no UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def _observed(event: Mapping[str, Any], updated: Instant) -> Instant:
    try:
        return parse_instant(event["observedTime"])
    except (KeyError, ValueError, TypeError):
        return updated


def _greater(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)
