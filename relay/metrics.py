"""Every metric of the relay, in one place, each with what it means. Counting only; serving them is `relay.web`.

Counters of every label set start at zero; a timestamp gauge does not exist before its first value. The texts are the
table of docs/metrics.md as well: what stands behind "; absent" is when the metric is not there.
"""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from relay import __version__
from relay.clock import SECOND, Clock, Instant
from relay.errors import JOURNAL_REASONS, SOURCE_REASONS
from relay.incidents import KINDS, Event
from relay.states import MODES, SINK_STATES, VIEWS, Mode, SinkState, View

PollOutcome = Literal["complete", "failed"]
DeliveryOutcome = Literal["delivered", "accepted", "retried", "dead", "skipped", "superseded", "expired"]
LIVE_ORIGINS: Final = ("poll", "backfill")
SEVERITIES: Final = ("UNSPECIFIED", "LOW", "MEDIUM", "HIGH")
SKIPPED_REASONS: Final = ("when", "backfill", "max_age")
THROTTLING_CODES: Final = ("202", "429", "500", "502", "503", "504")
LAG_BUCKETS_SECONDS: Final = (0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120, 300, 600, 1800, 3600, 14_400, 86_400)
POLL_BUCKETS_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""A query that is not ready at once may take 10 minutes."""
DELIVERY_BUCKETS_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30)

# A series beside each counter that says when it was made would double the scrape.
disable_created_metrics()  # type: ignore[no-untyped-call]


class _Unnamed(Collector):
    """Shows a counter whose name, less `_total`, a gauge has as well: the text format tells the two apart."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def collect(self) -> Iterable[Metric]:
        """The counter's own."""
        return self._counter.collect()


class Metrics:
    """The registry of one relay."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.registry = registry = CollectorRegistry()
        # -- reading
        self.polls = Counter("relay_polls", "Live polls, by how they ended.", ["source", "outcome"], registry=registry)
        self.poll_duration = Histogram(
            "relay_poll_duration_seconds",
            "How long a live poll took, whether it succeeded or not.",
            ["source"],
            buckets=POLL_BUCKETS_SECONDS,
            registry=registry,
        )
        self.last_successful_poll = Gauge(
            "relay_last_successful_poll_timestamp_seconds",
            "When the last poll that read every page ended; absent until one has since the start.",
            ["source"],
            registry=registry,
        )
        self.complete_up_to = Gauge(
            "relay_complete_up_to_timestamp_seconds",
            "The instant up to which every page has been read and committed; absent until a poll has read every page.",
            ["source"],
            registry=registry,
        )
        self.backfill_up_to = Gauge(
            "relay_backfill_up_to_timestamp_seconds",
            "How far the reading of the past has got; absent before its first page, and when none is wanted.",
            ["source"],
            registry=registry,
        )
        self.incidents_fetched = Counter(
            "relay_incidents_fetched", "Incidents in the pages that were read.", ["source"], registry=registry
        )
        self.events = Counter(
            "relay_events", "Versions committed to the journal.", ["source", "kind", "origin"], registry=registry
        )
        self.late_arrivals = Counter(
            "relay_late_arrivals",
            "Versions older than what was complete when they were met for the first time.",
            ["source"],
            registry=registry,
        )
        self.silent_changes = Counter(
            "relay_silent_changes", "Changes that came without a new update time.", ["source"], registry=registry
        )
        self.stale_versions = Counter(
            "relay_stale_versions", "Sights of an older version, ignored.", ["source"], registry=registry
        )
        self.ledger_incidents = Gauge(
            "relay_ledger_incidents",
            "Incidents that the ledger knows; absent until they are counted.",
            ["source"],
            registry=registry,
        )
        self.source_mode = Gauge(
            "relay_source_mode",
            "1 for the mode in which the view is read, 0 for the others.",
            ["source", "view", "mode"],
            registry=registry,
        )
        self.reconcile_suspended = Gauge(
            "relay_reconcile_suspended",
            "1 while the last sweep missed more incidents than is believed: none of them is emitted.",
            ["source"],
            registry=registry,
        )
        self.clock_skew = Gauge(
            "relay_clock_skew_seconds",
            "The server's clock less ours; absent until an answer told.",
            ["source"],
            registry=registry,
        )
        self.poll_interval = Gauge(
            "relay_poll_interval_seconds",
            "The interval at which the source is polled at present, stretched where the rate demands it.",
            ["source"],
            registry=registry,
        )
        # -- the API
        self.api_requests = Counter(
            "relay_api_requests",
            "Requests to ESET Connect, by HTTP status or by why none came.",
            ["source", "code"],
            registry=registry,
        )
        self.api_throttled = Counter(
            "relay_api_throttled",
            "Answers that asked for less haste, of those after which we waited: 202, 429, 50x.",
            ["source", "code"],
            registry=registry,
        )
        self.api_backoff = Gauge(
            "relay_api_backoff_seconds",
            "Seconds left of the pause that the account was asked for; 0 when none.",
            ["source"],
            registry=registry,
        )
        self.api_backoff_total = Counter(
            "relay_api_backoff_seconds", "Seconds of waiting that these answers imposed.", ["source"], registry=None
        )
        registry.register(_Unnamed(self.api_backoff_total))
        # -- sending
        self.deliveries = Counter(
            "relay_deliveries",
            "Deliveries, by what became of them and why; a delivery may be retried more than once.",
            ["sink", "outcome", "reason"],
            registry=registry,
        )
        self.delivery_duration = Histogram(
            "relay_delivery_seconds",
            "How long the far side took to acknowledge a batch or message.",
            ["sink"],
            buckets=DELIVERY_BUCKETS_SECONDS,
            registry=registry,
        )
        self.lag = Histogram(
            "relay_lag_seconds",
            "From update time to acknowledgement, of what live polling found.",
            ["sink"],
            buckets=LAG_BUCKETS_SECONDS,
            registry=registry,
        )
        self.backlog = Gauge("relay_backlog_events", "Events that wait for the sink.", ["sink"], registry=registry)
        self.backlog_oldest = Gauge(
            "relay_backlog_oldest_timestamp_seconds",
            "When the oldest waiting event was committed; absent when nothing waits.",
            ["sink"],
            registry=registry,
        )
        self.dead_letters = Gauge(
            "relay_dead_letters",
            "Dead letters that are kept: records of a source, or events for a sink.",
            ["component", "name"],
            registry=registry,
        )
        self.expired = Counter(
            "relay_expired",
            "Events that a sink did not take within `keep`: it will not get them any more.",
            ["sink", "severity"],
            registry=registry,
        )
        self.sink_state = Gauge(
            "relay_sink_state",
            "1 for the state that the sink is in, 0 for the others.",
            ["sink", "state"],
            registry=registry,
        )
        self.sink_paused_until = Gauge(
            "relay_sink_paused_until_timestamp_seconds",
            "Until when the far side asked to wait; absent when it does not.",
            ["sink"],
            registry=registry,
        )
        # -- the relay itself
        self.errors = Counter(
            "relay_errors",
            "Failed polls, backfills and sweeps, unreadable records, failed rules, refusals of the journal.",
            ["component", "reason"],
            registry=registry,
        )
        self.journal_bytes = Gauge(
            "relay_journal_bytes", "Bytes of the journal in use: its pages less the free ones.", registry=registry
        )
        self.journal_limit = Gauge(
            "relay_journal_limit_bytes",
            "The journal may have so many bytes: max_bytes. Polling stops at 90 %.",
            registry=registry,
        )
        self.polling_stopped = Gauge(
            "relay_polling_stopped",
            "1 while polling waits for the journal for this reason.",
            ["reason"],
            registry=registry,
        )
        self.tasks_held = Gauge(
            "relay_tasks_held", "Sources and sinks that this process owns.", ["kind"], registry=registry
        )
        self.build_info = Gauge("relay_build_info", "1 for the running version.", ["version"], registry=registry)
        self.build_info.labels(__version__).set(1)
        self._sources: dict[str, SourceMetrics] = {}
        self._labelled: list[MetricWrapperBase] = [
            one for one in vars(self).values() if isinstance(one, MetricWrapperBase)
        ]
        self._stopped: dict[str, str] = {}
        for reason in JOURNAL_REASONS:
            self.polling_stopped.labels(reason).set(0)
            self.errors.labels("journal", reason)

    def journal_failed(self, reason: str) -> None:
        """A call to the journal failed for this reason."""
        self.errors.labels("journal", reason).inc()

    def waits_for_journal(self, who: str, reason: str) -> None:
        """This reader waits for the journal, for this reason; an empty one: it goes on."""
        self._stopped[who] = reason
        for one in JOURNAL_REASONS:
            self.polling_stopped.labels(one).set(one in self._stopped.values())

    def remove(self, **labels: str) -> None:
        """Drops every series that has all of these labels."""
        self._sources.pop(labels.get("source", ""), None)
        for metric in self._labelled:
            if labels.keys() <= set(metric._labelnames):
                metric.remove_by_labels(labels)

    def source(self, name: str) -> "SourceMetrics":
        """The metrics of one source, its counters at zero; the same for everything that counts for it."""
        if name not in self._sources:
            self._sources[name] = SourceMetrics(self, name)
        return self._sources[name]

    def sink(self, name: str, *, owned: bool = True, shared: bool = False) -> "SinkMetrics":
        """The metrics of one sink, its counters at zero."""
        return SinkMetrics(self, name, owned=owned, shared=shared)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one source has done in a while: the figures of its summary."""

    polls: int = 0
    failed: int = 0
    pages: int = 0
    incidents: int = 0
    events: collections.Counter[str] = field(default_factory=collections.Counter)
    late: int = 0
    bad: int = 0
    requests: int = 0
    throttled_seconds: float = 0.0


class SourceMetrics:
    """Counts for one source."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name
        self._tally = Tally()
        for outcome in get_args(PollOutcome):
            metrics.polls.labels(name, outcome)
        for kind in KINDS:
            for origin in LIVE_ORIGINS:
                metrics.events.labels(name, kind, origin)
        for counter in (
            metrics.incidents_fetched,
            metrics.late_arrivals,
            metrics.silent_changes,
            metrics.stale_versions,
            metrics.api_backoff_total,
        ):
            counter.labels(name)
        for code in ("200", "429"):
            metrics.api_requests.labels(name, code)
        for code in THROTTLING_CODES:
            metrics.api_throttled.labels(name, code)
        for reason in ("bad_record", *SOURCE_REASONS):
            metrics.errors.labels(f"source {name}", reason)
        metrics.poll_duration.labels(name)
        metrics.dead_letters.labels("source", name).set(0)
        metrics.api_backoff.labels(name).set(0)
        metrics.reconcile_suspended.labels(name).set(0)
        for view in VIEWS:
            self.reads(view, "keyset")

    def take_tally(self) -> Tally:
        """What was counted since this was asked for the last time."""
        taken, self._tally = self._tally, Tally()
        return taken

    def read(self, incidents: int) -> None:
        """A page with so many incidents was read."""
        self._tally.pages += 1
        self._tally.incidents += incidents
        self._metrics.incidents_fetched.labels(self._name).inc(incidents)

    def emitted(self, events: Sequence[Event]) -> None:
        """These events are durable."""
        counted = collections.Counter((event.kind, event.origin) for event in events)
        for (kind, origin), number in counted.items():
            self._metrics.events.labels(self._name, kind, origin).inc(number)
            self._tally.events[kind] += number

    def noticed(self, *, stale: int, silent: int, bad: int, late: int) -> None:
        """Older versions, changes without a new update time, unreadable records, late arrivals."""
        self._tally.late += late
        self._tally.bad += bad
        self._metrics.late_arrivals.labels(self._name).inc(late)
        self._metrics.stale_versions.labels(self._name).inc(stale)
        self._metrics.silent_changes.labels(self._name).inc(silent)
        self._metrics.errors.labels(f"source {self._name}", "bad_record").inc(bad)

    def skewed(self, seconds: float) -> None:
        """The server's clock less ours."""
        self._metrics.clock_skew.labels(self._name).set(seconds)

    def reads(self, view: View, mode: Mode) -> None:
        """The view is read in this mode from now on."""
        for one in MODES:
            self._metrics.source_mode.labels(self._name, view, one).set(one == mode)

    def suspended(self, suspended: bool) -> None:
        """More incidents are missing than is believed, or no longer."""
        self._metrics.reconcile_suspended.labels(self._name).set(suspended)

    def complete_up_to(self, instant: Instant) -> None:
        """Every page up to there is committed."""
        self._metrics.complete_up_to.labels(self._name).set(instant / SECOND)

    def backfilled_up_to(self, instant: Instant) -> None:
        """The past is read up to there."""
        self._metrics.backfill_up_to.labels(self._name).set(instant / SECOND)

    def polled(self, outcome: PollOutcome, seconds: float) -> None:
        """A live poll ended."""
        self._tally.polls += 1
        self._tally.failed += outcome == "failed"
        self._metrics.polls.labels(self._name, outcome).inc()
        self._metrics.poll_duration.labels(self._name).observe(seconds)
        if outcome == "complete":
            self._metrics.last_successful_poll.labels(self._name).set(self._metrics.clock.now() / SECOND)

    def failed(self, reason: str) -> None:
        """A poll or backfill failed for this reason."""
        self._metrics.errors.labels(f"source {self._name}", reason).inc()

    def buried(self, total: int) -> None:
        """How many records could not be read and are kept."""
        self._metrics.dead_letters.labels("source", self._name).set(total)

    def polls_every(self, seconds: float) -> None:
        """The interval at which the source is polled at present."""
        self._metrics.poll_interval.labels(self._name).set(seconds)

    def knows(self, incidents: int) -> None:
        """The size of the ledger."""
        self._metrics.ledger_incidents.labels(self._name).set(incidents)

    def answered(self, code: str) -> None:
        """A request was answered with this status, or failed for this reason."""
        self._tally.requests += 1
        self._metrics.api_requests.labels(self._name, code).inc()

    def backing_off(self, until: Instant | None) -> None:
        """The account pauses until then; None: it goes on."""
        left = max(0.0, (until - self._metrics.clock.now()) / SECOND) if until is not None else 0.0
        self._metrics.api_backoff.labels(self._name).set(left)

    def backs_off_for(self, seconds: float) -> None:
        """So much is left of the account's pause."""
        self._metrics.api_backoff.labels(self._name).set(seconds)

    def throttled(self, code: str, seconds: float) -> None:
        """The far side asked to slow down; we wait that long."""
        self._tally.throttled_seconds += seconds
        self._metrics.api_throttled.labels(self._name, code).inc()
        self._metrics.api_backoff_total.labels(self._name).inc(seconds)

    def remove(self) -> None:
        """Drops every series of this source: another process owns it now, and counts."""
        for reader in ("poll", "reconcile"):
            self._metrics.waits_for_journal(f"{reader} {self._name}", "")
        self._metrics.remove(source=self._name)
        self._metrics.remove(component=f"source {self._name}")
        self._metrics.remove(component="source", name=self._name)


class SinkMetrics:
    """Counts for one sink.

    Into one that is `shared` every process writes with its polls, and counts that; without `owned` it does no more.
    """

    def __init__(self, metrics: Metrics, name: str, *, owned: bool = True, shared: bool = False) -> None:
        self._metrics = metrics
        self._name = name
        self._shared = shared
        self.journal_failed = metrics.journal_failed
        for outcome in get_args(DeliveryOutcome):
            metrics.deliveries.labels(name, outcome, "")
        for reason in SKIPPED_REASONS:
            metrics.deliveries.labels(name, "skipped", reason)
        metrics.deliveries.labels(name, "expired", "keep")
        for severity in SEVERITIES:
            metrics.expired.labels(name, severity)
        metrics.errors.labels(f"sink {name}", "when")
        metrics.delivery_duration.labels(name)
        metrics.lag.labels(name)
        if owned:
            metrics.dead_letters.labels("sink", name).set(0)
            self.entered("ok")

    def delivered(
        self, lags_seconds: Sequence[float], outcome: DeliveryOutcome = "delivered", *, events: int, seconds: float
    ) -> None:
        """A batch was acknowledged; `lags_seconds` are those of its live events."""
        self._metrics.deliveries.labels(self._name, outcome, "").inc(events)
        self._metrics.delivery_duration.labels(self._name).observe(seconds)
        observe = self._metrics.lag.labels(self._name).observe
        for lag in lags_seconds:
            observe(lag)

    def settled(self, outcome: DeliveryOutcome, reason: str, events: int) -> None:
        """So many deliveries ended this way, or were put off."""
        self._metrics.deliveries.labels(self._name, outcome, reason).inc(events)

    def expired(self, severity: str, events: int) -> None:
        """So many events were not taken within `keep`."""
        self._metrics.expired.labels(self._name, severity).inc(events)
        self._metrics.deliveries.labels(self._name, "expired", "keep").inc(events)

    def entered(self, state: SinkState) -> None:
        """The sink is in this state now."""
        for one in SINK_STATES:
            self._metrics.sink_state.labels(self._name, one).set(one == state)

    def paused(self, until: Instant | None) -> None:
        """The far side asked to wait until then; None: it does not."""
        if until is None:
            self._metrics.sink_paused_until.remove_by_labels({"sink": self._name})
        else:
            self._metrics.sink_paused_until.labels(self._name).set(until / SECOND)

    def failed(self, reason: str) -> None:
        """Something of this sink failed that is no delivery."""
        self._metrics.errors.labels(f"sink {self._name}", reason).inc()

    def waits(self, events: int, oldest: Instant | None) -> None:
        """The backlog; `oldest` is None when nothing waits."""
        self._metrics.backlog.labels(self._name).set(events)
        if oldest is None:
            self._metrics.backlog_oldest.remove_by_labels({"sink": self._name})
        else:
            self._metrics.backlog_oldest.labels(self._name).set(oldest / SECOND)

    def buried(self, total: int) -> None:
        """How many dead letters the sink has."""
        self._metrics.dead_letters.labels("sink", self._name).set(total)

    def remove(self) -> None:
        """Drops the series of this sink: another process owns it now, and counts."""
        if self._shared:
            metrics = self._metrics
            for gauge in (metrics.sink_state, metrics.sink_paused_until, metrics.backlog, metrics.backlog_oldest):
                gauge.remove_by_labels({"sink": self._name})
            metrics.dead_letters.remove_by_labels({"component": "sink", "name": self._name})
            return
        self._metrics.remove(sink=self._name)
        self._metrics.remove(component=f"sink {self._name}")
        self._metrics.remove(component="sink", name=self._name)
