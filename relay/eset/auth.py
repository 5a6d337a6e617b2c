"""Accounts of ESET Connect: login by password, token refresh with rotation, and the back-off after a refused login.

Not here: the requests that a token is for (`relay.eset.client`). Source: ESET Connect help, "Authentication".
"""

import asyncio
import binascii
import copy
import html
import json
import random
import re
from base64 import b64decode
from collections import deque
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, quote_plus

import httpx
import msgspec
import structlog

from relay.clock import Clock, Instant
from relay.errors import BadAnswer, LoginRefused, SourceError
from relay.eset.budget import RateBudget
from relay.eset.exchange import DEFAULT_PATIENCE, UNOBSERVED, Countdown, Exchange, Observer, Patience, Pause, Reply
from relay.logs import Repeats

REFUSED_INITIAL_SECONDS = 60.0
REFUSED_MAX_SECONDS = 3600.0
MAX_RENEWAL_MARGIN_SECONDS = 60.0
SHORTEST_TOKEN = 8
"""A shorter one would be found in answers by chance."""

_HINTS: Final = {
    400: "are user name and password right?",
    401: "are user name and password right?",
    403: "is this an API user of ESET Connect, with rights, and of this region?",
    404: "is the region, or token_url, right?",
}

_BASIC = re.compile(r"(?i)\b(basic\s+)([A-Za-z0-9+/]{4,}={0,2})")

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Token:
    """What a login or refresh brought. Compared by identity; never shows its texts."""

    __slots__ = ("_access", "_refresh", "expires")

    def __init__(self, *, access: str, refresh: str, expires: float | None) -> None:
        """`expires` on the monotonic clock, None when the server did not say."""
        self._access = access
        self._refresh = refresh
        self.expires = expires

    @property
    def header(self) -> str:
        """The value of `Authorization`. The API knows no other scheme, however `token_type` is spelled."""
        return f"Bearer {self._access}"

    @property
    def refresh(self) -> str:
        """The refresh token, or nothing."""
        return self._refresh


class _TokenAnswer(msgspec.Struct):
    access_token: str
    refresh_token: str | None = None
    token_type: str | None = None
    expires_in: int | float | str | None = None


_read_token = msgspec.json.Decoder(_TokenAnswer).decode


class Account:
    """One API user, shared by every source that uses it: its token, its pause after a 429, its refused logins.

    `secret` returns the password as it is now (a file may change under us), and may raise OSError or UnicodeError.
    Owns `http`.
    """

    def __init__(
        self,
        *,
        token_url: str,
        username: str,
        secret: Callable[[], str],
        http: httpx.AsyncClient,
        budget: RateBudget,
        clock: Clock,
        patience: Patience = DEFAULT_PATIENCE,
        observer: Observer = UNOBSERVED,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.pause = Pause(clock)
        self._token_url = token_url
        self._username = username
        self._secret = secret
        self._http = http
        self._clock = clock
        self._exchange = Exchange(
            http=http,
            clock=clock,
            budget=budget,
            pause=self.pause,
            patience=patience,
            observer=observer,
            draw=draw,
            redact=self.redact,
            fields={"username": username},
        )
        self._turn = asyncio.Lock()
        self._token: Token | None = None
        self._settled: Token | None = None
        self._renewals = 0
        self._failure: SourceError | None = None
        self._refused = Countdown(clock)
        self._refusals = 0
        self._refusal: LoginRefused | None = None
        self._repeats = Repeats(clock)
        self._refused_secret = ""
        self._shown_to_nobody: deque[str] = deque(maxlen=16)
        self._tokens: deque[bytes] = deque(maxlen=8)

    def __repr__(self) -> str:
        return f"Account(username={self._username!r}, token_url={self._token_url!r})"

    @property
    def paused_until(self) -> Instant | None:
        """When requests of this account go on after a 429; None: they do."""
        return self.pause.until

    @property
    def refused_until(self) -> Instant | None:
        """When the next login may be tried after a refused one; None: now. A changed secret ends it early."""
        return self._refused.until

    async def token(self) -> Token:
        """A token that is good by its expiry; refreshes or logs in as needed.

        Raises LoginRefused (at once and without a request while backing off), SourceUnavailable, BadAnswer.
        """
        token = self._token
        if token is not None and (token.expires is None or self._clock.monotonic() < token.expires):
            return token
        return await self.renew(token)

    async def renew(self, used: Token | None, *, by_password: bool = False) -> Token:
        """A token other than `used`. Who asks while another does gets that one's token, or its failure.

        Raises as `token` does.
        """
        renewals = self._renewals
        async with self._turn:
            if self._token is not None and self._token is not used:
                return self._token
            if self._renewals != renewals and self._failure is not None:
                raise copy.copy(self._failure)
            try:
                self._token = await self._obtain(used, by_password=by_password)
                self._failure = None
            except SourceError as exc:
                self._failure = exc
                raise
            finally:
                self._renewals += 1
            return self._token

    async def doubt(self, used: Token) -> Token | None:
        """A 400 may mean bad authorization: another token to try, or None when it is not the token's fault.

        Once per access token. Raises as `token` does.
        """
        if used is self._settled:
            return None
        self._settled = await self.renew(used)
        return self._settled

    def redact(self, text: str) -> str:
        """`text` without passwords and tokens of late, however they are escaped, and without a proxy's credentials."""
        spellings = {spelling for secret in self._shown_to_nobody for spelling in _spellings(secret)}
        for spelling in sorted(spellings, key=len, reverse=True):
            text = text.replace(spelling, "***")
        return _BASIC.sub(_hide_credentials, text)

    def without_tokens(self, body: bytes) -> bytes:
        """An answer without tokens of late. Passwords may be words that incidents hold, and are sent elsewhere."""
        for token in self._tokens:
            body = body.replace(token, b"***")
        return body

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    # -- getting a token ------------------------------------------------------------------------------------------

    async def _obtain(self, used: Token | None, *, by_password: bool) -> Token:
        self._token = None  # a refresh token serves once: an answer that gets lost on its way must not be asked again
        if used is not None and used.refresh and not by_password:
            token = await self._refresh(used.refresh)
            if token is not None:
                return token
        return await self._log_in()

    async def _refresh(self, refresh_token: str) -> Token | None:
        """None when the refresh token is not accepted."""
        try:
            reply = await self._post("refresh the token", grant_type="refresh_token", refresh_token=refresh_token)
        except BadAnswer as exc:
            log.info("token refresh failed", username=self._username, reason=exc.reason)
            return None
        log.info("token refresh answered", username=self._username, status=reply.status, request_id=reply.request_id)
        return reply.content

    async def _log_in(self) -> Token:
        secret = self._current_secret()
        if self._refusal is not None and self._refused.left and secret == self._refused_secret:
            raise copy.copy(self._refusal)
        self._shown_to_nobody.append(secret)
        reply = await self._post("log in", grant_type="password", username=self._username, password=secret)
        if reply.content is None:
            raise self._refuse(reply, secret)
        self._refusal = None
        self._refusals = 0
        self._repeats.over()
        self._refused.end()
        self._refused_secret = ""
        log.info("logged in", username=self._username, request_id=reply.request_id)
        return reply.content

    async def _post(self, what: str, **form: str) -> Reply[Token]:
        return await self._exchange.ask("POST", self._token_url, what=what, decode=self._decode, lane="live", data=form)

    def _refuse(self, reply: Reply[Token], secret: str) -> LoginRefused:
        if secret != self._refused_secret:
            self._refusals = 0
        seconds = min(REFUSED_INITIAL_SECONDS * 2 ** min(self._refusals, 16), REFUSED_MAX_SECONDS)
        self._refusals += 1
        self._refused.end()
        self._refused.extend(seconds)
        self._refused_secret = secret
        self._refusal = LoginRefused(
            f"log in as {self._username}: refused (status {reply.status}, request-id {reply.request_id or 'none'})",
            status=reply.status,
            hint=_HINTS.get(reply.status, "is token_url the token endpoint?"),
            request_id=reply.request_id,
        )
        repeat = self._repeats.again(f"status {reply.status}")
        write = log.warning if repeat.due else log.debug
        write(
            "login refused",
            username=self._username,
            status=reply.status,
            request_id=reply.request_id,
            retry_in_seconds=seconds,
            failures=repeat.times,
            since=repeat.since,
        )
        return copy.copy(self._refusal)

    def _current_secret(self) -> str:
        try:
            secret = self._secret()
            secret.encode()  # bytes of the environment that are no text cannot be sent
        except (OSError, UnicodeError):
            problem = "the password cannot be read"
        else:
            return secret
        raise LoginRefused(f"log in as {self._username}: {problem}", hint="is its file there, and readable for us?")

    def _decode(self, body: bytes) -> Token:
        """Reads the token endpoint's 200; no text of it goes into an error. Raises BadAnswer."""
        answer = _parse(body)
        if answer is None or not _fits_header(answer.access_token):
            raise BadAnswer("not a token", status=200)
        if (answer.token_type or "bearer").lower() != "bearer":
            raise BadAnswer("a token that is not a bearer token", status=200)
        seconds = _positive(answer.expires_in)
        for token in filter(None, (answer.access_token, answer.refresh_token)):
            self._shown_to_nobody.append(token)
            if len(token) >= SHORTEST_TOKEN:
                self._tokens += {token.encode(), token.replace("/", "\\/").encode()}
        return Token(
            access=answer.access_token,
            refresh=answer.refresh_token or "",
            expires=None if seconds is None else self._clock.monotonic() + seconds - _margin(seconds),
        )


class Ticket:
    """The way of one request through 401 and 400: refresh once, log in once; the token's doubt once."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._token: Token | None = None
        self._renewals = 0

    async def header(self) -> str:
        """The value of `Authorization`, good right now. Raises as `Account.token` does."""
        self._token = await self._account.token()
        return self._token.header

    async def renew(self, status: int) -> bool:
        """After a 400 or 401: True when the request is worth sending again. Raises as `Account.token` does."""
        if self._token is None:
            return False
        if status == 400:
            return await self._account.doubt(self._token) is not None
        self._renewals += 1
        if self._renewals > 2:
            return False
        await self._account.renew(self._token, by_password=self._renewals == 2)
        return True


def _parse(body: bytes) -> _TokenAnswer | None:
    try:
        return _read_token(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _spellings(secret: str) -> set[str]:
    """As an error body may show it: plain, in JSON, in a form or a URL, in HTML."""
    in_json = json.dumps(secret)[1:-1]
    return {
        secret,
        in_json,
        in_json.replace("/", "\\/"),
        in_json.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"),
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        html.escape(secret),
    }


def _hide_credentials(found: re.Match[str]) -> str:
    """Only what is a name and a password: "basic authentication" is none."""
    try:
        credentials = b64decode(found[2])
    except binascii.Error:
        return found[0]
    return f"{found[1]}***" if b":" in credentials else found[0]


def _fits_header(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _positive(value: float | str | None) -> float | None:
    try:
        seconds = float(value or 0)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < float("inf") else None


def _margin(expires_in_seconds: float) -> float:
    """A token is renewed this long before it expires, so that it lives through the request it goes with."""
    return min(MAX_RENEWAL_MARGIN_SECONDS, expires_in_seconds / 10)
