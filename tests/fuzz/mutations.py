"""Valid pages of up to three incidents, and what may become of their bytes. One seed, one page."""

import json
import random
import re
from collections.abc import Callable
from typing import Any, Final

from relay.clock import SECOND
from relay.incidents import Known
from relay.simulator import Settings, Simulator
from tests.fuzz.oracle import rows_of
from tests.support.clock import FakeClock
from tests.support.simulator import Caller

BASES: Final = 120
MARGIN_SECONDS: Final = 200
"""The incidents are no older, so that a live poll would ask for them."""

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|-?[0-9][0-9.eE+-]*|true|false|null|[\[\]{}:,]', re.DOTALL)
_TIMES: Final = (
    "",
    " ",
    "0000-00-00T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+23:59",
    "1677-09-21T00:12:43.145224193Z",
    "1677-09-21T00:12:43.145224191Z",
    "1969-12-31T23:59:59.999999999Z",
    "1970-01-01T00:00:00Z",
    "2262-04-11T23:47:16.854775807Z",
    "2262-04-11T23:47:16.854775808Z",
    "9999-12-31T23:59:59.999999999Z",
    "9999-12-31T23:59:60-23:59",
    "10000-01-01T00:00:00Z",
    "+2026-05-28T20:26:40Z",
    "2026-05-28T23:59:60Z",
    "2026-05-28T20:26:61Z",
    "2026-05-28T24:00:00Z",
    "2026-02-29T00:00:00Z",
    "2026-05-28T20:26:40+99:99",
    "2026-05-28T20:26:40-00:00",
    "2026-05-28T20:26:40.Z",
    "2026-05-28T20:26:40,5Z",
    "2026-05-28T20:26:40." + "9" * 400 + "Z",
    "2026-05-28t20:26:40z",
    "2026-05-28 20:26:40Z",
    "2026-05-28T20:26:40",
    "2026-05-28",
    "２０２６-05-28T20:26:40Z",  # digits, but not those of RFC 3339
    "2026-05-28T20:26:40.١Z",
    "2026-05-28T20:26:4\u0000Z",
    "1780000000",
    "now",
)
_TEXTS: Final = (
    "",
    "\u0000",
    "a\u0000b",
    "\ud800",
    "x\udc00\ud800y",
    "\ufeff",
    "\u202eevil",
    "☃😀",
    "{{7*7}}",
    "'; DROP TABLE incident; --",
    "<!channel> </script>",
    '"\\',
    "\\ud800",
    "\n\r\t\x1b[2J",
    "x" * 1023,
    "x" * 1100,
    "é" * 700,
    "u" * 70_000,
    "..",
    "/",
    "9" * 400,
    "9" * 4300,
    "9" * 4301,
    "-0",
    "1_000",
    "١٢",
    "1e3",
    "NaN",
    "INCIDENT_STATUS_CLOSED",
)
_NUMBERS: Final = (
    *(0, -0.0, 1, -1, 1.5, 3.0, 1e300, -1e300, 5e-324, 1 << 53, 1 << 63, (1 << 63) - 1, -(1 << 63), 1 << 64, 10**30),
    10**300,
)
_SPELLINGS: Final = (
    *(b"1e400", b"-1e400", b"1E+2", b"-0", b"01", b"+1", b".5", b"5.", b"NaN", b"-Infinity", b"0x10", b"1e-999999"),
    *(b"9" * 400, b"9" * 4300, b"9" * 4301, b"1." + b"0" * 500 + b"1", b"9" * 60 + b"e999"),
    *(b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\x00"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc3"', b'"\\u12"'),
    *(b'"\\x"', b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"{}", b"[]", b'{"a":1,"a":2}', b"//x"),
    b"[" * 90 + b"]" * 90,
    b"[" * 150 + b"]" * 150,
    b'{"a":' * 60 + b"1" + b"}" * 60,
    b'{"a":' * 400 + b"1" + b"}" * 400,
    b"[" * 970 + b"]" * 970,
    b"[" * 3000 + b"]" * 3000,
    b"[" * 3000,
    b'[{"a":' * 700 + b"1" + b"}]" * 700,
)
_BYTES: Final = (*(bytes([n]) for n in (0, 8, 9, 10, 13, 31, 32, 34, 44, 58, 91, 92, 93, 123, 125, 127, 128, 255)),)
_FIELDS: Final = (
    *("uuid", "createTime", "updateTime", "status", "severity", "resolveReason", "assigneeUuid", "displayName"),
    *("description", "tags", "metrics", "deviceUuids", "responseDuration", "brandNew"),
)
_METRICS: Final = ("deviceCount", "executableCount", "processCount", "brandNew")
_HOSTILE: Final = {
    "brandNew": {"nested": [{"a": [1.50, "2", None, {"b": {}}]}, [], ""], "big": 12345678901234567890123},
    "displayName": 'Mallory\u202e "}],"nextPageToken":"x" \\ud800 \u0000 <!channel>',
}


class Base:
    """A page as the API would answer it, and what the ledger knew of its incidents."""

    def __init__(self, body: bytes, known: dict[str, Known]) -> None:
        self.body = body
        self.known = known
        self.spans = [found.span() for found in _TOKEN.finditer(body)]


def bases(seed: int) -> list[Base]:
    """Pages of the simulator, with every choice that its settings leave open."""
    rng = random.Random(f"{seed}/bases")
    return [_base(rng, number) for number in range(BASES)]


def _base(rng: random.Random, number: int) -> Base:
    settings = Settings(
        last_page=rng.choice(("empty_token", "no_token", "mixed")),
        time_digits=rng.choice((0, 3, 6, 7, 9, "mixed")),
        time_offset_minutes=rng.choice((0, 0, 120, -330, "mixed")),
        new_update_time=rng.choice(("created", "missing", "mixed")),
        missing_time=rng.choice(("absent", "null", "empty")),
        integers=rng.choice(("numbers", "strings", "mixed")),
        list_details=rng.choice(("absent", "empty")),
    )
    clock = FakeClock()
    simulator = Simulator(clock, seed=rng.getrandbits(32), settings=settings)
    tenant = simulator.add_tenant("acme", "password")
    for _ in range(number % 4):
        age = rng.randrange(MARGIN_SECONDS * SECOND)
        tenant.create(rng.choice((None, _HOSTILE)), created=clock.now() - age)
    if number % 3 == 1:
        tenant.close(tenant.pick(1))
    body = Caller(simulator, "acme").page("", "create_time", page_size=rng.choice((2, 3, 5))).body
    return Base(body, rows_of(body))


def mutated(base: Base, other: Base, rng: random.Random) -> bytes:
    """The page after one to three mutations."""
    body = base.body
    if rng.random() < 0.6:
        body = _restructured(body, rng)
        spans = None
    else:
        spans = base.spans
    for _ in range(rng.choice((0, 0, 0, 1)) if spans is None else rng.choice((1, 1, 2, 3))):
        body = _retokened(body, spans, rng) if rng.random() < 0.5 else rng.choice(_ON_BYTES)(body, other.body, rng)
        spans = None
    return body


# -- bytes ------------------------------------------------------------------------------------------------------------


def _flipped(body: bytes, _other: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + bytes([b ^ (1 << rng.randrange(8)) for b in body[at : at + 1]]) + body[at + 1 :]


def _inserted(body: bytes, _other: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.choice(_BYTES) * rng.choice((1, 1, 3)) + body[at + rng.randrange(2) :]


def _deleted(body: bytes, _other: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + body[at + rng.choice((1, 1, 2, 7, 60)) :]


def _doubled(body: bytes, _other: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    end = at + rng.choice((1, 5, 80, 500))
    return body[:end] + body[at:end] + body[end:]


def _truncated(body: bytes, _other: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _joined(body: bytes, other: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (body + other, body + b"\n" + other, body + b"\x00", b"\xef\xbb\xbf" + body, b" \n" + body + b"\r\n")
    )


def _spliced(body: bytes, other: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body) + 1)] + other[rng.randrange(len(other) + 1) :]


_ON_BYTES: Final[tuple[Callable[[bytes, bytes, random.Random], bytes], ...]] = (
    *(_flipped, _inserted, _deleted, _doubled, _truncated, _joined, _spliced),
)

# -- tokens -----------------------------------------------------------------------------------------------------------


def _retokened(body: bytes, spans: list[tuple[int, int]] | None, rng: random.Random) -> bytes:
    spans = spans or [found.span() for found in _TOKEN.finditer(body)]
    if not spans:
        return body
    start, end = rng.choice(spans)
    match rng.randrange(5):
        case 0:
            (first, upto), (start, end) = sorted((rng.choice(spans), (start, end)))
            if upto > start:
                return body
            return body[:first] + body[start:end] + body[upto:start] + body[first:upto] + body[end:]
        case 1:
            return body[:start] + body[end:]
        case 2:
            return body[:end] + body[start:end] + body[end:]
        case _:
            return body[:start] + rng.choice(_SPELLINGS) + body[end:]


# -- structure --------------------------------------------------------------------------------------------------------


def _restructured(body: bytes, rng: random.Random) -> bytes:
    page: dict[str, Any] = json.loads(body)
    records: list[Any] = page["incidents"]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if records and rng.random() < 0.9:
            _mutate_record(records, rng)
        else:
            _mutate_page(page, rng)
    text = json.dumps(page, ensure_ascii=rng.random() < 0.5, separators=rng.choice(((",", ":"), (", ", ": "))))
    if rng.random() < 0.1:
        name = rng.choice(_FIELDS)
        text = text.replace(f'"{name}"', f'"{rng.choice(_FIELDS)}"')  # a repeated key
    return text.encode("utf-8", "surrogatepass")


def _mutate_record(records: list[Any], rng: random.Random) -> None:
    at = rng.randrange(len(records))
    record = records[at]
    if not isinstance(record, dict) or rng.random() < 0.08:
        records[at] = _odd(rng)
        return
    match rng.randrange(6):
        case 0:
            record.pop(rng.choice(_FIELDS), None)
        case 1:
            record[rng.choice(("createTime", "updateTime"))] = rng.choice(_TIMES)
        case 2:
            metrics = record.get("metrics")
            if isinstance(metrics, dict):
                metrics[rng.choice(_METRICS)] = _odd(rng)
        case 3:
            records.insert(rng.randrange(len(records) + 1), dict(record))
        case _:
            record[rng.choice(_FIELDS)] = _odd(rng)


def _mutate_page(page: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(("incidents", "nextPageToken", "code", "message", "error", "brandNew"))
    if name != "incidents" or rng.random() < 0.2:
        page[name] = _odd(rng)


def _odd(rng: random.Random) -> Any:
    match rng.randrange(8):
        case 0 | 1:
            return rng.choice(_TEXTS)
        case 2:
            return rng.choice(_NUMBERS)
        case 3:
            return rng.choice((None, True, False, [], {}, [[]], {"": ""}))
        case 4:
            return [rng.choice(_TEXTS), *([_odd(rng)] if rng.random() < 0.5 else [])]
        case 5:
            return {rng.choice(_TEXTS): _odd(rng), "truncated": True}
        case 6:
            return rng.choice(_TIMES)
        case _:
            return [rng.choice(_NUMBERS), "a", None, "a"]
