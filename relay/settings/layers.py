"""Where settings come from: the YAML file, and over it the environment. Values stay text, and know where they stand.

YAML is read without its guesses: `no`, `0123` and `2026-01-01` are the text that was written, in keys as in values.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

PREFIX = "RELAY_"
DELIMITER = "__"

Key = tuple[str, ...]
"""A setting's path: `("sources", "acme", "password")`."""

# Kubernetes' own, for services whose name begins with `relay`.
_SERVICE_LINK = re.compile(
    r"RELAY_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)",
    re.ASCII,
)
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://\S+", re.ASCII)
_NOT_SETTINGS: Final = re.compile(r"RELAY_CONFIG|RELAY_TEST_\w*", re.ASCII)
_YAML_TAG = "tag:yaml.org,2002:"
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of the file, or a variable (line 0)."""

    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}" if self.line else self.name


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong: where, which key (empty when it is not about one), and what with its cure."""

    place: Place | None
    key: str
    text: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.place or ""), f"{self.key} {self.text}".strip())))


@dataclass(frozen=True, slots=True)
class Layer:
    """What one origin says, as nested dicts of text, with the place of each key."""

    values: dict[str, Any] = field(default_factory=dict, repr=False)
    places: dict[Key, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_file(path: Path, shown: str) -> Layer:
    """The YAML file. What is wrong with it is among the layer's problems; no message shows a value."""
    layer = Layer()
    try:
        text = path.read_bytes().decode("utf-8-sig")
        node = yaml.compose(text, Loader=_LOADER)
    except OSError as exc:
        why = (exc.strerror or type(exc).__name__).lower()
        layer.problems.append(Problem(None, "", f"{shown}: cannot be read: {why}"))
    except UnicodeDecodeError:
        layer.problems.append(Problem(None, "", f"{shown}: is not UTF-8 text"))
    except yaml.YAMLError as exc:
        layer.problems.append(_invalid(exc, shown))
    else:
        reading = _Reading(shown, layer)
        if isinstance(node, yaml.MappingNode):
            layer.values.update(reading.mapping(node, ()))
        elif node is not None and reading.plain(node, ()) is not None:
            layer.problems.append(Problem(Place(1, shown), "", "is not a mapping; begin with sources: and sinks:"))
    _lower_headers(layer)
    return layer


def read_environment(environ: Mapping[str, str]) -> Layer:
    """The variables that begin with `RELAY_`, but for Kubernetes' service links, `RELAY_CONFIG` and `RELAY_TEST_*`."""
    layer = Layer()
    for name in sorted(environ):
        if not name.startswith(PREFIX) or _is_foreign(name, environ[name]):
            continue
        key = key_of(name)
        clash = _put(layer.values, key, environ[name])
        if clash is not None:
            other = layer.places.get(clash) or next(
                place for at, place in layer.places.items() if at[: len(clash)] == clash
            )
            layer.problems.append(Problem(Place(0, name), "", f"contradicts {other}; keep one of the two"))
        else:
            layer.places[key] = Place(0, name)
    return layer


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins, key by key."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def key_of(variable: str) -> Key:
    """`RELAY_SOURCES__ACME__REGION` → sources, acme, region.

    Under `kafka`, `_` stands for `.`; under `headers`, for `-`.
    """
    parts = tuple(variable.removeprefix(PREFIX).lower().split(DELIMITER))
    depth, stands_for = _free_names(parts)
    if depth is None or len(parts) == depth:
        return parts
    option = DELIMITER.join(parts[depth:])
    stem, file = (option[:-5], "_file") if option.endswith("_file") else (option, "")
    return (*parts[:depth], stem.replace("_", stands_for) + file)


def variable_of(key: Key) -> str:
    """The variable that sets a key."""
    depth, stands_for = _free_names(key)
    parts = key if depth is None else (*key[:depth], *(part.replace(stands_for, "_") for part in key[depth:]))
    return PREFIX + DELIMITER.join(parts).upper()


def _free_names(key: Key) -> tuple[int | None, str]:
    """How many parts lead to the block of names of somebody else's that the key is in, and what `_` is in them."""
    if key[:1] == ("sinks",) and key[2:3] == ("headers",):
        return 3, "-"
    return kafka_depth(key), "."


def _lower_headers(layer: Layer) -> None:
    """Names of headers are one in upper and lower case, so that a variable can stand above the file."""
    sinks = layer.values.get("sinks")
    for label, sink in sinks.items() if isinstance(sinks, dict) else ():
        headers = sink.get("headers") if isinstance(sink, dict) else None
        if not isinstance(headers, dict):
            continue
        lowered: dict[str, Any] = {}
        for name, value in headers.items():
            place = layer.places.get(("sinks", label, "headers", name))
            if name.lower() in lowered and place is not None:
                text = "is given twice, in another case; keep one of the two"
                layer.problems.append(Problem(place, f"sinks.{label}.headers.{name}", text))
            elif place is not None:
                layer.places["sinks", label, "headers", name.lower()] = place
            lowered[name.lower()] = value
        sink["headers"] = lowered


def kafka_depth(key: Key) -> int | None:
    """How many parts lead to the block of librdkafka options that the key is in, or None."""
    if key[:1] == ("kafka",):
        return 1
    return 3 if key[:1] == ("sinks",) and key[2:3] == ("kafka",) else None


def parse_list(value: Any) -> Any:
    """A list that a variable holds as text, read as YAML: `[description, tags]`. All else comes back as it is."""
    if not isinstance(value, str):
        return value
    try:
        node = yaml.compose(value, Loader=_LOADER)
    except yaml.YAMLError:
        node = None
    return _Reading("", Layer()).plain(node, ()) if isinstance(node, yaml.SequenceNode) else value


class _Reading:
    """Turns YAML's nodes into text, lists and dicts."""

    def __init__(self, shown: str, layer: Layer, within: frozenset[int] = frozenset()) -> None:
        self._shown = shown
        self._layer = layer
        self._open = set(within)

    def plain(self, node: yaml.Node, at: Key) -> Any:
        if id(node) in self._open:
            self._problem(node, at, "contains itself; write it out")
            return None
        self._open.add(id(node))
        try:
            return self._plain(node, at)
        finally:
            self._open.discard(id(node))

    def _plain(self, node: yaml.Node, at: Key) -> Any:
        if not node.tag.startswith(_YAML_TAG):
            self._problem(node, at, "has a tag; quote a value that begins with !")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*at, str(index))) for index, item in enumerate(node.value)]
        return None if node.tag == f"{_YAML_TAG}null" else node.value

    def mapping(self, node: yaml.MappingNode, at: Key) -> dict[str, Any]:
        """Keys are the text as written; one given twice is a problem; `<<` fills in what is not given."""
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem(key, at, "has a key that is not text")
            elif key.value in lines:
                self._problem(key, (*at, key.value), f"is given twice; it was already in line {lines[key.value]}")
            elif key.tag != f"{_YAML_TAG}merge":
                lines[key.value] = key.start_mark.line + 1
                self._layer.places[*at, key.value] = Place(lines[key.value], self._shown)
                values[key.value] = self.plain(value, (*at, key.value))
        for merged in self._merged(node, at):
            values = merge(merged, values)
        return values

    def _merged(self, node: yaml.MappingNode, at: Key) -> Iterator[dict[str, Any]]:
        for key, value in node.value:
            if key.tag == f"{_YAML_TAG}merge":
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    # What is wrong with the part is said where it stands.
                    values = _Reading(self._shown, Layer(), frozenset(self._open)).plain(part, at)
                    if isinstance(values, dict):
                        yield values
                    else:
                        self._problem(part, at, "merges what is not a mapping, or itself")

    def _problem(self, node: yaml.Node, at: Key, text: str) -> None:
        self._layer.problems.append(Problem(Place(node.start_mark.line + 1, self._shown), ".".join(at), text))


def _invalid(exc: yaml.YAMLError, shown: str) -> Problem:
    mark = getattr(exc, "problem_mark", None)
    # YAML's own words may quote an alias, an anchor or a tag, and what looks like one may be a password.
    what = re.sub(r"'(?!<)[^']{2,}'", "…", str(getattr(exc, "problem", None) or getattr(exc, "reason", "")))
    place = Place(mark.line + 1, shown) if mark is not None else Place(1, shown)
    return Problem(place, "", f"is not valid YAML: {what or 'it cannot be read'}; quote values with special characters")


def _is_foreign(name: str, value: str) -> bool:
    if DELIMITER in name:
        return False
    if _NOT_SETTINGS.fullmatch(name) or _SERVICE_LINK.fullmatch(name):
        return True
    return name.endswith("_PORT") and _SERVICE_URL.fullmatch(value) is not None


def _put(values: dict[str, Any], key: Key, value: str) -> Key | None:
    """Sets a nested value. Returns the key that is in the way, if one is."""
    group = values
    for depth, part in enumerate(key[:-1], start=1):
        below = group.setdefault(part, {})
        if not isinstance(below, dict):
            return key[:depth]
        group = below
    if key[-1] in group:
        return key
    group[key[-1]] = value
    return None
