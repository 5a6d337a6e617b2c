"""The `native` format: one JSON object an event, the API's incident inside it untouched, no white space.

Rendered once, when the event is committed; sinks only leave fields out or cut lists that are too long.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from relay.clock import Instant
from relay.incidents import Event, Kind, Origin, format_instant

_ROOM_PER_COUNT: Final = 24
"""Bytes that one entry of `event.truncated` takes beside its name."""


class _About(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    id: str
    kind: Kind
    source: str
    origin: Origin
    sequence: int
    changed: list[str] | None
    previous: dict[str, Any] | None
    observedTime: str  # noqa: N815 - the name on the wire
    enriched: bool | None = None


class _Native(msgspec.Struct, frozen=True, gc=False):
    event: _About
    incident: msgspec.Raw


class _NamedAbout(msgspec.Struct, frozen=True, gc=False):
    id: str


class _Named(msgspec.Struct, frozen=True, gc=False):
    event: _NamedAbout


_Fields = dict[str, msgspec.Raw]
_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(_Fields).decode
_decode_body = msgspec.json.Decoder(dict[str, _Fields]).decode
_decode_named = msgspec.json.Decoder(_Named).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_names = msgspec.json.Decoder(list[str] | None).decode
_REPLAY: Final = msgspec.Raw(_encode("replay"))


def render(event: Event) -> bytes:
    """The event as `{"event": {…}, "incident": …}`; the incident's values, order and number spelling are its own."""
    about = _About(
        event.id,
        event.kind,
        event.source,
        event.origin,
        event.sequence,
        event.changed,
        event.previous,
        _observed_time(event.observed),
        event.enriched,
    )
    return _encode(_Native(about, msgspec.Raw(event.incident)))


@lru_cache(maxsize=64)
def _observed_time(observed: Instant) -> str:
    """A page is observed in one instant, so that this is rarely computed."""
    return format_instant(observed, digits=3)


def id_of(body: bytes) -> str | None:
    """The event's id; None when this is no event of ours."""
    try:
        return _decode_named(body).event.id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def replayed(body: bytes) -> bytes:
    """The same event as one that is sent again: its `origin` says so, all else keeps its order and spelling."""
    native = _decode_body(body)
    native["event"]["origin"] = _REPLAY
    return _encode(native)


def omit(body: bytes, fields: Collection[str]) -> bytes:
    """The same event without these incident fields, in `incident`, `previous` and `changed`.

    A name is a top-level field or `metrics.x`, a field of a field. Everything else keeps its order and spelling.
    """
    if not fields:
        return body
    native = _decode_body(body)
    event, incident = native["event"], native["incident"]
    for name in fields:
        _remove(incident, name)
    names = _decode_names(event["changed"])
    if names is not None:
        event["changed"] = _raw([name for name in names if not _covered(name, fields)])
        previous = _decode_object(event["previous"])
        event["previous"] = _raw({name: value for name, value in previous.items() if not _covered(name, fields)})
    return _encode(native)


def _remove(within: _Fields, name: str) -> None:
    parent, _, child = name.partition(".")
    if not child:
        within.pop(parent, None)
    elif bytes(within.get(parent, b"")).startswith(b"{"):
        inner = _decode_object(within[parent])
        if inner.pop(child, None) is not None:
            within[parent] = _raw(inner)


def _covered(name: str, fields: Collection[str]) -> bool:
    return name in fields or name.partition(".")[0] in fields


def truncate(body: bytes, limit_bytes: int) -> bytes:
    """The same event within the limit: its longest lists are cut, and `event.truncated` names them with true counts.

    Raises ValueError when it is too large even with every list empty.
    """
    if len(body) <= limit_bytes:
        return body
    native = _decode_body(body)
    event, incident = native["event"], native["incident"]
    lists = {name: len(bytes(value)) for name, value in incident.items() if bytes(value).startswith(b"[")}
    notes = len(b',"truncated":{}') + sum(len(_encode(name)) + _ROOM_PER_COUNT for name in lists)
    room = limit_bytes - (len(body) - sum(lists.values())) - notes
    if room < 2 * len(lists):
        raise ValueError(f"{len(body)} bytes, over the limit of {limit_bytes} even with its lists cut")
    share = _even_share(lists, room)
    counts: dict[str, int] = {}
    for name in (name for name, size in lists.items() if size > share):
        items = _decode_list(incident[name])
        counts[name] = len(items)
        incident[name] = _raw(list(_leading(items, share)))
    event["truncated"] = _raw(counts)
    return _encode(native)


def _even_share(sizes: Mapping[str, int], room: int) -> int:
    """The largest size that each may have, so that together they fit: short lists stay whole, long ones share."""
    waiting = len(sizes)
    for size in sorted(sizes.values()):
        if size * waiting > room:
            break
        room -= size
        waiting -= 1
    return room // max(waiting, 1)


def _leading(items: list[msgspec.Raw], limit_bytes: int) -> Iterator[msgspec.Raw]:
    used = len(b"[]")
    for item in items:
        used += len(bytes(item)) + len(b",")
        if used > limit_bytes:
            return
        yield item


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))
