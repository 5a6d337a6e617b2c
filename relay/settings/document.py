"""The merged configuration before it is checked, and pydantic's findings in our words. No message shows a value."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain, islice
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from relay.settings.layers import Key, Layer, Place, Problem, merge, variable_of
from relay.settings.model import (
    EMPTY,
    FileSink,
    KafkaSink,
    Settings,
    SlackSink,
    Source,
    StdoutSink,
    TeamsSink,
    WebhookSink,
    secret_keys,
)

SINK_TYPES: Final[Mapping[str, type[BaseModel]]] = {
    "kafka": KafkaSink,
    "webhook": WebhookSink,
    "slack": SlackSink,
    "teams": TeamsSink,
    "stdout": StdoutSink,
    "file": FileSink,
}

_CURES: Final[Mapping[str, str]] = {
    "username": "write the API user's login",
    "password": "write password_file, or password",
    "topic": "name the topic, such as eset.incidents",
    "path": "name the file, such as events.ndjson",
    "url": "write url_file, or url",
}
_WORDS: Final[Mapping[str, str]] = {
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_parsing_size": "is too large",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "greater_than": "is too small; more than {gt:g}",
    "greater_than_equal": "is too small; at least {ge:g}",
    "less_than_equal": "is too large; at most {le:g}",
    "string_type": "takes one value",
    "string_too_short": EMPTY,
    "tuple_type": "takes a list, such as [description, tags]",
    "model_type": "takes keys; write them below it, indented",
    "model_attributes_type": "takes keys; write them below it, indented",
    "dict_type": "takes keys; write them below it, indented",
    "value_error": "{error}",
}


@dataclass(frozen=True, slots=True)
class Document:
    """What the file says and over it the environment, with the place of each key."""

    values: dict[str, Any] = field(repr=False)
    places: Mapping[Key, Place]
    file: str | None
    """How the file is named in messages; None when there is none."""

    @classmethod
    def of(cls, file: Layer, environment: Layer, *, shown: str | None) -> "Document":
        """Both layers as one; the environment wins."""
        return cls(merge(file.values, environment.values), {**file.places, **environment.places}, shown)

    def get(self, *key: str) -> Any:
        """The value at a key, or None."""
        value: Any = self.values
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def group(self, *key: str) -> dict[str, Any]:
        """The group at a key; empty when it is absent, or is none."""
        value = self.get(*key)
        return value if isinstance(value, dict) else {}

    def without(self, keys: Iterable[Key]) -> "Document":
        """The same but for these keys."""
        values = self.values
        for key in keys:
            values = _without(values, key)
        return replace(self, values=values)

    def problem(self, key: Key, text: str) -> Problem:
        """A problem with a key, at its place; a missing one at its group's, the file, or the variable that sets it."""
        file = (*key[:-1], f"{key[-1]}_file")
        if key not in self.places and file in self.places:
            key = file
        above = (self.places[key[:end]] for end in range(len(key) - 1, 0, -1) if key[:end] in self.places)
        below = (place for other, place in self.places.items() if other[: len(key)] == key)
        place = self.places.get(key) or next(chain(below, above), None)
        return Problem(place or Place(0, self.file or variable_of(key)), _shown(key), text)

    def unknown(self, key: Key) -> Problem:
        """A key that is no setting, with the nearest one that is."""
        place = self.places.get(key)
        by_variable = place is not None and not place.line
        nearest = self._nearest(key, variables_first=by_variable)
        return self.problem(
            key, f"is unknown; did you mean {variable_of(nearest) if by_variable else _shown(nearest)}?"
        )

    def translate(self, error: ValidationError) -> Iterator[Problem]:
        """Pydantic's findings as ours."""
        for detail in error.errors(include_url=False):
            yield self._translate(detail)

    def _translate(self, detail: ErrorDetails) -> Problem:
        key = _key(detail["loc"])
        kind, context = detail["type"], detail.get("ctx", {})
        if kind == "missing":
            return self.problem(key, f"is missing; {_CURES.get(key[-1], 'write it')}")
        if kind == "extra_forbidden":
            return self.unknown(key)
        if kind in ("union_tag_not_found", "union_tag_invalid"):
            what = "is missing" if kind == "union_tag_not_found" else "is unknown"
            return self.problem((*key, "type"), f"{what}; write one of {', '.join(SINK_TYPES)}")
        if detail["input"] is None and kind != "value_error":
            return self.problem(key, EMPTY)
        if kind == "literal_error":
            return self.problem(key, f"is not one of {context['expected'].replace(chr(39), '')}")
        return self.problem(key, _WORDS.get(kind, f"is not valid ({kind})").format_map(context))

    def _model(self, key: Key) -> type[BaseModel] | None:
        if not key:
            return Settings
        if len(key) == 2 and key[0] == "sources":
            return Source
        if len(key) == 2 and key[0] == "sinks":
            kind = self.get(*key, "type")
            return SINK_TYPES.get(kind) if isinstance(kind, str) else None
        parent = self._model(key[:-1])
        info = parent.model_fields.get(key[-1]) if parent else None
        return _model_in(info.annotation) if info else None

    def _nearest(self, key: Key, *, variables_first: bool) -> Key:
        """Called nearly the same in its group, else the same elsewhere, else the best of a bad lot."""
        known = list(self._known(()))
        variables = {variable_of(other): other for other in known}
        siblings = {name: (*key[:-1], name) for name in _names(self._model(key[:-1]))}
        spelled = [variables[name] for name in get_close_matches(variable_of(key), variables, 1, 0.8)]
        ranked: list[Key] = [
            *(spelled if variables_first else ()),
            *(siblings[name] for name in get_close_matches(key[-1], siblings, 1)),
            *(other for other in known if other[-1] == key[-1]),
            *spelled,
            *(siblings[name] for name in get_close_matches(key[-1], siblings, 1, 0)),
        ]
        return ranked[0]

    def _known(self, at: Key) -> Iterator[Key]:
        """Every setting, with the first labels that are in use."""
        model = self._model(at)
        names = _names(model) if model else islice(self.group(*at), 5)
        for name in names:
            if model:
                yield (*at, name)
            if self._model((*at, name)) or (*at, name) in (("sources",), ("sinks",)):
                yield from self._known((*at, name))


def _key(location: tuple[int | str, ...]) -> Key:
    """Pydantic's location without what is not written: the tag of a union, `[key]`, the index in a list."""
    parts = [part for part in location if isinstance(part, str) and part != "[key]"]
    if parts[0] == "sinks" and len(parts) > 2:
        del parts[2]
    return tuple(parts)


def _names(model: type[BaseModel] | None) -> list[str]:
    if model is None:
        return []
    return [*model.model_fields, *(f"{key}_file" for key in secret_keys(model))]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *(get_args(annotation) if get_origin(annotation) is not dict else ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _without(values: dict[str, Any], key: Key) -> dict[str, Any]:
    rest = dict(values)
    if len(key) == 1:
        rest.pop(key[0], None)
    elif isinstance(below := rest.get(key[0]), dict):
        rest[key[0]] = _without(below, key[1:])
    return rest


def _shown(key: Key) -> str:
    text = ".".join(key)
    return text if text.isprintable() and len(text) <= 120 else ascii(text[:120])
