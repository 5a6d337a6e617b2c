"""The `native` value: exact bytes, fields left out, lists cut."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.clock import MILLISECOND, SECOND
from relay.formats import native
from relay.incidents import Event

NAMES = st.sampled_from(["status", "severity", "tags", "metrics", "deviceUuids", "é", 'a"b', "newField"])
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
INCIDENTS = st.dictionaries(
    NAMES, SCALARS | st.lists(SCALARS, max_size=5) | st.dictionaries(NAMES, SCALARS, max_size=3), max_size=8
)


def event(incident: bytes = b"{}", **other: Any) -> Event:
    fields: dict[str, Any] = {
        "id": "0123",
        "kind": "updated",
        "source": "acme",
        "origin": "poll",
        "uuid": "u1",
        "sequence": 3,
        "updated": 0,
        "observed": 1_795_341_600 * SECOND + 123 * MILLISECOND + 456_789,
        "severity": "",
        "changed": ["status", "assigneeUuid"],
        "previous": {"status": "INCIDENT_STATUS_OPEN", "assigneeUuid": ""},
        "incident": incident,
    }
    return Event(**{**fields, **other})


def test_the_value_is_exactly_that_of_the_contract() -> None:
    incident = b'{"uuid":"u1","n":1.50e3,"big":12345678901234567890,"s":"\\u00e9\\/","status":"X"}'
    assert native.render(event(incident)) == (
        b'{"event":{"id":"0123","kind":"updated","source":"acme","origin":"poll","sequence":3,'
        b'"changed":["status","assigneeUuid"],'
        b'"previous":{"status":"INCIDENT_STATUS_OPEN","assigneeUuid":""},'
        b'"observedTime":"2026-11-22T10:00:00.123Z"},"incident":' + incident + b"}"
    )


def test_an_unread_past_is_null() -> None:
    value = msgspec.json.decode(native.render(event(changed=None, previous=None)))["event"]
    assert (value["changed"], value["previous"]) == (None, None)


@given(INCIDENTS)
def test_the_incident_comes_through_untouched(incident: dict[str, Any]) -> None:
    raw = msgspec.json.encode(incident)
    body = native.render(event(raw))
    assert body.endswith(b',"incident":' + raw + b"}")
    assert native.id_of(body) == "0123"


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"{}", b'{"event":3}', b'{"event":{"id":3}}', b'{"event":{"id":"\xff']
)
def test_what_is_no_event_of_ours_has_no_id(body: bytes) -> None:
    assert native.id_of(body) is None


def test_omitted_fields_vanish_from_incident_previous_and_changed_and_the_rest_keeps_its_spelling() -> None:
    incident = b'{"b":1.50,"status":"X","metrics":{"z":"\\u00e9","deviceCount":3},"a":[1e2]}'
    previous = {"metrics.deviceCount": 2, "status": "Y", "metrics.processCount": 0}
    body = native.render(event(incident, changed=list(previous), previous=previous))
    left = native.omit(body, ("status", "metrics.deviceCount", "unknown"))
    assert left.endswith(b'"incident":{"b":1.50,"metrics":{"z":"\\u00e9"},"a":[1e2]}}')
    value = msgspec.json.decode(left)["event"]
    assert (value["changed"], value["previous"]) == (["metrics.processCount"], {"metrics.processCount": 0})


def test_omitting_a_parent_omits_what_changed_inside_it() -> None:
    body = native.render(event(b'{"metrics":{"deviceCount":3}}', changed=["metrics.deviceCount"], previous={}))
    value = msgspec.json.decode(native.omit(body, ["metrics"]))
    assert value["incident"] == {}
    assert value["event"]["changed"] == []


def test_omitting_inside_what_is_no_object_changes_nothing() -> None:
    body = native.render(event(b'{"metrics":"none","tags":null}', changed=None, previous=None))
    assert native.omit(body, ["metrics.x", "tags.x", "missing.x"]) == body


@given(INCIDENTS, st.sets(NAMES))
def test_omitting_is_removing_keys(incident: dict[str, Any], fields: set[str]) -> None:
    body = native.render(event(msgspec.json.encode(incident)))
    left = msgspec.json.decode(native.omit(body, fields))
    assert left["incident"] == {name: value for name, value in incident.items() if name not in fields}
    assert list(left["incident"]) == [name for name in incident if name not in fields]


def test_an_event_within_the_limit_is_left_alone() -> None:
    body = native.render(event(b'{"tags":["a"]}'))
    assert native.truncate(body, len(body)) is body


def test_the_longest_lists_are_cut_and_named_with_their_true_counts() -> None:
    incident = {
        "tags": ["a", "b"],
        "detectionUuids": [f"detection-{n}" for n in range(5321)],
        "deviceUuids": [f"device-{n}" for n in range(4000)],
    }
    cut = native.truncate(native.render(event(msgspec.json.encode(incident))), 10_000)
    assert 9_000 < len(cut) <= 10_000
    value = msgspec.json.decode(cut)
    assert value["event"]["truncated"] == {"detectionUuids": 5321, "deviceUuids": 4000}
    assert value["incident"]["tags"] == ["a", "b"]
    for name in ("detectionUuids", "deviceUuids"):
        kept = value["incident"][name]
        assert len(kept) > 200
        assert kept == incident[name][: len(kept)]


def test_what_is_too_large_without_its_lists_is_refused() -> None:
    body = native.render(event(msgspec.json.encode({"description": "x" * 3000, "tags": ["y" * 3000]})))
    with pytest.raises(ValueError, match="over the limit of 2000 even with its lists cut"):
        native.truncate(body, 2000)


@given(
    st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=30), max_size=40), max_size=5), st.integers(0, 3000)
)
def test_a_cut_event_fits_and_holds_true_beginnings(lists: dict[str, list[str]], limit: int) -> None:
    body = native.render(event(msgspec.json.encode(lists)))
    try:
        cut = native.truncate(body, limit)
    except ValueError:
        assert len(body) > limit
        return
    assert len(cut) <= limit
    value = msgspec.json.decode(cut)
    truncated = value["event"].get("truncated", {})
    for name, whole in lists.items():
        kept = value["incident"][name]
        assert kept == whole[: len(kept)]
        assert (len(kept) < len(whole)) <= (truncated.get(name) == len(whole))
