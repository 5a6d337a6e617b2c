"""The sweep: everything by create time, compared with the ledger slice by slice. Finds what polls cannot see.

Late arrivals, silent edits and disappearances of any age; and incidents that went back, which nobody else believes. It
reads beside live polling, at most a quarter of the rate, and goes on where it stood after a restart.
"""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

import msgspec
import structlog

from relay.clock import Clock, Instant
from relay.errors import BadAnswer, QueryRefused
from relay.eset.budget import Lane
from relay.intake import Intake, PollObserver, PollReport
from relay.journal import Absence, PassState, Progress, SourceLease, SweepResult, SweepState
from relay.passes import OVERLAP, IncidentApi, Reader, Step
from relay.states import VIEWS

log = structlog.get_logger()

VIEW: Final = "create_time"
LANE: Final[Lane] = "sweep"
EARLIEST: Final[Instant] = -(1 << 62)
LEAST_LIMIT: Final = 20
LIMIT_RATIO: Final = 0.01
"""More than LEAST_LIMIT and this share of the ledger missing is taken for lost rights or another region."""
EMITTED_AT_ONCE: Final = 50
"""So few, so that little time passes between the API's 404 and the event."""


class Sweep:
    """Sweeps one source, one at a time."""

    def __init__(
        self,
        *,
        api: IncidentApi,
        reader: Reader,
        intake: Intake,
        lease: SourceLease,
        clock: Clock,
        observer: PollObserver,
    ) -> None:
        self._api = api
        self._reader = reader
        self._intake = intake
        self._lease = lease
        self._clock = clock
        self._observer = observer

    async def run(self) -> PollReport:
        """One whole sweep, or the rest of one that was interrupted. Raises SourceError, JournalError."""
        report = PollReport()
        state = self._intake.progress.sweep
        if state is None:
            for view in VIEWS:
                await self._reader.climb(view, LANE, anew=True)
            state = await self._begin()
        while not state.reading.done:
            await self._reader.climb(VIEW, LANE)
            try:
                state = await self._read(state, report)
            except (QueryRefused, BadAnswer) as error:
                if not await self._reader.lower(VIEW, error, LANE):
                    raise
                state = await self._begin()
        await self._conclude(state, report)
        return report

    async def accept_missing(self) -> None:
        """Lets the next sweep believe any number of disappearances. Raises JournalError."""
        await self._intake.record(lambda progress: msgspec.structs.replace(progress, accept_missing=True, sweep=None))

    async def _begin(self) -> SweepState:
        known = await self._lease.count()
        progress = self._intake.progress
        state = SweepState(
            began=self._clock.now(),
            reading=PassState(view=VIEW, cursor=0),
            complete_before=progress.complete_up_to or progress.first_start,
            edge=EARLIEST,
            limit=None if progress.accept_missing else max(LEAST_LIMIT, int(known * LIMIT_RATIO)),
        )
        await self._intake.record(lambda progress: msgspec.structs.replace(progress, sweep=state))
        return state

    # -- reading --------------------------------------------------------------------------------------------------

    async def _read(self, state: SweepState, report: PollReport) -> SweepState:
        """Everything, and after each slice of time what the ledger holds of it beside what was shown."""
        seen: set[int] = set()
        ended: Instant | None = None
        async with aclosing(self._reader.read(state.reading, LANE, remembered=False)) as steps:
            async for step in steps:
                keyset = step.mode == "keyset"
                if ended is None and not keyset:  # a listing can only be read as a whole
                    state = msgspec.structs.replace(state, edge=EARLIEST, absences=())
                ended = None if keyset else step.as_of
                seen.update(hash(row.uuid) for row in (step.sheet.page.observed if step.sheet.page else ()))
                if keyset and (step.state.done or step.state.cursor > state.reading.cursor):
                    state = await self._compare(state, _edge(step), seen, report)
                    seen = set()
                state = msgspec.structs.replace(state, reading=step.state)
                state = await self._absorb(step, state, report)
        if ended is not None:
            state = await self._compare(state, ended, seen, report)
        state = msgspec.structs.replace(state, reading=msgspec.structs.replace(state.reading, done=True))
        await self._intake.record(lambda progress: msgspec.structs.replace(progress, sweep=state))
        return state

    async def _absorb(self, step: Step, state: SweepState, report: PollReport) -> SweepState:
        late, silent = report.late, report.silent

        def place(progress: Progress, _step: Step) -> Progress:
            return msgspec.structs.replace(progress, sweep=state)

        await self._intake.absorb(step, report, lane=LANE, place=place, before=state.complete_before)
        return msgspec.structs.replace(
            state, late=state.late + report.late - late, silent=state.silent + report.silent - silent
        )

    async def _compare(self, state: SweepState, edge: Instant, seen: set[int], report: PollReport) -> SweepState:
        """What the ledger knows up to `edge` and the list did not show: kept until the end, within the limit.

        Without a limit it is dealt with at once, and the edge moves only after that.
        """
        if edge <= state.edge:
            return state
        absences = list(state.absences)
        async for row in self._lease.known_created(state.edge, edge):
            if row.gone or hash(row.uuid) in seen:
                continue
            absences.append(Absence(uuid=row.uuid, sequence=row.sequence))
            if state.limit is None and len(absences) >= EMITTED_AT_ONCE:
                state = await self._emit(absences, state, report)
                absences = []
            elif state.limit is not None and len(absences) > state.limit:
                break
        if state.limit is None:
            state = await self._emit(absences, state, report)
            absences = []
        return msgspec.structs.replace(state, edge=edge, absences=tuple(absences))

    # -- what is missing ------------------------------------------------------------------------------------------

    async def _conclude(self, state: SweepState, report: PollReport) -> None:
        suspended = state.limit is not None and len(state.absences) > state.limit
        if suspended:
            log.error(
                "sweep suspended",
                source=self._lease.name,
                missing_more_than=state.limit,
                hint=f"if they are gone for good: relay sources accept-missing {self._lease.name}",
            )
        else:
            state = await self._emit_missing(state, report)
        result = SweepResult(
            finished=self._clock.now(),
            incidents=report.incidents,
            late=state.late,
            silent=state.silent,
            missing=state.missing,
            suspended=suspended,
        )
        await self._intake.record(_ended(result))
        self._observer.suspended(suspended)

    async def _emit_missing(self, state: SweepState, report: PollReport) -> SweepState:
        """Everything kept, a few at a time."""
        while state.absences:
            few, rest = state.absences[:EMITTED_AT_ONCE], state.absences[EMITTED_AT_ONCE:]
            state = await self._emit(few, msgspec.structs.replace(state, absences=rest), report)
        return state

    async def _emit(self, absences: Sequence[Absence], state: SweepState, report: PollReport) -> SweepState:
        """Gone from the list, and 404 by GET: `missing`. `state` is committed with the events."""
        denied = await self._denied(absences)

        def change(progress: Progress, number: int) -> Progress:
            return msgspec.structs.replace(progress, sweep=_counted(state, number))

        number = await self._intake.emit_missing(denied, self._clock.monotonic(), change)
        report.events += number
        return _counted(state, number)

    async def _denied(self, absences: Sequence[Absence]) -> list[Absence]:
        """Those of which the API says by itself that they do not exist."""
        return [absence for absence in absences if await self._api.get_incident(absence.uuid, lane=LANE) is None]


def _counted(state: SweepState, missing: int) -> SweepState:
    return msgspec.structs.replace(state, missing=state.missing + missing)


def _edge(step: Step) -> Instant:
    """Up to where this keyset page, and those before it, have shown everything."""
    if not step.state.done:
        return step.state.cursor + OVERLAP
    last = step.sheet.last
    return step.as_of if not step.sheet.next_page_token or last is None else min(step.as_of, last)


def _ended(result: SweepResult) -> Callable[[Progress], Progress]:
    def change(progress: Progress) -> Progress:
        accepted = progress.accept_missing and result.suspended
        return msgspec.structs.replace(progress, sweep=None, swept=result, accept_missing=accepted)

    return change
