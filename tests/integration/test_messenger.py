"""Messages to services and people: retries, breaker, pauses, parking, and the manners of a channel. In virtual time."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from relay.clock import SECOND
from relay.endpoint import PARKED_AFTER_SECONDS
from relay.errors import Gone, Refused, SinkError, Unavailable
from relay.formats.message import Notice, Parked, Skipped
from relay.incidents import Event, Known, Origin, Scope, diff
from relay.journal import PageCommit, Progress
from relay.journal.sqlite import SqliteJournal
from relay.messenger import Manners, Messenger
from relay.metrics import Metrics
from relay.sinks import Delivery
from tests.hunt.virtual import Disk, Hand, VirtualLoop
from tests.support.incidents import seen

KEEP_SECONDS = 7 * 86_400.0
RETRY_SECONDS = (0.0, 5.0, 30.0, 300.0, 1800.0, 7200.0)
HOUR = 3600.0


@dataclass
class Far:
    """A far side that remembers what it got. `fails` says with what the next message fails, None: not at all."""

    clock: Hand
    fails: Callable[[Sequence[Delivery]], SinkError | None] = lambda batch: None
    seconds: float = 0.1
    max_batch: int = 1
    atomic: bool = False
    outcome: Literal["delivered", "accepted"] = "delivered"
    messages: list[list[Delivery]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    tries: list[tuple[float, list[Delivery]]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def open(self) -> None:
        return None

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        assert upto is None
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.clock.sleep(self.seconds)
            self.tries.append((self.clock.monotonic(), list(batch)))
            if error := self.fails(batch):
                raise error
            self.messages.append(list(batch))
            self.times.append(self.clock.monotonic())
        finally:
            self.at_once -= 1

    async def tell(self, notice: Notice) -> None:
        await self.clock.sleep(self.seconds)
        if error := self.fails([]):
            raise error
        self.notices.append(notice)

    async def probe(self) -> str:
        return "fine"

    async def close(self, timeout_seconds: float) -> None:
        return None

    def ids(self) -> list[str]:
        return [delivery.id for batch in self.messages for delivery in batch]

    def incidents(self) -> list[tuple[str, int]]:
        return [(delivery.uuid, delivery.sequence) for batch in self.messages for delivery in batch]


class Stage:
    """A journal with a source, and sinks that are fed from it."""

    def __init__(self, loop: VirtualLoop, path: Path) -> None:
        self.loop = loop
        self.path = path
        self.clock = Hand(loop)
        self.far = Far(self.clock)
        self.metrics = Metrics(self.clock)
        self.journal = self._journal()
        self._known: dict[str, Known] = {}
        self.events: list[Event] = []

    def _journal(self) -> SqliteJournal:
        return SqliteJournal(self.path, max_bytes=1 << 30, retention_seconds=KEEP_SECONDS, clock=self.clock)

    async def restart(self) -> None:
        await self.journal.close()
        self.journal = self._journal()
        await self.journal.open()

    async def happen(
        self, *uuids: str, severity: str = "LOW", age_seconds: float = 0.0, origin: Origin = "poll"
    ) -> list[Event]:
        """One more version of each incident, committed in one page."""
        lease = await self.journal.source("acme")
        now = self.clock.now()
        scope = Scope(source="acme", start_from=0, first_start=now + SECOND if origin == "backfill" else 0)
        rows, events = [], []
        for uuid in uuids:
            before = self._known.get(uuid)
            sight = seen(
                uuid,
                severity=f"INCIDENT_SEVERITY_LEVEL_{severity}",
                displayName=f"{uuid} version {before.sequence + 1 if before else 1}",
            )
            sight = msgspec.structs.replace(sight, updated=now - int(age_seconds * SECOND) + (before is not None))
            found = diff(before, sight, scope=scope, now=now)
            assert found.row is not None
            assert found.event is not None
            self._known[uuid] = found.row
            rows.append(found.row)
            events.append(found.event)
        progress = Progress(identity="x", first_start=0, start_from=0)
        await lease.commit(PageCommit(progress=progress, rows=rows, events=events))
        self.events += events
        return events

    async def messenger(
        self, name: str = "soar", *, far: Far | None = None, manners: Manners | None = None, concurrency: int = 8
    ) -> Messenger:
        lease = await self.journal.sink(name, start="earliest", keep_seconds=KEEP_SECONDS)
        return Messenger(
            sink=far or self.far,
            lease=lease,
            kind="webhook",
            target="soar.example",
            manners=manners,
            retry_seconds=RETRY_SECONDS,
            concurrency=1 if manners else concurrency,
            keep_seconds=KEEP_SECONDS,
            metrics=self.metrics.sink(name),
            clock=self.clock,
        )

    @asynccontextmanager
    async def running(self, *messengers: Messenger) -> Any:
        tasks = [asyncio.ensure_future(messenger.run()) for messenger in messengers]
        try:
            yield
            for messenger in messengers:
                messenger.drain()
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result

    def counted(self, sink: str, outcome: str) -> float:
        return sum(
            sample.value
            for metric in self.metrics.deliveries.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and (sample.labels["sink"], sample.labels["outcome"]) == (sink, outcome)
        )


Story = Callable[[Stage], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Story], None]:
    def played(story: Story) -> None:
        loop = VirtualLoop()
        loop.disk = Disk(loop, point=lambda _: None, fails=lambda _: None, done=lambda: None, seconds=lambda: 0.001)

        async def told() -> None:
            stage = Stage(loop, tmp_path / "relay.db")
            await stage.journal.open()
            try:
                await story(stage)
            finally:
                await stage.journal.close()

        try:
            loop.run_until_complete(told())
        finally:
            loop.close()

    return played


def state_of(messenger: Messenger) -> str:
    return messenger.status.state


def down(reason: str = "http_503", retry_after_seconds: float | None = None) -> Unavailable:
    return Unavailable(f"soar answered {reason}", reason=reason, retry_after_seconds=retry_after_seconds)


# -- order and concurrency --------------------------------------------------------------------------------------------


def test_incidents_go_side_by_side_and_versions_of_one_in_order(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        for _ in range(3):
            await stage.happen(*(f"u{number}" for number in range(20)))
        async with stage.running(await stage.messenger()):
            await stage.clock.sleep(30)
        assert len(stage.far.ids()) == len(set(stage.far.ids())) == 60
        for uuid in {uuid for uuid, _ in stage.far.incidents()}:
            assert [sequence for other, sequence in stage.far.incidents() if other == uuid] == [1, 2, 3]
        assert stage.far.most_at_once == 8
        assert stage.counted("soar", "delivered") == 60

    play(story)


def test_a_message_at_fault_is_tried_by_its_schedule_then_buried_and_holds_up_no_other(
    play: Callable[[Story], None],
) -> None:
    async def story(stage: Stage) -> None:
        stage.far.fails = lambda batch: (
            Refused("no", positions={batch[0].position: "http_422"}, reason="http_422")
            if batch[0].uuid == "bad"
            else None
        )
        await stage.happen("bad", "good")
        messenger = await stage.messenger()
        async with stage.running(messenger):
            await stage.clock.sleep(60)
            await stage.happen("bad", "good")
            await stage.clock.sleep(4 * HOUR)
            assert stage.far.incidents() == [("good", 1), ("good", 2)]
            await stage.clock.sleep(4 * HOUR)
        lease = await stage.journal.sink("soar", start="earliest", keep_seconds=KEEP_SECONDS)
        letters = [letter async for letter in lease.dead_letters()]
        assert [(letter.reason, letter.attempts) for letter in letters] == [("http_422", 6), ("http_422", 6)]
        first = [at for at, batch in stage.far.tries if (batch[0].uuid, batch[0].sequence) == ("bad", 1)]
        waits = [later - earlier for earlier, later in itertools.pairwise(first)]
        assert len(waits) == 5
        for waited, due in zip(waits, RETRY_SECONDS[1:], strict=True):
            assert 0.8 * due <= waited <= 1.2 * due + 1
        assert (await lease.backlog()).events == 0

    play(story)


# -- the breaker ------------------------------------------------------------------------------------------------------


def test_an_endpoint_down_for_15_hours_burns_no_attempt_and_catches_up_in_order(play: Callable[[Story], None]) -> None:
    """An event every 10 minutes; after the return everything arrives in order within 10 minutes."""

    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: down()
        messenger = await stage.messenger()
        async with stage.running(messenger):
            for number in range(90):
                await stage.happen(f"u{number % 7}")
                await stage.clock.sleep(600)
            assert stage.far.messages == []
            assert state_of(messenger) == "failing"
            assert (await messenger.facts()).next_try is not None
            tries = len(stage.far.tries)
            assert tries < 15 * 60 / 4
            stage.far.fails = lambda _batch: None
            await stage.clock.sleep(600)
            assert len(set(stage.far.ids())) == len(stage.far.ids()) == 90
            assert state_of(messenger) == "ok"
        assert stage.counted("soar", "dead") == 0
        by_incident: dict[str, list[int]] = {}
        for uuid, sequence in stage.far.incidents():
            by_incident.setdefault(uuid, []).append(sequence)
        assert all(found == list(range(1, len(found) + 1)) for found in by_incident.values())

    play(story)


def test_the_attempts_that_opened_the_breaker_are_given_back(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: down()
        await stage.happen("a", "b", "c")
        messenger = await stage.messenger()
        async with stage.running(messenger):
            await stage.clock.sleep(60)
            assert state_of(messenger) == "failing"
            stage.far.fails = lambda _batch: None
            await stage.clock.sleep(400)
        assert {delivery.attempts for batch in stage.far.messages for delivery in batch} == {0}

    play(story)


@pytest.mark.parametrize("reason", ["dns", "connect", "tls", "proxy"])
def test_one_failure_to_connect_is_enough(play: Callable[[Story], None], reason: str) -> None:
    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: down(reason)
        await stage.happen("a")
        messenger = await stage.messenger()
        async with stage.running(messenger):
            await stage.clock.sleep(1)
            assert state_of(messenger) == "failing"

    play(story)


def test_an_incident_that_alone_fails_is_the_message_at_fault(play: Callable[[Story], None]) -> None:
    """Others pass meanwhile: its attempts count, and it ends as a dead letter."""

    async def story(stage: Stage) -> None:
        stage.far.fails = lambda batch: down() if batch and batch[0].uuid == "poison" else None
        await stage.happen("poison")
        messenger = await stage.messenger()
        async with stage.running(messenger):
            for number in range(200):
                await stage.happen(f"u{number}")
                await stage.clock.sleep(60)
        assert stage.counted("soar", "dead") == 1
        assert stage.counted("soar", "delivered") == 200

    play(story)


def test_a_probe_takes_another_incident_each_time(play: Callable[[Story], None]) -> None:
    """The oldest message is poison and the endpoint was down: it comes back all the same."""

    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: down("connect")
        await stage.happen("poison", "a", "b")
        messenger = await stage.messenger()
        async with stage.running(messenger):
            await stage.clock.sleep(20)
            stage.far.fails = lambda batch: down() if batch[0].uuid == "poison" else None
            await stage.clock.sleep(600)
            assert {uuid for uuid, _ in stage.far.incidents()} == {"a", "b"}
            assert state_of(messenger) == "ok"

    play(story)


def test_a_single_incident_that_waits_opens_the_breaker_too(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: down()
        await stage.happen("only")
        messenger = await stage.messenger()
        async with stage.running(messenger):
            await stage.clock.sleep(3 * HOUR)
            assert state_of(messenger) == "failing"
            stage.far.fails = lambda _batch: None
            await stage.clock.sleep(400)
        assert stage.far.incidents() == [("only", 1)]
        assert stage.counted("soar", "dead") == 0

    play(story)


def test_retry_after_pauses_the_endpoint_and_uses_no_attempt(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: down("throttled", 900.0)
        await stage.happen("a", "b")
        messenger = await stage.messenger(concurrency=1)
        async with stage.running(messenger):
            await stage.clock.sleep(10)
            assert state_of(messenger) == "paused"
            assert stage.metrics.sink_paused_until.labels("soar")._value.get() > 0
            stage.far.fails = lambda _batch: None
            await stage.clock.sleep(800)
            assert len(stage.far.tries) == 1
            await stage.clock.sleep(200)
            assert [uuid for uuid, _ in stage.far.incidents()] == ["a", "b"]
        assert {delivery.attempts for batch in stage.far.messages for delivery in batch} == {0}

    play(story)


def test_the_state_survives_a_restart(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: down("throttled", 3600.0)
        await stage.happen("a")
        async with stage.running(await stage.messenger()):
            await stage.clock.sleep(10)
        await stage.restart()
        stage.far.fails = lambda _batch: None
        messenger = await stage.messenger()
        assert state_of(messenger) == "paused"
        async with stage.running(messenger):
            await stage.clock.sleep(3000)
            assert stage.far.messages == []
            await stage.clock.sleep(700)
            assert stage.far.incidents() == [("a", 1)]

    play(story)


# -- parking ----------------------------------------------------------------------------------------------------------


def test_what_is_gone_is_parked_waits_and_goes_on_when_enabled(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: Gone("soar answered 410", reason="gone")
        chat = Far(stage.clock, max_batch=50)
        teller = await stage.messenger("soc", far=chat, manners=Manners(max_age_seconds=86_400, digest_above=20))
        await stage.happen("a", "b")
        messenger = await stage.messenger()
        messenger.notify = teller
        async with stage.running(messenger, teller):
            await stage.clock.sleep(30)
            assert state_of(messenger) == "parked"
            tries = len(stage.far.tries)
            await stage.happen("c")
            await stage.clock.sleep(HOUR)
            assert len(stage.far.tries) == tries
            [notice] = chat.notices
            assert isinstance(notice, Parked)
            assert (notice.sink, notice.waiting) == ("soar", 2)
            stage.far.fails = lambda _batch: None
            said = await messenger.enable()
            assert "was parked and goes on" in said
            await stage.clock.sleep(30)
            assert sorted(uuid for uuid, _ in stage.far.incidents()) == ["a", "b", "c"]

    play(story)


def test_parking_is_told_once_across_restarts_and_waits_until_it_can_be(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        manners = Manners(max_age_seconds=86_400, digest_above=20)
        stage.far.fails = lambda _batch: Gone("soar answered 410", reason="gone")
        chat = Far(stage.clock, max_batch=50)
        chat.fails = lambda _batch: down("connect")
        await stage.happen("a")
        for _ in range(3):
            messenger = await stage.messenger()
            messenger.notify = teller = await stage.messenger("soc", far=chat, manners=manners)
            async with stage.running(messenger, teller):
                await stage.clock.sleep(600)
                chat.fails = lambda _batch: None
                await stage.clock.sleep(600)
            await stage.restart()
        assert len(chat.notices) == 1

    play(story)


def test_five_days_of_failure_end_in_parking(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        stage.far.fails = lambda _batch: down("connect")
        await stage.happen("a")
        messenger = await stage.messenger()
        async with stage.running(messenger):
            await stage.clock.sleep(PARKED_AFTER_SECONDS - HOUR)
            assert state_of(messenger) == "failing"
            await stage.clock.sleep(2 * HOUR)
            assert state_of(messenger) == "parked"
            assert "failed for 120 h" in messenger.status.reason

    play(story)


def test_disabled_by_an_operator_it_sends_nothing_until_enabled(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        messenger = await stage.messenger()
        async with stage.running(messenger):
            await messenger.disable()
            await stage.happen("a")
            await stage.clock.sleep(HOUR)
            assert stage.far.tries == []
            await messenger.enable()
            await stage.clock.sleep(10)
            assert stage.far.incidents() == [("a", 1)]
            assert "took a test message" in await messenger.test()
            assert stage.far.messages[-1][0].source == "test"

    play(story)


# -- the manners of a channel -----------------------------------------------------------------------------------------


def test_a_channel_is_not_flooded_by_the_past(play: Callable[[Story], None]) -> None:
    """10,000 old incidents at the first start: not one message."""

    async def story(stage: Stage) -> None:
        chat = Far(stage.clock, max_batch=50)
        for start in range(0, 10_000, 1000):
            await stage.happen(*(f"u{number}" for number in range(start, start + 1000)), origin="backfill")
        messenger = await stage.messenger("soc", far=chat, manners=Manners(max_age_seconds=86_400, digest_above=20))
        async with stage.running(messenger):
            await stage.clock.sleep(60)
            await stage.happen("new")
            await stage.clock.sleep(5)
        assert chat.incidents() == [("new", 1)]
        assert stage.counted("soc", "skipped") == 10_000

    play(story)


def test_a_storm_becomes_digests_with_the_worst_first(play: Callable[[Story], None]) -> None:
    """5,000 alerts at once: about 100 messages, and no HIGH waits behind a LOW of the same look."""

    async def story(stage: Stage) -> None:
        chat = Far(stage.clock, seconds=1.0, max_batch=50)
        messenger = await stage.messenger("soc", far=chat, manners=Manners(max_age_seconds=86_400, digest_above=20))
        began = stage.clock.monotonic()
        async with stage.running(messenger):
            for start in range(0, 5000, 500):
                names = [f"u{number}" for number in range(start, start + 500)]
                await stage.happen(*names[:450], severity="LOW")
                await stage.happen(*names[450:], severity="HIGH")
            await stage.clock.sleep(200)
        assert len(chat.ids()) == len(set(chat.ids())) == 5000
        high = [
            at - began
            for at, batch in zip(chat.times, chat.messages, strict=True)
            if any(delivery.severity.endswith("HIGH") for delivery in batch)
        ]
        print(  # noqa: T201
            f"\nstorm of 5,000: {len(chat.messages)} messages, the last after {chat.times[-1] - began:.0f} s, "
            f"the last HIGH after {max(high):.0f} s"
        )
        assert len(chat.messages) <= 5000 / 50 + 5
        assert chat.times[-1] - began <= 120
        sizes = Counter(len(batch) for batch in chat.messages)
        assert sizes[50] >= 95

    play(story)


def test_a_newer_version_supersedes_one_that_was_not_sent(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        chat = Far(stage.clock, seconds=1.0, max_batch=50)
        for _ in range(4):
            await stage.happen("a", "b")
        messenger = await stage.messenger("soc", far=chat, manners=Manners(max_age_seconds=86_400, digest_above=20))
        async with stage.running(messenger):
            await stage.clock.sleep(30)
        assert sorted(chat.incidents()) == [("a", 4), ("b", 4)]
        assert stage.counted("soc", "superseded") == 6

    play(story)


def test_a_version_that_fails_is_superseded_by_the_next(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        chat = Far(stage.clock, max_batch=50)
        chat.fails = lambda batch: (
            Refused("no", positions={batch[0].position: "invalid_blocks"}, reason="invalid_blocks")
            if batch and batch[0].sequence == 1
            else None
        )
        await stage.happen("a")
        messenger = await stage.messenger("soc", far=chat, manners=Manners(max_age_seconds=86_400, digest_above=20))
        async with stage.running(messenger):
            await stage.clock.sleep(100)
            await stage.happen("a")
            await stage.clock.sleep(400)
        assert chat.incidents() == [("a", 2)]

    play(story)


def test_after_an_outage_one_message_counts_what_became_too_old(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        chat = Far(stage.clock, max_batch=50)
        chat.fails = lambda _batch: down("connect")
        messenger = await stage.messenger("soc", far=chat, manners=Manners(max_age_seconds=HOUR, digest_above=20))
        async with stage.running(messenger):
            await stage.happen("h1", "h2", severity="HIGH")
            await stage.happen("l1")
            await stage.clock.sleep(2 * HOUR)
            await stage.happen("fresh")
            chat.fails = lambda _batch: None
            await stage.clock.sleep(600)
        assert [uuid for uuid, _ in chat.incidents()] == ["fresh"]
        [notice] = chat.notices
        assert isinstance(notice, Skipped)
        assert notice.counts == {"HIGH": 2, "LOW": 1}

    play(story)


def test_a_dead_sink_delays_no_other(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        dead = Far(stage.clock, seconds=15.0)
        dead.fails = lambda _batch: down("timeout")
        await stage.happen(*(f"u{number}" for number in range(100)))
        alive, other = await stage.messenger("alive"), await stage.messenger("dead", far=dead)
        began = stage.clock.monotonic()
        async with stage.running(alive, other):
            await stage.clock.sleep(60)
        assert len(stage.far.ids()) == 100
        assert stage.far.times[-1] - began < 5

    play(story)


def test_the_lag_ends_with_the_acknowledgement_however_slow_the_disk(play: Callable[[Story], None]) -> None:
    async def story(stage: Stage) -> None:
        messenger = await stage.messenger()
        async with stage.running(messenger):
            [event] = await stage.happen("u")
            stage.loop.disk = Disk(
                stage.loop, point=lambda _: None, fails=lambda _: None, done=lambda: None, seconds=lambda: 30.0
            )
            await stage.clock.sleep(600)
        value = stage.metrics.registry.get_sample_value
        [acknowledged] = stage.far.times
        lag = value("relay_lag_seconds_sum", {"sink": "soar"})
        assert value("relay_delivery_seconds_sum", {"sink": "soar"}) == pytest.approx(stage.far.seconds)
        assert lag == pytest.approx(
            (stage.clock.now() - event.updated) / SECOND - stage.clock.monotonic() + acknowledged
        )

    play(story)
