"""The admin socket: how a command reaches the process that is meant. Done here, by the owner of its task, or by all.

What a command does is `relay.control`'s. Only the owner of this process may use the socket.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from relay.clock import Clock
from relay.control import (
    SLOW_SECONDS,
    USAGE_STATUS,
    AcceptMissing,
    Answer,
    AnyCommand,
    Desk,
    DisableSink,
    Discard,
    EnableSink,
    ListDeadLetters,
    Redrive,
    Replay,
    Sender,
    ShowDeadLetter,
    TestSink,
    copied,
    copy_path,
    decode_command,
    execute,
    no_source,
)
from relay.errors import ConfigError, RelayError
from relay.journal import Journal, Task
from relay.settings import Settings
from relay.status import RelayFacts
from relay.tasks import SourceTask

OTHERS_SECONDS: Final = 20.0
"""How long other processes of this relay may take to answer."""
_OF_ALL: Final = (ListDeadLetters, ShowDeadLetter, Redrive, Discard)
"""What each process has to be asked for."""


class Commanded(Protocol):
    """What commands need of a running relay."""

    settings: Settings
    """Those it was started with."""
    clock: Clock
    """Its time."""
    journal: Journal
    """Opened, every lease taken."""

    @property
    def sources(self) -> Sequence[SourceTask]:
        """The tasks of its sources."""
        ...

    @property
    def couriers(self) -> Sequence[Sender]:
        """The tasks of its sinks."""
        ...

    async def facts(self) -> RelayFacts:
        """Everything that the status says, of all its processes."""
        ...


# -- answering --------------------------------------------------------------------------------------------------------


def routes(relay: Commanded) -> Sequence[Route]:
    """What the admin socket offers beside what is shown."""
    copy_path(relay.settings).unlink(missing_ok=True)  # a predecessor was killed amid a backup
    copying = asyncio.Lock()

    async def commands(request: Request) -> Response:
        body = await request.body()
        try:
            return JSONResponse(await _answered(relay, decode_command(body), body))
        except msgspec.MsgspecError as error:
            return JSONResponse({"error": f"the running relay does not know this command: {error}"}, status_code=409)
        except RelayError as error:
            return _error(error)

    async def copy(_request: Request) -> Response:
        if copying.locked():
            return JSONResponse({"error": "another backup is being made: try again when it is done"}, status_code=409)
        await copying.acquire()
        try:
            made = await copied(relay.settings, relay.journal)
        except BaseException as error:
            copying.release()
            if isinstance(error, RelayError):
                return _error(error)
            raise

        def clean() -> None:
            made.unlink(missing_ok=True)
            copying.release()

        return _Copy(made, clean)

    return [
        Route("/api/commands", commands, methods=["POST"]),
        Route("/api/backup", copy, methods=["GET"]),
    ]


async def _desk(relay: Commanded) -> Desk:
    """Where commands are executed that come to this process."""
    facts = await relay.facts()
    return Desk(
        settings=relay.settings,
        journal=relay.journal,
        clock=relay.clock,
        running=True,
        senders={sender.name: sender for sender in relay.couriers},
        tasks={source.name: source for source in relay.sources},
        sinks={sink.name: sink for sink in facts.sinks},
        sources={source.name: source for source in facts.sources},
    )


async def _answered(relay: Commanded, command: AnyCommand, body: bytes) -> Answer:
    """By whoever owns the task that is meant, by every process, or by this one. Raises RelayError."""
    _require_meant(command, relay.settings)
    task = _meant(command)
    if task is not None and relay.journal.holding(*task) is None:
        return await _asked(relay, task, body)
    own = _tried(execute(command, await _desk(relay)))
    if not isinstance(command, _OF_ALL) or not relay.journal.peers:
        return _granted(await own)
    mine, theirs = await asyncio.gather(own, relay.journal.ask(None, body, seconds=OTHERS_SECONDS))
    silent = sorted(relay.journal.peers.keys() - theirs.keys())
    if silent:
        raise RelayError(
            f"{', '.join(silent)} did not answer within {OTHERS_SECONDS:g} s: try again, or look at its log"
        )
    return _merged([mine, *(msgspec.json.decode(one) for one in theirs.values())], command)


def _meant(command: AnyCommand) -> Task | None:
    """The task whose owner has to do it; None when it is nobody's or everybody's."""
    match command:
        case EnableSink(sink=name) | DisableSink(sink=name) | TestSink(sink=name) | Replay(sink=name):
            return "sink", name
        case AcceptMissing(source=name):
            return "source", name
        case Redrive(ids=(), sink=str(name)) | Discard(ids=(), sink=str(name)):
            return "sink", name
        case Discard(ids=(), source=str(name)):
            return "source", name
    return None


def _require_meant(command: AnyCommand, settings: Settings) -> None:
    """Raises ConfigError for a task that is not configured: nobody would ever answer for it."""
    task = _meant(command)
    if task is None or isinstance(command, Discard):
        return
    component, name = task
    if component == "source" and name not in settings.sources:
        raise ConfigError(no_source(name, settings.sources))
    if component == "sink" and name not in settings.sinks:
        raise ConfigError(f"there is no sink {name}: use one of {', '.join(settings.sinks)}")


async def _asked(relay: Commanded, task: Task, body: bytes) -> Answer:
    """What the owner of the task answers. Raises RelayError."""
    seconds = SLOW_SECONDS if isinstance(decode_command(body), Redrive | Replay) else OTHERS_SECONDS
    answers = await relay.journal.ask(task, body, seconds=seconds)
    for answer in answers.values():
        return _granted(msgspec.json.decode(answer))
    component, name = task
    raise RelayError(
        f"no replica has answered for the {component} {name} within {seconds:g} s: the command waits for one that "
        "holds it; look at `relay status`"
    )


async def _tried(work: Awaitable[Answer]) -> Answer:
    """The answer, or the refusal as one."""
    try:
        return await work
    except RelayError as error:
        return {"error": str(error), "usage": isinstance(error, ConfigError)}


def _granted(answer: Answer) -> Answer:
    if "error" in answer:
        raise ConfigError(answer["error"]) if answer.get("usage") else RelayError(answer["error"])
    return answer


def _merged(answers: Sequence[Answer], command: AnyCommand) -> Answer:
    """One answer of several processes, each of which knows its own tasks. Raises RelayError when none could."""
    good = [answer for answer in answers if "error" not in answer]
    if not good:
        return _granted(answers[0])
    merged = dict(good[0])
    if isinstance(command, ListDeadLetters):
        rows = [row for answer in good for row in answer["dead_letters"]]
        rows.sort(key=lambda row: str(row["since_time"]), reverse=True)
        return merged | {"total": sum(answer["total"] for answer in good), "dead_letters": rows[: command.limit]}
    if isinstance(command, ShowDeadLetter):
        return merged | {"dead_letters": [row for answer in good for row in answer["dead_letters"]]}
    for key in ("events", "discarded"):
        if key in merged:
            merged[key] = sum(answer[key] for answer in good)
    if "older" in merged:
        merged["older"] = [ident for answer in good for ident in answer["older"]]
    merged["done"] = "; ".join(dict.fromkeys(str(answer["done"]) for answer in good))
    return merged


def obedience(relay: Commanded) -> Callable[[bytes, bool], Awaitable[bytes]]:
    """Executes what other processes of this relay were asked, and answers as they will."""

    async def obey(body: bytes, done_before: bool) -> bytes:
        if done_before:
            return msgspec.json.encode({"done": "it was done already, by a replica that has ended since"})
        try:
            command = decode_command(body)
        except msgspec.MsgspecError:
            return msgspec.json.encode({"error": "a replica of another version does not know this command"})
        return msgspec.json.encode(await _tried(execute(command, await _desk(relay))))

    return obey


class _Copy(FileResponse):
    """A file that goes when it was sent, or when whoever asked has gone."""

    def __init__(self, path: Path, clean: Callable[[], None]) -> None:
        super().__init__(path, media_type="application/vnd.sqlite3")
        self._clean = clean

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._clean()


def _error(error: RelayError) -> Response:
    return JSONResponse({"error": str(error)}, status_code=USAGE_STATUS if isinstance(error, ConfigError) else 503)
