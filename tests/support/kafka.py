"""Fixtures over a real Kafka, and what a reader of a topic sees. Without a broker the tests are skipped, by name."""

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as Partition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

from tests.support import broker
from tests.support.broker import Cluster

PATIENCE_SECONDS = 30.0
USERS = {"relay": "relay-secret", "limited": "limited-secret"}
"""Who may log in at the listener SASL; only `User:ANONYMOUS`, at the other one, may do everything."""

_LOGIN = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
SASL = {
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.sasl.plain.sasl.jaas.config": (
        f"org.apache.kafka.common.security.plain.PlainLoginModule required {_LOGIN};"
    ),
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS;User:relay",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """A cluster that tests share. `cluster` is None when it is somebody else's and can't be killed."""

    bootstrap: str
    cluster: Cluster | None

    @property
    def own(self) -> Cluster:
        """The cluster to be killed, or the test is skipped."""
        if self.cluster is None:
            pytest.skip("needs a broker of its own, not RELAY_TEST_KAFKA")
        return self.cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record as a reader sees it; `timestamp` in milliseconds since the epoch."""

    partition: int
    offset: int
    key: str
    value: bytes | None
    headers: Mapping[str, str]
    timestamp: int


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One broker for the whole run: that of RELAY_TEST_KAFKA, else one of our own."""
    if bootstrap := os.environ.get("RELAY_TEST_KAFKA"):
        _warm_up(bootstrap)
        yield Kafka(bootstrap=bootstrap, cluster=None)
        return
    require_broker()
    folder = tmp_path_factory.mktemp("kafka")
    with Cluster(folder, listeners={"SASL": "SASL_PLAINTEXT"}, properties=SASL) as cluster:
        _warm_up(cluster.bootstrap)
        yield Kafka(bootstrap=cluster.bootstrap, cluster=cluster)


@pytest.fixture
def three_brokers(tmp_path: Path) -> Iterator[Cluster]:
    """Three brokers of the test's own."""
    require_broker()
    with Cluster(tmp_path / "kafka", nodes=3) as cluster:
        _warm_up(cluster.bootstrap)
        yield cluster


def require_broker() -> None:
    """Skips the test when none can be started here."""
    if reason := broker.missing():
        pytest.skip(f"no Kafka broker: {reason}")


def fresh(prefix: str = "t") -> str:
    """A name that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def create_topic(bootstrap: str, topic: str, *, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
    """Makes the topic with these settings."""
    admin = _admin(bootstrap)
    admin.create_topics([NewTopic(topic, partitions, -1, config=dict(config or {}))])[topic].result(PATIENCE_SECONDS)


def partitions_of(bootstrap: str, topic: str) -> int:
    """How many the topic has, 0 when it does not exist."""
    found = _admin(bootstrap).list_topics(timeout=PATIENCE_SECONDS).topics
    return len(found[topic].partitions) if topic in found else 0


def committed(bootstrap: str, topic: str, *, isolation: str = "read_committed") -> list[Record]:
    """What a reader sees of the whole topic, by partition and offset; [] when the topic does not exist.

    Waits for transactions that are open, so that everything which was acknowledged is there. Raises TimeoutError when
    one stays open.
    """
    ends = _ends(bootstrap, topic)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
    )
    try:
        consumer.assign([Partition(topic, number, 0) for number in ends])
        return sorted(_read(consumer, ends), key=lambda record: (record.partition, record.offset))
    finally:
        consumer.close()


def events(records: list[Record]) -> list[str]:
    """The ids of the events, from the values."""
    return [msgspec.json.decode(record.value or b"")["event"]["id"] for record in records]


def _admin(bootstrap: str) -> AdminClient:
    options: dict[str, str | int | float | bool] = {"bootstrap.servers": bootstrap, "log_level": 2}
    return AdminClient(options)


def _ends(bootstrap: str, topic: str) -> dict[int, int]:
    """The offset behind the last record of each partition that holds any."""
    admin = _admin(bootstrap)
    known = admin.list_topics(timeout=PATIENCE_SECONDS).topics
    if topic not in known:
        return {}
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    wanted = {Partition(topic, number): latest for number in known[topic].partitions}
    found = admin.list_offsets(wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED)
    ends = {partition.partition: future.result(PATIENCE_SECONDS).offset for partition, future in found.items()}
    return {number: end for number, end in ends.items() if end}


def _read(consumer: Consumer, ends: Mapping[int, int]) -> Iterator[Record]:
    waiting = dict(ends)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while waiting:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the ends {waiting} were not reached: a transaction stayed open")
        for message in consumer.consume(1000, 0.02):
            error = message.error()
            number, offset = message.partition() or 0, message.offset() or 0
            if error is None:
                headers = dict(message.headers() or [])
                yield Record(
                    partition=number,
                    offset=offset,
                    key=(message.key() or b"").decode(),
                    value=message.value(),
                    headers={name: _text(value) for name, value in headers.items()},
                    timestamp=message.timestamp()[1],
                )
            elif error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            elif offset >= waiting.get(number, 0):
                waiting.pop(number, None)


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _warm_up(bootstrap: str) -> None:
    """The first transactional producer of a new cluster waits a second for the coordinator's topic."""
    options = {"bootstrap.servers": bootstrap, "transactional.id": fresh("warm-up"), "log_level": 2}
    Producer(options).init_transactions(PATIENCE_SECONDS)
