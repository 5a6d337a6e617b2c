"""What the Kafka journal builds on, run against a real Kafka and against the fake of one that the hunt plays with."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from relay.errors import JournalMisplaced
from relay.journal.kafka import KafkaBroker
from relay.journal.kafka.broker import (
    Broker,
    Change,
    Doubtful,
    Fenced,
    Membership,
    Message,
    Record,
    RecordsRefused,
    TopicPlan,
    Writer,
)
from tests.support.fake_kafka import FakeBroker, FakeCluster
from tests.support.kafka import Kafka, fresh

PATIENCE_SECONDS = 60.0

Opened = Callable[[], Any]


class Place:
    """One cluster, a topic on it with four partitions, and names that no other test uses."""

    def __init__(self, make: Callable[[str], Broker]) -> None:
        self.prefix = fresh()
        self.topic = f"{self.prefix}.state"
        self.broker = make(self.prefix)
        self._make = make

    async def begin(self) -> None:
        await self.broker.connect()
        await self.broker.ensure([TopicPlan(self.topic, 4, {"cleanup.policy": "compact"}, ("cleanup.policy",))])

    def another(self) -> Broker:
        """The cluster as another process sees it."""
        return self._make(self.prefix)

    def record(self, text: str, *, partition: int = 0, size: int = 0, name: str = "") -> Record:
        value = f"{text} of".encode() + os.urandom(size)  # brokers measure what is left after compression
        return Record(self.topic, partition, text.encode(), value, (("h", text.encode()),), name=name)

    async def fenced(self, name: str = "one") -> Writer:
        writer = self.broker.writer(f"{self.prefix}-{name}")
        await asyncio.to_thread(writer.fence)
        return writer

    async def all(self, partition: int = 0) -> tuple[list[Message], int]:
        """What a reader sees up to the end, and where it stands then."""
        reader = await self.broker.reader(self.topic, partition, 0)
        found: list[Message] = []
        try:
            end = await reader.end()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while reader.reached() < end:
                    found += await reader.read(100)
            return found, reader.reached()
        finally:
            await reader.close()


@pytest.fixture(params=["fake", pytest.param("kafka", marks=pytest.mark.kafka)])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Opens a place of the test's own."""
    if request.param == "fake":
        cluster = FakeCluster()
        make: Callable[[str], Broker] = lambda prefix: FakeBroker(cluster)  # noqa: E731
    else:
        kafka: Kafka = request.getfixturevalue("kafka")
        make = lambda prefix: KafkaBroker({"bootstrap.servers": kafka.bootstrap}, prefix=prefix)  # noqa: E731

    @asynccontextmanager
    async def place() -> AsyncIterator[Place]:
        one = Place(make)
        await one.begin()
        try:
            yield one
        finally:
            await one.broker.close()

    return place


async def commit(writer: Writer, *records: Record) -> Mapping[tuple[str, int], int]:
    return await asyncio.to_thread(writer.commit, records)


def texts(messages: list[Message]) -> list[str]:
    return [message.key.decode() for message in messages]


async def test_a_commit_tells_its_last_offsets_and_leaves_a_hole_for_its_marker(opened: Opened) -> None:
    async with opened() as place:
        writer = await place.fenced()
        first = await commit(writer, place.record("a"), place.record("b"), place.record("c", partition=3))
        assert dict(first) == {(place.topic, 0): 1, (place.topic, 3): 0}
        assert dict(await commit(writer, place.record("d"))) == {(place.topic, 0): 3}
        assert await place.broker.end(place.topic, 0) == 5
        messages, reached = await place.all()
        assert [(message.offset, message.key) for message in messages] == [(0, b"a"), (1, b"b"), (3, b"d")]
        assert reached == 5
        assert (messages[0].value, messages[0].headers) == (b"a of", (("h", b"a"),))
        await asyncio.to_thread(writer.close)


async def test_a_record_may_say_that_its_key_is_gone(opened: Opened) -> None:
    async with opened() as place:
        writer = await place.fenced()
        await commit(writer, place.record("a"), Record(place.topic, 0, b"a", None))
        messages, _reached = await place.all()
        assert [message.value for message in messages] == [b"a of", None]
        await asyncio.to_thread(writer.close)


async def test_whoever_was_fenced_writes_nothing_more(opened: Opened) -> None:
    async with opened() as place:
        zombie = await place.fenced()
        await commit(zombie, place.record("a"))
        owner = await place.fenced()
        with pytest.raises(Fenced):
            await commit(zombie, place.record("b"))
        with pytest.raises(Doubtful):
            await commit(zombie, place.record("c"))
        await commit(owner, place.record("d"))
        assert texts((await place.all())[0]) == ["a", "d"]
        for writer in (zombie, owner):
            await asyncio.to_thread(writer.close)


async def test_ids_do_not_fence_each_other(opened: Opened) -> None:
    async with opened() as place:
        one, two = await place.fenced("one"), await place.fenced("two")
        await commit(one, place.record("a"))
        await commit(two, place.record("b"))
        assert texts((await place.all())[0]) == ["a", "b"]
        for writer in (one, two):
            await asyncio.to_thread(writer.close)


async def test_a_writer_that_was_not_fenced_is_in_doubt(opened: Opened) -> None:
    async with opened() as place:
        with pytest.raises(Doubtful):
            await commit(place.broker.writer(f"{place.prefix}-one"), place.record("a"))


async def test_a_record_that_is_too_large_is_named_and_nothing_is_written(opened: Opened) -> None:
    async with opened() as place:
        writer = await place.fenced()
        with pytest.raises(RecordsRefused) as refused:
            await commit(writer, place.record("a"), place.record("b", size=2 << 20, name="big one"))
        assert list(refused.value.names) == ["big one"]
        with pytest.raises(Doubtful):
            await commit(writer, place.record("c"))
        await asyncio.to_thread(writer.fence)
        await commit(writer, place.record("d"))
        assert texts((await place.all())[0]) == ["d"]
        await asyncio.to_thread(writer.close)


async def test_what_is_posted_needs_no_transaction(opened: Opened) -> None:
    async with opened() as place:
        await place.broker.post(place.topic, [place.record("a", partition=2)])
        messages, reached = await place.all(2)
        assert (texts(messages), reached) == (["a"], 1)


async def test_a_topic_that_differs_is_refused(opened: Opened) -> None:
    async with opened() as place:
        plan = TopicPlan(place.topic, 4, {"cleanup.policy": "compact"}, ("cleanup.policy",))
        assert await place.broker.ensure([plan]) == {place.topic: 4}
        for wrong in (plan._replace(partitions=5), plan._replace(settings={"cleanup.policy": "delete"})):
            with pytest.raises(JournalMisplaced, match="state"):
                await place.broker.ensure([wrong])


async def assigned(member: Membership, wanted: int) -> set[int]:
    """Takes changes until it has so many; gives back at once what it is asked for."""
    had: set[int] = set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(had) != wanted:
            had = after(had, await member.change(), member)
    return had


def after(had: set[int], change: Change, member: Membership) -> set[int]:
    if change.kind == "assigned":
        return had | change.partitions
    if change.kind == "revoked":
        member.let_go(change.partitions)
    return had - change.partitions


async def test_members_share_the_partitions_and_take_over_from_whoever_leaves(opened: Opened) -> None:
    async with opened() as place:
        one = await place.broker.join(place.prefix, place.topic)
        assert await assigned(one, 4) == {0, 1, 2, 3}
        assert await one.confirms(0)
        other = place.another()
        two = await other.join(place.prefix, place.topic)
        moved = asyncio.create_task(assigned(two, 2))
        async with asyncio.timeout(PATIENCE_SECONDS):
            left = {0, 1, 2, 3}
            while len(left) != 2:
                left = after(left, await one.change(), one)
        theirs = await moved
        assert left | theirs == {0, 1, 2, 3}
        assert await two.confirms(min(theirs))
        assert not await one.confirms(min(theirs))
        assert len(await place.broker.members(place.prefix)) == 2
        await two.leave()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(left) != 4:
                left = after(left, await one.change(), one)
        await one.leave()
        await other.close()
