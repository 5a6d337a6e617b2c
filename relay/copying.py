"""`relay journal copy`: the journal of one configuration becomes that of another, and nothing is sent again for it.

Far sides that know how far they are are asked before, and what could not be sent in order later is sent before. How
rows get from one to the other is `relay.journal.copy`'s.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from relay.assembly import make_courier, make_rules, make_sink
from relay.clock import Clock
from relay.errors import ConfigError, RelayError
from relay.journal.copy import Held, KafkaOrigin, KafkaTarget, held
from relay.journal.kafka import KafkaBroker
from relay.journal.kafka.file import UNLIMITED_BYTES, Copy, Tell, quiet
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics
from relay.settings import KafkaSink, Settings
from relay.sinks import Position
from relay.words import count

CLOSE_SECONDS: Final = 2.0


async def copy_journal(origin: Settings, target: Settings, *, clock: Clock, tell: Tell = quiet) -> str:
    """Makes the target's journal of the origin's; neither may be in use. Says what was done. Raises RelayError."""
    _require_same_names(origin, target)
    _require_two_journals(origin, target)
    if target.journal.kind == "sqlite":
        return await _into_file(origin, target, clock=clock, tell=tell)
    return await _into_kafka(origin, target, clock=clock, tell=tell)


async def _into_file(origin: Settings, target: Settings, *, clock: Clock, tell: Tell) -> str:
    path = target.journal.path
    await _require_no_journal(target, clock)
    async with _on_kafka(origin, clock=clock, tell=tell) as journal:
        reached = await _reached(origin, journal.meta.id)
        copy = Copy(path, max_bytes=target.journal.max_bytes, retention_seconds=0, clock=clock)
        await copy.open()
        try:
            with _half(lambda: f"delete {path}"):
                lost = await journal.fill(copy, reached)
                await copy.finish()
            return _said(await held(copy), f"the file {path}", lost)
        finally:
            await copy.close()


async def _into_kafka(origin: Settings, target: Settings, *, clock: Clock, tell: Tell) -> str:
    inline = frozenset(name for name in target.sinks if target.is_inline(name))
    journal = KafkaTarget(
        _broker(target),
        prefix=target.kafka_prefix,
        partitions=target.journal.partitions,
        retention_seconds=target.journal.retention.total_seconds(),
        clock=clock,
        tell=tell,
    )
    try:
        await journal.open()
        async with _as_file(origin, clock=clock, tell=tell) as (file, lost):
            await _deliver(origin, [name for name in inline if not origin.is_inline(name)], file, clock)
            with _half(lambda: journal.half):
                await journal.fill(file, inline=inline)
            return _said(await held(file), f"topics {target.kafka_prefix}.* on Kafka", lost)
    finally:
        await journal.close()


def _said(found: Held, where: str, lost: int) -> str:
    """What was done, and what a person has to know."""
    known = f"{count(found.incidents, 'known incident')} of {count(found.sources, 'source')}"
    said = (
        f"the journal is copied into {where}: {known}, {count(found.events, 'event')}, "
        f"{count(found.dead_letters, 'dead letter')}; start the relay with that configuration, and no longer with the "
        "other"
    )
    if lost:
        said += f"; {count(lost, 'event')} had left Kafka before a sink took {'it' if lost == 1 else 'them'}"
    return said


# -- the journal that there is ----------------------------------------------------------------------------------------


def _broker(settings: Settings) -> KafkaBroker:
    return KafkaBroker(
        settings.journal_kafka_options(),
        prefix=settings.kafka_prefix,
        replication_factor=settings.journal.replication_factor,
    )


@asynccontextmanager
async def _on_kafka(settings: Settings, *, clock: Clock, tell: Tell) -> AsyncIterator[KafkaOrigin]:
    journal = KafkaOrigin(_broker(settings), prefix=settings.kafka_prefix, clock=clock, tell=tell)
    try:
        await journal.open()
        yield journal
    finally:
        await journal.close()


@asynccontextmanager
async def _as_file(settings: Settings, *, clock: Clock, tell: Tell) -> AsyncIterator[tuple[SqliteJournal, int]]:
    """The journal as a file that nobody else uses, every sink in it as far as its far side is."""
    if settings.journal.kind == "sqlite":
        async with _opened(settings, clock) as file:
            for name, position in (await _reached(settings, file.id)).items():
                chosen = settings.sinks[name]
                lease = await file.sink(name, start=chosen.start, keep_seconds=chosen.keep.total_seconds())
                await lease.resume(position)
            yield file, 0
        return
    async with _on_kafka(settings, clock=clock, tell=tell) as journal:
        with TemporaryDirectory(prefix="relay-") as folder:
            copy = Copy(Path(folder) / "relay.db", max_bytes=UNLIMITED_BYTES, retention_seconds=0, clock=clock)
            await copy.open()
            try:
                lost = await journal.fill(copy, await _reached(settings, journal.meta.id))
                yield copy, lost
            finally:
                await copy.close()


@asynccontextmanager
async def _opened(settings: Settings, clock: Clock) -> AsyncIterator[SqliteJournal]:
    path = settings.journal.path
    if not path.exists():
        raise ConfigError(f"there is no journal {path} to copy: check journal.path in {_name(settings)}")
    journal = SqliteJournal(
        path,
        max_bytes=settings.journal.max_bytes,
        retention_seconds=settings.journal.retention.total_seconds(),
        clock=clock,
    )
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


# -- far sides --------------------------------------------------------------------------------------------------------


async def _reached(settings: Settings, journal_id: str) -> dict[str, Position]:
    """What far sides know of how far they are, which may be further than the journal knows. Raises RelayError."""
    found: dict[str, Position] = {}
    for name, chosen in settings.sinks.items():
        if not isinstance(chosen, KafkaSink) or not chosen.transactional or settings.is_inline(name):
            continue
        sink = make_sink(name, settings=settings, journal_id=journal_id)
        try:
            position = await sink.open()
        finally:
            await sink.close(CLOSE_SECONDS)
        if position is not None:
            found[name] = position
    return found


async def _deliver(settings: Settings, names: Collection[str], file: SqliteJournal, clock: Clock) -> None:
    """Sends what is due to these sinks, as the relay would that has the journal. What is left is found out later."""
    rules = make_rules(settings)
    for name in names:
        courier = await make_courier(
            name, settings=settings, journal=file, rules=rules, metrics=Metrics(clock), clock=clock
        )
        try:
            courier.drain()
            await courier.run()
        finally:
            await courier.close(CLOSE_SECONDS)


# -- what may not be --------------------------------------------------------------------------------------------------


def _require_same_names(origin: Settings, target: Settings) -> None:
    """Raises ConfigError: what is kept for a name that is not there any more would be lost, and another begin anew."""
    for noun, ours, theirs in (
        ("source", set(origin.sources), set(target.sources)),
        ("sink", set(origin.sinks), set(target.sinks)),
    ):
        if ours != theirs:
            only = [
                f"{', '.join(sorted(names))} only in {_name(settings)}"
                for names, settings in ((ours - theirs, origin), (theirs - ours, target))
                if names
            ]
            raise ConfigError(
                f"the {noun}s differ: {'; '.join(only)}; a journal knows them by name, so write the same ones in both, "
                f"and change a name afterwards with `relay {noun}s rename`"
            )


def _require_two_journals(origin: Settings, target: Settings) -> None:
    kinds = origin.journal.kind, target.journal.kind
    if kinds == ("sqlite", "sqlite"):
        raise ConfigError(
            f"both journals are files: `relay backup {target.journal.path} --config {_name(origin)}` makes the other"
        )
    servers = "bootstrap.servers"
    same = origin.kafka_prefix == target.kafka_prefix and origin.kafka.get(servers) == target.kafka.get(servers)
    if kinds == ("kafka", "kafka") and same:
        raise ConfigError("both configurations name the same journal: give the new one another kafka_prefix")


async def _require_no_journal(settings: Settings, clock: Clock) -> None:
    """Raises ConfigError for a file that holds one already, or half of one; JournalError when it is in use."""
    path = settings.journal.path
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return
    async with _opened(settings, clock):
        raise ConfigError(
            f"the journal {path} has begun already, and a copy begins a new one: move that file away, or name another "
            f"journal.path in {_name(settings)}"
        )


@contextmanager
def _half(cure: Callable[[], str]) -> Iterator[None]:
    """Whatever goes wrong while the target is written leaves half a journal. `cure` is empty before that."""
    try:
        yield
    except RelayError as error:
        if not (how := cure()):
            raise
        raise RelayError(f"{error}\nthe copy is not whole, and no relay uses it; {how}, then copy again") from error


def _name(settings: Settings) -> str:
    return str(settings.path) if settings.path is not None else "the environment"
