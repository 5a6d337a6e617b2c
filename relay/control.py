"""Commands that look at or change a relay: sent to its admin socket, or done on its journal when no relay runs.

A command is data. Whoever has the journal open executes it: once, and durable when it is answered. How one reaches the
process that is meant: `relay.admin`.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

import httpx
import msgspec

from relay.assembly import make_courier, make_journal, make_sink, require_alone
from relay.clock import SECOND, Clock, Instant
from relay.endpoint import DISABLED
from relay.errors import ConfigError, RelayError
from relay.incidents import format_instant, parse_instant
from relay.journal import (
    Component,
    DeadLetter,
    EndpointStatus,
    Journal,
    PageCommit,
    SinkLease,
    StoredSink,
    StoredSource,
)
from relay.metrics import Metrics
from relay.settings import Settings, parse_duration
from relay.status import DeadFacts, RelayFacts, SinkFacts, SourceFacts, dead_letter, sink_row
from relay.tasks import SourceTask
from relay.words import count, number

ANSWER_SECONDS: Final = 30.0
SLOW_SECONDS: Final = 600.0
"""How long a copy of a large journal, or a replay of all of it, may take."""
TEST_SECONDS: Final = 60.0
CLOSE_SECONDS: Final = 2.0
SHORTEST_PREFIX: Final = 4
"""An id may be cut to so many characters, as long as it names one event."""
LISTED: Final = 50
NOBODY: Final = "no relay runs at present"
USAGE_STATUS: Final = 400
"""How a running relay answers what is wrong with the command itself."""
_COPY: Final = "copy"


# -- what can be asked ------------------------------------------------------------------------------------------------


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", forbid_unknown_fields=True):
    """What an operator asks for."""


class ListSinks(Command, frozen=True, tag="sinks list"):
    """Every sink, and those that left the configuration while something was kept for them."""


class EnableSink(Command, frozen=True, tag="sinks enable"):
    """A parked or disabled sink goes on."""

    sink: str


class DisableSink(Command, frozen=True, tag="sinks disable"):
    """Nothing is sent to it until it is enabled."""

    sink: str


class TestSink(Command, frozen=True, tag="sinks test"):
    """Sends one marked message, or tries what can be tried."""

    __test__ = False
    sink: str


class RenameSink(Command, frozen=True, tag="sinks rename"):
    """What is kept for the old name is the new one's."""

    old: str
    new: str


class ListSources(Command, frozen=True, tag="sources list"):
    """Every source, and those that left the configuration."""


class RenameSource(Command, frozen=True, tag="sources rename"):
    """What is known of the old label is the new one's."""

    old: str
    new: str


class AcceptMissing(Command, frozen=True, tag="sources accept-missing"):
    """The next sweep of this source believes any number of disappearances."""

    source: str


class ListDeadLetters(Command, frozen=True, tag="dead-letters list"):
    """The newest dead letters: of one sink, of one source, or all."""

    sink: str | None = None
    source: str | None = None
    limit: int = LISTED


class ShowDeadLetter(Command, frozen=True, tag="dead-letters show"):
    """One dead letter with all that is kept of it; several when several sinks refused the event."""

    id: str


class Redrive(Command, frozen=True, tag="dead-letters redrive"):
    """Sends dead letters again: these ids, or all of one sink."""

    ids: tuple[str, ...] = ()
    sink: str | None = None
    superseded: bool = False


class Discard(Command, frozen=True, tag="dead-letters discard"):
    """Forgets dead letters: these ids, or all of one sink or source."""

    ids: tuple[str, ...] = ()
    sink: str | None = None
    source: str | None = None


class Replay(Command, frozen=True, tag="replay"):
    """Sends again to one sink what was committed from `since` to before `until`, None: now."""

    sink: str
    since: Instant
    until: Instant | None = None
    incident: str | None = None


AnyCommand = (
    ListSinks
    | EnableSink
    | DisableSink
    | TestSink
    | RenameSink
    | ListSources
    | RenameSource
    | AcceptMissing
    | ListDeadLetters
    | ShowDeadLetter
    | Redrive
    | Discard
    | Replay
)
decode_command: Final[Callable[[bytes], AnyCommand]] = msgspec.json.Decoder(AnyCommand).decode
_SLOW: Final = (Redrive, Discard, Replay, TestSink, RenameSink, EnableSink, DisableSink)
Answer = dict[str, Any]


class Sender(Protocol):
    """What commands need of the task that delivers to a sink."""

    name: str
    kind: str
    target: str

    async def enable(self) -> str:
        """A parked or disabled sink goes on; says what was done. Raises JournalError."""
        ...

    async def disable(self) -> str:
        """Nothing is sent until it is enabled; everything waits. Says what was done. Raises JournalError."""
        ...

    async def test(self) -> str:
        """Sends one marked message, or says why there is none. Raises SinkError."""
        ...

    async def facts(self) -> SinkFacts:
        """What the status says of this sink."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where a command is executed: with a running relay, or without one, when all but the first are empty.

    `senders` and `tasks` are those of this process, `sinks` and `sources` what is known of those of all.
    """

    settings: Settings
    journal: Journal
    clock: Clock
    running: bool
    senders: Mapping[str, Sender] = field(default_factory=dict)
    tasks: Mapping[str, SourceTask] = field(default_factory=dict)
    sinks: Mapping[str, SinkFacts] = field(default_factory=dict)
    sources: Mapping[str, SourceFacts] = field(default_factory=dict)


# -- asking -----------------------------------------------------------------------------------------------------------


def ask(settings: Settings, command: AnyCommand, *, clock: Clock) -> Answer:
    """Has the running relay execute a command, or executes it here when none runs. Raises RelayError."""
    seconds = SLOW_SECONDS if isinstance(command, _SLOW) else ANSWER_SECONDS
    content = msgspec.json.encode(command)
    answer = ask_running(settings.admin_socket_path, "POST", "/api/commands", content=content, seconds=seconds)
    if answer is not None:
        return answer
    return asyncio.run(_alone(settings, command, clock))


async def _alone(settings: Settings, command: AnyCommand, clock: Clock) -> Answer:
    if isinstance(command, TestSink):
        return {"done": await _tested_alone(settings, command.sink, clock)}
    async with _opened(settings, clock) as journal:
        return await execute(command, Desk(settings=settings, journal=journal, clock=clock, running=False))


@asynccontextmanager
async def _opened(settings: Settings, clock: Clock) -> AsyncIterator[Journal]:
    """The journal while no relay runs. Raises RelayError when there is none: a command makes no new one."""
    if settings.journal.kind == "sqlite" and not settings.journal.path.exists():
        raise RelayError(
            f"{NOBODY}, and there is no journal {settings.journal.path} yet: start one with `relay run`, with the same "
            "configuration"
        )
    if settings.journal.kind == "kafka":
        await require_alone(settings)
    journal = make_journal(settings, clock=clock)
    await journal.open()
    try:
        await journal.settled()
        yield journal
    finally:
        await journal.close()


def backup(settings: Settings, write: Callable[[bytes], object], *, clock: Clock) -> int:
    """Gives a copy of the journal, piece by piece; returns its bytes. Raises RelayError."""
    path = settings.admin_socket_path
    written = 0
    try:
        with _client(path, SLOW_SECONDS) as client, client.stream("GET", "http://relay/api/backup") as answer:
            if not answer.is_success:
                answer.read()
                raise _refusal(answer)
            for piece in answer.iter_raw():
                write(piece)
                written += len(piece)
            if written != int(answer.headers["content-length"]):
                raise RelayError("the copy was cut short: look at the log of the relay, and make the backup again")
    except httpx.ConnectError:
        return asyncio.run(_backup_alone(settings, write, clock))
    except httpx.HTTPError as exc:
        raise RelayError(f"the relay at {path} broke off: look at its log, and make the backup again") from exc
    return written


async def _backup_alone(settings: Settings, write: Callable[[bytes], object], clock: Clock) -> int:
    async with _opened(settings, clock) as journal:
        copy = await copied(settings, journal)
        try:
            with copy.open("rb") as file:
                pieces: Iterator[bytes] = iter(partial(file.read, 1 << 20), b"")
                for piece in pieces:
                    write(piece)
            return copy.stat().st_size
        finally:
            copy.unlink(missing_ok=True)


def ask_running(
    path: Path, method: str, address: str, *, content: bytes = b"", seconds: float = ANSWER_SECONDS
) -> Answer | None:
    """The answer of the relay behind this admin socket; None when none runs. Raises RelayError when it refuses."""
    try:
        with _client(path, seconds) as client:
            answer = client.request(method, f"http://relay{address}", content=content)
    except httpx.ConnectError:
        return None
    except httpx.HTTPError as exc:
        raise RelayError(f"the relay at {path} did not answer in {seconds:g} s: look at its log") from exc
    if not answer.is_success:
        raise _refusal(answer)
    said: Answer = answer.json()
    return said


def _client(path: Path, seconds: float) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=seconds)


def _refusal(answer: httpx.Response) -> RelayError:
    try:
        text = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = f"the relay answered {answer.status_code}: see whether it is of the same version as this command"
    return ConfigError(text) if answer.status_code == USAGE_STATUS else RelayError(text)


# -- copies -----------------------------------------------------------------------------------------------------------


async def copied(settings: Settings, journal: Journal) -> Path:
    """A copy beside the journal, on a volume that is known to hold it; its owner alone may read it."""
    path = copy_path(settings)
    path.unlink(missing_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        await journal.backup(path)
    except OSError as exc:
        raise RelayError(f"the copy {path} cannot be made: {(exc.strerror or '').lower()}; make room there") from exc
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def copy_path(settings: Settings) -> Path:
    """Where a copy lies until it is sent."""
    own = settings.journal.cache_dir if settings.journal.kind == "kafka" else settings.journal.path
    return own.with_name(f"{own.name}.{_COPY}")


# -- executing --------------------------------------------------------------------------------------------------------


async def execute(command: AnyCommand, desk: Desk) -> Answer:  # noqa: PLR0912  # a case a command
    """Does what is asked; `done` is the sentence for people, all else for scripts. Raises RelayError."""
    match command:
        case ListSinks():
            return await _list_sinks(desk)
        case EnableSink(sink=name):
            return {"done": await _enable(desk, name)}
        case DisableSink(sink=name):
            return {"done": await _disable(desk, name)}
        case TestSink(sink=name):
            return {"done": await _test(desk, name)}
        case RenameSink(old=old, new=new):
            return {"done": await _rename_sink(desk, old, new)}
        case ListSources():
            return await _list_sources(desk)
        case RenameSource(old=old, new=new):
            return {"done": await _rename_source(desk, old, new)}
        case AcceptMissing(source=label):
            return {"done": await _accept_missing(desk, label)}
        case ListDeadLetters():
            return await _list_dead(desk, command)
        case ShowDeadLetter(id=id_):
            letters = await _found(desk, id_)
            shown = [_letter_row(letter) | _content(letter) for letter in letters]
            return {"generated_time": _now(desk), "dead_letters": shown}
        case Redrive():
            return await _redrive(desk, command)
        case Discard():
            return await _discard(desk, command)
        case Replay():
            return await _replay(desk, command)


def _require_sink(desk: Desk, name: str) -> None:
    if name not in desk.settings.sinks:
        raise ConfigError(f"there is no sink {name}: use one of {', '.join(desk.settings.sinks)}")


async def _lease(desk: Desk, name: str) -> SinkLease:
    """The lease of a configured sink: the one that is held, else a new one. Raises ConfigError, JournalError."""
    _require_sink(desk, name)
    held = desk.journal.held_sink(name)
    if held is not None:
        return held
    chosen = desk.settings.sinks[name]
    return await desk.journal.sink(name, start=chosen.start, keep_seconds=chosen.keep.total_seconds())


# -- sinks ------------------------------------------------------------------------------------------------------------


async def _list_sinks(desk: Desk) -> Answer:
    stored = {sink.name: sink for sink in await desk.journal.sinks()}
    now = desk.clock.now()
    facts = [desk.sinks.get(name) or _stored_facts(desk, name, stored.get(name)) for name in desk.settings.sinks]
    around = RelayFacts(now=now, version="", process="", started=now, sinks=facts)
    rows = [sink_row(one, around) | {"configured": True} for one in facts]
    if not desk.running:
        rows = [row | {"last_success_time": None, "delivered_last_hour_events": None} for row in rows]
    gone = [_removed_row(one, now) for name, one in stored.items() if name not in desk.settings.sinks]
    return {"generated_time": _now(desk), "relay_running": desk.running, "sinks": rows + gone}


def _stored_facts(desk: Desk, name: str, stored: StoredSink | None) -> SinkFacts:
    """What is known of a sink while no relay runs."""
    status = stored.endpoint if stored else EndpointStatus()
    return SinkFacts(
        name=name,
        type=desk.settings.sinks[name].type,
        target="",
        state=status.state,
        since=status.since,
        reason=status.reason,
        failures=status.failures,
        next_try=None,
        paused_until=status.paused_until,
        waiting=stored.backlog.events if stored else 0,
        oldest=stored.backlog.oldest if stored else None,
        last_success=None,
        delivered=0,
        dead_letters=stored.dead if stored else 0,
    )


def _removed_row(stored: StoredSink, now: Instant) -> Answer:
    return {
        "name": stored.name,
        "type": None,
        "target": "",
        "state": "removed",
        "state_since_time": format_instant(stored.removed or now, digits=0),
        "backlog_events": stored.backlog.events,
        "oldest_waiting_time": _time(stored.backlog.oldest),
        "last_success_time": None,
        "delivered_last_hour_events": None,
        "paused_until_time": None,
        "dead_letters": stored.dead,
        "configured": False,
    }


async def _enable(desk: Desk, name: str) -> str:
    _require_sink(desk, name)
    if desk.running:
        return await _sender(desk, name).enable()
    lease = await _lease(desk, name)
    before = lease.endpoint.state
    if before not in ("parked", "disabled"):
        return f"{name} was not stopped; {NOBODY}"
    await lease.settle([], EndpointStatus())
    return f"{name} was {before} and goes on when a relay runs; {NOBODY}"


async def _disable(desk: Desk, name: str) -> str:
    _require_sink(desk, name)
    if desk.running:
        return await _sender(desk, name).disable()
    lease = await _lease(desk, name)
    await lease.settle([], EndpointStatus(state="disabled", since=desk.clock.now(), reason=DISABLED))
    return f"{name} is disabled; its events wait until it is enabled, or `keep` is over; {NOBODY}"


def _sender(desk: Desk, name: str) -> Sender:
    sender = desk.senders.get(name)
    if sender is None:
        raise RelayError(f"the running relay does not send to {name}: look at its log")
    return sender


async def _test(desk: Desk, name: str) -> str:
    _require_sink(desk, name)
    return await _tested(_sender(desk, name))


async def _tested(sender: Sender) -> str:
    try:
        async with asyncio.timeout(TEST_SECONDS):
            return await sender.test()
    except TimeoutError as exc:
        raise RelayError(
            f"{sender.name} did not answer within {TEST_SECONDS:g} s: see whether its far side answers at all"
        ) from exc


async def _tested_alone(settings: Settings, name: str, clock: Clock) -> str:
    """As the relay would, but on a journal that is thrown away: a test needs none, and changes none."""
    if name not in settings.sinks:
        raise ConfigError(f"there is no sink {name}: use one of {', '.join(settings.sinks)}")
    with TemporaryDirectory(prefix="relay-") as folder:
        place = settings.journal.model_copy(update={"kind": "sqlite", "path": Path(folder) / "test.db"})
        journal = make_journal(settings.model_copy(update={"journal": place}), clock=clock)
        await journal.open()
        try:
            courier = await make_courier(
                name, settings=settings, journal=journal, rules={}, metrics=Metrics(clock), clock=clock
            )
            try:
                return await _tested(courier)
            finally:
                await courier.close(CLOSE_SECONDS)
        finally:
            await journal.close()


async def _rename_sink(desk: Desk, old: str, new: str) -> str:
    _require_renamable(desk, "sink", old, new, desk.settings.sinks)
    known = {sink.name for sink in await desk.journal.sinks()}
    if old in known and new not in known:
        await _take_over(desk, old, new)
    await desk.journal.rename_sink(old, new)
    return f"{old} is {new} from now on, with all that waits for it and its dead letters; start the relay again"


async def _take_over(desk: Desk, old: str, new: str) -> None:
    """An atomic far side knows under the old name how far it got, which may be further than the journal knows."""
    chosen = desk.settings.sinks[new]
    settings = desk.settings.model_copy(update={"sinks": {**desk.settings.sinks, old: chosen}})
    sink = make_sink(old, settings=settings, journal_id=desk.journal.id)
    try:
        if sink.atomic:
            lease = await desk.journal.sink(old, start=chosen.start, keep_seconds=chosen.keep.total_seconds())
            position = await sink.open()
            if position is not None:
                await lease.resume(position)
    finally:
        await sink.close(CLOSE_SECONDS)


def _require_renamable(desk: Desk, noun: str, old: str, new: str, configured: Collection[str]) -> None:
    """Raises RelayError: a rename is stop, edit, rename, start."""
    if desk.running:
        raise RelayError(
            f"a relay runs: to rename a {noun}, stop it, change its name in the configuration, run this command, and "
            "start it again"
        )
    if old in configured:
        raise ConfigError(f"{old} is still configured: change its name to {new} in the configuration first")
    if new not in configured:
        raise ConfigError(f"{new} is not configured: change the name of {old} to {new} in the configuration first")


# -- sources ----------------------------------------------------------------------------------------------------------


async def _list_sources(desk: Desk) -> Answer:
    stored = {source.name: source for source in await desk.journal.sources()}
    names = [*desk.settings.sources, *(name for name in stored if name not in desk.settings.sources)]
    rows = [_source_row(desk, name, stored.get(name)) for name in names]
    return {"generated_time": _now(desk), "relay_running": desk.running, "sources": rows}


def _source_row(desk: Desk, label: str, stored: StoredSource | None) -> Answer:
    facts = desk.sources.get(label)
    progress = stored.progress if stored else None
    up_to = progress.complete_up_to if progress else facts.complete_up_to if facts else None
    configured = label in desk.settings.sources
    state = facts.state if facts else None
    backfill = "not_wanted" if progress is None or not progress.backfill else "running"
    if progress is None and facts is not None:
        backfill = facts.backfill
    return {
        "label": label,
        "region": desk.settings.sources[label].region if configured else None,
        "configured": configured,
        "state": state if configured else "removed",
        "state_since_time": _time(facts.since) if facts else None,
        "throttled_until_time": _time(facts.throttled_until) if facts else None,
        "complete_up_to_time": _time(up_to),
        "lag_seconds": None if up_to is None else max(0, (desk.clock.now() - up_to) // SECOND),
        "backfill": "done" if progress and progress.backfill and progress.backfill_done else backfill,
        "ledger_incidents": stored.incidents if stored else facts.ledger_incidents if facts else 0,
        "dead_letters": stored.dead if stored else facts.dead_letters if facts else 0,
    }


async def _rename_source(desk: Desk, old: str, new: str) -> str:
    _require_renamable(desk, "source", old, new, desk.settings.sources)
    await desk.journal.rename_source(old, new)
    return (
        f"{old} is {new} from now on, with its ledger and progress; later versions carry the new label, also in their "
        "ids; start the relay again"
    )


async def _accept_missing(desk: Desk, label: str) -> str:
    """Lets the next sweep of this source report any number of disappearances."""
    if label not in desk.settings.sources:
        raise ConfigError(no_source(label, desk.settings.sources))
    if desk.running:
        task = desk.tasks.get(label)
        if task is None:
            raise RelayError(f"the running relay does not read {label}: look at its log")
        await task.accept_missing()
        return f"a sweep of {label} begins, and reports whatever it finds missing"
    lease = await desk.journal.source(label)
    if lease.progress is None:
        raise RelayError(f"{label} has not been read yet: there is nothing to accept")
    progress = msgspec.structs.replace(lease.progress, accept_missing=True, sweep=None)
    await lease.commit(PageCommit(progress=progress))
    return f"the next sweep of {label} reports whatever it finds missing; {NOBODY}"


def no_source(label: str, known: Iterable[str]) -> str:
    """What to say of a label that nobody knows."""
    return f"there is no source {label}: use one of {', '.join(known)}"


# -- dead letters -----------------------------------------------------------------------------------------------------


async def _list_dead(desk: Desk, command: ListDeadLetters) -> Answer:
    component, name = _owner(command.sink, command.source)
    if component and name:
        await _require_known(desk, component, name)
    found = await desk.journal.dead_letters(component=component, name=name, limit=command.limit)
    rows = [_letter_row(letter) for letter in found.newest]
    return {"generated_time": _now(desk), "total": found.total, "dead_letters": rows}


def _owner(sink: str | None, source: str | None) -> tuple[Component | None, str | None]:
    if sink is not None and source is not None:
        raise ConfigError("name a sink or a source, not both")
    if sink is not None:
        return "sink", sink
    return ("source", source) if source is not None else (None, None)


async def _require_known(desk: Desk, component: Component, name: str) -> None:
    """Raises ConfigError for a name that neither the configuration nor the journal has."""
    configured: Collection[str] = desk.settings.sinks if component == "sink" else desk.settings.sources
    if name in configured or (await desk.journal.dead_letters(component=component, name=name, limit=1)).total:
        return
    raise ConfigError(f"there is no {component} {name}: use one of {', '.join(configured)}")


def letter_facts(letter: DeadLetter, *, titles: bool) -> DeadFacts:
    """What is shown of a dead letter. `titles`: with the incident's name."""
    if letter.component == "source":
        return DeadFacts(
            id=letter.id,
            component="source",
            name=letter.name,
            since=letter.committed,
            source=letter.name,
            reason=letter.reason,
            attempts=letter.attempts,
        )
    event = letter.event
    return DeadFacts(
        id=letter.id,
        component="sink",
        name=letter.name,
        since=letter.committed,
        source=event.source,
        uuid=event.uuid,
        sequence=event.sequence,
        severity=event.severity,
        title=_title(event.body) if titles else "",
        reason=letter.reason,
        attempts=letter.attempts,
    )


class _Titled(msgspec.Struct, rename="camel"):
    display_name: Any = ""


class _Body(msgspec.Struct):
    incident: _Titled


def _title(body: bytes) -> str:
    try:
        name = msgspec.json.decode(body, type=_Body).incident.display_name
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return name if isinstance(name, str) else ""


def _letter_row(letter: DeadLetter) -> Answer:
    return dead_letter(letter_facts(letter, titles=True))


def _content(letter: DeadLetter) -> Answer:
    """What was refused: an event as it would be sent, or the record as it came."""
    if letter.component == "sink":
        return {"kind": letter.event.kind, "event": msgspec.json.decode(letter.event.body), "record": None}
    cure = {"text": "If it is of no use, discard it:", "command": f"relay dead-letters discard {letter.id}"}
    return {"kind": None, "event": None, "record": letter.body.decode("utf-8", "replace"), "cure": cure}


async def _found(desk: Desk, prefix: str, *, sink: str | None = None, source: str | None = None) -> list[DeadLetter]:
    """The letters of the one event or record whose id begins so. Raises RelayError when there is none, or several."""
    component, name = _owner(sink, source)
    if len(prefix) < SHORTEST_PREFIX:
        raise ConfigError(f"{prefix!r} is too short for an id: write at least {SHORTEST_PREFIX} characters of it")
    found = await desk.journal.dead_letters(component=component, name=name, prefix=prefix, limit=LISTED)
    ids = {letter.id for letter in found.newest}
    if not ids:
        of = f" of {name}" if name else ""
        raise RelayError(f"there is no dead letter {prefix}{of}: look it up with `relay dead-letters list`")
    if len(ids) > 1:
        raise ConfigError(f"{prefix} begins several ids: write more of it, such as {min(ids)}")
    return found.newest


async def _redrive(desk: Desk, command: Redrive) -> Answer:
    chosen: dict[str, list[str] | None] = {}
    if command.ids:
        for prefix in command.ids:
            for letter in await _found(desk, prefix, sink=command.sink):
                if letter.component == "source":
                    raise RelayError(
                        f"{letter.id} is a record of {letter.name} that could not be read: there is no event to send; "
                        f"look at it with `relay dead-letters show {letter.id}`"
                    )
                ids = chosen.setdefault(letter.name, [])
                if ids is not None and letter.id not in ids:
                    ids.append(letter.id)
    elif command.sink is not None:
        await _require_known(desk, "sink", command.sink)
        chosen[command.sink] = None
    else:
        raise ConfigError("say which: ids of dead letters, or --sink with the name of a sink for all of them")
    for name in chosen:
        if name not in desk.settings.sinks:
            raise ConfigError(f"{name} is not configured: its dead letters can be discarded, or configure it again")
    events = 0
    older: list[str] = []
    for name, ids in chosen.items():
        done = await (await _lease(desk, name)).redrive(ids, superseded=command.superseded)
        events += done.events
        older += done.older
    said = f"{count(events, 'event')} {'waits' if events == 1 else 'wait'} to be sent again to {', '.join(chosen)}"
    if older:
        few = ", ".join(older[:3]) + (" …" if len(older) > 3 else "")
        said += (
            f"; {number(len(older))} stayed, since a newer version of the incident was sent ({few}): "
            "to send these as well, add --superseded"
        )
    return {"done": _unless_running(desk, said), "events": events, "older": older}


async def _discard(desk: Desk, command: Discard) -> Answer:
    component, name = _owner(command.sink, command.source)
    if command.ids:
        letters: dict[tuple[Component, str], set[str]] = {}
        for prefix in command.ids:
            for letter in await _found(desk, prefix, sink=command.sink, source=command.source):
                letters.setdefault((letter.component, letter.name), set()).add(letter.id)
        discarded = sum([await desk.journal.discard(*owner, ids) for owner, ids in letters.items()])
    elif component and name:
        await _require_known(desk, component, name)
        discarded = await desk.journal.discard(component, name)
    else:
        raise ConfigError("say which: ids of dead letters, or --sink or --source with a name for all of them")
    said = f"{count(discarded, 'dead letter')} {'was' if discarded == 1 else 'were'} discarded for good"
    return {"done": said, "discarded": discarded}


# -- replay -----------------------------------------------------------------------------------------------------------


async def _replay(desk: Desk, command: Replay) -> Answer:
    now = desk.clock.now()
    until = now if command.until is None else command.until
    if until <= command.since:
        raise ConfigError("--until must be later than --since")
    lease = await _lease(desk, command.sink)
    events = await lease.replay(command.since, until, command.incident)
    oldest = (await desk.journal.use()).oldest_event
    span = f"committed from {_said(command.since)} to before {_said(until)}"
    said = f"{count(events, 'event')} {span} {'waits' if events == 1 else 'wait'} to be sent again to {command.sink}"
    if oldest is None:
        said += "; the journal holds no event"
    elif oldest > command.since:
        said += f"; the journal holds none from before {_said(oldest)}"
    answer: Answer = {"events": events, "since_time": _said(command.since), "until_time": _said(until)}
    return {"done": _unless_running(desk, said), **answer, "oldest_event_time": _time(oldest)}


def point_in_time(text: str, now: Instant) -> Instant:
    """An RFC 3339 time, or how long ago: `2h`. Raises ConfigError."""
    with contextlib.suppress(ValueError):
        return parse_instant(text)
    try:
        return now - int(parse_duration(text).total_seconds() * SECOND)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no time: write it like 2026-11-22T10:00:00Z, or how long ago it was, such as 2h"
        ) from None


def _said(instant: Instant) -> str:
    return format_instant(instant, digits=0)


def _unless_running(desk: Desk, said: str) -> str:
    return said if desk.running else f"{said}; {NOBODY}"


def _time(instant: Instant | None) -> str | None:
    return None if instant is None else format_instant(instant, digits=0)


def _now(desk: Desk) -> str:
    return format_instant(desk.clock.now(), digits=3)
