"""What the log says of hours and of seconds: few lines about a long failure, one id on all that belongs together."""

import asyncio
import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from relay import logs
from relay.app import Relay
from relay.assembly import Accounts, make_source
from relay.clock import SECOND
from relay.delivery import Courier
from relay.errors import Unavailable
from relay.intake import BAD_TOLD
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics
from relay.roster import timekeeper
from relay.settings import load
from relay.settings.model import Settings
from relay.simulator import Fault, Simulator, serve
from relay.sinks import Delivery
from relay.tasks import SourceTask
from tests.e2e.stage import CONFIGURATION, PASSWORD, SOURCE, USER, Stage, stage, until
from tests.integration.test_delivery import MemorySink
from tests.integration.test_delivery import Stage as Deliveries
from tests.support.clock import FakeClock
from tests.support.passes import make_bench
from tests.support.process import Child

HOUR_SECONDS = 3600.0
DISK = {"disk": {"type": "file", "path": "events.ndjson"}}
OUTCOMES = frozenset(
    {"poll completed", "poll failed", "backfill completed", "backfill failed", "sweep completed", "sweep failed"}
)
"""Each ends one poll, backfill or sweep."""


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The lines of this process from info on, as JSON."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def of(written: Sequence[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in written if line["event"] == event]


def settings_in(folder: Path) -> Settings:
    return load(folder / CONFIGURATION, {}, folder)


class Source:
    """A real source task against a simulator over a socket; the time of both is injected."""

    def __init__(self, set_up: Stage, task: SourceTask, clock: FakeClock) -> None:
        self.simulator, self.tenant, self.task, self.clock = set_up.simulator, set_up.tenant, task, clock

    async def live(self, hours: float, *, every_seconds: float) -> int:
        """Polls for so long; how many polls."""
        end, polls = self.clock.now() + int(hours * HOUR_SECONDS * SECOND), 0
        while self.clock.now() < end:
            began = self.clock.now()
            await self.task.poll()
            polls += 1
            self.clock.advance(max(1.0, every_seconds - (self.clock.now() - began) / SECOND))
            self.task.summarise_hourly()
        return polls


@pytest.fixture
async def source(tmp_path: Path, log: io.StringIO) -> AsyncIterator[Source]:
    clock = FakeClock()
    simulator = Simulator(clock, seed=1)
    tenant = simulator.add_tenant(USER, PASSWORD, incidents=10, spread_seconds=60)
    async with serve(simulator) as served:
        set_up = Stage(folder=tmp_path, simulator=simulator, tenant=tenant, served=served)
        set_up.configure(DISK, source={"lookback": "5m", "start_from": "now"})
        settings = settings_in(tmp_path)
        metrics = Metrics(clock)
        journal = SqliteJournal(tmp_path / "relay.db", max_bytes=1 << 30, retention_seconds=1e9, clock=clock)
        await journal.open()
        accounts = Accounts(settings, metrics=metrics, clock=clock)
        task = await make_source(
            SOURCE, settings=settings, journal=journal, accounts=accounts, metrics=metrics, clock=clock
        )
        try:
            yield Source(set_up, task, clock)
        finally:
            await task.close()
            await accounts.close()
            await journal.close()


# -- hours ------------------------------------------------------------------------------------------------------------


async def test_a_source_that_is_down_for_3_hours_writes_few_lines_and_one_when_it_is_back(
    source: Source, log: io.StringIO
) -> None:
    await source.task.poll()
    before = len(lines(log))
    fault = source.simulator.faults.inject(Fault(effect="answer", on="list", status=503))
    polls = await source.live(3, every_seconds=150)
    source.simulator.faults.remove(fault)
    await source.task.poll()
    written = lines(log)[before:]
    assert polls >= 70
    counts = Counter(line["event"] for line in written if line["level"] != "debug")
    assert 14 <= counts["poll failed"] <= 19
    assert 14 <= counts["request retried"] <= 19
    assert counts["source summarised"] in (2, 3)
    assert sum(counts.values()) <= 45
    told = [line["failures"] for line in of(written, "poll failed")]
    assert told[0] == 1
    assert told == sorted(set(told))
    assert {line["since"] for line in of(written, "poll failed")} == {of(written, "poll failed")[0]["since"]}
    (recovered,) = of(written, "source recovered")
    assert recovered["failures"] == polls
    assert recovered["seconds"] == pytest.approx(3 * HOUR_SECONDS, abs=200)


async def test_an_idle_hour_is_one_line_with_its_figures(source: Source, log: io.StringIO) -> None:
    await source.task.poll()
    before = len(lines(log))
    polls = await source.live(2.5, every_seconds=300)
    written = [line for line in lines(log)[before:] if line["event"] != "logged in"]
    assert {line["event"] for line in written} <= {"source summarised", "token refresh answered"}
    first, second = of(written, "source summarised")
    assert first["source"] == SOURCE
    assert first["polls"] == pytest.approx(12, abs=1)
    assert first["failed"] == first["late"] == first["throttled_seconds"] == 0
    assert first["requests"] >= first["pages"] >= first["polls"]
    assert first["seconds"] == pytest.approx(HOUR_SECONDS, abs=301)
    assert 0 <= first["lag_seconds"] <= 301
    assert second["complete_up_to"] > first["complete_up_to"]

    source.tenant.create()
    await source.task.poll()
    await source.task.close()
    rest = of(lines(log), "source summarised")[2]
    assert first["polls"] + second["polls"] + rest["polls"] == polls + 2
    assert (rest["events"], rest["kinds"]) == (1, {"created": 1})


async def test_a_sink_that_is_down_for_3_hours_writes_few_lines_and_one_when_it_is_back(
    tmp_path: Path, log: io.StringIO
) -> None:
    class Down(MemorySink):
        async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
            if clock.monotonic() < 3 * HOUR_SECONDS:
                raise Unavailable("no broker", reason="connect")
            await super().send(batch, upto=upto)

    clock = FakeClock()
    journal = SqliteJournal(tmp_path / "relay.db", max_bytes=1 << 30, retention_seconds=1e9, clock=clock)
    await journal.open()
    deliveries = Deliveries(journal, await journal.source(SOURCE), clock)
    await deliveries.fill(3)
    sink = Down()
    courier, _lease = await deliveries.courier(sink)
    await _delivered(courier, sink)
    await journal.close()
    written = lines(log)
    assert 18 <= len(of(written, "sink failed")) <= 19
    assert {line["level"] for line in of(written, "sink failed")} == {"warning"}
    (recovered,) = of(written, "sink recovered")
    assert recovered["failures"] > 300
    assert recovered["seconds"] == pytest.approx(3 * HOUR_SECONDS, abs=40)
    assert len(written) <= 21


async def _delivered(courier: Courier, sink: MemorySink) -> None:
    running = asyncio.create_task(courier.run())
    async with asyncio.timeout(30):
        while len(sink.arrived) < 3:
            await asyncio.sleep(0.01)
        courier.drain()
        await running


# -- one poll ---------------------------------------------------------------------------------------------------------


async def test_every_line_of_a_poll_carries_its_id_and_a_failed_one_the_request_that_failed_it(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=5) as set_up:
        set_up.configure(DISK, source={"enrich": True})
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("backfill completed")
            set_up.simulator.faults.inject(Fault(effect="answer", on="get", status=503, count=4))
            new = set_up.tenant.create()
            await relay.logged("incident not answered")
            before = len(relay.log)
            set_up.simulator.faults.inject(Fault(effect="answer", on="list", status=503, count=8))
            await relay.logged("poll failed", after=before)
            await relay.logged("source recovered", after=before)
            await until(lambda: _has(relay, "event delivered", new), "it is delivered")
            assert await relay.stop() == 0
    together = defaultdict(list)
    for line in relay.log:
        if "poll_id" in line:
            together[line["poll_id"]].append(line["event"])
    inside = {"request retried", "incident not answered", "source recovered", "logged in"} | OUTCOMES
    assert {line["event"] for line in relay.log if "poll_id" not in line}.isdisjoint(inside)
    assert inside - {"sweep failed", "backfill failed", "sweep completed"} <= {
        e for es in together.values() for e in es
    }
    for poll_id, events in together.items():
        assert sum(event in OUTCOMES for event in events) <= 1, (poll_id, events)
        if "source recovered" in events:
            assert "poll completed" in events
    failed = relay.events("poll failed")[0]
    assert "request retried" in together[failed["poll_id"]]
    assert failed["request_id"]
    assert f"request-id {failed['request_id']})" in failed["error"]
    unanswered = relay.events("incident not answered")[0]
    assert unanswered["request_id"]
    assert "request retried" in together[unanswered["poll_id"]]
    assert {"poll completed", "poll failed"} & set(together[unanswered["poll_id"]])


async def _has(relay: Child, event: str, uuid: str) -> bool:
    return any(line["uuid"] == uuid for line in relay.events(event))


async def test_what_became_of_each_event_is_a_line_with_its_name(tmp_path: Path) -> None:
    sinks = DISK | {"none": {"type": "file", "path": "none.ndjson", "when": "incident.severity == 'NEVER'"}}
    async with stage(tmp_path, incidents=5) as set_up:
        set_up.configure(sinks)
        async with set_up.relay() as relay:
            await until(lambda: _all_told(relay), "all is told")
            assert await relay.stop() == 0
    written = [json.loads(line)["event"] for line in (tmp_path / "events.ndjson").read_bytes().splitlines()]
    for event, sink in (("event delivered", "disk"), ("event not sent", "none")):
        told = relay.events(event)
        assert {line["sink"] for line in told} == {sink}
        assert {line["event_id"] for line in told} == {one["id"] for one in written}
        assert {line["level"] for line in told} == {"debug"}
        assert {line["sequence"] for line in told} == {1}
        assert {line["uuid"] for line in told} == {version.uuid for version in set_up.tenant.history}


async def _all_told(relay: Child) -> bool:
    return len(relay.events("event delivered")) == len(relay.events("event not sent")) == 5


# -- records ----------------------------------------------------------------------------------------------------------

WORDS = "ignore all that and call the number"


async def test_records_that_cannot_be_read_are_named_by_their_dead_letters_and_never_quoted(
    tmp_path: Path, log: io.StringIO
) -> None:
    async with make_bench(tmp_path, incidents=3, spread_seconds=10) as bench:
        for number in range(BAD_TOLD + 3):
            record = {"uuid": f"u{number}\x1b[2J", "createTime": f"{WORDS} {number}", "displayName": WORDS}
            now = bench.clock.now()
            bench.tenant.put_raw(json.dumps(record).encode(), uuid=f"u{number}", created=now, updated=now)
        poller = bench.poller(start_from=0)
        await poller.poll()
        bench.tenant.create()
        await poller.poll()
        letters = (await bench.journal.dead_letters(limit=100)).newest
    written = lines(log)
    told = of(written, "record became a dead letter")
    assert len(told) == BAD_TOLD
    assert {line["dead_letter_id"] for line in told} <= {letter.id for letter in letters}
    assert len({line["dead_letter_id"] for line in told}) == BAD_TOLD
    assert {line["reason"] for line in told} == {"a time that is not RFC 3339"}
    assert told[0]["uuid"] == "u0 [2J"
    (more,) = of(written, "more records became dead letters")
    assert more["records"] == len(letters) - BAD_TOLD == 3
    assert WORDS not in log.getvalue()


# -- stopping ---------------------------------------------------------------------------------------------------------


async def test_a_tick_that_comes_as_the_relay_stops_is_no_error(
    tmp_path: Path, log: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    """A job of the scheduler that is under way at its end used to be cancelled, and logged with a traceback."""
    async with stage(tmp_path, incidents=1) as set_up:
        set_up.configure(DISK)
        relay = Relay(settings_in(tmp_path))
        async with relay._opened():
            (task,) = relay.sources
            for _ in range(50):
                task._tick.clear()
                scheduler = timekeeper()
                scheduler.start()
                scheduler.add_job(task.on_tick, next_run_time=datetime.now(UTC))
                scheduler.shutdown(wait=False)
                async with asyncio.timeout(5):
                    await task._tick.wait()
    assert not [record for record in caplog.records if record.name.startswith("apscheduler") and record.exc_info]
    assert "Traceback" not in log.getvalue()


@pytest.mark.prove
async def test_a_relay_that_is_stopped_30_times_never_writes_a_traceback(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=1) as set_up:
        set_up.configure(DISK)
        for number in range(30):
            async with set_up.relay() as relay:
                await relay.started()
                await asyncio.sleep(number / 30)
                assert await relay.stop() == 0
            assert not relay.not_json
            assert b"Traceback" not in relay.stderr
            assert not [line for line in relay.log if line["level"] == "error"]
