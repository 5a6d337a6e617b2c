"""The Kafka journal with an inline sink: one replica, three that share the sources, and the ledger's part of a page.

Clocks start when the topics are there, the group is settled and the logins are made: a start is not throughput.
`python -m tests.bench.replicas ADDRESS SERVERS PREFIX TOPIC FOLDER` is one of the three.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import structlog

from relay.eset.client import EsetClient
from relay.journal import PageCommit, Progress
from relay.journal.kafka import InlineSink, KafkaBroker, KafkaJournal
from relay.journal.kafka.broker import Record
from relay.journal.kafka.cluster import KafkaWriter
from relay.journal.kafka.meta import Meta
from relay.metrics import Metrics
from relay.poller import Poller
from relay.sinks.kafka_shape import Shape
from tests.bench.rig import (
    CLOCK,
    PAGE_SIZE,
    PARTITIONS,
    Row,
    Stopwatch,
    client_of,
    fabricate,
    floor,
    make_poller,
    say,
    served,
)
from tests.support.broker import Cluster, install

REPLICAS = 3
TRANSACTIONS = 40
GIB = 2**30


def label_in(partition: int) -> str:
    """A source whose task belongs to this partition of the state."""
    meta = Meta(id="", partitions=REPLICAS)
    return next(
        label for label in map("tenant{}".format, itertools.count(1)) if meta.place("source", label) == partition
    )


LABELS = tuple(label_in(partition) for partition in range(REPLICAS))


class NotedBroker(KafkaBroker):
    """A real cluster; `noted` is what was committed last."""

    noted: Sequence[Record] = ()

    def writer(self, transactional_id: str) -> KafkaWriter:
        """A real writer, whose records are noted."""
        writer = super().writer(transactional_id)
        commit = writer.commit

        def note(records: Sequence[Record]) -> Any:
            self.noted = records
            return commit(records)

        writer.commit = note  # type: ignore[method-assign]
        return writer


@asynccontextmanager
async def journal_on(broker: KafkaBroker, *, prefix: str, topic: str, folder: Path) -> AsyncIterator[KafkaJournal]:
    """A journal whose only sink is written with the polls."""
    await asyncio.to_thread(broker.ensure_topic, topic, create=True, partitions=PARTITIONS, replication_factor=-1)
    sink = InlineSink(
        "siem",
        shape=Shape(topic=topic, omit=(), max_event_bytes=900 * 1024),
        rule=None,
        ensure=lambda _topic: None,
        metrics=Metrics(CLOCK).sink("siem", owned=False),
        clock=CLOCK,
    )
    journal = KafkaJournal(
        broker,
        prefix=prefix,
        partitions=REPLICAS,
        cache_dir=folder,
        max_bytes=64 * GIB,
        retention_seconds=1e9,
        inline=[sink],
        clock=CLOCK,
    )
    await journal.open()
    try:
        await journal.settled()
        yield journal
    finally:
        await journal.close()


async def poller_of(label: str, journal: KafkaJournal, client: EsetClient) -> Poller:
    """One that is ready to read the past."""
    poller = make_poller(client, await journal.source(label), Metrics(CLOCK))
    await poller.introduce()
    return poller


# -- one replica ---------------------------------------------------------------------------------------------------


async def one(client: EsetClient, bootstrap: str, folder: Path) -> tuple[int, Stopwatch]:
    """How many events are in Kafka, and what that took."""
    prefix, topic = names("one")
    broker = KafkaBroker({"bootstrap.servers": bootstrap}, prefix=prefix)
    async with journal_on(broker, prefix=prefix, topic=topic, folder=folder) as journal:
        poller = await poller_of(LABELS[0], journal, client)
        with Stopwatch() as watch:
            report = await poller.backfill()
    return report.events, watch


# -- three replicas ------------------------------------------------------------------------------------------------


async def three(base_url: str, bootstrap: str, folder: Path) -> tuple[int, Stopwatch, float]:
    """How many events all have brought to Kafka, what that took, and the processor time of all."""
    prefix, topic = names("three")
    children: list[subprocess.Popen[str]] = []
    with ended(children):
        for number in range(REPLICAS):
            command = [base_url, bootstrap, prefix, topic, str(folder / str(number))]
            children.append(
                subprocess.Popen(  # the child is the point
                    [sys.executable, "-m", "tests.bench.replicas", *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        held = [said["label"] for said in await all_say(children)]
        assert sorted(held) == sorted(LABELS), held
        with Stopwatch() as watch:
            told = await all_say(children, asked="go\n")
    return sum(said["events"] for said in told), watch, sum(said["cpu_seconds"] for said in told)


@contextmanager
def ended(children: list[subprocess.Popen[str]]) -> Iterator[None]:
    """All leave at the end, whatever happens."""
    try:
        yield
    finally:
        for child in children:
            with contextlib.suppress(BrokenPipeError):
                child.communicate("")


async def all_say(children: Sequence[subprocess.Popen[str]], asked: str = "") -> list[dict[str, Any]]:
    """The next line of each."""

    def say_next(child: subprocess.Popen[str]) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(asked)
        child.stdin.flush()
        said: dict[str, Any] = json.loads(child.stdout.readline())
        return said

    return list(await asyncio.gather(*(asyncio.to_thread(say_next, child) for child in children)))


async def replica(base_url: str, servers: str, prefix: str, topic: str, folder: Path) -> None:
    """Waits until it holds the source that is left for it, says which, and reads its past once told to."""
    broker = KafkaBroker({"bootstrap.servers": servers}, prefix=prefix)
    async with (
        client_of(base_url) as client,
        journal_on(broker, prefix=prefix, topic=topic, folder=folder) as journal,
    ):
        seen = -1
        while len(held := [label for label in LABELS if journal.holding("source", label) is not None]) != 1:
            seen = await journal.reassigned(seen)
            await journal.settled()
        poller = await poller_of(held[0], journal, client)
        say(json.dumps({"label": held[0]}))
        await asyncio.to_thread(sys.stdin.readline)
        with Stopwatch() as watch:
            report = await poller.backfill()
        say(json.dumps({"events": report.events, "cpu_seconds": watch.cpu_seconds}))
        await asyncio.to_thread(sys.stdin.read)


# -- a page's transaction ------------------------------------------------------------------------------------------


async def transaction(bootstrap: str, folder: Path) -> tuple[float, float]:
    """Seconds that the transaction of a page of new incidents takes, and without its records of the ledger; medians."""
    prefix, topic = names("page")
    broker = NotedBroker({"bootstrap.servers": bootstrap}, prefix=prefix)
    async with journal_on(broker, prefix=prefix, topic=topic, folder=folder) as journal:
        lease = await journal.source(LABELS[0])
        rows, events = fabricate(0, PAGE_SIZE)
        progress = Progress(identity="bench", first_start=0, start_from=0)
        await lease.commit(PageCommit(progress=progress, rows=rows, events=events))
        page = list(broker.noted)
        bare = [record for record in page if record.topic != journal.topics.state]
        assert len(bare) == 2 * PAGE_SIZE
        assert len(page) == 3 * PAGE_SIZE + 1
        return await asyncio.to_thread(timed, broker.writer(f"{prefix}-bench"), page, bare)


def timed(writer: KafkaWriter, page: Sequence[Record], bare: Sequence[Record]) -> tuple[float, float]:
    """The median of many commits of each, in turn."""
    seconds: dict[int, list[float]] = {len(page): [], len(bare): []}
    writer.fence()
    try:
        for records in (page, bare) * 2:
            writer.commit(records)
        for records in (page, bare) * TRANSACTIONS:
            began = time.perf_counter()
            writer.commit(records)
            seconds[len(records)].append(time.perf_counter() - began)
    finally:
        writer.close()
    return statistics.median(seconds[len(page)]), statistics.median(seconds[len(bare)])


# -- all of it -----------------------------------------------------------------------------------------------------


def names(what: str) -> tuple[str, str]:
    """A prefix of topics and the topic of a sink that nothing else has used."""
    ident = uuid.uuid4().hex
    return f"{what}-{ident}", f"siem-{what}-{ident}"


async def measured(incidents: int, rounds: int) -> list[Row]:
    """`incidents` is how many each source has."""
    install()
    cores = len(os.sched_getaffinity(0))
    ones: list[float] = []
    threes: list[float] = []
    rates: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name) / "kafka") as kafka:
        async with served(incidents, spread_seconds=float(incidents)) as base_url, client_of(base_url) as client:
            await floor(client, kafka.bootstrap)  # renders the pages, warms the broker
            for number in range(rounds):
                with Stopwatch() as bare:
                    count = await floor(client, kafka.bootstrap)
                folder = Path(name) / f"round{number}"
                events, single = await one(client, kafka.bootstrap, folder / "one")
                assert events == incidents
                all_events, together, cpu_seconds = await three(base_url, kafka.bootstrap, folder / "three")
                assert all_events == REPLICAS * incidents
                ones.append((single.seconds / events) / (bare.seconds / count))
                threes.append((together.seconds / all_events) / (bare.seconds / count))
                rates.append((events / single.seconds, all_events / together.seconds))
                say(
                    f"  floor {count / bare.seconds:,.0f}/s (cpu {bare.cpu_seconds:.1f} s of {bare.seconds:.1f}), "
                    f"one {events / single.seconds:,.0f}/s (cpu {single.cpu_seconds:.1f} s of {single.seconds:.1f}), "
                    f"three {all_events / together.seconds:,.0f}/s (cpu {cpu_seconds:.1f} s of {together.seconds:.1f})"
                )
        page, without = await transaction(kafka.bootstrap, Path(name) / "page")
    of_one, of_three = (statistics.median(found) for found in zip(*rates, strict=True))
    return [
        ("one replica on the Kafka journal, against the same floor", statistics.median(ones), "at most 7.0"),
        ("  incidents a second", of_one, ""),
        (f"three replicas together on {cores} cores, against that floor", statistics.median(threes), ""),
        ("  incidents a second, of all", of_three, ""),
        ("a page's transaction, against it without ledger records", page / without, "at most 1.5"),
        ("  milliseconds for 1,000 incidents", 1000 * page, ""),
    ]


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    address, servers, prefix, topic, folder = sys.argv[1:]
    asyncio.run(replica(address, servers, prefix, topic, Path(folder)))
