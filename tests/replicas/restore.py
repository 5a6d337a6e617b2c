"""How long a process takes that has nothing on its disk until it can poll a source of which much is known, and how much
memory. `python -m tests.replicas.restore SERVERS PREFIX FOLDER` is that process.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relay.clock import SystemClock
from relay.incidents import Known
from relay.journal import PageCommit, Progress
from relay.journal.kafka import KafkaBroker, KafkaJournal
from tests.support.clock import START
from tests.support.incidents import chain

SOURCE = "large"
PAGE = 1000


def journal_on(servers: str, prefix: str, folder: Path) -> KafkaJournal:
    """A journal of one partition, with its cache in this folder."""
    return KafkaJournal(
        KafkaBroker({"bootstrap.servers": servers}, prefix=prefix),
        prefix=prefix,
        partitions=1,
        cache_dir=folder,
        max_bytes=1 << 31,
        retention_seconds=7 * 86_400,
        clock=SystemClock(),
    )


def known(count: int) -> Iterator[list[Known]]:
    """So many ledger rows, a page at a time."""
    for start in range(0, count, PAGE):
        yield [
            chain(f"{number:08d}-1a2b-3c4d-5e6f-0123456789ab", 1)[1]
            for number in range(start, min(count, start + PAGE))
        ]


async def make_known(servers: str, prefix: str, folder: Path, count: int) -> float:
    """Commits so many ledger rows, page by page; the seconds that it took."""
    journal = journal_on(servers, prefix, folder)
    began = time.monotonic()
    await journal.open()
    try:
        lease = await journal.source(SOURCE)
        progress = Progress(identity="large", first_start=START, start_from=0)
        for rows in known(count):
            await lease.commit(PageCommit(progress=progress, rows=rows))
    finally:
        await journal.close()
    return time.monotonic() - began


def restored(servers: str, prefix: str, folder: Path) -> dict[str, Any]:
    """What another process says of it. Raises CalledProcessError."""
    command = [sys.executable, "-m", "tests.replicas.restore", servers, prefix, str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


async def _restore(servers: str, prefix: str, folder: Path) -> dict[str, Any]:
    journal = journal_on(servers, prefix, folder)
    began = time.monotonic()
    await journal.open()
    joined = time.monotonic()
    try:
        lease = await journal.source(SOURCE)
        seconds = time.monotonic() - joined
        incidents = await lease.count()
    finally:
        await journal.close()
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return {
        "incidents": incidents,
        "open_seconds": round(joined - began, 2),
        "restore_seconds": round(seconds, 2),
        "most_megabytes": round(int(kilobytes) * 1024 / 1e6),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_restore(sys.argv[1], sys.argv[2], Path(sys.argv[3])))))  # noqa: T201
