"""The cache of the Kafka journal: whatever happens to it, Kafka has all that was in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from relay.clock import SystemClock
from relay.errors import LeaseLost
from relay.journal import SourceLease
from relay.journal.kafka import KafkaJournal
from tests.integration.test_journal_contract import fill
from tests.support.fake_kafka import FakeBroker, FakeCluster

PAGE_BYTES = 4096


@asynccontextmanager
async def opened(cluster: FakeCluster, folder: Path) -> AsyncIterator[KafkaJournal]:
    journal = KafkaJournal(
        FakeBroker(cluster),
        prefix="relay",
        partitions=1,
        cache_dir=folder,
        max_bytes=1 << 30,
        retention_seconds=7200,
        clock=SystemClock(),
    )
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


async def count_again(journal: KafkaJournal) -> int:
    """What a source knows, read to the last row; taken again as often as it is lost on the way."""
    async with asyncio.timeout(30):
        while True:
            lease = await journal.source("acme")
            try:
                return await read_all(lease)
            except LeaseLost:
                while journal.holding("source", "acme") is not None:
                    await asyncio.sleep(0.01)


async def read_all(lease: SourceLease) -> int:
    return len([known async for known in lease.known_created(0, 1 << 62)])


async def test_a_damaged_cache_is_made_anew_by_itself(tmp_path: Path) -> None:
    cluster = FakeCluster()
    async with opened(cluster, tmp_path) as journal:
        lease = await journal.source("acme")
        for batch in range(10):
            await fill(lease, 200, prefix=f"b{batch}-")
    file = tmp_path / "0.db"
    content = bytearray(file.read_bytes())
    for at in range(len(content) // 3 // PAGE_BYTES * PAGE_BYTES, len(content), PAGE_BYTES):
        content[at : at + 200] = b"\xff" * 200
    file.write_bytes(bytes(content))
    async with opened(cluster, tmp_path) as journal:
        assert await count_again(journal) == 2000
        await fill(await journal.source("acme"), 1, prefix="new")
    async with opened(cluster, tmp_path) as journal:
        assert await count_again(journal) == 2001
