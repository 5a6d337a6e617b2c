"""Passes over ESET Connect: keyset pages, diff against the ledger, one commit a page. Knows no HTTP and no schedule.

A pass reads one view (by update time or by create time) upwards. Each request is a first page again, asked from the
last row's time less one second, so rows that move, leave or tie while we read are never skipped, as they are with
offsets. The ledger removes the overlap.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Literal, Protocol

import msgspec
import structlog

from relay.clock import MILLISECOND, SECOND, Clock, Instant
from relay.errors import BadAnswer
from relay.eset.budget import Lane
from relay.eset.client import Answer
from relay.eset.wire import DecodedPage, decode_page
from relay.incidents import BadRecord, Event, Known, Observed, Scope, diff, format_instant
from relay.journal import PageCommit, PassState, PollState, Progress, SourceLease, View

log = structlog.get_logger()

OVERLAP: Instant = SECOND
"""A server may compare times truncated to seconds: every next page is asked this much earlier."""
MAX_READINGS = 20
"""How often a window of ties is read before its pass fails; two equal readings in a row end it."""
MAX_REMEMBERED_PAGES = 256

StartFrom = Literal["all", "now"] | Instant


class IncidentApi(Protocol):
    """The part of the client that a pass needs."""

    async def list_incidents(
        self,
        *,
        filter: str,  # noqa: A002  # the API's own word
        order_by: str,
        page_size: int,
        page_token: str = "",
        lane: Lane = "live",
        decode: "Callable[[bytes], Sheet]",
    ) -> "Answer[Sheet]":
        """One page; `decode` is called on its body. Raises SourceError."""
        ...


class PollObserver(Protocol):
    """Is told what happened while reading; counts it."""

    def read(self, incidents: int) -> None:
        """A page with so many incidents was read."""
        ...

    def emitted(self, events: Sequence[Event]) -> None:
        """These events are durable."""
        ...

    def noticed(self, *, stale: int, silent: int, bad: int) -> None:
        """Older versions that were ignored, changes without a new update time, records that could not be read."""
        ...

    def skewed(self, seconds: float) -> None:
        """The server's clock less ours."""
        ...

    def complete_up_to(self, instant: Instant) -> None:
        """Every page up to there is committed."""
        ...

    def backfilled_up_to(self, instant: Instant) -> None:
        """The past is read up to there."""
        ...


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """One page as a pass sees it: the rows, and what the pass needs to go on.

    `key` names the page in its view. `first` and `last` are the earliest and latest time shown in that view, None when
    no row shows one.
    `page` is None when this very page was read before and nothing of the source has changed since.
    """

    key: bytes
    next_page_token: str
    count: int
    first: Instant | None
    last: Instant | None
    page: DecodedPage | None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One page on its way to the ledger, and where the pass stands once it is there."""

    sheet: Sheet
    state: PassState
    as_of: Instant
    skew_seconds: float | None


class PollReport(msgspec.Struct, kw_only=True):
    """What one poll or backfill read and found."""

    pages: int = 0
    incidents: int = 0
    events: int = 0
    stale: int = 0
    silent: int = 0
    bad: int = 0


class Poller:
    """Reads one source into its ledger. One poll at a time; a backfill may run beside it."""

    def __init__(
        self,
        *,
        identity: str,
        api: IncidentApi,
        lease: SourceLease,
        start_from: StartFrom,
        lookback_seconds: float,
        page_size: int,
        clock: Clock,
        observer: PollObserver,
    ) -> None:
        self._identity = identity
        self._api = api
        self._lease = lease
        self._start_from = start_from
        self._lookback = int(lookback_seconds * SECOND)
        self._page_size = page_size
        self._clock = clock
        self._observer = observer
        self._serial = asyncio.Lock()
        self._remembered: dict[bytes, Sheet] = {}
        self._introduced = False
        self.skew_seconds: float | None = None
        """The server's clock less ours, as of the last answer that told."""

    # -- what the source's task calls -----------------------------------------------------------------------------

    async def introduce(self) -> Progress:
        """The source's progress; on its first start, one request finds out what time it is over there.

        `first_start` is the earlier of both clocks, so that a wrong clock here never turns live incidents into old
        ones. Raises SourceError, JournalError.
        """
        if self._lease.progress is not None:
            return self._lease.progress if self._introduced else await self._recognise(self._lease.progress)
        answer = await self._api.list_incidents(
            filter="", order_by="", page_size=1, decode=lambda body: _sheet(decode_page(body), "create_time", b"")
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

    def _fresh_poll(self) -> PollState:
        progress = self._required_progress()
        since = (progress.complete_up_to or progress.first_start) - self._lookback
        return PollState(
            passes=(PassState(view="update_time", cursor=since), PassState(view="create_time", cursor=since))
        )

    async def _poll(self, state: PollState, report: PollReport) -> None:
        for index, one in enumerate(state.passes):
            if one.done:
                continue
            async with aclosing(self._read(one, "live")) as steps:
                async for step in steps:
                    state = PollState(
                        as_of=step.as_of if state.as_of is None else state.as_of,
                        passes=_with(state.passes, index, step.state),
                    )
                    await self._absorb(step, report, poll=state)
        await self._complete(state)

    async def backfill(self) -> PollReport:
        """Reads the past to its end, resuming where it stood. Raises SourceError, JournalError."""
        progress = await self.introduce()
        report = PollReport()
        passes = progress.backfill
        for index, one in enumerate(passes):
            if one.done:
                continue
            async with aclosing(self._read(one, "backfill")) as steps:
                async for step in steps:
                    passes = _with(passes, index, step.state)
                    await self._absorb(step, report, backfill=passes)
        return report

    # -- reading --------------------------------------------------------------------------------------------------

    async def _read(self, state: PassState, lane: Lane) -> AsyncGenerator[Step, None]:
        """The pages of one pass; the next one is fetched while the consumer commits the last."""
        fetch = self._begin_fetch(state, lane)
        try:
            while True:
                answer = await fetch
                state = _begun(state, answer)
                if _is_last(answer.content, state):
                    yield _step(answer, msgspec.structs.replace(state, done=True))
                    return
                start = _next_start(answer.content, state)
                if start is None:
                    async for tied in self._read_ties(state, lane):
                        yield _step(tied, state)
                    start = state.cursor + OVERLAP
                state = msgspec.structs.replace(state, cursor=start)
                fetch = self._begin_fetch(state, lane)
                yield _step(answer, state)
        finally:
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)

    async def _read_ties(self, state: PassState, lane: Lane) -> AsyncGenerator[Answer[Sheet], None]:
        """A second that holds more than a page: paged by token, and read again until two readings agree.

        Tokens are offsets: a row that leaves the second while we page shifts the others, and one is skipped; the next
        reading then differs.
        """
        before: tuple[int, int] | None = None
        for _reading in range(MAX_READINGS):
            tokens = {""}
            token = ""
            count = total = 0
            while True:
                answer = await self._fetch(state, lane, token, remembered=False)
                sheet = answer.content
                for row in sheet.page.observed if sheet.page else ():
                    if (shown := _shown(row, state.view)) is not None and shown <= state.cursor + OVERLAP:
                        count += 1
                        total += hash((row.uuid, row.updated))
                yield answer
                token = sheet.next_page_token
                if not token or (sheet.last is not None and sheet.last > state.cursor + OVERLAP):
                    break
                if token in tokens:
                    raise BadAnswer("the same page token came twice in one listing", reason="token_loop")
                tokens.add(token)
            if (count, total) == before:
                return
            before = (count, total)
        raise BadAnswer(
            f"the changes of one second did not come to rest in {MAX_READINGS} readings", reason="unsettled"
        )

    def _begin_fetch(self, state: PassState, lane: Lane) -> "asyncio.Task[Answer[Sheet]]":
        return asyncio.create_task(self._fetch(state, lane), name=f"fetch {self._lease.name}")

    async def _fetch(self, state: PassState, lane: Lane, token: str = "", *, remembered: bool = True) -> Answer[Sheet]:
        def decode(body: bytes) -> Sheet:
            key = hashlib.sha256(state.view.encode() + body).digest()
            if remembered and (sheet := self._remembered.get(key)) is not None:
                return sheet
            return _sheet(decode_page(body), state.view, key)

        answer = await self._api.list_incidents(
            filter=f'incident.{state.view} >= timestamp("{_filter_time(state.cursor)}")',
            order_by=f"{state.view},uuid",
            page_size=self._page_size,
            page_token=token,
            lane=lane,
            decode=decode,
        )
        if answer.content.page is not None:
            _require_ascending(answer.content.page.observed, state)
        return answer

    # -- committing -----------------------------------------------------------------------------------------------

    async def _absorb(
        self,
        step: Step,
        report: PollReport,
        *,
        poll: PollState | None = None,
        backfill: tuple[PassState, ...] | None = None,
    ) -> None:
        """Diffs one page and commits what it changes, with the place where its pass stands."""
        report.pages += 1
        report.incidents += step.sheet.count
        self._observer.read(step.sheet.count)
        if step.skew_seconds is not None:
            self.skew_seconds = step.skew_seconds
            self._observer.skewed(step.skew_seconds)
        async with self._serial:
            rows, events, bad = await self._compare(step.sheet.page, report)
            if not (rows or events or bad or backfill):
                self._remember(step.sheet)
                return
            if rows:
                self._remembered.clear()
            progress = self._progress(poll=poll, backfill=backfill)
            await self._lease.commit(PageCommit(progress=progress, rows=rows, events=events, bad=bad))
            self._remember(step.sheet)
        self._observer.emitted(events)
        if backfill:
            self._observer.backfilled_up_to(min(step.state.cursor, progress.first_start))

    async def _compare(
        self, page: DecodedPage | None, report: PollReport
    ) -> tuple[list[Known], list[Event], list[BadRecord]]:
        if page is None:
            return [], [], []
        progress = self._required_progress()
        scope = Scope(source=self._lease.name, start_from=progress.start_from, first_start=progress.first_start)
        known = await self._lease.known([seen.uuid for seen in page.observed])
        now = self._clock.now()
        changed: dict[str, Known] = {}
        events: list[Event] = []
        stale = silent = 0
        for seen in page.observed:
            found = diff(known.get(seen.uuid), seen, scope=scope, now=now)
            stale += found.verdict == "stale"
            silent += found.verdict == "silent"
            if found.row is not None:
                known[seen.uuid] = changed[seen.uuid] = found.row
            if found.event is not None:
                events.append(found.event)
        report.events += len(events)
        report.stale += stale
        report.silent += silent
        report.bad += len(page.bad)
        self._observer.noticed(stale=stale, silent=silent, bad=len(page.bad))
        return list(changed.values()), events, page.bad

    async def _complete(self, state: PollState) -> None:
        async with self._serial:
            progress = self._required_progress()
            up_to = max(state.as_of or 0, progress.complete_up_to or 0)
            progress = msgspec.structs.replace(progress, complete_up_to=up_to, poll=None)
            await self._lease.commit(PageCommit(progress=progress))
        self._observer.complete_up_to(up_to)

    def _progress(self, *, poll: PollState | None, backfill: tuple[PassState, ...] | None) -> Progress:
        progress = self._required_progress()
        if poll is not None:
            progress = msgspec.structs.replace(progress, poll=poll)
        if backfill is not None:
            progress = msgspec.structs.replace(progress, backfill=backfill)
        return progress

    def _required_progress(self) -> Progress:
        assert self._lease.progress is not None  # noqa: S101  # introduce() comes first
        return self._lease.progress

    def _remember(self, sheet: Sheet) -> None:
        """This very page, met again while nothing of the source changed, needs no second look."""
        if len(self._remembered) >= MAX_REMEMBERED_PAGES:
            self._remembered.pop(next(iter(self._remembered)))
        self._remembered[sheet.key] = msgspec.structs.replace(sheet, page=None)


def _sheet(page: DecodedPage, view: View, key: bytes) -> Sheet:
    times = [shown for row in page.observed if (shown := _shown(row, view)) is not None]
    return Sheet(
        key=key,
        next_page_token=page.next_page_token,
        count=len(page.observed) + len(page.bad),
        first=min(times, default=None),
        last=max(times, default=None),
        page=page,
    )


def _shown(row: Observed, view: View) -> Instant | None:
    if view == "update_time":
        return row.updated if row.updated_shown else None
    return row.created if row.created_shown else None


def _require_ascending(rows: Sequence[Observed], state: PassState) -> None:
    """Raises BadAnswer when the filter or the order was silently ignored."""
    floor = state.cursor - OVERLAP
    before = floor
    for row in rows:
        shown = _shown(row, state.view)
        if shown is None:
            continue
        if shown < floor:
            raise BadAnswer(
                f"a row is older than the filter on {state.view} asked for: the filter was ignored",
                reason="filter_ignored",
            )
        if shown < before:
            raise BadAnswer(f"the rows are not in order of {state.view}: orderBy was ignored", reason="order_ignored")
        before = shown


def _begun(state: PassState, answer: Answer[Sheet]) -> PassState:
    """The pass after its first answers: where it begins and how far it reads is known."""
    first = answer.content.first if state.first is None else state.first
    until = answer.until if state.until is None else state.until
    return msgspec.structs.replace(state, first=first, until=until)


def _is_last(sheet: Sheet, state: PassState) -> bool:
    """A short page is not the end; an empty token is, and so is a row later than the pass wants."""
    beyond = sheet.last is not None and state.until is not None and sheet.last > state.until
    return not sheet.next_page_token or beyond


def _next_start(sheet: Sheet, state: PassState) -> Instant | None:
    """From where the next first page is asked; None when this page did not get past its own second."""
    if sheet.last is None:
        return None
    start = sheet.last - OVERLAP
    return start if start // MILLISECOND > state.cursor // MILLISECOND else None


def _filter_time(instant: Instant) -> str:
    """Milliseconds rounded down, with `Z`."""
    return format_instant(max(0, instant), digits=3)


def _step(answer: Answer[Sheet], state: PassState) -> Step:
    return Step(sheet=answer.content, state=state, as_of=answer.as_of, skew_seconds=answer.skew_seconds)


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
