"""JSON Schemas for editors and consumers: of the configuration file, and of an event as `native` writes it.

Made from the settings' own model and the incidents' own words. Nothing is checked by them here.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from relay.formats.cloudevents import DATA_SCHEMA
from relay.incidents import CLOSED, DIGEST_VERSION, KINDS, ORIGINS, SEVERITY_PREFIX, TRACKED
from relay.settings import Settings, format_duration, format_size
from relay.settings.model import KafkaSink, WebhookSink, secret_keys

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_Object = dict[str, Any]

_ABOUT: Final[_Object] = {
    "description": "What the relay says of this version of the incident.",
    "type": "object",
    "required": ["id", "kind", "source", "origin", "sequence", "changed", "previous", "observedTime"],
    "properties": {
        "id": {
            "description": "The name of the version; a repeat carries the same one.",
            "type": "string",
            "pattern": "^[0-9a-f]{32}$",
        },
        "kind": {"description": "What happened.", "enum": list(KINDS)},
        "source": {"description": "The source's label.", "type": "string", "pattern": "^[a-z0-9_]{1,40}$"},
        "origin": {"description": "How the relay came to send it.", "enum": list(ORIGINS)},
        "sequence": {
            "description": "Counts the events of this incident, from 1, without holes.",
            "type": "integer",
            "minimum": 1,
        },
        "changed": {
            "description": "Which tracked fields differ from the version before; null when that is unread.",
            "type": ["array", "null"],
            "items": {"type": "string"},
            "uniqueItems": True,
            "examples": [list(TRACKED[DIGEST_VERSION])],
        },
        "previous": {"description": "Their values before, by the same names.", "type": ["object", "null"]},
        "observedTime": {
            "description": "When the relay compared it with its ledger, UTC, milliseconds.",
            "type": "string",
            "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        },
        "enriched": {
            "description": "Whether the incident was fetched by itself, with all its fields.",
            "type": "boolean",
        },
        "truncated": {
            "description": "Lists of the incident that were cut, with how many items they had.",
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 1},
        },
    },
    "allOf": [
        {
            "if": {"properties": {"changed": {"type": "null"}}},
            "then": {"properties": {"kind": {"const": "updated"}, "previous": {"type": "null"}}},
            "else": {"properties": {"previous": {"type": "object"}}},
        },
        {
            "if": {"properties": {"kind": {"enum": ["created", "missing", "restored"]}}},
            "then": {"properties": {"changed": {"maxItems": 0}, "previous": {"maxProperties": 0}}},
        },
    ],
}
# ESET's own JSON passes through: what it may hold is described, and only what the relay itself makes sure of is asked.
_INCIDENT: Final[_Object] = {
    "description": "The API's own JSON, unknown fields and values included, without what the sink omits.",
    "type": "object",
    "properties": {
        "uuid": {"description": "The incident's name for ever.", "type": "string", "minLength": 1},
        "displayName": {"description": "The title. May hold text that an attacker chose."},
        "description": {"description": "More about it. May hold text that an attacker chose."},
        "severity": {"examples": [f"{SEVERITY_PREFIX}{name}" for name in ("LOW", "MEDIUM", "HIGH")]},
        "status": {"examples": ["INCIDENT_STATUS_OPEN", CLOSED]},
        "resolveReason": {"examples": ["INCIDENT_RESOLVE_REASON_FALSE_POSITIVE"]},
        "assigneeUuid": {"description": "Who works on it; empty when nobody does."},
        "tags": {"description": "A list of words."},
        "metrics": {"description": "Counts: deviceCount, executableCount, processCount."},
        "createTime": {"description": "RFC 3339.", "examples": ["2026-05-28T20:27:40.200000Z"]},
        "updateTime": {"description": "RFC 3339; absent while it was never updated."},
        "deviceUuids": {"description": "With `enrich` alone."},
        "detectionUuids": {"description": "With `enrich` alone."},
    },
}


def config_schema() -> _Object:
    """Of `relay.yaml`, as `load` takes it.

    It asks for no secret: that may come from the environment. Rules between keys are left to `relay check --offline`.
    """
    schema = Settings.model_json_schema(schema_generator=_Written)
    return {"$schema": DIALECT, **schema, "title": "relay.yaml", "description": "The configuration of Incident Relay."}


class _Written(GenerateJsonSchema):
    """Keys and values as they are written: `60s`, `2GiB`, `password_file`, no null."""

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:
        """Only `Secret` is one."""
        return {"type": "string", "minLength": 1}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """A key without a value is left out instead."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """The default as a person would write it; those of groups stand at their own keys."""
        inner = self.generate_inner(schema["schema"])
        default = schema.get("default")
        if default in (None, (), {}) or isinstance(default, BaseModel):
            return inner
        return {**inner, "default": _written(default, inner)}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """A title would say no more than the key."""
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Labels are all that is allowed where labels are expected."""
        found = super().dict_schema(schema)
        return {**found, "additionalProperties": False} if "patternProperties" in found else found

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """With a `<key>_file` beside each secret; one of both, where one is needed."""
        found = super().model_schema(schema)
        group = schema["cls"]
        properties: _Object = {}
        for key, value in found.get("properties", {}).items():
            properties[key] = value
            if key in secret_keys(group):
                properties[f"{key}_file"] = {"type": "string", "description": f"The file that holds `{key}`."}
        if group is KafkaSink:
            made = properties["create_topic"]
            properties["create_topic"] = {
                "description": made.get("description", ""),
                "anyOf": [{key: value for key, value in made.items() if key != "description"}, {"const": False}],
            }
        if group is WebhookSink:
            properties["headers"] = {**properties["headers"], "additionalProperties": {"type": "string"}}
        required = [key for key in found.get("required", ()) if key not in secret_keys(group)]
        twins = [{"not": {"required": [key, f"{key}_file"]}} for key in secret_keys(group) if key != "proxy"]
        return {
            **{key: value for key, value in found.items() if key not in ("required", "title")},
            "properties": properties,
            **({"required": required} if required else {}),
            **({"allOf": twins} if twins else {}),
        }


def _written(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, tuple):
        return [_written(item, schema) for item in value]
    if isinstance(value, Path):
        return str(value)
    return format_size(value) if schema.get("$comment") == "size" else value


def event_schema() -> _Object:
    """Of the value of an event. Open: fields are added within its number, and incidents pass through as they are."""
    return {
        "$schema": DIALECT,
        "$id": DATA_SCHEMA,
        "title": "Event of Incident Relay",
        "type": "object",
        "required": ["event", "incident"],
        "properties": {"event": _ABOUT, "incident": _INCIDENT},
    }
