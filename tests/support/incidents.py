"""Builders of incidents, versions and events for tests."""

from typing import Any

import msgspec

from relay.clock import SECOND, Instant
from relay.incidents import Event, Known, Observed, Scope, diff, tracked_values

START: Instant = 1_700_000_000 * SECOND
SCOPE = Scope(source="acme", start_from=0, first_start=START)


def seen(uuid: str = "u1", *, at: float = 0.0, created: float = 0.0, **fields: Any) -> Observed:
    """One sight of an incident, `at` and `created` in seconds after START."""
    metrics = fields.pop("metrics", None)
    return Observed(
        uuid=uuid,
        created=START + int(created * SECOND),
        updated=START + int(at * SECOND),
        values=tracked_values(fields, metrics),
        raw=msgspec.json.encode({"uuid": uuid, **fields}),
    )


def versions(uuid: str, *sights: Observed, scope: Scope = SCOPE) -> tuple[list[Event], Known]:
    """The events that a row of sights makes, and the ledger row after the last."""
    known: Known | None = None
    events = []
    for sight in sights or (seen(uuid),):
        found = diff(known, sight, scope=scope, now=START)
        known = found.row or known
        if found.event:
            events.append(found.event)
    assert known is not None
    return events, known


def chain(uuid: str, count: int, *, source: str = "acme") -> tuple[list[Event], Known]:
    """So many versions of one incident, a second apart."""
    scope = Scope(source=source, start_from=0, first_start=START)
    return versions(uuid, *(seen(uuid, at=n, displayName=f"version {n}") for n in range(count)), scope=scope)
