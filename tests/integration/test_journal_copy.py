"""A journal moves from one machine into Kafka and back: what is known, owed and refused stays, and no event repeats."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.assembly import make_courier, make_journal, make_sink
from relay.clock import SECOND
from relay.copying import copy_journal
from relay.errors import ConfigError, JournalError, JournalLocked, JournalMisplaced, RelayError
from relay.incidents import Event, Known
from relay.journal import EndpointStatus, Journal, Outcome, PageCommit
from relay.journal.copy import KafkaOrigin, KafkaTarget
from relay.journal.kafka import InlineSink, KafkaJournal
from relay.journal.kafka.broker import Reader
from relay.journal.kafka.file import Copy, Tell, quiet
from relay.journal.kafka.partition import INLINE_POSITION, filler
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics
from relay.settings import Settings, load
from relay.sinks import Position
from relay.sinks.kafka_shape import Shape
from tests.integration.test_journal_commands import BAD, bury, deliver, sink_of, take
from tests.integration.test_journal_contract import PROGRESS, fill, outcomes, page
from tests.support.clock import FakeClock
from tests.support.incidents import START, chain
from tests.support.journals import JOURNALS, PARTITIONS, MakeBroker, brokers
from tests.support.kafka import Kafka, committed, events, fresh
from tests.support.passes import USER, Bench, make_bench
from tests.support.process import Finished, finished

PARKED = EndpointStatus(state="parked", since=START, reason="gone")
NAMES = "coalesce(s.name, '')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Journals of one test: files in its folder, and on Kafka under prefixes of their own."""

    folder: Path
    broker: MakeBroker
    clock: FakeClock

    @asynccontextmanager
    async def file(self, name: str) -> AsyncIterator[SqliteJournal]:
        journal = SqliteJournal(self.folder / f"{name}.db", max_bytes=1 << 30, retention_seconds=7200, clock=self.clock)
        await journal.open()
        try:
            yield journal
        finally:
            await journal.close()

    @asynccontextmanager
    async def kafka(self, prefix: str, *, cache: str = "", inline: tuple[str, ...] = ()) -> AsyncIterator[KafkaJournal]:
        broker: Any = self.broker(prefix)
        journal = KafkaJournal(
            broker,
            prefix=prefix,
            partitions=PARTITIONS,
            cache_dir=self.folder / (cache or prefix),
            max_bytes=1 << 30,
            retention_seconds=7200,
            inline=[
                InlineSink(
                    name,
                    shape=Shape(topic=f"{prefix}-{name}", omit=(), max_event_bytes=900_000),
                    rule=None,
                    ensure=lambda topic: broker.ensure_topic(topic, create=True, partitions=1, replication_factor=-1),
                    metrics=Metrics(self.clock).sink(name),
                    clock=self.clock,
                )
                for name in inline
            ],
            clock=self.clock,
        )
        await journal.open()
        try:
            yield journal
        finally:
            await journal.close()

    async def into_kafka(self, name: str, prefix: str = "", *, inline: tuple[str, ...] = (), tell: Tell = quiet) -> str:
        """Copies the file into topics; returns their prefix."""
        prefix = prefix or fresh()
        target = KafkaTarget(
            self.broker(prefix),
            prefix=prefix,
            partitions=PARTITIONS,
            retention_seconds=7200,
            clock=self.clock,
            tell=tell,
        )
        try:
            await target.open()
            async with self.file(name) as journal:
                await target.fill(journal, inline=inline)
        finally:
            await target.close()
        return prefix

    async def into_file(
        self, prefix: str, name: str, *, reached: dict[str, Position] | None = None, tell: Tell = quiet
    ) -> int:
        """Copies topics into a file; returns how many events were lost on the way."""
        copy = Copy(self.folder / f"{name}.db", max_bytes=1 << 30, retention_seconds=0, clock=self.clock)
        origin = KafkaOrigin(self.broker(prefix), prefix=prefix, clock=self.clock, tell=tell)
        try:
            await origin.open()
            await copy.open()
            lost = await origin.fill(copy, reached or {})
            await copy.finish()
        finally:
            await copy.close()
            await origin.close()
        return lost


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture(params=JOURNALS[1:])
def move(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Move:
    return Move(folder=tmp_path, broker=brokers(request), clock=clock)


@pytest.fixture
def fake(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Move:
    """Where the cluster makes no difference."""
    request.param = "kafka-fake"
    return Move(folder=tmp_path, broker=brokers(request), clock=clock)


async def contents(journal: SqliteJournal) -> dict[str, list[Any]]:
    """All that is in a file, with labels instead of the numbers that sources have in it."""
    queries = {
        "meta": "SELECT * FROM meta",
        "source": "SELECT name, progress FROM source WHERE progress IS NOT NULL",
        "renamed": "SELECT s.name, r.upto, r.name FROM renamed r JOIN source s ON s.id = r.source",
        "incident": (
            "SELECT s.name, uuid, created, updated, newest, sequence, digest, digest_version, fields, gone "
            "FROM incident i JOIN source s ON s.id = i.source"
        ),
        "event": (
            "SELECT position, e.id, kind, s.name, origin, uuid, sequence, updated, severity, committed, body "
            "FROM event e JOIN source s ON s.id = e.source"
        ),
        "sink": "SELECT * FROM sink",
        "pending": (
            f"SELECT sink, position, {NAMES}, uuid, attempts, due, reason, cause, since, body "
            "FROM pending p LEFT JOIN source s ON s.id = p.source"
        ),
        "done": "SELECT * FROM done",
        "dead": "SELECT * FROM dead",
        "expired": "SELECT * FROM expired",
    }
    return {
        name: sorted(await journal.run(lambda db, q=query: db.execute(q).fetchall(), write=False))  # type: ignore[misc]
        for name, query in queries.items()
    }


async def live(journal: SqliteJournal, clock: FakeClock) -> None:
    """A journal that has seen everything: retries, dead letters, redrives, a replay, parking, expiry."""
    lease = await journal.source("acme")
    other = await journal.source("other")
    short = await sink_of(journal, "short", keep_seconds=10)
    await fill(lease, 4, prefix="old")
    clock.advance(20)
    await journal.tend()
    assert (await short.backlog()).events == 0
    await lease.commit(page(chain("a", 3), chain("b", 1)))
    await other.commit(page(chain("a", 2, source="other")))
    await lease.commit(PageCommit(progress=PROGRESS, bad=BAD))
    soar = await sink_of(journal)
    claim = await take(soar, 4)
    first, second, third, *rest = claim.deliveries
    await soar.settle(
        [
            Outcome(positions=[first.position], kind="retry", due=clock.now() + 60 * SECOND, reason="http_500"),
            Outcome(positions=[second.position], kind="dead", reason="http_422: no"),
            Outcome(positions=[third.position, *(one.position for one in rest)], kind="done"),
        ]
    )
    dead = await sink_of(journal, "dead")
    await bury(dead, [second.id, third.id])
    await dead.redrive([third.id])
    await dead.replay(START, clock.now() + 1, "a")
    parked = await sink_of(journal, "chat")
    await parked.settle([], PARKED)
    stuck = await sink_of(journal, "stuck")
    claim = await take(stuck, 3)
    await stuck.settle([Outcome(positions=[claim.deliveries[1].position], kind="dead", reason="no")])
    await stuck.redrive(None)


async def test_all_of_it_is_there_after_the_way_into_kafka_and_back(move: Move, clock: FakeClock) -> None:
    async with move.file("one") as journal:
        await live(journal, clock)
    async with move.file("one") as journal:
        await journal.rename_source("acme", "globex")
        await (await journal.source("globex")).commit(page(chain("late", 2, source="globex")))
        await journal.run(lambda db: journal.number_above(db, 100), write=True)
        await (await journal.source("globex")).commit(page(chain("later", 1, source="globex")))
        before, ident = await contents(journal), journal.id
    prefix = await move.into_kafka("one")
    assert await move.into_file(prefix, "two") == 0
    async with move.file("two") as journal:
        assert journal.id == ident
        after = await contents(journal)
        for table, rows in before.items():
            assert after[table] == rows, table
        assert all(before.values()), "every table was tried"
        await (await journal.source("globex")).commit(page(chain("new", 1, source="globex")))
        (event,) = await journal.latest_events(1)
        assert (event.uuid, event.position) > ("new", 101)


async def test_the_copy_is_the_same_to_whoever_uses_it(move: Move, clock: FakeClock) -> None:
    async with move.file("one") as journal:
        lease = await journal.source("acme")
        owed = await fill(lease, 5)
        sink = await sink_of(journal)
        claim = await take(sink, 3)
        await sink.settle(
            [
                Outcome(positions=[claim.deliveries[0].position], kind="done"),
                Outcome(positions=[claim.deliveries[1].position], kind="dead", reason="no"),
                Outcome(positions=[claim.deliveries[2].position], kind="retry", due=clock.now() + SECOND, reason="no"),
            ]
        )
        assert await deliver(await sink_of(journal, "other")) == owed
        parked = await sink_of(journal, "chat")
        await parked.settle([], PARKED)
        known = await lease.known(["u0", "u4"])
        ident = journal.id
    prefix = await move.into_kafka("one")
    async with move.kafka(prefix) as journal:
        assert journal.id == ident
        lease = await journal.source("acme")
        assert (lease.progress, await lease.count()) == (PROGRESS, 5)
        assert await lease.known(["u0", "u4"]) == known
        assert (await sink_of(journal, "chat")).endpoint == PARKED
        new = await fill(lease, 2, prefix="new")
        assert await deliver(await sink_of(journal, "other")) == new
        sink = await sink_of(journal)
        assert await deliver(sink) == [*owed[3:], *new]
        clock.advance(1)
        assert await deliver(sink) == [owed[2]]
        assert (await sink.redrive(None)).events == 1
        assert await deliver(sink) == [owed[1]]
        assert await sink.replay(START, START + 1) == 7
        last = (await journal.latest_events(1))[0]
        assert last.uuid == "new1"
    await move.into_file(prefix, "two")
    async with move.file("two") as journal:
        assert await deliver(await sink_of(journal, "chat")) == [*owed, *new]
        assert await deliver(await sink_of(journal, "other")) == []
        assert len(await deliver(await sink_of(journal))) == 7
        lease = await journal.source("acme")
        newest = await fill(lease, 1, prefix="newest")
        assert await deliver(await sink_of(journal, "other")) == newest


async def test_versions_of_an_incident_arrive_in_order_across_the_copies(move: Move) -> None:
    events, known = chain("u1", 6)
    async with move.file("one") as journal:
        await (await journal.source("acme")).commit(page((events[:2], msgspec.structs.replace(known, sequence=2))))
        sink = await sink_of(journal)
        await sink.settle(outcomes(await take(sink, 1), "retry", due=0, reason="no"))
    prefix = await move.into_kafka("one")
    async with move.kafka(prefix) as journal:
        lease = await journal.source("acme")
        await lease.commit(page((events[2:4], msgspec.structs.replace(known, sequence=4))))
        sink = await sink_of(journal)
        claim = await take(sink)
        assert [one.id for one in claim.deliveries] == [events[0].id]
        await sink.settle(outcomes(claim))
    await move.into_file(prefix, "two")
    async with move.file("two") as journal:
        await (await journal.source("acme")).commit(page((events[4:], known)))
        assert await deliver(await sink_of(journal)) == [event.id for event in events[1:]]


async def test_a_poll_of_what_has_not_changed_emits_nothing_after_a_copy(
    move: Move, tmp_path: Path, clock: FakeClock
) -> None:
    async with make_bench(tmp_path, incidents=30, spread_seconds=3600) as bench:
        poller = bench.poller()
        await poller.poll()
        await poller.backfill()
        simulator, clock = bench.simulator, bench.clock
        sink = await bench.journal.sink("all", start="earliest", keep_seconds=1e9)
        assert len(await deliver(sink, in_order=True)) == 30
    moved = Move(folder=tmp_path, broker=move.broker, clock=clock)
    prefix = await moved.into_kafka("relay")
    async with moved.kafka(prefix) as journal:
        await polled_without_news(Bench(simulator, journal, await journal.source(USER), clock))
    await moved.into_file(prefix, "back")
    async with moved.file("back") as journal:
        await polled_without_news(Bench(simulator, journal, await journal.source(USER), clock))


async def polled_without_news(bench: Bench) -> None:
    """One poll finds nothing; the next finds what changed since."""
    poller = bench.poller()
    await poller.poll()
    sink = await bench.journal.sink("all", start="earliest", keep_seconds=1e9)
    assert await deliver(sink, in_order=True) == []
    bench.clock.advance(60)
    bench.tenant.update(bench.tenant.uuids()[0], {"displayName": f"at {bench.clock.now()}"})
    await poller.poll()
    assert len(await deliver(sink, in_order=True)) == 1


async def test_positions_that_no_event_has_stay_free_and_later_ones_are_above_all(fake: Move) -> None:
    """Short holes, long ones, and one behind the last event, as a restored backup leaves it."""
    async with fake.file("one") as journal:
        lease = await journal.source("acme")
        for number, hole in enumerate([0, 1, 3, 16, 17, 5000, 2]):
            await fill(lease, 2, prefix=f"u{number}-")
            await journal.run(lambda db, h=hole: journal.number_above(db, journal.end(db) + h), write=True)  # type: ignore[misc]
        positions = [one.position for one in await journal.latest_events(100)]
        last = await journal.run(journal.end, write=False)
    prefix = await fake.into_kafka("one")
    async with fake.kafka(prefix) as journal:
        lease = await journal.source("acme")
        sink = await sink_of(journal)
        found: list[int] = []
        while len(found) < len(positions):
            claim = await sink.claim(100, in_order=True)
            found += [one.position for one in claim.deliveries]
            await sink.settle(outcomes(claim))
        assert found == positions[::-1]
        await fill(lease, 1, prefix="new")
        (one,) = (await take(sink)).deliveries
        assert one.position > last
        assert len(await journal.latest_events(100)) == len(positions) + 1


async def test_where_partitions_number_differently_the_file_numbers_above_both(fake: Move) -> None:
    """One sink's far side knew a later journal, so that events have other positions for it than for the rest."""
    prefix = fresh()
    async with fake.kafka(prefix) as journal:
        lease = await journal.source("acme")
        early = await fill(lease, 3)
        assert journal.place("sink", "siem") != journal.place("sink", "soar")
        siem, soar = await sink_of(journal, "siem"), await sink_of(journal)
        assert await deliver(siem, in_order=True) == early
        assert await siem.resume(Position(journal_id=journal.id, position=1000))
        late = await fill(lease, 3, prefix="late")
        claim = await take(soar, 5)
        await soar.settle(
            [
                Outcome(positions=[claim.deliveries[0].position], kind="retry", due=0, reason="no"),
                Outcome(positions=[claim.deliveries[3].position], kind="dead", reason="no"),
                Outcome(positions=[one.position for one in claim.deliveries[1:3]], kind="done"),
            ]
        )
        ((*_, owed),) = [(await take(siem, 2, in_order=True)).deliveries]
        ident = journal.id
    reached = Position(journal_id=ident, position=owed.position)
    await fake.into_file(prefix, "one", reached={"siem": reached})
    async with fake.file("one") as file:
        siem, soar = await sink_of(file, "siem"), await sink_of(file)
        assert await siem.resume(reached)
        assert await deliver(siem, in_order=True) == late[2:]
        assert await deliver(soar) == [early[0], late[1], late[2]]
        assert (await soar.redrive(None)).events == 1
        assert await deliver(soar) == late[:1]
        await fill(await file.source("acme"), 1, prefix="new")
        (newest,) = await file.latest_events(1)
        assert newest.position > 1003


async def test_a_sink_that_is_written_with_the_polls_goes_on_behind_what_the_other_had_sent(fake: Move) -> None:
    async with fake.file("one") as journal:
        lease = await journal.source("acme")
        events = await fill(lease, 3)
        siem = await sink_of(journal, "siem")
        await siem.settle([], PARKED)
        await bury(siem, events[1:2], in_order=True)
    prefix = await fake.into_kafka("one", inline=("siem",))
    async with fake.kafka(prefix, inline=("siem",)) as journal:
        (stored,) = await journal.sinks()
        assert (stored.endpoint, stored.backlog.events, stored.dead) == (EndpointStatus(), 0, 1)
        siem = await sink_of(journal, "siem")
        assert siem.reached >= INLINE_POSITION  # type: ignore[attr-defined]
        assert (await siem.redrive(None)).events == 1
        await fill(await journal.source("acme"), 2, prefix="with the poll")
        cluster: Any = fake.broker(prefix)
        assert len(cluster.cluster.committed(f"{prefix}-siem")) == 2
    await fake.into_file(prefix, "two")
    async with fake.file("two") as journal:
        siem = await sink_of(journal, "siem")
        assert await deliver(siem, in_order=True) == events[1:2]
        new = await fill(await journal.source("acme"), 1, prefix="new")
        assert await deliver(siem, in_order=True) == new


async def test_a_sink_that_is_written_with_the_polls_may_be_owed_nothing(fake: Move) -> None:
    async with fake.file("one") as journal:
        await fill(await journal.source("acme"), 3)
        await deliver_one(journal, "siem")
    prefix = fresh()
    with pytest.raises(RelayError, match="2 events still wait for siem, which is written with the polls on Kafka"):
        await fake.into_kafka("one", prefix, inline=("siem",))
    await fake.into_kafka("one", prefix)


async def deliver_one(journal: Journal, name: str) -> None:
    sink = await sink_of(journal, name)
    await sink.settle(outcomes(await take(sink, 1, in_order=True)))


async def test_a_cache_of_the_journal_that_was_copied_is_not_taken_for_that_of_the_copy(fake: Move) -> None:
    """Both have the same id, and the one topic may be as long as the other."""
    async with fake.file("one") as journal:
        await fill(await journal.source("acme"), 5)
        await deliver(await sink_of(journal))
    first = await fake.into_kafka("one")
    async with fake.kafka(first, cache="cache") as journal:
        await fill(await journal.source("acme"), 20, prefix="only here")
    second = await fake.into_kafka("one")
    async with fake.kafka(second, cache="cache") as journal:
        lease = await journal.source("acme")
        assert await lease.count() == 5
        new = await fill(lease, 1, prefix="new")
        assert await deliver(await sink_of(journal)) == new


async def test_a_backup_leaves_out_whole_what_is_committed_while_it_is_made(fake: Move, tmp_path: Path) -> None:
    """The ledger of a source is read before the events: a version that it does not know would be sent twice."""
    prefix = fresh()
    async with fake.kafka(prefix) as journal:
        lease = await journal.source("acme")
        events, known = chain("u1", 2)
        await lease.commit(page((events[:1], msgspec.structs.replace(known, sequence=1))))
        broker = journal._broker
        reader = broker.reader

        async def late(topic: str, partition: int, offset: int) -> Reader:
            if topic == journal.topics.changes:
                await lease.commit(page((events[1:], known), chain("u2", 1)))
            return await reader(topic, partition, offset)

        broker.reader = late  # type: ignore[method-assign]
        await journal.backup(tmp_path / "copy.db")
    async with fake.file("copy") as copy:
        assert [one.id for one in await copy.latest_events(10)] == [events[0].id]
        lease = await copy.source("acme")
        assert (await lease.known(["u1"]))["u1"].sequence == 1
        await lease.commit(page((events[1:], known)))
        assert await deliver(await sink_of(copy)) == [event.id for event in events]
    assert sorted(path.name for path in tmp_path.glob("copy.db*")) == ["copy.db", "copy.db.lock"]


# -- what is refused --------------------------------------------------------------------------------------------------


async def test_a_journal_on_kafka_that_is_used_is_not_copied_and_its_relays_are_named(move: Move) -> None:
    async with move.file("one") as journal:
        await fill(await journal.source("acme"), 1)
    prefix = await move.into_kafka("one")
    async with move.kafka(prefix) as journal:
        await journal.settled()
        with pytest.raises(JournalLocked, match=rf"the journal {prefix} on Kafka is used by \S+ on \S+; stop every"):
            await move.into_file(prefix, "two")
        with pytest.raises(JournalLocked, match="is used by"):
            await move.into_kafka("one", prefix)
    assert not (move.folder / "two.db").exists()
    await move.into_file(prefix, "two")


async def test_a_relay_that_is_started_while_its_journal_is_copied_spoils_the_copy(fake: Move) -> None:
    prefix = fresh()
    async with fake.kafka(prefix) as journal:
        await fill(await journal.source("acme"), 1)
    group = fake.broker(prefix)
    memberships: list[asyncio.Task[Any]] = []

    def tell(doing: str, _done: int, _of: int) -> None:
        if not memberships:
            memberships.append(asyncio.ensure_future(group.join(prefix, f"{prefix}.state")))

    with pytest.raises(JournalLocked, match="is used by"):
        await fake.into_file(prefix, "one", tell=tell)
    await (await memberships[0]).leave()
    with pytest.raises(JournalMisplaced, match="is half a copy"):
        async with fake.file("one"):
            pass


async def test_a_journal_on_kafka_is_copied_into_empty_topics_alone(move: Move) -> None:
    async with move.file("one") as journal:
        await fill(await journal.source("acme"), 1)
    prefix = await move.into_kafka("one")
    wanted = f"has begun already.*: delete the topics {prefix}.state, .* \\(no other\\), or set another kafka_prefix"
    with pytest.raises(ConfigError, match=wanted):
        await move.into_kafka("one", prefix)
    with pytest.raises(ConfigError, match="there is no journal t-none on Kafka: check kafka_prefix"):
        await move.into_file("t-none", "two")


async def test_records_that_belong_to_no_journal_are_not_copied_over(fake: Move) -> None:
    async with fake.file("one") as journal:
        await fill(await journal.source("acme"), 1)
    prefix = fresh()
    cluster: Any = fake.broker(prefix)
    cluster.cluster.create_topic(f"{prefix}.changes", 1, {"cleanup.policy": "delete"})
    await cluster.post(f"{prefix}.changes", [filler(f"{prefix}.changes")])
    with pytest.raises(ConfigError, match="hold records, and belong to no journal: delete the topics"):
        await fake.into_kafka("one", prefix)


@pytest.mark.parametrize("at", ["copying events", "copying the ledger", "copying sink"])
async def test_half_a_copy_in_kafka_is_used_by_no_relay_and_by_no_second_copy(fake: Move, at: str) -> None:
    async with fake.file("one") as journal:
        await fill(await journal.source("acme"), 5)
        await deliver_one(journal, "soar")
    prefix = fresh()
    with pytest.raises(Interrupted):
        await fake.into_kafka("one", prefix, tell=interrupting(at))
    wanted = f"the journal {prefix} on Kafka is half a copy: .* delete the topics {prefix}.state, .* and run that again"
    with pytest.raises(JournalMisplaced, match=wanted):
        async with fake.kafka(prefix):
            pass
    with pytest.raises(JournalMisplaced, match=wanted):
        await fake.into_kafka("one", prefix)
    with pytest.raises(JournalMisplaced, match=wanted):
        await fake.into_file(prefix, "two")
    other = await fake.into_kafka("one")
    async with fake.kafka(other) as journal:
        assert len(await deliver(await sink_of(journal))) == 4


@pytest.mark.parametrize("at", ["reading", "copying the ledger", "copying events"])
async def test_half_a_copy_in_a_file_is_used_by_no_relay(fake: Move, at: str) -> None:
    prefix = fresh()
    async with fake.kafka(prefix) as journal:
        await fill(await journal.source("acme"), 5)
    with pytest.raises(Interrupted):
        await fake.into_file(prefix, "one", tell=interrupting(at))
    wanted = r"one\.db is half a copy: `relay journal copy` was interrupted; delete the file, and one\.db-wal if"
    for _ in range(2):
        with pytest.raises(JournalMisplaced, match=wanted):
            async with fake.file("one"):
                pass
    (fake.folder / "one.db").unlink()
    await fake.into_file(prefix, "one")
    async with fake.file("one") as journal:
        assert len(await deliver(await sink_of(journal))) == 5


class Interrupted(Exception):
    """Somebody pressed a key."""


def interrupting(at: str) -> Callable[[str, int, int], None]:
    def tell(doing: str, _done: int, _of: int) -> None:
        if doing.startswith(at):
            raise Interrupted

    return tell


async def test_a_cluster_that_goes_away_leaves_half_a_copy(fake: Move) -> None:
    async with fake.file("one") as journal:
        await fill(await journal.source("acme"), 5)
    prefix = fresh()
    cluster: Any = fake.broker(prefix)

    def tell(_doing: str, _done: int, _of: int) -> None:
        cluster.cluster.go_down()

    with pytest.raises(JournalError):
        await fake.into_kafka("one", prefix, tell=tell)
    cluster.cluster.come_back()
    with pytest.raises(JournalMisplaced, match="is half a copy"):
        async with fake.kafka(prefix):
            pass


# -- the command ------------------------------------------------------------------------------------------------------

CONFIGURATION = """
sources:
  acme: {{base_url: "http://127.0.0.1:1", token_url: "http://127.0.0.1:1/token", username: u, password: p}}
kafka_prefix: {prefix}
kafka: {{bootstrap.servers: "{servers}"}}
journal: {journal}
sinks:
  siem: {{type: kafka, topic: {topic}, kafka: {{bootstrap.servers: "{far}"}}}}
  disk: {{type: file, path: events.ndjson}}
http: {{host: 127.0.0.1, port: 0}}
"""


@dataclass(kw_only=True)
class Site:
    """Configurations of one relay whose Kafka sink has a topic of this test."""

    folder: Path
    kafka: Kafka
    topic: str
    clock: FakeClock

    def settings(self, name: str, journal: str, *, prefix: str = "", elsewhere: bool = False) -> Settings:
        """`elsewhere`: the sink's cluster is not the journal's, as far as anyone can tell."""
        servers = self.kafka.bootstrap
        text = CONFIGURATION.format(
            prefix=prefix or self.topic,
            servers=servers,
            journal=journal,
            topic=self.topic,
            far=servers.replace("127.0.0.1", "localhost") if elsewhere else servers,
        )
        (self.folder / f"{name}.yaml").write_text(text)
        return load(self.folder / f"{name}.yaml", {}, self.folder)

    def file(self, name: str, **more: Any) -> Settings:
        return self.settings(name, f"{{path: {name}.db}}", **more)

    def topics(self, name: str, **more: Any) -> Settings:
        return self.settings(name, f"{{kind: kafka, partitions: 3, cache_dir: {name}}}", **more)

    @asynccontextmanager
    async def journal(self, settings: Settings) -> AsyncIterator[Journal]:
        journal = make_journal(settings, clock=self.clock)
        await journal.open()
        try:
            yield journal
        finally:
            await journal.close()

    async def copy(self, origin: Settings, target: Settings) -> str:
        return await copy_journal(origin, target, clock=self.clock)

    async def deliver(self, settings: Settings, journal: Journal, name: str = "siem") -> None:
        """Lets the sink have what waits for it."""
        courier = await make_courier(
            name, settings=settings, journal=journal, rules={}, metrics=Metrics(self.clock), clock=self.clock
        )
        try:
            courier.drain()
            await courier.run()
        finally:
            await courier.close(2)

    def arrived(self) -> list[str]:
        """The ids of the events in the topic; in order, as all are of one incident."""
        return events(committed(self.kafka.bootstrap, self.topic))


@pytest.fixture
def site(kafka: Kafka, tmp_path: Path, clock: FakeClock) -> Site:
    return Site(folder=tmp_path, kafka=kafka, topic=fresh("siem"), clock=clock)


async def sent_without_taking_note(site: Site, settings: Settings, journal: Journal, count: int) -> None:
    """So many events and their position are in Kafka, and the relay has died before it wrote that down."""
    lease = await journal.sink("siem", start="earliest", keep_seconds=3600)
    claim = await lease.claim(count, in_order=True, wait=False)
    sink = make_sink("siem", settings=settings, journal_id=journal.id)
    await sink.open()
    await sink.send(claim.deliveries, upto=claim.upto)
    await sink.close(2)


def up_to(history: tuple[list[Event], Known], start: int, end: int) -> PageCommit:
    """These versions of the one incident."""
    found, known = history
    return page((found[start:end], msgspec.structs.replace(known, sequence=end)))


@pytest.mark.kafka
async def test_a_kafka_sink_gets_every_event_once_when_the_journal_moves_into_its_cluster_and_back(site: Site) -> None:
    history = chain("u1", 9)
    one, two, three = site.file("one"), site.topics("two"), site.file("three")
    assert two.is_inline("siem")
    async with site.journal(one) as journal:
        await (await journal.source("acme")).commit(up_to(history, 0, 5))
        await sent_without_taking_note(site, one, journal, 2)
    said = await site.copy(one, two)
    assert said.startswith(f"the journal is copied into topics {site.topic}.* on Kafka: 1 known incident of 1 source, ")
    assert site.arrived() == [event.id for event in history[0][:5]]
    async with site.journal(two) as journal:
        await site.deliver(two, journal)
        await (await journal.source("acme")).commit(up_to(history, 5, 7))
        assert site.arrived() == [event.id for event in history[0][:7]]
        sink = await journal.sink("disk", start="earliest", keep_seconds=3600)
        assert await deliver(sink, in_order=True) == [event.id for event in history[0][:7]]
    await site.copy(two, three)
    async with site.journal(three) as journal:
        await (await journal.source("acme")).commit(up_to(history, 7, 9))
        await site.deliver(three, journal)
    assert site.arrived() == [event.id for event in history[0]]


@pytest.mark.kafka
async def test_a_kafka_sink_of_another_cluster_goes_on_where_it_was_under_another_prefix(site: Site) -> None:
    history = chain("u1", 9)
    one, two = site.file("one", elsewhere=True), site.topics("two", prefix=fresh(), elsewhere=True)
    three, four = site.topics("three", prefix=fresh(), elsewhere=True), site.file("four", elsewhere=True)
    assert not two.is_inline("siem")
    async with site.journal(one) as journal:
        await (await journal.source("acme")).commit(up_to(history, 0, 3))
        await sent_without_taking_note(site, one, journal, 2)
    before, done = one, 3
    for settings in (two, three, four):
        await site.copy(before, settings)
        async with site.journal(settings) as journal:
            await (await journal.source("acme")).commit(up_to(history, done, done + 2))
            await site.deliver(settings, journal)
            done += 2
            assert site.arrived() == [event.id for event in history[0][:done]]
        before = settings
    assert done == 9


@pytest.mark.kafka
async def test_a_sink_that_nothing_can_be_sent_to_keeps_its_journal_where_it_is(site: Site) -> None:
    one, two = site.file("one"), site.topics("two")
    async with site.journal(one) as journal:
        await (await journal.source("acme")).commit(up_to(chain("u1", 2), 0, 2))
        lease = await journal.sink("siem", start="earliest", keep_seconds=3600)
        await lease.settle([], EndpointStatus(state="disabled", since=START))
    with pytest.raises(RelayError, match="2 events still wait for siem, which is written with the polls"):
        await site.copy(one, two)
    async with site.journal(one) as journal:
        await (await journal.sink("siem", start="earliest", keep_seconds=3600)).settle([], EndpointStatus())
    await site.copy(one, two)
    assert len(site.arrived()) == 2


@pytest.mark.kafka
async def test_the_command_copies_once_and_says_what_is_in_the_way(site: Site, tmp_path: Path) -> None:
    one, two, back = site.file("one"), site.topics("two"), site.file("back")
    lacking = site.settings("lacking", "{kind: kafka}")
    lacking = lacking.model_copy(update={"sinks": {"siem": lacking.sinks["siem"], "disc": lacking.sinks["disk"]}})

    async def copied(origin: str, target: str) -> Finished:
        return await finished(tmp_path, "journal", "copy", "--from", f"{origin}.yaml", "--to", f"{target}.yaml")

    with pytest.raises(
        ConfigError, match=r"there is no journal \S+one\.db to copy: check journal\.path in \S+one\.yaml"
    ):
        await site.copy(one, two)
    async with site.journal(one) as journal:
        await (await journal.source("acme")).commit(up_to(chain("u1", 2), 0, 2))
        with pytest.raises(JournalLocked, match="is held by process"):
            await site.copy(one, two)
    with pytest.raises(ConfigError, match=r"sinks differ: disk only in \S+one\.yaml; disc only in \S+lacking\.yaml; a"):
        await site.copy(one, lacking)
    with pytest.raises(ConfigError, match=r"both journals are files: `relay backup \S+back\.db --config \S+one\.yaml`"):
        await site.copy(one, back)
    with pytest.raises(ConfigError, match="both configurations name the same journal"):
        await site.copy(two, two)
    done = await copied("one", "two")
    assert (done.code, done.stderr) == (0, "")
    assert "1 known incident of 1 source, 2 events, 0 dead letters; start the relay with" in " ".join(
        done.stdout.split()
    )
    again = await copied("one", "two")
    assert (again.code, "has begun already" in again.stderr) == (2, True)
    async with site.journal(two) as journal:
        await journal.settled()
        used = await copied("two", "back")
        assert (used.code, "is used by" in used.stderr) == (1, True)
    with pytest.raises(
        ConfigError, match=r"one\.db has begun already, and a copy begins a new one: move that file away"
    ):
        await site.copy(two, one)
    assert (await site.copy(two, back)).startswith(
        f"the journal is copied into the file {tmp_path / 'back.db'}: 1 known"
    )
