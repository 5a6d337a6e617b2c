"""What can go wrong with a simulated ESET Connect, on demand: a queue of rules that requests are matched against.

Every rule that matches a request takes effect, in the order of injection, up to the first that settles the answer
(`answer`, `pending`, `close`, `reset`); rules behind that one are not used up. So 503 twice and then 429 once are two
rules.
"""

import random
from typing import Annotated, Final, Literal

import msgspec

from relay.clock import Clock

Operation = Literal["login", "refresh", "list", "get", "change", "other"]
Effect = Literal[
    "answer",
    "pending",
    "close",
    "reset",
    "latency",
    "truncate",
    "repeat_page",
    "loop_token",
    "short_page",
    "ignore_filter",
    "ignore_order",
    "refuse_filter",
    "refuse_z",
    "refuse_uuid_order",
    "truncate_times",
]
SETTLING: Final = frozenset[Effect]({"answer", "pending", "close", "reset"})
ANY_OPERATION: Final = SETTLING | {"latency", "truncate"}
"""Effects that apply to every operation; all others only ever match lists."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One rule.

    answer: `status`, `headers` and `body` instead of the real answer (a 429, an HTML page with 200, `null` …).
    pending: 202 with a response-id for the first `polls` requests of a chain, then the real answer as it was at the
    first request; with `status` other than 200 that status instead (504; 404 for an id that got lost). `body` is that
    of the 202.
    close, reset: the connection ends without an answer (FIN or RST).
    latency: the answer comes `delay_seconds` late, with the state as it was when the request came.
    truncate: the connection ends after `keep_bytes` of the body (half of it if not given).
    repeat_page: the previous list answer of the tenant once more.
    loop_token: `nextPageToken` is the token of the request (of a first page: its own, real one).
    short_page: half the page, with a token that goes on after it.
    ignore_filter, ignore_order: as if not given. refuse_filter, refuse_z (timestamps with `Z`), refuse_uuid_order: 400.
    truncate_times: a filter compares stored times cut to whole seconds, as a coarser database column would.
    """

    effect: Effect
    tenant: str = ""
    """A user name; empty: every request, identified or not."""
    on: Literal["any", "data", "login", "refresh", "list", "get", "change"] = "any"
    """login: both grants; data: all but those."""
    after: Count = 0
    """So many matching requests pass unharmed first."""
    count: Count | None = None
    """So many requests, then the rule is gone. None: until removed."""
    duration_seconds: float | None = None
    """From the injection on, by the monotonic clock."""
    probability: Share = 1.0
    status: int = 200
    headers: dict[str, str] = {}
    body: str = ""
    delay_seconds: float = 0
    polls: Annotated[int, msgspec.Meta(ge=1)] = 1
    keep_bytes: Count | None = None


class Injected(msgspec.Struct, kw_only=True):
    """A fault in the queue, and what is left of it."""

    id: int
    fault: Fault
    ends: float | None
    passing: int
    left: int | None

    def is_over(self, monotonic: float) -> bool:
        """Whether it will never match again."""
        return self.left == 0 or (self.ends is not None and monotonic >= self.ends)


class FaultQueue:
    """Holds the rules and says which of them a request meets."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._rules: list[Injected] = []
        self._last_id = 0

    def inject(self, fault: Fault) -> int:
        """Adds a rule, effective now. Returns its id."""
        self._last_id += 1
        ends = None if fault.duration_seconds is None else self._clock.monotonic() + fault.duration_seconds
        self._rules.append(
            Injected(id=self._last_id, fault=fault, ends=ends, passing=fault.after, left=fault.count),
        )
        return self._last_id

    def remove(self, rule_id: int) -> bool:
        """Removes a rule; False if there is none of that id."""
        before = len(self._rules)
        self._rules = [rule for rule in self._rules if rule.id != rule_id]
        return len(self._rules) < before

    def clear(self) -> None:
        """Removes every rule."""
        self._rules = []

    def active(self) -> list[Injected]:
        """The rules that may still match."""
        now = self._clock.monotonic()
        self._rules = [rule for rule in self._rules if not rule.is_over(now)]
        return list(self._rules)

    def met_by(self, operation: Operation, username: str, *, has_response_id: bool) -> list[Fault]:
        """The faults of one request, and counts it against them."""
        met: list[Fault] = []
        for rule in self.active() if self._rules else ():
            if not _matches(rule.fault, operation, username, has_response_id=has_response_id):
                continue
            if rule.passing:
                rule.passing -= 1
                continue
            if rule.fault.probability < 1 and self._rng.random() >= rule.fault.probability:
                continue
            if rule.left is not None:
                rule.left -= 1
            met.append(rule.fault)
            if rule.fault.effect in SETTLING:
                break
        return met


def _matches(fault: Fault, operation: Operation, username: str, *, has_response_id: bool) -> bool:
    if fault.tenant and fault.tenant != username:
        return False
    if fault.effect == "pending" and has_response_id:
        return False
    if fault.effect not in ANY_OPERATION:
        return operation == "list" and fault.on in {"any", "data", "list"}
    match fault.on:
        case "any":
            return True
        case "data":
            return operation not in {"login", "refresh"}
        case "login":
            return operation in {"login", "refresh"}
        case wanted:
            return operation == wanted
