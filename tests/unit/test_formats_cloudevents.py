"""CloudEvents attributes of an event."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from relay.clock import SECOND
from relay.formats.cloudevents import kafka_headers, structured, time_text
from relay.incidents import format_instant, parse_instant
from relay.sinks import Delivery

YEAR_1, YEAR_9999 = parse_instant("0001-01-01T00:00:00Z"), parse_instant("9999-12-31T23:59:59.999999999Z")


DELIVERY = Delivery(
    position=1,
    id="0123",
    kind="closed",
    source="acme",
    origin="backfill",
    uuid="3a1b",
    sequence=42,
    updated=1_795_341_600 * SECOND + 120_000_000,
    severity="",
    body=b"{}",
)


def test_the_headers_are_exactly_those_of_the_contract() -> None:
    assert dict(kafka_headers(DELIVERY)) == {
        "content-type": b"application/json",
        "ce_specversion": b"1.0",
        "ce_id": "0123",
        "ce_source": "/eset-connect/acme",
        "ce_type": "incident-relay.incident.closed",
        "ce_subject": "3a1b",
        "ce_time": "2026-11-22T10:00:00.120Z",
        "ce_dataschema": "urn:incident-relay:incident:1",
        "ce_sequence": "00000000000000000042",
        "ce_origin": "backfill",
    }


def test_the_envelope_has_the_attributes_of_the_headers_and_the_value_byte_for_byte() -> None:
    value = rb'{"incident":{"n":1.50,"big":12345678901234567890,"s":"\u00e9","s":"twice"},"event":null}'
    envelope = structured(DELIVERY, value)
    assert envelope.endswith(b',"data":' + value + b"}")
    attributes = json.loads(envelope)
    attributes.pop("data")
    headers = dict(kafka_headers(DELIVERY))
    assert attributes.pop("datacontenttype").encode() == headers.pop("content-type")
    told = {name: value.decode() if isinstance(value, bytes) else value for name, value in headers.items()}
    assert {f"ce_{name}": value for name, value in attributes.items()} == told


@given(st.text(min_size=1))
def test_odd_names_do_not_break_the_envelope(name: str) -> None:
    odd = msgspec.structs.replace(DELIVERY, uuid=name, source=name)
    attributes = json.loads(structured(odd, b"{}"))
    assert (attributes["subject"], attributes["source"]) == (name, f"/eset-connect/{name}")


@given(st.integers(YEAR_1, YEAR_9999) | st.integers(YEAR_1 // SECOND, YEAR_9999 // SECOND).map(lambda s: s * SECOND))
def test_the_time_is_written_as_everywhere_else_and_loses_nothing(instant: int) -> None:
    for shown in (instant, instant // 1_000 * 1_000, instant // 1_000_000 * 1_000_000):
        if shown >= YEAR_1:
            assert time_text(shown) == format_instant(shown)
            assert parse_instant(time_text(shown)) == shown
