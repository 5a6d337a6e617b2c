"""A poller over an in-process simulator and a real journal file, with injected time and hooks between requests."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from relay.clock import Instant
from relay.errors import QueryRefused, SourceUnavailable
from relay.eset.budget import Lane
from relay.eset.client import Answer
from relay.eset.wire import decode_incident
from relay.incidents import Event, Observed
from relay.journal import Journal, SourceLease
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics
from relay.passes import Sheet
from relay.poller import Poller, StartFrom
from relay.simulator import Simulator, Tenant
from relay.sinks import Delivery
from tests.support.clock import FakeClock
from tests.support.simulator import Caller

USER = "acme"


class InProcessApi:
    """The incident endpoints without a socket.

    `before` runs before each request, `fails` says which ones get no answer, `rewrite` makes another page of a page.
    """

    def __init__(self, simulator: Simulator, clock: FakeClock, *, seconds_a_request: float = 0.05) -> None:
        self.clock = clock
        self.requests: list[dict[str, str]] = []
        self.before: Callable[[int], None] = lambda number: None
        self.fails: Callable[[int], bool] = lambda number: False
        self.rewrite: Callable[[int, bytes], bytes] = lambda number, body: body
        self._caller = Caller(simulator, USER)
        self.page = self._caller.page
        self._seconds = seconds_a_request

    async def list_incidents(
        self,
        *,
        filter: str,  # noqa: A002
        order_by: str,
        page_size: int,
        page_token: str = "",
        lane: Lane = "live",
        decode: Callable[[bytes], Sheet],
    ) -> Answer[Sheet]:
        number = len(self.requests)
        self.requests.append({"filter": filter, "order_by": order_by, "page_token": page_token, "lane": lane})
        sent = self.clock.now()
        self.before(number)
        self.clock.advance(self._seconds)
        if self.fails(number):
            raise SourceUnavailable("no answer, as the test wanted", reason="timeout")
        answer = self.page(filter, order_by, page_size=page_size, page_token=page_token)
        if answer.status == 400 and (filter or order_by):
            raise QueryRefused(f"status {answer.status}: {answer.body!r}", status=answer.status)
        if answer.status != 200:
            raise SourceUnavailable(f"status {answer.status}: {answer.body!r}", status=answer.status)
        return Answer(
            content=decode(self.rewrite(number, answer.body)),
            as_of=sent,
            until=self.clock.now(),
            skew_seconds=0.0,
            request_id=str(number),
        )

    async def get_incident(self, uuid: str, *, lane: Lane = "live") -> Observed | None:
        number = len(self.requests)
        self.requests.append({"filter": "", "order_by": "", "page_token": "", "lane": lane, "uuid": uuid})
        self.before(number)
        self.clock.advance(self._seconds)
        if self.fails(number):
            raise SourceUnavailable("no answer, as the test wanted", reason="timeout")
        answer = self._caller.ask(f"/v2/incidents/{uuid}")
        return decode_incident(answer.body) if answer.status == 200 else None


class Bench:
    """Simulator, journal, poller and what one sink would get."""

    def __init__(self, simulator: Simulator, journal: Journal, lease: SourceLease, clock: FakeClock) -> None:
        self.simulator = simulator
        self.journal = journal
        self.lease = lease
        self.clock = clock
        self.api = InProcessApi(simulator, clock)
        self.metrics = Metrics(clock)

    @property
    def tenant(self) -> Tenant:
        return self.simulator.tenants[USER]

    def poller(
        self,
        *,
        start_from: StartFrom = "all",
        lookback_seconds: float = 300,
        page_size: int = 1000,
        enrich: bool = False,
    ) -> Poller:
        return Poller(
            identity="test",
            api=self.api,
            lease=self.lease,
            start_from=start_from,
            lookback_seconds=lookback_seconds,
            page_size=page_size,
            enrich=enrich,
            clock=self.clock,
            observer=self.metrics.source(self.lease.name),
        )

    async def deliveries(self, sink: str = "all") -> list[Delivery]:
        """Everything that the journal holds, in order."""
        lease = await self.journal.sink(sink, start="earliest", keep_seconds=1e9)
        found: list[Delivery] = []
        while batch := (await lease.claim(1000, in_order=True, wait=False)).deliveries:
            found += batch
        return found

    async def versions(self) -> set[tuple[str, Instant]]:
        """What was emitted, by uuid and update time."""
        return {(delivery.uuid, delivery.updated) for delivery in await self.deliveries()}


@asynccontextmanager
async def make_bench(
    folder: Path, *, incidents: int = 0, spread_seconds: float = 0, seed: int = 1
) -> AsyncIterator[Bench]:
    clock = FakeClock()
    simulator = Simulator(clock, seed=seed)
    simulator.settings.token_lifetime_seconds = 1e9
    simulator.add_tenant(USER, "password", incidents=incidents, spread_seconds=spread_seconds)
    journal = SqliteJournal(folder / "relay.db", max_bytes=1 << 30, retention_seconds=1e9, clock=clock)
    await journal.open()
    try:
        yield Bench(simulator, journal, await journal.source(USER), clock)
    finally:
        await journal.close()


def owed(tenant: Tenant, polls: Sequence[tuple[Instant, Instant]]) -> set[tuple[str, Instant]]:
    """The versions that stayed current for one whole poll, by uuid and update time."""
    return {
        (version.uuid, version.updated)
        for version in tenant.history
        if version.updated is not None
        and any(version.since <= start and (version.until is None or version.until >= end) for start, end in polls)
    }


def kinds(events: Sequence[Event | Delivery]) -> list[str]:
    return [event.kind for event in events]
