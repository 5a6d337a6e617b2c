"""The daemon: every long-lived task of the relay on one screen, and the order in which they start and stop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import structlog

from relay import __version__, admin, control, web
from relay.assembly import Accounts, make_journal, make_links, make_rules, process_name
from relay.clock import Clock, Instant, SystemClock
from relay.delivery import Carrier
from relay.errors import JournalDamaged, JournalError, JournalLocked, JournalUnavailable
from relay.journal import DeadLetter, Journal, JournalUse
from relay.logs import Repeats
from relay.metrics import Metrics
from relay.peers import Peers
from relay.recent import Recent
from relay.roster import Roster
from relay.settings import Settings
from relay.status import FILLING_RATIO, MAX_DEAD, MAX_EVENTS, RelayFacts, SinkFacts
from relay.tasks import SourceTask

log = structlog.get_logger()

LOCK_PATIENCE_SECONDS = 10.0
"""How long a start waits for the journal: a predecessor may still be draining."""
BROKER_PATIENCE_SECONDS = 60.0
"""How long a start tries to reach the brokers of a journal on Kafka: they may be starting as well."""
FACTS_SECONDS = 2.0
"""How long a person or a probe waits for the journal, before what was last seen has to do."""
TEND_SECONDS = 10.0
REPORT_SECONDS = 2.0


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
        self.journal: Journal = make_journal(settings, metrics=self.metrics, clock=self.clock)
        self.http_port = 0
        self._accounts = Accounts(settings, metrics=self.metrics, clock=self.clock)
        self.roster = Roster(
            settings,
            journal=self.journal,
            accounts=self._accounts,
            rules=self._rules,
            metrics=self.metrics,
            clock=self.clock,
        )
        self.peers = Peers(settings, journal=self.journal, clock=self.clock)
        self._started = self.clock.now()
        self._stop = asyncio.Event()
        self._use: JournalUse | None = None
        self._filling_since: Instant | None = None
        self._letters: list[DeadLetter] = []
        self._recent = Recent(titles=settings.http.titles, links=make_links(settings))
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def sources(self) -> list[SourceTask]:
        """The tasks of the sources that this process holds."""
        return self.roster.sources

    @property
    def couriers(self) -> list[Carrier]:
        """The tasks of the sinks that this process holds."""
        return self.roster.couriers

    # -- life -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Asks for an orderly stop; returns at once."""
        self._stop.set()

    async def run(self) -> None:
        """Runs until `stop`. Raises ConfigError or JournalError when it cannot start."""
        listener = web.bind(self.settings.http.host, self.settings.http.port)
        self.http_port = listener.getsockname()[1]
        async with self._opened():
            private = web.bind_admin(self.settings.admin_socket_path)
            await self._run(listener, private)
        self.settings.admin_socket_path.unlink(missing_ok=True)
        log.info("relay stopped")

    async def _run(self, public: socket.socket, private: socket.socket) -> None:
        async with asyncio.TaskGroup() as group:

            def start(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                task = group.create_task(work, name=name)
                self._tasks.append(task)
                return task

            beside = [
                start("serve http", web.serve(web.application(self), public)),
                start("serve the admin socket", web.serve(web.application(self, commands=admin.routes(self)), private)),
                start("tend the journal", self._tend()),
                start("report figures", self._report()),
            ]
            self.journal.obey(admin.obedience(self))
            self.roster.start(group)
            following = start("follow the journal", self.roster.follow())
            log.info("relay started", sources=len(self.sources), sinks=len(self.couriers), http_port=self.http_port)
            await self._stop.wait()
            log.info("relay stopping")
            self._tasks.clear()
            following.cancel()
            await self.roster.finish(self.settings.shutdown_grace.total_seconds())
            for task in beside:
                task.cancel()

    async def run_once(self) -> bool:
        """One live poll a source, backfill to its end, deliver until nothing is due.

        False when anything failed or is left.
        """
        async with self._opened(whole=True), asyncio.TaskGroup() as group:
            sending = [group.create_task(courier.run(), name=f"deliver {courier.name}") for courier in self.couriers]
            results = await asyncio.gather(*(source.once() for source in self.sources))
            await self.roster.drain(sending, None)
            try:
                backlogs = [await courier.backlog() for courier in self.couriers]
            except JournalError as error:
                log.warning("what is left could not be counted", reason=error.reason, error=str(error))
                return False
        return all(results) and not any(backlog.events for backlog in backlogs)

    @asynccontextmanager
    async def _opened(self, *, whole: bool = False) -> AsyncIterator[None]:
        """The journal open, what is ours taken; and everything closed again, clients and journal last.

        `whole`: all that is to be ours, however long others take to give it.
        """
        await self._open_journal()
        try:
            if whole:
                await self.journal.settled()
            await self.roster.adopt()
            yield
        finally:
            await self.roster.close()
            await self.journal.close()

    async def _open_journal(self) -> None:
        """Waits for a predecessor that drains, and for brokers that are just coming back."""
        began = self.clock.monotonic()
        told = False
        while True:
            try:
                return await self.journal.open()
            except JournalLocked:
                if self.clock.monotonic() - began > LOCK_PATIENCE_SECONDS:
                    raise
                await self.clock.sleep(0.2)
            except JournalUnavailable as error:
                waits = (
                    self.settings.journal.kind == "kafka" and self.clock.monotonic() - began < BROKER_PATIENCE_SECONDS
                )
                if not waits or self._stop.is_set():
                    raise
                if not told:
                    log.warning("journal could not be opened", reason=error.reason, error=str(error))
                told = True
                await self.clock.sleep(1.0)

    # -- what goes on beside the tasks -----------------------------------------------------------------------------

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
            own = self._facts([courier.facts_as_seen() for courier in self.couriers])
            await self.peers.publish(
                own.sources,
                own.sinks,
                used_requests_per_second=own.used_requests_per_second,
                wrote=self.journal.written(),
            )
            seen = self._of_all(own)
            self._recent.lagged(seen.now, read=seen.read_up_to, delivered=seen.delivered_up_to)
            for source in self.sources:
                source.summarise_hourly()
            await self.clock.sleep(REPORT_SECONDS)

    # -- what is shown --------------------------------------------------------------------------------------------

    def ended_tasks(self) -> list[str]:
        """Long-lived tasks that are no longer running though nobody asked for a stop."""
        return [task.get_name() for task in self._tasks if task.done()] + self.roster.ended()

    def stuck_seconds(self) -> float:
        """For how long the oldest unfinished call to the journal has been waiting."""
        return self.journal.oldest_call_seconds()

    async def facts(self) -> RelayFacts:
        """Everything that the status says, of all processes of the relay."""
        return self._of_all(await self.own_facts())

    async def own_facts(self) -> RelayFacts:
        """The same of this process alone; what is in the journal is as last seen when it can't be read in time."""
        try:
            async with asyncio.timeout(FACTS_SECONDS):
                self._use = await self.journal.use()
                return self._facts([await courier.facts() for courier in self.couriers])
        except (JournalError, TimeoutError):
            return self._facts([courier.facts_as_seen() for courier in self.couriers])

    def _of_all(self, own: RelayFacts) -> RelayFacts:
        """With what the other processes have said of theirs."""
        return replace(
            own,
            sources=self.peers.sources(own.sources),
            sinks=self.peers.sinks(own.sinks, self.journal.written()),
            used_requests_per_second=own.used_requests_per_second + self.peers.used_requests_per_second(),
            held=(len(own.sources), len(own.sinks)),
            others=self.peers.processes(),
        )

    def _facts(self, sinks: list[SinkFacts]) -> RelayFacts:
        use = self._use
        sources = [source.facts() for source in self.sources]
        stopped = next((source for source in sources if source.state == "stopped"), None)
        now = self.clock.now()
        return RelayFacts(
            now=now,
            version=__version__,
            process=process_name(),
            started=self._started,
            sources=sources,
            sinks=sinks,
            journal_kind=self.settings.journal.kind,
            journal_used_bytes=use.used_bytes if use else None,
            journal_limit_bytes=use.limit_bytes if use else None,
            journal_oldest_event=use.oldest_event if use else None,
            journal_filling_since=self._filling_since,
            polling_stopped_reason=stopped.error if stopped else None,
            polling_stopped_by=stopped.error_reason if stopped else "",
            polling_stopped_since=stopped.since if stopped else None,
            budget_requests_per_second=self.settings.api.requests_per_second,
            journal_growth_bytes_per_day=self._recent.growth_bytes_per_day(now, use.used_bytes) if use else None,
            used_requests_per_second=self._accounts.budget.used_per_second,
            events=self._recent.events,
            lag=self._recent.lag(now),
            dead_letters=[control.letter_facts(letter, titles=self.settings.http.titles) for letter in self._letters],
        )
