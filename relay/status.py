"""The status document (`/api/status`, `relay status --json`), made from plain facts. Pure: knows no task, no socket."""

from dataclasses import dataclass, field
from typing import Literal

from relay.clock import Instant

SourceState = Literal["starting", "ok", "throttled", "failing", "refused", "stopped"]
SinkState = Literal["ok", "failing", "paused", "parked", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What one source's task knows of itself."""

    name: str
    region: str
    """`eu` …, or the host of an explicit base_url."""
    state: SourceState
    since: Instant
    error: str
    hint: str
    failures: int
    last_poll: Instant | None
    next_poll: Instant | None
    poll_interval_seconds: float
    throttled_until: Instant | None
    complete_up_to: Instant | None
    start_from: Instant | None
    first_start: Instant | None
    backfill: Literal["not_wanted", "running", "done"]
    backfill_up_to: Instant | None
    ledger_incidents: int
    clock_skew_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkFacts:
    """What one sink's courier knows of itself."""

    name: str
    type: str
    target: str
    """Where it goes, without any secret: a topic, a path; empty where there is nothing to say."""
    state: SinkState
    since: Instant | None
    reason: str
    failures: int
    next_try: Instant | None
    paused_until: Instant | None
    waiting: int
    oldest: Instant | None
    last_success: Instant | None
    delivered: int
    dead_letters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFacts:
    """Everything that the status says, in one moment."""

    now: Instant
    version: str
    process: str
    started: Instant
    sources: list[SourceFacts] = field(default_factory=list)
    sinks: list[SinkFacts] = field(default_factory=list)
    journal_kind: Literal["sqlite", "kafka"] = "sqlite"
    journal_used_bytes: int | None = None
    journal_limit_bytes: int | None = None
    journal_oldest_event: Instant | None = None
    polling_stopped_reason: str | None = None
    polling_stopped_since: Instant | None = None
    budget_requests_per_second: float = 0.0
    used_requests_per_second: float = 0.0
