"""What a page means to the ledger: diffed and committed, one page of a source at a time, whoever read it.

Live polling, backfill and sweep read beside each other; only here do they meet. Knows neither queries nor schedules.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec
import structlog

from relay.clock import Clock, Instant
from relay.errors import SourceError
from relay.eset.budget import Lane
from relay.incidents import BadRecord, Diff, Event, Known, Observed, Scope, diff, missing
from relay.journal import Absence, PageCommit, Progress, SourceLease
from relay.logs import REPEAT_SECONDS, Repeats
from relay.passes import IncidentApi, Reader, Step
from relay.states import Mode, View
from relay.words import one_line

log = structlog.get_logger()

ENRICH_SECONDS = 30.0
"""How long the incidents of one page may take to be asked for by themselves; what is not there by then goes without."""
ASKED_AT_ONCE = 4
BAD_TOLD = 5
"""So many unreadable records of one page get a line of their own."""
BAD_REMEMBERED = 1000
"""Polls overlap: a record that was told of is read again, and says nothing new."""

Place = Callable[[Progress, Step], Progress]
"""The progress once a page is committed."""


class PollObserver(Protocol):
    """Is told what happened while reading; counts it."""

    def read(self, incidents: int) -> None:
        """A page with so many incidents was read."""
        ...

    def emitted(self, events: Sequence[Event]) -> None:
        """These events are durable."""
        ...

    def noticed(self, *, stale: int, silent: int, bad: int, late: int) -> None:
        """Older versions that were ignored, changes without a new update time, unreadable records, late arrivals."""
        ...

    def skewed(self, seconds: float) -> None:
        """The server's clock less ours."""
        ...

    def reads(self, view: View, mode: Mode) -> None:
        """This is how the view is read from now on."""
        ...

    def complete_up_to(self, instant: Instant) -> None:
        """Every page up to there is committed."""
        ...

    def backfilled_up_to(self, instant: Instant) -> None:
        """The past is read up to there."""
        ...

    def suspended(self, suspended: bool) -> None:
        """More incidents are missing than is believed, or no longer."""
        ...


class PollReport(msgspec.Struct, kw_only=True):
    """What one poll, backfill or sweep read and found."""

    pages: int = 0
    incidents: int = 0
    events: int = 0
    stale: int = 0
    silent: int = 0
    late: int = 0
    bad: int = 0


class _Question(msgspec.Struct, frozen=True, kw_only=True):
    """Why an incident has to be asked for by itself.

    enrich: for the fields that the list leaves out. doubt: the page may be older than what the ledger knows. proof: the
    page shows an older version than the ledger, and may be right.
    """

    uuid: str
    why: Literal["enrich", "doubt", "proof"]
    sequence: int


class _Single(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of one incident. `seen` is None when there is none, or no answer."""

    question: _Question
    seen: Observed | None
    asked: float
    answered: float


class _Found(msgspec.Struct, kw_only=True):
    """What one page changes, unless there are questions first."""

    rows: dict[str, Known] = {}
    answered: dict[str, float] = {}
    events: list[Event] = []
    bad: list[BadRecord] = []
    questions: list[_Question] = []
    stale: int = 0
    silent: int = 0
    late: int = 0


class Intake:
    """The one place of a source where its ledger changes."""

    def __init__(
        self,
        *,
        api: IncidentApi,
        reader: Reader,
        lease: SourceLease,
        enrich: bool,
        clock: Clock,
        observer: PollObserver,
    ) -> None:
        self._api = api
        self._reader = reader
        self._lease = lease
        self._enrich = enrich
        self._clock = clock
        self._observer = observer
        self._serial = asyncio.Lock()
        self._log = log.bind(source=lease.name)
        self._unanswered = Repeats(clock, rest_seconds=REPEAT_SECONDS)
        self._told_bad: dict[str, None] = {}
        self._changed: dict[str, float] = {}
        """When the sight that last changed a row was answered; kept while pages asked for earlier are under way."""
        self.skew_seconds: float | None = None
        """The server's clock less ours, as of the last answer that told."""

    @property
    def progress(self) -> Progress:
        """The source's progress; there is one once the source is introduced."""
        assert self._lease.progress is not None  # noqa: S101  # the poller introduces the source first
        return self._lease.progress

    async def absorb(
        self, step: Step, report: PollReport, *, lane: Lane, place: Place, before: Instant | None
    ) -> Sequence[Event]:
        """Diffs one page and commits what it changes, with the place where its pass stands; the events it made.

        What was updated before the instant `before` and is new came late. Raises SourceError, JournalError.
        """
        try:
            report.pages += 1
            report.incidents += step.sheet.count
            self._observer.read(step.sheet.count)
            if step.skew_seconds is not None:
                self.skew_seconds = step.skew_seconds
                self._observer.skewed(step.skew_seconds)
            found = await self._commit_page(step, lane, place, before)
        finally:
            self._reader.landed(step.flight)
        report.events += len(found.events)
        report.stale += found.stale
        report.silent += found.silent
        report.late += found.late
        report.bad += len(found.bad)
        self._observer.noticed(stale=found.stale, silent=found.silent, bad=len(found.bad), late=found.late)
        self._observer.emitted(found.events)
        self._tell_of_bad(found.bad)
        return found.events

    async def record(self, change: Callable[[Progress], Progress]) -> Progress:
        """Commits a change of the progress alone. Raises JournalError."""
        async with self._serial:
            progress = self._with_ways(change(self.progress))
            await self._lease.commit(PageCommit(progress=progress))
        return progress

    async def emit_missing(
        self, absences: Sequence[Absence], answered: float, change: Callable[[Progress, int], Progress]
    ) -> int:
        """Emits `missing` for those of which the ledger has heard nothing new; returns how many.

        `answered` is when the API denied the first of them, by the monotonic clock.
        """
        async with self._serial:
            scope = self._scope()
            known = await self._lease.known([absence.uuid for absence in absences])
            now = self._clock.now()
            rows: dict[str, Known] = {}
            events: list[Event] = []
            for absence in absences:
                row = known.get(absence.uuid)
                if row is None or row.gone or row.sequence != absence.sequence:
                    continue
                found = missing(row, scope=scope, now=now)
                if found.row is not None:
                    rows[absence.uuid] = found.row
                if found.event is not None:
                    events.append(found.event)
            progress = self._with_ways(change(self.progress, len(events)))
            await self._lease.commit(PageCommit(progress=progress, rows=list(rows.values()), events=events))
            self._settled(dict.fromkeys(rows, answered))
        self._observer.emitted(events)
        return len(events)

    def _tell_of_bad(self, bad: Sequence[BadRecord]) -> None:
        """What could not be read, by the id under which it is kept; never what it says: that may be anybody's words."""
        new = {one.id: one for one in bad if one.id not in self._told_bad}
        for number, (ident, one) in enumerate(new.items()):
            self._told_bad[ident] = None
            if number < BAD_TOLD:
                self._log.warning(
                    "record became a dead letter",
                    dead_letter_id=ident,
                    uuid=one_line(one.uuid, characters=64),
                    reason=one.reason,
                )
        if len(new) > BAD_TOLD:
            self._log.warning("more records became dead letters", records=len(new) - BAD_TOLD)
        while len(self._told_bad) > BAD_REMEMBERED:
            del self._told_bad[next(iter(self._told_bad))]

    # -- one page -------------------------------------------------------------------------------------------------

    async def _commit_page(self, step: Step, lane: Lane, place: Place, before: Instant | None) -> _Found:
        singles: dict[str, _Single] = {}
        while True:
            async with self._serial:
                found = await self._compare(step, singles, lane, before)
                if not found.questions:
                    progress = self._with_ways(place(self.progress, step))
                    if found.rows or found.events or found.bad or lane != "live":
                        rows = list(found.rows.values())
                        await self._lease.commit(
                            PageCommit(progress=progress, rows=rows, events=found.events, bad=found.bad)
                        )
                        self._settled(found.answered)
                    self._reader.remember(step.sheet)
                    return found
            singles |= await self._ask(found.questions, lane)

    async def _compare(self, step: Step, singles: Mapping[str, _Single], lane: Lane, before: Instant | None) -> _Found:
        found = _Found()
        if step.sheet.page is None:
            return found
        found.bad = step.sheet.page.bad
        scope = self._scope()
        rows = await self._lease.known([seen.uuid for seen in step.sheet.page.observed])
        now = self._clock.now()
        for listed in step.sheet.page.observed:
            row = rows.get(listed.uuid)
            single = singles.get(listed.uuid)
            seen = listed if single is None else _better(listed, single)
            if seen is None:
                continue
            proven = single is not None and row is not None and single.question.sequence == row.sequence
            result = diff(row, seen, scope=scope, now=now, proven=proven and seen is not listed)
            if result.verdict == "unchanged":
                continue
            asked = step.flight.asked if single is None or seen is listed else single.asked
            question = self._question(result, row=row, seen=seen, asked=asked, single=single, lane=lane)
            if question is not None:
                found.questions.append(question)
                continue
            found.stale += result.verdict == "stale"
            found.silent += result.verdict == "silent"
            if result.row is not None:
                rows[seen.uuid] = found.rows[seen.uuid] = result.row
                found.answered[seen.uuid] = step.flight.answered if single is None else single.answered
            if result.event is not None:
                event = result.event
                if self._enrich and lane == "live" and single is not None:
                    event = msgspec.structs.replace(event, enriched=seen is not listed)
                found.events.append(event)
                newer = row is None or seen.updated > row.updated
                found.late += before is not None and newer and not (row and row.gone) and seen.updated < before
        return found

    def _question(
        self, result: Diff, *, row: Known | None, seen: Observed, asked: float, single: _Single | None, lane: Lane
    ) -> _Question | None:
        """What has to be known of this incident before the page can be committed."""
        sequence = row.sequence if row is not None else 0
        event = result.event
        if event is not None and row is not None and asked < self._changed.get(seen.uuid, asked):
            return _Question(uuid=seen.uuid, why="doubt", sequence=sequence)
        if single is not None:
            return None
        if result.verdict == "stale" and lane == "sweep":
            return _Question(uuid=seen.uuid, why="proof", sequence=sequence)
        if self._enrich and lane == "live" and event is not None and event.origin == "poll":
            return _Question(uuid=seen.uuid, why="enrich", sequence=sequence)
        return None

    def _settled(self, answered: Mapping[str, float]) -> None:
        """Rows have changed: no page is remembered, and pages asked for earlier are older than they look."""
        if answered:
            self._reader.forget()
        oldest = self._reader.oldest_flight()
        self._changed = {uuid: at for uuid, at in self._changed.items() if at > oldest}
        self._changed.update((uuid, at) for uuid, at in answered.items() if at > oldest)

    def _scope(self) -> Scope:
        progress = self.progress
        return Scope(source=self._lease.name, start_from=progress.start_from, first_start=progress.first_start)

    def _with_ways(self, progress: Progress) -> Progress:
        if progress.ways == self._reader.ways:
            return progress
        return msgspec.structs.replace(progress, ways=dict(self._reader.ways))

    # -- one incident ---------------------------------------------------------------------------------------------

    async def _ask(self, questions: Sequence[_Question], lane: Lane) -> dict[str, _Single]:
        """Asks for each by itself. Raises SourceError when a live poll must know and gets no answer."""
        turns = asyncio.Semaphore(ASKED_AT_ONCE)
        started = self._clock.monotonic()

        async def ask(question: _Question) -> _Single:
            async with turns:
                seconds = ENRICH_SECONDS - (self._clock.monotonic() - started) if question.why == "enrich" else None
                return await self._ask_one(question, lane, seconds)

        singles: list[_Single] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(question), name=f"get {question.uuid}") for question in questions]
            singles = [task.result() for task in tasks]
        except* SourceError as failures:
            raise _first(failures) from None
        return {single.question.uuid: single for single in singles}

    async def _ask_one(self, question: _Question, lane: Lane, seconds: float | None) -> _Single:
        asked = self._clock.monotonic()
        seen: Observed | None = None
        try:
            async with asyncio.timeout(seconds):
                seen = await self._api.get_incident(question.uuid, lane="enrich" if question.why == "enrich" else lane)
        except (SourceError, TimeoutError) as error:
            if question.why == "doubt" and lane == "live":
                raise
            reason = error.reason if isinstance(error, SourceError) else "timeout"
            request_id = error.request_id if isinstance(error, SourceError) else ""
            repeat = self._unanswered.again(reason)
            write = self._log.info if repeat.due else self._log.debug
            write(
                "incident not answered",
                uuid=question.uuid,
                reason=reason,
                request_id=request_id,
                failures=repeat.times,
                since=repeat.since,
            )
        return _Single(question=question, seen=seen, asked=asked, answered=self._clock.monotonic())


def _first(failures: BaseExceptionGroup[SourceError]) -> SourceError:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SourceError)  # noqa: S101  # except* took nothing else
    return error


def _better(listed: Observed, single: _Single) -> Observed | None:
    """What counts once the incident was asked for by itself; None: it cannot be told, another pass will see it."""
    if single.question.why == "enrich":
        return single.seen if single.seen is not None and single.seen.updated >= listed.updated else listed
    if single.seen is None and single.question.why == "doubt":
        return None
    return single.seen or listed
