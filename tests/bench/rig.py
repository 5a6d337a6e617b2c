"""What every measurement stands on: a stand-in served by a child process, a client without a rate limit, a clock."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self, TypedDict

from relay.clock import SECOND, Instant, SystemClock
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import EsetClient
from relay.eset.wire import DecodedPage, decode_page
from relay.incidents import format_instant
from relay.simulator.api import TOKEN_PATH
from relay.transport import http_client

USER = "bench"
PAGE_SIZE = 1000
VIEWS = ("update_time", "create_time")
CLOCK = SystemClock()


@asynccontextmanager
async def standin(incidents: int, spread_seconds: float) -> AsyncIterator[EsetClient]:
    """A client of a stand-in with so many incidents; pages are rendered by one reading of all."""
    child = subprocess.Popen(  # the child is the point
        [sys.executable, "-m", "tests.bench.standin", str(incidents), str(spread_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        base_url = (await asyncio.to_thread(child.stdout.readline)).strip()
        budget = RateBudget(100_000)
        account = Account(
            token_url=base_url + TOKEN_PATH,
            username=USER,
            secret=lambda: "password",
            http=http_client(proxy="none"),
            budget=budget,
            clock=CLOCK,
        )
        client = EsetClient(
            source=USER, base_url=base_url, account=account, http=http_client(proxy="none"), budget=budget, clock=CLOCK
        )
        try:
            yield client
        finally:
            await client.close()
            await account.close()
    finally:
        child.communicate("")


async def pages(client: EsetClient, view: str) -> AsyncIterator[DecodedPage]:
    """The bare fetch: keyset pages, decoded, nothing else."""
    start: Instant = 0
    while True:
        answer = await client.list_incidents(**query(view, start), decode=decode_page)
        yield answer.content
        if not answer.content.next_page_token:
            return
        start = max(row.created if view == "create_time" else row.updated for row in answer.content.observed) - SECOND


async def queries(client: EsetClient, view: str) -> list["Query"]:
    """What `pages` asks for, in its order."""
    start: Instant = 0
    asked = []
    async for page in pages(client, view):
        asked.append(query(view, start))
        start = max(row.created if view == "create_time" else row.updated for row in page.observed) - SECOND
    return asked


class Query(TypedDict):
    """The parameters of one first page."""

    filter: str
    order_by: str
    page_size: int


def query(view: str, start: Instant) -> Query:
    return {
        "filter": f'incident.{view} >= timestamp("{format_instant(start, digits=3)}")',
        "order_by": f"{view},uuid",
        "page_size": PAGE_SIZE,
    }


class Stopwatch:
    """Wall time of a block, in seconds, and the processor time of this process within it."""

    def __enter__(self) -> Self:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu_seconds = time.process_time() - self._cpu
