"""The `filter` and `orderBy` languages of the incident list: exactly the documented subset, all else is refused.

Conditions are joined by `&&`. There is no `||`, `<`, `>`, `!` and no grouping. Fields may carry `incident.` and be in
snake_case or lowerCamelCase; enum constants stand unquoted; times are `timestamp("…")`.
"""

import re
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import msgspec

from relay.clock import SECOND, Instant
from relay.simulator.samples import RESOLVE_REASONS, SEVERITIES, STATUSES
from relay.simulator.times import parse_time

Kind = Literal["time", "text", "list", "enum", "count"]
Op = Literal["==", "!=", "<=", ">=", "in", "contains", "has"]

EARLIEST: Final[Instant] = -(10**20)
"""Before every time that can be written."""
LATEST: Final[Instant] = 10**20
ENUMS: Final = {"severity": SEVERITIES, "status": STATUSES, "resolveReason": RESOLVE_REASONS}


class InvalidArgument(Exception):
    """The request's arguments are refused: 400."""


class Field(NamedTuple):
    """A field of an incident: its path in the JSON, and what may be done with it."""

    path: str
    kind: Kind
    filterable: bool = False


FIELDS: Final[dict[str, Field]] = {
    "create_time": Field("createTime", "time", filterable=True),
    "update_time": Field("updateTime", "time", filterable=True),
    "display_name": Field("displayName", "text", filterable=True),
    "assignee_uuid": Field("assigneeUuid", "text", filterable=True),
    "device_uuids": Field("deviceUuids", "list", filterable=True),
    "severity": Field("severity", "enum", filterable=True),
    "status": Field("status", "enum", filterable=True),
    "tags": Field("tags", "list", filterable=True),
    "uuid": Field("uuid", "text"),
    "description": Field("description", "text"),
    "resolve_reason": Field("resolveReason", "enum"),
    "response_duration": Field("responseDuration", "text"),
    "triage_duration": Field("triageDuration", "text"),
    "metrics.device_count": Field("metrics.deviceCount", "count"),
    "metrics.executable_count": Field("metrics.executableCount", "count"),
    "metrics.process_count": Field("metrics.processCount", "count"),
}
_BY_CAMEL = {field.path: field for field in FIELDS.values()}


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison of a field. `sized`: its length is compared instead of its value."""

    field: Field
    op: Op
    value: Any = None
    sized: bool = False

    def is_range(self) -> bool:
        """Whether the condition is an interval of time."""
        return self.field.kind == "time" and self.op in {"==", "<=", ">="}

    def interval(self, *, whole_seconds: bool = False) -> tuple[Instant, Instant]:
        """The half-open interval of stored times that satisfy it; `whole_seconds`: as if they were stored so."""
        low, high = self.value, self.value + 1
        if whole_seconds:
            low, high = -(-self.value // SECOND) * SECOND, (self.value // SECOND + 1) * SECOND
        if self.op == ">=":
            return low, LATEST
        return (EARLIEST + 1, high) if self.op == "<=" else (low, high)

    def holds(self, value: Any) -> bool:
        """Whether a value of the field satisfies it. A time that is missing satisfies nothing."""
        if self.sized:
            return _compares(len(value), self.op, self.value)
        match self.op:
            case "has":
                return value is not None if self.field.kind == "time" else bool(value)
            case "in":
                return value in self.value
            case "contains":
                return self.value in value
            case _:
                return value is not None and _compares(value, self.op, self.value)


class OrderTerm(NamedTuple):
    """One field of an order."""

    field: Field
    descending: bool


def _compares(left: Any, op: Op, right: Any) -> bool:
    match op:
        case "==":
            return bool(left == right)
        case "!=":
            return bool(left != right)
        case "<=":
            return bool(left <= right)
        case _:
            return bool(left >= right)


def normalised(field: Field, fields: dict[str, Any]) -> Any:
    """A field's value out of an incident's JSON, in a form that compares (enums and counts: numbers). Not for times."""
    parent, _, child = field.path.partition(".")
    value = fields.get(parent)
    if child:
        value = value.get(child) if isinstance(value, dict) else None
    match field.kind:
        case "enum":
            names = ENUMS[field.path]
            return names.index(value) if value in names else 0
        case "count":
            return _as_integer(value)
        case "list":
            return value if isinstance(value, list) else []
        case _:
            return value if isinstance(value, str) else ""


def _as_integer(value: Any) -> int:
    return int(value) if isinstance(value, int | str) and str(value).lstrip("-").isdecimal() else 0


def parse_filter(text: str, *, accept_z: bool = True) -> tuple[Condition, ...]:
    """The conditions of a filter, none for an empty one. Raises InvalidArgument."""
    if not text.strip():
        return ()
    return _Parser(text, accept_z=accept_z).conditions()


def parse_order(text: str, *, camel_case: bool = False) -> tuple[OrderTerm, ...]:
    """The terms of an order, none for an empty one. Raises InvalidArgument."""
    if not text.strip():
        return ()
    return tuple(_order_term(part, camel_case=camel_case) for part in text.split(","))


def _order_term(text: str, *, camel_case: bool) -> OrderTerm:
    words = text.split()
    if not words or len(words) > 2 or words[1:] not in ([], ["desc"]):
        raise InvalidArgument(f"order_by: cannot read {text.strip()!r}")
    field = FIELDS.get(words[0]) or (_BY_CAMEL.get(words[0]) if camel_case else None)
    if field is None or field.kind == "list":
        raise InvalidArgument(f"order_by: unknown field {words[0]!r}")
    return OrderTerm(field, len(words) == 2)


class _Token(NamedTuple):
    kind: str
    text: str


_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>-?\d+)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
      | (?P<sign>&&|==|!=|<=|>=|[()\[\],])
      | (?P<space>\s+)""",
    re.VERBOSE | re.ASCII,
)
_END = _Token("end", "the end")
_COMPARISONS: Final[dict[str, Op]] = {"==": "==", "!=": "!=", "<=": "<=", ">=": ">="}


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise InvalidArgument(f"filter: unexpected {text[at]!r} at {at}")
        at = match.end()
        if match.lastgroup != "space":
            tokens.append(_Token(str(match.lastgroup), match[0]))
    return tokens


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


class _Parser:
    def __init__(self, text: str, *, accept_z: bool) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._accept_z = accept_z

    def conditions(self) -> tuple[Condition, ...]:
        found = [self._condition()]
        while self._peek() is not _END:
            self._expect("&&")
            found.append(self._condition())
        return tuple(found)

    def _condition(self) -> Condition:
        token = self._peek()
        if token.kind == "string":
            return self._membership()
        if token.kind != "name":
            raise InvalidArgument(f"filter: expected a field, found {token.text!r}")
        name = self._next().text
        if self._peek().text == "(":
            return self._call(name)
        return self._comparison(_filter_field(name))

    def _call(self, name: str) -> Condition:
        self._expect("(")
        if name == "has":
            return Condition(field=self._closing(self._field()), op="has")
        if name == "size":
            return self._size(self._closing(self._field()))
        owner, _, method = name.rpartition(".")
        if method == "contains":
            return self._contains(_filter_field(owner))
        if method == "size":
            return self._size(self._closing(_filter_field(owner)))
        raise InvalidArgument(f"filter: unknown function {name!r}")

    def _contains(self, field: Field) -> Condition:
        if field.kind not in {"text", "list"}:
            raise InvalidArgument(f"filter: contains does not apply to {field.path!r}")
        value = self._string()
        self._expect(")")
        return Condition(field=field, op="contains", value=value)

    def _size(self, field: Field) -> Condition:
        if field.kind not in {"text", "list"}:
            raise InvalidArgument(f"filter: size does not apply to {field.path!r}")
        op = self._comparison_sign()
        token = self._next()
        if token.kind != "number":
            raise InvalidArgument(f"filter: size is compared with {token.text!r}")
        return Condition(field=field, op=op, value=int(token.text), sized=True)

    def _membership(self) -> Condition:
        value = self._string()
        self._expect("in")
        field = self._field()
        if field.kind != "list":
            raise InvalidArgument(f"filter: {field.path!r} is not a list")
        return Condition(field=field, op="contains", value=value)

    def _comparison(self, field: Field) -> Condition:
        if field.kind == "list":
            raise InvalidArgument(f"filter: the list {field.path!r} cannot be compared")
        literal = self._literal_of(field)
        if self._peek().text == "in":
            self._next()
            return Condition(field=field, op="in", value=self._list_of(literal))
        op = self._comparison_sign()
        return Condition(field=field, op=op, value=literal())

    def _list_of(self, literal: Callable[[], Any]) -> tuple[Any, ...]:
        self._expect("[")
        values = [literal()]
        while self._peek().text == ",":
            self._next()
            values.append(literal())
        self._expect("]")
        return tuple(values)

    def _literal_of(self, field: Field) -> Callable[[], Any]:
        if field.kind == "time":
            return self._timestamp
        return self._string if field.kind == "text" else lambda: self._constant(field)

    def _timestamp(self) -> Instant:
        self._expect("timestamp")
        self._expect("(")
        text = self._string()
        self._expect(")")
        if text.endswith("Z") and not self._accept_z:
            raise InvalidArgument("filter: a time needs an offset such as +00:00")
        try:
            return parse_time(text)
        except ValueError as exc:
            raise InvalidArgument(f"filter: {exc}") from exc

    def _constant(self, field: Field) -> int:
        token = self._next()
        names = ENUMS[field.path]
        if token.kind != "name" or token.text not in names:
            raise InvalidArgument(f"filter: {token.text!r} is not a value of {field.path!r}")
        return names.index(token.text)

    def _comparison_sign(self) -> Op:
        token = self._next()
        if token.text not in _COMPARISONS:
            raise InvalidArgument(f"filter: expected a comparison, found {token.text!r}")
        return _COMPARISONS[token.text]

    def _field(self) -> Field:
        return _filter_field(self._next().text)

    def _closing(self, field: Field) -> Field:
        self._expect(")")
        return field

    def _string(self) -> str:
        token = self._next()
        if token.kind != "string":
            raise InvalidArgument(f"filter: expected a string, found {token.text!r}")
        return _unquoted(token.text)

    def _expect(self, text: str) -> None:
        token = self._next()
        if token.kind == "string" or token.text != text:
            raise InvalidArgument(f"filter: expected {text!r}, found {token.text!r}")

    def _peek(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _END

    def _next(self) -> _Token:
        token = self._peek()
        self._at += 1
        return token


def _filter_field(name: str) -> Field:
    bare = name.removeprefix("incident.")
    field = FIELDS.get(bare) or _BY_CAMEL.get(bare)
    if field is None or not field.filterable:
        raise InvalidArgument(f"filter: unknown field {name!r}")
    return field
