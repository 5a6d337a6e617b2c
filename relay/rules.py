"""The `when` of a sink: a condition in CEL that says which events it gets. Pure; knows neither sinks nor delivery.

Each field is a variable of its own with a type, so that a typo is found when the rule is read. A rule never loses an
event by accident: what cannot be evaluated matches, and says why.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from cel_expr_python import cel

from relay.incidents import KINDS, ORIGINS, TRACKED, Known, format_instant, parse_instant, tracked
from relay.words import inert

MAX_ITERATIONS: Final = 10_000
"""The library's own limit of one evaluation; it raises beyond."""
MAX_WORK_MICROSECONDS: Final = 50_000
"""What loops may take by estimate. The library keeps the whole process waiting and cannot be interrupted."""
PATTERN_MICROSECONDS: Final = 50
"""The library compiles the pattern of `matches` anew at each call."""
LONGEST_QUOTE: Final = 60
LONGEST_ERROR: Final = 200

_LIBRARY_ERRORS: Final = (RuntimeError, TypeError, ValueError, OverflowError)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INT64: Final = range(-(1 << 63), 1 << 63)
_SECONDS: Final = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s", re.ASCII)


class RuleError(ValueError):
    """A condition that cannot be used: what, where and the cure. Reads on from the name of its setting."""


class Match(msgspec.Struct, frozen=True, gc=False):
    """Whether an event goes to the sink. `error` says why it could not be told; then it does."""

    matched: bool
    error: str = ""


_YES: Final = Match(matched=True)
_NO: Final = Match(matched=False)


class _Field(NamedTuple):
    """The CEL type of a field, what it should hold, how it is read, and as what when it is absent.

    `read` raises ValueError for what is something else.
    """

    type: Any
    shape: str
    read: Callable[[Any], Any]
    absent: str


def _text(value: Any) -> str:
    if not value:
        return ""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")  # at a NUL the library takes the text to end: what follows would not count
    raise ValueError


def _texts(value: Any) -> list[str]:
    if not value:
        return []
    if isinstance(value, list) and all(type(item) is str for item in value):
        return [item.replace("\0", "\ufffd") for item in value]
    raise ValueError


def _integer(value: Any) -> int:
    if not value:
        return 0
    if isinstance(value, str) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if type(value) is int and value in _INT64:
        return value
    raise ValueError


def _time(value: Any) -> datetime:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - what cannot be read is one thing here
    try:
        return _EPOCH + timedelta(microseconds=parse_instant(value) // 1000)
    except (LookupError, OverflowError) as exc:
        raise ValueError from exc


def _duration(value: Any) -> timedelta:
    if not value:
        return timedelta()
    match = _SECONDS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError
    sign, seconds, fraction = match.groups()
    length = timedelta(seconds=int(seconds), microseconds=int((fraction or "0").ljust(6, "0")[:6]))
    return -length if sign else length


def _short(prefix: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        return _text(value).removeprefix(prefix) or "UNSPECIFIED"

    return read


# What ESET documents, by prefix. It adds values without notice: others are only doubtful.
_ENUMS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "severity": ("INCIDENT_SEVERITY_LEVEL_", ("UNSPECIFIED", "LOW", "MEDIUM", "HIGH")),
    "status": ("INCIDENT_STATUS_", ("UNSPECIFIED", "OPEN", "IN_PROGRESS", "WAITING_FOR_INPUT", "CLOSED")),
    "resolveReason": (
        "INCIDENT_RESOLVE_REASON_",
        ("UNSPECIFIED", "TRUE_POSITIVE", "FALSE_POSITIVE", "SUSPICIOUS"),
    ),
}
_NAMES: Final = dict.fromkeys(name for names in TRACKED.values() for name in names)

_TEXT: Final = _Field(cel.Type.STRING, "a text", _text, '""')
_TEXTS: Final = _Field(cel.Type.List(cel.Type.STRING), "a list of texts", _texts, "[]")
_INTEGER: Final = _Field(cel.Type.INT, "a whole number", _integer, "0")
_TIME: Final = _Field(cel.Type.TIMESTAMP, "a time", _time, "the other of the two times")
_DURATION: Final = _Field(cel.Type.DURATION, "a duration", _duration, 'duration("0s")')

_INCIDENT: Final[Mapping[str, _Field]] = {
    **{
        name: _Field(cel.Type.STRING, "a text", _short(prefix), '"UNSPECIFIED"') for name, (prefix, _) in _ENUMS.items()
    },
    **dict.fromkeys(("uuid", "displayName", "description", "assigneeUuid"), _TEXT),
    **dict.fromkeys(("tags", "deviceUuids", "detectionUuids"), _TEXTS),
    **dict.fromkeys(("metrics.deviceCount", "metrics.executableCount", "metrics.processCount"), _INTEGER),
    **dict.fromkeys(("createTime", "updateTime"), _TIME),
    **dict.fromkeys(("responseDuration", "triageDuration"), _DURATION),
}
_EVENT: Final[Mapping[str, _Field]] = {
    **dict.fromkeys(("kind", "source", "origin"), _TEXT),
    "changed": _TEXTS,
    "sequence": _INTEGER,
}
_FIELDS: Final[Mapping[str, _Field]] = {
    **{f"incident.{name}": field for name, field in _INCIDENT.items()},
    **{f"event.{name}": field for name, field in _EVENT.items()},
    **{f"previous.{name}": _INCIDENT[name] for name in _NAMES},
}
FIELDS: Final = tuple(_FIELDS)
"""Every field that a rule may name."""

# Of our own making: nothing else can ever be there.
_CLOSED_SETS: Final[Mapping[str, Sequence[str]]] = {
    "event.kind": KINDS,
    "event.origin": ORIGINS,
    "event.changed": tuple(_NAMES),
}
_TIME_PARTS: Final = (
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
)
_TYPES: Final = ("bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "type", "uint")
_TYPE_NAMES: Final = {*_TYPES, "list", "map", "null_type", "google"}
_FUNCTIONS: Final = {"contains", "endsWith", "matches", "size", "startsWith", *_TYPES, *_TIME_PARTS}
_MACROS: Final[Mapping[str, str]] = {
    "all": 'all(t, t != "test")',
    "exists": 'exists(t, t == "vip")',
    "exists_one": 'exists_one(t, t == "vip")',
    "filter": 'filter(t, t != "test")',
    "map": 'map(t, t + "!")',
    "has": "has({}.x)",
}
# What a constant must be for these; found when the rule is read instead of at each event.
_PROBES: Final[Mapping[str, tuple[str, str]]] = {
    "matches": ('"".matches(value)', "a regular expression (RE2)"),
    "timestamp": ("string(timestamp(value))", 'a time; write it as timestamp("2026-01-31T00:00:00Z")'),
    "duration": ("string(duration(value))", 'a duration; write it as duration("90m")'),
    **dict.fromkeys(
        _TIME_PARTS,
        ("timestamp(0).getHours(value)", 'a time zone known here; write one such as "Europe/Vienna" or "+02:00"'),
    ),
}
_EXAMPLE: Final = 'incident.severity == "HIGH"'


@cache
def _environment() -> Any:
    return cel.NewEnv(variables={name: field.type for name, field in _FIELDS.items()})


@cache
def _probe(expression: str) -> Any:
    return cel.NewEnv(variables={"value": cel.Type.STRING}).compile(expression)


class Rule:
    """A condition, read once. `warnings` says what works and is probably not meant, to follow the setting's name."""

    def __init__(self, text: str) -> None:
        """Raises RuleError."""
        _check_text(text)
        env = _environment()
        try:
            survey = _Survey(text, env.compile(text, disable_check=True).serialize())
            program = env.compile(text)
        except RuntimeError as exc:
            raise RuleError(_complaint(text, str(exc))) from None
        given = program.return_type().name().lower()
        if given != "bool":
            raise RuleError(f"gives {given}, where true or false is needed; compare it, such as {_EXAMPLE}")
        self.text = text
        self.warnings = tuple(survey.warnings)
        self._program = program
        self._loops = survey.loops
        self._plan = [(name, *_place(name), _FIELDS[name].read) for name in FIELDS if name in survey.uses]
        self._decode = _decoder(survey.uses)
        self._asks_origin = "event.origin" in survey.uses

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"

    def matches(self, body: bytes, *, origin: str | None = None) -> Match:
        """Whether an event, given as its native JSON, goes to the sink. `origin` stands above the event's own.

        Never raises: what cannot be evaluated matches, with an error.
        """
        try:
            native = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Match(matched=True, error="the event cannot be read")
        data: dict[str, Any] = {}
        unread: list[str] = []
        for name, group, key, read in self._plan:
            try:
                data[name] = read(_value(native, group, key))
            except ValueError:
                unread.append(name)
        if origin is not None and self._asks_origin:
            data["event.origin"] = origin.encode(errors="replace").decode()
        return self._evaluate(data, unread)

    def matches_known(self, known: Known, *, source: str) -> Match:
        """Whether an incident in the state that the ledger holds would match, as an event of kind `created`.

        What the ledger does not hold (device and detection uuids, durations, long texts) cannot be told.
        """
        incident: dict[str, Any] = dict.fromkeys(_INCIDENT, _NOT_KEPT)
        incident |= {"uuid": known.uuid, "metrics": {}}
        incident |= {"createTime": format_instant(known.created), "updateTime": format_instant(known.updated)}
        for name, value in tracked(known).items():
            parent, _, child = name.partition(".")
            if child:
                incident[parent][child] = value
            else:
                incident[name] = value
        event = {"kind": "created", "source": source, "origin": "poll", "sequence": 1, "changed": [], "previous": {}}
        return self.matches(_encode({"event": event, "incident": incident}))

    def _evaluate(self, data: dict[str, Any], unread: Sequence[str]) -> Match:
        if self._loops.number and self._loops.work_microseconds(data) > MAX_WORK_MICROSECONDS:
            return Match(matched=True, error="the lists of this event are too long for the loops of the rule")
        try:
            result = self._program.eval(data=data).value()
        except _LIBRARY_ERRORS as exc:
            return Match(matched=True, error=_why(str(exc)))
        if result is True:
            return _YES
        if result is False:
            return _NO
        error = str(result)
        # Left unbound, so that `a || b` still holds when the other side does.
        name = next((name for name in unread if f'"{name}"' in error), None)
        if name is not None:
            return Match(matched=True, error=f"{name} is not {_FIELDS[name].shape}, or not kept in full")
        return Match(matched=True, error=_why(error))


_NOT_KEPT: Final = {"truncated": True}
_encode = msgspec.json.Encoder().encode


def _place(name: str) -> tuple[str, str]:
    group, _, key = name.partition(".")
    return group, key


def _decoder(uses: Iterable[str]) -> Callable[[bytes], Any]:
    """Reads of an event what the rule uses, and passes over the rest."""
    tops: dict[str, set[str]] = {"event": set(), "incident": set()}
    for name in uses:
        group, key = _place(name)
        tops["event" if group == "event" else "incident"].add(key.partition(".")[0])
        if group == "previous":
            tops["event"].add("previous")
    if tops["incident"] & {"createTime", "updateTime"}:
        tops["incident"] |= {"createTime", "updateTime"}
    parts = [
        (group, msgspec.defstruct(group, [(name, Any, None) for name in sorted(names)]))
        for group, names in tops.items()
    ]
    return msgspec.json.Decoder(msgspec.defstruct("native", parts)).decode


def _value(native: Any, group: str, key: str) -> Any:
    if group == "event":
        return getattr(native.event, key)
    if group == "previous":
        previous = native.event.previous
        if isinstance(previous, dict) and key in previous:
            return previous[key]
    parent, _, child = key.partition(".")
    value = getattr(native.incident, parent)
    if child:
        if value and not isinstance(value, dict):
            raise ValueError
        return value.get(child) if value else None
    if value is None and key in ("createTime", "updateTime"):
        return native.incident.createTime or native.incident.updateTime
    return value


def _why(error: str) -> str:
    """The library's reason, made fit for a log: foreign text may be in it."""
    _, _, reason = error.partition(": ")
    shown = inert((reason or error).removesuffix(" [INTERNAL]"))[:LONGEST_ERROR]
    return f"{shown[:1].lower()}{shown[1:]}"


# ---- What a rule asks, found in its syntax tree


class _Loops:
    """How much the loops of a rule may have to do. The library reads a field anew each time a loop comes to it.

    `inside` are the fields that are named within loops, as often as they are; `patterns` counts `matches` there.
    `longest` is the longest list in the rule itself, `builds` whether a loop makes a list.
    """

    def __init__(self) -> None:
        self.number = 0
        self.depth = 0
        self.longest = 0
        self.builds = False
        self.inside: list[str] = []
        self.patterns = 0

    def work_microseconds(self, data: Mapping[str, Any]) -> float:
        """An estimate from above, as measured: 4 entries or 100 characters a microsecond; building lists is square."""
        longest = max([self.longest, *(len(value) for value in data.values() if isinstance(value, list))])
        iterations = min(MAX_ITERATIONS, self.number * int(longest**self.depth))
        each = 1 + sum(_weight(data.get(name)) for name in self.inside) + PATTERN_MICROSECONDS * self.patterns
        each += longest / 10 if self.builds else 0
        return iterations * each


def _weight(value: Any) -> float:
    if isinstance(value, str):
        return len(value) / 100
    if isinstance(value, list):
        return len(value) / 4 + sum(map(len, value)) / 100
    return 0.2


class _Survey:
    """Walks the syntax tree of a rule: which fields it uses, how it loops, what in it cannot be meant.

    Raises RuleError. The scope maps the names that loops bring to what they run over. The field numbers are those of
    `cel.expr.Expr`: https://github.com/google/cel-spec/blob/master/proto/cel/expr/syntax.proto
    """

    def __init__(self, text: str, serialized: bytes) -> None:
        self._text = text
        parsed = _one(serialized, 2)
        self._positions: dict[int, int] = {}
        for number, value in _wire(_one(parsed, 3)):
            if number == 4:
                entry = dict(_wire(value))
                self._positions[entry[1]] = entry.get(2, 0)
        self.uses: set[str] = set()
        self.loops = _Loops()
        self.warnings: list[str] = []
        self._walk(_one(parsed, 2), {}, 0)

    def _walk(self, expr: bytes, scope: Mapping[str, str], depth: int) -> None:
        kind, body = _kind(expr)
        if kind == "name":
            self._name(expr, scope, depth)
        elif kind == "select":
            self._select(expr, body, scope, depth)
        elif kind == "call":
            self._call(expr, body, scope, depth)
        elif kind == "loop":
            self._loop(body, scope, depth)
        elif kind == "list":
            self.loops.longest = max(self.loops.longest, len(_all(body, 1)))
            for item in _all(body, 1):
                self._walk(item, scope, depth)
        elif kind == "struct":
            self.loops.longest = max(self.loops.longest, len(_all(body, 2)))
            for entry in _all(body, 2):
                for part in (*_all(entry, 3), *_all(entry, 4)):
                    self._walk(part, scope, depth)

    def _name(self, expr: bytes, scope: Mapping[str, str], depth: int) -> None:
        path = _path(expr)
        if path[0] in scope or path[0] in _TYPE_NAMES:
            return
        name = ".".join(path)
        if name not in _FIELDS:
            raise RuleError(_unknown_name(path, self._where(expr)))
        self.uses.add(name)
        if depth:
            self.loops.inside.append(name)

    def _select(self, expr: bytes, body: bytes, scope: Mapping[str, str], depth: int) -> None:
        path = _path(expr)
        if _test_only(body) and path and path[0] not in scope:
            name = ".".join(path)
            what = f"asks has({_shown(name)}) {self._where(expr)}, but every field has a value;"
            raise RuleError(f"{what} {_instead_of_has(name)}")
        if path:
            self._name(expr, scope, depth)
        else:
            self._walk(_one(body, 1), scope, depth)

    def _call(self, expr: bytes, body: bytes, scope: Mapping[str, str], depth: int) -> None:
        function, targets, args = _one(body, 2).decode(), _all(body, 1), _all(body, 3)
        if function[0].isalpha() and function not in _FUNCTIONS:
            raise RuleError(_unknown_function(function, self._where(expr, before=function)))
        if function == "matches" and depth:
            self.loops.patterns += 1
        if function in _PROBES and args:
            self._probe(function, args[-1])
        if function in {"_==_", "_!=_"}:
            for one, other in (args, args[::-1]):
                self._compared(_domain(one, scope), other)
        elif function == "@in":
            self._compared(_domain(args[1], scope) if _path(args[1]) == ["event", "changed"] else "", args[0])
            for item in _all(_kind(args[1])[1], 1) if _kind(args[1])[0] == "list" else ():
                self._compared(_domain(args[0], scope), item)
        for part in (*targets, *args):
            self._walk(part, scope, depth)

    def _loop(self, body: bytes, scope: Mapping[str, str], depth: int) -> None:
        over = _one(body, 2)
        self._walk(over, scope, depth)
        runs_over = _domain(over, scope)
        names = {part.decode(): "" for number in (1, 3, 8) for part in _all(body, number)}
        inner = {**scope, **names, _one(body, 1).decode(): runs_over}
        self.loops.number += 1
        self.loops.depth = max(self.loops.depth, depth + 1)
        self.loops.builds |= _kind(_one(body, 4))[0] == "list"
        for number in (5, 6):
            self._walk(_one(body, number), inner, depth + 1)
        self._walk(_one(body, 7), inner, depth)

    def _probe(self, function: str, arg: bytes) -> None:
        value = _string(arg)
        if value is None:
            return
        expression, what = _PROBES[function]
        result = _probe(expression).eval(data={"value": value})
        if result.type().name() == "ERROR":
            raise RuleError(f"gives {function} {_quoted(value)} {self._where(arg)}, which is not {what}")

    def _compared(self, domain: str, literal: bytes) -> None:
        """A field, or what a loop runs over, beside a constant that it can never or hardly be."""
        value = _string(literal)
        if value is None or not domain:
            return
        what = f"compares {domain} with {_quoted(value)} {self._where(literal)}"
        if domain in _CLOSED_SETS:
            if value not in _CLOSED_SETS[domain]:
                raise RuleError(f"{what}, which it never is; {_did_you_mean(value, _CLOSED_SETS[domain])}")
            return
        prefix, known = _ENUMS[domain.partition(".")[2]]
        if value.startswith(prefix):
            raise RuleError(f'{what}, but rules take short names; write "{_shown(value.removeprefix(prefix))}"')
        if value not in known:
            self.warnings.append(f"{what}, which is no value known today; {_did_you_mean(value, known)}")

    def _where(self, expr: bytes, *, before: str = "") -> str:
        """Where it begins; the library places a call at its bracket, `before` which the name stands."""
        while (kind := _kind(expr))[0] == "select":
            expr = _one(kind[1], 1)
        offset = self._positions.get(_number(expr, 2), 0)
        return _at(self._text, offset - len(before) if self._text[:offset].endswith(before) else offset)


_KINDS: Final = {3: "constant", 4: "name", 5: "select", 6: "call", 7: "list", 8: "struct", 9: "loop"}


def _wire(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: its number, and an integer or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        else:
            size, at = _varint(data, at) if tag & 7 == 2 else (8 if tag & 7 == 1 else 4, at)
            yield tag >> 3, data[at : at + size]
            at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _all(data: bytes, number: int) -> list[bytes]:
    return [value for found, value in _wire(data) if found == number]


def _one(data: bytes, number: int) -> bytes:
    return next((value for found, value in _wire(data) if found == number), b"")


def _number(data: bytes, number: int) -> int:
    return next((value for found, value in _wire(data) if found == number), 0)


def _kind(expr: bytes) -> tuple[str, bytes]:
    return next(((_KINDS[number], value) for number, value in _wire(expr) if number in _KINDS), ("", b""))


def _path(expr: bytes) -> list[str]:
    """The parts of a dotted name; empty when it is none."""
    kind, body = _kind(expr)
    if kind == "name":
        return [_one(body, 1).decode()]
    if kind == "select" and (path := _path(_one(body, 1))):
        return [*path, _one(body, 2).decode()]
    return []


def _test_only(select: bytes) -> bool:
    return bool(_number(select, 3))


def _string(expr: bytes) -> str | None:
    """The constant text that it is."""
    kind, body = _kind(expr)
    return next((value.decode() for number, value in _wire(body) if number == 6), None) if kind == "constant" else None


def _domain(expr: bytes, scope: Mapping[str, str]) -> str:
    """The field with a set of values that it is, or that a loop takes it from."""
    path = _path(expr)
    if len(path) == 1 and path[0] in scope:
        return scope[path[0]]
    name = ".".join(path)
    known = name in _CLOSED_SETS or (name in _FIELDS and name.partition(".")[2] in _ENUMS)
    return name if known else ""


# ---- What is said of it


def _check_text(text: str) -> None:
    if not text.strip():
        raise RuleError(f"is empty; write a condition, such as {_EXAMPLE}, or remove the key")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RuleError("holds what is not text; write it as UTF-8") from None
    if "\0" in text:
        raise RuleError("holds a NUL; remove it")


def _at(text: str, offset: int) -> str:
    line = text.count("\n", 0, offset) + 1
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    return f"in line {line}, column {column}" if "\n" in text.strip() else f"in column {column}"


def _shown(text: str) -> str:
    cut = inert(text)
    return cut if len(cut) <= LONGEST_QUOTE else f"{cut[:LONGEST_QUOTE]}…"


def _quoted(text: str) -> str:
    return f'"{_shown(text)}"'


def _did_you_mean(value: str, known: Sequence[str]) -> str:
    lowered = {name.lower(): name for name in reversed(known)}
    near = get_close_matches(value.lower(), lowered, 1, 0.6)
    return f'did you mean "{lowered[near[0]]}"?' if near else f"there are {', '.join(known)}"


def _unknown_name(path: Sequence[str], where: str) -> str:
    name = ".".join(path)
    what = f"holds {_shown(name)} {where}, which"
    below = [known for known in FIELDS if known.startswith(f"{name}.")]
    if below:
        return f"{what} is not a value by itself; name a field of it, such as {below[0]}"
    of = next((known for known in FIELDS if name.startswith(f"{known}.")), None)
    if of is not None:
        rest = name.removeprefix(f"{of}.")
        cure = f"write {of}.{rest}()" if rest in _FUNCTIONS else f"{of} is {_FIELDS[of].shape}"
        return f"{what} does not exist; {cure}"
    if path[0] == "previous" and ".".join(path[1:]) in _INCIDENT:
        return f"{what} is not kept; previous has {', '.join(_NAMES)}"
    if len(path) == 1 and any(name in known for _, known in _ENUMS.values()):
        return f'{what} is not a field; a value goes into quotes: "{name}"'
    lowered = {known.lower(): known for known in FIELDS}
    same_end = [known for known in FIELDS if known.lower().endswith(f".{path[-1].lower()}")]
    # The field's own name tells most: of the same group first, else incident's.
    same_end.sort(key=lambda known: not known.startswith(f"{path[0].lower()}."))
    near = [lowered[found] for found in get_close_matches(name.lower(), lowered, 1, 0.6)]
    if not near:
        ends = {known.rpartition(".")[2].lower(): known for known in reversed(FIELDS)}
        near = [ends[found] for found in get_close_matches(path[-1].lower(), ends, 1, 0.6)]
    best = next(iter([*same_end, *near]), None)
    return f"{what} does not exist; {f'did you mean {best}?' if best else 'docs/rules.md lists the fields'}"


def _unknown_function(function: str, where: str) -> str:
    what = f"calls {_shown(function)} {where},"
    if function in _MACROS:
        return f"{what} which is written as {_MACROS[function]}"
    if function.lower() in {"now", "today", "currenttime"}:
        return f"{what} but a rule knows no present time; it may ask for incident.updateTime"
    if function.lower() in {"lower", "upper", "lowerascii", "upperascii", "tolower"}:
        return f'{what} which does not exist; write matches("(?i)text") to pass over upper and lower case'
    lowered = {known.lower(): known for known in (*_MACROS, *_FUNCTIONS)}
    near = get_close_matches(function.lower(), lowered, 1, 0.6)
    cure = f"did you mean {lowered[near[0]]}?" if near else "docs/rules.md lists the functions"
    return f"{what} which does not exist; {cure}"


def _instead_of_has(name: str) -> str:
    if name.startswith("previous."):
        return 'ask for what has changed, such as "status" in event.changed'
    if name in _FIELDS:
        return f"without one it is {_FIELDS[name].absent}, so compare it with that"
    return "docs/rules.md lists the fields"


_ERROR: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_OVERLOAD: Final = re.compile(r"found no matching overload for '(\S+)' applied to '(.*)'$")
_OPERAND: Final = re.compile(r"expression of type '(.*)' cannot be the operand of a select operation")
_WORDS: Final = {"and": "&&", "or": "||", "not": "!", "is": "=="}
_SPELLED: Final = {
    "google.protobuf.Timestamp": "timestamp",
    "google.protobuf.Duration": "duration",
    "null_type": "null",
}


def _complaint(text: str, error: str) -> str:
    """The library's refusal in our words."""
    if "recursion" in error:
        return "is nested too deeply; at most 32 levels"
    if "codepoint limit" in error:
        return "is too long; at most 100,000 characters"
    match = _ERROR.search(error)
    if match is None:
        return f"is not CEL: {_why(error)}"
    line, column, what = int(match[1]), int(match[2]), match[3].strip().removesuffix(" [INVALID_ARGUMENT]")
    offset = sum(len(part) + 1 for part in text.split("\n")[: line - 1]) + column - 1
    where = _at(text, offset)
    if what.startswith("Syntax error"):
        return _syntax(text, offset, where)
    overload = _OVERLOAD.search(what)
    if overload:
        return _misfit(overload[1], overload[2], where)
    operand = _OPERAND.search(what)
    if operand:
        return f"asks for a field of {operand[1]} {where}, which has none; docs/rules.md lists the types"
    return f"is not CEL {where}: {_shown(what)}"


def _syntax(text: str, offset: int, where: str) -> str:
    rest, before = text[offset:], text[:offset].split()
    if not rest.strip():
        return "ends too early; complete the condition"
    if rest.startswith("="):
        return f"cannot be read {where}; write == to compare"
    if rest[0] in "\"'":
        return f"cannot be read {where}; a quote is not closed"
    found = re.match(r"\w+", rest)
    for word in (found[0] if found else "", before[-1] if before else ""):
        if word.lower() in _WORDS:
            return f"cannot be read {where}; write {_WORDS[word.lower()]} for {word}"
    return f"cannot be read {where}, at {_quoted(found[0] if found else rest[:1])}; docs/rules.md has examples"


def _misfit(function: str, types: str, where: str) -> str:
    for long, short in _SPELLED.items():
        types = types.replace(long, short)
    operator = "?:" if function == "_?_:_" else function.strip("_@")
    what = f"applies {operator} to {types} {where}, which do not fit;"
    if "null" in types:
        return f'{what} a field without value is "", 0 or []'
    if operator in {"&&", "||", "!"}:
        return f"{what} it takes conditions, such as {_EXAMPLE}"
    if "timestamp" in types and "string" in types:
        return f'{what} write the time as timestamp("2026-01-31T00:00:00Z")'
    if "duration" in types and "string" in types:
        return f'{what} write the duration as duration("90m")'
    if "int" in types and "double" in types:
        return f"{what} write a whole number, such as 3"
    if "int" in types and "string" in types and "list" not in types:
        return f"{what} numbers go without quotes, texts with"
    if "list" in types and operator in {"==", "!=", "contains", "startsWith", "endsWith", "matches"}:
        return f'{what} ask "vip" in incident.tags, or incident.tags.exists(t, t.contains("vip"))'
    return f"{what} compare like with like"
