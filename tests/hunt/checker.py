"""What was there to see, and what came of it: the six guarantees, worked out without a word of the relay's.

Nothing here runs the relay's diff, digest or identity: what an event must say is computed a second time.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from relay.clock import Instant
from relay.simulator.tenant import DETAILS
from relay.simulator.times import parse_time

TRACKED: Final = (
    "status", "severity", "resolveReason", "assigneeUuid", "displayName", "description", "tags",
    "metrics.deviceCount", "metrics.executableCount", "metrics.processCount",
)  # fmt: skip
_UNSPECIFIED: Final = {
    "status": "INCIDENT_STATUS_UNSPECIFIED",
    "severity": "INCIDENT_SEVERITY_LEVEL_UNSPECIFIED",
    "resolveReason": "INCIDENT_RESOLVE_REASON_UNSPECIFIED",
}
_CLOSED: Final = "INCIDENT_STATUS_CLOSED"
_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.decode

State = tuple[Instant, bytes]
"""What makes a version: when it was last updated (or created, if never), and what its tracked fields say."""


class Violation(Exception):
    """A guarantee is broken. `kind` is a short word for the sort of it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    def __str__(self) -> str:
        return f"{self.kind}: {self.args[0]}"


class Content(msgspec.Struct, frozen=True):
    """A record as the list shows it, and what it means."""

    raw: bytes
    created: Instant
    updated: Instant | None
    values: dict[str, Any]
    state: State


def content_of(raw: bytes) -> Content:
    """Reads a good record."""
    fields = _decode(raw)
    created = parse_time(fields["createTime"])
    updated = parse_time(fields["updateTime"]) if fields.get("updateTime") else None
    values = values_of(fields)
    state = (created if updated is None else updated, _encode(list(values.values())))
    return Content(raw, created, updated, values, state)


def values_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The tracked fields by name: absent = null = default, integers in strings = integers, tags as a set."""
    metrics = fields.get("metrics") or {}
    values: dict[str, Any] = {}
    for name in TRACKED:
        if name == "tags":
            values[name] = sorted(set(fields.get(name) or ()))
        elif name.startswith("metrics."):
            values[name] = int(metrics.get(name.removeprefix("metrics.")) or 0)
        else:
            values[name] = fields.get(name) or _UNSPECIFIED.get(name, "")
    return values


@dataclass(slots=True, kw_only=True)
class Stage:
    """A while in the life of an incident: what was shown of it (None: it was gone), by the ticks of the world."""

    uuid: str
    content: Content | None
    since: int
    until: int | None = None

    def whole(self, begun: int) -> bool:
        """Whether it lasts now, and did already at that tick."""
        return self.until is None and self.since < begun


class Chronicle:
    """Every stage of every incident, in the order in which they came, and every record that is no incident."""

    def __init__(self) -> None:
        self.stages: dict[str, list[Stage]] = defaultdict(list)
        self.current: dict[str, Stage] = {}
        self.bad: dict[bytes, int] = {}

    def shown(self, uuid: str, raw: bytes, tick: int) -> None:
        """From now on the list shows this."""
        self._begin(Stage(uuid=uuid, content=content_of(raw), since=tick))

    def gone(self, uuid: str, tick: int) -> None:
        """From now on there is no such incident."""
        self._begin(Stage(uuid=uuid, content=None, since=tick))

    def _begin(self, stage: Stage) -> None:
        before = self.current.get(stage.uuid)
        if before is not None:
            before.until = stage.since
        self.current[stage.uuid] = stage
        self.stages[stage.uuid].append(stage)


class Emitted(msgspec.Struct, frozen=True, kw_only=True):
    """One event as the journal holds it, by its columns and by its body."""

    position: int
    id: str
    kind: str
    origin: str
    uuid: str
    sequence: int
    updated: Instant
    raw: bytes
    about: dict[str, Any]
    content: Content | None
    """None for `missing`, which carries the last known fields only."""
    body: bytes


class _Body(msgspec.Struct):
    event: dict[str, Any]
    incident: msgspec.Raw


_read_body = msgspec.json.Decoder(_Body).decode


def emitted(row: Sequence[Any]) -> Emitted:
    """An event of the journal: position, id, kind, origin, uuid, sequence, updated, body."""
    position, ident, kind, origin, uuid, sequence, updated, body = row
    read = _read_body(body)
    raw = bytes(read.incident)
    return Emitted(
        position=position,
        id=ident,
        kind=kind,
        origin=origin,
        uuid=uuid,
        sequence=sequence,
        updated=updated,
        raw=raw,
        about=read.event,
        content=None if kind == "missing" else content_of(raw),
        body=body,
    )


@dataclass(slots=True, kw_only=True)
class Window:
    """What one reading owes: what was there since the tick `begun`, with a time from `low` to `high`.

    `views` are the times by which it reads.
    """

    begun: int
    low: Instant
    high: Instant
    views: tuple[str, ...] = ("update_time", "create_time")

    def covers(self, content: Content) -> bool:
        """Whether the reading asks for this incident."""
        times = []
        if "update_time" in self.views and content.updated is not None:
            times.append(content.updated)
        if "create_time" in self.views:
            times.append(content.created)
        return any(self.low <= time <= self.high for time in times)


@dataclass(slots=True, kw_only=True)
class Ledger:
    """The events in the order of the journal, and the last one of each incident."""

    source: str
    events: list[Emitted] = field(default_factory=list)
    last: dict[str, Emitted] = field(default_factory=dict)

    def add(self, event: Emitted) -> None:
        """The journal holds one more."""
        self.events.append(event)
        self.last[event.uuid] = event

    def position(self) -> int:
        """That of the last event."""
        return self.events[-1].position if self.events else 0


def require_complete(what: str, window: Window, chronicle: Chronicle, ledger: Ledger, *, start_from: Instant) -> None:
    """Complete: after a reading, the last event of each incident that stood still in its window is its present state.

    Excused, and nothing else: what changed after the reading began; what lies outside of its window; what is older than
    an event that went out already (stale, the sweep's business); what was last updated before `start_from`.
    """
    for uuid, stage in chronicle.current.items():
        content = stage.content
        if content is None or not stage.whole(window.begun) or not window.covers(content):
            continue
        if content.state[0] < start_from:
            continue
        last = ledger.last.get(uuid)
        if last is None:
            raise Violation("lost", f"{what}: nothing was ever emitted of {_name(stage)}")
        if last.content is None or last.content.state != content.state:
            if last.updated > content.state[0]:
                continue
            raise Violation("lost", f"{what}: the last event of {_name(stage)} is {_told(last)}")


def require_whole(chronicle: Chronicle, ledger: Ledger, *, start_from: Instant) -> None:
    """After a sweep nothing is excused: the last event of each incident is its present state, or that it is gone."""
    for uuid, stage in chronicle.current.items():
        last = ledger.last.get(uuid)
        content = stage.content
        if content is None:
            if last is not None and last.kind != "missing":
                raise Violation("lost", f"{_name(stage)} is gone, and its last event is {_told(last)}")
            continue
        if last is None:
            if content.state[0] >= start_from:
                raise Violation("lost", f"nothing was ever emitted of {_name(stage)}")
            continue
        if last.content is None or last.content.state != content.state:
            raise Violation("lost", f"in the end the last event of {_name(stage)} is {_told(last)}")


def require_true(chronicle: Chronicle, ledger: Ledger, *, start_from: Instant, first_start: Instant) -> None:
    """Nothing foreign, In order, Named: every event is a state that there was, after those before it, and says so."""
    by_incident: dict[str, list[Emitted]] = defaultdict(list)
    ids: dict[str, Emitted] = {}
    for event in ledger.events:
        if event.id in ids:
            raise Violation("name", f"{_told(event)} has the id of {_told(ids[event.id])}")
        ids[event.id] = event
        by_incident[event.uuid].append(event)
    for uuid, events in by_incident.items():
        _Life(uuid, chronicle.stages.get(uuid, []), ledger.source, start_from, first_start).check(events)


class _Life:
    """One incident's events against its stages."""

    def __init__(
        self,
        uuid: str,
        stages: Sequence[Stage],
        source: str,
        start_from: Instant,
        first_start: Instant,
    ) -> None:
        self._uuid = uuid
        self._stages = stages
        self._source = source
        self._start_from = start_from
        self._first_start = first_start
        self._reached = -1
        self._newest: Instant | None = None
        self._before: Emitted | None = None
        self._values: dict[str, Any] | None = None

    def check(self, events: Iterable[Emitted]) -> None:
        for number, event in enumerate(events, start=1):
            if event.sequence != number:
                raise Violation("order", f"{_told(event)} stands where sequence {number} is due")
            self._reached = self._stage_of(event)
            self._require_kind(event)
            self._require_name(event)
            self._newest = event.updated if self._newest is None else max(self._newest, event.updated)
            self._before = event
            if event.content is not None:
                self._values = event.content.values

    def _stage_of(self, event: Emitted) -> int:
        """The stage that the event tells of, behind that of the event before. Raises Violation."""
        fitting = [index for index, stage in enumerate(self._stages) if self._fits(event, stage)]
        ahead = next((index for index in fitting if index > self._reached), None)
        if ahead is not None:
            return ahead
        if not fitting:
            raise Violation("foreign", f"{_told(event)} is nothing that there was")
        if self._before is not None and self._before.raw == event.raw:
            raise Violation("order", f"{_told(event)} says again what {_told(self._before)} said")
        raise Violation("order", f"{_told(event)} came after what followed it, {_told(self._before)}")

    def _fits(self, event: Emitted, stage: Stage) -> bool:
        if event.content is None or stage.content is None:
            return event.content is stage.content
        if event.raw == stage.content.raw:
            return True
        return event.content.state == stage.content.state and _tells_more(event.raw, stage.content.raw)

    def _require_kind(self, event: Emitted) -> None:
        kind, changed, previous = self._expected(event)
        said = (event.kind, event.about["changed"], event.about["previous"])
        if said == (kind, changed, previous):
            return
        if self._start_from and self._before is None and event.kind in {"updated", "closed", "reopened"}:
            return  # its past was read, and is older than what was asked for: it may be told against that
        raise Violation("kind", f"{_told(event)} should be {kind} with {changed} and {previous}; says {said}")

    def _expected(self, event: Emitted) -> tuple[str, list[str] | None, dict[str, Any] | None]:
        if event.content is None:
            return "missing", [], {}
        if self._before is not None and self._before.kind == "missing":
            return "restored", [], {}
        if self._values is None:
            unread = event.content.created < self._start_from
            return ("updated", None, None) if unread else ("created", [], {})
        after = event.content.values
        previous = {name: value for name, value in self._values.items() if after[name] != value}
        was, is_closed = self._values["status"] == _CLOSED, after["status"] == _CLOSED
        kind = "updated" if was == is_closed else "closed" if is_closed else "reopened"
        return kind, list(previous), previous

    def _require_name(self, event: Emitted) -> None:
        updated = event.updated
        if event.content is not None and updated != event.content.state[0]:
            raise Violation("name", f"{_told(event)} says {updated}, its incident {event.content.state[0]}")
        ordinary = event.kind not in {"missing", "restored"} and (self._newest is None or updated > self._newest)
        values = values_of(_decode(event.raw))
        if event.content is None and self._values is not None and values != self._values:
            raise Violation("name", f"{_told(event)} carries other fields than the event before it")
        digest = hashlib.sha256(_encode(list(values.values()))).digest()[:16]
        revisions = {0 if ordinary else event.sequence}
        if self._start_from and self._before is None:
            revisions.add(event.sequence)  # silent against what was read before `start_from`
        texts = [f"{self._source}\0{self._uuid}\0{updated}\0{revision}\0{digest.hex()}" for revision in revisions]
        names = {hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts}
        if event.id not in names or event.about["id"] != event.id:
            raise Violation("name", f"{_told(event)} has the id {event.id}, not that of revision {revisions}")
        origin = "backfill" if updated < self._first_start else "poll"
        about = event.about
        said = (about["kind"], about["source"], about["origin"], about["sequence"])
        if event.origin != origin or said != (event.kind, self._source, origin, event.sequence):
            raise Violation("name", f"{_told(event)} should be of {origin}; its body says {said}")


@dataclass(slots=True, kw_only=True)
class Arrival:
    """One event as a sink's far side holds it."""

    position: int
    id: str
    uuid: str
    body: bytes


def require_delivered(
    sink: str, events: Sequence[Emitted], arrivals: Sequence[Arrival], refused: Mapping[str, bytes], *, repeats: bool
) -> None:
    """Everything is on the far side or a dead letter, in the order of the journal, and again only where that may be."""
    seen: dict[str, Arrival] = {}
    by_id = {event.id: event for event in events}
    for arrival in arrivals:
        event = by_id.get(arrival.id)
        if event is None or event.body != arrival.body or event.position != arrival.position:
            raise Violation("sink", f"{sink} holds {arrival.id} of {arrival.uuid}, which was never committed so")
        if arrival.id in refused:
            raise Violation("sink", f"{sink} holds {_told(event)}, which is a dead letter too")
        if arrival.id in seen and not repeats:
            raise Violation("sink", f"{sink} holds {_told(event)} twice")
        seen.setdefault(arrival.id, arrival)
    for event in events:
        if event.id in refused:
            if refused[event.id] != event.body:
                raise Violation("sink", f"the dead letter of {_told(event)} at {sink} says something else")
        elif event.id not in seen:
            raise Violation("sink", f"{sink} never got {_told(event)}")
    first = [arrival.position for arrival in seen.values()]
    if first != sorted(first):
        raise Violation("sink", f"{sink} got its events in the order {first}")


def _tells_more(raw: bytes, listed: bytes) -> bool:
    """Whether an incident that was asked for by itself says what the list did, and its details."""
    said: dict[str, Any] = _decode(raw)
    shown: dict[str, Any] = _decode(listed)
    return all(said.get(name) == value for name, value in shown.items() if name not in DETAILS) and not (
        said.keys() - shown.keys() - set(DETAILS)
    )


def _name(stage: Stage) -> str:
    if stage.content is None:
        return f"{stage.uuid[:8]} (gone)"
    return (
        f"{stage.uuid[:8]} (updated {stage.content.state[0]}, {_brief(stage.content)}, shown since tick {stage.since})"
    )


def _told(event: Emitted | None) -> str:
    if event is None:
        return "nothing"
    what = "" if event.content is None else f", {_brief(event.content)}"
    return f"{event.uuid[:8]} #{event.sequence} {event.kind} (updated {event.updated}{what})"


def _brief(content: Content) -> str:
    status = content.values["status"].removeprefix("INCIDENT_STATUS_")
    return f"{status} {content.values['displayName'][:12]!r} {hashlib.sha256(content.state[1]).hexdigest()[:6]}"
