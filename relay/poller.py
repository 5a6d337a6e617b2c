"""Polls, backfill and sweep of one source: which passes are read, and when the source is complete. Knows no HTTP.

What a page is: `relay.passes`. What it means to the ledger: `relay.intake`. Schedules: `relay.tasks`.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Literal

import msgspec
import structlog

from relay.clock import SECOND, Clock, Instant
from relay.errors import BadAnswer, QueryRefused
from relay.eset.budget import Lane
from relay.eset.wire import decode_page
from relay.intake import Intake, PollObserver, PollReport
from relay.journal import PageCommit, PassState, PollState, Progress, SourceLease, Way
from relay.passes import MAX_READINGS, IncidentApi, Reader, Sheet, Step, again
from relay.states import Mode, View
from relay.sweep import Sweep

log = structlog.get_logger()

StartFrom = Literal["all", "now"] | Instant

Filed = Callable[[Progress, PassState, Instant | None], Progress]
"""The progress with this pass as it now stands, and with the time of the answer, if there was one."""


class Poller:
    """Reads one source into its ledger. One poll at a time; a backfill or a sweep may run beside it."""

    def __init__(
        self,
        *,
        identity: str,
        api: IncidentApi,
        lease: SourceLease,
        start_from: StartFrom,
        lookback_seconds: float,
        page_size: int,
        enrich: bool = False,
        clock: Clock,
        observer: PollObserver,
    ) -> None:
        self._identity = identity
        self._api = api
        self._lease = lease
        self._start_from = start_from
        self._lookback = int(lookback_seconds * SECOND)
        self._clock = clock
        self._observer = observer
        self._reader = Reader(source=lease.name, api=api, page_size=page_size, clock=clock, observe=observer.reads)
        self._intake = Intake(api=api, reader=self._reader, lease=lease, enrich=enrich, clock=clock, observer=observer)
        self._sweep = Sweep(
            api=api, reader=self._reader, intake=self._intake, lease=lease, clock=clock, observer=observer
        )
        self._introduced = False
        self._introducing = asyncio.Lock()

    @property
    def ways(self) -> Mapping[View, Way]:
        """How each view is read at present."""
        return self._reader.ways

    @property
    def skew_seconds(self) -> float | None:
        """The server's clock less ours, as of the last answer that told."""
        return self._intake.skew_seconds

    # -- what the source's task calls -----------------------------------------------------------------------------

    async def introduce(self) -> Progress:
        """The source's progress; on its first start, one request finds out what time it is over there.

        `first_start` is the earlier of both clocks, so that a wrong clock here never turns live incidents into old
        ones. Raises SourceError, JournalError.
        """
        async with self._introducing:
            if self._lease.progress is None:
                return await self._begin()
            return self._lease.progress if self._introduced else await self._recognise(self._lease.progress)

    async def _begin(self) -> Progress:
        answer = await self._api.list_incidents(
            filter="", order_by="", page_size=1, decode=lambda body: _glance(len(decode_page(body).observed))
        )
        first_start = answer.as_of
        progress = Progress(
            identity=self._identity,
            first_start=first_start,
            start_from=_instant(self._start_from, first_start),
            backfill=_backfill_passes(self._start_from, first_start),
        )
        await self._lease.commit(PageCommit(progress=progress))
        self._introduced = True
        return progress

    async def _recognise(self, progress: Progress) -> Progress:
        """The progress of an earlier run; says so once when the label now stands for something else."""
        if progress.identity != self._identity:
            log.warning(
                "source has another host or user than before",
                source=self._lease.name,
                before=progress.identity,
                now=self._identity,
                hint="a label stands for one tenant for ever: another tenant needs another label",
            )
            progress = msgspec.structs.replace(progress, identity=self._identity)
            await self._lease.commit(PageCommit(progress=progress))
        if _instant(self._start_from, progress.first_start) != progress.start_from:
            log.warning("start_from counts at the first start only and was left as it was", source=self._lease.name)
        self._reader.ways.update(progress.ways)
        for view, way in self._reader.ways.items():
            self._observer.reads(view, way.mode)
        self._introduced = True
        return progress

    async def poll(self) -> PollReport:
        """One live poll of both views, from `complete_up_to` less the lookback; one that failed before is ended first.

        Moves `complete_up_to` only when every page of both views is committed. Raises SourceError, JournalError.
        """
        progress = await self.introduce()
        report = PollReport()
        if progress.poll is not None:
            await self._poll(progress.poll, report)
        await self._poll(self._fresh_poll(), report)
        return report

    async def backfill(self) -> PollReport:
        """Reads the past to its end, resuming where it stood. Raises SourceError, JournalError."""
        progress = await self.introduce()
        report = PollReport()
        for index, one in enumerate(progress.backfill):
            if one.done:
                continue

            def filed(progress: Progress, state: PassState, _as_of: Instant | None, at: int = index) -> Progress:
                return msgspec.structs.replace(progress, backfill=_with(progress.backfill, at, state))

            await self._run(one, "backfill", filed, report, before=None)
        if progress.backfill and self._intake.progress.backfill_finished is None:
            finished = self._clock.now()
            await self._intake.record(lambda now: msgspec.structs.replace(now, backfill_finished=finished))
        return report

    async def sweep(self) -> PollReport:
        """Compares everything with the ledger, resuming where it stood. Raises SourceError, JournalError."""
        await self.introduce()
        return await self._sweep.run()

    async def accept_missing(self) -> None:
        """Lets the next sweep believe any number of disappearances. Raises JournalError."""
        await self._sweep.accept_missing()

    # -- passes ---------------------------------------------------------------------------------------------------

    def _fresh_poll(self) -> PollState:
        progress = self._intake.progress
        since = (progress.complete_up_to or progress.first_start) - self._lookback
        return PollState(
            passes=(PassState(view="update_time", cursor=since), PassState(view="create_time", cursor=since))
        )

    async def _poll(self, state: PollState, report: PollReport) -> None:
        before = self._intake.progress.complete_up_to
        for index, one in enumerate(state.passes):
            if one.done:
                continue

            def filed(progress: Progress, one: PassState, as_of: Instant | None, at: int = index) -> Progress:
                nonlocal state
                state = PollState(
                    as_of=as_of if state.as_of is None else state.as_of, passes=_with(state.passes, at, one)
                )
                return msgspec.structs.replace(progress, poll=state)

            if await self._run(one, "live", filed, report, before=before) == "scan":
                break  # that was everything: no view shows more
        await self._complete(state)

    async def _run(
        self, state: PassState, lane: Lane, filed: Filed, report: PollReport, *, before: Instant | None
    ) -> Mode:
        """Reads one pass to its end and commits every page; returns the mode in which it was read.

        A listing of several pages, whose tokens are offsets, is read again until a reading finds nothing that an
        earlier one should have shown.
        """
        await self._reader.climb(state.view, lane)
        reading = 0
        while reading < MAX_READINGS:
            try:
                mode, state, settled = await self._read_once(
                    state, lane, filed, report, before=before, first=reading == 0
                )
            except (QueryRefused, BadAnswer) as error:
                if not await self._reader.lower(state.view, error, lane):
                    raise
                state, reading = again(state), 0
                continue
            if settled:
                await self._finish(state, filed)
                return mode
            reading += 1
        raise BadAnswer(f"the list did not come to rest in {MAX_READINGS} readings", reason="unsettled")

    async def _finish(self, state: PassState, filed: Filed) -> None:
        if not state.done:
            done = msgspec.structs.replace(state, done=True)
            await self._intake.record(lambda progress: filed(progress, done, None))

    async def _read_once(
        self, state: PassState, lane: Lane, filed: Filed, report: PollReport, *, before: Instant | None, first: bool
    ) -> tuple[Mode, PassState, bool]:
        """One reading: in which mode, how far, and whether it was enough."""
        mode: Mode = "keyset"
        pages = overlooked = 0
        began: Instant | None = None

        def place(progress: Progress, step: Step) -> Progress:
            read = step.sheet.count if lane == "backfill" else 0
            counted = msgspec.structs.replace(progress, backfill_incidents=progress.backfill_incidents + read)
            return filed(counted, step.state, step.as_of)

        async with aclosing(self._reader.read(state, lane)) as steps:
            async for step in steps:
                mode, state = step.mode, step.state
                began = step.as_of if began is None else began
                events = await self._intake.absorb(step, report, lane=lane, place=place, before=before)
                pages += 1
                overlooked += sum(event.updated < began for event in events)
                if lane == "backfill" and state.cursor:  # one page that is all has none
                    progress = self._intake.progress
                    self._observer.backfilled_up_to(min(state.cursor, progress.first_start))
        return mode, state, state.done or pages <= 1 or (not first and not overlooked)

    async def _complete(self, state: PollState) -> None:
        def change(progress: Progress) -> Progress:
            up_to = max(state.as_of or 0, progress.complete_up_to or 0)
            return msgspec.structs.replace(progress, complete_up_to=up_to, poll=None)

        progress = await self._intake.record(change)
        self._observer.complete_up_to(progress.complete_up_to or 0)


def _glance(count: int) -> Sheet:
    """A page of which only the answer's time counts."""
    return Sheet(key=b"", next_page_token="", count=count, first=None, last=None, page=None)


def _with(passes: tuple[PassState, ...], index: int, state: PassState) -> tuple[PassState, ...]:
    return (*passes[:index], state, *passes[index + 1 :])


def _instant(start_from: StartFrom, first_start: Instant) -> Instant:
    if start_from == "all":
        return 0
    return first_start if start_from == "now" else start_from


def _backfill_passes(start_from: StartFrom, first_start: Instant) -> tuple[PassState, ...]:
    """Everything was created once; from an instant on, what was only updated since then has to be asked for as well."""
    if start_from == "now":
        return ()
    if start_from == "all":
        return (PassState(view="create_time", cursor=0, until=first_start),)
    return tuple(PassState(view=view, cursor=start_from, until=first_start) for view in ("update_time", "create_time"))
