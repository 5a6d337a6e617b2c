"""What every sink that people read does alike: one message for one event, one digest for several, notices between them.

Not here: what a message looks like, and what the far side's answers mean.
"""

import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import httpx
import msgspec

from relay.clock import Clock, Instant
from relay.formats.message import Digest, Facts, Notice, digest_of, facts_of
from relay.sinks import Delivery, Position
from relay.sinks.post import Poster, Reply

_HEADERS: Final = {"content-type": "application/json; charset=utf-8"}


class Look(Protocol):
    """The module of `relay.formats` that makes payloads for one far side."""

    def message(self, facts: Facts) -> dict[str, Any]:
        """One event."""
        ...

    def digest(self, digest: Digest) -> dict[str, Any]:
        """Several events."""
        ...

    def notice(self, notice: Notice, *, now: Instant) -> dict[str, Any]:
        """What is no event."""
        ...


class ChatSink(abc.ABC):
    """Posts to the URL that `url` names at that moment.

    `links` maps sources to templates of a link; `digest_above` is only named in a digest.
    """

    max_batch = 50
    atomic = False
    outcome: Literal["delivered", "accepted"]
    kind: str
    look: Look

    def __init__(
        self,
        name: str,
        *,
        url: Callable[[], str],
        http: httpx.AsyncClient,
        timeout_seconds: float,
        omit: Collection[str],
        links: Mapping[str, str],
        clock: Clock,
        digest_above: int | None = None,
    ) -> None:
        self._name = f"{self.kind} {name}"
        self._poster = Poster(self._name, url=url, http=http, timeout_seconds=timeout_seconds, clock=clock)
        self._omit = frozenset(omit)
        self._links = links
        self._digest_above = digest_above
        self._clock = clock

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    async def open(self) -> Position | None:
        """Nothing to connect to: each message is a request of its own."""
        return None

    async def send(self, batch: Sequence[Delivery], *, upto: int | None = None) -> None:
        """One message for one event, one digest for several; returns when the far side has taken it."""
        if not batch:
            return
        if len(batch) == 1:
            payload = self.look.message(facts_of(batch[0], omit=self._omit, links=self._links))
        else:
            payload = self.look.digest(digest_of(batch, omit=self._omit, links=self._links, above=self._digest_above))
        await self._post(payload, [delivery.position for delivery in batch])

    async def tell(self, notice: Notice) -> None:
        """Posts a notice. Raises as `send` does; a refusal names no position."""
        await self._post(self.look.notice(notice, now=self._clock.now()), [])

    async def probe(self) -> str:
        """Connects and posts no message; where the far side can be asked without one, `; ` and what it said follow.

        Raises Gone as `send` does, when the far side would take none.
        """
        found = await self._poster.probe()
        said = await self._ask()
        return f"{found}; {said}" if said else found

    async def close(self, timeout_seconds: float) -> None:
        """Closes the connections."""
        await self._poster.close()

    async def _post(self, payload: dict[str, Any], positions: Collection[int]) -> None:
        await self._turn()
        reply = await self._poster.post(msgspec.json.encode(payload), _HEADERS)
        self._require_taken(reply, positions)

    async def _turn(self) -> None:  # noqa: B027  # most far sides have no pace
        """Waits as long as the far side's pace demands: here, not at all."""

    async def _ask(self) -> str:
        """Asks whether a message would be taken, by a request that posts none; empty when that is not told."""
        return ""

    @abc.abstractmethod
    def _require_taken(self, reply: Reply, positions: Collection[int]) -> None:
        """Returns when the answer is a success. Raises Refused, Unavailable or Gone."""
