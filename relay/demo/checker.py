"""Compares what arrived at a far side with what the simulator had to show. Pure; knows no process and no file.

What is owed is worked out from the simulator's own history, never from anything that the relay says.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from relay.clock import SECOND, Instant
from relay.eset.wire import decode_incident
from relay.incidents import CLOSED, Kind, Observed, digest_of, event_id
from relay.simulator import Version

GUARANTEES: Final = ("complete", "in order", "named")
"""Those of the README that the demo can see broken; the others need sinks that fail, or a full disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """One version, as it has to arrive. `since` is when the simulator began to show it."""

    id: str
    source: str
    uuid: str
    sequence: int
    kind: Kind
    content: bytes
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
    lags: Sequence[tuple[Instant, float]]
    """Since when each version was shown, and how many seconds later it arrived; of those that came after the past."""


def owed(source: str, history: Iterable[Version]) -> list[Owed]:
    """Every version of a tenant's history, in the order of the changes.

    That is what is owed as long as each version stayed for one whole poll and nothing was deleted. Raises BadAnswer
    for a version that is no incident.
    """
    latest: dict[str, _Latest] = {}
    return [_owed(source, version, latest) for version in history]


def compare(sink: str, owing: Sequence[Owed], arrivals: Sequence[Arrival], *, live_since: Instant) -> Comparison:
    """One far side against what it was owed; `arrivals` in the order in which it holds them."""
    by_id = {version.id: version for version in owing}
    reached: dict[tuple[str, str], int] = {}
    first: dict[str, Arrival] = {}
    repeats, unknown, altered, misplaced = [], [], [], []
    for arrival in arrivals:
        version = by_id.get(arrival.id)
        if version is None:
            unknown.append(arrival)
            continue
        if arrival.id in first:
            repeats.append(arrival)
            continue
        first[arrival.id] = arrival
        if not arrival.is_as(version):
            altered.append(arrival)
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
        lags=[
            (version.since, (first[version.id].at - version.since) / SECOND)
            for version in owing
            if version.since >= live_since and version.id in first
        ],
    )


def kept(comparisons: Sequence[Comparison], *, told_to_the_end: bool) -> Mapping[str, bool]:
    """Which guarantees held, in every far side. A story that stopped half-way has not shown that all arrives."""
    complete, in_order, named = GUARANTEES
    return {
        complete: told_to_the_end and not any(one.missing or one.altered for one in comparisons),
        in_order: not any(one.misplaced for one in comparisons),
        named: not any(one.repeats or one.unknown for one in comparisons),
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
        content=version.content,
        since=version.since,
    )


def _kind(before: _Latest | None, seen: Observed) -> Kind:
    if before is None:
        return "created"
    is_closed = seen.values[0] == CLOSED
    if is_closed == before.closed:
        return "updated"
    return "closed" if is_closed else "reopened"
