"""Reading one view of one source, page by page, in the best way that the server understands. Writes nothing.

A keyset pass reads upwards: each request is a first page again, asked from the last row's time less one second, so rows
that move, leave or tie while we read are never skipped, as they are with offsets. Where the filter or the order is
refused or ignored, a view is read `ordered` (newest first, until older than wanted) or by `scan` (all of it).
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Final, Protocol, get_args

import msgspec
import structlog

from relay.clock import MILLISECOND, SECOND, Clock, Instant
from relay.errors import BadAnswer, QueryRefused, SourceError
from relay.eset.budget import Lane
from relay.eset.client import Answer
from relay.eset.wire import DecodedPage, decode_page
from relay.incidents import Observed, format_instant
from relay.journal import FilterTimes, PassState, Way
from relay.states import VIEWS, Mode, View

log = structlog.get_logger()

OVERLAP: Instant = SECOND
"""A server may compare times truncated to seconds: every next page is asked this much earlier."""
MAX_READINGS = 20
"""How often something that moves is read before its pass fails."""
MAX_IDLE_PAGES = 100
"""How many pages of a listing in a row may be empty, or the same as earlier ones, and still name a next one."""
MAX_REMEMBERED_PAGES = 256
SAMPLE_SIZE = 20
"""Rows asked for when finding out what the server understands."""
TRY_AGAIN: Instant = 3600 * SECOND
"""How long a view is read in a lesser way before a better one is tried."""
TRY_AGAIN_UNSURE: Instant = 300 * SECOND
"""The same while there were too few rows to tell."""
STRIKES = 2
"""How many passes in a row may break the rules of their mode before it is given up, whatever the samples say."""
BEYOND = "2200-01-01T00:00:00"
"""Later than every row: a filter that asks for it and gets rows was ignored."""
_BEYOND: Instant = 7_258_118_400 * SECOND


class IncidentApi(Protocol):
    """The part of the client that reading needs."""

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

    async def get_incident(self, uuid: str, *, lane: Lane = "live") -> Observed | None:
        """One incident with all its fields; None when there is none. Raises SourceError."""
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
    fingerprint: int = 0
    """Of the rows alone: a page that comes again under another token has the same."""


class Flight(msgspec.Struct, kw_only=True, eq=False):
    """A request from when it is sent until its page is committed, by the monotonic clock, in seconds."""

    asked: float
    answered: float = 0.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One page on its way to the ledger, and where the pass stands once it is there."""

    sheet: Sheet
    state: PassState
    mode: Mode
    flight: Flight
    as_of: Instant
    skew_seconds: float | None


class _Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and when it was asked for."""

    answer: Answer[Sheet]
    flight: Flight


class Reader:
    """Reads the views of one source. `ways` says how; whoever stores progress stores them too."""

    def __init__(
        self, *, source: str, api: IncidentApi, page_size: int, clock: Clock, observe: Callable[[View, Mode], None]
    ) -> None:
        """`observe` is told the mode of a view whenever it is found out."""
        self.ways: dict[View, Way] = {view: Way() for view in VIEWS}
        self._api = api
        self._page_size = page_size
        self._clock = clock
        self._observe = observe
        self._log = log.bind(source=source)
        self._remembered: dict[bytes, Sheet] = {}
        self._strikes = dict.fromkeys(VIEWS, 0)
        self._flights: set[Flight] = set()

    # -- what is in the air ---------------------------------------------------------------------------------------

    def oldest_flight(self) -> float:
        """When the oldest request was sent whose page is not committed; now when there is none."""
        return min((flight.asked for flight in self._flights), default=self._clock.monotonic())

    def landed(self, flight: Flight) -> None:
        """The page of this request is committed, or given up."""
        self._flights.discard(flight)

    def remember(self, sheet: Sheet) -> None:
        """This very page, met again while nothing of the source changed, needs no second look."""
        if len(self._remembered) >= MAX_REMEMBERED_PAGES:
            self._remembered.pop(next(iter(self._remembered)))
        self._remembered[sheet.key] = msgspec.structs.replace(sheet, page=None)

    def forget(self) -> None:
        """Something changed: every page needs a look again."""
        self._remembered.clear()

    # -- reading --------------------------------------------------------------------------------------------------

    async def read(self, state: PassState, lane: Lane, *, remembered: bool = True) -> AsyncGenerator[Step, None]:
        """The pages of one pass in the view's present mode.

        The state of the last one is `done` if this was a keyset pass; another one may have to be read again. Without
        `remembered` every page comes with its rows. The consumer calls `landed` for every step. Raises SourceError;
        QueryRefused and BadAnswer may mean that the view has to be read in another way, see `lower`.
        """
        way = self.ways[state.view]
        read = self._keyset if way.mode == "keyset" else self._listing
        async with aclosing(read(state, lane, way, remembered)) as steps:
            async for step in steps:
                yield step
        self._strikes[state.view] = 0

    async def _keyset(self, state: PassState, lane: Lane, way: Way, remembered: bool) -> AsyncGenerator[Step, None]:
        """Upwards from the cursor; the next page is fetched while the consumer commits the last."""
        query = _keyset_query(way)
        got: _Fetched | None = None
        fetch = self._begin(state, lane, query, remembered)
        try:
            while True:
                got = await fetch
                state = _begun(state, got.answer)
                sheet = got.answer.content
                if _is_last(sheet, state):
                    yield _step(got, msgspec.structs.replace(state, done=True), way)
                    return
                start = _next_start(sheet, state, way)
                if start is None:
                    tied, beyond = got, None
                    async for tied, beyond in self._ties(state, lane, query):  # noqa: B007  # the last one counts
                        yield _step(tied, state, way, first=got)
                    if not tied.answer.content.next_page_token:  # paged to the very end: nothing is left to ask for
                        yield _step(got, state, way)
                        yield _step(tied, msgspec.structs.replace(state, done=True), way, first=got)
                        return
                    start = max(state.cursor + OVERLAP, (beyond or 0) - OVERLAP)
                state = msgspec.structs.replace(state, cursor=start)
                fetch = self._begin(state, lane, query, remembered)
                yield _step(got, state, way)
        finally:
            fetch.cancel()
            for unread in (got, *await asyncio.gather(fetch, return_exceptions=True)):
                if isinstance(unread, _Fetched):
                    self.landed(unread.flight)

    async def _ties(
        self, state: PassState, lane: Lane, query: "_Query"
    ) -> AsyncGenerator[tuple[_Fetched, Instant | None], None]:
        """A second that holds more than a page: paged by token, and read again until two readings agree.

        Tokens are offsets: a row that leaves the second while we page shifts the others, and one is skipped; the next
        reading then differs. The second behind it is read as well, for the next page, asked from its start, may not
        show it whole where times are compared truncated. With each page comes the first time beyond both that it
        shows: everything before that is read.
        """
        end = state.cursor + 2 * OVERLAP
        before: tuple[int, int] | None = None
        for _reading in range(MAX_READINGS):
            trail = _Trail()
            token = ""
            count = total = 0
            while True:
                got = await self._fetch(state, lane, query, token, remembered=False)
                sheet = got.answer.content
                beyond: Instant | None = None
                for row in sheet.page.observed if sheet.page else ():
                    time = shown(row, state.view)
                    if time is not None and time <= end:
                        count += 1
                        total += hash((row.uuid, row.updated))
                    elif time is not None:
                        beyond = time if beyond is None else min(time, beyond)
                yield got, beyond
                token = sheet.next_page_token
                if not token or (sheet.last is not None and sheet.last > end):
                    break
                trail.follow(token, sheet)
            if (count, total) == before:
                return
            before = (count, total)
        raise BadAnswer(
            f"the changes of one second did not come to rest in {MAX_READINGS} readings", reason="unsettled"
        )

    async def _listing(self, state: PassState, lane: Lane, way: Way, remembered: bool) -> AsyncGenerator[Step, None]:
        """By token: newest first until a page is wholly older than wanted, or everything."""
        query = _listing_query(way, state.view)
        since = state.cursor if state.since is None else state.since
        trail = _Trail()
        token = ""
        while True:
            got = await self._fetch(state, lane, query, token, remembered=remembered)
            state = _begun(state, got.answer)
            sheet = got.answer.content
            yield _step(got, state, way)
            token = sheet.next_page_token
            older = way.mode == "ordered" and sheet.last is not None and sheet.last < since - OVERLAP
            if not token or older:
                return
            trail.follow(token, sheet)

    def _begin(self, state: PassState, lane: Lane, query: "_Query", remembered: bool) -> "asyncio.Task[_Fetched]":
        return asyncio.create_task(self._fetch(state, lane, query, remembered=remembered), name=f"fetch {state.view}")

    async def _fetch(
        self, state: PassState, lane: Lane, query: "_Query", token: str = "", *, remembered: bool
    ) -> _Fetched:
        def decode(body: bytes) -> Sheet:
            key = hashlib.sha256(state.view.encode() + body).digest()
            alone = len(self._flights) == 1  # nothing else can change the ledger until this page is committed
            if remembered and alone and (sheet := self._remembered.get(key)) is not None:
                return sheet
            return _sheet(decode_page(body), state.view, key)

        flight = Flight(asked=self._clock.monotonic())
        self._flights.add(flight)
        try:
            answer = await self._api.list_incidents(
                filter=query.filter(state.view, state.cursor),
                order_by=query.order(state.view),
                page_size=self._page_size,
                page_token=token,
                lane=lane,
                decode=decode,
            )
            if answer.content.page is not None:
                _check(query, answer.content.page, answer.request_id, state)
        except BaseException:
            self.landed(flight)
            raise
        flight.answered = self._clock.monotonic()
        return _Fetched(answer=answer, flight=flight)

    # -- the ladder -----------------------------------------------------------------------------------------------

    async def climb(self, view: View, lane: Lane, *, anew: bool = False) -> None:
        """Finds out what the server understands when that is unknown, or when a better way is worth another try.

        `anew`: though it is known; rows that come in the right order by luck hide that an order is ignored since then.
        Raises SourceError when there is no answer at all.
        """
        way = self.ways[view]
        if way.tried is not None and not anew:
            patience = TRY_AGAIN if way.sure else TRY_AGAIN_UNSURE
            if (way.mode == "keyset" and way.sure) or 0 <= self._clock.now() - way.tried < patience:
                return
        self._enter(view, await sound(self._api, view, lane=lane))

    async def lower(self, view: View, error: SourceError, lane: Lane) -> bool:
        """After a failed pass: True when the view is read in another way from now on, and the pass can begin again.

        Raises SourceError when there is no answer at all.
        """
        if not isinstance(error, QueryRefused) and error.reason not in ("filter_ignored", "order_ignored"):
            return False
        before = self.ways[view]
        found = await sound(self._api, view, lane=lane)
        if (found.mode, found.times, found.by_uuid) == (before.mode, before.times, before.by_uuid):
            self._strikes[view] += 1
            if isinstance(error, QueryRefused) or self._strikes[view] < STRIKES or before.mode == "scan":
                return False
            mode: Mode = "ordered" if error.reason == "filter_ignored" else "scan"
            found = msgspec.structs.replace(found, mode=mode, sure=True, reason=_REASONS[error.reason])
        self._enter(view, found)
        return True

    def _enter(self, view: View, found: Way) -> None:
        before = self.ways[view]
        now = self._clock.now()
        same = before.mode == found.mode and before.since is not None
        way = msgspec.structs.replace(found, tried=now, since=before.since if same else now)
        self.ways[view] = way
        self._strikes[view] = 0
        self._observe(view, way.mode)
        if before.mode != way.mode:
            write = self._log.info if way.mode == "keyset" else self._log.warning
            write("read mode changed", view=view, mode=way.mode, before=before.mode, reason=way.reason)


async def sound(api: IncidentApi, view: View, *, lane: Lane = "live") -> Way:
    """Finds out by a few small requests how a view can be read: what is refused, and what is silently ignored.

    A refusal counts against a parameter only when the same request without it is answered, twice. Raises SourceError.
    """

    async def ask(filter_text: str, order_by: str) -> Sequence[Instant]:
        answer = await api.list_incidents(
            filter=filter_text,
            order_by=order_by,
            page_size=SAMPLE_SIZE,
            lane=lane,
            decode=lambda body: _sheet(decode_page(body), view, b""),
        )
        rows = answer.content.page.observed if answer.content.page else ()
        return [time for row in rows if (time := shown(row, view)) is not None]

    async def answers(filter_text: str, order_by: str) -> Sequence[Instant] | None:
        try:
            return await ask(filter_text, order_by)
        except QueryRefused:
            return None

    way = Way()
    upwards = await answers("", _order(view, by_uuid=True))
    if upwards is None:
        way = msgspec.structs.replace(way, by_uuid=False)
        upwards = await answers("", _order(view, by_uuid=False))
    if upwards is None:
        await ask("", "")
        if await answers("", _order(view, by_uuid=False)) is None:
            await ask("", "")
            return msgspec.structs.replace(way, mode="scan", reason=_REASONS["order_refused"])
        upwards = ()
    downwards = await answers("", _order(view, by_uuid=way.by_uuid, descending=True))
    if downwards is None or list(upwards) != sorted(upwards) or list(downwards) != sorted(downwards, reverse=True):
        reason = "order_refused" if downwards is None else "order_ignored"
        return msgspec.structs.replace(way, mode="scan", reason=_REASONS[reason])
    sure = len({*upwards, *downwards}) > 1
    for times in get_args(FilterTimes):
        beyond = await answers(_condition(view, f"{BEYOND}{_SUFFIXES[times]}"), _order(view, by_uuid=way.by_uuid))
        if beyond is None:
            continue
        if any(time < _BEYOND - OVERLAP for time in beyond):
            return msgspec.structs.replace(way, mode="ordered", reason=_REASONS["filter_ignored"])
        return msgspec.structs.replace(way, times=times, sure=sure)
    for _ in range(2):
        await ask("", _order(view, by_uuid=way.by_uuid))
        plain = _condition(view, f"{BEYOND}{_SUFFIXES['milliseconds']}")
        if await answers(plain, _order(view, by_uuid=way.by_uuid)) is not None:
            return msgspec.structs.replace(way, sure=False)
    return msgspec.structs.replace(way, mode="ordered", reason=_REASONS["filter_refused"])


_REASONS: Final = {
    "filter_refused": "the filter was refused with 400",
    "filter_ignored": "the filter was ignored",
    "order_refused": "the order was refused with 400",
    "order_ignored": "the order was ignored",
}
_SUFFIXES: Final = {"milliseconds": ".000Z", "offset": ".000+00:00", "seconds": "Z", "seconds_offset": "+00:00"}


class _Query(msgspec.Struct, frozen=True, kw_only=True):
    """How a page is asked for, and what its rows must then look like."""

    filter: Callable[[View, Instant], str]
    order: Callable[[View], str]
    check: Callable[[Sequence[Observed], PassState], None]


def _keyset_query(way: Way) -> _Query:
    return _Query(
        filter=lambda view, since: _condition(view, _filter_time(since, way.times)),
        order=lambda view: _order(view, by_uuid=way.by_uuid),
        check=_require_ascending,
    )


def _listing_query(way: Way, view: View) -> _Query:
    if way.mode == "scan":
        return _Query(filter=lambda _view, _since: "", order=lambda _view: "", check=lambda _rows, _state: None)
    order = _order(view, by_uuid=way.by_uuid, descending=True)
    return _Query(filter=lambda _view, _since: "", order=lambda _view: order, check=_require_descending)


def _condition(view: View, time: str) -> str:
    return f'incident.{view} >= timestamp("{time}")'


def _order(view: View, *, by_uuid: bool, descending: bool = False) -> str:
    word = " desc" if descending else ""
    return f"{view}{word},uuid{word}" if by_uuid else f"{view}{word}"


def shown(row: Observed, view: View) -> Instant | None:
    """The time by which this view is ordered; None when the row shows none."""
    if view == "update_time":
        return row.updated if row.updated_shown else None
    return row.created if row.created_shown else None


def _sheet(page: DecodedPage, view: View, key: bytes) -> Sheet:
    times = [time for row in page.observed if (time := shown(row, view)) is not None]
    return Sheet(
        key=key,
        next_page_token=page.next_page_token,
        count=len(page.observed) + len(page.bad),
        first=min(times, default=None),
        last=max(times, default=None),
        page=page,
        fingerprint=hash(tuple((row.uuid, row.updated) for row in page.observed)),
    )


def _check(query: "_Query", page: DecodedPage, request_id: str, state: PassState) -> None:
    try:
        query.check(page.observed, state)
    except BadAnswer as error:
        error.request_id = request_id
        raise


def _require_ascending(rows: Sequence[Observed], state: PassState) -> None:
    """Raises BadAnswer when the filter or the order was silently ignored."""
    floor = state.cursor - OVERLAP
    before = floor
    for row in rows:
        time = shown(row, state.view)
        if time is None:
            continue
        if time < floor:
            raise BadAnswer(
                f"a row is older than the filter on {state.view} asked for: the filter was ignored",
                reason="filter_ignored",
            )
        if time < before:
            raise BadAnswer(f"the rows are not in order of {state.view}: orderBy was ignored", reason="order_ignored")
        before = time


def _require_descending(rows: Sequence[Observed], state: PassState) -> None:
    """Raises BadAnswer when the order was silently ignored."""
    times = [time for row in rows if (time := shown(row, state.view)) is not None]
    if any(later > earlier for earlier, later in pairwise(times)):
        raise BadAnswer(f"the rows are not in order of {state.view}: orderBy was ignored", reason="order_ignored")


class _Trail:
    """The page tokens of one listing. Each way in which they may lead nowhere raises BadAnswer."""

    def __init__(self) -> None:
        self._tokens = {""}
        self._fingerprints: set[int] = set()
        self._idle = 0

    def follow(self, token: str, sheet: Sheet) -> None:
        """Goes on from this page by its token."""
        if token in self._tokens:
            raise BadAnswer("the same page token came twice in one listing", reason="token_loop")
        self._tokens.add(token)
        known = not sheet.count or sheet.fingerprint in self._fingerprints
        self._fingerprints.add(sheet.fingerprint)
        self._idle = self._idle + 1 if known else 0
        if self._idle > MAX_IDLE_PAGES:
            raise BadAnswer(
                f"{self._idle} pages in a row were empty or had come before, each with a token for another",
                reason="token_loop",
            )


def _begun(state: PassState, answer: Answer[Sheet]) -> PassState:
    """The pass after its first answers: where it begins and how far it reads is known."""
    first = answer.content.first if state.first is None else state.first
    until = answer.until if state.until is None else state.until
    since = state.cursor if state.since is None else state.since
    return msgspec.structs.replace(state, since=since, first=first, until=until)


def again(state: PassState) -> PassState:
    """The same pass from its beginning."""
    return msgspec.structs.replace(state, cursor=state.cursor if state.since is None else state.since, done=False)


def _is_last(sheet: Sheet, state: PassState) -> bool:
    """A short page is not the end; an empty token is, and so is a row later than the pass wants."""
    beyond = sheet.last is not None and state.until is not None and sheet.last > state.until
    return not sheet.next_page_token or beyond


def _next_start(sheet: Sheet, state: PassState, way: Way) -> Instant | None:
    """From where the next first page is asked; None when this page did not get past its own second."""
    if sheet.last is None:
        return None
    start = sheet.last - OVERLAP
    unit = MILLISECOND if way.times in ("milliseconds", "offset") else SECOND
    return start if start // unit > state.cursor // unit else None


def _filter_time(instant: Instant, times: FilterTimes) -> str:
    """Rounded down to milliseconds or seconds, in UTC."""
    text = format_instant(max(0, instant), digits=0 if times.startswith("seconds") else 3)
    return text.replace("Z", "+00:00") if times.endswith("offset") else text


def _step(got: _Fetched, state: PassState, way: Way, *, first: _Fetched | None = None) -> Step:
    """`first` was asked before it, and tells since when the pass reads."""
    return Step(
        sheet=got.answer.content,
        state=state,
        mode=way.mode,
        flight=got.flight,
        as_of=got.answer.as_of if first is None else min(first.answer.as_of, got.answer.as_of),
        skew_seconds=got.answer.skew_seconds,
    )
