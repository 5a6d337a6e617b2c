"""Every metric of the contract is in a real scrape, with its labels and without a lint; and what a scrape costs."""

import asyncio
import statistics
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import msgspec
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay import web
from relay.assembly import Accounts, make_source
from relay.clock import SECOND, SystemClock
from relay.errors import JOURNAL_REASONS, SOURCE_REASONS, JournalFull
from relay.incidents import KINDS, parse_instant
from relay.intake import PollReport
from relay.journal import PageCommit, SweepResult, Way
from relay.journal.sqlite import SqliteJournal
from relay.metrics import SEVERITIES, THROTTLING_CODES, Metrics
from relay.settings import load
from relay.states import MODES, SINK_STATES, VIEWS
from relay.status import RelayFacts
from tests.e2e.stage import CONFIGURATION, SOURCE, report, stage, until
from tests.e2e.test_messages import backfilled, delivered_all, polled, webhook
from tests.pages import metrics as page
from tests.support.clock import FakeClock
from tests.support.packages import skip_without
from tests.support.receiver import Told, receiving, unused_port

CONTRACT = {
    "relay_polls_total": "source outcome",
    "relay_poll_duration_seconds": "source",
    "relay_last_successful_poll_timestamp_seconds": "source",
    "relay_complete_up_to_timestamp_seconds": "source",
    "relay_backfill_up_to_timestamp_seconds": "source",
    "relay_source_mode": "source view mode",
    "relay_incidents_fetched_total": "source",
    "relay_events_total": "source kind origin",
    "relay_late_arrivals_total": "source",
    "relay_silent_changes_total": "source",
    "relay_stale_versions_total": "source",
    "relay_ledger_incidents": "source",
    "relay_reconcile_suspended": "source",
    "relay_clock_skew_seconds": "source",
    "relay_api_requests_total": "source code",
    "relay_api_throttled_total": "source code",
    "relay_api_backoff_seconds": "source",
    "relay_api_backoff_seconds_total": "source",
    "relay_poll_interval_seconds": "source",
    "relay_errors_total": "component reason",
    "relay_deliveries_total": "sink outcome reason",
    "relay_delivery_seconds": "sink",
    "relay_backlog_events": "sink",
    "relay_backlog_oldest_timestamp_seconds": "sink",
    "relay_lag_seconds": "sink",
    "relay_dead_letters": "component name",
    "relay_expired_total": "sink severity",
    "relay_sink_state": "sink state",
    "relay_sink_paused_until_timestamp_seconds": "sink",
    "relay_journal_bytes": "",
    "relay_journal_limit_bytes": "",
    "relay_polling_stopped": "reason",
    "relay_tasks_held": "kind",
    "relay_build_info": "version",
}
"""The metrics that the contract names, each with its labels."""
SOURCES, SINKS = 200, 5
TIMES = 7


def labels_of(text: str) -> dict[str, set[str]]:
    """The labels of each metric in a scrape; a histogram's samples under its own name, without `le`."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = family.name if family.type == "histogram" else sample.name
            found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    return found


def lines_about(text: str, label: str) -> list[str]:
    return [line for line in text.splitlines() if f'"{label}"' in line or f' {label}"' in line]


def exposed(metrics: Metrics) -> str:
    return prometheus_client.generate_latest(metrics.registry).decode()


def value(text: str, name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


# -- a real relay -----------------------------------------------------------------------------------------------------


async def test_a_real_scrape_holds_every_metric_of_the_contract_and_nothing_else_and_promtool_finds_no_fault(
    tmp_path: Path,
) -> None:
    skip_without("promtool")
    async with stage(tmp_path, incidents=30) as set_up, receiving() as soc, receiving() as soar, receiving() as paused:
        soc.says(Told(body=b"ok"))
        paused.says(Told(status=429, headers={"retry-after": "3600"}))
        set_up.configure(
            {
                "disk": {"type": "file", "path": "events.ndjson"},
                "out": {"type": "stdout", "when": 'incident.severity == "HIGH"'},
                "soc": {"type": "slack", "url": soc.url, "proxy": "none"},
                "soar": webhook(soar),
                "slow": webhook(paused),
                "dead": webhook(paused) | {"url": f"http://127.0.0.1:{unused_port()}/"},
            }
        )
        async with set_up.relay() as relay:
            await relay.started()
            await backfilled(relay)
            set_up.tenant.create({"displayName": "one more"})
            await polled(relay)
            await until(lambda: delivered_all(relay, "disk", "out", "soc", "soar"), "all but the dead ones have all")

            async def is_paused() -> bool:
                return bool(await relay.metric("relay_sink_paused_until_timestamp_seconds", sink="slow"))

            async def waits() -> bool:
                return await relay.metric("relay_backlog_events", sink="dead") == 31

            await until(is_paused, "the pause is shown")
            await until(waits, "what waits is shown")
            answer = await relay.get("/metrics")
            await relay.kill()
    text = answer.text
    assert labels_of(text) == {name: set(labels.split()) for name, labels in CONTRACT.items()}
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert "_created" not in text
    assert value(text, "relay_lag_seconds_count", sink="disk") == [1]  # of the past there is no lag
    assert value(text, "relay_sink_state", sink="slow", state="paused") == [1]
    assert value(text, "relay_sink_state", sink="dead", state="failing") == [1]
    assert value(text, "relay_tasks_held", kind="sink") == [6]


async def sweep_was_suspended(folder: Path) -> None:
    """Leaves the journal of a relay that met too many missing incidents; such a sweep comes a minute after another."""
    journal = SqliteJournal(folder / "relay.db", max_bytes=1 << 31, retention_seconds=1e9, clock=SystemClock())
    await journal.open()
    try:
        lease = await journal.source(SOURCE)
        assert lease.progress is not None
        swept = SweepResult(finished=SystemClock().now(), suspended=True)
        way = Way(mode="scan", reason="as it was")
        progress = msgspec.structs.replace(lease.progress, sweep=None, swept=swept, ways={"create_time": way})
        await lease.commit(PageCommit(progress=progress))
    finally:
        await journal.close()


async def test_after_a_restart_the_metrics_know_what_the_journal_knows_before_the_first_poll(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=60) as set_up:
        set_up.configure({"disk": {"type": "file", "path": "events.ndjson"}})
        async with set_up.relay() as relay:
            await relay.started()
            await backfilled(relay)
            before = (await relay.get("/metrics")).text
            await relay.kill()
        await sweep_was_suspended(tmp_path)
        nowhere = f"http://127.0.0.1:{unused_port()}"
        set_up.configure(
            {"disk": {"type": "file", "path": "events.ndjson"}}, source={"base_url": nowhere, "token_url": nowhere}
        )
        async with set_up.relay() as relay:
            await relay.started()

            async def counted() -> bool:
                return await relay.metric("relay_ledger_incidents", source=SOURCE) == 60

            await until(counted, "the ledger is counted")
            text = (await relay.get("/metrics")).text
            status = await relay.status()
            await relay.kill()
    assert value(text, "relay_reconcile_suspended", source=SOURCE) == [1]
    assert status["sources"][0]["sweep"]["suspended"]
    (read,) = value(text, "relay_complete_up_to_timestamp_seconds", source=SOURCE)
    assert read >= value(before, "relay_complete_up_to_timestamp_seconds", source=SOURCE)[0]
    (past,) = value(text, "relay_backfill_up_to_timestamp_seconds", source=SOURCE)
    assert past == pytest.approx(parse_instant(status["sources"][0]["backfill"]["to_time"]) / SECOND, abs=1)
    assert value(text, "relay_last_successful_poll_timestamp_seconds") == []
    assert value(text, "relay_source_mode", view="create_time", mode="scan") == [1]


async def test_polling_is_not_said_to_wait_while_a_sweep_reads_for_hours_after_the_journal_had_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    metrics = Metrics(clock)
    async with stage(tmp_path, incidents=1) as set_up:
        set_up.configure({"disk": {"type": "file", "path": "events.ndjson"}})
        settings = load(tmp_path / CONFIGURATION, {}, tmp_path)
        journal = SqliteJournal(tmp_path / "relay.db", max_bytes=1 << 30, retention_seconds=1e9, clock=clock)
        await journal.open()
        accounts = Accounts(settings, metrics=metrics, clock=clock)
        task = await make_source(
            SOURCE, settings=settings, journal=journal, accounts=accounts, metrics=metrics, clock=clock
        )
        room, again = asyncio.Event(), asyncio.Event()
        reads = iter([JournalFull("full"), None])

        async def backfill() -> PollReport:
            if (error := next(reads)) is not None:
                raise error
            again.set()
            await asyncio.Event().wait()
            return PollReport()

        monkeypatch.setattr(task._poller, "backfill", backfill)
        monkeypatch.setattr(task._lease, "room", room.wait)
        reading = asyncio.create_task(task.reconcile(), name="reconcile")
        try:
            async with asyncio.timeout(30):
                while not any(value(exposed(metrics), "relay_polling_stopped", reason="journal_full")):
                    await asyncio.sleep(0.01)
                assert not again.is_set()
                room.set()
                await again.wait()
            assert set(value(exposed(metrics), "relay_polling_stopped")) == {0.0}
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await task.close()
            await accounts.close()
            await journal.close()


# -- the registry -----------------------------------------------------------------------------------------------------


def test_counters_start_at_zero_and_times_do_not_exist_before_their_first_value() -> None:
    metrics = Metrics(FakeClock())
    metrics.source("acme")
    metrics.sink("soc")
    text = exposed(metrics)
    for name in CONTRACT:
        if name.endswith("_total"):
            assert set(value(text, name)) == {0.0}, name
        if name.endswith("_timestamp_seconds"):
            assert value(text, name) == [], name
    assert len(value(text, "relay_events_total", source="acme")) == len(KINDS) * 2
    assert len(value(text, "relay_polls_total", source="acme")) == 2
    assert len(value(text, "relay_api_throttled_total", source="acme")) == len(THROTTLING_CODES)
    assert len(value(text, "relay_errors_total", component="source acme")) == len(SOURCE_REASONS) + 1
    assert len(value(text, "relay_errors_total", component="journal")) == len(JOURNAL_REASONS)
    assert len(value(text, "relay_expired_total", sink="soc")) == len(SEVERITIES)
    assert len(value(text, "relay_sink_state", sink="soc")) == len(SINK_STATES)
    assert len(value(text, "relay_source_mode", source="acme")) == len(VIEWS) * len(MODES)
    for outcome in ("delivered", "accepted", "retried", "dead", "skipped", "superseded", "expired"):
        assert value(text, "relay_deliveries_total", sink="soc", outcome=outcome), outcome


def test_a_source_or_sink_that_is_handed_over_leaves_no_series_behind() -> None:
    metrics = Metrics(FakeClock())
    nothing = exposed(metrics)
    staying = metrics.source("acme2"), metrics.sink("acme")  # names that only look alike
    without = exposed(metrics)
    source, sink = metrics.source("acme"), metrics.sink("soc")
    source.polled("complete", 1.0)
    source.answered("418")
    source.failed("filter_ignored")
    source.throttled("429", 3.0)
    source.skewed(0.1)
    source.complete_up_to(SECOND)
    source.backfilled_up_to(SECOND)
    source.knows(1)
    source.buried(2)
    source.polls_every(60)
    metrics.waits_for_journal("poll acme", "journal_full")
    sink.delivered([1.0], events=1, seconds=0.1)
    sink.settled("dead", "http_400", 1)
    sink.expired("STRANGE", 3)
    sink.waits(3, SECOND)
    sink.paused(SECOND)
    sink.failed("when")
    sink.buried(1)
    source.remove()
    sink.remove()
    assert exposed(metrics) == without
    assert value(exposed(metrics), "relay_polling_stopped", reason="journal_full") == [0]
    staying[0].remove()
    staying[1].remove()
    assert exposed(metrics) == nothing
    assert metrics.source("acme") is not source  # taken up again, it starts at zero
    assert value(exposed(metrics), "relay_polls_total", source="acme", outcome="complete") == [0]


def test_the_page_says_what_the_metrics_say() -> None:
    assert page.PAGE.read_text() == page.render(), "run python -m tests.pages"
    assert {page.exposed_name(metric) for metric in page.collectors()} == CONTRACT.keys()
    for metric in page.collectors():
        assert set(metric._labelnames) == set(CONTRACT[page.exposed_name(metric)].split())
        if metric._name.endswith("timestamp_seconds"):
            assert "; absent " in metric._documentation, metric._name


# -- what a scrape costs ----------------------------------------------------------------------------------------------


class Many:
    """What the servers need of a relay with many tasks."""

    def __init__(self) -> None:
        self.metrics = Metrics(SystemClock())
        for number in range(SOURCES):
            source = self.metrics.source(f"tenant{number:03}")
            source.polled("complete", 1.0)
            source.skewed(0.1)
            source.complete_up_to(SECOND)
            source.backfilled_up_to(SECOND)
            source.knows(10_000)
            source.polls_every(60)
        for number in range(SINKS):
            sink = self.metrics.sink(f"sink{number}")
            sink.delivered([1.0], events=1, seconds=0.1)
            sink.waits(1, SECOND)

    async def facts(self) -> RelayFacts:
        raise NotImplementedError

    async def own_facts(self) -> RelayFacts:
        raise NotImplementedError

    def stuck_seconds(self) -> float:
        return 0.0

    def ended_tasks(self) -> list[str]:
        return []


async def longest_stall(work: Callable[[], Awaitable[None]]) -> float:
    """For how long, at worst, nothing else could run in the loop meanwhile; seconds."""
    stalls = [0.0]

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            stalls.append(time.perf_counter() - began - 0.001)

    watching = asyncio.create_task(watch(), name="watch the loop")
    await asyncio.sleep(0.01)
    await work()
    await asyncio.sleep(0.002)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return max(stalls)


async def test_a_scrape_of_200_sources_is_made_beside_the_loop_which_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Many()
    threads: list[int] = []
    generate = prometheus_client.generate_latest

    def noted(registry: prometheus_client.CollectorRegistry) -> bytes:
        threads.append(threading.get_ident())
        return generate(registry)

    monkeypatch.setattr(web, "generate_latest", noted)
    transport = httpx.ASGITransport(web.application(relay))
    async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
        sizes: list[int] = []
        seconds: list[float] = []

        async def scrape() -> None:
            began = time.perf_counter()
            sizes.append(len((await client.get("/metrics")).content))
            seconds.append(time.perf_counter() - began)

        async def blocking() -> None:
            generate(relay.metrics.registry)

        beside = statistics.median([await longest_stall(scrape) for _ in range(TIMES)])
        inside = statistics.median([await longest_stall(blocking) for _ in range(TIMES)])
    report(
        "scrape",
        sources=SOURCES,
        sinks=SINKS,
        bytes=sizes[-1],
        ms=round(statistics.median(seconds) * 1000),
        loop_stalled_ms=round(beside * 1000, 1),
        loop_stalled_ms_if_made_in_it=round(inside * 1000, 1),
    )
    assert threads
    assert threading.get_ident() not in threads
    assert beside < inside
    assert sizes[-1] < 1_500_000
