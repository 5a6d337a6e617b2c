"""`relay_lag_seconds` tells the truth: it agrees with what the far sides measure by a clock of their own."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from relay.clock import SECOND
from relay.simulator.times import parse_time
from tests.e2e.stage import report, stage, until
from tests.support.kafka import Kafka, create_topic, fresh
from tests.support.process import Child
from tests.support.receiver import FINE, Asked, Told, receiving

pytestmark = pytest.mark.kafka

PAST = 50
CHANGES = 500
SECONDS_OF_CHANGES = 25.0
POLL_INTERVAL = "2s"
TOLERANCE = 0.10


@dataclass(kw_only=True)
class Receipts:
    """The lag of each live event as a far side saw it, by the event's id: from its update time to its receipt."""

    lags_seconds: dict[str, float] = field(default_factory=dict)

    def received(self, value: Mapping[str, Any], *, at: float) -> None:
        """`at` in seconds since the epoch."""
        event, incident = value["event"], value["incident"]
        if event["origin"] == "poll":
            assert event["id"] not in self.lags_seconds, "a repeat"
            self.lags_seconds[event["id"]] = at - parse_time(incident["updateTime"]) / SECOND

    @property
    def mean_seconds(self) -> float:
        """Of all of them."""
        return sum(self.lags_seconds.values()) / len(self.lags_seconds)


@contextmanager
def consuming(bootstrap: str, topic: str) -> Iterator[Receipts]:
    """A reader of committed records in a thread of its own, so that nothing here delays what it notes."""
    receipts = Receipts()
    over = threading.Event()
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": fresh("lag"),
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 10,
        }
    )
    consumer.subscribe([topic])

    def consume() -> None:
        while not over.is_set():
            messages = consumer.consume(1000, 0.02)
            at = time.time()
            for message in messages:
                assert message.error() is None, message.error()
                receipts.received(json.loads(message.value() or b""), at=at)

    with ThreadPoolExecutor(1, "consume") as threads:
        reading = threads.submit(consume)
        try:
            yield receipts
        finally:
            over.set()
            reading.result()
            consumer.close()


async def lag_of(relay: Child, sink: str) -> tuple[int, float]:
    """How many events the metric counts, and their mean in seconds."""
    count = await relay.metric("relay_lag_seconds_count", sink=sink)
    return int(count), await relay.metric("relay_lag_seconds_sum", sink=sink) / count if count else 0.0


async def test_the_lag_that_is_shown_is_the_lag_that_consumers_see(kafka: Kafka, tmp_path: Path) -> None:
    """New incidents, each once, spread over some polls; the past and its lag don't count."""
    topic = fresh("lag")
    create_topic(kafka.bootstrap, topic, partitions=3)
    posted = Receipts()

    def answer(asked: Asked) -> Told:
        posted.received(asked.json()["data"], at=time.time())
        return FINE

    async with stage(tmp_path, incidents=PAST) as set_up, receiving() as receiver:
        receiver.answer = answer
        set_up.configure(
            {"siem": {"type": "kafka", "topic": topic}, "hook": {"type": "webhook", "url": receiver.url}},
            source={"poll_interval": POLL_INTERVAL},
            kafka={"bootstrap.servers": kafka.bootstrap},
            kafka_prefix=fresh("relay"),
        )
        with consuming(kafka.bootstrap, topic) as consumed:
            async with set_up.relay() as relay:
                await relay.started()
                await relay.logged("backfill completed")
                rng = random.Random(1)
                pause = SECONDS_OF_CHANGES / CHANGES
                for _ in range(CHANGES):
                    set_up.tenant.create()
                    await asyncio.sleep(rng.uniform(0, 2 * pause))

                async def arrived() -> bool:
                    return len(consumed.lags_seconds) == len(posted.lags_seconds) == CHANGES

                await until(arrived, "every event arrived")

                async def counted() -> bool:
                    return [(await lag_of(relay, sink))[0] for sink in ("siem", "hook")] == [CHANGES, CHANGES]

                await until(counted, "every event is counted")
                for sink, receipts in (("siem", consumed), ("hook", posted)):
                    count, shown = await lag_of(relay, sink)
                    seen = receipts.mean_seconds
                    report(
                        f"lag of {sink}",
                        events=count,
                        shown_seconds=round(shown, 4),
                        seen_seconds=round(seen, 4),
                        difference_percent=round(100 * (shown - seen) / seen, 2),
                    )
                    assert count == len(receipts.lags_seconds) == CHANGES
                    assert abs(shown - seen) / seen <= TOLERANCE
                assert await relay.stop() == 0
