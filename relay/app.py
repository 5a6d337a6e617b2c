"""The daemon: every long-lived task of the relay on one screen, and the order in which they start and stop."""

import asyncio
import os
import socket
import zlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from relay import __version__, control, web
from relay.assembly import (
    Accounts,
    introduce_to_each_other,
    make_courier,
    make_journal,
    make_links,
    make_rules,
    make_source,
)
from relay.clock import Clock, Instant, SystemClock
from relay.delivery import Carrier
from relay.errors import JournalDamaged, JournalError, JournalLocked
from relay.journal import DeadLetter, Journal, JournalUse
from relay.logs import Repeats
from relay.metrics import Metrics
from relay.recent import Recent
from relay.settings import Settings
from relay.status import FILLING_RATIO, MAX_DEAD, MAX_EVENTS, RelayFacts, SinkFacts
from relay.tasks import SourceTask

log = structlog.get_logger()

LOCK_PATIENCE_SECONDS = 10.0
"""How long a start waits for the journal: a predecessor may still be draining."""
PAGE_PATIENCE_SECONDS = 5.0
"""How long a stop waits for the page in hand; every page is committed by itself, so nothing is lost after that."""
CLOSE_SECONDS = 3.0
"""How long a sink may take to let go, after the grace; all at once, so that a stop stays under Kubernetes' 30 s."""
TEND_SECONDS = 10.0
REPORT_SECONDS = 2.0
REQUESTS_A_POLL = 2
"""Both views, one page each."""


class Relay:
    """One relay: its journal, its tasks, its servers."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = Metrics(self.clock)
        self._rules = make_rules(settings)
        for name, rule in self._rules.items():
            for warning in rule.warnings:
                log.warning("configuration doubtful", problem=f"sinks.{name}.when {warning}")
        self.journal: Journal = make_journal(settings, clock=self.clock)
        self.sources: list[SourceTask] = []
        self.couriers: list[Carrier] = []
        self.http_port = 0
        self._accounts = Accounts(settings, metrics=self.metrics, clock=self.clock)
        self._started = self.clock.now()
        self._stop = asyncio.Event()
        self._closed = False
        self._use: JournalUse | None = None
        self._filling_since: Instant | None = None
        self._letters: list[DeadLetter] = []
        self._recent = Recent(titles=settings.http.titles, links=make_links(settings))
        self._tasks: list[asyncio.Task[None]] = []

    # -- life -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Asks for an orderly stop; returns at once."""
        self._stop.set()

    async def run(self) -> None:
        """Runs until `stop`. Raises ConfigError or JournalError when it cannot start."""
        listener = web.bind(self.settings.http.host, self.settings.http.port)
        self.http_port = listener.getsockname()[1]
        async with self._opened():
            admin = web.bind_admin(self.settings.admin_socket_path)
            await self._run(listener, admin)
        self.settings.admin_socket_path.unlink(missing_ok=True)
        log.info("relay stopped")

    async def _run(self, listener: socket.socket, admin: socket.socket) -> None:
        async with asyncio.TaskGroup() as group:

            def start(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                task = group.create_task(work, name=name)
                self._tasks.append(task)
                return task

            servers = [
                start("serve http", web.serve(web.application(self), listener)),
                start("serve the admin socket", web.serve(web.application(self, commands=control.routes(self)), admin)),
            ]
            polling = [start(f"poll {source.name}", source.run()) for source in self.sources]
            reading = [start(f"reconcile {source.name}", source.reconcile()) for source in self.sources]
            sending = [start(f"deliver {courier.name}", courier.run()) for courier in self.couriers]
            tending = [start("tend the journal", self._tend()), start("report figures", self._report())]
            scheduler = self._schedule()
            log.info("relay started", sources=len(self.sources), sinks=len(self.couriers), http_port=self.http_port)
            await self._stop.wait()
            log.info("relay stopping")
            self._tasks.clear()
            scheduler.shutdown(wait=False)
            await self._finish(polling, reading, sending)
            for task in (*tending, *servers):
                task.cancel()

    async def run_once(self) -> bool:
        """One live poll a source, backfill to its end, deliver until nothing is due.

        False when anything failed or is left.
        """
        async with self._opened(), asyncio.TaskGroup() as group:
            sending = [group.create_task(courier.run(), name=f"deliver {courier.name}") for courier in self.couriers]
            results = await asyncio.gather(*(source.once() for source in self.sources))
            await self._drain(sending, None)
            try:
                backlogs = [await courier.backlog() for courier in self.couriers]
            except JournalError as error:
                log.warning("what is left could not be counted", reason=error.reason, error=str(error))
                return False
        return all(results) and not any(backlog.events for backlog in backlogs)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        """The journal open, every lease taken; and everything closed again, clients and journal last."""
        await self._open_journal()
        try:
            for name in self.settings.sources:
                self.sources.append(
                    await make_source(
                        name,
                        settings=self.settings,
                        journal=self.journal,
                        accounts=self._accounts,
                        metrics=self.metrics,
                        clock=self.clock,
                    )
                )
            for name in self.settings.sinks:
                self.couriers.append(
                    await make_courier(
                        name,
                        settings=self.settings,
                        journal=self.journal,
                        rules=self._rules,
                        metrics=self.metrics,
                        clock=self.clock,
                    )
                )
            introduce_to_each_other(self.couriers, self.settings)
            self.metrics.tasks_held.labels("source").set(len(self.sources))
            self.metrics.tasks_held.labels("sink").set(len(self.couriers))
            yield
        finally:
            await self._close_far_sides()
            await self.journal.close()

    async def _close_far_sides(self) -> None:
        """Lets go of sinks and API, once."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(courier.close(CLOSE_SECONDS) for courier in self.couriers))
        await asyncio.gather(*(source.close() for source in self.sources))
        await self._accounts.close()

    async def _open_journal(self) -> None:
        deadline = self.clock.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                return await self.journal.open()
            except JournalLocked:
                if self.clock.monotonic() > deadline:
                    raise
                await self.clock.sleep(0.2)

    # -- keeping time ---------------------------------------------------------------------------------------------

    def _schedule(self) -> AsyncIOScheduler:
        """Keeps time only: a job sets an event, a task of ours polls."""
        scheduler = AsyncIOScheduler(
            timezone=UTC,
            # Runs a job in place: one that runs beside us is cancelled at the end, which is logged as an error.
            executors={"default": DebugExecutor()},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        stretch = self._stretch()
        for source in self.sources:
            interval = self.settings.sources[source.name].poll_interval.total_seconds() * stretch
            source.poll_interval_seconds = interval
            self.metrics.poll_interval.labels(source.name).set(interval)
            offset = zlib.crc32(source.name.encode()) % 1000 / 1000 * interval
            scheduler.add_job(
                source.on_tick,
                IntervalTrigger(
                    seconds=interval, start_date=datetime.now(UTC) + timedelta(seconds=offset), timezone=UTC
                ),
                id=source.name,
            )
        scheduler.start()
        return scheduler

    def _stretch(self) -> float:
        """How much longer every interval gets when polling alone would exceed the budget of requests."""
        wanted = sum(
            REQUESTS_A_POLL / source.poll_interval.total_seconds() for source in self.settings.sources.values()
        )
        factor = max(1.0, wanted / self.settings.api.requests_per_second)
        if factor > 1.0:
            log.warning(
                "poll intervals stretched",
                factor=round(factor, 2),
                requests_per_second=self.settings.api.requests_per_second,
            )
        return factor

    async def _tend(self) -> None:
        """Housekeeping of the journal, for ever."""
        repeats = Repeats(self.clock)
        failures = 0
        while True:
            try:
                done = await self.journal.tend()
            except JournalError as error:
                self.metrics.journal_failed(error.reason)
                repeat = repeats.again(error.reason)
                failures = repeat.times
                write = log.warning if repeat.due else log.debug
                write(
                    "journal could not be tended",
                    reason=error.reason,
                    error=str(error),
                    failures=failures,
                    since=repeat.since,
                )
            else:
                if failures:
                    log.info("journal recovered", failures=failures, seconds=repeats.over())
                failures = 0
                for courier in self.couriers:
                    courier.expired(done.expired.get(courier.name, {}))
                if done.forgotten:
                    log.info("removed sinks forgotten", sinks=done.forgotten)
                if done.deleted:
                    log.debug("delivered events deleted", events=done.deleted)
            await self.clock.sleep(TEND_SECONDS)

    async def _report(self) -> None:
        """Brings the gauges up to date, for ever."""
        while True:
            try:
                use = self._use = await self.journal.use()
                self.metrics.journal_bytes.set(use.used_bytes)
                self.metrics.journal_limit.set(use.limit_bytes)
                is_filling = use.used_bytes >= FILLING_RATIO * use.limit_bytes
                self._filling_since = (self._filling_since or self.clock.now()) if is_filling else None
                for courier in self.couriers:
                    await courier.report()
                for source in self.sources:
                    await source.report()
                self._letters = (await self.journal.dead_letters(limit=MAX_DEAD)).newest
                self._recent.committed(await self.journal.latest_events(MAX_EVENTS, after=self._recent.position))
                self._recent.used(self.clock.now(), use.used_bytes)
            except JournalError as error:
                self.metrics.journal_failed(error.reason)
                if isinstance(error, JournalDamaged):
                    for source in self.sources:  # a poll finds out, and says so, whenever it would be due
                        source.on_tick()
            seen = self._facts([courier.facts_as_seen() for courier in self.couriers])
            self._recent.lagged(seen.now, read=seen.read_up_to, delivered=seen.delivered_up_to)
            for source in self.sources:
                source.summarise_hourly()
            await self.clock.sleep(REPORT_SECONDS)

    # -- stopping -------------------------------------------------------------------------------------------------

    async def _finish(
        self, polling: list[asyncio.Task[None]], reading: list[asyncio.Task[None]], sending: list[asyncio.Task[None]]
    ) -> None:
        """No new polls; the one in hand gets a few seconds of the grace, and what is committed stays. Then drain."""
        deadline = self.clock.monotonic() + self.settings.shutdown_grace.total_seconds()
        for source in self.sources:
            source.finish()
        await asyncio.wait(polling, timeout=min(PAGE_PATIENCE_SECONDS, deadline - self.clock.monotonic()))
        for task in (*polling, *reading):
            task.cancel()
        await asyncio.gather(*polling, *reading, return_exceptions=True)
        await self._drain(sending, max(0.0, deadline - self.clock.monotonic()))
        await self._close_far_sides()

    async def _drain(self, sending: list[asyncio.Task[None]], grace_seconds: float | None) -> None:
        for courier in self.couriers:
            courier.drain()
        _done, left = await asyncio.wait(sending, timeout=grace_seconds)
        for task in left:
            log.warning("delivery was cut short by shutdown_grace", task=task.get_name())
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # -- what is shown --------------------------------------------------------------------------------------------

    def ended_tasks(self) -> list[str]:
        """Long-lived tasks that are no longer running though nobody asked for a stop."""
        return [task.get_name() for task in self._tasks if task.done()]

    def stuck_seconds(self) -> float:
        """For how long the oldest unfinished call to the journal has been waiting."""
        return self.journal.oldest_call_seconds()

    async def facts(self) -> RelayFacts:
        """Everything that the status says; what is in the journal is as last seen when it can't be read."""
        with suppress(JournalError):
            self._use = await self.journal.use()
        return self._facts([await courier.facts() for courier in self.couriers])

    def _facts(self, sinks: list[SinkFacts]) -> RelayFacts:
        use = self._use
        stopped = next((source for source in self.sources if source.state == "stopped"), None)
        now = self.clock.now()
        return RelayFacts(
            now=now,
            version=__version__,
            process=f"{socket.gethostname()}:{os.getpid()}",
            started=self._started,
            sources=[source.facts() for source in self.sources],
            sinks=sinks,
            journal_used_bytes=use.used_bytes if use else None,
            journal_limit_bytes=use.limit_bytes if use else None,
            journal_oldest_event=use.oldest_event if use else None,
            journal_filling_since=self._filling_since,
            polling_stopped_reason=stopped.error if stopped else None,
            polling_stopped_by=stopped.facts().error_reason if stopped else "",
            polling_stopped_since=stopped.since if stopped else None,
            budget_requests_per_second=self.settings.api.requests_per_second,
            journal_growth_bytes_per_day=self._recent.growth_bytes_per_day(now, use.used_bytes) if use else None,
            used_requests_per_second=self._accounts.budget.used_per_second,
            events=self._recent.events,
            lag=self._recent.lag(now),
            dead_letters=[control.letter_facts(letter, titles=self.settings.http.titles) for letter in self._letters],
        )
