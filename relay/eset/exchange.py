"""One request to ESET Connect, carried to its final answer: 202 chains, throttling, retries, limits of time and size.

Not here: tokens (`relay.eset.auth`), and what a final refusal means to the caller (`relay.eset.client`).
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import httpx
import structlog

from relay import __version__
from relay.clock import SECOND, Clock, Instant
from relay.errors import BadAnswer, SourceUnavailable
from relay.eset.answers import (
    Step,
    backoff_seconds,
    classify,
    collect_wait_seconds,
    is_throttling,
    one_line,
    retry_after_seconds,
    server_time,
)
from relay.eset.budget import Lane, RateBudget
from relay.logs import REPEAT_SECONDS, Repeats
from relay.transport import NETWORK_ERRORS, failure_reason

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_REFUSAL_BYTES = 64 * 1024
TOO_LARGE: Final = "too_large"
_FAILURES: Final = {
    "address": "forbidden address",
    "dns": "host name not found",
    "connect": "no connection",
    "tls": "TLS failed",
    "proxy": "refused by the proxy",
    "timeout": "no answer in time",
    "reset": "connection cut",
    "truncated": "answer cut short",
    "protocol": "not HTTP",
}
"""Why there was no answer, as people say it."""
HEADERS: Final = {
    "accept": "application/json",
    "user-agent": f"incident-relay/{__version__}",
    "3rd-integration": "incident-relay",
}

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what, and how often to try. Times are in seconds."""

    connect_seconds: float = 10.0
    read_seconds: float = 150.0
    """Silence on the line; ESET answers 504 after 120 s, so no less than that."""
    attempt_seconds: float = 300.0
    """One request and its whole answer."""
    collect_seconds: float = 600.0
    """A 202 chain: ESET keeps a result for 10 minutes."""
    total_seconds: float = 900.0
    """Everything from the first attempt to the final answer, pauses of the account included, waiting for the rate
    budget excluded."""
    backoff_initial_seconds: float = 1.0
    backoff_max_seconds: float = 300.0
    tries: int = 4
    """Attempts that may fail by 5xx, network or unreadable body."""
    rounds: int = 3
    """How often a request is sent afresh after its response-id expired or the query timed out."""


DEFAULT_PATIENCE: Final = Patience()


class Observer(Protocol):
    """Is told what the API answered and what we wait for; counts it."""

    def answered(self, code: str) -> None:
        """One attempt ended: an HTTP status, a `relay.transport.FailureReason`, or `too_large`."""
        ...

    def throttled(self, code: str, seconds: float) -> None:
        """An answer asked for less haste (429, 202, 50x); we wait that long because of it."""
        ...

    def backing_off(self, until: Instant | None) -> None:
        """The account pauses until then; None: it goes on."""
        ...


class Unobserved:
    """An observer that counts nothing."""

    def answered(self, code: str) -> None:
        """Nothing."""

    def throttled(self, code: str, seconds: float) -> None:
        """Nothing."""

    def backing_off(self, until: Instant | None) -> None:
        """Nothing."""


UNOBSERVED: Final = Unobserved()


class Ticket(Protocol):
    """The authorization of one request through all its attempts."""

    async def header(self) -> str:
        """The value of `Authorization`, good right now. Raises SourceError."""
        ...

    async def renew(self, status: int) -> bool:
        """After a 400 or 401: True when the request is worth sending again. Raises SourceError."""
        ...


class Countdown:
    """A time to wait, on the monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._end = clock.monotonic()

    @property
    def left(self) -> float:
        """Seconds to go; 0 when over."""
        return max(self._end - self._clock.monotonic(), 0.0)

    @property
    def until(self) -> Instant | None:
        """When it is over by the wall clock; None when it is."""
        return self._clock.now() + int(self.left * SECOND) if self.left else None

    def extend(self, seconds: float) -> None:
        """Lasts at least that long from now."""
        self._end = max(self._end, self._clock.monotonic() + seconds)

    def end(self) -> None:
        """Is over now."""
        self._end = self._clock.monotonic()


class Pause(Countdown):
    """The wait of a whole account after a 429; shared by everything that uses the account."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._strikes = 0
        self._began = clock.monotonic()

    def strike(self, sent: float, asked_seconds: float | None, patience: Patience, random: float) -> None:
        """A request sent at `sent` (monotonic) got a 429; without a time asked for, each in a row waits longer.

        Requests that were under way when the pause began do not lengthen it by themselves.
        """
        if not asked_seconds:
            if self._strikes and sent <= self._began:
                return
            self._strikes += 1
            asked_seconds = backoff_seconds(
                self._strikes,
                initial=patience.backoff_initial_seconds,
                maximum=patience.backoff_max_seconds,
                random=random,
            )
        self._began = self._clock.monotonic()
        self.extend(asked_seconds)

    def relent(self) -> None:
        """A request was served: the next 429 starts from the shortest wait."""
        self._strikes = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[T]):
    """A final answer. `content` is there when `status` is 200, the start of `body` when it is not."""

    status: int
    content: T | None = None
    body: bytes = b""
    request_id: str = ""
    as_of: Instant
    until: Instant
    skew_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Got:
    """What one attempt brought. `status` is 0, and `failure` says why, when there was no whole answer."""

    status: int = 0
    failure: str = ""
    body: bytes = b""
    headers: httpx.Headers = field(default_factory=httpx.Headers)

    @property
    def code(self) -> str:
        return self.failure or str(self.status)

    @property
    def request_id(self) -> str:
        return one_line(self.headers.get("request-id", ""), characters=64)

    @property
    def response_id(self) -> str:
        """Nothing when it could not be sent back as it came."""
        text = str(self.headers.get("response-id", ""))
        return text if text.isascii() and text.isprintable() else ""


@dataclass(slots=True, kw_only=True)
class _Course:
    """Where one request stands."""

    what: str
    lane: Lane
    deadline: float
    asked: float
    sent: float = 0.0
    response_id: str = ""
    collected: int = 0
    rounds: int = 1
    failures: int = 0


class Exchange:
    """Asks one far side on behalf of one account."""

    def __init__(
        self,
        *,
        http: httpx.AsyncClient,
        clock: Clock,
        budget: RateBudget,
        pause: Pause,
        patience: Patience = DEFAULT_PATIENCE,
        observer: Observer = UNOBSERVED,
        draw: Callable[[], float] = random.random,
        redact: Callable[[str], str] = str,
        fields: dict[str, str] | None = None,
    ) -> None:
        """`draw` gives the jitter, 0 to 1; `redact` takes secrets out; `fields` go with every line of the log."""
        self._http = http
        self._redact = redact
        self._clock = clock
        self._budget = budget
        self._pause = pause
        self._patience = patience
        self._observer = observer
        self._draw = draw
        self._log = log.bind(**(fields or {}))
        self._retries = Repeats(clock, rest_seconds=REPEAT_SECONDS)
        self._fresh_starts = Repeats(clock, rest_seconds=REPEAT_SECONDS)
        self._pauses = Repeats(clock, rest_seconds=REPEAT_SECONDS)
        self._timeout = httpx.Timeout(
            connect=patience.connect_seconds, pool=patience.connect_seconds * 3, read=patience.read_seconds, write=30.0
        )

    async def ask(
        self,
        method: str,
        url: str,
        *,
        what: str,
        decode: Callable[[bytes], T],
        lane: Lane,
        ticket: Ticket | None = None,
        **request: Any,
    ) -> Reply[T]:
        """Sends a request until an answer is final: 200 and read, or a status that asking again does not change.

        `what` names the request in errors and logs; `request` is what httpx's `build_request` takes. `decode` reads
        the body of a 200; the BadAnswer that it raises is retried. Raises SourceUnavailable, BadAnswer, and what the
        ticket raises.
        """
        now = self._clock.monotonic()
        course = _Course(what=what, lane=lane, deadline=now + self._patience.total_seconds, asked=now)
        while True:
            got = await self._attempt(course, ticket, method, url, request)
            step = self._step(course, got)
            if step == "read":
                content = self._read(course, got, decode)
                if not isinstance(content, BadAnswer):
                    self._pause.relent()
                    return self._reply(course, got, content)
                await self._retry(course, got, content)
            elif step == "collect":
                await self._collect(course, got)
            elif step == "afresh":
                self._afresh(course, got)
            elif step == "pause":
                await self._throttle(course, got)
            elif step == "retry":
                await self._retry(course, got)
            elif step == "denied" or ticket is None or not await ticket.renew(got.status):
                return self._reply(course, got, None)

    # -- one attempt ----------------------------------------------------------------------------------------------

    async def _attempt(
        self, course: _Course, ticket: Ticket | None, method: str, url: str, options: dict[str, Any]
    ) -> _Got:
        if ticket:
            await ticket.header()  # a refused login fails here, before it costs a turn
        await self._turn(course)
        authorization = {"authorization": await ticket.header()} if ticket else {}
        given = {"response-id": course.response_id} if course.response_id else {}
        course.asked = self._clock.monotonic()
        if not course.response_id:
            course.sent = course.asked
        seconds = min(self._patience.attempt_seconds, max(course.deadline - course.asked, 0.0))
        request = self._http.build_request(
            method, url, headers={**HEADERS, **authorization, **given}, timeout=self._timeout, **options
        )
        got = await self._send(request, seconds)
        if "request-id" in got.headers:
            got.headers["request-id"] = self._redact(got.headers["request-id"])
        self._observer.answered(got.code)
        if got.failure == TOO_LARGE:
            problem = f"{course.what}: the answer is larger than {MAX_BODY_BYTES >> 20} MiB"
            raise BadAnswer(problem, reason=TOO_LARGE, request_id=got.request_id)
        return got

    async def _turn(self, course: _Course) -> None:
        """Waits until the account does not pause and the budget has room; the latter costs no patience."""
        while True:
            await self._sit_out(course)
            began = self._clock.monotonic()
            await self._budget.turn(course.lane)
            course.deadline += self._clock.monotonic() - began
            if not self._pause.left:
                return

    async def _sit_out(self, course: _Course) -> None:
        if not self._pause.left:
            return
        while (seconds := self._pause.left) > 0:
            if self._clock.monotonic() + seconds > course.deadline:
                raise SourceUnavailable(
                    f"{course.what}: throttled; the account pauses for {seconds:.0f} s more, beyond our patience",
                    status=429,
                    hint="does something else call ESET Connect with this account, or from this address?",
                    reason="throttled",
                )
            await self._clock.sleep(seconds)
        self._observer.backing_off(None)

    async def _send(self, request: httpx.Request, seconds: float) -> _Got:
        """Never raises: the errors' texts may hold secrets, so they end here."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._http.send(request, stream=True)
                try:
                    return await _receive(response)
                finally:
                    await response.aclose()
        except NETWORK_ERRORS as exc:
            return _Got(failure=failure_reason(exc))

    # -- the next step --------------------------------------------------------------------------------------------

    def _step(self, course: _Course, got: _Got) -> Step:
        if got.failure:
            return "retry"
        return classify(got.status, asked_with_id=bool(course.response_id), offers_id=bool(got.response_id))

    def _read(self, course: _Course, got: _Got, decode: Callable[[bytes], T]) -> T | BadAnswer:
        course.response_id = ""  # served by a 200, it is used up
        try:
            return decode(got.body)
        except BadAnswer as exc:
            return exc

    async def _collect(self, course: _Course, got: _Got) -> None:
        course.response_id = got.response_id or course.response_id
        seconds = collect_wait_seconds(course.collected)
        course.collected += 1
        if self._clock.monotonic() - course.sent + seconds > self._patience.collect_seconds:
            raise self._unavailable(course, got, "still not ready", reason="pending")
        self._observer.throttled(got.code, seconds)
        await self._wait(course, got, seconds)

    def _afresh(self, course: _Course, got: _Got) -> None:
        course.response_id = ""
        course.collected = 0
        if course.rounds >= self._patience.rounds:
            raise self._unavailable(course, got, f"not answered in {course.rounds} rounds", reason="expired")
        course.rounds += 1
        repeat = self._fresh_starts.again(got.code)
        write = self._log.info if repeat.due else self._log.debug
        write(
            "request begun afresh",
            what=course.what,
            status=got.status,
            round=course.rounds,
            request_id=got.request_id,
            retries=repeat.times,
            since=repeat.since,
        )

    async def _throttle(self, course: _Course, got: _Got) -> None:
        self._pause.strike(course.asked, self._asked_seconds(got), self._patience, self._draw())
        seconds = self._pause.left
        self._observer.throttled(got.code, seconds)
        self._observer.backing_off(self._pause.until)
        repeat = self._pauses.again(got.code)
        write = self._log.warning if repeat.due else self._log.debug
        write(
            "account paused",
            what=course.what,
            status=got.status,
            seconds=round(seconds, 1),
            request_id=got.request_id,
            pauses=repeat.times,
            since=repeat.since,
        )

    async def _retry(self, course: _Course, got: _Got, bad: BadAnswer | None = None) -> None:
        course.failures += 1
        if course.failures >= self._patience.tries:
            if bad is not None:
                problem = f"{course.what}: {bad}{_label(got)}"
                raise BadAnswer(problem, status=200, reason=bad.reason, request_id=got.request_id)
            raise self._unavailable(course, got, f"no useful answer, tries: {course.failures}")
        seconds = self._backoff(course.failures)
        asked_seconds = self._asked_seconds(got)
        if asked_seconds:
            self._pause.strike(course.asked, asked_seconds, self._patience, 0.0)
            self._observer.backing_off(self._pause.until)
            seconds = max(seconds, asked_seconds)
        if is_throttling(got.status):
            self._observer.throttled(got.code, seconds)
        reason = bad.reason if bad else got.code
        repeat = self._retries.again(reason)
        write = self._log.info if repeat.due else self._log.debug
        write(
            "request retried",
            what=course.what,
            reason=reason,
            seconds=round(seconds, 1),
            request_id=got.request_id,
            retries=repeat.times,
            since=repeat.since,
        )
        await self._wait(course, got, seconds)

    def _asked_seconds(self, got: _Got) -> float | None:
        server = server_time(got.headers.get("date"))
        return retry_after_seconds(got.headers.get("retry-after"), self._clock.now() if server is None else server)

    def _backoff(self, attempt: int) -> float:
        return backoff_seconds(
            attempt,
            initial=self._patience.backoff_initial_seconds,
            maximum=self._patience.backoff_max_seconds,
            random=self._draw(),
        )

    async def _wait(self, course: _Course, got: _Got, seconds: float) -> None:
        if self._clock.monotonic() + seconds > course.deadline:
            raise self._unavailable(course, got, f"not answered in {self._patience.total_seconds:.0f} s")
        await self._clock.sleep(seconds)

    def _unavailable(self, course: _Course, got: _Got, problem: str, *, reason: str = "") -> SourceUnavailable:
        if got.failure:
            reason = reason or got.failure
        return SourceUnavailable(
            f"{course.what}: {problem}{_label(got)}",
            status=got.status or None,
            reason=reason or "unavailable",
            request_id=got.request_id,
        )

    def _reply(self, course: _Course, got: _Got, content: T | None) -> Reply[T]:
        now = self._clock.now()
        server = server_time(got.headers.get("date"))
        took = int((self._clock.monotonic() - course.sent) * SECOND)
        return Reply(
            status=got.status,
            content=content,
            body=b"" if got.status == 200 else got.body,
            request_id=got.request_id,
            as_of=(now if server is None else min(now, server)) - took,
            until=now if server is None else max(now, server),
            skew_seconds=None if server is None else (server - now) / SECOND,
        )


async def _receive(response: httpx.Response) -> _Got:
    """The whole answer, unless it is larger than we take; of what is no 200, the start of the body will do."""
    status, headers = response.status_code, response.headers
    if "," in headers.get("content-encoding", ""):  # packed twice: a few bytes may unpack to more than the machine has
        return _Got(failure="protocol") if status == 200 else _Got(status=status, headers=headers)
    if status != 200:
        return _Got(status=status, headers=headers, body=await _start_of_body(response))
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return _Got(failure=TOO_LARGE, headers=headers)
    return _Got(status=status, headers=headers, body=bytes(body))


async def _start_of_body(response: httpx.Response) -> bytes:
    """What came before the end, the limit or an error: the status alone says what to do."""
    body = b""
    with suppress(*NETWORK_ERRORS):
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_REFUSAL_BYTES:
                break
    return body[:MAX_REFUSAL_BYTES]


def _label(got: _Got) -> str:
    """What was answered, and what support asks for."""
    if got.failure:
        return f" ({_FAILURES.get(got.failure, got.failure)})"
    return f" (status {got.status}, request-id {got.request_id or 'none'})"
