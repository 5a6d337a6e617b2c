"""CloudEvents attributes of an event."""

from hypothesis import given
from hypothesis import strategies as st

from relay.clock import SECOND
from relay.formats.cloudevents import kafka_headers, time_text
from relay.incidents import format_instant, parse_instant
from relay.sinks import Delivery

YEAR_1, YEAR_9999 = parse_instant("0001-01-01T00:00:00Z"), parse_instant("9999-12-31T23:59:59.999999999Z")


def test_the_headers_are_exactly_those_of_the_contract() -> None:
    delivery = Delivery(
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
    assert dict(kafka_headers(delivery)) == {
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


@given(st.integers(YEAR_1, YEAR_9999) | st.integers(YEAR_1 // SECOND, YEAR_9999 // SECOND).map(lambda s: s * SECOND))
def test_the_time_is_written_as_everywhere_else_and_loses_nothing(instant: int) -> None:
    for shown in (instant, instant // 1_000 * 1_000, instant // 1_000_000 * 1_000_000):
        if shown >= YEAR_1:
            assert time_text(shown) == format_instant(shown)
            assert parse_instant(time_text(shown)) == shown
