"""Delivery: nothing is settled before it was acknowledged, one sink's trouble is its own, and stopping drains."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from relay.clock import SECOND
from relay.delivery import Courier
from relay.errors import Gone, JournalUnavailable, Refused, SinkError, Unavailable
from relay.journal import EndpointStatus, Outcome, PageCommit, Progress, SinkLease, SourceLease
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics
from relay.rules import Rule
from relay.sinks import Delivery, Position
from tests.support.clock import FakeClock
from tests.support.incidents import START, chain

PROGRESS = Progress(identity="test", first_start=START, start_from=0)


class MemorySink:
    """Keeps what it was sent; `script` holds an error for each of the next sends, or None."""

    max_batch = 4
    atomic = True

    def __init__(self) -> None:
        self.arrived: list[Delivery] = []
        self.reached: list[int | None] = []
        self.opened = 0
        self.script: list[SinkError | None] = []
        self.stuck: asyncio.Event | None = None
        self.refuses: set[int] = set()
        self.position: Position | None = None

    async def open(self) -> Position | None:
        self.opened += 1
        return self.position

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        if self.stuck is not None:
            await self.stuck.wait()
        if self.script and (error := self.script.pop(0)) is not None:
            raise error
        if bad := {d.position: "too large" for d in batch if d.position in self.refuses}:
            raise Refused("some are too large", positions=bad, reason="too_large")
        self.arrived += batch
        self.reached.append(upto)

    async def probe(self) -> str:
        return "in memory"

    async def close(self, timeout_seconds: float) -> None:
        return


class Stage:
    """A journal with one source, on which couriers are put."""

    def __init__(self, journal: SqliteJournal, source: SourceLease, clock: FakeClock) -> None:
        self.journal, self.source, self.clock = journal, source, clock
        self.metrics = Metrics(clock)

    async def courier(
        self, sink: MemorySink, name: str = "siem", *, rule: Rule | None = None
    ) -> tuple[Courier, SinkLease]:
        lease = await self.journal.sink(name, start="earliest", keep_seconds=3600)
        courier = Courier(
            sink=sink,
            lease=lease,
            kind="memory",
            target="",
            rule=rule,
            keep_seconds=1e9,
            metrics=self.metrics.sink(name),
            clock=self.clock,
        )
        return courier, lease

    async def fill(self, count: int, prefix: str = "u") -> None:
        histories = [chain(f"{prefix}{number}", 1) for number in range(count)]
        await self.source.commit(
            PageCommit(
                progress=PROGRESS,
                rows=[row for _, row in histories],
                events=[e for events, _ in histories for e in events],
            )
        )

    def value(self, metric: str, /, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(metric, labels)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock = FakeClock(START)
    journal = SqliteJournal(tmp_path / "relay.db", max_bytes=1 << 30, retention_seconds=7200, clock=clock)
    await journal.open()
    yield Stage(journal, await journal.source("acme"), clock)
    await journal.close()


async def drained(*couriers: Courier) -> None:
    for courier in couriers:
        courier.drain()
    await asyncio.wait_for(asyncio.gather(*(courier.run() for courier in couriers)), 20)


def uuids(sink: MemorySink) -> list[str]:
    return [delivery.uuid for delivery in sink.arrived]


async def test_everything_arrives_once_in_order_with_its_position(stage: Stage) -> None:
    await stage.fill(10)
    sink = MemorySink()
    courier, lease = await stage.courier(sink)
    await drained(courier)
    assert uuids(sink) == [f"u{n}" for n in range(10)]
    assert sink.reached == [4, 8, 10]
    assert (await lease.backlog()).events == 0
    assert stage.value("relay_deliveries_total", sink="siem", outcome="delivered", reason="") == 10
    assert stage.value("relay_lag_seconds_count", sink="siem") == 10


async def test_an_order_to_drain_finds_what_is_waiting_however_the_courier_stands(stage: Stage) -> None:
    sink = MemorySink()
    courier, _ = await stage.courier(sink)
    running = asyncio.create_task(courier.run())
    for number in range(20):
        await stage.fill(1, prefix=f"n{number}-")
        for _ in range(number % 5):
            await asyncio.sleep(0.0005)
    courier.drain()
    await asyncio.wait_for(running, 20)
    assert len(sink.arrived) == 20


async def test_an_unavailable_sink_gets_the_same_batch_again_and_no_attempt_counts(stage: Stage) -> None:
    await stage.fill(3)
    sink = MemorySink()
    sink.script = [Unavailable("no broker", reason="unavailable"), Unavailable("no broker")]
    courier, lease = await stage.courier(sink)
    running = asyncio.create_task(courier.run())
    while len(sink.arrived) < 3:
        await asyncio.sleep(0.001)
    assert [delivery.attempts for delivery in sink.arrived] == [0, 0, 0]
    assert sink.opened == 3, "an atomic sink is opened again: only the far side knows what it has"
    assert len(stage.clock.slept) == 2
    courier.drain()
    await running
    assert lease.endpoint == EndpointStatus()
    assert stage.value("relay_deliveries_total", sink="siem", outcome="retried", reason="unavailable") == 2


async def test_a_failing_endpoint_is_remembered_across_a_restart(stage: Stage) -> None:
    await stage.fill(1)
    sink = MemorySink()
    sink.script = [Unavailable("no broker")] * 3
    courier, _ = await stage.courier(sink)
    await drained(courier)
    again = await stage.journal.sink("siem", start="earliest", keep_seconds=3600)
    assert (again.endpoint.state, again.endpoint.reason) == ("failing", "no broker")
    assert stage.value("relay_sink_state", sink="siem", state="failing") == 1


async def test_the_wait_is_at_least_what_the_far_side_asked_for(stage: Stage) -> None:
    await stage.fill(1)
    sink = MemorySink()
    sink.script = [Unavailable("slow down", retry_after_seconds=77)]
    courier, _ = await stage.courier(sink)
    running = asyncio.create_task(courier.run())
    while not sink.arrived:
        await asyncio.sleep(0.001)
    assert stage.clock.slept == [77]
    courier.drain()
    await running


async def test_a_refused_event_becomes_a_dead_letter_before_the_position_passes_it(stage: Stage) -> None:
    await stage.fill(6)
    sink = MemorySink()
    sink.refuses = {2}
    courier, lease = await stage.courier(sink)
    await drained(courier)
    assert uuids(sink) == ["u0", "u2", "u3", "u4", "u5"]
    letters = [letter async for letter in lease.dead_letters()]
    assert [(letter.position, letter.reason) for letter in letters] == [(2, "too large")]
    assert stage.value("relay_deliveries_total", sink="siem", outcome="dead", reason="too_large") == 1
    assert stage.value("relay_dead_letters", component="sink", name="siem") == 1


async def test_when_all_of_a_range_is_refused_the_position_still_moves(stage: Stage) -> None:
    await stage.fill(2)
    sink = MemorySink()
    sink.refuses = {1, 2}
    courier, lease = await stage.courier(sink)
    await drained(courier)
    assert sink.reached == [2]
    assert (await lease.backlog()).events == 0


async def test_a_sink_that_is_gone_parks_and_keeps_its_backlog(stage: Stage) -> None:
    await stage.fill(2)
    sink = MemorySink()
    sink.script = [Gone("stdout is closed", reason="closed")]
    courier, lease = await stage.courier(sink)
    running = asyncio.create_task(courier.run())
    while lease.endpoint.state != "parked":
        await asyncio.sleep(0.001)
    await stage.fill(1, prefix="later")
    courier.drain()
    await asyncio.wait_for(running, 5)
    assert (await lease.backlog()).events == 3
    assert sink.arrived == []


async def test_a_dead_sink_delays_no_other(stage: Stage) -> None:
    dead, alive = MemorySink(), MemorySink()
    dead.stuck = asyncio.Event()
    one, _ = await stage.courier(dead, "dead")
    other, _ = await stage.courier(alive, "alive")
    running = [asyncio.create_task(one.run()), asyncio.create_task(other.run())]
    for batch in range(5):
        await stage.fill(10, prefix=f"b{batch}-")
    while len(alive.arrived) < 50:
        await asyncio.sleep(0.001)
    assert dead.arrived == []
    dead.stuck.set()
    one.drain()
    other.drain()
    await asyncio.wait_for(asyncio.gather(*running), 20)
    assert len(dead.arrived) == 50


async def test_nothing_is_settled_before_the_sink_has_acknowledged(stage: Stage, tmp_path: Path) -> None:
    """A crash between sending and acknowledging sends the same ids again."""
    await stage.fill(3)
    sink = MemorySink()
    sink.stuck = asyncio.Event()
    courier, _ = await stage.courier(sink)
    running = asyncio.create_task(courier.run())
    while sink.opened == 0:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    again = await stage.journal.sink("siem", start="earliest", keep_seconds=3600)
    claim = await again.claim(10, in_order=True)
    assert [delivery.uuid for delivery in claim.deliveries] == ["u0", "u1", "u2"]


async def test_an_acknowledgement_that_cannot_be_recorded_is_recorded_later_and_sent_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.fill(3)
    sink = MemorySink()
    courier, lease = await stage.courier(sink)
    settle = lease.settle
    refusals = 2

    async def refusing(
        outcomes: Sequence[Outcome], endpoint: EndpointStatus | None = None, *, durable: bool = True
    ) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise JournalUnavailable("no space left on device")
        await settle(outcomes, endpoint, durable=durable)

    monkeypatch.setattr(lease, "settle", refusing)
    await drained(courier)
    assert uuids(sink) == ["u0", "u1", "u2"]
    assert (await lease.backlog()).events == 0


async def test_the_lag_ends_with_the_acknowledgement_however_slow_the_journal(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.fill(1)
    sink = MemorySink()
    courier, lease = await stage.courier(sink)
    settle = lease.settle
    now = stage.clock.now()

    async def slow(
        outcomes: Sequence[Outcome], endpoint: EndpointStatus | None = None, *, durable: bool = True
    ) -> None:
        stage.clock.advance(30)
        await settle(outcomes, endpoint, durable=durable)

    monkeypatch.setattr(lease, "settle", slow)
    await drained(courier)
    [delivery] = sink.arrived
    assert stage.clock.now() > now
    assert stage.value("relay_delivery_seconds_sum", sink="siem") == 0
    assert stage.value("relay_lag_seconds_sum", sink="siem") == pytest.approx((now - delivery.updated) / SECOND)


async def test_what_the_far_side_already_holds_is_not_sent_again(stage: Stage) -> None:
    await stage.fill(5)
    sink = MemorySink()
    sink.position = Position(journal_id=stage.journal.id, position=3)
    courier, _ = await stage.courier(sink)
    await drained(courier)
    assert uuids(sink) == ["u3", "u4"]


@pytest.mark.parametrize("atomic", [True, False])
async def test_what_the_rule_does_not_want_is_skipped_and_the_position_moves_past_it(
    stage: Stage, atomic: bool
) -> None:
    """Inside the batch: a far side that keeps the position learns it although nothing of the batch is sent."""
    await stage.fill(10)
    sink = MemorySink()
    sink.atomic = atomic
    courier, lease = await stage.courier(sink, rule=Rule('incident.uuid == "u9"'))
    await drained(courier)
    assert uuids(sink) == ["u9"]
    assert sink.reached == ([4, 8, 10] if atomic else [10])
    assert (await lease.backlog()).events == 0
    assert stage.value("relay_deliveries_total", sink="siem", outcome="skipped", reason="when") == 9


async def test_a_rule_that_fails_lets_the_event_pass_and_is_counted(stage: Stage) -> None:
    await stage.fill(3)
    sink = MemorySink()
    courier, _lease = await stage.courier(sink, rule=Rule("10 / incident.metrics.deviceCount > 1"))
    await drained(courier)
    assert len(sink.arrived) == 3
    assert stage.value("relay_errors_total", component="sink siem", reason="when") == 3


async def test_what_was_skipped_is_held_with_the_batch_that_failed(stage: Stage) -> None:
    """Nothing is settled before the batch is acknowledged: a position never moves past what was not sent."""
    await stage.fill(4)
    sink = MemorySink()
    sink.script = [Unavailable("down", reason="timeout")]
    courier, lease = await stage.courier(sink, rule=Rule('incident.uuid != "u0"'))
    courier.drain()
    running = asyncio.create_task(courier.run())
    await asyncio.wait_for(running, 20)
    assert uuids(sink) == ["u1", "u2", "u3"]
    assert (await lease.backlog()).events == 0
