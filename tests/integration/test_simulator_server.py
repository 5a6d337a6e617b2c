"""The simulator over real sockets: the same answers, and connections that really break."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from relay.clock import SystemClock
from relay.simulator import Fault, Scenario, Served, Simulator, Step, TenantSpec, run, serve
from tests.support.simulator import log_in


@pytest.fixture
def simulator() -> Simulator:
    simulator = Simulator(SystemClock())
    simulator.add_tenant("acme", "p&q=r+s ž", incidents=120, spread_seconds=600)
    return simulator


@pytest.fixture
async def served(simulator: Simulator) -> AsyncIterator[Served]:
    async with serve(simulator) as served:
        yield served


@pytest.fixture
async def client(simulator: Simulator, served: Served) -> AsyncIterator[httpx.AsyncClient]:
    token = log_in(simulator, "acme", "p&q=r+s ž").json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=served.base_url, headers=headers, timeout=10) as client:
        yield client


async def test_login_list_and_get(simulator: Simulator, served: Served) -> None:
    form = {"grant_type": "password", "username": "acme", "password": "p&q=r+s ž"}
    async with httpx.AsyncClient(base_url=served.base_url) as client:
        login = await client.post(served.token_url, data=form)
        headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
        query = {"filter": 'create_time >= timestamp("2020-01-01T00:00:00+00:00")', "orderBy": "create_time,uuid"}
        page = await client.get("/v2/incidents", params=query, headers=headers)
        assert [i["uuid"] for i in page.json()["incidents"]] == simulator.tenants["acme"].uuids()[:50]
        uuid = page.json()["incidents"][0]["uuid"]
        one = await client.get(f"/v2/incidents/{uuid}", headers=headers)
        assert one.json()["incident"]["deviceUuids"]
        assert one.headers["request-id"] != page.headers["request-id"]
        assert one.headers.get_list("date") == [one.headers["date"]]


async def test_an_unencoded_plus_becomes_a_space_and_is_refused(client: httpx.AsyncClient) -> None:
    text = "incident.update_time%20%3E%3D%20timestamp(%222026-01-01T00:00:00{}00:00%22)"
    assert (await client.get(f"/v2/incidents?filter={text.format('+')}")).status_code == 400
    assert (await client.get(f"/v2/incidents?filter={text.format('%2B')}")).status_code == 200


@pytest.mark.parametrize("effect", ["close", "reset"])
async def test_a_connection_ends_without_an_answer(
    simulator: Simulator, client: httpx.AsyncClient, effect: str
) -> None:
    simulator.faults.inject(Fault(effect="close" if effect == "close" else "reset", count=1))
    expected = httpx.RemoteProtocolError if effect == "close" else httpx.ReadError
    with pytest.raises(expected):
        await client.get("/v2/incidents")
    assert (await client.get("/v2/incidents")).status_code == 200


async def test_a_body_ends_early(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.faults.inject(Fault(effect="truncate", count=1))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        await client.get("/v2/incidents")
    assert (await client.get("/v2/incidents")).status_code == 200


async def test_latency_is_slept(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.faults.inject(Fault(effect="latency", delay_seconds=0.2, count=1))
    start = time.monotonic()
    assert (await client.get("/v2/incidents")).status_code == 200
    assert time.monotonic() - start >= 0.2


@pytest.mark.parametrize("status", [200, 202, 204, 400, 401, 403, 404, 429, 500, 501, 502, 503, 504, 520])
async def test_every_status_can_be_sent(simulator: Simulator, client: httpx.AsyncClient, status: int) -> None:
    simulator.faults.inject(Fault(effect="answer", status=status, count=1))
    assert (await client.get("/v2/incidents")).status_code == status


async def test_control_exists_only_when_enabled(simulator: Simulator, client: httpx.AsyncClient) -> None:
    created = await client.post("/control/incidents", json={"do": "create", "count": 2})
    assert created.json()["uuids"] == simulator.tenants["acme"].uuids()[-2:]
    fault = {"effect": "answer", "status": 429, "headers": {"Retry-After": "3"}, "count": 1}
    await client.post("/control/faults", json=fault)
    assert (await client.get("/v2/incidents")).headers["retry-after"] == "3"
    async with serve(simulator, control_enabled=False) as other:
        assert (await client.get(other.base_url + "/control/faults")).status_code == 404


async def test_many_clients_at_once(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.get("/v2/incidents") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}


async def test_stopping_does_not_wait_for_slow_answers(simulator: Simulator) -> None:
    simulator.faults.inject(Fault(effect="latency", delay_seconds=60))
    async with httpx.AsyncClient() as client, asyncio.TaskGroup() as group:
        async with serve(simulator) as served:
            asked = group.create_task(_outcome(client, served.base_url + "/v2/incidents"))
            while not simulator.requests:
                await asyncio.sleep(0.01)
            start = time.monotonic()
        assert time.monotonic() - start < 1
        assert await asked in {"RemoteProtocolError", "ReadError"}


async def _outcome(client: httpx.AsyncClient, url: str) -> str:
    try:
        return str((await client.get(url)).status_code)
    except httpx.TransportError as exc:
        return type(exc).__name__


async def test_run_plays_a_scenario_until_cancelled() -> None:
    ready: asyncio.Future[tuple[Served, Simulator]] = asyncio.get_running_loop().create_future()
    scenario = Scenario(
        tenants=[TenantSpec(username="acme", incidents=5)], steps=[Step(do="create", at=0.05, every=0.05)]
    )
    task = asyncio.create_task(run(scenario, port=0, on_ready=lambda *both: ready.set_result(both)))
    served, simulator = await ready
    async with asyncio.timeout(10), httpx.AsyncClient() as client:
        while len(simulator.tenants["acme"]) < 8:
            await asyncio.sleep(0.02)
        assert (await client.get(served.base_url + "/v2/incidents")).status_code == 401
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_taken_port_is_an_error(simulator: Simulator, served: Served) -> None:
    with pytest.raises(OSError, match="address already in use"):
        async with serve(simulator, port=served.port):
            pass
