"""What each part of the relay knows of itself, as plain facts: what the status is made of. No sentence, no JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from relay.clock import SECOND, Instant
from relay.states import Mode, SinkState, View

SourceState = Literal["starting", "ok", "throttled", "failing", "refused", "stopped"]
Needs = Literal["person", "wait"]
CheckOutcome = Literal["ok", "warn", "fail", "skip"]
FILLING_RATIO: Final = 0.8
FULL_RATIO: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One thing that `relay check` tried: what was found, and what to do about it."""

    outcome: CheckOutcome
    name: str
    text: str
    cure: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollFacts:
    """How one poll ended. `outcome` is `ok` or the reason why it failed."""

    finished: Instant
    outcome: str
    duration_seconds: float
    pages: int
    incidents: int
    changes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WayFacts:
    """How one view is read. `reason` says why not `keyset`."""

    mode: Mode = "keyset"
    since: Instant | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFacts:
    """What the sweeps do and found. The counts are those of the last one; `suspended`: too many were missing."""

    running: bool = False
    finished: Instant | None = None
    suspended: bool = False
    late: int = 0
    silent: int = 0
    missing: int = 0


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
    """When the last poll succeeded."""
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
    error_reason: str = ""
    """The metric label of `error`."""
    poll: PollFacts | None = None
    """The last poll that ended, well or not."""
    backfill_incidents: int = 0
    """Rows that the backfill read; some of them twice where pages overlap."""
    backfill_from: Instant | None = None
    """The earliest time that the backfill met; None before its first page."""
    backfill_finished: Instant | None = None
    backfill_estimate: Instant | None = None
    """When it ends at its present pace; None when that can't be told."""
    dead_letters: int = 0
    """Records that could not be read."""
    dead_since: Instant | None = None
    ways: Mapping[View, WayFacts] = field(default_factory=dict)
    """How each view is read; what is not named is read by keyset."""
    sweep: SweepFacts = field(default_factory=SweepFacts)

    def way(self, view: View) -> WayFacts:
        """How this view is read."""
        return self.ways.get(view, WayFacts())


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
    """Events acknowledged within the last hour."""
    dead_letters: int
    error_reason: str = ""
    """The metric label of `reason`."""
    dead_since: Instant | None = None
    retrying: int = 0
    """Of those that wait, how many were tried before."""
    parks: Instant | None = None
    """When a failing one is given up; None when it is not, or never."""
    keep_seconds: float | None = None
    """How long what waits is kept."""
    max_age_seconds: float | None = None
    """What is older is skipped by a sink that people read."""
    notified: str = ""
    """The sink that was told that this one is parked."""

    @property
    def expires(self) -> Instant | None:
        """When the oldest waiting event expires or is skipped, at the latest; None when nothing waits."""
        limits = [seconds for seconds in (self.keep_seconds, self.max_age_seconds) if seconds is not None]
        return None if self.oldest is None or not limits else self.oldest + int(min(limits) * SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFacts:
    """One field that changed, as text; both None where the values are too long to show, or hidden."""

    field: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFacts:
    """One event as it is shown. Title, uuid and values are foreign text; the title is empty when titles are hidden."""

    id: str
    observed: Instant
    updated: Instant
    source: str
    origin: str
    kind: str
    sequence: int
    uuid: str
    title: str
    severity: str
    status: str
    changed: Sequence[ChangeFacts]
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LagFacts:
    """The greatest lag of each minute up to `end`, oldest first; None where it is not known."""

    end: Instant
    read_seconds: Sequence[float | None]
    delivered_seconds: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFacts:
    """One dead letter: an event that a sink refused, or a record of a source that could not be read."""

    id: str
    component: Literal["source", "sink"]
    name: str
    since: Instant
    source: str
    reason: str
    """As it was given: a label, `label: text`, or text."""
    attempts: int
    uuid: str = ""
    sequence: int = 0
    severity: str = ""
    title: str = ""
    """Foreign text; empty when titles are not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """Another process of the same relay, as it last said."""

    name: str
    reported: Instant
    sources_held: int
    sinks_held: int


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
    journal_filling_since: Instant | None = None
    """Since when more than FILLING_RATIO of the journal is in use."""
    polling_stopped_reason: str | None = None
    polling_stopped_by: str = ""
    """The metric label of that reason."""
    polling_stopped_since: Instant | None = None
    budget_requests_per_second: float = 0.0
    used_requests_per_second: float = 0.0
    dead_letters: Sequence[DeadFacts] = ()
    """The newest, newest first."""
    events: Sequence[EventFacts] = ()
    """The newest, newest first."""
    lag: LagFacts | None = None
    journal_growth_bytes_per_day: float | None = None
    held: tuple[int, int] | None = None
    """How many sources and sinks this process holds; None: all."""
    others: Sequence[ProcessFacts] = ()
    """The other processes of this relay."""

    @property
    def fill_ratio(self) -> float | None:
        """The share of the journal that is in use; None when it has no limit."""
        if self.journal_used_bytes is None or not self.journal_limit_bytes:
            return None
        return self.journal_used_bytes / self.journal_limit_bytes

    @property
    def read_up_to(self) -> Instant | None:
        """Every source is read up to here; None: one is unread."""
        return read_up_to(self.sources)

    @property
    def delivered_up_to(self) -> Instant | None:
        """Everything up to here is in every sink that is neither parked nor disabled; None: a source is unread."""
        return delivered_up_to(self.sources, self.sinks)


def delivered_up_to(sources: Sequence[SourceFacts], sinks: Sequence[SinkFacts]) -> Instant | None:
    """Up to where everything of these sources is in each of these sinks; those that are stopped don't count."""
    read = read_up_to(sources)
    waiting = [sink.oldest for sink in sinks if sink.state not in ("parked", "disabled") and sink.oldest is not None]
    return None if read is None else min([read, *waiting])


def read_up_to(sources: Sequence[SourceFacts]) -> Instant | None:
    """Up to where all of these are read; None when one of them is unread."""
    known = [source.complete_up_to for source in sources if source.complete_up_to is not None]
    return min(known) if known and len(known) == len(sources) else None
