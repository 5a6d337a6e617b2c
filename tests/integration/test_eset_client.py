"""The client over real HTTP against the simulated ESET Connect, whose faults are injected one by one."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from relay.clock import SECOND
from relay.errors import AccessDenied, BadAnswer, LoginRefused, QueryRefused, SourceError, SourceUnavailable
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import Answer, EsetClient
from relay.eset.wire import DecodedPage, decode_page
from relay.simulator import Fault, Simulator, serve
from relay.transport import http_client
from tests.support.clock import START, FakeClock

USER = "api+user@acme.example"
PASSWORD = "p&ss=w+rd%41 ü☃\"'"


class Setup:
    """A simulator that is served, and a client of it; both live by one clock, which nobody waits for."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.clock = FakeClock()
        self.simulator = Simulator(self.clock)
        self.tenant = self.simulator.add_tenant(USER, PASSWORD, incidents=30, spread_seconds=3000)
        self.secret = PASSWORD

    async def open(self) -> None:
        served = await self._stack.enter_async_context(serve(self.simulator))
        budget = RateBudget(100_000)
        http = http_client(proxy="none")
        self.account = Account(
            token_url=served.token_url,
            username=USER,
            secret=lambda: self.secret,
            http=http,
            budget=budget,
            clock=self.clock,
            draw=lambda: 1.0,
        )
        self.client = EsetClient(
            source="acme",
            base_url=served.base_url,
            account=self.account,
            http=http,
            budget=budget,
            clock=self.clock,
            draw=lambda: 1.0,
        )
        self._stack.push_async_callback(self.client.close)
        self._stack.push_async_callback(self.account.close)

    async def ask(self, where: str = "", order: str = "create_time,uuid", token: str = "") -> Answer[DecodedPage]:
        return await self.client.list_incidents(
            filter=where, order_by=order, page_size=10, page_token=token, decode=decode_page
        )

    def inject(self, *faults: Fault) -> None:
        for fault in faults:
            self.simulator.faults.inject(fault)

    def seen(self) -> list[tuple[str, int]]:
        """What was asked for, and how it was answered; 0: the connection ended."""
        return [(request.operation, request.status) for request in self.simulator.requests]


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        setup = Setup(stack)
        await setup.open()
        yield setup


async def test_pages_are_read_to_their_end_and_each_incident_by_its_uuid(setup: Setup) -> None:
    uuids: list[str] = []
    token = ""
    while True:
        answer = await setup.ask(token=token)
        uuids += [row.uuid for row in answer.content.observed]
        if not (token := answer.content.next_page_token):
            break
    assert uuids == setup.tenant.uuids()
    found = await setup.client.get_incident(uuids[0])
    assert found is not None
    assert json.loads(found.raw)["deviceUuids"]
    assert setup.seen() == [("login", 200), ("list", 200), ("list", 200), ("list", 200), ("get", 200)]


@pytest.mark.parametrize(
    "where",
    [
        'incident.update_time >= timestamp("2026-05-28T20:26:40+00:00")',
        'incident.display_name.contains("a&b=c%41 ü☃ #?/")',
    ],
)
async def test_filters_arrive_as_they_were_given(setup: Setup, where: str) -> None:
    await setup.ask(where)
    assert setup.simulator.requests[-1].query["filter"] == where


async def test_odd_page_tokens_and_uuids_arrive_as_they_were_given(setup: Setup) -> None:
    odd = "a+b/c=d%2B&e"
    with pytest.raises(SourceError):
        await setup.ask(order="", token=odd)
    assert setup.simulator.requests[-1].query["pageToken"] == odd
    assert await setup.client.get_incident("../x +%2F?#ü") is None
    assert setup.simulator.requests[-1].path == "/v2/incidents/../x +%2F?#ü"


async def test_twenty_expired_tokens_at_once_make_one_refresh(setup: Setup) -> None:
    await setup.ask()
    setup.simulator.requests.clear()
    setup.simulator.logins.revoke(USER)
    await asyncio.gather(*(setup.ask() for _ in range(20)))
    operations = [operation for operation, _ in setup.seen()]
    assert operations.count("refresh") == 1
    assert operations.count("login") == 0


async def test_expired_refresh_token_leads_to_a_login(setup: Setup) -> None:
    await setup.ask()
    setup.clock.advance(100_000)
    await setup.ask()
    assert setup.seen() == [("login", 200), ("list", 200), ("refresh", 401), ("login", 200), ("list", 200)]


async def test_new_password_is_used_as_soon_as_it_is_there(setup: Setup) -> None:
    setup.secret = "wrong"
    for _ in range(3):
        with pytest.raises(LoginRefused):
            await setup.ask()
    setup.secret = PASSWORD
    await setup.ask()
    assert setup.seen() == [("login", 401), ("login", 200), ("list", 200)]


async def test_202_chain_brings_the_state_of_its_beginning_and_says_so(setup: Setup) -> None:
    await setup.account.token()
    setup.inject(Fault(effect="pending", on="list", polls=4, count=1, body="null"))
    answer = await setup.ask()
    assert setup.clock.slept == [1, 2, 4, 8]
    assert (answer.as_of, answer.until) == (START, START + 15 * SECOND)
    ids = {request.response_id for request in setup.simulator.requests if request.operation == "list"}
    assert len(ids) == 2
    await setup.ask()
    assert setup.simulator.requests[-1].response_id == ""


@pytest.mark.parametrize("ending", [404, 504])
async def test_lost_response_id_is_dropped(setup: Setup, ending: int) -> None:
    setup.inject(Fault(effect="pending", on="list", status=ending, count=2))
    await setup.ask()
    assert [status for operation, status in setup.seen() if operation == "list"] == [202, ending, 202, ending, 200]


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        (Fault(effect="answer", on="list", status=401, count=2), [401, 401, 200]),
        (Fault(effect="answer", on="list", status=400, count=1), [400, 200]),
        (Fault(effect="answer", on="list", status=429, headers={"Retry-After": "9"}, count=1), [429, 200]),
        (Fault(effect="answer", on="list", status=503, body="<html>", count=3), [503, 503, 503, 200]),
        (Fault(effect="answer", on="list", status=504, count=2), [504, 504, 200]),
        (Fault(effect="answer", on="list", status=200, body="<html>", count=3), [200, 200, 200, 200]),
        (Fault(effect="truncate", on="list", count=3), [200, 200, 200, 200]),
        (Fault(effect="close", on="list", count=2), [0, 0, 200]),
        (Fault(effect="reset", on="list", count=3), [0, 0, 0, 200]),
    ],
    ids=lambda value: f"{value.effect}-{value.status}" if isinstance(value, Fault) else "",
)
async def test_what_passes_is_no_failure(setup: Setup, fault: Fault, statuses: list[int]) -> None:
    setup.inject(fault)
    answer = await setup.ask()
    assert len(answer.content.observed) == 10
    listed = [status for operation, status in setup.seen() if operation == "list"]
    # aiohttp itself sends a GET again when a connection that it reused was closed under it.
    assert [status for status in listed if status] == [status for status in statuses if status]


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        (Fault(effect="answer", on="list", status=401), AccessDenied, "access_denied"),
        (Fault(effect="answer", on="list", status=400, body='{"code":3}'), QueryRefused, "query_refused"),
        (Fault(effect="answer", on="list", status=403), AccessDenied, "access_denied"),
        (Fault(effect="answer", on="list", status=404), AccessDenied, "access_denied"),
        (Fault(effect="answer", on="list", status=501), AccessDenied, "access_denied"),
        (Fault(effect="answer", on="list", status=502), SourceUnavailable, "unavailable"),
        (Fault(effect="answer", on="list", status=504), SourceUnavailable, "expired"),
        (Fault(effect="answer", on="list", status=200, body="null"), BadAnswer, "bad_answer"),
        (Fault(effect="truncate", on="list"), SourceUnavailable, "truncated"),
        (Fault(effect="reset", on="list"), SourceUnavailable, "reset"),
        (Fault(effect="close", on="list"), SourceUnavailable, "reset"),
        (Fault(effect="pending", on="list", polls=10_000), SourceUnavailable, "pending"),
        (Fault(effect="answer", on="list", status=429), SourceUnavailable, "throttled"),
    ],
    ids=lambda value: f"{value.effect}-{value.status}" if isinstance(value, Fault) else "",
)
async def test_what_stays_fails_by_its_name_and_is_over_when_it_is_over(
    setup: Setup, fault: Fault, error: type[SourceError], reason: str
) -> None:
    setup.inject(fault)
    with pytest.raises(SourceError) as caught:
        await setup.ask()
    assert (type(caught.value), caught.value.reason) == (error, reason)
    if fault.effect == "answer":
        assert "request-id none" not in str(caught.value)
    setup.simulator.faults.clear()
    setup.clock.advance(3600)
    await setup.ask()


@pytest.mark.parametrize("retry_after", ["absent", "seconds", "date"])
async def test_limit_of_the_server_is_kept_after_the_first_429(setup: Setup, retry_after: str) -> None:
    setup.simulator.settings.requests_per_second = 10
    setup.simulator.settings.retry_after = retry_after  # type: ignore[assignment]
    for _ in range(40):
        await setup.ask()
    assert 0 < [status for _, status in setup.seen()].count(429) < 10


async def test_skewed_date_shows_and_is_the_safe_side_of_both(setup: Setup) -> None:
    setup.simulator.settings.date_skew_seconds = -600
    answer = await setup.ask()
    assert answer.skew_seconds == pytest.approx(-600, abs=1)
    assert answer.as_of <= START - 600 * SECOND
    assert answer.until >= START
