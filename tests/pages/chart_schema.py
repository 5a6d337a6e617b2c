"""`values.schema.json` of the chart: types and words from `values.yaml`, and of `configuration` the relay's own schema.

What a default can't tell of its key stands in `MORE`. Rules between keys are the chart's `refused.yaml`.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import yaml

from relay.schema import DIALECT, config_schema
from tests.pages.chart import CHART, VALUES, values

PAGE: Final = CHART / "values.schema.json"

_NOT_EMPTY: Final = "^(?=.)"
_NAMED: Final = {"type": "object", "required": ["name"]}
_WORDS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_QUANTITY: Final = "^[0-9]+(\\.[0-9]+)?([kMGTPE]|[KMGTPE]i)?$"
_PORTS: Final = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
_PEERS: Final = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"ports": _PORTS, "to": {"type": "array", "items": {"type": "object"}}},
}
_PROBE: Final = {
    "additionalProperties": False,
    "properties": {
        name: {"type": "integer", "minimum": 0 if name == "initialDelaySeconds" else 1}
        for name in ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold")
    },
}

MORE: Final[Mapping[str, Mapping[str, Any]]] = {
    "existingSecret": {"maxLength": 253},
    "secrets": {
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["secretName"],
            "properties": {
                "secretName": {"type": "string", "minLength": 1},
                "optional": {"type": "boolean"},
                "items": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["key", "path"],
                        "additionalProperties": False,
                        "properties": {"key": {"type": "string"}, "path": {"type": "string"}},
                    },
                },
            },
        }
    },
    "externalSecret.secretStoreRef": {
        "additionalProperties": False,
        "properties": {"name": {"type": "string"}, "kind": {"enum": ["SecretStore", "ClusterSecretStore"]}},
    },
    "image.repository": {"minLength": 1},
    "image.tag": {"pattern": "^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$", "not": {"const": "latest"}},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "imagePullSecrets": {"items": _NAMED},
    "commonLabels": _WORDS,
    "replicas": {"minimum": 0},
    "podDisruptionBudget.maxUnavailable": {"minimum": 1},
    "cache.sizeLimit": {"pattern": _QUANTITY},
    "persistence.accessModes": {
        "items": {"enum": ["ReadWriteOncePod", "ReadWriteOnce"]},
        "minItems": 1,
        "maxItems": 1,
    },
    "persistence.size": {"pattern": _QUANTITY},
    "persistence.annotations": _WORDS,
    "serviceAccount.annotations": _WORDS,
    "service.port": {"minimum": 1, "maximum": 65535},
    "service.annotations": _WORDS,
    "proxy.https": {"pattern": "^(https?://.+)?$"},
    "proxy.http": {"pattern": "^(https?://.+)?$"},
    "extraEnv": {"items": _NAMED},
    "extraVolumes": {"items": _NAMED},
    "extraVolumeMounts": {"items": {"type": "object", "required": ["name", "mountPath"]}},
    "startupProbe": _PROBE,
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "podAnnotations": _WORDS,
    "podLabels": _WORDS,
    "nodeSelector": _WORDS,
    "networkPolicy.egress.dnsPorts": _PORTS,
    "networkPolicy.egress.https": _PEERS,
    "networkPolicy.egress.kafka": _PEERS,
    "networkPolicy.egress.proxy": _PEERS,
    "serviceMonitor.interval": {"pattern": "^([0-9]+(ms|[smhd]))+$"},
    "serviceMonitor.scrapeTimeout": {"pattern": "^([0-9]+(ms|[smhd]))+$"},
    "serviceMonitor.labels": _WORDS,
    "prometheusRule.labels": _WORDS,
    "dashboard.labels": _WORDS,
    "dashboard.annotations": _WORDS,
}


def render() -> str:
    """The schema as it should be now."""
    relay = config_schema()
    definitions = relay.pop("$defs")
    del relay["$schema"]
    about = {".".join(value.key): value.about for value in values()}
    root = _schema((), yaml.safe_load(VALUES.read_text(encoding="utf-8")), about)
    root["properties"]["configuration"] = {**_readable(relay), "description": about["configuration"]}
    root["properties"]["global"] = {"type": "object", "description": "Helm's own, of a chart that holds this one."}
    whole = {"$schema": DIALECT, "title": "Values of the chart incident-relay", **root, "$defs": _readable(definitions)}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _schema(at: tuple[str, ...], default: Any, about: Mapping[str, str]) -> dict[str, Any]:
    """Closed where the keys are ours: a group whose keys have comments of their own."""
    name = ".".join(at)
    said = {"description": about[name]} if name in about else {}
    if isinstance(default, dict):
        if not at or (name not in about and default):
            inner = {key: _schema((*at, key), value, about) for key, value in default.items()}
            return {"type": "object", "additionalProperties": False, "properties": inner}
        return {"type": "object", **said, **MORE.get(name, {})}
    if isinstance(default, list):
        return {"type": "array", **said, "items": {"type": "object"}, **MORE.get(name, {})}
    # The one value that has no default is a number.
    types = {bool: "boolean", int: "integer", str: "string", type(None): ["integer", "null"]}
    return {"type": types[type(default)], **said, **MORE.get(name, {})}


def _readable(schema: Any) -> Any:
    """For Go's expressions; and a sink is looked at as the one of its type, so that an error does not speak of all."""
    if isinstance(schema, list):
        return [_readable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "discriminator" not in schema:
        found = {key: _readable(value) for key, value in schema.items()}
        if str(found.get("pattern", "")).startswith(_NOT_EMPTY):  # Go's expressions don't look ahead
            found |= {"pattern": f"^{found['pattern'].removeprefix(_NOT_EMPTY)}", "minLength": 1}
        return found
    chosen = schema["discriminator"]
    name, kinds = chosen["propertyName"], chosen["mapping"]
    cases = [
        {"if": {"properties": {name: {"const": kind}}, "required": [name]}, "then": {"$ref": reference}}
        for kind, reference in kinds.items()
    ]
    return {"type": "object", "required": [name], "properties": {name: {"enum": list(kinds)}}, "allOf": cases}
