"""Builders of deliveries, as a journal would hand them out."""

import random
import string

import msgspec

from relay.clock import SECOND, Instant
from relay.formats import native
from relay.incidents import Event, Origin
from relay.sinks import Delivery

START: Instant = 1_700_000_000 * SECOND


def delivery(
    position: int,
    *,
    uuid: str = "",
    source: str = "acme",
    severity: str = "INCIDENT_SEVERITY_LEVEL_HIGH",
    origin: Origin = "poll",
    padding: int = 0,
    **fields: object,
) -> Delivery:
    """The delivery at this position; its id is made of it. `padding` bytes of the body do not compress."""
    uuid = uuid or f"uuid-{position}"
    noise = random.Random(position)
    text = "".join(noise.choices(string.ascii_letters + string.digits, k=padding))
    event = Event(
        id=f"{position:032x}",
        kind="updated",
        source=source,
        origin=origin,
        uuid=uuid,
        sequence=position,
        updated=START + position * SECOND,
        observed=START + position * SECOND,
        severity=severity,
        changed=["status"],
        previous={"status": "INCIDENT_STATUS_OPEN"},
        incident=msgspec.json.encode({"uuid": uuid, "severity": severity, "description": text, **fields}),
    )
    return Delivery.of(position, event, native.render(event))


def deliveries(first: int, last: int, *, padding: int = 0) -> list[Delivery]:
    """Those at the positions `first` to `last`, both included."""
    return [delivery(position, padding=padding) for position in range(first, last + 1)]
