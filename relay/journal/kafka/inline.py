"""Kafka sinks of the journal's own cluster: their records are part of the transaction of the poll that found them.

No delivery, no position, no retry: what is committed is there, once. What can't be written becomes a dead letter in the
same transaction. Replays and redriven letters go through an ordinary Kafka sink beside it.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from relay.clock import SECOND, Clock, Instant
from relay.formats import cloudevents
from relay.journal.kafka.broker import Record
from relay.metrics import SinkMetrics
from relay.sinks import Delivery
from relay.sinks.kafka_shape import Shape

if TYPE_CHECKING:
    from relay.rules import Rule

log = structlog.get_logger()

RECENT: Instant = 3600 * SECOND
"""The span over which the status counts what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What becomes of one event: a record, or a dead letter with its reason, or neither when no rule wants it."""

    delivery: Delivery
    record: Record | None = None
    refused: str = ""


class InlineSink:
    """One such sink. `write` is for the threads of the partitions, `took` for the loop."""

    def __init__(
        self,
        name: str,
        *,
        shape: Shape,
        rule: "Rule | None",
        ensure: Callable[[str], None],
        metrics: SinkMetrics,
        clock: Clock,
    ) -> None:
        """`ensure` makes a topic that is missing. Raises JournalError."""
        self.name = name
        self._shape = shape
        self._rule = rule
        self._ensure = ensure
        self._metrics = metrics
        self._clock = clock
        self._there: set[str] = set()
        self._one = threading.Lock()
        self._recent: deque[tuple[Instant, int]] = deque()
        self._last: Instant | None = None

    def write(self, deliveries: Sequence[Delivery], refused: Mapping[str, str]) -> list[Outcome]:
        """What is to be written for these events. `refused` are names of records that the brokers do not take."""
        with self._one:
            return [self._write(delivery, refused) for delivery in deliveries]

    def _write(self, delivery: Delivery, refused: Mapping[str, str]) -> Outcome:
        name = f"{self.name} {delivery.id}"
        if name in refused:
            return Outcome(delivery=delivery, refused=refused[name])
        if self._rule is not None:
            match = self._rule.matches(delivery.body, origin=delivery.origin)
            if match.error:
                self._metrics.failed("when")
                log.warning("rule failed, event is sent", sink=self.name, event_id=delivery.id, error=match.error)
            elif not match.matched:
                return Outcome(delivery=delivery)
        try:
            value = self._shape.value(delivery)
        except ValueError as exc:
            return Outcome(delivery=delivery, refused=str(exc))
        topic = self._shape.topic(delivery)
        if topic not in self._there:
            self._ensure(topic)
            self._there.add(topic)
        headers = tuple((key, _bytes(text)) for key, text in cloudevents.kafka_headers(delivery))
        key = delivery.uuid.encode("utf-8", "surrogatepass")
        return Outcome(delivery=delivery, record=Record(topic, None, key, value, headers, name=name))

    def written(self) -> tuple[int, Instant | None]:
        """How many events were written in the last hour by this process, and when the last was."""
        since = self._clock.now() - RECENT
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        return sum(events for _at, events in self._recent), self._last

    def took(self, outcomes: Sequence[Outcome]) -> None:
        """These are committed."""
        now = self._clock.now()
        sent = [outcome.delivery for outcome in outcomes if outcome.record is not None]
        if sent:
            self._last = now
            self._recent.append((now, len(sent)))
            lags = [(now - one.updated) / SECOND for one in sent if one.origin == "poll"]
            self._metrics.delivered(lags, "delivered", events=len(sent), seconds=0.0)
        dead = [outcome for outcome in outcomes if outcome.refused]
        for outcome in dead:
            self._metrics.settled("dead", "too_large", 1)
            log.error(
                "event became a dead letter",
                sink=self.name,
                event_id=outcome.delivery.id,
                uuid=outcome.delivery.uuid,
                sequence=outcome.delivery.sequence,
                reason=outcome.refused,
            )
        skipped = len(outcomes) - len(sent) - len(dead)
        if skipped:
            self._metrics.settled("skipped", "when", skipped)


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value or b""
