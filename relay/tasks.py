"""Who runs what: a task polls a source, one reads its past, one delivers to a sink. Knows no signals, no servers."""

import asyncio
from typing import Literal

import structlog

from relay.clock import SECOND, Clock, Instant
from relay.errors import (
    AccessDenied,
    JournalError,
    JournalFull,
    LoginRefused,
    RelayError,
    SourceError,
)
from relay.eset.auth import Account
from relay.eset.client import EsetClient
from relay.journal import Progress, SourceLease
from relay.metrics import Metrics, SourceMetrics
from relay.poller import Poller, PollReport
from relay.status import PollFacts, SourceFacts, SourceState

log = structlog.get_logger()

REFUSED_SECONDS = 300.0
"""How long a source rests after 403, 404 or 501: asking again soon does not help, and hammering may hurt."""
JOURNAL_RETRY_SECONDS = 5.0


class SourceTask:
    """Polls one source whenever it is told that the time has come, and reads its past beside that."""

    def __init__(
        self,
        *,
        poller: Poller,
        client: EsetClient,
        lease: SourceLease,
        account: Account,
        place: str,
        metrics: Metrics,
        counts: SourceMetrics,
        clock: Clock,
    ) -> None:
        self.name = lease.name
        self.state: SourceState = "starting"
        self.since: Instant = clock.now()
        self.error = ""
        self.poll_interval_seconds = 0.0
        self._hint = ""
        self._failures = 0
        self._last_poll: Instant | None = None
        self._rests_until: Instant | None = None
        self._poller = poller
        self._client = client
        self._lease = lease
        self._account = account
        self._place = place
        self._all_metrics = metrics
        self._metrics = counts
        self._clock = clock
        self._log = log.bind(source=lease.name)
        self._tick = asyncio.Event()
        self._tick.set()
        self._finishing = False
        self._patient = True
        self._incidents = 0
        self._dead = 0
        self._error_reason = ""
        self._last_ended: PollFacts | None = None

    async def on_tick(self) -> None:
        """The time for a poll has come. Ticks that come during a poll count as one."""
        self._tick.set()

    def finish(self) -> None:
        """Lets `run` return after the poll in hand."""
        self._finishing = True
        self._tick.set()

    async def run(self) -> None:
        """Polls at every tick until `finish`. A failed poll never ends it."""
        while True:
            await self._tick.wait()
            self._tick.clear()
            if self._finishing:
                return
            if self._rests_until is None or self._clock.now() >= self._rests_until:
                await self.poll()

    async def once(self) -> bool:
        """One live poll and the whole past; False when either failed. Waits for no room in the journal."""
        self._patient = False
        return await self.poll() and await self.backfill_once()

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def poll(self) -> bool:
        """One live poll; False when it failed."""
        started = self._clock.monotonic()
        try:
            report = await self._poller.poll()
            self._incidents = await self._lease.count()
        except (SourceError, JournalError) as error:
            await self._failed(error, "poll failed", seconds=self._clock.monotonic() - started)
            return False
        seconds = self._clock.monotonic() - started
        self._metrics.polled("complete", seconds)
        self._metrics.knows(self._incidents)
        self._succeeded(report, seconds)
        return True

    async def backfill(self) -> None:
        """Reads the past to its end, however often it fails on the way."""
        failures = 0
        while not await self.backfill_once():
            failures += 1
            await self._clock.sleep(min(300.0, 2.0**failures))

    async def backfill_once(self) -> bool:
        """Reads the past to its end; False when that failed, and goes on from there the next time."""
        try:
            report = await self._poller.backfill()
        except (SourceError, JournalError) as error:
            self._metrics.failed(error.reason)
            self._log.warning("backfill failed", reason=error.reason, error=str(error))
            await self._wait_for_room(error)
            return False
        if report.pages:
            self._log.info("backfill completed", incidents=report.incidents, events=report.events)
        return True

    def _succeeded(self, report: PollReport, seconds: float) -> None:
        self._last_poll = self._clock.now()
        if self._failures:
            self._log.info("source recovered", failures=self._failures)
        self._failures = 0
        self.error = self._hint = self._error_reason = ""
        self._last_ended = PollFacts(
            finished=self._last_poll,
            outcome="ok",
            duration_seconds=seconds,
            pages=report.pages,
            incidents=report.incidents,
            changes=report.events,
        )
        self._rests_until = None
        self._enter("ok")
        write = self._log.info if report.events or report.bad else self._log.debug
        write(
            "poll completed",
            pages=report.pages,
            incidents=report.incidents,
            events=report.events,
            stale=report.stale,
            silent=report.silent,
            bad=report.bad,
            seconds=round(seconds, 3),
        )

    async def _failed(self, error: RelayError, event: str, *, seconds: float) -> None:
        self._failures += 1
        self.error = str(error)
        self._error_reason = error.reason
        self._hint = error.hint if isinstance(error, SourceError) else ""
        self._last_ended = PollFacts(
            finished=self._clock.now(),
            outcome=error.reason,
            duration_seconds=seconds,
            pages=0,
            incidents=0,
            changes=0,
        )
        self._metrics.polled("failed", seconds)
        self._metrics.failed(error.reason)
        self._log.warning(event, reason=error.reason, error=self.error, failures=self._failures)
        if isinstance(error, LoginRefused):
            self._enter("refused")
        elif isinstance(error, AccessDenied):
            self._rests_until = self._clock.now() + int(REFUSED_SECONDS * SECOND)
            self._enter("refused")
        elif isinstance(error, JournalError):
            self._enter("stopped")
        else:
            self._enter("throttled" if error.reason == "throttled" else "failing")
        await self._wait_for_room(error)

    async def _wait_for_room(self, error: RelayError) -> None:
        """Only the journal stops polling: until there is room again, or the disk answers."""
        if not isinstance(error, JournalError) or not self._patient:
            return
        stopped = self._all_metrics.polling_stopped.labels(error.reason)
        stopped.set(1)
        if isinstance(error, JournalFull):
            await self._lease.room()
        else:
            await self._clock.sleep(JOURNAL_RETRY_SECONDS)
        stopped.set(0)
        self._tick.set()

    async def report(self) -> None:
        """Brings the gauges up to date."""
        self._dead = await self._lease.count_dead()
        self._metrics.buried(self._dead)
        until = self._throttled_until()
        self._metrics.backs_off_for(max(0.0, (until - self._clock.now()) / SECOND) if until else 0.0)

    def facts(self) -> SourceFacts:
        """What the status says of this source."""
        progress = self._lease.progress or Progress(identity="", first_start=0, start_from=0)
        throttled_until = self._throttled_until()
        return SourceFacts(
            name=self.name,
            region=self._place,
            state="throttled" if throttled_until else self.state,
            since=self.since,
            error=self.error,
            hint=self._hint,
            failures=self._failures,
            last_poll=self._last_poll,
            next_poll=self._next_poll(),
            poll_interval_seconds=self.poll_interval_seconds,
            throttled_until=throttled_until,
            complete_up_to=progress.complete_up_to,
            start_from=progress.start_from or None,
            first_start=progress.first_start or None,
            backfill=_backfill_state(progress),
            backfill_from=progress.backfill[0].first if progress.backfill else None,
            backfill_up_to=_backfill_cursor(progress),
            ledger_incidents=self._incidents,
            clock_skew_seconds=self._poller.skew_seconds,
            error_reason=self._error_reason,
            poll=self._last_ended,
            dead_letters=self._dead,
        )

    def _next_poll(self) -> Instant | None:
        if self._rests_until is not None:
            return self._rests_until
        return self._last_poll + int(self.poll_interval_seconds * SECOND) if self._last_poll else None

    def _throttled_until(self) -> Instant | None:
        until = self._account.paused_until
        return until if until is not None and until > self._clock.now() else None

    def _enter(self, state: SourceState) -> None:
        if state != self.state:
            self.state = state
            self.since = self._clock.now()


def _backfill_state(progress: Progress) -> Literal["not_wanted", "running", "done"]:
    if not progress.backfill:
        return "not_wanted"
    return "done" if progress.backfill_done else "running"


def _backfill_cursor(progress: Progress) -> Instant | None:
    """How far the past is read; with two passes, the one in hand counts."""
    cursors = [one.cursor for one in progress.backfill if not one.done]
    if cursors:
        return min(cursors[0], progress.first_start)
    return progress.first_start if progress.backfill else None
