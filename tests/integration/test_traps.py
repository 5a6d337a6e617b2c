"""What other integrations with ESET Connect got wrong, each once, through the code that runs."""

import asyncio
import shutil
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import structlog

from relay.clock import SECOND, Clock, SystemClock
from relay.delivery import Courier
from relay.errors import BadAnswer, ConfigError, SourceError, SourceUnavailable, Unavailable
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import EsetClient, Patience
from relay.eset.wire import decode_page
from relay.journal import Progress
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics
from relay.poller import Poller
from relay.settings import load
from relay.simulator import Answer, Fault, Request, Simulator, Tenant
from relay.sinks import Delivery, Position
from relay.transport import NETWORK_ERRORS, http_client
from tests.e2e.stage import SOURCE, stage, until
from tests.support.clock import FakeClock
from tests.support.passes import kinds

USER = "api@acme.example"
API = "https://api.test"
SECRET = "sesame-7261"
DAY = 86_400


class Rig:
    """A simulated tenant, and before it the real client, poller and journal; only the socket is left out."""

    def __init__(self, journal: SqliteJournal, simulator: Simulator, clock: FakeClock) -> None:
        self.journal = journal
        self.simulator = simulator
        self.clock = clock
        self.metrics = Metrics(clock)
        self.refuses: Callable[[httpx.Request], bool] = lambda request: False
        self.client = client_of(
            httpx.AsyncClient(transport=httpx.MockTransport(self.handle)), API, f"{API}/oauth/token", clock
        )

    @property
    def tenant(self) -> Tenant:
        return self.simulator.tenants[USER]

    def handle(self, request: httpx.Request) -> httpx.Response:
        """What the server is asked, and what it says."""
        if self.refuses(request):
            return httpx.Response(400)
        headers = {name.lower(): value for name, value in request.headers.items()}
        answer: Answer = self.simulator.handle(
            Request(
                method=request.method,
                path=request.url.path,
                query=dict(request.url.params),
                headers=headers,
                body=request.content,
            )
        )
        return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.body)

    async def poller(self, *, page_size: int = 1000, lookback_seconds: float = 60) -> Poller:
        return await poller_of(
            self.journal,
            self.client,
            self.clock,
            metrics=self.metrics,
            page_size=page_size,
            lookback_seconds=lookback_seconds,
        )

    async def progress(self) -> Progress:
        progress = (await self.journal.source(SOURCE)).progress
        assert progress is not None
        return progress

    async def complete_up_to(self) -> int:
        return (await self.progress()).complete_up_to or 0

    async def deliveries(self, sink: str = "all") -> list[Delivery]:
        return await delivered(self.journal, sink)

    def listed(self) -> int:
        """How many list requests there were."""
        return sum(request.operation == "list" for request in self.simulator.requests)


def client_of(http: httpx.AsyncClient, base_url: str, token_url: str, clock: Clock) -> EsetClient:
    budget = RateBudget(1_000_000)
    patience = Patience(read_seconds=5, tries=2, backoff_initial_seconds=0.01)
    account = Account(
        token_url=token_url,
        username=USER,
        secret=lambda: "password",
        http=http,
        budget=budget,
        clock=clock,
        patience=patience,
    )
    return EsetClient(
        source=SOURCE, base_url=base_url, account=account, http=http, budget=budget, clock=clock, patience=patience
    )


async def poller_of(
    journal: SqliteJournal,
    client: EsetClient,
    clock: Clock,
    *,
    metrics: Metrics,
    page_size: int = 1000,
    lookback_seconds: float = 60,
) -> Poller:
    return Poller(
        identity="test",
        api=client,
        lease=await journal.source(SOURCE),
        start_from="all",
        lookback_seconds=lookback_seconds,
        page_size=page_size,
        clock=clock,
        observer=metrics.source(SOURCE),
    )


async def delivered(journal: SqliteJournal, sink: str) -> list[Delivery]:
    """Everything that the journal holds, in order."""
    lease = await journal.sink(sink, start="earliest", keep_seconds=1e9)
    found: list[Delivery] = []
    while batch := (await lease.claim(1000, in_order=True, wait=False)).deliveries:
        found += batch
    return found


@asynccontextmanager
async def journal_in(folder: Path, clock: Clock) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(folder / "relay.db", max_bytes=1 << 30, retention_seconds=1e9, clock=clock)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    clock = FakeClock()
    simulator = Simulator(clock)
    simulator.add_tenant(USER, "password")
    async with journal_in(tmp_path, clock) as journal:
        made = Rig(journal, simulator, clock)
        yield made
        await made.client.close()


async def test_trap_01_a_status_change_arrives_though_the_incident_is_old(rig: Rig) -> None:
    """Elsewhere the watermark stood on createTime: a change to an old incident lay behind it for ever."""
    old = rig.tenant.create(created=rig.clock.now() - 90 * DAY * SECOND)
    poller = await rig.poller()
    await poller.poll()
    await poller.backfill()
    for _ in range(3):
        rig.clock.advance(DAY)
        rig.tenant.create()
        await poller.poll()
    rig.tenant.close(old)
    rig.clock.advance(60)
    await poller.poll()
    assert kinds([d for d in await rig.deliveries() if d.uuid == old]) == ["created", "closed"]


async def test_trap_02_the_watermark_neither_goes_back_nor_past_a_page_that_failed(rig: Rig) -> None:
    """Elsewhere it was the latest time of the last page that came: older than before, or beyond a page that failed."""
    poller = await rig.poller(page_size=5)
    await poller.poll()
    for _ in range(30):
        rig.clock.advance(2)
        rig.tenant.create()
    rig.clock.advance(10)
    before = await rig.complete_up_to()
    rig.simulator.faults.inject(Fault(effect="answer", status=503, on="list", after=4))
    with pytest.raises(SourceUnavailable):
        await poller.poll()
    assert 0 < len(await rig.deliveries("half")) < 30
    assert await rig.complete_up_to() == before
    rig.simulator.faults.clear()
    await poller.poll()
    assert len({d.uuid for d in await rig.deliveries()}) == 30
    after = await rig.complete_up_to()
    assert after > before
    rig.simulator.settings.date_skew_seconds = -3600
    await poller.poll()
    assert await rig.complete_up_to() == after


async def test_trap_03_a_late_arrival_in_the_second_of_the_last_row_arrives(rig: Rig) -> None:
    """Elsewhere the next poll asked from the last row's time plus one second: what came late within it was lost."""
    poller = await rig.poller()
    await poller.poll()
    rig.clock.advance(30)
    moment = rig.clock.now()
    first = rig.tenant.create(created=moment, updated=moment)
    await poller.poll()
    rig.clock.advance(20)
    late = [rig.tenant.create(created=moment + n, updated=moment + n) for n in (0, 1, 999_999_000)]
    await poller.poll()
    assert [d.uuid for d in await rig.deliveries()] == [first, *late]


async def test_trap_04_a_record_that_misses_a_field_is_kept_before_the_watermark_moves(rig: Rig) -> None:
    """Elsewhere such a record was dropped without a word, and the watermark moved past it."""
    poller = await rig.poller()
    await poller.poll()
    rig.clock.advance(5)
    whole = rig.tenant.create()
    no_update = rig.tenant.create(updated="never")
    rig.tenant.put_raw(b'{"uuid":"bare","createTime":"2026-05-28T20:26:44Z"}', uuid="bare")
    rig.tenant.put_raw(b'{"displayName":"nameless","createTime":"2026-05-28T20:26:44Z"}', uuid="nameless")
    rig.clock.advance(5)
    before = await rig.complete_up_to()
    await poller.poll()
    assert {d.uuid for d in await rig.deliveries()} == {whole, no_update, "bare"}
    letters = [letter async for letter in (await rig.journal.source(SOURCE)).dead_letters()]
    assert [(letter.reason, letter.body) for letter in letters] == [
        ("no uuid", b'{"displayName":"nameless","createTime":"2026-05-28T20:26:44Z"}')
    ]
    assert await rig.complete_up_to() > before


async def test_trap_05_after_a_503_the_stream_goes_on_from_what_was_committed(rig: Rig) -> None:
    """Elsewhere one 503 wedged the stream for good: nothing was committed before the end, so each try began anew."""
    rig.tenant.create_many(40, spread_seconds=DAY)
    rig.clock.advance(1)
    poller = await rig.poller(page_size=5)
    await poller.poll()
    reached = [0]
    complete = False
    while not complete:
        rig.simulator.faults.clear()
        rig.simulator.faults.inject(Fault(effect="answer", status=503, on="list", after=3))
        try:
            await (await rig.poller(page_size=5)).backfill()
            complete = True
        except SourceUnavailable:
            pass
        reached.append(len(await rig.deliveries(f"after {len(reached)}")))
        assert complete or reached[-1] > reached[-2]
    assert len(reached) > 3
    assert reached[-1] == 40


async def test_trap_06_a_response_id_does_not_outlive_its_request(rig: Rig) -> None:
    """Elsewhere the id was kept after its 200: from then on every request got a 404."""
    poller = await rig.poller()
    rig.simulator.faults.inject(Fault(effect="pending", on="list", polls=2, count=3))
    for _ in range(4):
        rig.tenant.create()
        rig.clock.advance(30)
        await poller.poll()
    assert len(await rig.deliveries()) == 4
    answers = [(bool(r.response_id), r.status) for r in rig.simulator.requests if r.operation == "list"]
    assert answers.count((False, 202)) == 3
    assert answers.count((True, 200)) == 3
    assert 404 not in [status for _, status in answers]


async def test_trap_07_no_page_of_more_than_1000_is_ever_asked_for(rig: Rig, tmp_path: Path) -> None:
    """Elsewhere a page size over 1000 was sent, and refused, at every poll."""
    sizes: set[int] = set()

    def note(request: httpx.Request) -> bool:
        size = int(request.url.params.get("pageSize", "0"))
        sizes.add(size)
        return size > 1000

    rig.refuses = note
    rig.tenant.create_many(1200, spread_seconds=DAY)
    rig.clock.advance(1)
    poller = await rig.poller()
    await poller.poll()
    await poller.backfill()
    assert max(sizes) == 1000
    assert len(await rig.deliveries()) == 1200
    path = tmp_path / "relay.yaml"
    path.write_text(
        "sources: {acme: {region: eu, username: u, password: p, page_size: 1001}}\nsinks: {out: {type: stdout}}\n"
    )
    with pytest.raises(ConfigError, match="page_size"):
        load(path, {}, tmp_path)


async def test_trap_08_a_page_token_that_does_not_advance_ends_the_pass(rig: Rig) -> None:
    """Elsewhere the same page was asked for, for ever; here the poll fails by its name, and nothing counts as read."""
    uuids = [rig.tenant.create() for _ in range(40)]
    poller = await rig.poller(page_size=5)
    await poller.poll()
    await poller.backfill()
    rig.clock.advance(30)
    rig.tenant.close(uuids)
    rig.clock.advance(30)
    before = await rig.complete_up_to()
    asked = rig.listed()
    rig.simulator.faults.inject(Fault(effect="loop_token"))
    with pytest.raises(BadAnswer) as caught:
        await asyncio.wait_for(poller.poll(), 30)
    assert caught.value.reason == "token_loop"
    assert rig.listed() - asked < 20
    assert await rig.complete_up_to() == before
    rig.simulator.faults.clear()
    await poller.poll()
    assert sorted(d.uuid for d in await rig.deliveries() if d.kind == "closed") == sorted(uuids)


async def test_trap_09_a_journal_cut_short_by_a_crash_is_a_whole_one_of_a_moment_ago(rig: Rig, tmp_path: Path) -> None:
    """Elsewhere a state file was truncated by a crash, and the next start began from nothing, or not at all."""
    rig.tenant.create_many(30, spread_seconds=DAY)
    rig.clock.advance(1)
    poller = await rig.poller(page_size=5)
    await poller.poll()
    await poller.backfill()
    wal = (tmp_path / "relay.db-wal").read_bytes()
    assert len(wal) > 10_000
    names = [d.id for d in await rig.deliveries()]
    held = set()
    for number, end in enumerate((0, 1, 31, 32, 5000, len(wal) // 3, len(wal) // 2, len(wal) - 1, len(wal))):
        folder = tmp_path / f"after the crash {number}"
        folder.mkdir()
        shutil.copy(tmp_path / "relay.db", folder)
        (folder / "relay.db-wal").write_bytes(wal[:end])
        async with journal_in(folder, rig.clock) as journal:
            before = [d.id for d in await delivered(journal, "before")]
            held.add(len(before))
            assert before == names[: len(before)]
            again = await poller_of(journal, rig.client, rig.clock, metrics=Metrics(rig.clock), page_size=5)
            await again.poll()
            await again.backfill()
            assert sorted(d.id for d in await delivered(journal, "after")) == sorted(names)
    assert len(held) > 2
    assert max(held) == 30


class Fickle:
    """A sink that takes nothing while it is down, and remembers what it took."""

    max_batch = 10
    atomic = False

    def __init__(self, *, down: bool) -> None:
        self.down = down
        self.arrived: list[str] = []

    async def open(self) -> Position | None:
        return None

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        if self.down:
            raise Unavailable("it is down")
        self.arrived += [delivery.id for delivery in batch]

    async def probe(self) -> str:
        return "in memory"

    async def close(self, timeout_seconds: float) -> None:
        return


async def test_trap_10_what_was_read_but_not_acknowledged_is_sent_after_a_crash(tmp_path: Path) -> None:
    """Elsewhere the cursor was saved before the delivery: what had not arrived by the crash never did."""
    clock = FakeClock()
    simulator = Simulator(clock)
    simulator.add_tenant(USER, "password", incidents=25, spread_seconds=DAY)
    clock.advance(1)

    async def deliver(journal: SqliteJournal, sink: Fickle, *, seconds: float) -> None:
        lease = await journal.sink("soar", start="earliest", keep_seconds=1e9)
        counts = Metrics(clock).sink("soar")
        courier = Courier(
            sink=sink, lease=lease, kind="memory", target="", keep_seconds=1e9, metrics=counts, clock=clock
        )
        running = asyncio.create_task(courier.run())
        await asyncio.wait([running], timeout=seconds)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async with journal_in(tmp_path, clock) as journal:
        rig = Rig(journal, simulator, clock)
        poller = await rig.poller()
        await poller.poll()
        await poller.backfill()
        names = [d.id for d in await rig.deliveries()]
        await deliver(journal, Fickle(down=True), seconds=0.3)
    async with journal_in(tmp_path, clock) as journal:
        sink = Fickle(down=False)
        await deliver(journal, sink, seconds=1)
        assert sink.arrived == names
        assert len(names) == 25


async def test_trap_11_no_error_carries_the_url_with_a_secret() -> None:
    """Elsewhere the text of an exception held the whole URL, and with it a secret, into every log."""

    async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(no_http, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    shown = ""
    async with server:
        url = f"http://127.0.0.1:{port}/{SECRET}/oauth/token?key={SECRET}"
        client = client_of(http_client(proxy="none"), f"http://127.0.0.1:{port}/{SECRET}", url, SystemClock())
        with structlog.testing.capture_logs() as lines, pytest.raises(SourceError) as caught:
            await client.list_incidents(filter=SECRET, order_by="", page_size=1, decode=decode_page)
        shown += "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value)) + str(lines)
        await client.close()
        with pytest.raises(NETWORK_ERRORS, match=SECRET):  # what the library tells, and we do not pass on
            await _raw_failure(url)
    assert caught.value.reason == "protocol"
    assert SECRET not in shown


async def _raw_failure(url: str) -> None:
    http = http_client(proxy="none")
    try:
        await http.get(url)
    finally:
        await http.aclose()


async def test_trap_12_a_relay_whose_polls_fail_is_not_called_healthy(tmp_path: Path) -> None:
    """Elsewhere everything was green while nothing flowed; here verdict, state and metrics say so, and it lives on."""
    async with stage(tmp_path, incidents=5) as set_up:
        set_up.configure({"disk": {"type": "file", "path": "events.ndjson"}})
        async with set_up.relay() as relay:
            await relay.started()
            await until(lambda: _says(relay.status, "flowing"), "it flows")
            assert await relay.metric("relay_polls_total", source=SOURCE, outcome="complete") > 0
            set_up.simulator.faults.inject(Fault(effect="answer", on="list", status=403))
            await relay.logged("poll failed")
            await until(lambda: _says(relay.status, "blocked"), "the verdict turns")
            status = await relay.status()
            (source,) = status["sources"]
            assert source["state"] == "refused"
            assert "permission" in str(source)
            assert await relay.metric("relay_polls_total", source=SOURCE, outcome="failed") > 0
            last = await relay.metric("relay_last_successful_poll_timestamp_seconds", source=SOURCE)
            await asyncio.sleep(1.5)
            assert await relay.metric("relay_last_successful_poll_timestamp_seconds", source=SOURCE) == last
            assert (await relay.get("/livez")).status_code == 200


async def _says(status: Callable[..., object], state: str) -> bool:
    document = await status()  # type: ignore[misc]
    found: bool = document["verdict"]["state"] == state
    return found
