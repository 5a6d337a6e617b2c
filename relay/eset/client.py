"""The incident endpoints of ESET Connect for one source: list a page, get an incident.

Not here: which pages to ask for, and what their records mean. The waiting and retrying is `relay.eset.exchange`'s.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar
from urllib.parse import quote

import httpx

from relay.clock import Clock, Instant
from relay.errors import AccessDenied, BadAnswer, QueryRefused, SourceUnavailable
from relay.eset.answers import HINTS, one_line
from relay.eset.auth import Account, Ticket
from relay.eset.budget import Lane, RateBudget
from relay.eset.exchange import DEFAULT_PATIENCE, UNOBSERVED, Exchange, Observer, Patience, Reply
from relay.eset.wire import decode_incident
from relay.incidents import Observed

__all__ = ["Answer", "EsetClient", "Observer", "Patience"]

T = TypeVar("T")

MAX_PAGE_TOKEN_CHARACTERS = 4096
"""ESET declares 128; a URL of 64 KiB cannot be sent at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """What a list request brought.

    `as_of`: everything that changed before it was there to be listed: the earlier of the `Date` header and our clock,
    less the time since the request was first sent. `until`: the later of both when the answer came. `skew_seconds`:
    the server's clock less ours, None without a `Date`.
    """

    content: T
    as_of: Instant
    until: Instant
    skew_seconds: float | None
    request_id: str


class EsetClient:
    """One source's client. Owns `http`; `account` may be shared. `base_url` is the API without `/v2/incidents`."""

    def __init__(
        self,
        *,
        source: str,
        base_url: str,
        account: Account,
        http: httpx.AsyncClient,
        budget: RateBudget,
        clock: Clock,
        patience: Patience = DEFAULT_PATIENCE,
        observer: Observer = UNOBSERVED,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives the jitter, 0 to 1."""
        self._url = f"{base_url.rstrip('/')}/v2/incidents"
        self._account = account
        self._http = http
        self._exchange = Exchange(
            http=http,
            clock=clock,
            budget=budget,
            pause=account.pause,
            patience=patience,
            observer=observer,
            draw=draw,
            redact=account.redact,
            fields={"source": source},
        )

    async def list_incidents(
        self,
        *,
        filter: str,  # noqa: A002  # the API's own word
        order_by: str,
        page_size: int,
        page_token: str = "",
        lane: Lane = "live",
        decode: Callable[[bytes], T],
    ) -> Answer[T]:
        """One page, read by `decode`; a BadAnswer that it raises is retried like a 5xx. Empty texts are not sent.

        `decode` never sees a token of ours: what a far side echoes into a record is masked before it goes anywhere.
        Raises LoginRefused, AccessDenied, QueryRefused (400 to a filter or an order), BadAnswer, SourceUnavailable.
        """
        if len(page_token) > MAX_PAGE_TOKEN_CHARACTERS:
            raise BadAnswer(f"list incidents: a page token of more than {MAX_PAGE_TOKEN_CHARACTERS} characters")
        asked = {"filter": filter, "orderBy": order_by, "pageSize": str(page_size), "pageToken": page_token}
        reply = await self._exchange.ask(
            "GET",
            self._url,
            what="list incidents",
            decode=lambda body: decode(self._account.without_tokens(body)),
            lane=lane,
            ticket=Ticket(self._account),
            params={name: value for name, value in asked.items() if value},
        )
        if reply.status != 200:
            self._fail(reply, "list incidents", query=bool(filter or order_by))
        return Answer(
            content=reply.content,  # type: ignore[arg-type]  # a 200 has it
            as_of=reply.as_of,
            until=reply.until,
            skew_seconds=reply.skew_seconds,
            request_id=reply.request_id,
        )

    async def get_incident(self, uuid: str, *, lane: Lane = "live") -> Observed | None:
        """One incident with all its fields; None when the server says that there is none (404).

        Raises LoginRefused, AccessDenied, BadAnswer, SourceUnavailable.
        """
        reply = await self._exchange.ask(
            "GET",
            f"{self._url}/{quote(uuid, safe='')}",
            what="get incident",
            decode=lambda body: _the_one(decode_incident(self._account.without_tokens(body)), uuid),
            lane=lane,
            ticket=Ticket(self._account),
        )
        if reply.status == 404:
            return None
        if reply.status != 200:
            self._fail(reply, "get incident", query=False)
        return reply.content

    async def close(self) -> None:
        """Closes its connections; the account's stay."""
        await self._http.aclose()

    def _fail(self, reply: Reply[T], what: str, *, query: bool) -> NoReturn:
        detail = one_line(self._account.redact(reply.body.decode(errors="replace")))
        label = f"status {reply.status}, request-id {reply.request_id or 'none'}"
        message = f"{what}: refused ({label})" + (f": {detail}" if detail else "")
        hint = HINTS.get(reply.status, "is base_url the API itself, with no gateway answering in its place?")
        if reply.status != 400:
            raise AccessDenied(message, status=reply.status, hint=hint, request_id=reply.request_id)
        if query:
            hint = "the filter or the order is not accepted"
            raise QueryRefused(message, status=400, hint=hint, request_id=reply.request_id)
        raise SourceUnavailable(message, status=400, hint=hint, reason="bad_request", request_id=reply.request_id)


def _the_one(incident: Observed, uuid: str) -> Observed:
    if incident.uuid != uuid:
        raise BadAnswer("another incident than was asked for", status=200)
    return incident
