"""What the processes of one relay tell each other, in the control topic: reports of their tasks, commands, answers.

A command to a task is executed once, by whoever owns the task when it reads it, or by its next owner. Nothing here
decides who owns what.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
import structlog

from relay.clock import SECOND, Clock, Instant
from relay.errors import JournalError, JournalUnavailable
from relay.journal import Component, Peer, Report, Task
from relay.journal.kafka.broker import Broker, Record

log = structlog.get_logger()

ALIVE_SECONDS: Final = 15.0
"""A process that has said nothing for so long is not asked any more."""
FRESH_SECONDS: Final = 5.0
"""How often a process says that it lives, and repeats what has not changed."""
KEPT_SECONDS: Final = 600.0
"""How long a command waits for an owner of its task."""
RETRY_SECONDS: Final = 1.0

Execute = Callable[[str, Task | None, bytes], Awaitable[bytes]]
"""Executes a command that a process of this relay was given; called with its id and the task that it is for."""


class _Command(msgspec.Struct, frozen=True, kw_only=True):
    """`to` names the task whose owner is meant, or is None: every process."""

    id: str
    at: Instant
    sender: str
    to: Task | None
    body: bytes


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    process: str
    body: bytes


_encode = msgspec.msgpack.encode


class Bulletin:
    """One process's view of the others."""

    def __init__(self, broker: Broker, topic: str, *, process: str, clock: Clock) -> None:
        self._broker = broker
        self._topic = topic
        self._process = process
        self._clock = clock
        self._peers: dict[str, Peer] = {}
        self._reports: dict[Task, Report] = {}
        self._said: dict[Task, tuple[bytes, Instant]] = {}
        self._spoke: Instant = 0
        self._commands: dict[str, _Command] = {}
        self._begun: set[str] = set()
        self._answers: dict[str, dict[str, bytes]] = {}
        self._answered = asyncio.Condition()
        self._executing: set[asyncio.Task[None]] = set()
        self._began = clock.now()
        self.owns: Callable[[Task], bool] = lambda _task: False
        self.execute: Execute | None = None

    # -- reading ------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Reads what the others say, for ever."""
        offset = 0
        while True:
            try:
                reader = await self._broker.reader(self._topic, 0, offset)
                try:
                    while True:
                        for message in await reader.read(500):
                            self._hear(message.key, message.value)
                            offset = message.offset + 1
                        self.look()
                finally:
                    await reader.close()
            except JournalUnavailable as error:
                log.debug("control topic could not be read", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def _hear(self, key: bytes, value: bytes | None) -> None:
        try:
            kind, *rest = msgspec.json.decode(key, type=list[str])
            if kind == "process":
                self._hear_process(rest[0], value)
            elif kind == "report" and value is not None:
                report = msgspec.msgpack.decode(value, type=Report)
                self._reports[report.task] = report
            elif kind == "command":
                self._hear_command(rest[0], value)
            elif kind == "answer" and value is not None and rest[0] in self._answers:
                answer = msgspec.msgpack.decode(value, type=_Answer)
                self._answers[rest[0]][answer.process] = answer.body
                self._wake()
        except msgspec.MsgspecError:  # the description of the journal, or a word of a later release
            return

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._answered:
                self._answered.notify_all()

        self._spawn(wake(), "an answer came")

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._executing.add(task)
        task.add_done_callback(self._executing.discard)

    def _hear_process(self, name: str, value: bytes | None) -> None:
        if value is None:
            self._peers.pop(name, None)
        else:
            self._peers[name] = msgspec.msgpack.decode(value, type=Peer)

    def _hear_command(self, ident: str, value: bytes | None) -> None:
        if value is None:
            self._commands.pop(ident, None)
            self._begun.discard(ident)
            return
        command = msgspec.msgpack.decode(value, type=_Command)
        old = command.at < self._clock.now() - int(KEPT_SECONDS * SECOND)
        if not old and (command.to is not None or command.at >= self._began):
            self._commands[ident] = command

    def look(self) -> None:
        """Begins with the commands that are ours to execute: a task may have become ours since they were read."""
        if self.execute is None:
            return
        for ident, command in list(self._commands.items()):
            mine = command.sender != self._process if command.to is None else self.owns(command.to)
            if mine and ident not in self._begun:
                self._begun.add(ident)
                self._spawn(self._obey(command, self.execute), f"execute {ident}")

    async def _obey(self, command: _Command, execute: Execute) -> None:
        try:
            body = await execute(command.id, command.to, command.body)
        except JournalError as error:
            log.warning("command could not be executed", command=command.id, reason=error.reason, error=str(error))
            self._begun.discard(command.id)  # whoever owns the task next does it
            return
        answer = _Answer(process=self._process, body=body)
        records = [Record(self._topic, 0, _key("answer", command.id, self._process), _encode(answer))]
        if command.to is not None:
            records.append(Record(self._topic, 0, _key("command", command.id), None))
        await self._post(records)

    async def _post(self, records: list[Record]) -> None:
        try:
            await self._broker.post(self._topic, records)
        except JournalUnavailable as error:
            log.debug("control topic could not be written", error=str(error))

    # -- speaking -----------------------------------------------------------------------------------------------

    async def publish(self, peer: Peer, reports: Mapping[Task, bytes]) -> None:
        """Says what this process has, and of each of its tasks what has changed, or was said a while ago."""
        now = self._clock.now()
        fresh = int(FRESH_SECONDS * SECOND)
        records = []
        if now - self._spoke >= fresh or peer.tasks != self._peers.get(self._process, peer).tasks:
            records.append(Record(self._topic, 0, _key("process", self._process), _encode(peer)))
            self._spoke = now
        for task, body in reports.items():
            said, at = self._said.get(task, (b"", 0))
            if (said != body and now - at >= fresh // 5) or now - at >= fresh:
                report = Report(task=task, process=self._process, at=now, body=body)
                records.append(Record(self._topic, 0, _key("report", *task), _encode(report)))
                self._said[task] = (body, now)
        self._said = {task: kept for task, kept in self._said.items() if task in reports}
        if records:
            await self._post(records)

    async def leave(self) -> None:
        """Says that this process is gone."""
        for task in self._executing:
            task.cancel()
        await asyncio.gather(*self._executing, return_exceptions=True)
        if self._spoke:
            await self._post([Record(self._topic, 0, _key("process", self._process), None)])

    # -- asking -------------------------------------------------------------------------------------------------

    @property
    def peers(self) -> dict[str, Peer]:
        """The other processes that live, by name."""
        since = self._clock.now() - int(ALIVE_SECONDS * SECOND)
        return {name: peer for name, peer in self._peers.items() if peer.at >= since and name != self._process}

    def report(self, component: Component, name: str) -> Report | None:
        """The last that was said of a task by another process."""
        report = self._reports.get((component, name))
        return report if report is not None and report.process != self._process else None

    async def ask(self, to: Task | None, body: bytes, *, seconds: float) -> dict[str, bytes]:
        """Has the owner of a task execute a command, or every other process; the answers by process.

        What has not answered in time is missing; a command to a task is executed all the same, if late.
        Raises JournalUnavailable when it could not be written.
        """
        ident = secrets.token_hex(8)
        command = _Command(id=ident, at=self._clock.now(), sender=self._process, to=to, body=body)
        answers = self._answers[ident] = {}
        wanted = set(self.peers) if to is None else set()
        try:
            await self._broker.post(self._topic, [Record(self._topic, 0, _key("command", ident), _encode(command))])
            try:
                async with asyncio.timeout(seconds), self._answered:
                    await self._answered.wait_for(
                        lambda: bool(answers) if to is not None else wanted <= answers.keys() | self._gone(wanted)
                    )
            except TimeoutError:
                pass
            gone = [Record(self._topic, 0, _key("answer", ident, process), None) for process in answers]
            if to is None:
                gone.append(Record(self._topic, 0, _key("command", ident), None))
            if gone:
                await self._post(gone)
            return answers
        finally:
            del self._answers[ident]

    def _gone(self, processes: set[str]) -> set[str]:
        return processes - self.peers.keys()


def _key(*words: str) -> bytes:
    return msgspec.json.encode(words)
