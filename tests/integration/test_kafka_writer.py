"""The journal's producer against a real Kafka that is slow to answer."""

import asyncio
from typing import Any

import pytest

from relay.journal.kafka import KafkaBroker
from relay.journal.kafka.broker import Record
from tests.support.kafka import Kafka, create_topic, fresh

pytestmark = pytest.mark.kafka

FROZEN_SECONDS = 1.0


class Counted:
    """A producer, and how often it was asked to commit."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def commit_transaction(self, *timeout: float) -> None:
        """Counts, and commits."""
        self.commits += 1
        self._producer.commit_transaction(*timeout)


async def test_a_commit_is_asked_for_once_however_long_the_broker_takes(kafka: Kafka) -> None:
    cluster = kafka.own
    topic = fresh()
    create_topic(kafka.bootstrap, topic)
    writer = KafkaBroker({"bootstrap.servers": kafka.bootstrap}, prefix=topic).writer(topic)
    await asyncio.to_thread(writer.fence)
    producer = writer._producer = Counted(writer._producer)  # type: ignore[assignment]
    cluster.pause()
    try:
        committing = asyncio.create_task(asyncio.to_thread(writer.commit, [Record(topic, 0, b"key", b"value")]))
        await asyncio.sleep(FROZEN_SECONDS)
        assert not committing.done()
    finally:
        cluster.resume()
    assert await committing == {(topic, 0): 0}
    assert producer.commits == 1
    await asyncio.to_thread(writer.close)
