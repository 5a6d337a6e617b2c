"""What the processes of one relay say of their tasks, so that each can tell of all. On a file there is only one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from relay.clock import Clock
from relay.journal import Component, Journal, Task
from relay.settings import Settings
from relay.status import ProcessFacts, SinkFacts, SourceFacts

T = TypeVar("T", SourceFacts, SinkFacts)
_UNHELD: Final = "no replica holds it at present"


class _Process(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says of itself; `wrote` are events that its polls wrote into each sink within the last hour."""

    used_requests_per_second: float = 0.0
    wrote: dict[str, tuple[int, int | None]] = {}


class Peers:
    """The tasks of the whole relay, as this process knows them."""

    def __init__(self, settings: Settings, *, journal: Journal, clock: Clock) -> None:
        self._settings = settings
        self._journal = journal
        self._clock = clock

    async def publish(
        self,
        sources: Sequence[SourceFacts],
        sinks: Sequence[SinkFacts],
        *,
        used_requests_per_second: float,
        wrote: Mapping[str, tuple[int, int | None]],
    ) -> None:
        """Tells the others of this process and its tasks. Never raises: it is told again soon."""
        said = _Process(used_requests_per_second=round(used_requests_per_second, 2), wrote=dict(wrote))
        reports: dict[Task, bytes] = {("source", one.name): msgspec.msgpack.encode(one) for one in sources}
        reports |= {("sink", one.name): msgspec.msgpack.encode(one) for one in sinks}
        await self._journal.publish(msgspec.msgpack.encode(said), reports)

    def sources(self, own: Sequence[SourceFacts]) -> list[SourceFacts]:
        """Every source: what this process knows of its own, and the last word of others on theirs."""
        held = {one.name: one for one in own}
        return [
            held.get(name) or self._told("source", name, SourceFacts) or self._no_source(name)
            for name in self._settings.sources
        ]

    def sinks(self, own: Sequence[SinkFacts], wrote: Mapping[str, tuple[int, int | None]]) -> list[SinkFacts]:
        """Every sink, likewise; what other processes wrote into it with their polls is added."""
        held = {one.name: one for one in own}
        written = [wrote, *(process.wrote for process in self._processes().values())]
        found = [
            held.get(name) or self._told("sink", name, SinkFacts) or self._no_sink(name)
            for name in self._settings.sinks
        ]
        return [_with_written(one, [some[one.name] for some in written if one.name in some]) for one in found]

    def processes(self) -> list[ProcessFacts]:
        """The others that live."""
        return [
            ProcessFacts(
                name=peer.name,
                reported=peer.at,
                sources_held=sum(component == "source" for component, _name in peer.tasks),
                sinks_held=sum(component == "sink" for component, _name in peer.tasks),
            )
            for _name, peer in sorted(self._journal.peers.items())
        ]

    def used_requests_per_second(self) -> float:
        """What the others send to ESET, together."""
        return sum(process.used_requests_per_second for process in self._processes().values())

    def _processes(self) -> dict[str, _Process]:
        found = {}
        for name, peer in self._journal.peers.items():
            try:
                found[name] = msgspec.msgpack.decode(peer.facts, type=_Process)
            except msgspec.MsgspecError:  # of another release
                continue
        return found

    def _told(self, component: Component, name: str, kind: type[T]) -> T | None:
        """The last word of another process; None when there is none that this release can read."""
        report = self._journal.report(component, name)
        if report is None or report.process not in self._journal.peers:
            return None
        try:
            return msgspec.msgpack.decode(report.body, type=kind)
        except msgspec.MsgspecError:
            return None

    def _no_source(self, name: str) -> SourceFacts:
        source = self._settings.sources[name]
        return SourceFacts(
            name=name,
            region=source.region or "",
            state="starting",
            since=self._clock.now(),
            error=_UNHELD,
            hint="",
            failures=0,
            last_poll=None,
            next_poll=None,
            poll_interval_seconds=source.poll_interval.total_seconds(),
            throttled_until=None,
            complete_up_to=None,
            start_from=None,
            first_start=None,
            backfill="not_wanted",
            backfill_up_to=None,
            ledger_incidents=0,
            clock_skew_seconds=None,
        )

    def _no_sink(self, name: str) -> SinkFacts:
        return SinkFacts(
            name=name,
            type=self._settings.sinks[name].type,
            target="",
            state="ok",
            since=None,
            reason=_UNHELD,
            failures=0,
            next_try=None,
            paused_until=None,
            waiting=0,
            oldest=None,
            last_success=None,
            delivered=0,
            dead_letters=0,
        )


def _with_written(sink: SinkFacts, written: Sequence[tuple[int, int | None]]) -> SinkFacts:
    if not written:
        return sink
    times = [at for _events, at in written if at is not None]
    times += [sink.last_success] if sink.last_success is not None else []
    events = sink.delivered + sum(events for events, _at in written)
    return replace(sink, delivered=events, last_success=max(times, default=None))
