"""The Kafka sink: each batch and the journal position that it reaches are one transaction, so that nothing repeats.

librdkafka is touched in the sink's one worker thread alone. After any failure its producer is dropped, and only the
cluster is asked how far the events got. Not the Kafka journal.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import msgspec
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.cimpl import Message

from relay.errors import ConfigError, Refused, Unavailable
from relay.formats import cloudevents
from relay.sinks import Delivery, Position
from relay.sinks.kafka_cluster import DEFAULTS, KIB, SLICE_SECONDS, Plan, Topics, Watch, count, error_of, log
from relay.sinks.kafka_shape import Shape
from relay.sinks.worker import Worker

PROBE_SECONDS: Final = 12.0
"""A person waits for a probe, its patience is shorter."""
COMMIT_SECONDS: Final = 2.0
"""One call of a commit. When its own thread is starved for longer than a call lasts, librdkafka takes what is left of
that call for the result of the next step; so calls are long, and a closed sink leaves one to itself."""
_ABORT_SECONDS: Final = 1.0
_PROBE_KEY: Final = b"-probe"
"""No sink can have this name. Its record is a tombstone, which compaction removes."""

REQUIRED: Final[Mapping[str, str | int | bool]] = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
    "delivery.report.only.error": True,
}
READER: Final[Mapping[str, str | int | bool]] = {
    "group.id": "unused",
    "enable.auto.commit": False,
    # With an offset that exists, or this, the beginning is found at once; asking for it costs half a second.
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "fetch.queue.backoff.ms": 5,
}
MESSAGE_FAULTS: Final[Mapping[int, str]] = {
    KafkaError.MSG_SIZE_TOO_LARGE: "too_large",
    KafkaError.RECORD_LIST_TOO_LARGE: "too_large",
    KafkaError.INVALID_RECORD: "invalid",
}
Answer = TypeVar("Answer")


class _MessageFault(Exception):
    """The broker or librdkafka refused records for what they are; `values` are those of one refused request."""

    def __init__(self, error: KafkaError, values: Sequence[bytes]) -> None:
        super().__init__(error.str())
        self.error = error
        self.values = values


class KafkaSink:
    """One topic, or one a source or severity, of one cluster.

    After Unavailable, and after a cancelled `send`, a transactional sink must be opened again: only then is known what
    the cluster has. `options` are librdkafka's own; they may hold secrets and are never shown.
    """

    max_batch = 1000

    def __init__(
        self,
        name: str,
        *,
        options: Mapping[str, str],
        topic: str,
        journal_id: str,
        kafka_prefix: str = "relay",
        transactional: bool = True,
        max_event_bytes: int = 900 * KIB,
        create_topic: bool = True,
        partitions: int = 6,
        replication_factor: int = -1,
        omit: Collection[str] = (),
        patience_seconds: float = 30.0,
    ) -> None:
        self.atomic = transactional
        self._plan = Plan(
            name=name,
            options=dict(options),
            topic=topic,
            prefix=kafka_prefix,
            journal_id=journal_id,
            transactional=transactional,
            max_event_bytes=max_event_bytes,
            create_topic=create_topic,
            partitions=partitions,
            replication_factor=replication_factor,
            omit=frozenset(omit),
            patience_seconds=patience_seconds,
        )
        self._worker = Worker(f"sink {name}")
        self._link: _Link | None = None

    async def open(self) -> Position | None:
        """Fences every predecessor, then reads back the position; None when nothing was stored, or not transactional.

        Missing topics are made. Raises Unavailable within about `patience_seconds`; ConfigError names a topic that
        only a person can make or mend.
        """
        before, self._link = self._link, self._new_link()
        return await self._run(partial(_succeed, before, self._link), self._link)

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        """Commits the batch and `upto` in one transaction. Raises Refused, after which nothing of it is visible."""
        link = self._link
        if link is None or link.dropped:
            if self.atomic:
                raise Unavailable(self._plan.say("it has to be opened first"), reason="closed")
            link = self._link = self._new_link()
            await self._run(link.open, link)
        await self._run(partial(link.send, batch, upto), link)

    async def probe(self) -> str:
        """Connects and commits a transaction that moves nothing, under an id that fences nobody.

        A missing topic of positions is made, the user's is not.
        """
        plan = replace(self._plan, patience_seconds=min(self._plan.patience_seconds, PROBE_SECONDS))
        link = _Link(plan, f"{self._plan.transactional_id}-probe")
        return await self._run(partial(_probe, link), link)

    async def close(self, timeout_seconds: float) -> None:
        """Drops the producer; what was not committed by then is aborted by the next fence."""
        link, self._link = self._link or self._new_link(), None
        link.interrupt()
        await self._worker.finish(link.drop, timeout_seconds)

    def _new_link(self) -> "_Link":
        return _Link(self._plan, self._plan.transactional_id)

    async def _run(self, job: Callable[[], Answer], link: "_Link") -> Answer:
        try:
            return await self._worker.run(job)
        except asyncio.CancelledError:
            link.interrupt()
            raise


def _succeed(before: "_Link | None", link: "_Link") -> Position | None:
    if before is not None:
        before.drop()
    return link.open()


def _probe(link: "_Link") -> str:
    try:
        return link.probe()
    finally:
        link.drop()


class _Link:
    """One producer from its fence to its end. Blocks: for the worker thread, but for `interrupt` and `dropped`."""

    def __init__(self, plan: Plan, transactional_id: str) -> None:
        self.dropped = False
        self._plan = plan
        self._transactional_id = transactional_id
        self._watch = Watch(plan)
        self._producer: Producer | None = None
        self._templated = "{" in plan.topic
        self._topics: set[str] = set()
        self._shape = Shape(topic=plan.topic, omit=plan.omit, max_event_bytes=plan.max_event_bytes)
        self._failures: list[tuple[KafkaError, bytes]] = []

    def interrupt(self) -> None:
        """Lets work in hand end soon; its outcome is unknown then."""
        self._watch.interrupt()

    def open(self) -> Position | None:
        """Makes or verifies the topics, fences, then reads the position."""
        try:
            self._watch.begin()
            topics = self._admin()
            if not self._templated:
                topics.ensure(self._plan.topic)
            if not self._plan.transactional:
                self._connect()
                return None
            topics.ensure_cursors()
            self._connect()
            return self._read_position(topics.end_of_cursors())
        except KafkaException as exc:
            self.drop()
            raise self._watch.unavailable("opening", error_of(exc)) from exc
        except (Unavailable, ConfigError):
            self.drop()
            raise

    def send(self, batch: Sequence[Delivery], upto: int | None) -> None:
        """Delivers all of it, or raises and leaves nothing of it to be seen."""
        self._producer_now().poll(0)
        self._watch.begin()
        bodies = self._bodies(batch)
        try:
            if self._templated:
                self._ensure_topics({self._shape.topic(delivery) for delivery in batch} - self._topics)
            try:
                self._deliver(batch, bodies, upto)
            except _MessageFault as fault:
                self._isolate(batch, bodies, upto, fault)
        except KafkaException as exc:
            error = self._failures[0][0] if self._failures else error_of(exc)
            self._abandon()
            raise self._watch.unavailable("sending", error) from exc
        except Unavailable:
            self._abandon()
            raise

    def probe(self) -> str:
        """Tries all but sending an event; says what was found."""
        self._watch.begin()
        try:
            topics = self._admin()
            brokers = topics.brokers()
            found = topics.describe()
            if not self._plan.transactional:
                self._connect()
                return f"{self._plan.cluster(brokers)}, {found}; transactions are off, so that events may repeat"
            topics.ensure_cursors()
            self._connect()
            self._begin()
            self._producer_now().produce(self._plan.cursors, None, _PROBE_KEY)
            self._finish()
        except ConfigError as exc:
            raise Unavailable(str(exc), reason=exc.reason) from exc
        except KafkaException as exc:
            raise self._watch.unavailable("trying a transaction", error_of(exc)) from exc
        return f"{self._plan.cluster(brokers)}, {found}; a transaction was committed"

    def drop(self) -> None:
        """Lets go at once: without the purge, a producer whose cluster is gone would wait for it."""
        self.dropped = True
        if self._producer is not None:
            self._producer.purge(blocking=False)
            self._producer = None

    def _admin(self) -> Topics:
        try:
            return Topics(self._plan, self._watch)
        except KafkaException as exc:
            raise ConfigError(self._plan.say("the options cannot be used", error_of(exc))) from exc

    def _connect(self) -> None:
        """A new producer, which ends every other one with its transactional id and what that had not committed."""
        conf = {
            **DEFAULTS,
            "message.max.bytes": max(1_000_000, self._plan.max_event_bytes + 64 * KIB),
            **self._plan.options,
            **REQUIRED,
            "on_delivery": self._note_failure,
            "error_cb": self._watch.hear,
            "logger": log,
        }
        if self._plan.transactional:
            conf["transactional.id"] = self._transactional_id
        try:
            self._producer = Producer(conf)
        except KafkaException as exc:
            raise ConfigError(self._plan.say("the options cannot be used", error_of(exc))) from exc
        self._failures.clear()
        if self._plan.transactional:
            self._insist("fencing", self._producer.init_transactions)

    def _reconnect(self) -> None:
        """A refused request leaves a hole in the old producer's sequence numbers, and the next one falls into it."""
        self.drop()
        self._connect()
        self.dropped = False

    def _ensure_topics(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._admin().ensure(name)
            except ConfigError as exc:
                raise Unavailable(str(exc), reason="no_topic") from exc
            self._topics.add(name)

    def _bodies(self, batch: Sequence[Delivery]) -> list[bytes]:
        """The values to be produced. Raises Refused for events that stay too large, however much is cut."""
        bodies: list[bytes] = []
        refused: dict[int, str] = {}
        for delivery in batch:
            try:
                bodies.append(self._shape.value(delivery))
            except ValueError as exc:
                refused[delivery.position] = str(exc)
        if refused:
            text = self._plan.say(f"{count(len(refused), 'event')} over max_event_bytes")
            raise Refused(text, positions=refused, reason="too_large")
        return bodies

    def _deliver(
        self, batch: Sequence[Delivery], bodies: Sequence[bytes], upto: int | None, *, one_by_one: bool = False
    ) -> None:
        self._begin()
        if upto is not None and self._plan.transactional:
            # First, so that its partition joins the transaction together with the others'.
            position = Position(journal_id=self._plan.journal_id, position=upto)
            self._producer_now().produce(self._plan.cursors, msgspec.json.encode(position), self._plan.name)
        for delivery, body in zip(batch, bodies, strict=True):
            self._produce(delivery, body)
            if one_by_one:
                self._flush()
        self._finish()

    def _begin(self) -> None:
        self._failures.clear()
        if self._plan.transactional:
            self._producer_now().begin_transaction()

    def _produce(self, delivery: Delivery, body: bytes) -> None:
        producer, topic, headers = (
            self._producer_now(),
            self._shape.topic(delivery),
            cloudevents.kafka_headers(delivery),
        )
        while True:
            try:
                producer.produce(topic, body, delivery.uuid, headers=headers)
            except BufferError:
                producer.poll(SLICE_SECONDS)
                self._watch.check("sending")
            except KafkaException as exc:
                if error_of(exc).code() in MESSAGE_FAULTS:
                    raise _MessageFault(error_of(exc), [body]) from exc
                producer.poll(0)
                self._raise_fault()
                raise
            else:
                return

    def _finish(self) -> None:
        """Commits, or without transactions waits for every acknowledgement."""
        if not self._plan.transactional:
            self._flush()
            return
        producer = self._producer_now()
        try:
            self._insist("committing", producer.commit_transaction, each_seconds=COMMIT_SECONDS)
        except KafkaException:
            producer.poll(0)
            self._raise_fault()
            raise

    def _flush(self) -> None:
        producer = self._producer_now()
        while producer.flush(SLICE_SECONDS):
            if self._failures:
                break
            self._watch.check("sending")
        self._raise_fault()
        if self._failures:
            raise KafkaException(self._failures[0][0])

    def _isolate(
        self, batch: Sequence[Delivery], bodies: Sequence[bytes], upto: int | None, fault: _MessageFault
    ) -> None:
        """A request that was refused as a whole is sent again event by event: that finds the one, or gets through."""
        self._reconnect()
        if len(fault.values) > 1:
            try:
                self._deliver(batch, bodies, upto, one_by_one=True)
            except _MessageFault as found:
                fault = found
                self._reconnect()
            else:
                return
        reason, text = MESSAGE_FAULTS[fault.error.code()], self._plan.say("refused by the broker", fault.error)
        limit = max(map(len, fault.values)) if reason == "too_large" else math.inf
        positions = {
            delivery.position: f"{fault.error.name()}: {len(body)} bytes"
            for delivery, body in zip(batch, bodies, strict=True)
            if body in fault.values or len(body) >= limit
        }
        if not positions:
            raise Unavailable(text, reason=reason)
        raise Refused(text, positions=positions, reason=reason)

    def _insist(self, doing: str, call: Callable[[float], None], *, each_seconds: float = SLICE_SECONDS) -> None:
        """Calls again for as long as that is how the outcome is learned."""
        while True:
            try:
                call(each_seconds)
            except KafkaException as exc:
                error = error_of(exc)
                if not error.retriable():
                    raise
                self._producer_now().poll(SLICE_SECONDS / 10)
                self._watch.check(doing, error)
            else:
                return

    def _abandon(self) -> None:
        """The producer is given up. Aborting is a courtesy to readers, who would wait for the transaction's timeout."""
        if self._plan.transactional and self._producer is not None:
            with suppress(KafkaException):
                self._producer.abort_transaction(_ABORT_SECONDS)
        self.drop()

    def _note_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() != KafkaError._PURGE_QUEUE:
            self._failures.append((error, message.value() or b""))

    def _raise_fault(self) -> None:
        faulty = [(error, value) for error, value in self._failures if error.code() in MESSAGE_FAULTS]
        if faulty:
            raise _MessageFault(faulty[0][0], [value for _, value in faulty])

    def _producer_now(self) -> Producer:
        if self._producer is None:
            raise Unavailable(self._plan.say("not connected"), reason="closed")
        return self._producer

    def _read_position(self, end: int) -> Position | None:
        """The last committed position.

        The end is that of open transactions as well: another sink's, begun before our last commit, would hide it.
        """
        consumer = Consumer({**self._plan.connection(), **READER, "error_cb": self._watch.hear, "logger": log})
        try:
            consumer.assign([TopicPartition(self._plan.cursors, 0, 0)])
            value = self._last_value(consumer, end)
        finally:
            consumer.close()
        try:
            return None if value is None else msgspec.json.decode(value, type=Position)
        except msgspec.DecodeError as exc:
            text = f"topic {self._plan.cursors} holds something that is no position; set another kafka_prefix"
            raise ConfigError(self._plan.say(text)) from exc

    def _last_value(self, consumer: Consumer, end: int) -> bytes | None:
        key, value = self._plan.name.encode(), None
        doing = f"reading the position back from {self._plan.cursors}"
        reached = 0
        while reached < end:
            for message in consumer.consume(1000, SLICE_SECONDS / 10):
                error = message.error()
                if error is None:
                    value = message.value() if message.key() == key else value
                elif error.code() == KafkaError._PARTITION_EOF:
                    reached = message.offset() or 0
                    doing = (
                        f"waiting for a transaction that is open in {self._plan.cursors} "
                        "(kafka-transactions.sh find-hanging names it)"
                    )
                elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:
                    # librdkafka looks for the group's coordinator, though no group is ever joined here.
                    raise KafkaException(error)
            self._watch.check(doing)
        return value
