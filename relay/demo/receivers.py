"""The far sides of the demo that are sent to: a receiver of webhooks, and a channel as Slack's incoming webhooks are.

Small servers inside the caller's loop. They fail when they are told to, and note all that they take.
"""

import asyncio
import base64
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from relay.clock import Clock, Instant
from relay.demo.arrivals import arrival_of
from relay.demo.chat import Digest, Message, Notice, Post, post_of
from relay.demo.checker import Arrival
from relay.web import bind, serve

RETRY: Final = ("0s", "1s")
"""The schedule of the webhook: short, so that a dead letter comes of it within the demo."""
DIGEST_ABOVE: Final = 5
HOST: Final = "127.0.0.1"

_PATH: Final = "/hook"
_DIRECT: Final[Mapping[str, Any]] = {"proxy": "none", "timeout": "5s"}


class _CloudEvent(msgspec.Struct, frozen=True):
    id: str
    subject: str
    data: msgspec.Raw


_read = msgspec.json.Decoder(_CloudEvent).decode


class EventReceiver:
    """What a receiver of the `webhook` sink does: verifies the signature, takes the event, answers 204."""

    name = "webhook"
    may_repeat = True

    def __init__(self, clock: Clock) -> None:
        self.arrivals: list[Arrival] = []
        self.refused: list[Arrival] = []
        """What was answered 422, each time."""
        self.turned_away = 0
        """How many requests came while it was gone."""
        self.sink: Mapping[str, Any] = {}
        self._clock = clock
        self._secret = secrets.token_bytes(24)
        self._gone = False
        self._refusing = ""

    @property
    def note(self) -> str:
        """How it was counted."""
        if len({arrival.id for arrival in self.arrivals}) < len(self.arrivals):
            return "same webhook-id, so a receiver can drop it"
        return "every signature was verified"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Listens until the block is left."""
        async with _serving(self._answer) as url:
            self.sink = {
                "type": "webhook",
                "url": url,
                "secrets": f"whsec_{base64.b64encode(self._secret).decode()}",
                "retry": list(RETRY),
                "notify": Channel.name,
                **_DIRECT,
            }
            yield

    def remove(self) -> None:
        """Answers 410 from now on."""
        self._gone = True

    def restore(self) -> None:
        """Is there again."""
        self._gone = False

    def refuse(self, uuid: str) -> None:
        """Answers 422 to whatever is about this incident; to nothing, when it is empty."""
        self._refusing = uuid

    async def follow(self) -> None:
        """Nothing to look for: what comes is noted as it comes."""
        await asyncio.Event().wait()

    async def finish(self) -> None:
        """Nothing is left to read."""

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        now = self._clock.now()
        if self._gone:
            self.turned_away += 1
            return PlainTextResponse("this webhook was removed", status_code=410)
        arrival = self._arrival(request.headers, body, now)
        if not self._is_signed(request.headers, body):
            self.arrivals.append(replace(arrival, id=""))
            return PlainTextResponse("the signature is not valid", status_code=401)
        if self._refusing and arrival.uuid == self._refusing:
            self.refused.append(arrival)
            return PlainTextResponse("this event cannot be processed", status_code=422)
        self.arrivals.append(arrival)
        return Response(status_code=204)

    def _arrival(self, headers: Mapping[str, str], body: bytes, now: Instant) -> Arrival:
        """Named as a receiver does: by `webhook-id` and subject."""
        try:
            event = _read(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return arrival_of(body, at=now)
        id_ = headers.get("webhook-id", "")
        return replace(arrival_of(bytes(event.data), at=now), id=id_ if id_ == event.id else "", uuid=event.subject)

    def _is_signed(self, headers: Mapping[str, str], body: bytes) -> bool:
        content = f"{headers.get('webhook-id')}.{headers.get('webhook-timestamp')}.".encode() + body
        expected = f"v1,{base64.b64encode(hmac.digest(self._secret, content, 'sha256')).decode()}"
        return any(hmac.compare_digest(expected, given) for given in headers.get("webhook-signature", "").split())


class Channel:
    """What Slack does with an incoming webhook: posts, and answers `ok`."""

    name = "slack"

    def __init__(self, clock: Clock) -> None:
        self.posts: list[Post] = []
        """All that was posted, in its order."""
        self.turned_away = 0
        """How many requests came while it was down."""
        self.sink: Mapping[str, Any] = {}
        self._clock = clock
        self._down = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Listens until the block is left."""
        async with _serving(self._answer) as url:
            self.sink = {"type": "slack", "url": url, "digest_above": DIGEST_ABOVE, **_DIRECT}
            yield

    def fail(self) -> None:
        """Answers 503 from now on."""
        self._down = True

    def recover(self) -> None:
        """Is well again."""
        self._down = False

    def posted_since(self, since: Instant) -> bool:
        """Whether a message about changes came."""
        return any(post.at >= since for post in self.posts if isinstance(post, Message | Digest))

    def told_of(self, sink: str) -> str:
        """What was said of a parked sink; empty when nothing was."""
        said = [post.text for post in self.posts if isinstance(post, Notice)]
        return next((text for text in said if text.startswith(f"Sink {sink} is parked")), "")

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        if self._down:
            self.turned_away += 1
            return PlainTextResponse("service_unavailable", status_code=503)
        self.posts.append(post_of(body, at=self._clock.now()))
        return PlainTextResponse("ok")


@asynccontextmanager
async def _serving(answer: Callable[[Request], Awaitable[Response]]) -> AsyncIterator[str]:
    """The URL at which it listens, until the block is left."""
    app = Starlette(routes=[Route(_PATH, answer, methods=["POST"])])
    listener = bind(HOST, 0)
    url = f"http://{HOST}:{listener.getsockname()[1]}{_PATH}"
    server = asyncio.create_task(serve(app, listener), name=f"serve {url}")
    try:
        yield url
    finally:
        server.cancel()
        with suppress(asyncio.CancelledError):
            await server
