"""Versions of an incident: instants, digest, identity, and the diff between what is known and what is seen. Pure.

Neither the shape of ESET's answers (`relay.eset.wire`) nor storage (`relay.journal`) is known here.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal, get_args

import msgspec

from relay.clock import SECOND, Instant

Kind = Literal["created", "updated", "closed", "reopened", "missing", "restored"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Origin = Literal["poll", "backfill", "replay"]
ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)

CLOSED = "INCIDENT_STATUS_CLOSED"
SEVERITY_PREFIX = "INCIDENT_SEVERITY_LEVEL_"

# What makes a version, by digest version; the order is that of the stored values and must never change within one.
# Durations run while an incident is open, and unknown fields come without notice: both pass through, neither counts.
TRACKED: Final[Mapping[int, tuple[str, ...]]] = {
    1: (
        "status",
        "severity",
        "resolveReason",
        "assigneeUuid",
        "displayName",
        "description",
        "tags",
        "metrics.deviceCount",
        "metrics.executableCount",
        "metrics.processCount",
    ),
}
DIGEST_VERSION = max(TRACKED)
LONG_TEXT_BYTES = 1024
"""Longer strings are kept in the ledger, and shown in `previous`, by their length and hash alone."""

_ABRIDGED_KEYS: Final = {"truncated", "bytes", "sha256"}
_DEFAULTS: Final[Mapping[str, str]] = {
    "status": "INCIDENT_STATUS_UNSPECIFIED",
    "severity": "INCIDENT_SEVERITY_LEVEL_UNSPECIFIED",
    "resolveReason": "INCIDENT_RESOLVE_REASON_UNSPECIFIED",
}
_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9})\d*)?(?:([Zz])|([+-])(\d\d):?(\d\d))",
    re.ASCII,
)
_SECONDS: Final = {f"{second:02d}": second * SECOND for second in range(60)}
_SCALE: Final[tuple[int, ...]] = tuple(10 ** (9 - digits) for digits in range(10))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder(order="deterministic").encode


def parse_instant(text: str) -> Instant:
    """RFC 3339 text, 0 to 9 fractional digits, `Z` or an offset, as nanoseconds since the epoch.

    Raises ValueError for anything else. A leap second (`:60`) is read as the second after it.
    """
    minute = _start_of_minute(text[:17])
    second = _SECONDS.get(text[17:19])
    if second is not None and text[-1] == "Z":
        if len(text) == 20:
            return minute + second
        fraction = text[20:-1]
        if text[19] == "." and len(fraction) <= 9 and fraction.isdecimal() and fraction.isascii():
            return minute + second + int(fraction) * _SCALE[len(fraction)]
    return _parse_unusual(text)


@lru_cache(maxsize=4096)
def _start_of_minute(text: str) -> Instant:
    """Up to and with the second colon. Times of one page share their minutes, and reading the date is what costs."""
    return _parse_unusual(f"{text}00Z")


def _parse_unusual(text: str) -> Instant:
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 time")
    year, month, day, hour, minute, second, fraction, _z, sign, off_h, off_m = match.groups()
    seconds = int(second)
    if seconds > 60:
        raise ValueError("not an RFC 3339 time")
    since = datetime(int(year), int(month), int(day), int(hour), int(minute), tzinfo=UTC) - _EPOCH
    total = since.days * 86_400 + since.seconds + seconds
    if sign:
        if int(off_h) > 23 or int(off_m) > 59:
            raise ValueError("not an RFC 3339 time")
        offset = int(off_h) * 3600 + int(off_m) * 60
        total += -offset if sign == "+" else offset
    return total * SECOND + (int(fraction.ljust(9, "0")) if fraction else 0)


def format_instant(instant: Instant, *, digits: int | None = None) -> str:
    """RFC 3339 in UTC with `Z`. `digits` fractional digits, rounded down; by default 0, 3, 6 or 9, losing nothing.

    Raises ValueError outside the years 1 to 9999.
    """
    seconds, nanos = divmod(instant, SECOND)
    try:
        base = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    except (OverflowError, OSError) as exc:
        raise ValueError("outside the years 1 to 9999") from exc
    if digits is None:
        digits = next(d for d in (0, 3, 6, 9) if nanos % 10 ** (9 - d) == 0)
    return f"{base}.{nanos:09d}"[: 20 + digits] + "Z" if digits else f"{base}Z"


class Observed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One incident as the API showed it.

    `updated` is `created` when the API showed no update time (`updated_shown` is False then). `values` are the
    normalised tracked values in the order of `TRACKED[DIGEST_VERSION]`; `raw` is the record's JSON, untouched but for
    white space.
    """

    uuid: str
    created: Instant
    updated: Instant
    created_shown: bool = True
    updated_shown: bool = True
    values: tuple[Any, ...]
    raw: bytes


class BadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record of a page that could not be read: kept as a dead letter of its source. `raw` is bounded.

    `reason` holds nothing of the record; `uuid` is empty when it has none that can be read.
    """

    reason: str
    raw: bytes
    uuid: str = ""

    @property
    def id(self) -> str:
        """Of its dead letter: the same record has the same, however often it is read."""
        return hashlib.sha256(self.raw).hexdigest()[:32]


class Known(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One row of the ledger: the last version of an incident that was taken note of.

    `newest` is the latest update time ever seen of it, `sequence` counts its events (0: known, nothing emitted yet),
    `fields` holds the tracked values as JSON (long strings by length and hash), in the order of
    `TRACKED[digest_version]`.
    """

    uuid: str
    created: Instant
    updated: Instant
    newest: Instant
    sequence: int
    digest: bytes
    digest_version: int
    fields: bytes
    gone: bool = False


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One version of one incident, on its way to every sink.

    `changed` is None when the past is unread. `incident` is the API's JSON. `severity` is the raw enum value.
    `enriched`: whether the incident was asked for by itself, with all its fields; None when that is not wanted.
    """

    id: str
    kind: Kind
    source: str
    origin: Origin
    uuid: str
    sequence: int
    updated: Instant
    observed: Instant
    severity: str
    changed: list[str] | None
    previous: dict[str, Any] | None
    incident: bytes
    enriched: bool | None = None


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What the diff must know of the source.

    `start_from`: nothing that was last updated before it makes an event (0: everything does). `first_start`: when the
    relay first ran for this source.
    """

    source: str
    start_from: Instant
    first_start: Instant


class Diff(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one sight of an incident amounts to. `row` is the ledger row to write, `event` the event to emit."""

    verdict: Literal["unchanged", "stale", "learned", "changed", "silent"]
    row: Known | None = None
    event: Event | None = None


_UNCHANGED = Diff(verdict="unchanged")
_STALE = Diff(verdict="stale")


def tracked_values(fields: Mapping[str, Any], metrics: Any) -> tuple[Any, ...]:
    """The tracked values, normalised: absent = null = default, integers in strings = integers, tags as a set.

    Values of an unexpected type are kept as they are: they still tell one version from another.
    """
    get = fields.get
    counts: Mapping[str, Any] = metrics if isinstance(metrics, dict) else {}
    return (
        get("status") or _DEFAULTS["status"],
        get("severity") or _DEFAULTS["severity"],
        get("resolveReason") or _DEFAULTS["resolveReason"],
        get("assigneeUuid") or "",
        get("displayName") or "",
        get("description") or "",
        _as_set(get("tags")),
        _as_integer(counts.get("deviceCount")),
        _as_integer(counts.get("executableCount")),
        _as_integer(counts.get("processCount")),
    )


def _as_set(value: Any) -> Any:
    if not value:
        return []
    if not isinstance(value, list):
        return value
    for tag in value:
        if type(tag) is not str:
            return sorted({_encode(tag): tag for tag in value}.items())
    return sorted(set(value))


def _as_integer(value: Any) -> Any:
    if type(value) is int:
        return value
    if not value:
        return 0
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def digest_of(values: Sequence[Any]) -> tuple[bytes, bytes]:
    """The digest of tracked values (16 bytes), and the values as the ledger keeps them (JSON)."""
    canonical = _encode(values)
    digest = hashlib.sha256(canonical).digest()[:16]
    if len(canonical) > LONG_TEXT_BYTES:
        canonical = _encode([_abridged(value) for value in values])
    return digest, canonical


def _abridged(value: Any) -> Any:
    text = value.encode() if isinstance(value, str) else b"" if isinstance(value, int) else _encode(value)
    if len(text) <= LONG_TEXT_BYTES:
        return value
    return {"truncated": True, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()[:32]}


def _shown(value: Any) -> Any:
    """A kept value as `previous` shows it."""
    if isinstance(value, dict) and value.keys() == _ABRIDGED_KEYS:
        return {"truncated": True, "bytes": value["bytes"]}
    return value


def event_id(*, source: str, uuid: str, updated: Instant, revision: int, digest: bytes) -> str:
    """The name of a version for ever: 128 bits in hex. A repeat carries the same one."""
    text = f"{source}\0{uuid}\0{updated}\0{revision}\0{digest.hex()}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def tracked(known: Known) -> dict[str, Any]:
    """The last known tracked values by name, as `previous` shows them."""
    values = msgspec.json.decode(known.fields)
    return {name: _shown(value) for name, value in zip(TRACKED[known.digest_version], values, strict=True)}


def diff(known: Known | None, seen: Observed, *, scope: Scope, now: Instant, proven: bool = False) -> Diff:
    """Compares one sight of an incident with what is known of it.

    A later update time is a new version, an equal one with other content a silent change, an older one stale; unless it
    is `proven` that the incident went back.
    """
    digest, fields = digest_of(seen.values)
    if known is None:
        return _first_sight(seen, digest, fields, scope=scope, now=now)
    if seen.updated < known.updated and not proven:
        return _STALE
    if known.gone and known.sequence == 0 and seen.updated < scope.start_from:
        return Diff(verdict="learned", row=_row(known, seen, digest, fields, sequence=0))
    if known.gone and known.sequence:
        return _changed("restored", known, seen, digest, fields, scope=scope, now=now, changed=[], previous={})
    silent = seen.updated == known.updated
    if silent:
        if digest == known.digest:
            return _UNCHANGED
        if known.digest_version != DIGEST_VERSION and not _differing(known, fields):
            return Diff(verdict="learned", row=_row(known, seen, digest, fields, sequence=known.sequence))
    before = _differing(known, fields)
    return _changed(
        _kind(known, seen),
        known,
        seen,
        digest,
        fields,
        scope=scope,
        now=now,
        changed=list(before),
        previous=before,
        verdict="silent" if silent else "changed",
    )


def missing(known: Known, *, scope: Scope, now: Instant) -> Diff:
    """This incident is gone from the API: the event that says so, unless nothing was ever said of it."""
    if known.sequence == 0:
        return Diff(verdict="learned", row=msgspec.structs.replace(known, gone=True))
    last: dict[str, Any] = {"uuid": known.uuid}
    last["createTime"] = format_instant(known.created)
    last["updateTime"] = format_instant(known.updated)
    for name, value in tracked(known).items():
        parent, _, child = name.partition(".")
        if child:
            last.setdefault(parent, {})[child] = value
        else:
            last[name] = value
    sequence = known.sequence + 1
    event = Event(
        id=event_id(
            source=scope.source, uuid=known.uuid, updated=known.updated, revision=sequence, digest=known.digest
        ),
        kind="missing",
        source=scope.source,
        origin=_origin(known.updated, scope),
        uuid=known.uuid,
        sequence=sequence,
        updated=known.updated,
        observed=now,
        severity=_text(last.get("severity")),
        changed=[],
        previous={},
        incident=msgspec.json.encode(last),
    )
    row = msgspec.structs.replace(known, sequence=sequence, gone=True)
    return Diff(verdict="changed", row=row, event=event)


def _first_sight(seen: Observed, digest: bytes, fields: bytes, *, scope: Scope, now: Instant) -> Diff:
    if seen.updated < scope.start_from:
        return Diff(verdict="learned", row=_row(None, seen, digest, fields, sequence=0))
    unread = seen.created < scope.start_from
    return _changed(
        "updated" if unread else "created",
        None,
        seen,
        digest,
        fields,
        scope=scope,
        now=now,
        changed=None if unread else [],
        previous=None if unread else {},
    )


def _changed(
    kind: Kind,
    known: Known | None,
    seen: Observed,
    digest: bytes,
    fields: bytes,
    *,
    scope: Scope,
    now: Instant,
    changed: list[str] | None,
    previous: dict[str, Any] | None,
    verdict: Literal["changed", "silent"] = "changed",
) -> Diff:
    sequence = known.sequence + 1 if known else 1
    ordinary = kind != "restored" and (known is None or seen.updated > known.newest)
    event = Event(
        id=event_id(
            source=scope.source,
            uuid=seen.uuid,
            updated=seen.updated,
            revision=0 if ordinary else sequence,
            digest=digest,
        ),
        kind=kind,
        source=scope.source,
        origin=_origin(seen.updated, scope),
        uuid=seen.uuid,
        sequence=sequence,
        updated=seen.updated,
        observed=now,
        severity=_text(seen.values[1]),
        changed=changed,
        previous=previous,
        incident=seen.raw,
    )
    return Diff(verdict=verdict, row=_row(known, seen, digest, fields, sequence=sequence), event=event)


def _row(known: Known | None, seen: Observed, digest: bytes, fields: bytes, *, sequence: int) -> Known:
    return Known(
        uuid=seen.uuid,
        created=seen.created,
        updated=seen.updated,
        newest=max(known.newest, seen.updated) if known else seen.updated,
        sequence=sequence,
        digest=digest,
        digest_version=DIGEST_VERSION,
        fields=fields,
    )


def _kind(known: Known, seen: Observed) -> Kind:
    was_closed = tracked(known).get("status") == CLOSED
    is_closed = seen.values[0] == CLOSED
    if was_closed == is_closed:
        return "updated"
    return "closed" if is_closed else "reopened"


def _differing(known: Known, fields: bytes) -> dict[str, Any]:
    """The previous values of the tracked fields that differ, over the fields that both digest versions track."""
    before = dict(zip(TRACKED[known.digest_version], msgspec.json.decode(known.fields), strict=True))
    after = dict(zip(TRACKED[DIGEST_VERSION], msgspec.json.decode(fields), strict=True))
    return {name: _shown(value) for name, value in before.items() if name in after and after[name] != value}


def _origin(updated: Instant, scope: Scope) -> Origin:
    return "backfill" if updated < scope.first_start else "poll"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def severity_name(severity: str) -> str:
    """`INCIDENT_SEVERITY_LEVEL_HIGH` as `HIGH`; unknown values as they are; nothing as `UNSPECIFIED`."""
    return severity.removeprefix(SEVERITY_PREFIX) or "UNSPECIFIED"
