"""A real Kafka behind `relay.journal.kafka.broker`: confluent-kafka's clients, each in one thread of its own.

Errors become the journal's, with the operator's cure and without secrets, by what the Kafka sinks know of them.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.cimpl import Message as KafkaMessage

from relay.errors import ConfigError, JournalError, JournalMisplaced, JournalUnavailable, SinkError, Unavailable
from relay.journal.kafka.broker import Change, Doubtful, Fenced, Headers, Message, Record, RecordsRefused, TopicPlan
from relay.journal.kafka.rights import TOPIC_RIGHTS, listed, require_rights
from relay.sinks.kafka import MESSAGE_FAULTS, READER, REQUIRED
from relay.sinks.kafka_cluster import DEFAULTS, NO_COORDINATOR, SLICE_SECONDS, Plan, Topics, Watch, error_of, log
from relay.sinks.worker import Worker

T = TypeVar("T")

PATIENCE_SECONDS: Final = 30.0
"""How long a silent cluster is waited for in one call."""
LARGEST_RECORD_BYTES: Final = 16 * 2**20
"""No incident is larger; the topic of changes takes as much."""
RELEASE_SECONDS: Final = 8.0
"""How long the group waits for us to finish with what it takes away."""
READ_SECONDS: Final = 0.1
CONFIRM_SECONDS: Final = 5.0
"""How long the group may take to say who owns a partition."""
_READING: Final[Mapping[str, str | int]] = {
    "fetch.message.max.bytes": LARGEST_RECORD_BYTES,
    # Read ahead no more than is of use: each partition may have a reader.
    "queued.min.messages": 4000,
    "queued.max.messages.kbytes": 4096,
}
_POLL_SECONDS: Final = 0.1
_ABORT_SECONDS: Final = 1.0
_ASK_SECONDS: Final = 2.0
_CLOSE_SECONDS: Final = 5.0
_FENCING: Final = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
    }
)
_GROUP: Final = (
    "group.instance.",
    "group.protocol",
    "group.remote.",
    "session.",
    "heartbeat.",
    "max.poll.",
    "partition.assignment",
)
_MEMBER: Final[Mapping[str, str | int]] = {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_500}
"""Six seconds without a word mean that a process is gone: brokers take no shorter session by default."""


def journal_plan(options: Mapping[str, str], *, prefix: str, replication_factor: int) -> Plan:
    """What the journal wants of the cluster, for the messages and the topics."""
    return Plan(
        name="journal",
        title="the journal on Kafka",
        options=dict(options),
        topic=f"{prefix}.state",
        prefix=prefix,
        journal_id="",
        transactional=True,
        max_event_bytes=LARGEST_RECORD_BYTES,
        create_topic=True,
        partitions=1,
        replication_factor=replication_factor,
        omit=frozenset(),
        patience_seconds=PATIENCE_SECONDS,
        rights=f"allow {{user}} {listed(TOPIC_RIGHTS)} on the topics that begin with {{prefix}}.",
    )


def try_transaction(plan: Plan, suffix: str, *records: Record) -> None:
    """Begins one under an id that no journal writes with, and commits it if there is something to commit.

    Whoever does the same just now may fence us, which says that it works. Raises SinkError.
    """
    writer = KafkaWriter(plan, f"{plan.prefix}-{suffix}")
    try:
        writer.begin()
        if records:
            writer.commit(records)
    except Fenced:
        return
    except JournalError as exc:
        raise Unavailable(str(exc)) from exc
    finally:
        writer.close()


def inline_plan(plan: Plan, *, topic: str, create: bool, partitions: int, replication_factor: int) -> Plan:
    """What a sink wants of the cluster that is written with the polls."""
    return replace(
        plan,
        topic=topic,
        create_topic=create,
        partitions=partitions,
        replication_factor=replication_factor,
        rights="allow {user} Describe and Write on topic {topic}",
    )


class KafkaBroker:
    """One cluster. `options` are librdkafka's own; they may hold secrets and are never shown."""

    def __init__(
        self, options: Mapping[str, str], *, prefix: str, replication_factor: int = -1, member: str = ""
    ) -> None:
        """`member` is how the group calls this process."""
        self._plan = journal_plan(options, prefix=prefix, replication_factor=replication_factor)
        self._member = member
        self._worker = Worker("journal")
        self._offsets: Consumer | None = None
        self._poster: Producer | None = None
        self._posting = Worker("journal posts")

    async def connect(self) -> None:
        """Reaches the cluster; a refused login or certificate is heard here."""
        await self._worker.run(partial(_at_start, self._reach))

    async def ensure(self, topics: Sequence[TopicPlan]) -> Mapping[str, int]:
        """Makes what is missing, verifies the rest, and every right."""
        return await self._worker.run(partial(_at_start, partial(self._ensure, topics)))

    async def partitions(self, topic: str) -> int:
        """How many the topic has, 0 when there is none."""
        return await self._run(partial(self._partitions, topic))

    def writer(self, transactional_id: str) -> "KafkaWriter":
        """A producer under this id, not fenced yet."""
        return KafkaWriter(self._plan, transactional_id)

    async def reader(self, topic: str, partition: int, offset: int) -> "KafkaReader":
        """Reads from this offset on."""
        return KafkaReader(self._plan, topic, partition, offset, end=self.end)

    async def end(self, topic: str, partition: int) -> int:
        """The offset behind the last record, of open transactions as well."""
        return (await self._run(partial(self._watermarks, topic, partition)))[1]

    async def join(self, group: str, topic: str) -> "KafkaMembership":
        """Takes part in the sharing of this topic's partitions."""
        return KafkaMembership(self._plan, group, topic, self._member)

    async def members(self, group: str) -> list[str]:
        """Who takes part at present."""
        return await self._run(partial(self._members, group))

    async def post(self, topic: str, records: Sequence[Record]) -> None:
        """Writes outside any transaction."""
        try:
            await self._posting.run(partial(self._post, topic, records))
        except SinkError as exc:
            raise JournalUnavailable(str(exc)) from exc

    async def close(self) -> None:
        """Lets go of everything."""
        await self._posting.finish(self._drop_poster, _CLOSE_SECONDS)
        await self._worker.finish(self._drop_offsets, _CLOSE_SECONDS)

    def ensure_topic(self, topic: str, *, create: bool, partitions: int, replication_factor: int) -> None:
        """A topic of the user exists. Blocks. Raises JournalUnavailable, with the cure when it may not be made."""
        plan = inline_plan(
            self._plan, topic=topic, create=create, partitions=partitions, replication_factor=replication_factor
        )
        watch = Watch(plan)
        watch.begin()
        try:
            Topics(plan, watch).ensure(topic)
        except (SinkError, ConfigError) as exc:
            raise JournalUnavailable(str(exc)) from exc
        except KafkaException as exc:
            raise JournalUnavailable(str(watch.unavailable(f"looking at topic {topic}", error_of(exc)))) from exc

    async def _run(self, job: Callable[[], T]) -> T:
        return await self._worker.run(partial(_mapped, job))

    def _reach(self) -> None:
        watch = Watch(self._plan)
        watch.begin()
        self._topics(watch).brokers()

    def _topics(self, watch: Watch) -> Topics:
        try:
            return Topics(self._plan, watch)
        except KafkaException as exc:
            raise ConfigError(self._plan.say("the options cannot be used", error_of(exc))) from exc

    def _ensure(self, topics: Sequence[TopicPlan]) -> dict[str, int]:
        watch = Watch(self._plan)
        watch.begin()
        admin = self._topics(watch)
        require_rights(self._plan, admin, topics, partial(try_transaction, self._plan, "start"))
        there = [topic for topic in topics if admin.look(topic.name)[0]]
        missing = [topic for topic in topics if topic not in there]
        found = {  # before anything is made
            topic.name: admin.verify(topic.name, topic.partitions, topic.settings, topic.must, key=topic.key)
            for topic in there
        }
        for topic in missing:
            admin.create(topic.name, topic.partitions, topic.settings)
        if missing:
            require_rights(self._plan, admin, missing)
        return found | {
            topic.name: admin.verify(topic.name, topic.partitions, topic.settings, topic.must, key=topic.key)
            for topic in missing
        }

    def _partitions(self, topic: str) -> int:
        watch = Watch(self._plan)
        watch.begin()
        return self._topics(watch).partitions(topic)

    def _watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        watch = Watch(self._plan)
        watch.begin()
        while True:
            try:
                return self._asking().get_watermark_offsets(TopicPartition(topic, partition), timeout=_ASK_SECONDS)
            except KafkaException as exc:
                self._drop_offsets()  # it may go on asking a broker that no longer leads this partition
                watch.pause(f"looking for the end of {topic}")
                watch.check(f"looking for the end of {topic}", error_of(exc))

    def _asking(self) -> Consumer:
        if self._offsets is None:
            options = {**self._plan.connection(), **READER, "isolation.level": "read_uncommitted", "logger": log}
            self._offsets = Consumer(options)
        return self._offsets

    def _drop_offsets(self) -> None:
        if self._offsets is not None:
            self._offsets.close()
            self._offsets = None

    def _members(self, group: str) -> list[str]:
        watch = Watch(self._plan)
        watch.begin()
        return self._topics(watch).members(group)

    def _post(self, topic: str, records: Sequence[Record]) -> None:
        watch = Watch(self._plan)
        watch.begin()
        if self._poster is None:
            self._poster = Producer(_producing(self._plan, watch))
        failed: list[KafkaError] = []

        def note(error: KafkaError | None, _message: KafkaMessage) -> None:
            if error is not None:
                failed.append(error)

        for record in records:
            self._poster.produce(
                topic,
                record.value,
                record.key,
                partition=record.partition or 0,
                headers=list(record.headers),
                on_delivery=note,
            )
        try:
            while self._poster.flush(SLICE_SECONDS):
                watch.check(f"writing to {topic}")
        except SinkError:
            self._drop_poster()
            raise
        if failed:
            self._drop_poster()
            raise watch.unavailable(f"writing to {topic}", failed[0])

    def _drop_poster(self) -> None:
        if self._poster is not None:
            self._poster.purge(blocking=False)
            self._poster = None


class KafkaWriter:
    """One transactional producer. Blocks: for the thread of its partition."""

    def __init__(self, plan: Plan, transactional_id: str) -> None:
        self._plan = plan
        self._watch = Watch(plan)
        self._id = transactional_id
        self._producer: Producer | None = None
        self._ends: dict[tuple[str, int], int] = {}
        self._failures: list[tuple[KafkaError, str]] = []

    def fence(self) -> None:
        """Ends whoever used this id before."""
        try:
            self.begin()
        except SinkError as exc:
            raise JournalUnavailable(str(exc)) from exc

    def begin(self) -> None:
        """The same. Raises Unavailable, whose reason says more."""
        self._watch.begin()
        conf = {**_producing(self._plan, self._watch), "transactional.id": self._id}
        try:
            self._producer = Producer(conf)
            self._insist("fencing", self._producer.init_transactions, hint=NO_COORDINATOR)
        except KafkaException as exc:
            self.close()
            raise self._watch.unavailable("fencing", error_of(exc)) from exc
        except SinkError:
            self.close()
            raise

    def commit(self, records: Sequence[Record]) -> Mapping[tuple[str, int], int]:
        """All of them in one transaction."""
        producer = self._producer
        if producer is None:
            raise Doubtful("the writer has to be fenced first")
        self._watch.begin()
        self._ends = {}
        self._failures = []
        try:
            producer.begin_transaction()
            for record in records:
                self._produce(producer, record)
            self._insist("committing", producer.commit_transaction, each_seconds=PATIENCE_SECONDS)
        except KafkaException as exc:
            self._raise(error_of(exc), exc)
        except SinkError as exc:
            self.close()
            raise Doubtful(str(exc)) from exc
        return self._ends

    def close(self) -> None:
        """Lets go at once; aborting is a courtesy to readers, who would wait for the transaction's timeout."""
        if self._producer is not None:
            with suppress(KafkaException):
                self._producer.purge(blocking=False)
                self._producer.abort_transaction(_ABORT_SECONDS)
            self._producer = None

    def _produce(self, producer: Producer, record: Record) -> None:
        note = partial(self._note, record.name)
        place: Any = {} if record.partition is None else {"partition": record.partition}
        while True:
            try:
                producer.produce(
                    record.topic, record.value, record.key, headers=list(record.headers), on_delivery=note, **place
                )
            except BufferError:
                producer.poll(SLICE_SECONDS)
                self._watch.check("sending")
            except KafkaException as exc:
                if error_of(exc).code() in MESSAGE_FAULTS:
                    self._failures.append((error_of(exc), record.name))
                raise
            else:
                return

    def _note(self, name: str, error: KafkaError | None, message: KafkaMessage) -> None:
        if error is None:
            self._ends[message.topic() or "", message.partition() or 0] = message.offset() or 0
        elif error.code() != KafkaError._PURGE_QUEUE:
            self._failures.append((error, name))

    def _raise(self, error: KafkaError, cause: KafkaException) -> None:
        if self._producer is not None:
            with suppress(KafkaException):
                self._producer.poll(0)
        refused = {name: fault.str() for fault, name in self._failures if name and fault.code() in MESSAGE_FAULTS}
        first = self._failures[0][0] if self._failures else error
        fenced = any(one.code() in _FENCING for one in (error, first))
        self.close()
        if refused and not fenced:
            raise RecordsRefused(refused) from cause
        told = self._watch.unavailable("committing", first)
        if fenced:
            raise Fenced(str(told)) from cause
        raise Doubtful(str(told)) from cause

    def _insist(
        self, doing: str, call: Callable[[float], None], *, each_seconds: float = SLICE_SECONDS, hint: str = ""
    ) -> None:
        """Calls again for as long as that is how the outcome is learned.

        A commit is called once: librdkafka takes what is left of a call that timed out for the result of the next step,
        and says that it is in the wrong state, or ends the process.
        """
        while True:
            try:
                call(each_seconds)
            except KafkaException as exc:
                error = error_of(exc)
                if not error.retriable():
                    raise
                self._watch.check(doing, error, hint=hint)
            else:
                return


class KafkaReader:
    """One partition, read with `read_committed` in a thread of its own."""

    def __init__(self, plan: Plan, topic: str, partition: int, offset: int, *, end: Callable[[str, int], Any]) -> None:
        self._plan = plan
        self._watch = Watch(plan)
        self._topic = topic
        self._partition = partition
        self._offset = offset
        self._reached = offset
        self._end = end
        self._consumer: Consumer | None = None
        self._worker = Worker(f"read {topic}")

    async def begin(self) -> int:
        """The first offset that is still there."""
        low: int = await self._worker.run(partial(_mapped, self._lowest))
        return low

    async def end(self) -> int:
        """The offset behind the last record."""
        end: int = await self._end(self._topic, self._partition)
        return end

    async def read(self, limit: int, *, wait: bool = True) -> list[Message]:
        """The next records."""
        return await self._worker.run(partial(_mapped, partial(self._read, limit, READ_SECONDS if wait else 0.01)))

    def reached(self) -> int:
        """The offset of what would be read next."""
        return self._reached

    async def close(self) -> None:
        """Lets go."""
        await self._worker.finish(self._drop, _CLOSE_SECONDS)

    def _consuming(self) -> Consumer:
        if self._consumer is None:
            options = {**self._plan.connection(), **READER, "error_cb": self._watch.hear, "logger": log}
            self._consumer = Consumer({**options, **_READING})
            self._consumer.assign([TopicPartition(self._topic, self._partition, self._offset)])
            self._watch.begin()
        return self._consumer

    def _lowest(self) -> int:
        while True:
            try:
                return int(
                    self._consuming().get_watermark_offsets(TopicPartition(self._topic, self._partition), timeout=5.0)[
                        0
                    ]
                )
            except KafkaException as exc:
                self._watch.check(f"looking for the beginning of {self._topic}", error_of(exc))

    def _read(self, limit: int, seconds: float) -> list[Message]:
        found: list[Message] = []
        for message in self._consuming().consume(limit, seconds):
            error = message.error()
            offset = message.offset() or 0
            if error is None:
                found.append(Message(offset, _bytes(message.key()), message.value(), _headers(message)))
                self._reached = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._reached = max(self._reached, offset)
            elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:
                self._watch.check(f"reading {self._topic}", error)
                if not error.retriable() and error.code() not in _PASSING:
                    raise self._watch.unavailable(f"reading {self._topic}", error)
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                self._watch.begin()
        return found

    def _drop(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


_PASSING: Final = frozenset(
    {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE}
)


class KafkaMembership:
    """One member of the group, polled by a thread of its own: a busy loop must not look like a dead process."""

    def __init__(self, plan: Plan, group: str, topic: str, member: str) -> None:
        self._plan = plan
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._changes: asyncio.Queue[Change | BaseException] = asyncio.Queue()
        self._released: dict[int, threading.Event] = {}
        self._stop = threading.Event()
        self._watch = Watch(plan)
        self._watch.begin()
        self._cooperative = True
        self._ours: set[int] = set()
        self._questions: SimpleQueue[tuple[int, asyncio.Future[int]]] = SimpleQueue()
        self._asked: dict[int, list[asyncio.Future[int]]] = {}
        self._consumer = self._join(group, topic, member)
        self._thread = threading.Thread(target=self._poll, name="journal group", daemon=True)
        self._thread.start()

    async def change(self) -> Change:
        """The next change."""
        change = await self._changes.get()
        if isinstance(change, BaseException):
            raise change
        return change

    def let_go(self, partitions: frozenset[int]) -> None:
        """Nothing of ours writes to them any more."""
        for partition in partitions:
            if (event := self._released.get(partition)) is not None:
                event.set()

    async def confirms(self, partition: int) -> bool:
        """Asks the group: a commit by a member that it knows no longer, or by an older assignment, is refused."""
        if partition not in self._ours or self._stop.is_set():
            return False
        answer: asyncio.Future[int] = self._loop.create_future()
        self._questions.put((partition, answer))
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                code = await answer
        except TimeoutError as exc:
            raise JournalUnavailable("the journal on Kafka: the group did not say who owns a partition") from exc
        if code and code not in _NO_MEMBER:
            raise JournalUnavailable(f"the journal on Kafka: asking the group: {KafkaError(code).str()}")
        return not code and partition in self._ours

    async def leave(self) -> None:
        """Lets others have everything, now."""
        self._stop.set()
        for event in self._released.values():
            event.set()
        await asyncio.to_thread(self._thread.join, _CLOSE_SECONDS)

    def _join(self, group: str, topic: str, member: str) -> Consumer:
        options = self._plan.options
        chosen = {key: value for key, value in options.items() if key.startswith(_GROUP)}
        conf: dict[str, Any] = {
            **self._plan.connection(),
            **READER,
            "auto.offset.reset": "latest",
            "error_cb": self._watch.hear,
            "on_commit": self._committed,
            "logger": log,
        }
        if options.get("group.protocol", "classic").lower() != "consumer":
            conf |= {**_MEMBER, "partition.assignment.strategy": "cooperative-sticky"}
            session = int(chosen.get("session.timeout.ms", _MEMBER["session.timeout.ms"]))
            conf["heartbeat.interval.ms"] = min(int(_MEMBER["heartbeat.interval.ms"]), session // 4)
        conf |= chosen | {"group.id": group}
        if member:
            conf["client.id"] = member
        self._cooperative = conf.get("partition.assignment.strategy", "cooperative-sticky") == "cooperative-sticky"
        try:
            consumer = Consumer(conf)
        except KafkaException as exc:
            raise JournalMisplaced(self._plan.say("the options cannot be used", error_of(exc))) from exc
        consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        return consumer

    def _poll(self) -> None:
        try:
            while not self._stop.is_set():
                message = self._consumer.poll(_POLL_SECONDS)
                self._ask()
                error = message.error() if message is not None else None
                if error is not None and (error.fatal() or error.code() == KafkaError._FATAL):
                    told = self._watch.unavailable("taking part in the group", _behind(error))
                    self._tell(JournalUnavailable(str(told)))
                    return
        except KafkaException as exc:
            self._tell(JournalUnavailable(str(self._watch.unavailable("taking part in the group", error_of(exc)))))
        finally:
            with suppress(KafkaException, RuntimeError):
                self._consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._cooperative:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)
        if partitions:
            consumer.pause(partitions)
            self._ours |= _numbers(partitions)
        self._tell(Change("assigned", _numbers(partitions)))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = _numbers(partitions)
        if numbers and not self._stop.is_set():
            self._released = {number: threading.Event() for number in numbers}
            self._tell(Change("revoked", numbers))
            deadline = time.monotonic() + RELEASE_SECONDS
            for event in self._released.values():
                event.wait(max(0.0, deadline - time.monotonic()))
            self._ours -= numbers
            self._tell(Change("lost", numbers))
        self._unassign(consumer, partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._ours -= _numbers(partitions)
        self._tell(Change("lost", _numbers(partitions)))
        self._unassign(consumer, partitions)

    def _unassign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._cooperative:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _ask(self) -> None:
        """In the thread that polls: a call from another one would wait for a gap between two polls, maybe for ever."""
        while not self._questions.empty():
            partition, answer = self._questions.get()
            self._asked.setdefault(partition, []).append(answer)
            try:
                self._consumer.commit(offsets=[TopicPartition(self._topic, partition, 0)], asynchronous=True)
            except KafkaException as exc:
                self._reply(partition, error_of(exc).code())

    def _reply(self, partition: int, code: int) -> None:
        for answer in self._asked.pop(partition, ()):
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(_answer, answer, code)

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """What the group said to a commit, told in the thread that polls."""
        for one in partitions:
            told = one.error or error
            self._reply(one.partition, told.code() if told is not None else 0)

    def _tell(self, change: Change | BaseException) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._changes.put_nowait, change)


_NO_MEMBER: Final = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
    }
)


def _behind(error: KafkaError) -> KafkaError:
    """Of a fatal error only the text says which it was."""
    named = (KafkaError(code) for code in (KafkaError.FENCED_INSTANCE_ID, KafkaError.UNRELEASED_INSTANCE_ID))
    return next((one for one in named if one.str() in error.str()), error)


def _answer(answer: "asyncio.Future[int]", code: int) -> None:
    if not answer.done():
        answer.set_result(code)


def _at_start(job: Callable[[], T]) -> T:
    """As `_mapped`, but that a person has to see to what is refused before anything works."""
    try:
        return _mapped(job)
    except JournalUnavailable as exc:
        if isinstance(exc.__cause__, SinkError) and exc.__cause__.reason in ("login_refused", "forbidden"):
            raise JournalMisplaced(str(exc)) from exc
        raise


def _mapped(job: Callable[[], T]) -> T:
    try:
        return job()
    except ConfigError as exc:
        raise JournalMisplaced(str(exc)) from exc
    except SinkError as exc:
        raise JournalUnavailable(str(exc)) from exc
    except KafkaException as exc:
        raise JournalUnavailable(f"the journal on Kafka: {error_of(exc).str()}") from exc


def _producing(plan: Plan, watch: Watch) -> dict[str, Any]:
    group = ("group.", "session.", "heartbeat.", "max.poll.", "partition.assignment")
    options = {key: value for key, value in plan.options.items() if not key.startswith(group)}
    return {
        **DEFAULTS,
        **options,
        **REQUIRED,
        "message.max.bytes": LARGEST_RECORD_BYTES,
        "delivery.report.only.error": False,
        "error_cb": watch.hear,
        "logger": log,
    }


def _numbers(partitions: Sequence[TopicPartition]) -> frozenset[int]:
    return frozenset(one.partition for one in partitions)


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""


def _headers(message: KafkaMessage) -> Headers:
    headers: Any = message.headers() or ()
    return tuple((name, _bytes(value)) for name, value in headers)
