"""The contract of the journal: where changes, ledger and progress become durable in one transaction.

Each task (a source, or a sink) has one owner, who holds its lease; only a held lease writes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from relay.clock import Instant
from relay.incidents import BadRecord, Event, Known
from relay.sinks import Delivery, Position
from relay.states import Mode, SinkState, View

FilterTimes = Literal["milliseconds", "offset", "seconds", "seconds_offset"]
"""How a time is written in a filter, best first: `…00.123Z`, `…00.123+00:00`, `…00Z`, `…00+00:00`."""


class Way(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one view is read, and why not better. `tried` is when that was found out, None when it is only hoped.

    `by_uuid`: rows of one time may be asked for in the order of their uuids. `since`: when the mode was entered.
    """

    mode: Mode = "keyset"
    times: FilterTimes = "milliseconds"
    by_uuid: bool = True
    sure: bool = True
    tried: Instant | None = None
    since: Instant | None = None
    reason: str = ""


class PassState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where one reading of one view stands: resumed from `cursor` after a failure or a restart.

    `since` is where the pass began (None: at `cursor`); a way of reading that has to change begins there again. `until`
    is None before the first answer; the pass ends after the page that shows a later row. `first` is the first time that
    was shown.
    """

    view: View
    cursor: Instant
    since: Instant | None = None
    first: Instant | None = None
    until: Instant | None = None
    done: bool = False


class PollState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A live poll in hand: both views, and the instant up to which it will be complete (None: no answer yet)."""

    passes: tuple[PassState, ...]
    as_of: Instant | None = None


class Absence(msgspec.Struct, frozen=True, array_like=True):
    """An incident that the list no longer shows, as the ledger knew it then: what came later proves it wrong."""

    uuid: str
    sequence: int


class SweepState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sweep in hand.

    `edge`: what was created before it is compared with the ledger. `complete_before`: what was updated before it and
    is met for the first time came late. `limit`: how many may be missing before that is taken for a fault; None: any
    number, a person said so. `absences` are kept up to one more than that.
    """

    began: Instant
    reading: PassState
    complete_before: Instant
    edge: Instant
    limit: int | None
    absences: tuple[Absence, ...] = ()
    late: int = 0
    silent: int = 0
    missing: int = 0


class SweepResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the last sweep ended. `suspended`: more were missing than is believed; none was emitted."""

    finished: Instant
    incidents: int = 0
    late: int = 0
    silent: int = 0
    missing: int = 0
    suspended: bool = False


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one source beside its incidents; stored with every page.

    `identity` says which account and server this label belongs to, so that another tenant under an old label is
    noticed. `complete_up_to` is None until the first poll has read every page of both views. `backfill` holds the
    passes that read the past; empty when none is wanted. `backfill_incidents` counts the rows that they read, some of
    them twice where pages overlap; `backfill_finished` is when the last of them ended. `ways` says how each view is
    read, `sweep` holds a sweep in hand, `swept` how the last one ended; with `accept_missing` the next one believes any
    number of disappearances.
    """

    identity: str
    first_start: Instant
    start_from: Instant
    complete_up_to: Instant | None = None
    poll: PollState | None = None
    backfill: tuple[PassState, ...] = ()
    ways: dict[View, Way] = {}
    sweep: SweepState | None = None
    swept: SweepResult | None = None
    accept_missing: bool = False
    backfill_incidents: int = 0
    backfill_finished: Instant | None = None

    @property
    def backfill_done(self) -> bool:
        """True when every incident of the past has been read."""
        return all(one.done for one in self.backfill)


class PageCommit(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one page changes: written all or none."""

    progress: Progress
    rows: Sequence[Known] = ()
    events: Sequence[Event] = ()
    bad: Sequence[BadRecord] = ()


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is remembered of a sink's far side across a restart.

    `reason` is text, `label` the same from a closed set. `told`: the sink named in `notify` knows that this one is
    parked.
    """

    state: SinkState = "ok"
    since: Instant | None = None
    failures: int = 0
    paused_until: Instant | None = None
    reason: str = ""
    label: str = ""
    told: bool = False


OutcomeKind = Literal["done", "skipped", "superseded", "retry", "held", "dead"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of claimed deliveries. `due` goes with retry, `reason` with retry and dead.

    `attempts` is how often a delivery that is tried again counts as tried; None: once more than before.
    """

    positions: Collection[int]
    kind: OutcomeKind
    due: Instant | None = None
    reason: str = ""
    attempts: int | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries in hand. `upto` is the position that is reached once they are settled; None out of sequence."""

    deliveries: list[Delivery]
    upto: int | None


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for one sink. `oldest` is when the oldest waiting event was committed; None when nothing waits.

    `retrying`: how many of them were tried before.
    """

    events: int
    oldest: Instant | None
    retrying: int = 0


class Buried(msgspec.Struct, frozen=True, kw_only=True):
    """How many dead letters one component has, and since when; None when it has none."""

    letters: int
    since: Instant | None


Component = Literal["source", "sink"]


Task = tuple[Component, str]
"""A source or a sink, by its label."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """What another process of this relay has said of itself. `facts` is for whoever knows their shape.

    `used_bytes` is what the events take up that its sinks have not taken yet.
    """

    name: str
    at: Instant
    tasks: tuple[Task, ...]
    used_bytes: int = 0
    facts: bytes = b""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has said of one of its tasks, at that instant."""

    task: Task
    process: str
    at: Instant
    body: bytes


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """What was refused for good. `component` is `source` or `sink`, `name` its label, `position` 0 for a bad record."""

    id: str
    component: Component
    name: str
    position: int
    reason: str
    attempts: int
    committed: Instant
    body: bytes

    @property
    def event(self) -> Delivery:
        """The event that a sink refused. A source's body is the record that could not be read, and no event."""
        return msgspec.msgpack.decode(self.body, type=Delivery)


class DeadLetters(msgspec.Struct, frozen=True, kw_only=True):
    """How many there are, and the newest of them, newest first."""

    total: int
    newest: list[DeadLetter]


class Redriven(msgspec.Struct, frozen=True, kw_only=True):
    """How many dead letters wait again, and the ids of those left where they are.

    These are `older`: a newer version of their incident has been sent, or is on its way.
    """

    events: int
    older: tuple[str, ...] = ()


class StoredSink(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal holds of one sink. `removed`: since when no relay has had it in its configuration."""

    name: str
    endpoint: EndpointStatus
    backlog: Backlog
    dead: int
    removed: Instant | None = None


class StoredSource(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal holds of one source. `progress` is None when nothing of it was ever read."""

    name: str
    progress: Progress | None
    incidents: int
    dead: int


class Tended(msgspec.Struct, frozen=True, kw_only=True):
    """What housekeeping did: events deleted, and events expired per sink and (raw) severity.

    `forgotten` names sinks that left the configuration, and whose `keep` has passed since.
    """

    deleted: int
    expired: dict[str, dict[str, int]]
    forgotten: tuple[str, ...] = ()


class JournalUse(msgspec.Struct, frozen=True, kw_only=True):
    """Space: pages in use, in bytes, against the limit."""

    used_bytes: int
    limit_bytes: int
    oldest_event: Instant | None


class SourceLease(Protocol):
    """The right to poll one source."""

    name: str
    progress: Progress | None

    async def known(self, uuids: Sequence[str]) -> dict[str, Known]:
        """What the ledger holds of these; includes every commit that returned."""
        ...

    def known_created(self, start: Instant, end: Instant) -> AsyncIterator[Known]:
        """The incidents created from `start` to before `end`, ascending by time and uuid: for the sweep.

        What is committed meanwhile may or may not be among them.
        """
        ...

    async def count(self) -> int:
        """How many incidents the ledger holds of this source."""
        ...

    async def commit(self, page: PageCommit) -> None:
        """Writes all or none; durable on return, and only then visible to sinks.

        May be given again after an unknown outcome: an event whose sequence the ledger already has is not added twice.
        Raises JournalFull, JournalUnavailable, LeaseLost.
        """
        ...

    async def room(self) -> None:
        """Returns when a commit can succeed again."""
        ...

    async def release(self) -> None:
        """Nothing is in flight any more, and nothing will be."""
        ...

    async def buried(self) -> Buried:
        """The records of this source that could not be read."""
        ...

    def dead_letters(self) -> AsyncIterator[DeadLetter]:
        """Records that could not be read, oldest first."""
        ...


class SinkLease(Protocol):
    """The right to send for one sink."""

    name: str
    endpoint: EndpointStatus

    async def resume(self, position: Position) -> bool:
        """Takes over what an atomic sink's far side already holds: nothing up to there is claimed again.

        A position of another journal is ignored: False. One beyond the end of this journal (a restored backup) lets its
        numbering go on above it.
        """
        ...

    async def claim(self, limit: int, *, in_order: bool, wait: bool = True) -> Claim:
        """Hands out up to `limit` deliveries, oldest first; they are in flight until settled.

        Waits for work; without `wait` it may return nothing. `in_order`: a run of the journal without holes, several
        versions of one incident included; what is due again comes in batches of its own. Otherwise at most one
        unfinished delivery an incident.
        """
        ...

    async def later_versions(self, deliveries: Sequence[Delivery]) -> dict[int, list[Delivery]]:
        """Versions of the same incidents that wait behind these, by position; as far as events were looked at.

        May be settled like claimed ones.
        """
        ...

    async def settle(
        self, outcomes: Sequence[Outcome], endpoint: EndpointStatus | None = None, *, durable: bool = True
    ) -> None:
        """Records what became of claimed deliveries, in one transaction.

        Without `durable`, what was done may be forgotten when the machine loses its power: right for sinks whose far
        side remembers the position itself. Raises JournalUnavailable, LeaseLost.
        """
        ...

    async def backlog(self) -> Backlog:
        """What waits, in flight included."""
        ...

    async def buried(self) -> Buried:
        """The dead letters of this sink."""
        ...

    def dead_letters(self) -> AsyncIterator[DeadLetter]:
        """Oldest first."""
        ...

    async def release(self) -> None:
        """Nothing is in flight any more, and nothing will be."""
        ...

    async def redrive(self, ids: Collection[str] | None, *, superseded: bool = False) -> Redriven:
        """Lets dead letters wait again, all of them without `ids`; they are dead letters no more.

        A letter whose event has left the journal is sent all the same. One that is older than what was sent of its
        incident stays, unless `superseded`. What waits again is kept for `keep` from now on, keeps its place in the
        order of its incident, and survives `resume`. Raises JournalUnavailable, LeaseLost.
        """
        ...

    async def replay(self, since: Instant, until: Instant, uuid: str | None = None) -> int:
        """Sends again what was committed from `since` to before `until`, as far as the journal still holds it.

        Only what this sink has finished with: what waits comes anyway, dead letters are redriven. Such a delivery has
        the same id, and `replay` as its origin, in its body as well. It waits for no other version and lets none wait;
        live events and replays take turns. The position stays where it is. Returns how many events that are. Raises
        JournalFull, JournalUnavailable, LeaseLost.
        """
        ...


class Journal(Protocol):
    """Durable home of one relay."""

    id: str

    async def open(self) -> None:
        """Locks or joins, verifies, migrates. Raises JournalLocked, JournalIncompatible, JournalUnavailable."""
        ...

    def holding(self, component: Component, name: str) -> int | None:
        """A number for as long as this process owns the task, another one each time that it gets it; else None."""
        ...

    async def reassigned(self, seen: int) -> int:
        """Returns when what is held differs from what it was when this returned `seen`; -1: at once.

        Raises JournalError when this process can hold nothing any more.
        """
        ...

    async def settled(self) -> None:
        """Returns when this process holds all that it is to hold for now."""
        ...

    async def source(self, name: str) -> SourceLease:
        """The lease of this source; waits until this process owns it. Raises LeaseLost."""
        ...

    async def sink(self, name: str, *, start: Literal["now", "earliest"], keep_seconds: float) -> SinkLease:
        """The lease of this sink; `start` counts only the first time that the name is seen."""
        ...

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The other processes of this relay that live, by name; none where there is only one."""
        ...

    def report(self, component: Component, name: str) -> Report | None:
        """The last that another process has said of a task; None when there is no such word."""
        ...

    async def publish(self, facts: bytes, reports: Mapping[Task, bytes]) -> None:
        """Tells the other processes of this one, and of its tasks."""
        ...

    async def ask(self, to: Task | None, command: bytes, *, seconds: float) -> Mapping[str, bytes]:
        """Has the owner of a task execute a command, once, or every other process; the answers by process.

        What has not answered in time is missing. Raises JournalUnavailable when nobody was asked.
        """
        ...

    def obey(self, execute: Callable[[bytes, bool], Awaitable[bytes]]) -> None:
        """From now on, commands that other processes were given are executed by this.

        It is told as well whether the command has changed something here already, before its executor died.
        """
        ...

    def written(self) -> Mapping[str, tuple[int, Instant | None]]:
        """Sinks that are written with the polls: how much in the last hour by this process, and when last."""
        ...

    def held_sink(self, name: str) -> SinkLease | None:
        """The lease of this sink, if this process has taken it."""
        ...

    async def sinks(self) -> list[StoredSink]:
        """Every sink that the journal knows, by name; those that were removed from the configuration as well."""
        ...

    async def sources(self) -> list[StoredSource]:
        """Every source that the journal knows, by name."""
        ...

    async def latest_events(self, limit: int, *, after: int = 0) -> list[Delivery]:
        """Up to `limit` of the events committed last, newest first, of those beyond the position `after`."""
        ...

    async def latest_incidents(self, limit: int) -> list[tuple[str, Known]]:
        """Those that were met last, newest first, with the label of their source; without those that are gone."""
        ...

    async def rename_sink(self, old: str, new: str) -> None:
        """All that was kept for the old name is the new one's. No lease of either may be held.

        Raises ConfigError when there is no old one, or already something under the new one.
        """
        ...

    async def rename_source(self, old: str, new: str) -> None:
        """The same for a source: its ledger, its progress and what could not be read of it.

        Events that are already in the journal keep the old label in every part, their ids contain it; versions that
        are committed from now on carry the new one.
        """
        ...

    async def dead_letters(
        self, *, component: Component | None = None, name: str | None = None, prefix: str = "", limit: int
    ) -> DeadLetters:
        """Those of one component or of all, whose id begins with `prefix`."""
        ...

    async def discard(self, component: Component, name: str, ids: Collection[str] | None = None) -> int:
        """Forgets dead letters for good, all of them without `ids`; returns how many.

        For sources and sinks, configured or not.
        """
        ...

    async def backup(self, path: Path) -> None:
        """Writes a copy of all of it, as of now, into this file, which must be empty or absent; durable on return.

        A journal opens the copy as it is. Nothing else is done meanwhile.
        """
        ...

    def oldest_call_seconds(self) -> float:
        """For how long the oldest unfinished call has been waiting for the disk or the broker; 0 when none is."""
        ...

    async def use(self) -> JournalUse:
        """How much space is used."""
        ...

    async def tend(self) -> Tended:
        """Housekeeping: lets expire what is past its keeping, deletes what is delivered, makes room."""
        ...

    async def close(self) -> None:
        """Lets go of the file or the group."""
        ...
