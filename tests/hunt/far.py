"""The two far sides of a hunt: ESET Connect as the relay's HTTP client meets it, and sinks that live in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import httpx

from relay.clock import SECOND, Instant
from relay.errors import Refused, Unavailable
from relay.eset.budget import Lane
from relay.eset.client import Answer, EsetClient
from relay.incidents import Observed
from relay.simulator import Answer as Served
from relay.simulator import Request, Simulator
from relay.simulator.times import parse_time
from relay.sinks import Delivery, Position
from tests.hunt.checker import Arrival
from tests.hunt.virtual import Hand

API: Final = "https://api.test"
TOKEN_URL: Final = "https://iam.test/oauth/token"


class Surroundings(Protocol):
    """What the far sides need of the world."""

    def point(self, label: str) -> None:
        """Something can happen here. Raises Crashed."""
        ...

    def travel(self) -> float:
        """How long the network takes one way, in seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """From where a first page reads: in which view, and since when (None: everything)."""

    view: str
    since: Instant | None

    def again(self, first: "Start") -> bool:
        """Whether everything that began there is read again from here, in whatever way."""
        return self.since is None or (self.view == first.view and self.since == first.since)


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request of the relay through all its attempts, as the network sees it.

    `sent`: when the answer's own first attempt was sent. `as_of` and `until` are what the contract allows the relay to
    conclude from the final answer.
    """

    lane: Lane
    tick: int
    query: Mapping[str, str]
    sent: float = 0.0
    as_of: Instant | None = None
    until: Instant | None = None
    lied: bool = False
    truncating: bool = False

    @property
    def start(self) -> Start | None:
        """Where it begins to read; None for a page that follows another by its token."""
        if self.query["page_token"]:
            return None
        view = "create_time" if "create_time" in self.query["order_by"] else "update_time"
        text = self.query["filter"].partition('"')[2].partition('"')[0]
        return Start(view=view, since=parse_time(text) if text else None)


_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


@dataclass(slots=True, kw_only=True)
class _Letter:
    """A request on its way."""

    request: Request


class _Reply:
    """As much of an `httpx.Response` as the exchange reads."""

    def __init__(self, answer: Served) -> None:
        self.status_code = answer.status
        self.headers = dict(answer.headers)
        self._body = answer.body
        self._cut = answer.wire == "truncated"

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        yield self._body
        if self._cut:
            raise httpx.ReadError("the connection ended within the body")

    async def aclose(self) -> None:
        pass


class Line:
    """As much of an `httpx.AsyncClient` as the exchange uses, with the simulator at its end."""

    def __init__(self, surroundings: Surroundings, simulator: Simulator, local: Hand) -> None:
        self._surroundings = surroundings
        self._simulator = simulator
        self._local = local

    def build_request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: Any,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
    ) -> _Letter:
        del timeout
        path = url.removeprefix(API).removeprefix("https://iam.test")
        if data is None:
            return _Letter(request=Request(method=method, path=path, query=params or {}, headers=headers))
        form = {**headers, "content-type": "application/x-www-form-urlencoded"}
        return _Letter(request=Request(method=method, path=path, headers=form, body=urlencode(data).encode()))

    async def send(self, letter: _Letter, *, stream: bool) -> _Reply:
        del stream
        asked = _asked.get()
        request = letter.request
        if asked is not None and "response-id" not in request.headers:
            asked.sent = self._local.monotonic()
        self._surroundings.point("request")
        await asyncio.sleep(self._surroundings.travel())
        if asked is not None:
            met = {rule.fault.effect for rule in self._simulator.faults.active()}
            asked.lied |= bool(met & {"repeat_page", "ignore_order"})
            asked.truncating |= "truncate_times" in met
        answer = self._simulator.handle(request)
        await asyncio.sleep(self._surroundings.travel() + answer.delay_seconds)
        self._surroundings.point("answer")
        if answer.wire in {"closed", "reset"}:
            raise httpx.ReadError("the connection ended")
        if asked is not None and answer.status == 200:
            now = self._local.now()
            date = answer.headers.get("date")
            server = int(parsedate_to_datetime(date).timestamp()) * SECOND if date else now
            asked.as_of = min(now, server) - int((self._local.monotonic() - asked.sent) * SECOND)
            asked.until = max(now, server)
        return _Reply(answer)

    async def aclose(self) -> None:
        pass


class Watched:
    """The relay's own client, and what the network made of each request."""

    def __init__(
        self,
        client: EsetClient,
        *,
        tick: Callable[[], int],
        asks: Callable[[Asked], None],
        told: Callable[[Asked], None],
    ) -> None:
        self._client = client
        self._tick = tick
        self._asks = asks
        self._told = told

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
        query = {"filter": filter, "order_by": order_by, "page_size": str(page_size), "page_token": page_token}
        asked = Asked(lane=lane, tick=self._tick(), query=query)
        self._asks(asked)
        token = _asked.set(asked)
        try:
            answer = await self._client.list_incidents(
                filter=filter, order_by=order_by, page_size=page_size, page_token=page_token, lane=lane, decode=decode
            )
        finally:
            _asked.reset(token)
        self._told(asked)
        return answer

    async def get_incident(self, uuid: str, *, lane: Lane = "live") -> Observed | None:
        return await self._client.get_incident(uuid, lane=lane)


@dataclass(slots=True, kw_only=True)
class Shore:
    """What one sink's far side holds, for ever, and the troubles it has. Survives the relay."""

    name: str
    atomic: bool
    batch: int
    arrivals: list[Arrival] = field(default_factory=list)
    position: Position | None = None
    refused: set[str] = field(default_factory=set)
    down: int = 0
    """So many sends fail with nothing done."""
    unsure: int = 0
    """So many sends fail although all was taken."""
    refusing: int = 0
    """So many events are refused, for ever."""
    opened: int = 0
    """How often an atomic one was opened: each time fences whoever had it before."""


class MemorySink:
    """A sink in memory: plain, or atomic with its position beside the events."""

    def __init__(self, shore: Shore, surroundings: Surroundings, journal_id: str) -> None:
        self.max_batch = shore.batch
        self.atomic = shore.atomic
        self._shore = shore
        self._surroundings = surroundings
        self._journal_id = journal_id
        self._epoch = 0

    async def open(self) -> Position | None:
        self._surroundings.point("open")
        await asyncio.sleep(self._surroundings.travel())
        self._shore.opened += 1
        self._epoch = self._shore.opened
        return self._shore.position

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        shore = self._shore
        self._surroundings.point("send")
        await asyncio.sleep(self._surroundings.travel())
        if shore.down:
            shore.down -= 1
            raise Unavailable("the far side is down")
        if self.atomic and self._epoch != shore.opened:
            raise Unavailable("another process has this sink")
        refused = self._refused(batch)
        if refused:
            raise Refused("not these", positions=refused)
        shore.arrivals += [Arrival(position=d.position, id=d.id, uuid=d.uuid, body=d.body) for d in batch]
        if self.atomic and upto is not None:
            shore.position = Position(journal_id=self._journal_id, position=upto)
        self._surroundings.point("taken")
        await asyncio.sleep(self._surroundings.travel())
        self._surroundings.point("acknowledged")
        if shore.unsure:
            shore.unsure -= 1
            raise Unavailable("no answer from the far side")

    def _refused(self, batch: Sequence[Delivery]) -> dict[int, str]:
        shore = self._shore
        held = {arrival.id for arrival in shore.arrivals}
        for delivery in batch:
            if shore.refusing and delivery.id not in held:
                shore.refusing -= 1
                shore.refused.add(delivery.id)
        return {delivery.position: "not wanted" for delivery in batch if delivery.id in shore.refused}

    async def probe(self) -> str:
        return "in memory"

    async def close(self, timeout_seconds: float) -> None:
        pass
