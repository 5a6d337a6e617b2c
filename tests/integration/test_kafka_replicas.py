"""Several processes on one journal: who owns what, what they tell each other, commands, and sinks written with polls.

On a fake of Kafka, where a process can be killed between any two lines; on a real one: `tests.replicas`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.clock import SystemClock
from relay.errors import JournalUnavailable, LeaseLost
from relay.journal import Outcome, PageCommit
from relay.journal.kafka import InlineSink, KafkaJournal
from relay.metrics import Metrics
from relay.sinks.kafka_shape import Shape
from tests.integration.test_journal_contract import KEEP_SECONDS, PROGRESS, fill, page
from tests.support.fake_kafka import FakeBroker, FakeCluster, Trouble
from tests.support.incidents import chain

PREFIX = "relay"
CLOCK = SystemClock()


class Process:
    """One process of the relay."""

    def __init__(self, cluster: FakeCluster, folder: Path, name: str, **more: Any) -> None:
        self.name = name
        self.broker = FakeBroker(cluster, member=name)
        self.metrics = Metrics(CLOCK)
        self.journal = KafkaJournal(
            self.broker,
            prefix=PREFIX,
            partitions=4,
            cache_dir=folder / name,
            max_bytes=1 << 30,
            retention_seconds=3600,
            inline=[self.inline(**wanted) for wanted in more.pop("inline", ())],
            process=name,
            clock=CLOCK,
        )

    def inline(self, *, topic: str, max_event_bytes: int = 900_000) -> InlineSink:
        """A sink that is written with the polls, under the name of its topic."""
        return InlineSink(
            topic,
            shape=Shape(topic=topic, omit=(), max_event_bytes=max_event_bytes),
            rule=None,
            ensure=lambda name: self.broker.ensure_topic(name, create=True, partitions=1, replication_factor=1),
            metrics=self.metrics.sink(topic, owned=False),
            clock=CLOCK,
        )

    def kill(self) -> None:
        """Nothing of it reaches the cluster any more, which does not know yet."""
        self.broker.die()


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@asynccontextmanager
async def process(cluster: FakeCluster, folder: Path, name: str, **more: Any) -> AsyncIterator[Process]:
    one = Process(cluster, folder, name, **more)
    await one.journal.open()
    try:
        yield one
    finally:
        await one.journal.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.01)


TASKS = [("source", f"s{number}") for number in range(12)]


def held(*processes: Process) -> list[int]:
    """By how many of them each task is held."""
    return [sum(one.journal.holding(*task) is not None for one in processes) for task in TASKS]  # type: ignore[arg-type]


async def test_every_task_has_one_owner_through_joining_and_leaving(cluster: FakeCluster, tmp_path: Path) -> None:
    async with process(cluster, tmp_path, "a") as a:
        await until(lambda: held(a) == [1] * 12)
        async with process(cluster, tmp_path, "b") as b:
            await until(lambda: held(a, b) == [1] * 12 and sum(held(a)) < 12)
        await until(lambda: held(a) == [1] * 12)


async def test_a_process_for_which_nothing_is_left_waits_for_nothing(cluster: FakeCluster, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(process(cluster, tmp_path, name)) for name in "abcde"]
        async with asyncio.timeout(30):
            for one in processes:
                await one.journal.settled()
                await one.journal.tend()
                assert (await one.journal.dead_letters(limit=1)).total == 0
        await until(lambda: held(*processes) == [1] * 12)


async def test_what_was_just_being_taken_is_let_go_of_as_well(cluster: FakeCluster, tmp_path: Path) -> None:
    """However far a partition has come when the process stops, its file can be opened again."""
    for turns in range(30):
        one = Process(cluster, tmp_path, "a")
        await one.journal.open()
        for _ in range(turns):
            await asyncio.sleep(0.001)
        await one.journal.close()
    async with process(cluster, tmp_path, "a") as a, asyncio.timeout(20):
        await until(lambda: held(a) == [1] * 12)


async def test_the_ledger_goes_with_the_task_and_a_lost_lease_writes_no_more(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    async with process(cluster, tmp_path, "a") as a:
        lease = await a.journal.source("acme")
        await lease.commit(page(chain("u1", 2)))
        epoch = a.journal.holding("source", "acme")
        partition = a.journal.place("source", "acme")
        writer = FakeBroker(cluster, member="thief").writer(f"{PREFIX}-{partition}")
        writer.fence()
        with pytest.raises(LeaseLost):
            await lease.commit(page(chain("u2", 1)))
        with pytest.raises(LeaseLost):
            await lease.known(["u1"])
        await until(lambda: a.journal.holding("source", "acme") not in {None, epoch})
        assert a.journal.fenced == 1
        again = await a.journal.source("acme")
        assert set(await again.known(["u1", "u2"])) == {"u1"}
        assert again.progress == PROGRESS


async def test_processes_know_each_other_and_what_they_say_of_their_tasks(cluster: FakeCluster, tmp_path: Path) -> None:
    async with process(cluster, tmp_path, "a") as a, process(cluster, tmp_path, "b") as b:
        await b.journal.publish(b"of b", {("source", "acme"): b"fine"})
        await until(lambda: a.journal.report("source", "acme") is not None)
        report = a.journal.report("source", "acme")
        assert report is not None
        assert (report.process, report.body) == ("b", b"fine")
        assert [peer.facts for peer in a.journal.peers.values()] == [b"of b"]
        assert b.journal.report("source", "acme") is None
        assert b.journal.peers == {}
    async with process(cluster, tmp_path, "c") as c:
        await asyncio.sleep(0.2)
        assert c.journal.peers == {}


async def test_a_command_is_executed_by_the_owner_of_its_task_alone(cluster: FakeCluster, tmp_path: Path) -> None:
    async with process(cluster, tmp_path, "a") as a, process(cluster, tmp_path, "b") as b:
        await until(lambda: held(a, b) == [1] * 12 and 0 < sum(held(a)) < 12)
        executed: list[str] = []
        for one in (a, b):

            async def obey(body: bytes, done_before: bool, name: str = one.name) -> bytes:
                assert not done_before
                executed.append(name)
                return body + name.encode()

            one.journal.obey(obey)
        task = next(task for task in TASKS if b.journal.holding(*task) is not None)  # type: ignore[arg-type]
        assert await a.journal.ask(task, b"do ", seconds=10) == {"b": b"do b"}  # type: ignore[arg-type]
        assert executed == ["b"]
        await b.journal.publish(b"", {})
        await until(lambda: set(a.journal.peers) == {"b"})
        assert await a.journal.ask(None, b"all ", seconds=10) == {"b": b"all b"}
        assert executed == ["b", "b"]


async def test_a_command_waits_for_the_next_owner_of_its_task_and_is_done_once(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    """Its owner does it and dies before it can say so: the next one finds that it was done."""
    async with process(cluster, tmp_path, "a") as a, process(cluster, tmp_path, "b") as b:
        await until(lambda: held(a, b) == [1] * 12 and 0 < sum(held(a)) < 12)
        name = next(f"k{n}" for n in range(99) if b.journal.holding("sink", f"k{n}") is not None)
        source = next(f"k{n}" for n in range(99) if a.journal.holding("source", f"k{n}") is not None)
        lease = await b.journal.sink(name, start="earliest", keep_seconds=KEEP_SECONDS)
        events = await fill(await a.journal.source(source), 3)
        claim = await lease.claim(10, in_order=True)
        await lease.settle([Outcome(positions=[d.position for d in claim.deliveries], kind="done")])

        async def replay_and_die(_body: bytes, _done_before: bool) -> bytes:
            assert await lease.replay(0, CLOCK.now()) == 3
            b.kill()
            return b""

        told: list[bool] = []

        async def obey(_body: bytes, done_before: bool) -> bytes:
            told.append(done_before)
            return b"known"

        b.journal.obey(replay_and_die)
        a.journal.obey(obey)
        assert await a.journal.ask(("sink", name), b"replay", seconds=30) == {"a": b"known"}
        assert told == [True]
        heir = await a.journal.sink(name, start="earliest", keep_seconds=KEEP_SECONDS)
        again = await heir.claim(10, in_order=True, wait=False)
        assert [(d.id, d.origin) for d in again.deliveries] == [(ident, "replay") for ident in events]


# -- sinks that are written with the polls -----------------------------------------------------------------------------


async def test_an_event_is_in_the_topic_as_soon_as_its_page_is_committed(cluster: FakeCluster, tmp_path: Path) -> None:
    async with process(cluster, tmp_path, "a", inline=[{"topic": "siem"}]) as a:
        lease = await a.journal.source("acme")
        events, known = chain("u1", 3)
        await lease.commit(page((events, known)))
        records = cluster.committed("siem")
        assert [msgspec.json.decode(record.value or b"")["event"]["id"] for record in records] == [e.id for e in events]
        assert {record.key for record in records} == {b"u1"}
        assert dict(records[0].headers)["ce_id"] == events[0].id.encode()
        assert a.journal.written()["siem"][0] == 3


async def test_a_doubtful_commit_is_asked_about_and_repeats_nothing(cluster: FakeCluster, tmp_path: Path) -> None:
    async with process(cluster, tmp_path, "a", inline=[{"topic": "siem"}]) as a:
        lease = await a.journal.source("acme")
        await lease.commit(page(chain("u0", 1)))
        troubles: list[Trouble] = ["kept", "lost"]
        for number, trouble in enumerate(troubles, start=1):
            cluster.troubles.append(trouble)
            commit = page(chain(f"u{number}", 2))
            with pytest.raises(JournalUnavailable):
                await lease.commit(commit)
            await lease.commit(commit)
        uuids = [record.key for record in cluster.committed("siem")]
        assert uuids == [b"u0", b"u1", b"u1", b"u2", b"u2"]


async def test_what_does_not_fit_is_a_dead_letter_of_the_sink_and_can_be_sent_again(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    async with process(cluster, tmp_path, "a", inline=[{"topic": "siem", "max_event_bytes": 1}]) as a:
        lease = await a.journal.source("acme")
        (ident,) = await fill(lease, 1)
        sink = await a.journal.sink("siem", start="now", keep_seconds=KEEP_SECONDS)
        await a.journal.tend()
        assert (await sink.buried()).letters == 1
        found = await a.journal.dead_letters(component="sink", name="siem", limit=5)
        assert [letter.id for letter in found.newest] == [ident]
        assert cluster.committed("siem") == []
        assert (await sink.redrive(None)).events == 1
        claim = await sink.claim(10, in_order=True, wait=False)
        assert [delivery.id for delivery in claim.deliveries] == [ident]
        assert claim.upto is None
        await sink.settle([Outcome(positions=[claim.deliveries[0].position], kind="done")])
        assert (await sink.buried()).letters == 0
        await lease.commit(PageCommit(progress=PROGRESS))
        assert (await sink.claim(10, in_order=True, wait=False)).deliveries == []


async def test_a_sink_that_is_written_with_the_polls_can_be_replayed(cluster: FakeCluster, tmp_path: Path) -> None:
    async with process(cluster, tmp_path, "a", inline=[{"topic": "siem"}]) as a:
        expected = await fill(await a.journal.source("acme"), 3)
        sink = await a.journal.sink("siem", start="now", keep_seconds=KEEP_SECONDS)
        assert (await sink.backlog()).events == 0
        assert await sink.replay(0, CLOCK.now()) == 3
        claim = await sink.claim(10, in_order=True, wait=False)
        assert [(d.id, d.origin) for d in claim.deliveries] == [(ident, "replay") for ident in expected]
