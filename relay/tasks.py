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
from relay.journal import Progress, SourceLease
from relay.metrics import Metrics
from relay.poller import Poller, PollReport

log = structlog.get_logger()

SourceState = Literal["starting", "ok", "throttled", "failing", "refused", "stopped"]
REFUSED_SECONDS = 300.0
"""How long a source rests after 403, 404 or 501: asking again soon does not help, and hammering may hurt."""
JOURNAL_RETRY_SECONDS = 5.0


class SourceTask:
    """Polls one source whenever it is told that the time has come, and reads its past beside that."""

    def __init__(self, *, poller: Poller, lease: SourceLease, account: Account, metrics: Metrics, clock: Clock) -> None:
        self.name = lease.name
        self.state: SourceState = "starting"
        self.since: Instant = clock.now()
        self.error = ""
        self.hint = ""
        self.failures = 0
        self.last_poll: Instant | None = None
        self.rests_until: Instant | None = None
        self._poller = poller
        self._lease = lease
        self._account = account
        self._all_metrics = metrics
        self._metrics = metrics.source(lease.name)
        self._clock = clock
        self._log = log.bind(source=lease.name)
        self._tick = asyncio.Event()
        self._tick.set()

    @property
    def progress(self) -> Progress | None:
        """What is committed."""
        return self._lease.progress

    @property
    def throttled_until(self) -> Instant | None:
        """Until when the account has to wait, if it has to."""
        until = self._account.paused_until
        return until if until is not None and until > self._clock.now() else None

    def tick(self) -> None:
        """The time for a poll has come. Ticks that come during a poll count as one."""
        self._tick.set()

    async def run(self) -> None:
        """Polls at every tick until cancelled. A failed poll never ends it."""
        while True:
            await self._tick.wait()
            self._tick.clear()
            if self.rests_until is None or self._clock.now() >= self.rests_until:
                await self.poll()

    async def poll(self) -> bool:
        """One live poll; False when it failed."""
        started = self._clock.monotonic()
        try:
            report = await self._poller.poll()
        except (SourceError, JournalError) as error:
            await self._failed(error, "poll failed", seconds=self._clock.monotonic() - started)
            return False
        seconds = self._clock.monotonic() - started
        self._metrics.polled("complete", seconds)
        self._metrics.knows(await self._lease.count())
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
        self.last_poll = self._clock.now()
        if self.failures:
            self._log.info("source recovered", failures=self.failures)
        self.failures = 0
        self.error = self.hint = ""
        self.rests_until = None
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
        self.failures += 1
        self.error = str(error)
        self.hint = error.hint if isinstance(error, SourceError) else ""
        self._metrics.polled("failed", seconds)
        self._metrics.failed(error.reason)
        self._log.warning(event, reason=error.reason, error=self.error, failures=self.failures)
        if isinstance(error, LoginRefused):
            self._enter("refused")
        elif isinstance(error, AccessDenied):
            self.rests_until = self._clock.now() + int(REFUSED_SECONDS * SECOND)
            self._enter("refused")
        elif isinstance(error, JournalError):
            self._enter("stopped")
        else:
            self._enter("throttled" if error.reason == "throttled" else "failing")
        await self._wait_for_room(error)

    async def _wait_for_room(self, error: RelayError) -> None:
        """Only the journal stops polling: until there is room again, or the disk answers."""
        if not isinstance(error, JournalError):
            return
        stopped = self._all_metrics.polling_stopped.labels(error.reason)
        stopped.set(1)
        if isinstance(error, JournalFull):
            await self._lease.room()
        else:
            await self._clock.sleep(JOURNAL_RETRY_SECONDS)
        stopped.set(0)
        self.tick()

    def _enter(self, state: SourceState) -> None:
        if state != self.state:
            self.state = state
            self.since = self._clock.now()
