"""Faults match what they say, for as long as they say, and do what they say."""

import msgspec
import pytest

from relay.simulator import Fault, Simulator
from relay.simulator.times import render_time
from tests.support.clock import START, FakeClock
from tests.support.simulator import Caller, log_in, refresh


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def simulator(clock: FakeClock) -> Simulator:
    simulator = Simulator(clock)
    simulator.add_tenant("acme", incidents=120, spread_seconds=600)
    return simulator


@pytest.fixture
def caller(simulator: Simulator) -> Caller:
    return Caller(simulator, "acme")


def statuses(caller: Caller, times: int) -> list[int]:
    return [caller.page().status for _ in range(times)]


def test_rules_apply_in_order_and_are_used_up_one_after_the_other(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="answer", status=503, count=2))
    caller.simulator.faults.inject(Fault(effect="answer", status=429, headers={"Retry-After": "5"}, count=1))
    assert [caller.page().status for _ in range(2)] == [503, 503]
    limited = caller.page()
    assert (limited.status, limited.headers["retry-after"]) == (429, "5")
    assert caller.page().status == 200
    assert caller.simulator.faults.active() == []


def test_after_lets_requests_pass_first(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="answer", status=500, after=2, count=1))
    assert statuses(caller, 4) == [200, 200, 500, 200]


def test_a_duration_ends_by_the_monotonic_clock(caller: Caller, clock: FakeClock) -> None:
    caller.simulator.faults.inject(Fault(effect="answer", status=500, duration_seconds=10))
    clock.advance(9)
    clock.jump(3600)
    assert caller.page().status == 500
    clock.advance(1)
    assert caller.page().status == 200


def test_probability_is_drawn_from_the_seed(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="answer", status=500, probability=0.5))
    assert 20 < statuses(caller, 100).count(500) < 80


def test_rules_are_removed_by_id_or_all_at_once(caller: Caller) -> None:
    faults = caller.simulator.faults
    first = faults.inject(Fault(effect="answer", status=500))
    faults.inject(Fault(effect="answer", status=502))
    assert faults.remove(first)
    assert not faults.remove(first)
    assert caller.page().status == 502
    faults.clear()
    assert caller.page().status == 200


@pytest.mark.parametrize(
    ("on", "hit"),
    [
        ("any", {"login", "refresh", "list", "get", "change"}),
        ("data", {"list", "get", "change"}),
        ("login", {"login", "refresh"}),
        ("refresh", {"refresh"}),
        ("list", {"list"}),
        ("get", {"get"}),
        ("change", {"change"}),
    ],
)
def test_a_rule_matches_its_operations_only(simulator: Simulator, on: str, hit: set[str]) -> None:
    token = log_in(simulator, "acme").json()["refresh_token"]
    caller = Caller(simulator, "acme")
    uuid = caller.uuids()[0]
    simulator.faults.inject(msgspec.convert({"effect": "answer", "status": 418, "on": on}, Fault))
    answers = {
        "login": log_in(simulator, "acme"),
        "refresh": refresh(simulator, token),
        "list": caller.page(),
        "get": caller.ask(f"/v2/incidents/{uuid}"),
        "change": caller.ask(f"/v2/incidents/{uuid}:reopen", method="POST", body=b"{}"),
    }
    assert {operation for operation, answer in answers.items() if answer.status == 418} == hit


def test_a_rule_may_be_for_one_tenant(caller: Caller) -> None:
    caller.simulator.add_tenant("other")
    caller.simulator.faults.inject(Fault(effect="answer", status=500, tenant="other"))
    assert caller.page().status == 200
    assert log_in(caller.simulator, "other").status == 500


def test_an_answer_is_sent_as_given(caller: Caller) -> None:
    html = "<html><body>Bad gateway</body></html>"
    caller.simulator.faults.inject(
        Fault(effect="answer", status=200, headers={"Content-Type": "text/html"}, body=html, count=1)
    )
    answer = caller.page()
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/html", html.encode())
    for body in ("null", "[]", "{", ""):
        caller.simulator.faults.inject(Fault(effect="answer", body=body, count=1))
        assert caller.page().body == body.encode()


def test_latency_adds_up_and_shows_the_state_at_the_request(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="latency", delay_seconds=30, count=2))
    caller.simulator.faults.inject(Fault(effect="answer", status=504, delay_seconds=1, count=1))
    assert (caller.page().delay_seconds, caller.page().delay_seconds, caller.page().delay_seconds) == (31, 30, 0)


def test_close_and_reset_say_what_becomes_of_the_connection(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="close", count=1))
    caller.simulator.faults.inject(Fault(effect="reset", count=1))
    assert [caller.page().wire for _ in range(3)] == ["closed", "reset", "whole"]


@pytest.mark.parametrize(("keep", "sent"), [(None, "half"), (0, "nothing"), (7, "seven")])
def test_a_truncated_body_promises_more_than_it_sends(caller: Caller, keep: int | None, sent: str) -> None:
    whole = caller.page().body
    caller.simulator.faults.inject(Fault(effect="truncate", keep_bytes=keep, count=1))
    answer = caller.page()
    length = {"half": len(whole) // 2, "nothing": 0, "seven": 7}[sent]
    assert (answer.wire, answer.body, answer.headers["content-length"]) == (
        "truncated",
        whole[:length],
        str(len(whole)),
    )


def test_the_same_page_comes_twice(caller: Caller) -> None:
    first = caller.page()
    caller.simulator.faults.inject(Fault(effect="repeat_page", count=1))
    token = first.json()["nextPageToken"]
    assert caller.page(page_token=token).body == first.body
    assert caller.page(page_token=token).body != first.body


def test_a_token_may_lead_to_itself(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="loop_token"))
    first = caller.page().json()["nextPageToken"]
    second = caller.page(page_token=first).json()
    assert first == second["nextPageToken"]
    assert len(second["incidents"]) == 50


def test_a_short_page_is_not_the_end(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="short_page", count=1))
    page = caller.page(page_size=120).json()
    rest = caller.page(page_size=120, page_token=page["nextPageToken"]).json()
    assert (len(page["incidents"]), len(rest["incidents"])) == (60, 60)


def test_filter_and_order_may_be_ignored(caller: Caller) -> None:
    everything = caller.uuids()
    caller.simulator.faults.inject(Fault(effect="ignore_filter", count=1))
    assert caller.uuids("status == INCIDENT_STATUS_CLOSED") == everything
    assert caller.uuids("status == INCIDENT_STATUS_CLOSED") == []
    caller.simulator.faults.inject(Fault(effect="ignore_order", count=1))
    assert caller.uuids("", "update_time desc") == everything
    assert caller.uuids("", "update_time desc") == everything[::-1]


def test_filters_and_orders_may_be_refused(caller: Caller) -> None:
    time = f'update_time >= timestamp("{render_time(START, digits=0)}")'
    offset = time.replace("Z", "+00:00")
    for effect, refused, accepted in (
        ("refuse_filter", (time, ""), ("", "update_time,uuid")),
        ("refuse_z", (time, ""), (offset, "")),
        ("refuse_uuid_order", ("", "update_time,uuid"), (time, "update_time")),
    ):
        rule = caller.simulator.faults.inject(msgspec.convert({"effect": effect}, Fault))
        assert caller.page(*refused).status == 400
        assert caller.page(*accepted).status == 200
        caller.simulator.faults.remove(rule)


def test_stored_times_may_be_compared_by_whole_seconds(caller: Caller, clock: FakeClock) -> None:
    clock.advance(1.7)
    uuid = caller.simulator.tenants["acme"].create()
    half = f'create_time >= timestamp("{render_time(START + 1_500_000_000, digits=3)}")'
    assert caller.uuids(half) == [uuid]
    caller.simulator.faults.inject(Fault(effect="truncate_times"))
    assert caller.uuids(half) == []
    assert caller.uuids(half.replace(".500", "")) == [uuid]


def test_what_only_a_list_can_meet_is_not_used_up_by_others(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="ignore_filter", count=1))
    log_in(caller.simulator, "acme")
    assert len(caller.simulator.faults.active()) == 1
