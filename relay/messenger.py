"""Delivery of a sink that posts messages: one at a time to each incident, several at once, each with its own fate.

Retries, breaker, pauses, and the manners of a chat channel. Batches in the order of the journal are `relay.delivery`'s.
"""

import asyncio
import contextlib
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from relay.clock import SECOND, Clock, Instant
from relay.delivery import Carrier
from relay.endpoint import MESSAGE_PROBES_SECONDS, PARKED_AFTER_SECONDS, Breaker, Strike
from relay.errors import ConfigError, Gone, JournalDamaged, JournalError, Refused, SinkError, Unavailable
from relay.formats import native
from relay.formats.message import Notice, Parked, Skipped
from relay.incidents import Event, event_id, format_instant, severity_name
from relay.journal import EndpointStatus, Outcome, SinkLease
from relay.logs import REPEAT_SECONDS, Repeats, hide, utc
from relay.metrics import DeliveryOutcome, SinkMetrics
from relay.sinks import Delivery, MessageSink

if TYPE_CHECKING:
    from relay.rules import Rule

CLAIM_AHEAD: Final = 5000
"""How many waiting events a chat sink looks at, to leave out what is superseded and to show the worst first."""
PROBE_CHOICE: Final = 20
"""Among so many incidents a probe picks: one message that is at fault itself must not keep an endpoint shut."""
JITTER: Final = (0.8, 1.2)
_PLACES: Final = {"slack": "Slack", "teams": "Teams"}
_RANKS: Final = {"HIGH": 0, "MEDIUM": 1, "LOW": 2}


class Manners(msgspec.Struct, frozen=True, kw_only=True):
    """What people expect of a channel: nothing old, nothing twice, no flood."""

    max_age_seconds: float
    digest_above: int


class Teller(Protocol):
    """Whoever can be told something that is no event."""

    name: str
    """What it is called in the configuration."""

    def tell(self, notice: Notice, done: Callable[[], Awaitable[None]]) -> None:
        """Posts the notice before any event; `done` is called once it is there."""
        ...


class Messenger(Carrier):
    """Carries messages to one sink for as long as `run` runs."""

    def __init__(
        self,
        *,
        sink: MessageSink,
        lease: SinkLease,
        kind: str,
        target: str,
        rule: "Rule | None" = None,
        manners: Manners | None = None,
        retry_seconds: Sequence[float],
        concurrency: int = 1,
        keep_seconds: float,
        metrics: SinkMetrics,
        clock: Clock,
    ) -> None:
        """`retry_seconds` are the waits before each attempt at a message; with `manners` people read the sink."""
        super().__init__(
            lease=lease,
            kind=kind,
            target=target,
            rule=rule,
            durable=True,
            keep_seconds=keep_seconds,
            metrics=metrics,
            clock=clock,
        )
        self.notify: Teller | None = None
        """Who is told when this sink is parked."""
        self.breaker = Breaker(lease.endpoint, clock=clock)
        self._sink = sink
        self._manners = manners
        self._retry_seconds = tuple(retry_seconds)
        self._concurrency = concurrency
        self._ready: dict[int, Delivery] = {}
        self._flying: set[asyncio.Task[None]] = set()
        self._notices: deque[tuple[Notice, Callable[[], Awaitable[None]]]] = deque()
        self._overdue: list[Delivery] = []
        self._troubled = False
        self._pauses = Repeats(clock, rest_seconds=REPEAT_SECONDS)
        self._refusals = Repeats(clock, rest_seconds=REPEAT_SECONDS)
        self._nudged = asyncio.Event()
        self._idle = False
        self._telling = False
        self._failure: BaseException | None = None
        self._show()

    @property
    def status(self) -> EndpointStatus:
        """The health of the far side."""
        return self.breaker.status

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Delivers until `drain` was called and nothing more can be sent."""
        await self._tell_of_parking()
        try:
            while not self._over():
                try:
                    await self._turn()
                    self._journal_answered()
                except JournalDamaged as error:
                    await self._journal_damaged(error)
                    return
                except JournalError as error:
                    await self._journal_failed(error, "nothing could be claimed")
        finally:
            for task in self._flying:
                task.cancel()
            await asyncio.gather(*self._flying, return_exceptions=True)

    def drain(self) -> None:
        """Lets `run` return once nothing is due any more, or nothing can be sent."""
        self._draining.set()
        self._nudged.set()

    async def close(self, timeout_seconds: float) -> None:
        """Lets go of the far side."""
        await self._sink.close(timeout_seconds)

    def _over(self) -> bool:
        done = self._leaving or self._idle or not self.breaker.sending
        return self._draining.is_set() and not self._flying and done

    async def _turn(self) -> None:
        self._nudged.clear()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self.breaker.unpaused():
            await self._record([], self.status)
            self._show()
        wait = self.breaker.wait_seconds()
        if wait > 0:
            await self._release()
            await self._rest(None if wait == float("inf") else wait)
        elif not self.breaker.sending:
            await self._probe()
        elif self._notices:
            await self._post_notice()
        elif self._manners is None:
            await self._send_at_once()
        else:
            await self._send_in_turn(self._manners)

    async def _rest(self, seconds: float | None) -> None:
        """Waits that long (None: for good) or until something changed, and lets what is flying land."""
        waits: list[asyncio.Future[Any]] = [asyncio.create_task(self._nudged.wait(), name=f"nudge {self.name}")]
        if seconds is not None:
            waits.append(asyncio.create_task(self._clock.sleep(seconds), name=f"pause {self.name}"))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self._draining.is_set() and self._flying:
                await asyncio.wait(self._flying)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    # -- what operators do ----------------------------------------------------------------------------------------

    async def enable(self) -> str:
        """A parked or disabled sink goes on; whatever it waits for, it is tried now."""
        before = self.breaker.status.state
        if not self.breaker.enable():
            return f"{self.name} was not stopped"
        await self._changed()
        return f"{self.name} was {before} and goes on with the oldest waiting event"

    async def disable(self) -> str:
        """Nothing is sent until it is enabled; everything waits, within `keep`."""
        self.breaker.disable()
        await self._changed()
        return f"{self.name} is disabled; its events wait until it is enabled, or `keep` is over"

    async def test(self) -> str:
        """Sends one message that says what it is. Raises SinkError."""
        try:
            await self._sink.send([_sample(self._clock.now())], upto=None)
        except SinkError as error:
            raise SinkError(hide(str(error)), reason=error.reason) from None
        return f"{self.name} took a test message"

    def tell(self, notice: Notice, done: Callable[[], Awaitable[None]]) -> None:
        """Posts the notice before any event; `done` is called once it is there."""
        self._notices.append((notice, done))
        self._nudged.set()

    async def _changed(self) -> None:
        await self._keep_state()
        self._log.info("sink state changed", state=self.breaker.status.state)

    async def _keep_state(self) -> None:
        await self._record([], self.status)
        self._show()
        self._nudged.set()

    # -- claiming -------------------------------------------------------------------------------------------------

    async def _claim(self, limit: int) -> list[Delivery]:
        """What is due and wanted; waits for it unless there is something else to do. What is not wanted is settled."""
        if self._leaving:
            return []
        if self._draining.is_set() or self._ready or self._overdue:
            claim = await self._lease.claim(limit, in_order=False, wait=False)
        else:
            claiming = asyncio.create_task(self._lease.claim(limit, in_order=False), name=f"claim {self.name}")
            nudged = asyncio.create_task(self._nudged.wait(), name=f"nudge {self.name}")
            try:
                await asyncio.wait({claiming, nudged}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                claiming.cancel()
                nudged.cancel()
                await asyncio.gather(claiming, nudged, return_exceptions=True)
            if claiming.cancelled():
                return []
            claim = claiming.result()
        self._idle = not claim.deliveries and not self._ready
        return await self._wanted(claim.deliveries)

    async def _wanted(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those that rule and manners let pass; the others are skipped, and counted."""
        skipped: dict[str, list[Delivery]] = {}
        wanted = []
        for delivery in deliveries:
            reason = self._unwanted(delivery)
            if reason:
                skipped.setdefault(reason, []).append(delivery)
            else:
                wanted.append(delivery)
        for reason, some in skipped.items():
            await self._settle(some, Outcome(positions=_positions(some), kind="skipped"), "skipped", reason)
            if reason == "max_age" and self._troubled:
                self._overdue += some
        return wanted

    def _unwanted(self, delivery: Delivery) -> str:
        """Why this sink does not send it; empty when it does."""
        if delivery.origin == "replay":
            return ""
        if self._manners is not None:
            if delivery.origin == "backfill":
                return "backfill"
            if self._clock.now() - delivery.updated > self._manners.max_age_seconds * SECOND:
                return "max_age"
        return "" if self._matches(delivery) else "when"

    async def _release(self) -> None:
        """Gives back what was claimed and can't be sent now."""
        ready, self._ready = list(self._ready.values()), {}
        if ready:
            await self._record([Outcome(positions=_positions(ready), kind="held")])

    # -- sending --------------------------------------------------------------------------------------------------

    async def _send_at_once(self) -> None:
        """As many as may fly, each about another incident."""
        room = self._concurrency - len(self._flying)
        if room:
            claimed = await self._claim(room)
            if not self.breaker.sending:
                await self._record([Outcome(positions=_positions(claimed), kind="held")])
                return
            for delivery in claimed:
                task = asyncio.create_task(self._carry([delivery]), name=f"send {self.name} {delivery.id}")
                self._flying.add(task)
                task.add_done_callback(self._landed)
        if self._flying and (len(self._flying) >= self._concurrency or self._draining.is_set()):
            await asyncio.wait(self._flying, return_when=asyncio.FIRST_COMPLETED)

    def _landed(self, task: "asyncio.Task[None]") -> None:
        self._flying.discard(task)
        self._nudged.set()
        if not task.cancelled():
            self._failure = task.exception() or self._failure

    async def _send_in_turn(self, manners: Manners) -> None:
        """One message; with many waiting, one stands for the worst of them."""
        room = CLAIM_AHEAD - len(self._ready)
        overdue = len(self._overdue)
        for delivery in await self._claim(room) if room else ():
            self._ready[delivery.position] = delivery
        if overdue and len(self._overdue) == overdue:  # what became too old is counted to its end
            await self._post_skipped(manners)
        kept = await self._not_superseded(list(self._ready.values()))
        self._ready = {delivery.position: delivery for delivery in kept}
        if not self._ready or not self.breaker.sending or self._leaving:
            return
        waiting = list(self._ready.values())
        if len(waiting) > manners.digest_above:
            waiting.sort(key=lambda one: (_RANKS.get(severity_name(one.severity), 3), one.position))
            batch = sorted(waiting[: self._sink.max_batch], key=lambda one: one.position)
        else:
            batch = waiting[:1]
        for delivery in batch:
            del self._ready[delivery.position]
        await self._carry(batch)
        self._troubled = self._troubled and not self.breaker.sending

    async def _post_skipped(self, manners: Manners) -> None:
        """After an outage one message stands for what became too old meanwhile."""
        overdue = list(self._overdue)
        notice = Skipped(
            sink=self.name,
            severities=Counter(one.severity for one in overdue),
            max_age_seconds=manners.max_age_seconds,
            begin=min(one.updated for one in overdue),
            end=max(one.updated for one in overdue),
        )
        if await self._post(notice):
            del self._overdue[: len(overdue)]

    async def _not_superseded(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Without those behind which a newer version of their incident waits, if that one is wanted."""
        later = await self._lease.later_versions(deliveries)
        old = [
            delivery
            for delivery in deliveries
            if any(not self._unwanted(version) for version in later.get(delivery.position, ()))
        ]
        if not old:
            return list(deliveries)
        await self._settle(old, Outcome(positions=_positions(old), kind="superseded"), "superseded", "")
        self._nudged.set()
        gone = set(_positions(old))
        return [delivery for delivery in deliveries if delivery.position not in gone]

    async def _probe(self) -> None:
        """One message of another incident than the last probe's tells whether the endpoint is back."""
        if self._notices:
            await self._post_notice()
            return
        claimed = await self._claim(PROBE_CHOICE)
        if self._manners is not None:
            claimed = await self._not_superseded(claimed)
        if not claimed:
            if self._overdue and self._manners is not None:
                await self._post_skipped(self._manners)
            return
        chosen = claimed[self.breaker.probes % len(claimed)]
        rest = [one for one in claimed if one is not chosen]
        if rest:
            await self._record([Outcome(positions=_positions(rest), kind="held")])
        await self._carry([chosen])

    async def _post_notice(self) -> None:
        notice, done = self._notices[0]
        if await self._post(notice):
            self._notices.popleft()
            await done()

    async def _post(self, notice: Notice) -> bool:
        """Posts it; False when it has to be tried again. One that is refused is not."""
        try:
            await self._sink.tell(notice)
        except Gone as error:
            await self._park(str(error), error.reason)
        except (Unavailable, ConfigError) as error:
            trouble = error if isinstance(error, Unavailable) else Unavailable(str(error), reason=error.reason)
            await self._struck([], trouble)
            if self.breaker.sending:  # one failure proves nothing yet; the notice has no schedule of its own
                await self._rest(MESSAGE_PROBES_SECONDS[0])
        except Refused as error:
            self._log.error("notice refused", reason=error.reason, error=str(error))
            return True
        else:
            await self._succeeded()
            return True
        return False

    async def _carry(self, batch: Sequence[Delivery]) -> None:
        """Sends one message, which stands for the batch, and records what became of it."""
        started = self._clock.monotonic()
        try:
            await self._sink.send(batch, upto=None)
        except Gone as error:
            await self._record([Outcome(positions=_positions(batch), kind="held")])
            await self._park(str(error), error.reason)
        except Unavailable as error:
            await self._struck(batch, error)
        except Refused as error:
            await self._refused(batch, error)
        except ConfigError as error:
            await self._struck(batch, Unavailable(str(error), reason=error.reason))
        else:
            acknowledged, seconds = self._clock.now(), self._clock.monotonic() - started
            await self._succeeded()
            outcome = Outcome(positions=_positions(batch), kind="done")
            await self._record([outcome])
            self._took(batch, self._sink.outcome, at=acknowledged, seconds=seconds)

    # -- failures -------------------------------------------------------------------------------------------------

    async def _succeeded(self) -> None:
        since = self.status.since
        if self.breaker.succeeded():
            await self._keep_state()
            self._went_on(self.breaker.failures_before, since)

    async def _struck(self, batch: Sequence[Delivery], error: Unavailable) -> None:
        """The endpoint's kind of failure: the message's own, until it proves to be the endpoint's."""
        strikes = [Strike(position=d.position, incident=(d.source, d.uuid), attempts=d.attempts) for d in batch]
        before = self.breaker.status.state
        alone = not self._ready and len(self._flying) <= 1 and await self._is_alone(batch)
        forgiven = self.breaker.struck(strikes, error, alone=alone)
        self._metrics.settled("retried", error.reason, max(1, len(batch)))
        self._troubled = self._troubled or forgiven is not None
        if forgiven is None:
            await self._again(batch, error.reason)
            return
        now = self._clock.now()
        back: dict[int, int] = {}
        for strike in (*forgiven, *strikes):  # the oldest strike of a message knows what was before
            back.setdefault(strike.position, strike.attempts)
        outcomes = [
            Outcome(positions=[at], kind="retry", due=now, reason=error.reason, attempts=attempts)
            for at, attempts in back.items()
        ]
        await self._record(outcomes, self.status)
        self._show()
        if before not in ("parked", "disabled"):
            self._tell_of_trouble(error)
        await self._tell_of_parking()
        self._nudged.set()

    def _tell_of_trouble(self, error: Unavailable) -> None:
        """Of a parking once, of anything else when it is new and then once an interval."""
        status = self.status
        wait_seconds = round(min(self.breaker.wait_seconds(), 1e9), 1)
        if status.state == "parked":
            self._log.error("sink parked", reason=error.reason, error=status.reason, failures=status.failures)
        elif status.state == "paused":
            repeat = self._pauses.again(error.reason)
            write = self._log.warning if repeat.due else self._log.debug
            write(
                "sink paused",
                reason=error.reason,
                error=str(error),
                seconds=wait_seconds,
                pauses=repeat.times,
                since=repeat.since,
            )
        elif status.state == "failing":
            write = self._log.warning if self._repeats.again(error.reason).due else self._log.debug
            write(
                "sink failed",
                reason=error.reason,
                error=str(error),
                next_try_seconds=wait_seconds,
                failures=status.failures,
                since=utc(status.since or self._clock.now()),
            )

    async def _is_alone(self, batch: Sequence[Delivery]) -> bool:
        """Whether nothing waits but these, and versions of the same incidents behind them."""
        later = await self._lease.later_versions(batch)
        waiting = (await self._lease.backlog()).events
        return waiting <= len(batch) + sum(map(len, later.values()))

    async def _refused(self, batch: Sequence[Delivery], error: Refused) -> None:
        """Tried again by the schedule, and buried after that."""
        await self._succeeded()  # the endpoint answered, and blamed the message: it is well
        self._metrics.settled("retried", error.reason, len(batch))
        await self._again(batch, error.reason)
        repeat = self._refusals.again(error.reason)
        write = self._log.warning if repeat.due else self._log.debug
        write(
            "message refused",
            events=len(batch),
            reason=error.reason,
            error=str(error),
            refusals=repeat.times,
            since=repeat.since,
        )

    async def _again(self, batch: Sequence[Delivery], reason: str) -> None:
        """The next attempt of each by its schedule; after the last one a dead letter."""
        now = self._clock.now()
        outcomes = []
        dead = []
        for delivery in batch:
            tried = delivery.attempts + 1
            if tried >= len(self._retry_seconds):
                dead.append(delivery)
                outcomes.append(Outcome(positions=[delivery.position], kind="dead", reason=reason))
            else:
                wait = self._retry_seconds[tried] * random.uniform(*JITTER)
                due = now + int(wait * SECOND)
                outcomes.append(
                    Outcome(positions=[delivery.position], kind="retry", due=due, reason=reason, attempts=tried)
                )
        await self._record(outcomes)
        for delivery, outcome in zip(batch, outcomes, strict=True):
            if outcome.due is not None:
                self._log.debug(
                    "event put off",
                    event_id=delivery.id,
                    uuid=delivery.uuid,
                    sequence=delivery.sequence,
                    reason=reason,
                    attempts=outcome.attempts,
                    next_try_seconds=round((outcome.due - now) / SECOND, 1),
                )
        for delivery in dead:
            self._metrics.settled("dead", reason, 1)
            self._buried_one(delivery, reason)
        if dead:
            with contextlib.suppress(JournalError):
                await self._count_letters()

    async def _park(self, reason: str, label: str) -> None:
        if self.breaker.stopped:
            return
        self.breaker.park(reason, label)
        await self._keep_state()
        self._log.error("sink parked", reason=label, error=self.status.reason, failures=self.status.failures)
        await self._tell_of_parking()

    async def _tell_of_parking(self) -> None:
        """Once, however often the relay is started meanwhile."""
        status = self.breaker.status
        if status.state != "parked" or status.told or self._telling or self.notify is None:
            return
        self._telling = True
        backlog = await self._lease.backlog()
        oldest = backlog.oldest
        notice = Parked(
            sink=self.name,
            reason=self._plain(status.reason),
            since=status.since or self._clock.now(),
            waiting=backlog.events,
            oldest=oldest,
            kept_until=None if oldest is None else oldest + int(self._keep_seconds * SECOND),
            skipped_from=None
            if oldest is None or self._manners is None
            else oldest + int(self._manners.max_age_seconds * SECOND),
            place=_PLACES.get(self.kind, self.target) or "it",
        )
        self.notify.tell(notice, self._told)

    async def _told(self) -> None:
        self._telling = False
        if self.breaker.status.state == "parked":
            self.breaker.told()
            await self._record([], self.status)

    # -- recording and showing ------------------------------------------------------------------------------------

    async def _settle(self, batch: Sequence[Delivery], outcome: Outcome, shown: DeliveryOutcome, reason: str) -> None:
        await self._record([outcome])
        self._left_out(batch, shown, reason)

    def _show(self) -> None:
        self._metrics.entered(self.breaker.status.state)
        self._metrics.paused(self.breaker.status.paused_until)

    def next_try(self) -> Instant | None:
        """When a far side that fails is probed again."""
        return self._clock.now() + int(self.breaker.wait_seconds() * SECOND)

    def parks(self) -> Instant | None:
        """When a far side that fails is given up."""
        status = self.breaker.status
        if status.state != "failing" or status.since is None:
            return None
        return status.since + int(PARKED_AFTER_SECONDS * SECOND)

    @property
    def max_age_seconds(self) -> float | None:
        """What is older is skipped where people read."""
        return None if self._manners is None else self._manners.max_age_seconds

    @property
    def notified(self) -> str:
        """The sink that was told that this one is parked, if one was."""
        status = self.breaker.status
        return self.notify.name if self.notify is not None and status.state == "parked" and status.told else ""


def _positions(batch: Sequence[Delivery]) -> list[int]:
    return [delivery.position for delivery in batch]


def _sample(now: Instant) -> Delivery:
    """What `relay sinks test` sends: it looks like an event, and says that it is none."""
    time = format_instant(now)
    fields = {
        "uuid": "test",
        "displayName": "Test of Incident Relay: this is no incident",
        "description": "Sent by `relay sinks test`. Nothing happened, and nothing has to be done.",
        "severity": "INCIDENT_SEVERITY_LEVEL_LOW",
        "status": "INCIDENT_STATUS_OPEN",
        "createTime": time,
        "updateTime": time,
    }
    event = Event(
        id=event_id(source="test", uuid="test", updated=now, revision=0, digest=b""),
        kind="created",
        source="test",
        origin="poll",
        uuid="test",
        sequence=1,
        updated=now,
        observed=now,
        severity=fields["severity"],
        changed=[],
        previous={},
        incident=msgspec.json.encode(fields),
    )
    return Delivery.of(0, event, native.render(event))
