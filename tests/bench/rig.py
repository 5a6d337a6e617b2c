"""What every measurement stands on: a stand-in in a child process, a client without a rate limit, a floor, a clock."""

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self, TypedDict

from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from relay.clock import SECOND, Instant, SystemClock
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import EsetClient
from relay.eset.wire import DecodedPage, decode_page
from relay.incidents import Event, Known, Scope, diff, format_instant, tracked_values
from relay.incidents import Observed as Seen
from relay.journal import SourceLease
from relay.metrics import Metrics
from relay.poller import Poller
from relay.simulator.api import TOKEN_PATH
from relay.transport import http_client

USER = "bench"
PAGE_SIZE = 1000
VIEWS = ("update_time", "create_time")
CLOCK = SystemClock()
PARTITIONS = 6
Row = tuple[str, float, str]
"""What was measured, the number, and what it is held to."""


@asynccontextmanager
async def served(incidents: int, spread_seconds: float) -> AsyncIterator[str]:
    """The address of a stand-in with so many incidents; pages are rendered by one reading of all."""
    child = subprocess.Popen(  # the child is the point
        [sys.executable, "-m", "tests.bench.standin", str(incidents), str(spread_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        base_url = (await asyncio.to_thread(child.stdout.readline)).strip()
        yield base_url
    finally:
        child.communicate("")


@asynccontextmanager
async def client_of(base_url: str) -> AsyncIterator[EsetClient]:
    """A client of the stand-in at this address."""
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


@asynccontextmanager
async def standin(incidents: int, spread_seconds: float) -> AsyncIterator[EsetClient]:
    """A client of a stand-in with so many incidents."""
    async with served(incidents, spread_seconds) as base_url, client_of(base_url) as client:
        yield client


def make_poller(client: EsetClient, lease: SourceLease, metrics: Metrics, *, lookback_seconds: float = 300) -> Poller:
    return Poller(
        identity="bench",
        api=client,
        lease=lease,
        start_from="all",
        lookback_seconds=lookback_seconds,
        page_size=PAGE_SIZE,
        clock=CLOCK,
        observer=metrics.source(USER),
    )


async def floor(client: EsetClient, bootstrap: str) -> int:
    """Fetch, decode, idempotent produce: what no relay can do without."""
    topic = f"floor-{uuid.uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    await asyncio.to_thread(admin.create_topics([NewTopic(topic, PARTITIONS)])[topic].result, 30)
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": "true", "compression.type": "lz4", "linger.ms": "5",
         "partitioner": "murmur2_random", "queue.buffering.max.messages": "200000"}
    )  # fmt: skip
    failed: list[KafkaError] = []

    def acknowledged(error: KafkaError | None, _message: object) -> None:
        if error is not None:
            failed.append(error)

    count = 0
    async for page in pages(client, "create_time"):
        for row in page.observed:
            producer.produce(topic, row.raw, row.uuid, on_delivery=acknowledged)
        count += len(page.observed)
        producer.poll(0)
    assert await asyncio.to_thread(producer.flush, 60) == 0
    assert not failed
    return count


def fabricate(start: int, count: int) -> tuple[list[Known], list[Event]]:
    """New incidents as the diff makes them, with the random uuids and the sizes of real ones."""
    scope = Scope(source=USER, start_from=0, first_start=0)
    rows, events = [], []
    for number in range(start, start + count):
        ident = str(uuid.uuid4())
        fields = {
            "status": "INCIDENT_STATUS_OPEN", "severity": "INCIDENT_SEVERITY_LEVEL_HIGH", "assigneeUuid": ident,
            "displayName": f"Suspicious process {number} on workstation", "description": "x" * 180, "tags": ["a", "b"],
        }  # fmt: skip
        raw = b'{"uuid":"' + ident.encode() + b'","description":"' + b"y" * 900 + b'"}'
        seen = Seen(
            uuid=ident,
            created=number * SECOND,
            updated=number * SECOND,
            values=tracked_values(fields, {"deviceCount": 1}),
            raw=raw,
        )
        found = diff(None, seen, scope=scope, now=start * SECOND)
        assert found.row is not None
        assert found.event is not None
        rows.append(found.row)
        events.append(found.event)
    return rows, events


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


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # this is a command
