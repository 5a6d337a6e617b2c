"""Who runs what: a task polls a source, one reads its past, one delivers to a sink. Knows no signals, no servers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import structlog

from relay.clock import SECOND, Clock, Instant
from relay.errors import (
    AccessDenied,
    JournalDamaged,
    JournalError,
    JournalFull,
    LoginRefused,
    RelayError,
    SourceError,
)
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import EsetClient
from relay.intake import PollReport
from relay.journal import Buried, Progress, SourceLease, Way
from relay.logs import Repeats, one_poll, utc
from relay.metrics import Metrics, SourceMetrics
from relay.poller import Poller
from relay.recent import Pace
from relay.status import PollFacts, SourceFacts, SourceState, SweepFacts, WayFacts

log = structlog.get_logger()

REFUSED_SECONDS = 300.0
"""How long a source rests after 403, 404 or 501: asking again soon does not help, and hammering may hurt."""
JOURNAL_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 300.0
SUMMARY_SECONDS = 3600.0
"""How often a source says what it did: polls that find nothing say so at debug only."""
SCAN_RATIO = 0.5
"""The most of the rate that live polling may take where every poll reads everything."""


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
        reconcile_seconds: float,
        budget: RateBudget,
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
        self._stretched_until: Instant | None = None
        self._sweep_asked = asyncio.Event()
        self._poller = poller
        self._client = client
        self._lease = lease
        self._account = account
        self._place = place
        self._reconcile_seconds = reconcile_seconds
        self._budget = budget
        self._all_metrics = metrics
        self._metrics = counts
        self._clock = clock
        self._log = log.bind(source=lease.name)
        self._repeats = Repeats(clock)
        self._reading_repeats = Repeats(clock)
        self._reading_failures = 0
        self._summarised = clock.monotonic()
        self._tick = asyncio.Event()
        self._tick.set()
        self._finished = asyncio.Event()
        self._reading_waited = False
        self._patient = True
        self._incidents = 0
        self._counted = False
        self._buried = Buried(letters=0, since=None)
        self._pace = Pace()
        self._error_reason = ""
        self._last_ended: PollFacts | None = None

    def on_tick(self) -> None:
        """The time for a poll has come. Ticks that come during a poll count as one."""
        self._tick.set()

    def finish(self) -> None:
        """Lets `run` return after the poll in hand."""
        self._finished.set()
        self._tick.set()

    async def run(self) -> None:
        """Polls at every tick until `finish`. A failed poll never ends it."""
        while True:
            await self._tick.wait()
            self._tick.clear()
            if self._finished.is_set():
                return
            if not self._resting():
                await self.poll()

    async def once(self) -> bool:
        """One live poll and the whole past; False when either failed. Waits for no room in the journal."""
        self._patient = False
        return await self.poll() and await self.backfill_once()

    async def release(self) -> None:
        """Another process may poll it now."""
        await self._lease.release()

    def forget_figures(self) -> None:
        """Another process counts from now on."""
        self._metrics.remove()

    async def close(self) -> None:
        """Closes the connections, and says what was not summarised yet."""
        self._summarise()
        await self._client.close()

    def summarise_hourly(self) -> None:
        """To be called every few seconds: writes the summary of an hour that is over."""
        if self._clock.monotonic() - self._summarised >= SUMMARY_SECONDS:
            self._summarise()

    def _summarise(self) -> None:
        now = self._clock.monotonic()
        seconds, self._summarised = now - self._summarised, now
        tally = self._metrics.take_tally()
        if not tally.polls and not tally.pages:
            return
        progress = self._lease.progress
        complete_up_to = progress.complete_up_to if progress is not None else None
        self._log.info(
            "source summarised",
            seconds=round(seconds),
            polls=tally.polls,
            failed=tally.failed,
            requests=tally.requests,
            pages=tally.pages,
            incidents=tally.incidents,
            events=tally.events.total(),
            kinds=dict(tally.events),
            late=tally.late,
            bad=tally.bad,
            throttled_seconds=round(tally.throttled_seconds, 1),
            complete_up_to=utc(complete_up_to) if complete_up_to else None,
            lag_seconds=round((self._clock.now() - complete_up_to) / SECOND, 1) if complete_up_to else None,
        )

    def _resting(self) -> bool:
        now = self._clock.now()
        return any(until is not None and now < until for until in (self._rests_until, self._stretched_until))

    async def poll(self) -> bool:
        """One live poll; False when it failed."""
        with one_poll():
            return await self._poll()

    async def _poll(self) -> bool:
        started = self._clock.monotonic()
        try:
            report = await self._poller.poll()
            self._incidents = await self._lease.count()
        except (SourceError, JournalError) as error:
            await self._failed(error, seconds=self._clock.monotonic() - started)
            return False
        seconds = self._clock.monotonic() - started
        self._metrics.polled("complete", seconds)
        self._metrics.knows(self._incidents)
        self._succeeded(report, seconds)
        self._stretch(report, seconds)
        return True

    def _stretch(self, report: PollReport, seconds: float) -> None:
        """A source that can only be read as a whole takes at most half of the rate."""
        interval = self.poll_interval_seconds
        self._stretched_until = None
        if any(way.mode == "scan" for way in self._poller.ways.values()):
            needed = report.pages / (self._budget.requests_per_second * SCAN_RATIO)
            if needed > interval:
                interval = needed
                self._stretched_until = self._clock.now() + int((needed - seconds) * SECOND)
        self._metrics.polls_every(interval)

    async def reconcile(self) -> None:
        """Reads the past to its end, then compares everything with the ledger, again and again."""
        await self._insist(self.backfill_once)
        while True:
            await self._until_sweep_is_due()
            await self._insist(self.sweep_once)

    async def _insist(self, work: Callable[[], Awaitable[bool]]) -> None:
        """Until it succeeds, however often it fails on the way."""
        failures = 0
        while not await work():
            failures = 0 if self._reading_waited else failures + 1
            await self._clock.sleep(min(LAST_RETRY_SECONDS, 2.0**failures))

    async def _until_sweep_is_due(self) -> None:
        progress = self._lease.progress
        if progress is None or progress.sweep is not None or progress.swept is None:
            return
        due = progress.swept.finished + int(self._reconcile_seconds * SECOND)
        seconds = min((due - self._clock.now()) / SECOND, self._reconcile_seconds)
        waits = [
            asyncio.create_task(self._clock.sleep(max(0.0, seconds)), name=f"wait for the sweep of {self.name}"),
            asyncio.create_task(self._sweep_asked.wait(), name=f"wait to be asked to sweep {self.name}"),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._sweep_asked.clear()
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def sweep_once(self) -> bool:
        """One whole sweep; False when it failed, and goes on from there the next time."""
        with one_poll():
            return await self._sweep()

    async def _sweep(self) -> bool:
        try:
            report = await self._poller.sweep()
        except (SourceError, JournalError) as error:
            await self._not_read(error, "sweep failed")
            return False
        self._read_again("sweep recovered")
        self._log.info(
            "sweep completed",
            incidents=report.incidents,
            events=report.events,
            late=report.late,
            silent=report.silent,
            stale=report.stale,
        )
        return True

    async def accept_missing(self) -> None:
        """Begins a sweep that believes any number of disappearances. Raises JournalError."""
        await self._poller.accept_missing()
        self._sweep_asked.set()

    async def backfill_once(self) -> bool:
        """Reads the past to its end; False when that failed, and goes on from there the next time."""
        with one_poll():
            return await self._backfill()

    async def _backfill(self) -> bool:
        try:
            report = await self._poller.backfill()
        except (SourceError, JournalError) as error:
            await self._not_read(error, "backfill failed")
            return False
        self._read_again("backfill recovered")
        if report.pages:
            self._log.info("backfill completed", incidents=report.incidents, events=report.events)
        return True

    async def _not_read(self, error: RelayError, event: str) -> None:
        self._count(error)
        repeat = self._reading_repeats.again(error.reason)
        self._reading_failures = repeat.times
        write = self._log.warning if repeat.due else self._log.debug
        write(
            event,
            reason=error.reason,
            error=str(error),
            request_id=_request_id(error),
            failures=repeat.times,
            since=repeat.since,
        )
        who = f"reconcile {self.name}"
        self._reading_waited = await self._wait_for_room(error, who)
        self._all_metrics.waits_for_journal(who, "")  # it may read for hours now; what still waits, a poll will say

    def _read_again(self, event: str) -> None:
        if self._reading_failures:
            self._log.info(event, failures=self._reading_failures, seconds=self._reading_repeats.over())
        self._reading_failures = 0

    def _count(self, error: RelayError) -> None:
        if isinstance(error, JournalError):
            self._all_metrics.journal_failed(error.reason)
        else:
            self._metrics.failed(error.reason)

    def _succeeded(self, report: PollReport, seconds: float) -> None:
        self._last_poll = self._clock.now()
        if self._failures:
            self._log.info("source recovered", failures=self._failures, seconds=self._repeats.over())
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
        self._all_metrics.waits_for_journal(f"poll {self.name}", "")
        self._enter("ok")
        write = self._log.info if report.events or report.bad else self._log.debug
        write(
            "poll completed",
            pages=report.pages,
            incidents=report.incidents,
            events=report.events,
            stale=report.stale,
            silent=report.silent,
            late=report.late,
            bad=report.bad,
            seconds=round(seconds, 3),
        )

    async def _failed(self, error: RelayError, *, seconds: float) -> None:
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
        self._count(error)
        repeat = self._repeats.again(error.reason)
        write = self._log.warning if repeat.due else self._log.debug
        write(
            "poll failed",
            reason=error.reason,
            error=self.error,
            request_id=_request_id(error),
            hint=self._hint,
            failures=self._failures,
            since=repeat.since,
            seconds=round(seconds, 3),
        )
        if isinstance(error, LoginRefused):
            self._enter("refused")
        elif isinstance(error, AccessDenied):
            self._rests_until = self._clock.now() + int(REFUSED_SECONDS * SECOND)
            self._enter("refused")
        elif isinstance(error, JournalError):
            self._enter("stopped")
        else:
            self._enter("throttled" if error.reason == "throttled" else "failing")
        await self._wait_for_room(error, f"poll {self.name}")

    async def _wait_for_room(self, error: RelayError, who: str) -> bool:
        """Only the journal stops polling: until there is room again, or the disk answers. False: it is not at fault.

        A damaged one needs a person and a restart; until then nothing is tried.
        """
        stopped = isinstance(error, JournalError)
        self._all_metrics.waits_for_journal(who, error.reason if stopped else "")
        if not stopped or not self._patient:
            return stopped
        waits: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._finished.wait(), name=f"wait for the end of {self.name}")
        ]
        if isinstance(error, JournalFull):
            waits.append(asyncio.create_task(self._lease.room(), name=f"wait for room for {self.name}"))
        elif not isinstance(error, JournalDamaged):
            retry = self._clock.sleep(JOURNAL_RETRY_SECONDS)
            waits.append(asyncio.create_task(retry, name=f"wait for the disk of {self.name}"))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._tick.set()
        return True

    async def report(self) -> None:
        """Brings the gauges up to date."""
        self._buried = await self._lease.buried()
        self._metrics.buried(self._buried.letters)
        if self._lease.progress is not None:
            self._pace.saw(self._lease.progress, self._clock.now())
            await self._recall(self._lease.progress)
        until = self._throttled_until()
        self._metrics.backs_off_for(max(0.0, (until - self._clock.now()) / SECOND) if until else 0.0)

    async def _recall(self, progress: Progress) -> None:
        """What an earlier process found out holds before the first poll of this one."""
        if not self._counted:
            self._incidents = await self._lease.count()
            self._metrics.knows(self._incidents)
            for view, way in progress.ways.items():
                self._metrics.reads(view, way.mode)
            self._counted = True
        self._metrics.suspended(bool(progress.swept and progress.swept.suspended))
        if progress.complete_up_to is not None:
            self._metrics.complete_up_to(progress.complete_up_to)
        if read_up_to := _backfill_cursor(progress):
            self._metrics.backfilled_up_to(read_up_to)

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
            backfill_incidents=progress.backfill_incidents,
            backfill_finished=progress.backfill_finished,
            backfill_estimate=self._pace.end,
            ledger_incidents=self._incidents,
            clock_skew_seconds=self._poller.skew_seconds,
            error_reason=self._error_reason,
            poll=self._last_ended,
            dead_letters=self._buried.letters,
            dead_since=self._buried.since,
            ways={view: _way_facts(way) for view, way in self._poller.ways.items()},
            sweep=_sweep_facts(progress),
        )

    def _next_poll(self) -> Instant | None:
        if self._rests_until is not None:
            return self._rests_until
        if self._stretched_until is not None:
            return self._stretched_until
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


def _way_facts(way: Way) -> WayFacts:
    return WayFacts(mode=way.mode, since=way.since, reason=way.reason)


def _sweep_facts(progress: Progress) -> SweepFacts:
    last = progress.swept
    return SweepFacts(
        running=progress.sweep is not None,
        finished=last.finished if last else None,
        suspended=bool(last and last.suspended),
        late=last.late if last else 0,
        silent=last.silent if last else 0,
        missing=last.missing if last else 0,
    )


def _backfill_cursor(progress: Progress) -> Instant | None:
    """How far the past is read; with two passes, the one in hand counts."""
    cursors = [one.cursor for one in progress.backfill if not one.done]
    if cursors:
        return min(cursors[0], progress.first_start)
    return progress.first_start if progress.backfill else None


def _request_id(error: RelayError) -> str:
    return error.request_id if isinstance(error, SourceError) else ""
