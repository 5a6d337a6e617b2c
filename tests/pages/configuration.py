"""The keys in `docs/configuration.md`, from the settings' model and their JSON Schema. The prose around them is not.

What stands between the two marks of the page is made here; all else stays as it is.
"""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from relay.schema import config_schema
from relay.settings import (
    NOT_YET,
    Api,
    FileSink,
    Http,
    Journal,
    KafkaSink,
    Log,
    Settings,
    SlackSink,
    Source,
    WebhookSink,
)
from relay.settings.document import SINK_TYPES
from relay.settings.layers import Key, variable_of
from relay.settings.model import AtLeast, _ChatSink, _MessageSink, _Sink, secret_keys

PAGE: Final = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN: Final = "<!-- keys: written by `python -m tests.pages` -->\n"
END: Final = "<!-- end of keys -->\n"
WIDTH: Final = 120

GROUPS: Final[tuple[tuple[str, str, Key, type[BaseModel]], ...]] = (
    ("sources", "ESET tenants, by label. The label is the source's identity for ever.", ("sources", "acme"), Source),
    ("api", "What all sources together may ask of ESET.", ("api",), Api),
    ("journal", "Where changes, ledger and progress become durable.", ("journal",), Journal),
    ("kafka", "For everything that talks to Kafka.", (), Settings),
    ("sinks", "Where events go, by label. Every sink takes these.", ("sinks", "siem"), _Sink),
    ("Kafka sinks", "These as well. [More](sinks/kafka.md).", ("sinks", "siem"), KafkaSink),
    ("Webhook, Slack and Teams sinks", "These as well.", ("sinks", "soar"), _MessageSink),
    ("Webhook sinks", "And these. [More](sinks/webhook.md).", ("sinks", "soar"), WebhookSink),
    (
        "Slack and Teams sinks",
        "And these. More: [Slack](sinks/slack.md), [Teams](sinks/teams.md).",
        ("sinks", "soc"),
        _ChatSink,
    ),
    ("File sinks", "This as well; `stdout` takes no other. [More](sinks/files.md).", ("sinks", "disk"), FileSink),
    ("http", "The read-only HTTP server: probes, metrics, status.", ("http",), Http),
    ("log", "What is logged, on standard error.", ("log",), Log),
    ("admin_socket, shutdown_grace", "Keys that stand by themselves.", (), Settings),
)
TOP: Final = {"kafka": ["kafka", "kafka_prefix"], "admin_socket, shutdown_grace": ["admin_socket", "shutdown_grace"]}
"""The keys of the top level that are described by themselves; the others are groups."""

# What a type cannot tell.
WORDS: Final[Mapping[str, str]] = {
    "base_url": "URL",
    "token_url": "URL",
    "link": "URL with `{uuid}`",
    "proxy": "`none`, `env` or a URL",
    "start_from": "`all`, `now` or a time such as `2026-01-01T00:00:00Z`",
    "admin_socket": "`auto` or a path",
    "create_topic": "group of keys, or `false`",
    "when": "rule",
    "notify": "label of a sink",
    "retry": "list of durations",
    "omit": "list of fields, such as `[description]`",
    "headers": "names and values",
    "kafka": "names and values",
    "ca_file": "path of a file",
    "cert_file": "path of a file",
    "key_file": "path of a file",
}


EXAMPLES: Final[Mapping[str, Key]] = {"kafka": ("bootstrap.servers",), "headers": ("x-api-key",)}
"""A name in a block of names that are somebody else's."""


def render() -> str:
    """The page with its keys as they are now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{''.join(_sections())}\n{END}{after}"


def _sections() -> Iterator[str]:
    schemas = config_schema()
    for title, about, at, group in GROUPS:
        level = "####" if title.endswith(" sinks") else "###"
        yield f"\n{level} {title}\n\n{_wrapped(about)}\n\n"
        if group is _Sink:  # each kind has it, with a value of its own
            yield from _entry((*at, "type"), "type", KafkaSink, _properties(KafkaSink, schemas))
        for name in TOP.get(title) or own_keys(group):
            yield from _entry((*at, name), name, group, _properties(group, schemas))


def own_keys(group: type[BaseModel]) -> list[str]:
    """The keys that a group adds to what it is made of; `type` is every sink's."""
    return [name for name in group.__annotations__ if name in group.model_fields and name != "type"]


def _properties(group: type[BaseModel], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the group itself; of a group that is only built upon, those of one that is built on it."""
    if group is Settings:
        found: Mapping[str, Any] = schemas["properties"]
        return found
    built = {_Sink: KafkaSink, _MessageSink: WebhookSink, _ChatSink: SlackSink}.get(group, group)
    properties: Mapping[str, Any] = schemas["$defs"][built.__name__]["properties"]
    return properties


def _entry(at: Key, shown: str, group: type[BaseModel], properties: Mapping[str, Any]) -> Iterator[str]:
    name = at[-1]
    field = group.model_fields[name]
    inner = _inner(field)
    names = f"**`{shown}`**" + (f" or **`{shown}_file`**" if name in secret_keys(group) else "")
    takes = _takes(name, field, group, properties[name])
    default = _default(field, properties[name])
    text = f"- {names}: {takes}; {default}. {_sentences(at, field)}"
    if not inner or name == "create_topic":
        text += f" `{variable_of((*at, *EXAMPLES.get(name, ())))}`"
    yield _wrapped(text, indent="  ") + "\n"
    if inner:
        below = config_schema()["$defs"][inner.__name__]["properties"]
        for key in own_keys(inner):
            yield from _entry((*at, key), f"{shown}.{key}", inner, below)


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    """The group that a key holds."""
    return type(field.default) if isinstance(field.default, BaseModel) else None


def _takes(name: str, field: FieldInfo, group: type[BaseModel], schema: Mapping[str, Any]) -> str:
    if name == "type":
        return _either(list(SINK_TYPES))
    if name in secret_keys(group) and name not in WORDS:
        return "secret"
    if name in WORDS:
        return WORDS[name]
    if "$ref" in schema:
        return "group of keys"
    found = _plain(schema)
    least = [
        one.func.shown for one in field.metadata if isinstance(one, AfterValidator) and isinstance(one.func, AtLeast)
    ]
    return found + (f", at least `{least[-1]}`" if least else "")


def _plain(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return _either(schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$comment" in schema:
        return str(schema["$comment"])
    kind = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`"}.get(schema["type"])
    if kind is None:
        return "path" if schema.get("format") == "path" else "text"
    if "minimum" in schema and schema["minimum"] == schema["maximum"]:
        return f"`{schema['minimum']}`"
    if "minimum" in schema:
        return f"{kind}, {schema['minimum']:,} to {schema['maximum']:,}"
    return f"{kind} above {schema['exclusiveMinimum']}, at most {schema['maximum']:,}" if "maximum" in schema else kind


def _either(values: list[str]) -> str:
    quoted = [f"`{value}`" for value in values]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _default(field: FieldInfo, schema: Mapping[str, Any]) -> str:
    if field.is_required():
        return "required"
    default = schema.get("default")
    if default is None:
        return "default as below" if _inner(field) else "no default" if field.default is None else "empty by default"
    if isinstance(default, list):
        return f"default `[{', '.join(default)}]`"
    return f"default `{str(default).lower() if isinstance(default, bool) else default}`"


def _sentences(at: Key, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    for pattern, values in NOT_YET.items():
        parts = pattern.split(".")
        if len(parts) == len(at) and all(part in ("*", key) for part, key in zip(parts, at, strict=True)):
            refused = _either(list(values)) if len(values) > 1 else f"`{values[0]}`"
            text += f" {refused} is refused: not available yet."
    return text


def _wrapped(text: str, *, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
