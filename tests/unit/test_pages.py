"""The pages that are made from the code are current, and what they say of the configuration is true."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from relay.settings import (
    NOT_YET,
    Api,
    Backoff,
    CreateTopic,
    FileSink,
    Http,
    Journal,
    KafkaSink,
    Log,
    Settings,
    SlackSink,
    Source,
    StdoutSink,
    TeamsSink,
    Tls,
    WebhookSink,
    load,
)
from relay.settings.layers import variable_of
from relay.settings.model import _Group, secret_keys
from relay.settings.rules import JOURNAL_KEYS
from tests.pages import Page, pages
from tests.pages.configuration import PAGE
from tests.unit.test_docs import blocks

POSTS = ["sinks", "Webhook, Slack and Teams sinks"]
SECTIONS: dict[type[BaseModel], list[str]] = {
    Source: ["sources"],
    Api: ["api"],
    Journal: ["journal"],
    KafkaSink: ["sinks", "Kafka sinks"],
    WebhookSink: [*POSTS, "Webhook sinks"],
    SlackSink: [*POSTS, "Slack and Teams sinks"],
    TeamsSink: [*POSTS, "Slack and Teams sinks"],
    StdoutSink: ["sinks"],
    FileSink: ["sinks", "File sinks"],
    Http: ["http"],
    Log: ["log"],
    Settings: ["kafka", "admin_socket, shutdown_grace"],
}
WITHIN: dict[type[BaseModel], dict[str, type[BaseModel]]] = {
    Source: {"backoff": Backoff, "tls": Tls},
    KafkaSink: {"create_topic": CreateTopic},
    WebhookSink: {"tls": Tls},
    SlackSink: {"tls": Tls},
    TeamsSink: {"tls": Tls},
}
CONFIGURATION = """
sources:
  acme: {region: eu, username: api-user@acme.example, password: secret}
kafka: {bootstrap.servers: "kafka.example:9092"}
sinks:
  siem: {type: kafka, topic: eset.incidents}
  soar: {type: webhook, url: https://soar.example/hooks/eset}
  soc: {type: slack, url: https://hooks.example/x}
  desk: {type: teams, url: https://hooks.example/y}
  disk: {type: file, path: events.ndjson}
"""

_SECTION = re.compile(r"^#{3,4} (.+)$", re.MULTILINE)
_ENTRY = re.compile(r"^- \*\*`([\w.]+)`\*\*(?: or \*\*`([\w.]+)`\*\*)?: (.*)$", re.DOTALL)
_DEFAULT = re.compile(r"; default `([^`]+)`\. .*`(RELAY_\w+)`$", re.DOTALL)


def entries(title: str) -> Iterator[tuple[list[str], str]]:
    """Of a section, the names of each key and all that is said of it, as it stands on the page."""
    parts = _SECTION.split(PAGE.read_text())
    (text,) = [body for head, body in zip(parts[1::2], parts[2::2], strict=True) if head == title]
    for item in re.split(r"\n(?=- )", text.partition("\n<!--")[0].rstrip()):
        match = _ENTRY.match(item)
        if match:
            yield [name for name in match.groups()[:2] if name], " ".join(match[3].split())


def _fields(group: type[BaseModel] | None) -> list[str]:
    return list(group.model_fields) if group is not None else []


DEFAULTS = {
    match[2]: match[1]
    for titles in SECTIONS.values()
    for title in titles
    for _, text in entries(title)
    if (match := _DEFAULT.search(text))
}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.PAGE.name)
def test_the_page_is_what_the_code_makes_of_it(page: Page) -> None:
    assert page.PAGE.read_text() == page.render(), "run python -m tests.pages"


def test_every_group_of_settings_is_looked_at() -> None:
    def below(group: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for child in group.__subclasses__():
            yield child
            yield from below(child)

    known = {*SECTIONS, *(inner for groups in WITHIN.values() for inner in groups.values())}
    assert {group for group in below(_Group) if not group.__name__.startswith("_")} == known - {Settings}


@pytest.mark.parametrize("group", SECTIONS, ids=lambda group: group.__name__)
def test_every_key_is_on_the_page_and_no_other(group: type[BaseModel]) -> None:
    wanted = set()
    for name in group.model_fields:
        wanted |= {name, f"{name}_file"} if name in secret_keys(group) else {name}
        wanted |= {f"{name}.{key}" for key in _fields(WITHIN.get(group, {}).get(name))}
    if group is Settings:
        wanted -= {title for titles in SECTIONS.values() for title in titles if title != "kafka"}
    assert {name for title in SECTIONS[group] for names, _ in entries(title) for name in names} == wanted


@pytest.mark.parametrize("group", SECTIONS, ids=lambda group: group.__name__)
def test_every_key_is_explained_and_says_what_it_takes(group: type[BaseModel]) -> None:
    for title in SECTIONS[group]:
        for names, text in entries(title):
            takes, _, said = text.partition("; ")
            assert takes, names
            assert re.match(r"(required|no default|empty by default|default as below|default `[^`]+`)\. \S", said), (
                names
            )
            assert len(said.split()) > 5, names


@pytest.mark.parametrize(("variable", "text"), DEFAULTS.items(), ids=DEFAULTS.keys())
def test_every_default_on_the_page_can_be_written_and_changes_nothing(variable: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_text(CONFIGURATION)
    on_kafka = {variable_of(("journal", name)) for name in JOURNAL_KEYS["kafka"]}
    environ = {"RELAY_JOURNAL__KIND": "kafka"} if variable in on_kafka else {}
    assert load(None, {**environ, variable: text}, tmp_path) == load(None, environ, tmp_path)


def test_most_keys_have_a_default_that_was_tried() -> None:
    assert len(DEFAULTS) > 35


def test_the_example_names_every_key() -> None:
    example = max(blocks(PAGE, "yaml"), key=len)
    groups: list[type[BaseModel]] = [*SECTIONS, Backoff, Tls, CreateTopic]
    for group in groups:
        for name in group.model_fields:
            assert re.search(rf"(^|[\s#]){name}(_file)?:", example), name


def test_the_example_shows_the_defaults() -> None:
    """But for what it shows off: what is required, `link`, `when`, and values that say something else on purpose."""
    shown = yaml.safe_load(max(blocks(PAGE, "yaml"), key=len))
    source, siem, soar = shown["sources"]["acme"], shown["sinks"]["siem"], shown["sinks"]["soar"]
    kept = {
        "RELAY_SOURCES__ACME__POLL_INTERVAL": source["poll_interval"],
        "RELAY_SOURCES__ACME__RECONCILE_INTERVAL": source["reconcile_interval"],
        "RELAY_SOURCES__ACME__LOOKBACK": source["lookback"],
        "RELAY_SINKS__SIEM__MAX_EVENT_BYTES": siem["max_event_bytes"],
        "RELAY_SINKS__SOAR__RETRY": f"[{', '.join(soar['retry'])}]",
        "RELAY_JOURNAL__MAX_BYTES": shown["journal"]["max_bytes"],
        "RELAY_SHUTDOWN_GRACE": shown["shutdown_grace"],
    }
    same = {"60s": "1m", "24h": "1d"}
    assert {key: same.get(value, value) for key, value in kept.items()} == {key: DEFAULTS[key] for key in kept}


def test_what_is_refused_for_now_is_named() -> None:
    text = PAGE.read_text()
    for pattern, values in NOT_YET.items():
        key = pattern.rpartition(".")[2]
        for value in values:
            assert re.search(rf"`(\w+\.)?{key}: {value}`", text), (pattern, value)
