"""What is read from the bodies, and what becomes of records that cannot be read."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import BadAnswer
from relay.eset.wire import MAX_BAD_RECORD_BYTES, DecodedPage, decode_incident, decode_page
from relay.incidents import Scope, diff, parse_instant, tracked

CREATED = "2026-01-02T03:04:05.123456789Z"
UPDATED = "2026-01-03T03:04:05Z"


def incident(**fields: Any) -> dict[str, Any]:
    return {"uuid": "u1", "createTime": CREATED, "updateTime": UPDATED, **fields}


def page(*records: Any, **fields: Any) -> DecodedPage:
    return decode_page(json.dumps({"incidents": list(records), **fields}).encode())


def raw_page(record: bytes) -> DecodedPage:
    return decode_page(b'{"incidents":[' + record + b"]}")


def test_times_are_nanoseconds_and_everything_is_in_the_order_of_the_page() -> None:
    found = page(incident(), incident(uuid="u2"), nextPageToken="more")
    first, second = found.observed
    assert (first.uuid, second.uuid) == ("u1", "u2")
    assert first.created == parse_instant(CREATED)
    assert first.updated == parse_instant(UPDATED)
    assert (first.created_shown, first.updated_shown) == (True, True)
    assert found.next_page_token == "more"


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"incidents":null}', b'{"incidents":[]}', b' {"nextPageToken":null} ', b'{"newField":{"code":1}}'],
)
def test_object_without_incidents_is_an_empty_page(body: bytes) -> None:
    assert decode_page(body) == DecodedPage(observed=[], bad=[], next_page_token="")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"[{}]",
        b'"text"',
        b"<html>",
        b'{"incidents":[{"uuid":"u1"',
        b'{"incidents":{}}',
        b'{"incidents":[]} trailing',
        b'{"nextPageToken":3}',
        b'{"incidents":[' + b"[" * 5000,
        b'{"code":16,"message":"unauthenticated"}',
        b'{"error":"internal"}',
        b'{"message":"no"}',
        b"\xff\xfe",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_page_is_a_bad_answer(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        decode_page(body)


@pytest.mark.parametrize(
    "record",
    [
        3,
        None,
        [],
        "text",
        {},
        {"createTime": CREATED},
        incident(uuid=""),
        incident(uuid=7),
        {"uuid": "u1"},
        incident(createTime=None, updateTime=""),
        incident(updateTime="yesterday"),
        incident(updateTime=1767225600),
        incident(createTime="2026-13-01T00:00:00Z"),
        incident(createTime="0001-01-01T00:00:00Z"),
        incident(updateTime="1969-12-31T23:59:59.999999999Z"),
        incident(updateTime="2262-04-11T23:47:16.854775808Z"),
        incident(updateTime="9999-12-31T23:59:60-23:59"),
        incident(updateTime="10000-01-01T00:00:00Z"),
        incident(uuid="u" * 1025),
    ],
    ids=lambda record: repr(record)[:120],
)
def test_one_bad_record_is_kept_and_the_rest_goes_on(record: Any) -> None:
    found = page(incident(uuid="before"), record, incident(uuid="after"))
    assert [row.uuid for row in found.observed] == ["before", "after"]
    assert json.loads(found.bad[0].raw) == record
    assert found.bad[0].reason


@pytest.mark.parametrize("depth", [101, 500, 960, 1000, 5000, 100_000])
@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_record_nested_too_deeply_is_kept_and_the_rest_goes_on(depth: int, opened: str) -> None:
    """Whatever reads an event after us recurses as well, and not always from so shallow a stack."""
    nested = (opened * depth + "1" + ("]" if opened == "[" else "}") * depth).encode()
    good = json.dumps(incident(uuid="good")).encode()
    found = decode_page(b'{"incidents":[{"uuid":"deep","new":' + nested + b"}," + good + b'],"new":' + nested + b"}")
    assert [row.uuid for row in found.observed] == ["good"]
    assert found.bad[0].reason == "nested more than 100 deep"
    assert found.bad[0].raw.startswith(b'{"uuid":"deep","new":' + opened.encode() * 90)
    assert len(found.bad[0].raw) <= MAX_BAD_RECORD_BYTES


def test_brackets_within_texts_and_side_by_side_are_not_deep() -> None:
    record = incident(displayName="[" * 500 + '\\"{' * 50, tags=[[] for _ in range(500)])
    (row,) = page(record).observed
    assert json.loads(row.raw) == record


@pytest.mark.parametrize("time", ["1970-01-01T00:00:00Z", "2262-04-11T23:47:16.854775807Z", "2026-12-31T23:59:60Z"])
def test_times_that_a_ledger_can_hold_are_taken(time: str) -> None:
    assert page(incident(createTime=time, updateTime=time)).observed


@pytest.mark.parametrize("odd", [b"1e400", b"9" * 5000, b"null", b'"text"', b"[{}]"])
def test_odd_values_beside_the_incidents_cost_no_page(odd: bytes) -> None:
    record = json.dumps(incident()).encode()
    assert decode_page(b'{"incidents":[' + record + b'],"code":' + odd + b',"new":' + odd + b"}").observed


def test_more_records_than_asked_for_are_all_read() -> None:
    assert len(page(*(incident(uuid=f"u{n}") for n in range(3000))).observed) == 3000


def test_bad_record_is_bounded() -> None:
    found = page({"description": "x" * 100_000})
    assert len(found.bad[0].raw) == MAX_BAD_RECORD_BYTES


@pytest.mark.parametrize("missing", [{"updateTime": None}, {"updateTime": ""}, {}])
def test_incident_that_was_never_updated_stands_at_its_creation(missing: dict[str, Any]) -> None:
    record = {"uuid": "u1", "createTime": CREATED, **missing}
    (row,) = page(record).observed
    assert row.updated == row.created == parse_instant(CREATED)
    assert (row.created_shown, row.updated_shown) == (True, False)


def test_incident_without_creation_stands_at_its_update() -> None:
    (row,) = page({"uuid": "u1", "updateTime": UPDATED}).observed
    assert row.created == row.updated == parse_instant(UPDATED)
    assert (row.created_shown, row.updated_shown) == (False, True)


def test_update_before_creation_is_legal() -> None:
    (row,) = page(incident(createTime=UPDATED, updateTime=CREATED)).observed
    assert row.updated < row.created


def test_tracked_values_are_normalised() -> None:
    (row,) = page(
        incident(
            status="INCIDENT_STATUS_OPEN",
            severity="INCIDENT_SEVERITY_LEVEL_BRAND_NEW",
            displayName="name",
            tags=["b", "a", "b"],
            metrics={"deviceCount": "12", "processCount": None},
        )
    ).observed
    assert row.values == (
        "INCIDENT_STATUS_OPEN",
        "INCIDENT_SEVERITY_LEVEL_BRAND_NEW",
        "INCIDENT_RESOLVE_REASON_UNSPECIFIED",
        "",
        "name",
        "",
        ["a", "b"],
        12,
        0,
        0,
    )


def test_raw_keeps_everything_but_white_space() -> None:
    record = (
        b'{ "updateTime" : "2026-01-03T03:04:05Z",\n\t"uuid":"u1", "createTime":"2026-01-02T03:04:05Z", '
        b'"big": 123456789012345678901234567890.10, "e":1E+2, "huge":1e400, "minus": -0, '
        b'"text":"a , b : { \\" \\u00e9\\/ \xc3\xa9", "twice":1, "twice" : 2, "list":[ ], "nested": { "a" : [1, 2] } }'
    )
    (row,) = raw_page(record).observed
    assert row.raw == (
        b'{"updateTime":"2026-01-03T03:04:05Z","uuid":"u1","createTime":"2026-01-02T03:04:05Z",'
        b'"big":123456789012345678901234567890.10,"e":1E+2,"huge":1e400,"minus":-0,'
        b'"text":"a , b : { \\" \\u00e9\\/ \xc3\xa9","twice":1,"twice":2,"list":[],"nested":{"a":[1,2]}}'
    )


@pytest.mark.parametrize(
    ("name", "mended"),
    [
        (b"\\ud800", b"\\ufffd"),
        (b"x\\uDC00y", b"x\\ufffdy"),
        (b"\\ud83d\\ude00", b"\\ud83d\\ude00"),
        (b"\\ud800\\ud83d\\ude00", b"\\ufffd\\ud83d\\ude00"),
        (b"\\\\ud800", b"\\\\ud800"),
        (b"\\\\\\ud800", b"\\\\\\ufffd"),
        (b"\xff", b"\xef\xbf\xbd"),
        (b"\xed\xa0\x80", b"\xef\xbf\xbd" * 3),
    ],
)
def test_names_that_are_no_text_do_not_hide_an_incident(name: bytes, mended: bytes) -> None:
    """Windows allows half surrogate pairs in file names, so an attacker may choose them."""
    rest = b'","createTime":"2026-01-02T03:04:05Z","z":"\\ud800"}'
    (row,) = raw_page(b'{"uuid":"u1","displayName":"' + name + rest).observed
    assert row.raw.startswith(b'{"uuid":"u1","displayName":"' + mended + b'"')
    msgspec.json.decode(row.raw)
    row.raw.decode()
    row.values[4].encode()


def test_byte_order_mark_is_no_obstacle() -> None:
    assert decode_page(b"\xef\xbb\xbf" + json.dumps({"incidents": [incident()]}).encode()).observed


@given(
    st.dictionaries(
        st.sampled_from(["displayName", "description", "tags", "metrics", "status", "severity", "new", "deviceUuids"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
def test_no_value_of_another_field_costs_an_incident(fields: dict[str, Any]) -> None:
    record = incident(**fields)
    found = page(record)
    assert not found.bad
    assert json.loads(found.observed[0].raw) == json.loads(json.dumps(record).encode().decode())


@given(st.binary())
def test_nothing_but_a_bad_answer_is_raised(body: bytes) -> None:
    for whole in (
        body,
        b'{"incidents":[' + body + b"]}",
        b'{"incidents":[{"uuid":"u","displayName":"' + body + b'"}]}',
    ):
        try:
            decode_page(whole)
        except BadAnswer:
            continue


@pytest.mark.parametrize("mimic", [{"truncated": True}, {"truncated": True, "bytes": "many", "sha256": [], "n": 1}])
def test_value_that_mimics_our_own_abridgement_is_shown_as_it_is(mimic: dict[str, Any]) -> None:
    (row,) = page(incident(displayName=mimic)).observed
    scope = Scope(source="acme", start_from=0, first_start=0)
    known = diff(None, row, scope=scope, now=0).row
    assert known is not None
    assert tracked(known)["displayName"] == mimic


@pytest.mark.parametrize("wrap", [lambda record: {"incident": record}, lambda record: record])
def test_single_incident_comes_wrapped_or_bare(wrap: Any) -> None:
    row = decode_incident(json.dumps(wrap(incident(deviceUuids=["d"]))).encode())
    assert row.uuid == "u1"
    assert json.loads(row.raw) == incident(deviceUuids=["d"])


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"incident":null}', b'{"incident":{"uuid":"u1"}}'])
def test_what_is_no_incident_is_a_bad_answer(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        decode_incident(body)
