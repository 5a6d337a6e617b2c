"""The far sides of the demo that are read, as any consumer would: the file of events, a topic in read_committed."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import Message

from relay.clock import Clock, Instant
from relay.demo.checker import Arrival
from relay.errors import ConfigError
from relay.sinks.worker import Worker

LOOK_SECONDS: Final = 0.05
"""How often the far sides are looked at; what is shown as lag is longer by as much."""
BROKER_SECONDS: Final = 5.0
PARTITIONS: Final = 3

_READER: Final[Mapping[str, Any]] = {
    "group.id": "unused",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "log_level": 2,
}

_log = logging.getLogger(__name__)


class FarSide(Protocol):
    """One place where events arrive."""

    name: str
    """The label of the sink that fills it."""
    sink: Mapping[str, Any]
    """The configuration of that sink."""
    may_repeat: bool
    """Whether it may be sent an event twice, under one id."""
    arrivals: list[Arrival]
    """All that was seen so far, in the order in which it is held there."""

    @property
    def note(self) -> str:
        """How it was counted."""
        ...

    async def follow(self) -> None:
        """Notes what comes, for ever."""
        ...

    async def finish(self) -> None:
        """Reads what is left, once nobody writes any more."""
        ...


class EventFile:
    """The file of the `disk` sink; it grows, and only whole lines count."""

    name = "disk"
    note = "lines of a file"
    may_repeat = False

    def __init__(self, path: Path, clock: Clock) -> None:
        self.arrivals: list[Arrival] = []
        self.sink: Mapping[str, Any] = {"type": "file", "path": path.name}
        self._path = path
        self._clock = clock
        self._offset = 0

    async def follow(self) -> None:
        """Looks for new lines, for ever."""
        while True:
            self._read()
            await asyncio.sleep(LOOK_SECONDS)

    async def finish(self) -> None:
        """Reads the last lines."""
        self._read()

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        now = self._clock.now()
        self.arrivals += [arrival_of(line, at=now) for line in whole.splitlines()]


class EventTopic:
    """The topic of the `kafka` sink, every partition from its beginning, in read_committed."""

    name = "kafka"
    note = "read_committed"
    may_repeat = False

    def __init__(self, bootstrap: str, topic: str, clock: Clock, *, delete: Sequence[str] = ()) -> None:
        self.arrivals: list[Arrival] = []
        self.sink: Mapping[str, Any] = {
            "type": "kafka",
            "topic": topic,
            "create_topic": {"partitions": PARTITIONS, "replication_factor": -1},
        }
        self._bootstrap = bootstrap
        self._topic = topic
        self._clock = clock
        self._delete = list(delete)
        self._worker = Worker("demo consumer")
        self._consumer: Consumer | None = None
        self._ends: dict[int, int] = {}

    async def open(self) -> None:
        """Raises ConfigError when no broker answers."""
        await self._worker.run(self._connect)

    async def follow(self) -> None:
        """Consumes as soon as the topic is there, for ever."""
        while True:
            if await self._worker.run(self._assign):
                await self._worker.run(self._consume)
            else:
                await asyncio.sleep(LOOK_SECONDS)

    async def finish(self) -> None:
        """Consumes up to the end of what is committed. Raises TimeoutError when that cannot be reached."""
        async with asyncio.timeout(BROKER_SECONDS):
            if not await self._worker.run(self._assign):
                return
            ends = await self._worker.run(self._committed_ends)
            while any(self._ends.get(partition, -1) < end for partition, end in ends.items()):
                await self._worker.run(self._consume)

    async def close(self) -> None:
        """Deletes the topics that were to be deleted."""
        await self._worker.finish(self._leave, BROKER_SECONDS)

    def _connect(self) -> None:
        consumer = Consumer({**_READER, "bootstrap.servers": self._bootstrap}, logger=_log)
        try:
            consumer.list_topics(timeout=BROKER_SECONDS)
        except KafkaException as exc:
            consumer.close()
            raise ConfigError(
                f"no Kafka broker answers on {self._bootstrap}: {exc.args[0].str()}; without --kafka none is needed"
            ) from exc
        self._consumer = consumer

    def _assign(self) -> bool:
        """Whether the topic is there; it is read from then on."""
        consumer = self._opened()
        if consumer.assignment():
            return True
        try:
            found = consumer.list_topics(timeout=BROKER_SECONDS).topics.get(self._topic)
        except KafkaException:  # the broker is away for a while
            return False
        if found is None or not found.partitions:
            return False
        consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in found.partitions])
        return True

    def _consume(self) -> None:
        messages = self._opened().consume(1000, LOOK_SECONDS)
        now = self._clock.now()
        for message in messages:
            error = message.error()
            if error is None:
                self.arrivals.append(_from_topic(message, at=now))
            elif error.code() == KafkaError._PARTITION_EOF:
                self._ends[message.partition() or 0] = message.offset() or 0

    def _committed_ends(self) -> dict[int, int]:
        consumer = self._opened()
        places = consumer.assignment()
        try:
            return {place.partition: consumer.get_watermark_offsets(place, BROKER_SECONDS)[1] for place in places}
        except KafkaException as exc:
            raise TimeoutError(f"{self.name}: the end of {self._topic} could not be learned") from exc

    def _opened(self) -> Consumer:
        assert self._consumer is not None  # noqa: S101  # open() comes first
        return self._consumer

    def _leave(self) -> None:
        if self._consumer is None:
            return
        self._consumer.close()
        if self._delete:
            admin = AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 2}, logger=_log)
            for deleted in admin.delete_topics(self._delete).values():
                with suppress(KafkaException):  # one that the relay did not get to make
                    deleted.result(BROKER_SECONDS)


class _About(msgspec.Struct, frozen=True):
    id: str
    kind: str
    source: str
    sequence: int


class _Event(msgspec.Struct, frozen=True):
    event: _About
    incident: msgspec.Raw


class _Uuid(msgspec.Struct, frozen=True):
    uuid: str


_read_event = msgspec.json.Decoder(_Event).decode
_read_uuid = msgspec.json.Decoder(_Uuid).decode


def arrival_of(body: bytes, *, at: Instant) -> Arrival:
    """An event by its value. What is no event arrives too, without an id."""
    try:
        event = _read_event(body)
        uuid = _read_uuid(event.incident).uuid
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Arrival(id="", source="", uuid="", sequence=0, kind="unreadable", content=body, at=at)
    about, content = event.event, bytes(event.incident)
    return Arrival(
        id=about.id,
        source=about.source,
        uuid=uuid,
        sequence=about.sequence,
        kind=about.kind,
        content=content,
        at=at,
    )


def _from_topic(message: Message, *, at: Instant) -> Arrival:
    """Named by its key and headers: those are what a consumer of Kafka goes by."""
    headers = dict(message.headers() or [])
    arrival = arrival_of(message.value() or b"", at=at)
    return replace(arrival, id=_text(headers.get("ce_id")), uuid=_text(message.key()))


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
