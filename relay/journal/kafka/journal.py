"""The Kafka journal as the relay sees it: who owns which partitions, and calls that go to the one that is meant.

Sources and sinks are tasks; a task belongs to the partition of the state topic that its name hashes to, and so to the
process that holds that partition. Nothing is decided here by who believes to hold it: only the fence counts.
"""

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import structlog

from relay.clock import Clock, Instant
from relay.errors import (
    ConfigError,
    JournalError,
    JournalLocked,
    JournalMisplaced,
    JournalUnavailable,
    LeaseLost,
)
from relay.incidents import Known
from relay.journal import Component, DeadLetters, JournalUse, Peer, Report, StoredSink, StoredSource, Task, Tended
from relay.journal.kafka.broker import Broker, Change, Membership, Reader, TopicPlan
from relay.journal.kafka.bulletin import Bulletin
from relay.journal.kafka.file import write_file
from relay.journal.kafka.inline import InlineSink
from relay.journal.kafka.meta import Meta, new_meta, read_meta, write_meta
from relay.journal.kafka.partition import EXECUTED, Common, Partition, Topics, delivery_of, events_in
from relay.journal.sqlite import SqliteSinkLease, SqliteSourceLease
from relay.sinks import Delivery

T = TypeVar("T")
log = structlog.get_logger()

RETRY_SECONDS: Final = 1.0
END_SECONDS: Final = 5.0
"""How long a stop waits for partitions that were just being taken."""
DEAD_LETTER_MILLISECONDS: Final = 30 * 86_400_000
_DAY_SECONDS: Final = 86_400
_LATEST: Final = 200
"""How many of the events before this process began are shown as the latest."""


class KafkaJournal:
    """One process's part of a journal that others may share."""

    def __init__(
        self,
        broker: Broker,
        *,
        prefix: str,
        partitions: int,
        cache_dir: Path,
        max_bytes: int,
        retention_seconds: float,
        inline: Sequence[InlineSink] = (),
        process: str = "",
        clock: Clock,
    ) -> None:
        """`process` is how the other processes know this one."""
        self.id = ""
        self.topics = Topics(prefix=prefix)
        self._prefix = prefix
        self._broker = broker
        self._wanted_partitions = partitions
        self._cache_dir = cache_dir
        self._max_bytes = max_bytes
        self._retention_seconds = retention_seconds
        self._inline = tuple(inline)
        self._clock = clock
        self._meta = Meta(id="", partitions=partitions)
        self._process = process
        self._bulletin = Bulletin(broker, self.topics.control, process=process, clock=clock)
        self._bulletin.owns = lambda task: self.holding(*task) is not None
        self._membership: Membership | None = None
        self._common: Common | None = None
        self._held: dict[int, Partition] = {}
        self._epochs: dict[int, int] = {}
        self._epoch = 0
        self._version = 0
        self._assigned: set[int] = set()
        self._taking: dict[int, asyncio.Task[None]] = {}
        self._background: list[asyncio.Task[None]] = []
        self._news = asyncio.Condition()
        self._lock_file: int | None = None
        self._latest: Reader | None = None
        self._newest: list[Delivery] = []
        self._failure: JournalError | None = None
        self._bug: BaseException | None = None
        self._joined = False
        self._ending: set[asyncio.Task[None]] = set()
        self.fenced = 0
        """How often somebody else had fenced a partition of ours."""

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Reaches Kafka, makes or verifies the topics, joins the group. Raises JournalError."""
        self._lock_cache()
        try:
            await self._broker.connect()
            await self._broker.ensure(topic_plans(self.topics, self._wanted_partitions, self._retention_seconds))
            self._meta = await read_meta(self._broker, self.topics) or await self._make_meta()
            self._meta.require_usable(self.topics)
            self._meta.require_partitions(self._wanted_partitions, self.topics)
            self.id = self._meta.id
            membership = self._membership = await self._broker.join(self._prefix, self.topics.state)
        except BaseException:
            await self._broker.close()
            self._unlock_cache()
            raise
        self._common = Common(
            journal_id=self.id,
            made=self._meta.made,
            topics=self.topics,
            broker=self._broker,
            membership=membership,
            place=self.place,
            inline=self._inline,
            limit_bytes=self._max_bytes,
            others_used=lambda: max((peer.used_bytes for peer in self.peers.values()), default=0),
            partitions=self._held,
        )
        self._background.append(asyncio.create_task(self._follow(membership), name="follow the group"))
        if self._process:
            self._background.append(asyncio.create_task(self._bulletin.follow(), name="follow the other processes"))

    async def close(self) -> None:
        """Lets others have everything, at once."""
        for task in (*self._background, *self._taking.values()):
            task.cancel()
        await asyncio.gather(*self._background, *self._taking.values(), return_exceptions=True)
        self._background.clear()
        self._taking.clear()
        await asyncio.gather(*(self._drop(number) for number in list(self._held)))
        if self._ending:
            await asyncio.wait(self._ending, timeout=END_SECONDS)
        await self._bulletin.leave()
        if self._membership is not None:
            await self._membership.leave()
            self._membership = None
        if self._latest is not None:
            await self._latest.close()
            self._latest = None
        await self._broker.close()
        self._unlock_cache()

    def _lock_cache(self) -> None:
        try:
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._cache_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise JournalMisplaced(
                f"journal.cache_dir {self._cache_dir} cannot be written: {(exc.strerror or '').lower()}; name a folder "
                "on a local disk that this user can write"
            ) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise JournalLocked(
                f"the cache {self._cache_dir} is held by {holder or 'another process'}; each replica needs a cache_dir "
                "of its own"
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        self._lock_file = descriptor

    def _unlock_cache(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    # -- what all processes agree on ----------------------------------------------------------------------------

    async def _make_meta(self) -> Meta:
        """Of several that start at once, the last to fence sees what the others have written."""
        made = new_meta(self._wanted_partitions)
        return await write_meta(self._broker, self.topics, lambda found: found or made, clock=self._clock)

    def place(self, component: str, name: str) -> int:
        """The partition of a task."""
        return self._meta.place(component, name)

    # -- who owns what ------------------------------------------------------------------------------------------

    async def _follow(self, membership: Membership) -> None:
        """Takes what the group gives us, lets go of what it takes away; for ever."""
        while True:
            try:
                change = await membership.change()
            except JournalError as error:
                self._failure = error
                log.warning("group left", reason=error.reason, error=str(error))
                await self._announce()
                return
            await self._changed(membership, change)

    async def _changed(self, membership: Membership, change: Change) -> None:
        self._joined = True
        if change.kind == "assigned":
            self._assigned |= change.partitions
            for number in sorted(change.partitions):
                self._begin_to_take(number)
            await self._announce()
            return
        self._assigned -= change.partitions
        for number in change.partitions:
            if (taking := self._taking.pop(number, None)) is not None:
                taking.cancel()
        if change.kind == "revoked":
            for number in change.partitions:
                self._epochs.pop(number, None)
            await self._announce()
            for number in change.partitions:
                task = asyncio.create_task(self._give_back(membership, number), name=f"give back partition {number}")
                self._background.append(task)
                task.add_done_callback(self._ended)
            return
        for number in change.partitions:
            if (partition := self._held.get(number)) is not None:
                partition.lose("session")
            await self._drop(number)
        await self._announce()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """What is none of our errors is a bug: whoever waits for a change hears of it, and ends the process."""
        if task in self._background:
            self._background.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            asyncio.create_task(self._announce(), name="announce the end").add_done_callback(lambda _done: None)

    async def _give_back(self, membership: Membership, number: int) -> None:
        """Waits until its tasks have let go; the group waits a few seconds for that."""
        partition = self._held.get(number)
        if partition is not None:
            await partition.idle.wait()
            await self._drop(number)
        membership.let_go(frozenset({number}))

    def _begin_to_take(self, number: int) -> None:
        if number not in self._taking and number not in self._held:
            task = asyncio.create_task(self._take(number), name=f"take partition {number}")
            self._taking[number] = task
            task.add_done_callback(self._ended)

    async def _take(self, number: int) -> None:
        """Fences, restores, and announces it; tries again for as long as the group says it is ours."""
        assert self._common is not None  # noqa: S101  # open() made it
        failures = 0
        while number in self._assigned:
            partition = Partition(
                number,
                path=self._cache_dir / f"{number}.db",
                common=self._common,
                retention_seconds=self._retention_seconds,
                clock=self._clock,
            )
            started = self._clock.monotonic()
            try:
                await self._open_partition(partition)
            except JournalError as error:
                failures += 1
                write = log.warning if failures in (1, 10) or failures % 60 == 0 else log.debug
                write("partition could not be taken", partition=number, reason=error.reason, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._held[number] = partition
            self._epoch += 1
            self._epochs[number] = self._epoch
            self._taking.pop(number, None)
            watch = asyncio.create_task(self._watch(partition), name=f"watch partition {number}")
            self._background.append(watch)
            watch.add_done_callback(self._ended)
            seconds = round(self._clock.monotonic() - started, 3)
            log.info("partition taken", partition=number, seconds=seconds)
            await self._announce()
            return

    async def _open_partition(self, partition: Partition) -> None:
        """Whoever is cancelled meanwhile leaves nothing behind that would hold the file. Raises JournalError."""
        opening = asyncio.create_task(partition.open(), name=f"open partition {partition.number}")
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            partition.lose("revoked")
            self._end(self._abandon(partition, opening))
            raise

    async def _abandon(self, partition: Partition, opening: "asyncio.Task[None]") -> None:
        await asyncio.gather(opening, return_exceptions=True)
        if opening.exception() is None:
            await partition.close()

    def _end(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Goes on to its end, whoever waits for it."""
        task = asyncio.create_task(work, name="let go of a partition")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _watch(self, partition: Partition) -> None:
        """One that is lost while the group says that it is ours is taken again, once the group has confirmed that."""
        await partition.lost.wait()
        number = partition.number
        log.warning("partition lost", partition=number, reason=partition.why)
        if partition.why == "fenced":
            self.fenced += 1
        if self._held.get(number) is not partition:
            return
        self._epochs.pop(number, None)
        await self._announce()
        await self._close_partition(number)
        await asyncio.sleep(RETRY_SECONDS / 4)
        while number in self._assigned and self._membership is not None:
            try:
                if await self._membership.confirms(number):
                    self._begin_to_take(number)
                    return
            except JournalUnavailable as error:
                log.debug("the group could not be asked", partition=number, error=str(error))
            await asyncio.sleep(RETRY_SECONDS)

    async def _drop(self, number: int) -> None:
        self._epochs.pop(number, None)
        await self._close_partition(number)

    async def _close_partition(self, number: int) -> None:
        partition = self._held.pop(number, None)
        if partition is not None:
            await asyncio.shield(self._end(partition.close()))

    async def _announce(self) -> None:
        async with self._news:
            self._version += 1
            self._news.notify_all()

    def holding(self, component: Component, name: str) -> int | None:
        """A number for as long as this process owns the task, another one each time that it gets it; else None."""
        return self._epochs.get(self.place(component, name))

    async def reassigned(self, seen: int) -> int:
        """Returns when what is held here has changed. Raises JournalError when it never will again."""
        async with self._news:
            await self._news.wait_for(lambda: self._version != seen or self._failure is not None)
        if self._bug is not None:
            raise self._bug
        if self._failure is not None:
            raise self._failure
        return self._version

    async def settled(self) -> None:
        """Returns when everything that the group has given to this process is held: it may be nothing."""
        while not self._joined or self._taking:
            await self.reassigned(self._version)

    async def _of(self, component: Component, name: str) -> Partition:
        """The partition of a task, once it is held here."""
        while True:
            number = self.place(component, name)
            partition = self._held.get(number)
            if partition is not None and number in self._epochs:
                return partition
            await self.reassigned(self._version)

    async def _all(self) -> list[Partition]:
        await self.settled()
        return [self._held[number] for number in sorted(self._held)]

    # -- leases -------------------------------------------------------------------------------------------------

    async def source(self, name: str) -> SqliteSourceLease:
        """The lease of this source, once its partition is ours."""
        return await (await self._of("source", name)).source(name)

    async def sink(self, name: str, *, start: Literal["now", "earliest"], keep_seconds: float) -> SqliteSinkLease:
        """The lease of this sink, once its partition is ours."""
        return await (await self._of("sink", name)).sink(name, start=start, keep_seconds=keep_seconds)

    def held_sink(self, name: str) -> SqliteSinkLease | None:
        """The lease of this sink, if this process has taken it."""
        partition = self._held.get(self.place("sink", name))
        return None if partition is None else partition.held_sink(name)

    # -- the other processes --------------------------------------------------------------------------------------

    @property
    def peers(self) -> dict[str, Peer]:
        """The other processes of this relay that live, by name."""
        return self._bulletin.peers

    def report(self, component: Component, name: str) -> Report | None:
        """The last that another process has said of a task."""
        return self._bulletin.report(component, name)

    async def publish(self, facts: bytes, reports: Mapping[Task, bytes]) -> None:
        """Tells the other processes of this one, and of its tasks."""
        peer = Peer(
            name=self._process, at=self._clock.now(), tasks=tuple(reports), used_bytes=self._held_bytes(), facts=facts
        )
        await self._bulletin.publish(peer, reports)

    def _held_bytes(self) -> int:
        return max((partition.held_bytes() for partition in self._held.values()), default=0)

    async def ask(self, to: Task | None, command: bytes, *, seconds: float) -> dict[str, bytes]:
        """Has the owner of a task execute a command, once, or every other process."""
        return await self._bulletin.ask(to, command, seconds=seconds)

    def obey(self, execute: Callable[[bytes, bool], Awaitable[bytes]]) -> None:
        """From now on, commands that other processes were given are executed by this."""

        async def once(ident: str, to: Task | None, command: bytes) -> bytes:
            partition = self._held.get(self.place(*to)) if to is not None else None
            token = EXECUTED.set(ident)
            try:
                return await execute(command, partition is not None and await partition.executed(ident))
            finally:
                EXECUTED.reset(token)

        self._bulletin.execute = once

    def written(self) -> dict[str, tuple[int, Instant | None]]:
        """Sinks that are written with the polls: how much in the last hour by this process, and when last."""
        return {sink.name: sink.written() for sink in self._inline}

    # -- what is known, and what operators change ---------------------------------------------------------------

    async def sinks(self) -> list[StoredSink]:
        """Every sink of the partitions that are held here, by name."""
        found = [one for partition in await self._all() for one in await partition.sinks()]
        return sorted(found, key=lambda one: one.name)

    async def sources(self) -> list[StoredSource]:
        """Every source of the partitions that are held here, by name."""
        found = [
            one
            for partition in await self._all()
            for one in await partition.sources()
            if self.place("source", one.name) == partition.number
        ]
        return sorted(found, key=lambda one: one.name)

    async def latest_events(self, limit: int, *, after: int = 0) -> list[Delivery]:
        """Up to `limit` of the events committed last by any process, newest first."""
        end = await self._broker.end(self.topics.changes, 0)
        if self._latest is None:
            self._latest = await self._broker.reader(self.topics.changes, 0, max(0, end - _LATEST))
        idle = 0
        while self._latest.reached() < end and idle < 3:  # a transaction of another process may be open
            messages = await self._latest.read(1000)
            idle = 0 if messages else idle + 1
            self._newest += [delivery_of(message, message.offset + 1) for message in events_in(messages)]
            del self._newest[: -max(_LATEST, limit)]
        found = [one for one in self._newest if one.position > after]
        return found[::-1][:limit]

    async def latest_incidents(self, limit: int) -> list[tuple[str, Known]]:
        """Those that were met last by the sources held here; across partitions in no order."""
        found = [await partition.latest_incidents(limit) for partition in await self._all()]
        return [one for some in found for one in some][:limit]

    async def rename_sink(self, old: str, new: str) -> None:
        """All that was kept for the old name is the new one's. Raises ConfigError."""
        await self._rename("sink", old, new)

    async def rename_source(self, old: str, new: str) -> None:
        """The same for a source. Raises ConfigError."""
        await self._rename("source", old, new)

    async def _rename(self, component: Component, old: str, new: str) -> None:
        """The new name stays where the old one was: everything of it is there."""
        partition = await self._of(component, old)
        other = await self._of(component, new)
        if other is not partition:
            stored = await (other.sinks() if component == "sink" else other.sources())
            known = [one for one in stored if component == "sink" or getattr(one, "progress", None) is not None]
            if any(one.name == new for one in known):
                raise ConfigError(
                    f"the journal already holds a {component} {new} with what it did under that name: choose another "
                    f"name than {new}"
                )
            here = await (partition.sinks() if component == "sink" else partition.sources())
            if not any(one.name == old for one in here):
                names = [one.name for one in (await self.sinks() if component == "sink" else await self.sources())]
                raise ConfigError(f"the journal knows no {component} {old}: use one of {', '.join(names) or 'none'}")
            place = self.place(component, old)
            self._meta = await write_meta(
                self._broker,
                self.topics,
                lambda found: (found or self._meta).placed(component, new, place),
                clock=self._clock,
            )
        if component == "sink":
            await partition.rename_sink(old, new)
            return
        for sinks_of in await self._all():
            if sinks_of is not partition:
                await sinks_of.rename_label(old, new)
        await partition.rename_source(old, new)

    async def dead_letters(
        self, *, component: Component | None = None, name: str | None = None, prefix: str = "", limit: int
    ) -> DeadLetters:
        """Those of the tasks that are held here; newest first."""
        found = [
            await partition.dead_letters(component=component, name=name, prefix=prefix, limit=limit)
            for partition in await self._all()
        ]
        newest = sorted(
            (letter for one in found for letter in one.newest),
            key=lambda letter: (letter.committed, letter.position),
            reverse=True,
        )
        return DeadLetters(total=sum(one.total for one in found), newest=newest[:limit])

    async def discard(self, component: Component, name: str, ids: Collection[str] | None = None) -> int:
        """Forgets dead letters for good; returns how many."""
        partition = await self._of(component, name)
        await partition.refresh_letters()
        return await partition.discard(component, name, ids)

    async def backup(self, path: Path) -> None:
        """Makes a file of it, as of now, that the embedded journal opens."""
        await write_file(path, self._broker, self.topics, self._meta, clock=self._clock)

    # -- space --------------------------------------------------------------------------------------------------

    def oldest_call_seconds(self) -> float:
        """For how long the oldest unfinished call has been waiting for the disk or the brokers."""
        return max((partition.oldest_call_seconds() for partition in self._held.values()), default=0.0)

    async def use(self) -> JournalUse:
        """What the sink that is furthest behind holds, of what it may."""
        uses = [await partition.use() for partition in list(self._held.values())]
        used = self._common.used_bytes() if self._common is not None else 0
        oldest = [use.oldest_event for use in uses if use.oldest_event is not None]
        return JournalUse(used_bytes=used, limit_bytes=self._max_bytes, oldest_event=min(oldest, default=None))

    async def tend(self) -> Tended:
        """Housekeeping of the partitions that are held here."""
        deleted = 0
        expired: dict[str, dict[str, int]] = {}
        forgotten: list[str] = []
        for partition in await self._all():
            try:
                done = await partition.tend()
            except LeaseLost:
                continue
            deleted += done.deleted
            expired |= done.expired
            forgotten += done.forgotten
        if self._common is not None and self._common.used_bytes() < 0.9 * self._max_bytes:
            for partition in self._held.values():
                partition.has_room()
        return Tended(deleted=deleted, expired=expired, forgotten=tuple(forgotten))


def topic_plans(topics: Topics, partitions: int, retention_seconds: float) -> list[TopicPlan]:
    """The relay's own topics as they have to be."""
    compacted = {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.1",
        "segment.ms": "3600000",
        "segment.bytes": str(64 << 20),
        "delete.retention.ms": str(_DAY_SECONDS * 1000),
    }
    kept = str(int((retention_seconds + _DAY_SECONDS) * 1000))
    large = {"max.message.bytes": str(16 << 20)}
    return [
        TopicPlan(topics.state, partitions, compacted | large, ("cleanup.policy",), "journal.partitions"),
        TopicPlan(
            topics.changes,
            1,
            {"cleanup.policy": "delete", "retention.ms": kept, "retention.bytes": "-1", "segment.bytes": str(64 << 20)}
            | large,
            ("cleanup.policy",),
        ),
        TopicPlan(
            topics.dead_letters,
            1,
            compacted | large | {"cleanup.policy": "compact,delete", "retention.ms": str(DEAD_LETTER_MILLISECONDS)},
            ("cleanup.policy",),
        ),
        TopicPlan(topics.control, 1, compacted, ("cleanup.policy",)),
    ]
