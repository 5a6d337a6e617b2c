"""What may come of an answer, whatever its bytes: our own error, or every record kept, as incident or dead letter."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from relay.errors import BadAnswer, SourceError
from relay.eset.budget import Lane
from relay.eset.client import Answer
from relay.eset.wire import INSTANTS, MAX_BAD_RECORD_BYTES, DecodedPage, decode_incident, decode_page
from relay.formats import native
from relay.formats.cloudevents import kafka_headers
from relay.incidents import BadRecord, Event, Known, Observed, Scope, diff, missing, tracked
from tests.support.clock import START
from tests.support.passes import Bench, make_bench

SCOPE = Scope(source="acme", start_from=0, first_start=START)
EMPTY = b'{"incidents":[],"nextPageToken":""}'
POLL_SECONDS = 20.0
LISTINGS = 60

Page = DecodedPage | None


class Spelled(str):
    """A number as it is spelled: no reader's limits."""

    __slots__ = ()


_loads = partial(json.loads, parse_int=Spelled, parse_float=Spelled)


class Wrong(AssertionError):
    """What came of an answer is not permitted."""


def require(condition: object, claim: str) -> None:
    if not condition:
        raise Wrong(claim)


def rows_of(body: bytes) -> dict[str, Known]:
    """The ledger after a page."""
    found = [diff(None, seen, scope=SCOPE, now=START).row for seen in decode_page(body).observed]
    return {row.uuid: row for row in found if row}


def examine(body: bytes, known: Mapping[str, Known]) -> Page:
    """What the page was read as, None if it was refused. Raises Wrong, or what the relay should not have raised."""
    records = _records(body)
    try:
        page = decode_page(body)
    except BadAnswer as error:
        require(records is None or _says_twice(body), f"a readable page was refused: {error}")
        return None
    if records is not None:
        require(len(records) == len(page.observed) + len(page.bad), "a record was lost")
        _require_kept(records, page)
    page.next_page_token.encode()
    for bad in page.bad:
        require(bad.reason and len(bad.reason) <= 256 and bad.reason.isprintable(), "a dead letter without its reason")
        require(0 < len(bad.raw) <= MAX_BAD_RECORD_BYTES, "a dead letter without its bytes, or with too many")
    for seen in page.observed:
        _require_event(seen, known.get(seen.uuid))
    return page


def _records(body: bytes) -> list[Any] | None:
    """The records of a page as another reader sees them; None when it sees no page."""
    try:
        page = _loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(page, dict):
        return None
    token = page.get("nextPageToken")
    if isinstance(token, Spelled) or not isinstance(token, str | None):
        return None
    records = page.get("incidents")
    return records if isinstance(records, list) else None


def _says_twice(body: bytes) -> bool:
    """Whether a key of the page comes again: readers differ in which one they take."""
    return any(body.count(key) > 1 for key in (b'"incidents"', b'"nextPageToken"'))


def _refuse(text: str) -> None:
    raise ValueError(text)


def _require_kept(records: Sequence[Any], page: DecodedPage) -> None:
    """Every record is there, in its order, with its values."""
    observed = [_parsed(seen.raw) for seen in page.observed]
    bad = [_parsed(one.raw) if len(one.raw) < MAX_BAD_RECORD_BYTES else None for one in page.bad]
    if any(_is_mended(raw) for raw in (*(seen.raw for seen in page.observed), *(one.raw for one in page.bad))):
        return
    for record in records:
        if observed and observed[0] == record:
            observed.pop(0)
        else:
            require(bad and bad.pop(0) in (record, None), "a record was changed")


def _is_mended(raw: bytes) -> bool:
    return rb"\ufffd" in raw or "\ufffd".encode() in raw


def _parsed(raw: bytes) -> Any:
    try:
        return _loads(raw)
    except RecursionError:
        return None


def _require_event(seen: Observed, known: Known | None) -> None:
    """Its event is valid JSON with the incident in it; the ledger holds what it must, and reads it back."""
    require(seen.created in INSTANTS and seen.updated in INSTANTS, "a time that no ledger can hold")
    _require_values(seen)
    first = diff(None, seen, scope=SCOPE, now=START)
    require(first.row and first.event, "a first sight without an event")
    assert first.row is not None
    _require_rendered(first.event, seen.raw)
    require(diff(first.row, seen, scope=SCOPE, now=START).verdict == "unchanged", "the same sight is a change")
    tracked(first.row)
    gone = missing(first.row, scope=SCOPE, now=START)
    _require_rendered(gone.event, None)
    require(gone.row, "a disappearance without a row")
    back = diff(gone.row, seen, scope=SCOPE, now=START)
    _require_rendered(back.event, seen.raw)
    if known is not None:
        _require_rendered(diff(known, seen, scope=SCOPE, now=START).event, seen.raw)


def _require_values(seen: Observed) -> None:
    """The record by itself, as a GET would bring it, is the same incident."""
    alone = decode_incident(b'{"incident":' + seen.raw + b"}")
    require(alone == seen, "the same record read twice is two")


def _require_rendered(event: Event | None, raw: bytes | None) -> None:
    if event is None:
        return
    body = native.render(event)
    whole = _loads(body.decode())
    require(set(whole) == {"event", "incident"}, "an event of another shape")
    require(raw is None or body.endswith(b',"incident":' + raw + b"}"), "the incident's JSON was not preserved")
    require(b"\n" not in body, "an event of two lines")
    require(native.id_of(body) == event.id, "an event without its name")
    for _name, value in kafka_headers(event):
        require(value if isinstance(value, bytes) else (value or "").encode() is not None, "a header that is no text")
    if len(body) % 8 == 0:
        _loads(native.omit(body, ["description", "metrics.deviceCount", "uuid"]))
        try:
            _loads(native.truncate(body, 2000))
        except ValueError as error:
            require("even with its lists cut" in str(error), f"an event that cannot be cut: {error}")


# -- through the poller -----------------------------------------------------------------------------------------------


class OnePageApi:
    """Answers each listing with this body, and whatever its token names with an empty page.

    After `LISTINGS` of them it has nothing more to show, until `again`: a token on every page ever asked for would have
    no end.
    """

    def __init__(self, body: bytes, bench: Bench) -> None:
        self._body = body
        self._bench = bench
        self._asked = 0

    def again(self) -> None:
        """Shows its page once more."""
        self._asked = 1

    async def list_incidents(
        self,
        *,
        filter: str,  # noqa: A002
        order_by: str,
        page_size: int,
        page_token: str = "",
        lane: Lane = "live",
        decode: Callable[[bytes], Any],
    ) -> Answer[Any]:
        self._asked += 1
        sent = self._bench.clock.now()
        self._bench.clock.advance(0.05)
        body = self._body if 1 < self._asked <= LISTINGS and not page_token else EMPTY
        return Answer(
            content=decode(body), as_of=sent, until=self._bench.clock.now(), skew_seconds=None, request_id="q"
        )

    async def get_incident(self, uuid: str, *, lane: Lane = "live") -> Observed | None:
        return None


def poll(body: bytes) -> bool:
    """Polls a source that answers this, twice, into a real journal; whether it was read. Raises as `examine` does."""
    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs():
        return asyncio.run(_poll(body, Path(folder)))


async def _poll(body: bytes, folder: Path) -> bool:
    async with make_bench(folder) as bench:
        api = OnePageApi(body, bench)
        bench.api = api  # type: ignore[assignment]
        poller = bench.poller()
        complete = await _completes(poller.poll)
        found = [(delivery.uuid, delivery.id) for delivery in await bench.deliveries()]
        for delivery in await bench.deliveries("bodies"):
            _loads(delivery.body.decode())
        letters = [letter async for letter in bench.lease.dead_letters()]
        if complete:
            page = decode_page(body)
            wanted = {seen.uuid for seen in page.observed}
            require({uuid for uuid, _ in found} == wanted, "an incident of a committed page has no event")
            require(set(await bench.lease.known(sorted(wanted))) == wanted, "the ledger does not know an incident")
            require({_raw(bad) for bad in page.bad} == {letter.body for letter in letters}, "a dead letter is missing")
            bench.clock.advance(1)
            api.again()
            require(await _completes(poller.poll), "what was read once cannot be read again")
            api.again()
            require(await _completes(bench.poller().poll), "what was read once cannot be read by the next start")
        require(len({name for _, name in found}) == len(found), "an event came twice")
        again = [(delivery.uuid, delivery.id) for delivery in await bench.deliveries("again")]
        require(again == found or not complete or _tells_two_tales(body), "the same page made events twice")
        return complete


def _raw(bad: BadRecord) -> bytes:
    return bad.raw


def _tells_two_tales(body: bytes) -> bool:
    """Whether one uuid stands for two records of one page: then each sight of the one changes the other."""
    uuids = [seen.uuid for seen in decode_page(body).observed]
    return len(set(uuids)) < len(uuids)


async def _completes(work: Callable[[], Any]) -> bool:
    try:
        async with asyncio.timeout(POLL_SECONDS):
            await work()
    except SourceError:
        return False
    except TimeoutError:
        raise Wrong("a poll that does not end") from None
    return True
