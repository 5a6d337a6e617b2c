"""The journals that the contract suites run on: a file, topics of a real Kafka, and the same of one in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest

from relay.journal import Journal
from relay.journal.kafka import KafkaBroker, KafkaJournal
from relay.journal.kafka.broker import Broker
from relay.journal.sqlite import SqliteJournal
from tests.support.clock import FakeClock
from tests.support.fake_kafka import FakeBroker, FakeCluster
from tests.support.kafka import Kafka, fresh

JOURNALS = ["sqlite", "kafka-fake", pytest.param("kafka", marks=pytest.mark.kafka)]
PARTITIONS = 5
"""With so many, the sources acme and other share one, and sinks lie in others."""

MakeJournal = Callable[..., Journal]
MakeBroker = Callable[[str], Broker]


def journal_maker(request: pytest.FixtureRequest, folder: Path, clock: FakeClock) -> MakeJournal:
    """Makes journals of the kind that is the fixture's parameter; one of the same name is the same journal.

    Where there is a file of that name, it is that: backups are files, whatever they are of.
    """

    def make_file(name: str, *, max_bytes: int, retention_seconds: float) -> Journal:
        return SqliteJournal(
            folder / f"{name}.db", max_bytes=max_bytes, retention_seconds=retention_seconds, clock=clock
        )

    if request.param == "sqlite":
        return make_file
    broker = brokers(request)
    prefixes: dict[str, str] = {}

    def make(name: str, *, max_bytes: int, retention_seconds: float) -> Journal:
        if (folder / f"{name}.db").exists():
            return make_file(name, max_bytes=max_bytes, retention_seconds=retention_seconds)
        prefix = prefixes.setdefault(name, fresh())
        return KafkaJournal(
            broker(prefix),
            prefix=prefix,
            partitions=PARTITIONS,
            cache_dir=folder / name,
            max_bytes=max_bytes,
            retention_seconds=retention_seconds,
            clock=clock,
        )

    return make


def brokers(request: pytest.FixtureRequest) -> MakeBroker:
    """Makes clients of the cluster that is the fixture's parameter, for journals of a prefix each."""
    if request.param == "kafka-fake":
        cluster = FakeCluster()
        return lambda prefix: FakeBroker(cluster)
    kafka: Kafka = request.getfixturevalue("kafka")
    return lambda prefix: KafkaBroker({"bootstrap.servers": kafka.bootstrap}, prefix=prefix)
