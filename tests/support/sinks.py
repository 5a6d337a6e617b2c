"""Every sink behind one face for the contract suite: how to make one, and what its far side holds."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from relay.clock import SystemClock
from relay.formats import native
from relay.sinks import Sink
from relay.sinks.kafka import KafkaSink
from relay.sinks.ndjson import FileSink, StdoutSink
from relay.sinks.webhook import WebhookSink
from relay.transport import http_client
from tests.support.kafka import Kafka, committed, events, fresh
from tests.support.receiver import Receiver, unused_port

JOURNAL = "journal-1"


class Stage(Protocol):
    """A far side and the sinks that write to it."""

    @property
    def repeats(self) -> bool:
        """Whether a batch that is sent again after a restart may be seen twice."""
        ...

    def sink(self) -> Sink:
        """Another sink of the same name: what a restarted relay makes."""
        ...

    def ids(self) -> list[str]:
        """The ids of the events that a reader sees, in the order of each incident."""
        ...

    def broken(self) -> Sink:
        """A sink whose far side can't be reached."""
        ...


@dataclass(kw_only=True)
class KafkaStage:
    """A topic of its own on the shared cluster."""

    kafka: Kafka
    transactional: bool
    topic: str = field(default_factory=lambda: fresh("topic"))
    prefix: str = field(default_factory=lambda: fresh("relay"))

    @property
    def repeats(self) -> bool:
        """Only transactions keep the position."""
        return not self.transactional

    def sink(
        self,
        name: str = "siem",
        *,
        options: dict[str, str] | None = None,
        topic: str = "",
        max_event_bytes: int = 900 * 1024,
        create_topic: bool = True,
        partitions: int = 6,
        omit: tuple[str, ...] = (),
        patience_seconds: float = 30.0,
    ) -> KafkaSink:
        """A sink of this stage; the arguments are those of the sink."""
        return KafkaSink(
            name,
            options={"bootstrap.servers": self.kafka.bootstrap, **(options or {})},
            topic=topic or self.topic,
            journal_id=JOURNAL,
            kafka_prefix=self.prefix,
            transactional=self.transactional,
            max_event_bytes=max_event_bytes,
            create_topic=create_topic,
            partitions=partitions,
            omit=omit,
            patience_seconds=patience_seconds,
        )

    def ids(self) -> list[str]:
        """What a reader with read_committed sees, in the order of arrival within each partition."""
        return events(committed(self.kafka.bootstrap, self.topic))

    def broken(self) -> Sink:
        """Nobody listens at port 9."""
        return self.sink(options={"bootstrap.servers": "127.0.0.1:9"}, patience_seconds=1.0)


@dataclass(kw_only=True)
class FileStage:
    """One file."""

    path: Path
    repeats: bool = False

    def sink(self) -> FileSink:
        """Another sink over the same path."""
        return FileSink(self.path)

    def ids(self) -> list[str]:
        """The ids of all whole lines."""
        return ids_of(self.path.read_bytes()) if self.path.exists() else []

    def broken(self) -> Sink:
        """Its folder does not exist."""
        return FileSink(self.path.parent / "missing" / "events.ndjson")


_NO_DESCRIPTOR = 1 << 30


@dataclass(kw_only=True)
class StdoutStage:
    """A pipe in place of standard output, read as it fills."""

    repeats: bool = True

    def __post_init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self._text = bytearray()
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        self._drainer.start()

    def sink(self) -> StdoutSink:
        """Another sink over the same pipe."""
        return StdoutSink(self.writer)

    def ids(self) -> list[str]:
        """The ids of all lines until now; ends the pipe."""
        self.end()
        self._drainer.join()
        return ids_of(bytes(self._text))

    def broken(self) -> Sink:
        """A descriptor that nobody can have; one that was closed could be given to another file meanwhile."""
        return StdoutSink(_NO_DESCRIPTOR)

    def end(self) -> None:
        """Closes our end, once."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def _drain(self) -> None:
        while chunk := os.read(self._reader, 1 << 16):
            self._text += chunk
        os.close(self._reader)


@dataclass(kw_only=True)
class WebhookStage:
    """A receiver that takes everything."""

    receiver: Receiver
    repeats: bool = True

    def sink(self) -> WebhookSink:
        """Another sink that posts to it."""
        return _webhook(self.receiver.url)

    def ids(self) -> list[str]:
        """The ids of what it got, in the order of arrival."""
        return [asked.json()["id"] for asked in self.receiver.asked]

    def broken(self) -> Sink:
        """Nobody listens there."""
        return _webhook(f"http://127.0.0.1:{unused_port()}/")


def _webhook(url: str) -> WebhookSink:
    return WebhookSink(
        "soar",
        url=lambda: url,
        secrets=lambda: ["secret"],
        headers=dict,
        http=http_client(proxy="none", guarded=True),
        timeout_seconds=5,
        omit=(),
        clock=SystemClock(),
    )


def ids_of(text: bytes) -> list[str]:
    """The ids of the events, one a line."""
    assert not text or text.endswith(b"\n")
    found = [native.id_of(line) for line in text.splitlines()]
    assert all(msgspec.json.decode(line) for line in text.splitlines())
    return [id_ for id_ in found if id_ is not None]
