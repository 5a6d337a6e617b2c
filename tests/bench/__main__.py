"""`make bench`: throughput, replicas, idle polls, memory, growth with the ledger. Prints ratios and their limits."""

import argparse
import asyncio
import cProfile
import logging
import os
import pstats
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import structlog

from relay.delivery import Courier
from relay.eset.client import EsetClient
from relay.journal import PageCommit, Progress, SourceLease
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics
from relay.sinks.kafka import KafkaSink
from tests.bench import replicas
from tests.bench.rig import (
    CLOCK,
    PAGE_SIZE,
    PARTITIONS,
    USER,
    VIEWS,
    Row,
    Stopwatch,
    fabricate,
    floor,
    make_poller,
    queries,
    say,
    standin,
)
from tests.support.broker import Cluster, install

GIB = 2**30


@asynccontextmanager
async def journal_in(folder: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(folder / "relay.db", max_bytes=64 * GIB, retention_seconds=1e9, clock=CLOCK)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


# -- throughput ----------------------------------------------------------------------------------------------------


async def whole(client: EsetClient, bootstrap: str, folder: Path) -> int:
    """The relay: fetch, decode, diff, journal, transactions. Returns how many Kafka has acknowledged."""
    async with journal_in(folder) as journal:
        metrics = Metrics(CLOCK)
        source = await journal.source(USER)
        lease = await journal.sink("siem", start="earliest", keep_seconds=1e9)
        sink = KafkaSink(
            "siem",
            options={"bootstrap.servers": bootstrap},
            topic=f"whole-{uuid.uuid4().hex}",
            journal_id=journal.id,
            partitions=PARTITIONS,
        )
        courier = Courier(
            sink=sink, lease=lease, kind="kafka", target="", keep_seconds=1e9, metrics=metrics.sink("siem"), clock=CLOCK
        )
        poller = make_poller(client, source, metrics)
        sending = asyncio.create_task(courier.run())
        report = await poller.backfill()
        courier.drain()
        await sending
        assert (await courier.backlog()).events == 0
        await courier.close(10)
        return report.events


async def throughput(incidents: int, rounds: int, profile: bool) -> list[Row]:
    install()
    ratios, rates = [], []
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name) / "kafka") as kafka:
        async with standin(incidents, spread_seconds=float(incidents)) as client:
            await floor(client, kafka.bootstrap)  # renders the pages, warms the broker
            for number in range(rounds):
                with Stopwatch() as bare:
                    count = await floor(client, kafka.bootstrap)
                folder = Path(name) / f"round{number}"
                folder.mkdir()
                profiler = cProfile.Profile() if profile else None
                with Stopwatch() as full:
                    if profiler:
                        profiler.enable()
                    events = await whole(client, kafka.bootstrap, folder)
                    if profiler:
                        profiler.disable()
                if profiler:
                    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(40)
                assert events == incidents
                ratios.append((full.seconds / events) / (bare.seconds / count))
                rates.append(events / full.seconds)
                say(
                    f"  floor {count / bare.seconds:,.0f}/s (cpu {bare.cpu_seconds:.1f} s of {bare.seconds:.1f}), "
                    f"relay {events / full.seconds:,.0f}/s (cpu {full.cpu_seconds:.1f} s of {full.seconds:.1f})"
                )
    return [
        ("new incidents to Kafka, against fetch + decode + produce", sorted(ratios)[len(ratios) // 2], "at most 4.0"),
        ("  incidents a second", sorted(rates)[len(rates) // 2], ""),
    ]


# -- idle ------------------------------------------------------------------------------------------------------------


async def idle(incidents: int, rounds: int) -> list[Row]:
    """Polls that see the same pages again, against fetching their bytes and no more."""
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        async with standin(incidents, spread_seconds=float(incidents)) as client, journal_in(Path(name)) as journal:
            poller = make_poller(client, await journal.source(USER), Metrics(CLOCK), lookback_seconds=10.0 * incidents)
            for _ in range(2):
                await poller.poll()
            asked = [query for view in VIEWS for query in await queries(client, view)]
            for _ in range(rounds):
                with Stopwatch() as bare:
                    for query in asked:
                        await client.list_incidents(**query, decode=len)
                with Stopwatch() as full:
                    report = await poller.poll()
                assert report.events == 0
                assert report.incidents >= 2 * incidents
                ratios.append(full.seconds / bare.seconds)
    return [
        ("an idle poll of unchanged pages, against the bare fetch", sorted(ratios)[len(ratios) // 2], "at most 1.5")
    ]


# -- growth -----------------------------------------------------------------------------------------------------------


async def absorb(lease: SourceLease, start: int, pages_wanted: int, *, with_events: bool) -> float:
    """Look-ups and commits of so many pages of new incidents; returns seconds a page."""
    progress = Progress(identity="bench", first_start=0, start_from=0)
    total = 0.0
    for page in range(pages_wanted):
        rows, events = fabricate(start + page * PAGE_SIZE, PAGE_SIZE)
        with Stopwatch() as watch:
            await lease.known([row.uuid for row in rows])
            await lease.commit(PageCommit(progress=progress, rows=rows, events=events if with_events else ()))
        total += watch.seconds
    return total / pages_wanted


async def growth(known: int) -> list[Row]:
    """What a page of new incidents costs with a small and a large ledger, and what memory the large one takes."""
    with tempfile.TemporaryDirectory() as name:
        async with journal_in(Path(name)) as journal:
            lease = await journal.source(USER)
            await absorb(lease, 0, 1, with_events=False)
            small = await absorb(lease, 10_000_000, 20, with_events=True)
            await absorb(lease, 20_000_000, known // PAGE_SIZE, with_events=False)
            assert await lease.count() >= known
            large = await absorb(lease, 30_000_000, 20, with_events=True)
            rss = psutil.Process(os.getpid()).memory_info().rss / 2**20
    return [
        (f"1,000 new at {known:,} known, against 1,000 known", large / small, "at most 4.0"),
        ("  incidents a second, looked up and committed", PAGE_SIZE / large, "above 10,000"),
        (f"  resident memory with {known:,} known, MiB", rss, "at most 200"),
    ]


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--incidents", type=int, default=100_000)
    parser.add_argument("--known", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["throughput", "replicas", "idle", "growth"])
    parser.add_argument("--profile", action="store_true", help="where the time goes, on standard error")
    options = parser.parse_args()
    benches: dict[str, Callable[[], Coroutine[Any, Any, list[Row]]]] = {
        "growth": lambda: growth(options.known),
        "idle": lambda: idle(20_000, options.rounds),
        "throughput": lambda: throughput(options.incidents, options.rounds, options.profile),
        "replicas": lambda: replicas.measured(min(options.incidents, 30_000), options.rounds),
    }
    for name, bench in benches.items():
        if options.only in (None, name):
            for what, number, held_to in asyncio.run(bench()):
                shown = f"{number:,.0f}" if number >= 100 else f"{number:.2f}"
                say(f"{what:<62} {shown:>8}   {held_to}")


if __name__ == "__main__":
    main()
