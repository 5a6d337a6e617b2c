"""CloudEvents 1.0 attributes of an event: binary mode for Kafka, structured mode for HTTP. Not the value: that is the
format's.
"""

from functools import lru_cache
from typing import Final, Protocol

import msgspec

from relay.clock import SECOND, Instant
from relay.incidents import Kind, Origin, format_instant

DATA_SCHEMA: Final = "urn:incident-relay:incident:1"
"""Names the shape of `native`. Within one number fields are only added."""

STRUCTURED_TYPE: Final = "application/cloudevents+json; charset=utf-8"
"""The content type of what `structured` gives."""

Headers = list[tuple[str, str | bytes | None]]
"""Of a Kafka record, as confluent-kafka types them; ours are never None."""


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    dataschema: str
    datacontenttype: str
    sequence: str
    origin: Origin
    data: msgspec.Raw


_encode = msgspec.json.Encoder().encode


class Attributes(Protocol):
    """What the attributes are made of; a `Delivery` has it all."""

    @property
    def id(self) -> str:
        """The name of the version."""
        ...

    @property
    def kind(self) -> Kind:
        """What happened."""
        ...

    @property
    def source(self) -> str:
        """The label of the source."""
        ...

    @property
    def origin(self) -> Origin:
        """What kind of reading brought it."""
        ...

    @property
    def uuid(self) -> str:
        """The incident."""
        ...

    @property
    def sequence(self) -> int:
        """Counts the events of the incident, from 1."""
        ...

    @property
    def updated(self) -> Instant:
        """When the incident became this version."""
        ...


def source_uri(label: str) -> str:
    """The `source` attribute of everything that this source brings."""
    return f"/eset-connect/{label}"


def type_name(kind: Kind) -> str:
    """The `type` attribute."""
    return f"incident-relay.incident.{kind}"


def kafka_headers(event: Attributes) -> Headers:
    """Binary mode of the Kafka protocol binding: every attribute a header, the value stays as it is."""
    return [
        *_shared_headers(event.source, event.kind, event.origin),
        ("ce_id", event.id),
        ("ce_subject", event.uuid),
        ("ce_time", time_text(event.updated)),
        ("ce_sequence", _sequence_text(event.sequence)),
    ]


def structured(event: Attributes, value: bytes) -> bytes:
    """Structured mode of the HTTP protocol binding: the attributes of binary mode, `data` the JSON value as it is."""
    return _encode(
        _Envelope(
            "1.0",
            event.id,
            source_uri(event.source),
            type_name(event.kind),
            event.uuid,
            time_text(event.updated),
            DATA_SCHEMA,
            "application/json",
            _sequence_text(event.sequence),
            event.origin,
            msgspec.Raw(value),
        )
    )


def _sequence_text(sequence: int) -> str:
    """Sorts as text as it does as a number."""
    return str(sequence).zfill(20)


@lru_cache(maxsize=4096)
def _shared_headers(source: str, kind: Kind, origin: Origin) -> Headers:
    return [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_source", source_uri(source)),
        ("ce_type", type_name(kind)),
        ("ce_dataschema", DATA_SCHEMA),
        ("ce_origin", origin),
    ]


def time_text(instant: Instant) -> str:
    """What `format_instant` says, in a tenth of the time: events come in the order of time, minutes repeat."""
    seconds, nanos = divmod(instant, SECOND)
    minute, second = divmod(seconds, 60)
    if nanos % 1_000:
        return f"{_minute_text(minute)}{second:02d}.{nanos:09d}Z"
    if nanos % 1_000_000:
        return f"{_minute_text(minute)}{second:02d}.{nanos // 1_000:06d}Z"
    if nanos:
        return f"{_minute_text(minute)}{second:02d}.{nanos // 1_000_000:03d}Z"
    return f"{_minute_text(minute)}{second:02d}Z"


@lru_cache(maxsize=1024)
def _minute_text(minute: int) -> str:
    return format_instant(minute * 60 * SECOND)[: len("YYYY-MM-DDTHH:MM:")]
