"""Delivery of one sink: claim events, send them, settle them. Knows neither storage nor the far side.

Acknowledging is the last step: nothing is settled before the sink's `send` returned. Here: what all deliveries share,
and those that carry batches in the order of the journal. Single messages are `relay.messenger`'s.
"""

import abc
import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from relay.clock import SECOND, Clock, Instant
from relay.endpoint import Endpoint
from relay.errors import ConfigError, Gone, JournalDamaged, JournalError, LeaseLost, Refused, SinkError, Unavailable
from relay.incidents import severity_name
from relay.journal import Backlog, Buried, Claim, EndpointStatus, Outcome, OutcomeKind, SinkLease
from relay.logs import REPEAT_SECONDS, Repeats, utc
from relay.metrics import DeliveryOutcome, SinkMetrics
from relay.sinks import Delivery, Sink
from relay.status import SinkFacts

if TYPE_CHECKING:
    from relay.rules import Rule

log = structlog.get_logger()

RECENT: Instant = 3600 * SECOND
"""The span over which the status counts deliveries."""
LAST_RECORD_SECONDS = 10.0
"""The longest between two tries to record what was acknowledged: nothing else is sent meanwhile."""
DRAIN_TRIES = 3
"""How many failures in a row end the draining; what waits is durable."""


class Carrier(abc.ABC):
    """What every delivery to a sink has: its lease, its figures, and how outcomes are recorded."""

    def __init__(
        self,
        *,
        lease: SinkLease,
        kind: str,
        target: str,
        rule: "Rule | None",
        durable: bool,
        keep_seconds: float,
        metrics: SinkMetrics,
        clock: Clock,
    ) -> None:
        """`durable`: outcomes must outlive a loss of power, because nobody else remembers them."""
        self.name = lease.name
        self.kind = kind
        self.target = target
        self._lease = lease
        self._rule = rule
        self._durable = durable
        self._keep_seconds = keep_seconds
        self._metrics = metrics
        self._clock = clock
        self._log = log.bind(sink=lease.name)
        self._repeats = Repeats(clock)
        self._journal_repeats = Repeats(clock)
        self._rule_failures = Repeats(clock, rest_seconds=REPEAT_SECONDS)
        self._last_success: Instant | None = None
        self._recent: deque[tuple[Instant, int]] = deque()
        self._buried = Buried(letters=0, since=None)
        self._backlog = Backlog(events=0, oldest=None)
        self._journal_failures = 0
        self._draining = asyncio.Event()
        self._leaving = False

    # -- what the relay asks of it ----------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def status(self) -> EndpointStatus:
        """The health of the far side."""

    @abc.abstractmethod
    async def run(self) -> None:
        """Delivers until `drain` was called and nothing is due."""

    @abc.abstractmethod
    async def close(self, timeout_seconds: float) -> None:
        """Lets go of the far side."""

    @abc.abstractmethod
    async def enable(self) -> str:
        """A parked or disabled sink goes on; says what was done. Raises JournalError."""

    @abc.abstractmethod
    async def disable(self) -> str:
        """Nothing is sent until it is enabled; everything waits. Says what was done. Raises JournalError."""

    @abc.abstractmethod
    async def test(self) -> str:
        """Sends one marked message, or says why there is none. Raises SinkError."""

    def drain(self) -> None:
        """Lets `run` return once nothing is due any more."""
        self._draining.set()

    def hand_over(self) -> None:
        """Lets `run` return once what is on its way has arrived: another process sends the rest."""
        self._leaving = True
        self.drain()

    async def release(self) -> None:
        """Another process may send now."""
        await self._lease.release()

    def forget_figures(self) -> None:
        """Another process counts from now on."""
        self._metrics.remove()

    async def backlog(self) -> Backlog:
        """What waits for this sink."""
        return await self._lease.backlog()

    def expired(self, counted: Mapping[str, int]) -> None:
        """So many events of each (raw) severity were not taken within `keep`."""
        for severity, events in counted.items():
            self._metrics.expired(severity_name(severity), events)
        if counted:
            self._log.error("events expired", events=sum(counted.values()))

    async def report(self) -> None:
        """Brings the gauges up to date."""
        backlog = self._backlog = await self._lease.backlog()
        self._metrics.waits(backlog.events, backlog.oldest)
        await self._count_letters()

    async def _count_letters(self) -> None:
        self._buried = await self._lease.buried()
        self._metrics.buried(self._buried.letters)

    def next_try(self) -> Instant | None:
        """When a far side that fails is tried again; None when it does not fail."""
        return None

    def parks(self) -> Instant | None:
        """When a far side that fails is given up; None when it does not fail, or never is."""
        return None

    @property
    def max_age_seconds(self) -> float | None:
        """What is older is skipped; None: nothing is too old."""
        return None

    @property
    def notified(self) -> str:
        """The sink that was told that this one is parked, if one was."""
        return ""

    async def facts(self) -> SinkFacts:
        """What the status says of this sink; what waits is as last seen when the journal can't be read."""
        with contextlib.suppress(JournalError):
            self._backlog = await self._lease.backlog()
        return self.facts_as_seen()

    def facts_as_seen(self) -> SinkFacts:
        """The same without asking the journal: what waits is as it was last seen."""
        backlog, status = self._backlog, self.status
        since = self._clock.now() - RECENT
        return SinkFacts(
            name=self.name,
            type=self.kind,
            target=self.target,
            state=status.state,
            since=status.since,
            reason=self._plain(status.reason),
            failures=status.failures,
            next_try=self.next_try() if status.state == "failing" else None,
            paused_until=status.paused_until,
            waiting=backlog.events,
            oldest=backlog.oldest,
            last_success=self._last_success,
            delivered=sum(events for at, events in self._recent if at >= since),
            dead_letters=self._buried.letters,
            dead_since=self._buried.since,
            error_reason=status.label,
            retrying=backlog.retrying,
            parks=self.parks(),
            keep_seconds=self._keep_seconds,
            max_age_seconds=self.max_age_seconds,
            notified=self.notified,
        )

    def _plain(self, reason: str) -> str:
        """A reason without the name of the sink, where that is said already."""
        return reason.removeprefix(f"{self.kind} {self.name}: ").removeprefix(f"{self.kind} sink {self.name}: ")

    # -- what both kinds share --------------------------------------------------------------------------------------

    async def _record(self, outcomes: Sequence[Outcome], endpoint: EndpointStatus | None = None) -> None:
        """Settles, however long the disk refuses: what was acknowledged must not be sent again for that.

        Raises JournalError when there is no use in waiting: a damaged journal, a lost lease, the end of draining.
        """
        while True:
            try:
                await self._lease.settle(outcomes, endpoint, durable=self._durable)
            except (JournalDamaged, LeaseLost):
                raise
            except JournalError as error:
                await self._journal_failed(error, "outcomes could not be recorded")
                if self._draining.is_set() and self._journal_failures >= DRAIN_TRIES:
                    raise
            else:
                self._journal_answered()
                return

    async def _journal_failed(self, error: JournalError, event: str) -> None:
        """Counts, says so, and waits: longer each time, and not for long while draining."""
        self._journal_failures += 1
        self._metrics.journal_failed(error.reason)
        repeat = self._journal_repeats.again(error.reason)
        write = self._log.warning if repeat.due else self._log.debug
        write(event, reason=error.reason, error=str(error), failures=repeat.times, since=repeat.since)
        seconds = min(LAST_RECORD_SECONDS, 2.0 ** (self._journal_failures - 1))
        if self._draining.is_set():
            await self._clock.sleep(min(1.0, seconds))
        else:
            await self._first(asyncio.create_task(self._clock.sleep(seconds), name=f"wait for the journal {self.name}"))

    def _journal_answered(self) -> None:
        if self._journal_failures:
            seconds = self._journal_repeats.over()
            self._log.info("journal recovered", failures=self._journal_failures, seconds=seconds)
        self._journal_failures = 0

    async def _journal_damaged(self, error: JournalDamaged) -> None:
        """Nothing more can be done until a person has been here."""
        self._metrics.journal_failed(error.reason)
        self._log.warning("nothing is sent any more", reason=error.reason, error=str(error))
        await self._draining.wait()

    async def _first(self, task: "asyncio.Task[Any]") -> None:
        """Waits for the task or for the order to drain, which cancels it."""
        draining = asyncio.create_task(self._draining.wait(), name=f"drain {self.name}")
        try:
            await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            draining.cancel()
            await asyncio.gather(task, draining, return_exceptions=True)

    def _matches(self, delivery: Delivery) -> bool:
        """Whether the sink's rule wants it; a rule that fails lets it pass, and is counted."""
        if self._rule is None:
            return True
        match = self._rule.matches(delivery.body, origin=delivery.origin)
        if match.error:
            self._metrics.failed("when")
            repeat = self._rule_failures.again("when")
            write = self._log.warning if repeat.due else self._log.debug
            write(
                "rule failed, event is sent",
                event_id=delivery.id,
                uuid=delivery.uuid,
                sequence=delivery.sequence,
                error=match.error,
                failures=repeat.times,
                since=repeat.since,
            )
        return match.matched

    def _took(self, batch: Sequence[Delivery], outcome: DeliveryOutcome, *, at: Instant, seconds: float) -> None:
        """The far side has acknowledged these, at that instant: not when the journal had taken note of it."""
        now = self._last_success = at
        self._recent.append((now, len(batch)))
        while self._recent[0][0] < now - RECENT:
            self._recent.popleft()
        lags = [(now - delivery.updated) / SECOND for delivery in batch if delivery.origin == "poll"]
        self._metrics.delivered(lags, outcome, events=len(batch), seconds=seconds)
        if self._log.is_enabled_for(logging.DEBUG):
            for one in batch:
                self._log.debug(
                    "event delivered", outcome=outcome, event_id=one.id, uuid=one.uuid, sequence=one.sequence
                )
        self._log.debug("batch delivered", events=len(batch), seconds=round(seconds, 3))

    def _left_out(self, batch: Sequence[Delivery], outcome: DeliveryOutcome, reason: str) -> None:
        """These are settled, and were not sent."""
        self._metrics.settled(outcome, reason, len(batch))
        if self._log.is_enabled_for(logging.DEBUG):
            for one in batch:
                self._log.debug(
                    "event not sent",
                    outcome=outcome,
                    reason=reason,
                    event_id=one.id,
                    uuid=one.uuid,
                    sequence=one.sequence,
                )

    def _buried_one(self, delivery: Delivery, reason: str) -> None:
        self._log.error(
            "event became a dead letter",
            event_id=delivery.id,
            uuid=delivery.uuid,
            sequence=delivery.sequence,
            reason=reason,
        )

    def _went_on(self, failures: int, since: Instant | None) -> None:
        """The far side is back after so many failures; `since` is when the first of them was."""
        self._repeats.over()
        now = self._clock.now()
        seconds = round((now - (since or now)) / SECOND, 1)
        self._log.info("sink recovered", failures=failures, seconds=seconds)


class Courier(Carrier):
    """Carries batches, in the order of the journal, to one sink for as long as `run` runs."""

    def __init__(
        self,
        *,
        sink: Sink,
        lease: SinkLease,
        kind: str,
        target: str,
        rule: "Rule | None" = None,
        keep_seconds: float,
        metrics: SinkMetrics,
        clock: Clock,
    ) -> None:
        super().__init__(
            lease=lease,
            kind=kind,
            target=target,
            rule=rule,
            durable=not sink.atomic,
            keep_seconds=keep_seconds,
            metrics=metrics,
            clock=clock,
        )
        self.endpoint = Endpoint(lease.endpoint, clock=clock)
        self._sink = sink
        self._opened = False
        self._next_try: Instant | None = None
        self._enabled = asyncio.Event()
        self._waiting: asyncio.Task[Claim] | None = None
        metrics.entered(self.endpoint.status.state)

    @property
    def status(self) -> EndpointStatus:
        """The health of the far side."""
        return self.endpoint.status

    async def run(self) -> None:
        """Delivers until `drain` was called and nothing is due; a far side that is down then gets a few tries.

        So does a journal that can't be used; one that is damaged gets none.
        """
        while not self._leaving:
            try:
                if await self._step():
                    return
                self._journal_answered()
            except SinkError as error:
                await self._failed(error)
            except JournalDamaged as error:
                await self._journal_damaged(error)
                return
            except JournalError as error:
                await self._journal_failed(error, "nothing could be claimed")
            if self._draining.is_set() and max(self.status.failures, self._journal_failures) >= DRAIN_TRIES:
                return

    async def close(self, timeout_seconds: float) -> None:
        """Lets go of the far side."""
        await self._sink.close(timeout_seconds)

    def next_try(self) -> Instant | None:
        """When a far side that fails is tried again."""
        return self._next_try

    async def enable(self) -> str:
        """A parked or disabled sink goes on."""
        before = self.status.state
        if before not in ("parked", "disabled"):
            return f"{self.name} was not stopped"
        self.endpoint.enable()
        await self._changed()
        self._enabled.set()
        return f"{self.name} was {before} and goes on with the oldest waiting event"

    async def disable(self) -> str:
        """Nothing is sent until it is enabled; everything waits, within `keep`."""
        self.endpoint.disable()
        if self._waiting is not None:
            self._waiting.cancel()
        await self._changed()
        return f"{self.name} is disabled; its events wait until it is enabled, or `keep` is over"

    async def test(self) -> str:
        """Programs read this sink, and would take a test for an event: it is only tried. Raises SinkError."""
        return f"{await self._sink.probe()}; nothing was sent, since its readers would take a test for an incident"

    async def _changed(self) -> None:
        await self._record([], self.status)
        self._metrics.entered(self.status.state)
        self._log.info("sink state changed", state=self.status.state)

    async def _step(self) -> bool:
        """One batch; True when draining is done."""
        if self.status.state in ("parked", "disabled"):
            self._enabled.clear()
            await self._first(asyncio.create_task(self._enabled.wait(), name=f"wait to be enabled {self.name}"))
            return self._draining.is_set()
        if not self._opened:
            await self._open()
        claim = await self._claim()
        if not claim.deliveries:
            return self._draining.is_set()
        if self.status.state == "disabled":  # while it was claimed
            await self._settle(claim.deliveries, "held")
            return False
        await self._deliver(claim)
        return False

    async def _open(self) -> None:
        try:
            position = await self._sink.open()
        except ConfigError as error:
            raise Unavailable(str(error), reason=error.reason) from error
        if position is not None and not await self._lease.resume(position):
            self._log.warning(
                "another journal has written to this sink under the same kafka_prefix",
                its_journal=position.journal_id,
                hint="two relays on one cluster need different prefixes; after a lost journal this is expected",
            )
        self._opened = True
        self._log.debug("sink opened", position=position.position if position else None)

    async def _claim(self) -> Claim:
        """Waits for work; while draining, an empty claim means that nothing is due."""
        limit = self._sink.max_batch
        if not self._draining.is_set():
            claiming = asyncio.create_task(self._lease.claim(limit, in_order=True), name=f"claim {self.name}")
            self._waiting = claiming
            await self._first(claiming)
            self._waiting = None
            if not claiming.cancelled():
                return claiming.result()
            if self.status.state == "disabled":
                return Claim(deliveries=[], upto=None)
        return await self._lease.claim(limit, in_order=True, wait=False)

    async def _deliver(self, claim: Claim) -> None:
        """Sends one claim; what the sink refuses becomes dead letters, and the rest is sent without them."""
        batch, skipped = self._sorted_out(claim)
        try:
            while True:
                started = self._clock.monotonic()
                try:
                    if batch or self._sink.atomic:
                        await self._sink.send(batch, upto=claim.upto)
                    acknowledged, seconds = self._clock.now(), self._clock.monotonic() - started
                    break
                except Refused as refused:
                    await self._bury(refused, batch)
                    batch = [d for d in batch if d.position not in refused.positions]
        except SinkError:
            self._opened = not self._sink.atomic
            await self._settle([*batch, *skipped], "held")
            raise
        await self._settle(batch, "done", skipped)
        if batch:
            self._took(batch, "delivered", at=acknowledged, seconds=seconds)

    def _sorted_out(self, claim: Claim) -> tuple[Sequence[Delivery], Sequence[Delivery]]:
        """What the rule lets pass, and what it does not: an atomic sink moves past the latter with the batch."""
        if self._rule is None:
            return claim.deliveries, ()
        wanted = {delivery.position: self._matches(delivery) for delivery in claim.deliveries}
        return (
            [delivery for delivery in claim.deliveries if wanted[delivery.position]],
            [delivery for delivery in claim.deliveries if not wanted[delivery.position]],
        )

    async def _settle(self, batch: Sequence[Delivery], kind: OutcomeKind, skipped: Sequence[Delivery] = ()) -> None:
        since = self.status.since
        recovered = kind == "done" and self.status.state != "disabled" and self.endpoint.recovered()
        outcomes = [Outcome(positions=[delivery.position for delivery in batch], kind=kind)]
        if skipped:
            outcomes.append(Outcome(positions=[delivery.position for delivery in skipped], kind="skipped"))
        await self._record(outcomes, self.endpoint.status if recovered else None)
        if skipped:
            self._left_out(skipped, "skipped", "when")
        if recovered:
            self._metrics.entered("ok")
            self._went_on(self.endpoint.failures_before, since)

    async def _bury(self, refused: Refused, batch: Sequence[Delivery]) -> None:
        """Dead letters are durable before the rest of the batch moves the position past them."""
        await self._record(
            [Outcome(positions=[at], kind="dead", reason=reason) for at, reason in refused.positions.items()]
        )
        self._metrics.settled("dead", refused.reason, len(refused.positions))
        with contextlib.suppress(JournalError):  # what is counted late must not keep the rest of the batch
            await self._count_letters()
        for delivery in batch:
            if delivery.position in refused.positions:
                self._buried_one(delivery, refused.positions[delivery.position])

    async def _failed(self, error: SinkError) -> None:
        """The endpoint is at fault: nothing is lost, everything is held, and tried again after a while."""
        if self.status.state == "disabled":  # while it was sent: a person's word stands
            return
        first = self.endpoint.failed(error, gone=isinstance(error, Gone))
        self._metrics.settled("retried", error.reason, 1)
        self._metrics.entered(self.endpoint.status.state)
        wait = self.endpoint.next_probe_seconds(error)
        if first:
            await self._record([], self.endpoint.status)
        self._tell_of_failure(error, wait)
        await self._pause(wait)

    def _tell_of_failure(self, error: SinkError, wait_seconds: float) -> None:
        """Of a parking once, of a failure when it is new and then once an interval."""
        status = self.status
        if status.state == "parked":
            self._log.error("sink parked", reason=error.reason, error=str(error), failures=status.failures)
            return
        write = self._log.warning if self._repeats.again(error.reason).due else self._log.debug
        write(
            "sink failed",
            reason=error.reason,
            error=str(error),
            next_try_seconds=round(wait_seconds, 1),
            failures=status.failures,
            since=utc(status.since or self._clock.now()),
        )

    async def _pause(self, seconds: float) -> None:
        """Waits that long; an order to drain ends it."""
        if self.endpoint.status.state == "parked":
            return
        self._next_try = self._clock.now() + int(seconds * SECOND)
        await self._first(asyncio.create_task(self._clock.sleep(seconds), name=f"pause {self.name}"))
