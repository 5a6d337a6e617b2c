"""Compares what arrived at a far side with what the simulator had to show. Pure; knows no process and no file.

What is owed is worked out from the simulator's own history, never from anything that the relay says.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from relay.clock import SECOND, Instant
from relay.eset.wire import decode_incident
from relay.incidents import CLOSED, Kind, Observed, digest_of, event_id, severity_name
from relay.simulator import Version

GUARANTEES: Final = ("complete", "in order", "named", "apart", "nothing vanishes", "bounded")
"""Those of the README. Each is judged by what the demo can see of it from outside; tests go further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """One version, as it has to arrive. `since` is when the simulator began to show it, `updated` its update time."""

    id: str
    source: str
    uuid: str
    sequence: int
    kind: Kind
    severity: str
    content: bytes
    updated: Instant
    since: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One event as a far side holds it. `at` is when it was first seen there."""

    id: str
    source: str
    uuid: str
    sequence: int
    kind: str
    content: bytes
    at: Instant

    def is_as(self, owed: Owed) -> bool:
        """Whether it says what the version is, the incident byte for byte."""
        said = (self.source, self.uuid, self.sequence, self.kind, self.content)
        return said == (owed.source, owed.uuid, owed.sequence, owed.kind, owed.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordeal:
    """A far side that took nothing for a while; `lifted` is when that was ended."""

    sink: str
    began: Instant
    lifted: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Burial:
    """An event that a far side refused for good, and that was then sent again by hand. `attempts`: as configured."""

    id: str
    attempts: int
    refused: Sequence[Instant]
    redriven: Instant | None
    arrived: Instant | None

    @property
    def came_back(self) -> bool:
        """Whether it was tried as often as it should be, left alone, and arrived once a person asked for it."""
        if self.redriven is None or self.arrived is None or len(self.refused) != self.attempts:
            return False
        return max(self.refused) <= self.redriven <= self.arrived


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What the relay took of the machine, at most."""

    journal_bytes: int
    journal_limit_bytes: int
    memory_bytes: int
    memory_limit_bytes: int

    @property
    def is_kept(self) -> bool:
        """Whether it is no more than it may take."""
        return self.journal_bytes <= self.journal_limit_bytes and self.memory_bytes <= self.memory_limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one far side holds, beside what it was owed. `unknown` are ids of no version that there was."""

    sink: str
    owed: int
    arrived: int
    missing: Sequence[Owed]
    repeats: Sequence[Arrival]
    unknown: Sequence[Arrival]
    altered: Sequence[Arrival]
    misplaced: Sequence[Arrival]
    delayed: Sequence[Owed]
    """What had to wait for another far side."""
    may_repeat: bool
    lags: Sequence[tuple[Instant, float]]
    """Since when each version was shown, and how many seconds later it arrived; of those that came after the past."""


def owed(source: str, history: Iterable[Version]) -> list[Owed]:
    """Every version of a tenant's history, in the order of the changes.

    That is what is owed as long as each version stayed for one whole poll and nothing was deleted. Raises BadAnswer
    for a version that is no incident.
    """
    latest: dict[str, _Latest] = {}
    return [_owed(source, version, latest) for version in history]


def compare(
    sink: str,
    owing: Sequence[Owed],
    arrivals: Sequence[Arrival],
    *,
    live_since: Instant,
    ordeals: Sequence[Ordeal] = (),
    may_repeat: bool = False,
) -> Comparison:
    """One far side against what it was owed; `arrivals` in the order in which it holds them.

    What was shown during an ordeal of another far side has to be here before that ended. `may_repeat`: the same id
    again is no fault.
    """
    by_id = {version.id: version for version in owing}
    reached: dict[tuple[str, str], int] = {}
    first: dict[str, Arrival] = {}
    repeats, unknown, altered, misplaced = [], [], [], []
    for arrival in arrivals:
        version = by_id.get(arrival.id)
        if version is None:
            unknown.append(arrival)
            continue
        if not arrival.is_as(version):
            altered.append(arrival)
        if arrival.id in first:
            repeats.append(arrival)
            continue
        first[arrival.id] = arrival
        incident = (version.source, version.uuid)
        if version.sequence < reached.get(incident, 0):
            misplaced.append(arrival)
        reached[incident] = max(version.sequence, reached.get(incident, 0))
    return Comparison(
        sink=sink,
        owed=len(owing),
        arrived=len(arrivals),
        missing=[version for version in owing if version.id not in first],
        repeats=repeats,
        unknown=unknown,
        altered=altered,
        misplaced=misplaced,
        delayed=[
            version
            for ordeal in ordeals
            if ordeal.sink != sink
            for version in owing
            if ordeal.began <= version.since < ordeal.lifted
            and (version.id not in first or first[version.id].at > ordeal.lifted)
        ],
        may_repeat=may_repeat,
        lags=[
            (version.since, (first[version.id].at - version.since) / SECOND)
            for version in owing
            if version.since >= live_since and version.id in first
        ],
    )


def kept(
    comparisons: Sequence[Comparison],
    *,
    told_to_the_end: bool,
    ordeals: Sequence[Ordeal],
    burials: Sequence[Burial],
    space: Space | None,
) -> Mapping[str, bool]:
    """Which guarantees held, in every far side. What the story did not come to has not been shown to hold."""
    complete, in_order, named, apart, nothing_vanishes, bounded = GUARANTEES
    return {
        complete: told_to_the_end and not any(one.missing or one.altered for one in comparisons),
        in_order: not any(one.misplaced for one in comparisons),
        named: not any(one.unknown or (one.repeats and not one.may_repeat) for one in comparisons),
        apart: told_to_the_end and bool(ordeals) and not any(one.delayed for one in comparisons),
        nothing_vanishes: bool(burials) and all(burial.came_back for burial in burials),
        bounded: space is not None and space.is_kept,
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed. Raises ValueError when there is none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class _Latest:
    sequence: int
    newest: Instant
    closed: bool


def _owed(source: str, version: Version, latest: dict[str, _Latest]) -> Owed:
    seen = decode_incident(version.content)
    before = latest.get(seen.uuid)
    sequence = before.sequence + 1 if before else 1
    is_later = before is None or seen.updated > before.newest
    latest[seen.uuid] = _Latest(
        sequence,
        max(before.newest, seen.updated) if before else seen.updated,
        seen.values[0] == CLOSED,
    )
    return Owed(
        id=event_id(
            source=source,
            uuid=seen.uuid,
            updated=seen.updated,
            revision=0 if is_later else sequence,
            digest=digest_of(seen.values)[0],
        ),
        source=source,
        uuid=seen.uuid,
        sequence=sequence,
        kind=_kind(before, seen),
        severity=severity_name(str(seen.values[1] or "")),
        content=version.content,
        updated=seen.updated,
        since=version.since,
    )


def _kind(before: _Latest | None, seen: Observed) -> Kind:
    if before is None:
        return "created"
    is_closed = seen.values[0] == CLOSED
    if is_closed == before.closed:
        return "updated"
    return "closed" if is_closed else "reopened"
