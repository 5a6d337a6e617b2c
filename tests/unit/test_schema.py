"""The JSON Schemas that `relay schema` prints: they take what the relay takes and makes, and find what is wrong."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator

from relay.errors import ConfigError
from relay.formats import native
from relay.incidents import KINDS, Event, Scope, diff, missing
from relay.schema import config_schema, event_schema
from relay.settings import load
from tests.support.incidents import SCOPE, START, seen, versions
from tests.unit.test_docs import EXAMPLES, ROOT

CONFIG = Draft202012Validator(config_schema())
EVENT = Draft202012Validator(event_schema())
GOOD = """
sources:
  acme: {region: eu, username: api-user@acme.example, password: secret, start_from: 2026-01-01T00:00:00Z}
kafka: {bootstrap.servers: "kafka.example:9092", linger.ms: 5}
sinks:
  siem: {type: kafka, topic: eset.incidents, create_topic: false}
  out: {type: stdout}
"""


class _Text(yaml.SafeLoader):
    """As editors read YAML: a time is text."""


_Text.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str) -> Any:
    return yaml.load(text, Loader=_Text)


def loads(document: Any, folder: Path) -> bool:
    (folder / "relay.yaml").write_text(yaml.safe_dump(document))
    try:
        load(folder / "relay.yaml", {}, folder)
    except ConfigError:
        return False
    return True


# -- the configuration ------------------------------------------------------------------------------------------------


def test_both_are_schemas() -> None:
    Draft202012Validator.check_schema(config_schema())
    Draft202012Validator.check_schema(event_schema())


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_every_configuration_in_the_documents_fits(text: str) -> None:
    assert [error.message for error in CONFIG.iter_errors(read(text))] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sources.acme.poll_intervall", "60s"),
        ("sources.acme.poll_interval", 60),
        ("sources.acme.poll_interval", "60"),
        ("sources.acme.poll_interval", ""),
        ("sources.acme.poll_interval", "1m1h"),
        ("sources.acme.region", "fr"),
        ("sources.acme.page_size", 1001),
        ("sources.acme.password_file", "a file, beside the password"),
        ("sources.acme.start_from", 5),
        ("sources.acme.backoff.maximum", "1m"),
        ("sources.Acme Ltd", {"username": "u"}),
        ("sources.acme.tls", None),
        ("api.requests_per_second", 0),
        ("journal.max_bytes", "2 gigabytes"),
        ("journal.max_bytes", 1_000_000),
        ("journal.kind", "postgres"),
        ("journal.partitions", 65),
        ("journal.replication_factor", "three"),
        ("journal.cache_dir", 5),
        ("sinks.siem.format", "ocsf"),
        ("sinks.siem.format", "ecs"),
        ("sinks.siem.topics", "x"),
        ("sinks.siem.url", "https://x.example"),
        ("sinks.siem.create_topic", True),
        ("sinks.siem.create_topic", {"partition": 3}),
        ("sinks.out.type", "std"),
        ("sinks.out.path", "x"),
        ("sinks.out.omit", "description"),
        ("log.level", "loud"),
        ("http.port", 65_536),
        ("sink", {}),
    ],
)
def test_what_the_relay_refuses_an_editor_marks(key: str, value: Any, tmp_path: Path) -> None:
    document = read(GOOD)
    assert CONFIG.is_valid(document)
    assert loads(document, tmp_path)
    group = document
    *path, last = key.split(".")
    for name in path:
        group = group.setdefault(name, {})
    group[last] = value
    assert not loads(document, tmp_path)
    assert not CONFIG.is_valid(document)


@pytest.mark.parametrize("missing_key", ["sources.acme.username", "sinks.siem.topic", "sinks.out.type"])
def test_a_required_key_is_missed(missing_key: str) -> None:
    document = read(GOOD)
    *path, last = missing_key.split(".")
    group = document
    for name in path:
        group = group[name]
    del group[last]
    assert not CONFIG.is_valid(document)


@pytest.mark.parametrize("kind", ["sqlite", "kafka"])
def test_both_kinds_of_journal_fit(kind: str, tmp_path: Path) -> None:
    document = read(GOOD)
    own = {"path": "x.db"} if kind == "sqlite" else {"partitions": 4, "replication_factor": 3, "cache_dir": "x"}
    document["journal"] = {"kind": kind, "max_bytes": "1GiB", "retention": "1d", **own}
    assert loads(document, tmp_path)
    assert CONFIG.is_valid(document)


def test_a_secret_may_come_from_elsewhere() -> None:
    document = read(GOOD)
    del document["sources"]["acme"]["password"]
    assert CONFIG.is_valid(document)


@pytest.mark.parametrize("text", ["500ms", "30s", "5m", "24h", "7d", "1h30m", "0s"])
def test_every_spelling_of_a_duration_fits(text: str, tmp_path: Path) -> None:
    document = read(GOOD)
    document["shutdown_grace"] = text
    assert loads(document, tmp_path)
    assert CONFIG.is_valid(document)


@pytest.mark.parametrize(
    "text", ["1048576B", "1024 KiB", "2MiB", "2GiB", "1TiB", "2000kB", "2000KB", "2MB", "2GB", "1TB"]
)
def test_every_spelling_of_a_size_fits(text: str, tmp_path: Path) -> None:
    document = read(GOOD)
    document["journal"] = {"max_bytes": text}
    assert loads(document, tmp_path)
    assert CONFIG.is_valid(document)


# -- events -----------------------------------------------------------------------------------------------------------

UUID = "956b0eff-994b-42f4-af77-609b77414bb1"
OPEN, CLOSED = "INCIDENT_STATUS_OPEN", "INCIDENT_STATUS_CLOSED"


def events() -> dict[str, Event]:
    """One of each kind, and what is peculiar besides, all made by the relay's own rules."""
    made, known = versions(
        UUID,
        seen(UUID, status=OPEN, severity="INCIDENT_SEVERITY_LEVEL_HIGH", description="x" * 5000),
        seen(UUID, at=1, status=OPEN, description="y", tags=["a"], metrics={"deviceCount": "3"}, future={"a": [1]}),
        seen(UUID, at=2, status=CLOSED),
        seen(UUID, at=3, status=OPEN, severity="INCIDENT_SEVERITY_LEVEL_OF_TOMORROW"),
        seen(UUID, at=3, status=OPEN, displayName=None, tags=None),
    )
    gone = _event(missing(known, scope=SCOPE, now=START))
    lost = msgspec.structs.replace(known, sequence=gone.sequence, gone=True)
    back = _event(diff(lost, seen(UUID, at=3, status=OPEN), scope=SCOPE, now=START))
    late = Scope(source="acme", start_from=START, first_start=START)
    unread = _event(diff(None, seen(UUID, at=5, created=-5), scope=late, now=START))
    found = {event.kind: event for event in [*made, gone, back]}
    assert set(found) == set(KINDS)
    return {
        **found,
        **{f"version {number}": event for number, event in enumerate(made, start=1)},
        "unread": unread,
        "enriched": msgspec.structs.replace(made[0], enriched=True),
        "not enriched": msgspec.structs.replace(made[0], enriched=False),
    }


def _event(found: Any) -> Event:
    assert found.event is not None
    event: Event = found.event
    return event


EVENTS = events()


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())
def test_every_event_fits_also_replayed_cut_and_with_fields_left_out(event: Event) -> None:
    body = native.render(event)
    for sent in (
        body,
        native.replayed(body),
        native.omit(body, ["uuid", "status", "tags", "metrics.deviceCount", "createTime"]),
    ):
        assert [error.message for error in EVENT.iter_errors(json.loads(sent))] == []


def test_a_cut_event_fits() -> None:
    many = seen(UUID, at=9, tags=[f"tag {number}" for number in range(500)])
    cut = json.loads(native.truncate(native.render(_event(diff(None, many, scope=SCOPE, now=START))), 2000))
    assert cut["event"]["truncated"] == {"tags": 500}
    assert EVENT.is_valid(cut)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("updated", {"id": "829af1c2"}),
        ("updated", {"kind": "deleted"}),
        ("updated", {"source": "Acme Ltd"}),
        ("updated", {"origin": "sweep"}),
        ("updated", {"sequence": 0}),
        ("updated", {"sequence": "2"}),
        ("updated", {"changed": None}),
        ("updated", {"previous": None}),
        ("updated", {"changed": ["status", "status"]}),
        ("updated", {"observedTime": "2026-05-28 20:29:40"}),
        ("updated", {"enriched": None}),
        ("updated", {"truncated": ["tags"]}),
        ("created", {"changed": ["status"]}),
        ("created", {"changed": None, "previous": None}),
        ("missing", {"previous": {"status": OPEN}}),
    ],
)
def test_what_is_no_event_does_not_fit(kind: str, change: dict[str, Any]) -> None:
    value = json.loads(native.render(EVENTS[kind]))
    broken = copy.deepcopy(value)
    broken["event"].update(change)
    assert EVENT.is_valid(value)
    assert not EVENT.is_valid(broken)


def test_each_field_that_every_event_has_is_asked_for() -> None:
    value = json.loads(native.render(EVENTS["closed"]))
    for name in value["event"]:
        assert not EVENT.is_valid({**value, "event": {key: one for key, one in value["event"].items() if key != name}})
    for name in value:
        assert not EVENT.is_valid({key: one for key, one in value.items() if key != name})


def test_every_field_of_an_event_is_described() -> None:
    """What the page on events lists, and what the format can write, stand in the schema."""
    described = event_schema()["properties"]["event"]["properties"]
    page = (ROOT / "docs" / "events.md").read_text().partition("| field of `event`")[2].partition("\n\n")[0]
    assert {line.split("`")[1] for line in page.splitlines()[2:]} == set(described)
    assert set(native._About.__struct_fields__) | {"truncated"} == set(described)


@pytest.mark.parametrize("name", ["config", "event"])
def test_the_command_prints_it(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "relay", "schema", name], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"config": config_schema, "event": event_schema}[name]()
