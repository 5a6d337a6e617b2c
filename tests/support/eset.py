"""A scripted ESET Connect behind httpx's mock transport, and a client in front of it. No sockets, no waiting."""

from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx

from relay.clock import SECOND, Instant
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import EsetClient, Patience
from tests.support.clock import FakeClock

API = "https://api.test"
TOKEN_URL = "https://iam.test/oauth/token"
PASSWORD = "canary&p=a+s%s ü☃"
EMPTY_PAGE: dict[str, Any] = {"incidents": [], "nextPageToken": ""}

Scripted = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class FarSide:
    """Answers what it was told to, in order; then an empty page, or a fresh token."""

    def __init__(self) -> None:
        self.api: list[Scripted] = []
        self.iam: list[Scripted] = []
        self.api_requests: list[httpx.Request] = []
        self.iam_requests: list[httpx.Request] = []
        self.expires_in: Any = 3600

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "iam.test":
            self.iam_requests.append(request)
            return self._next(self.iam, request) or self.token()
        self.api_requests.append(request)
        return self._next(self.api, request) or httpx.Response(200, json=EMPTY_PAGE)

    def token(self, **changes: Any) -> httpx.Response:
        number = len(self.iam_requests)
        fields = {
            "access_token": f"canary-access-{number}",
            "refresh_token": f"canary-refresh-{number}",
            "token_type": "Bearer",
            "expires_in": self.expires_in,
        }
        return httpx.Response(200, json=fields | changes)

    def grants(self) -> list[str]:
        """How each token was asked for."""
        return [httpx.QueryParams(request.content.decode())["grant_type"] for request in self.iam_requests]

    def response_ids(self) -> list[str]:
        return [request.headers.get("response-id", "") for request in self.api_requests]

    def authorizations(self) -> list[str]:
        return [request.headers["authorization"].removeprefix("Bearer ") for request in self.api_requests]

    @staticmethod
    def _next(script: list[Scripted], request: httpx.Request) -> httpx.Response | None:
        if not script:
            return None
        scripted = script.pop(0)
        if isinstance(scripted, Exception):
            raise scripted
        return scripted if isinstance(scripted, httpx.Response) else scripted(request)


class Noted:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self.throttles: list[tuple[str, float]] = []
        self.backoffs: list[Instant | None] = []

    def answered(self, code: str) -> None:
        self.codes.append(code)

    def throttled(self, code: str, seconds: float) -> None:
        self.throttles.append((code, seconds))

    def backing_off(self, until: Instant | None) -> None:
        self.backoffs.append(until)


class Bench:
    """A client of a scripted far side, its account, and the clock that both live by. Jitter is always the whole."""

    def __init__(self, *, patience: Patience | None = None, secret: Callable[[], str] = lambda: PASSWORD) -> None:
        self.far = FarSide()
        self.clock = FakeClock()
        self.noted = Noted()
        self.budget = RateBudget(1_000_000)
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(self.far.handle))
        self.patience = patience or Patience()
        self.account = Account(
            token_url=TOKEN_URL,
            username="api@acme.example",
            secret=secret,
            http=self.http,
            budget=self.budget,
            clock=self.clock,
            patience=self.patience,
            observer=self.noted,
            draw=lambda: 1.0,
        )
        self.client = self.another_client()

    def another_client(self) -> EsetClient:
        """Another source of the same account."""
        return EsetClient(
            source="acme",
            base_url=API,
            account=self.account,
            http=self.http,
            budget=self.budget,
            clock=self.clock,
            patience=self.patience,
            observer=self.noted,
            draw=lambda: 1.0,
        )


def date_header(instant: Instant) -> dict[str, str]:
    """A `Date` header, cut to whole seconds as HTTP demands."""
    return {"date": formatdate(instant // SECOND, usegmt=True)}
