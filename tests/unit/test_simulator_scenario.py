"""A scenario is read strictly and played in order; the control endpoint does the same on demand."""

import json
from pathlib import Path
from typing import Any

import pytest

from relay.simulator import Fault, Request, Scenario, Settings, Simulator, Step, apply, load_scenario, parse_scenario
from relay.simulator.control import control
from relay.simulator.scenario import Timeline, play, set_up
from relay.simulator.server import everyday_scenario
from tests.support.clock import START, FakeClock
from tests.support.simulator import Caller

STORY = """
seed: 7
settings: {requests_per_second: 10, time_digits: 3}
tenants:
  - {username: a, password: demo, incidents: 20, spread: 1d}
  - {username: b, incidents: 5}
steps:
  - {at: 9s, do: create, count: 3, tenant: a, fields: {severity: HIGH}}
  - {at: 2s, do: update, count: 5, tenant: a}
  - {at: 10s, do: close, count: 4, pick: oldest, tenant: a}
  - {at: 11s, do: reopen, tenant: a}
  - {at: 12s, do: late, age: 90s, tenant: b}
  - {at: 13s, do: silent, tenant: b}
  - {at: 14s, do: regress, age: 1m, tenant: b}
  - {at: 15s, do: delete, count: 2, tenant: b}
  - {at: 16s, do: restore, tenant: b}
  - {at: 17s, do: raw, raw: '{"uuid": 5}', tenant: b}
  - {at: 18s, do: fault, fault: {effect: answer, status: 503, count: 3}}
  - {at: 19s, do: revoke}
  - {at: 20s, do: create, every: 5s, times: 4}
  - {at: 21s, do: clear_faults}
"""


@pytest.fixture
def simulator() -> Simulator:
    simulator = Simulator(FakeClock())
    simulator.add_tenant("a", incidents=10)
    return simulator


async def test_a_scenario_plays_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "story.yaml"
    file.write_text(STORY, encoding="utf-8")
    scenario = load_scenario(file)
    clock = FakeClock()
    simulator = Simulator(clock, seed=scenario.seed, settings=scenario.settings)
    set_up(simulator, scenario)
    Caller(simulator, "a", "demo")
    await play(simulator, scenario.steps)
    assert clock.monotonic() == 35
    a, b = simulator.tenants["a"], simulator.tenants["b"]
    assert (len(a), len(b)) == (20 + 3 + 4, 5 + 1 - 2 + 1 + 1 + 4)
    assert len(a.pick(100, closed=True)) == 3
    assert sum(a.get(uuid)["severity"].endswith("HIGH") for uuid in a.uuids()[20:23]) == 3
    assert b.deleted()
    assert simulator.faults.active() == []
    assert max(v.since for v in a.history) == START + 35 * 10**9


def test_steps_come_in_the_order_of_time_and_repeat() -> None:
    timeline = Timeline([Step(do="revoke", at=3), Step(do="create", at=1, every=2, times=3), Step(do="close", at=3)])
    assert timeline.next_at() == 1
    assert [step.do for step in timeline.due(3)] == ["create", "revoke", "create", "close"]
    assert [step.do for step in timeline.due(100)] == ["create"]
    assert timeline.next_at() is None


def test_a_step_without_times_goes_on_for_ever() -> None:
    timeline = Timeline(everyday_scenario().steps)
    assert len(list(timeline.due(3600))) > 1000
    assert timeline.next_at() is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tenants: [{username: a, passwort: b}]", "passwort"),
        ("steps: [{do: dance}]", "dance"),
        ("steps: [{do: create, at: soon}]", "soon"),
        ("steps: [{do: create, every: 0s}]", "longer than 0"),
        ("steps: [{do: fault}]", "needs `fault:`"),
        ("steps: [{do: fault, fault: {effect: explode}}]", "explode"),
        ("steps: [{do: create, count: 0}]", "count"),
        ("settings: {speed: 3}", "speed"),
        ("settings: {time_digits: 10}", "time_digits"),
        ("tenants: [{username: a, spread: -1}]", "not a duration"),
        ("a: [", "not YAML"),
        ("- a", "object"),
    ],
)
def test_a_wrong_scenario_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_scenario(text)


def test_an_empty_scenario_is_a_scenario() -> None:
    assert parse_scenario("") == Scenario()


def test_short_enum_values_are_spelled_out(simulator: Simulator) -> None:
    (uuid,) = apply(simulator, Step(do="create", fields={"status": "IN_PROGRESS", "displayName": "HIGH"}))
    incident = simulator.tenants["a"].get(uuid)
    assert (incident["status"], incident["displayName"]) == ("INCIDENT_STATUS_IN_PROGRESS", "HIGH")
    apply(simulator, Step(do="update", uuids=[uuid], fields={"status": "INCIDENT_STATUS_NEW_ONE"}))
    assert simulator.tenants["a"].get(uuid)["status"] == "INCIDENT_STATUS_NEW_ONE"


def test_an_unknown_tenant_is_an_error(simulator: Simulator) -> None:
    with pytest.raises(KeyError):
        apply(simulator, Step(do="create", tenant="nobody"))


# The control endpoint


def ask(simulator: Simulator, method: str, url: str, body: Any = None) -> tuple[int, Any]:
    answer = control(simulator, Request.to(method, url, body=b"" if body is None else json.dumps(body).encode()))
    return answer.status, answer.json()


def test_control_changes_incidents(simulator: Simulator) -> None:
    status, answer = ask(simulator, "POST", "/control/incidents", {"do": "create", "tenant": "a", "count": 2})
    assert (status, answer["uuids"]) == (200, simulator.tenants["a"].uuids()[-2:])
    _, answer = ask(
        simulator, "POST", "/control/incidents", [{"do": "delete", "uuids": answer["uuids"]}, {"do": "close"}]
    )
    assert len(answer["uuids"]) == 3
    assert ask(simulator, "GET", "/control/incidents?tenant=a")[1]["uuids"] == simulator.tenants["a"].uuids()


def test_control_shows_the_history(simulator: Simulator) -> None:
    simulator.tenants["a"].put_raw(b"\xff")
    versions = ask(simulator, "GET", "/control/history?tenant=a")[1]["versions"]
    assert len(versions) == 11
    assert json.loads(versions[0]["content"])["uuid"] == versions[0]["uuid"]


def test_control_injects_and_removes_faults(simulator: Simulator) -> None:
    faults = [{"effect": "answer", "status": 503, "count": 2}, {"effect": "reset"}]
    assert ask(simulator, "POST", "/control/faults", faults) == (200, {"ids": [1, 2]})
    shown = ask(simulator, "GET", "/control/faults")[1]["faults"]
    assert [(rule["id"], rule["fault"], rule["left"]) for rule in shown] == [(1, faults[0], 2), (2, faults[1], None)]
    assert simulator.faults.active()[0].fault == Fault(effect="answer", status=503, count=2)
    assert ask(simulator, "DELETE", "/control/faults/1")[0] == 200
    assert ask(simulator, "DELETE", "/control/faults/1")[0] == 404
    assert ask(simulator, "DELETE", "/control/faults")[0] == 200
    assert simulator.faults.active() == []


def test_control_adds_tenants_and_changes_settings_in_place(simulator: Simulator) -> None:
    ask(simulator, "POST", "/control/tenants", {"username": "new", "password": "p", "incidents": 3})
    assert len(simulator.tenants["new"]) == 3
    status, answer = ask(simulator, "POST", "/control/settings", {"new_update_time": "missing", "missing_time": "null"})
    assert (status, answer["missing_time"]) == (200, "null")
    tenant = simulator.tenants["a"]
    assert tenant.get(tenant.create())["updateTime"] is None


def test_control_shows_and_forgets_requests(simulator: Simulator) -> None:
    Caller(simulator, "a").page()
    assert [r["operation"] for r in ask(simulator, "GET", "/control/requests")[1]["requests"]] == ["login", "list"]
    ask(simulator, "DELETE", "/control/requests")
    assert ask(simulator, "GET", "/control/requests")[1] == {"requests": []}


@pytest.mark.parametrize(
    ("method", "url", "body", "status"),
    [
        ("POST", "/control/incidents", {"do": "dance"}, 400),
        ("POST", "/control/incidents", {"do": "update", "uuids": ["unknown"]}, 404),
        ("POST", "/control/incidents", {"do": "create", "tenant": "nobody"}, 404),
        ("POST", "/control/faults", {"effect": "answer", "probability": 2}, 400),
        ("POST", "/control/settings", {"speed": 3}, 400),
        ("POST", "/control/settings", None, 400),
        ("DELETE", "/control/faults/x", None, 400),
        ("PUT", "/control/faults", None, 404),
        ("GET", "/control/history", None, 404),
        ("GET", "/control/nothing", None, 404),
    ],
)
def test_a_wrong_control_request_is_refused(
    simulator: Simulator, method: str, url: str, body: Any, status: int
) -> None:
    assert ask(simulator, method, url, body)[0] == status


def test_settings_stay_as_they_are_when_refused(simulator: Simulator) -> None:
    ask(simulator, "POST", "/control/settings", {"memo_pages": 5, "speed": 3})
    assert simulator.settings == Settings()
