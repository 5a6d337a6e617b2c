"""Requests and answers: paging, login, rate limit, the 202 chain, single incidents, changes."""

from email.utils import parsedate_to_datetime

import pytest

from relay.clock import SECOND
from relay.simulator import Answer, Fault, Request, Settings, Simulator
from relay.simulator.listing import read_token, write_token
from relay.simulator.samples import CLOSED, OPEN
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


# Paging


def test_pages_by_token_cover_everything_once(caller: Caller) -> None:
    tokens, uuids, token = [], [], ""
    while True:
        page = caller.page(page_token=token).json()
        uuids += [i["uuid"] for i in page["incidents"]]
        token = page["nextPageToken"]
        if not token:
            break
        tokens.append(token)
        assert len(token) <= 128
    assert len(tokens) == 2
    assert uuids == caller.simulator.tenants["acme"].uuids()


def test_a_row_that_leaves_between_two_pages_makes_the_reader_skip_one(caller: Caller) -> None:
    tenant = caller.simulator.tenants["acme"]
    expected = tenant.uuids()
    first = caller.page(page_size=10).json()
    tenant.delete(expected[0])
    second = caller.page(page_size=10, page_token=first["nextPageToken"]).json()
    assert [i["uuid"] for i in second["incidents"]] == expected[11:21]


@pytest.mark.parametrize(
    ("asked", "answered"), [("", 50), ("0", 50), ("1", 1), ("120", 120), ("1000", 1000), ("5000", 1000)]
)
def test_page_size(clock: FakeClock, asked: str, answered: int) -> None:
    simulator = Simulator(clock)
    simulator.add_tenant("acme", incidents=1100)
    assert len(Caller(simulator, "acme").ask("/v2/incidents", {"pageSize": asked}).json()["incidents"]) == answered


@pytest.mark.parametrize(
    "query",
    [
        {"pageSize": "-1"},
        {"pageSize": "ten"},
        {"pageSize": "1.5"},
        {"pageSize": "100000"},
        {"pageToken": "garbage"},
        {"pageToken": "é"},
        {"pageToken": "A" * 129},
        {"filter": f'display_name == "{"a" * 190}"'},
        {"orderBy": ",".join(["update_time"] * 10)},
        {"filter": "nothing"},
        {"orderBy": "nothing"},
    ],
)
def test_bad_arguments_are_400_with_a_message(caller: Caller, query: dict[str, str]) -> None:
    answer = caller.ask("/v2/incidents", query)
    assert answer.status == 400
    assert answer.json()["code"] == 3


def test_tokens_are_checked() -> None:
    assert read_token(write_token(12_345)) == 12_345
    assert read_token("") == 0


def test_the_last_page_has_an_empty_token_or_none(caller: Caller) -> None:
    settings = caller.simulator.settings
    assert caller.page(page_size=1000).json()["nextPageToken"] == ""
    settings.last_page = "no_token"
    assert "nextPageToken" not in caller.page(page_size=1000).json()
    settings.last_page = "mixed"
    assert {"nextPageToken" in caller.page(page_size=1000).json() for _ in range(50)} == {True, False}


def test_a_result_may_end_with_an_empty_page(caller: Caller) -> None:
    caller.simulator.settings.trailing_empty_page = True
    last = caller.page(page_size=120).json()
    assert len(last["incidents"]) == 120
    assert caller.page(page_size=120, page_token=last["nextPageToken"]).json() == {
        "incidents": [],
        "nextPageToken": "",
    }


def test_a_default_order_can_be_set(caller: Caller) -> None:
    insertion = caller.uuids()
    caller.simulator.settings.default_order = "update_time desc"
    assert caller.uuids() == insertion[::-1]


def test_remembered_pages_are_forgotten_when_the_tenant_changes(caller: Caller) -> None:
    caller.simulator.settings.memo_pages = 2
    assert caller.page().body is caller.page().body
    caller.simulator.tenants["acme"].delete(caller.uuids()[0])
    assert caller.page().body != caller.page(page_size=51).body
    assert len(caller.uuids()) == 119


# Login


def test_login_then_refresh_rotates_both_tokens(simulator: Simulator) -> None:
    first = log_in(simulator, "acme").json()
    assert (first["token_type"], first["expires_in"]) == ("Bearer", 3600)
    second = refresh(simulator, first["refresh_token"]).json()
    assert second["access_token"] != first["access_token"]
    assert refresh(simulator, first["refresh_token"]).status == 401
    assert refresh(simulator, second["refresh_token"]).status == 200


@pytest.mark.parametrize("status", [400, 401])
def test_a_wrong_password_is_refused(simulator: Simulator, status: int) -> None:
    simulator.settings.refused_login_status = 400 if status == 400 else 401
    for answer in (log_in(simulator, "acme", "wrong"), log_in(simulator, "nobody"), refresh(simulator, "unknown")):
        assert (answer.status, answer.json()) == (status, {"error": "invalid_grant"})


def test_a_password_with_every_awkward_character_works(simulator: Simulator) -> None:
    simulator.add_tenant("ünï+code@acme.example", "p&q=r+s %ž€")
    assert log_in(simulator, "ünï+code@acme.example", "p&q=r+s %ž€").status == 200


def test_login_needs_a_form_and_a_known_grant(simulator: Simulator) -> None:
    assert simulator.handle(Request.to("POST", "/oauth/token", body=b"{}")).status == 415
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = simulator.handle(Request.to("POST", "/oauth/token", headers=form, body=b"grant_type=magic"))
    assert (answer.status, answer.json()["error"]) == (400, "unsupported_grant_type")


def test_tokens_expire_and_can_be_revoked(caller: Caller, clock: FakeClock) -> None:
    clock.advance(3599)
    assert caller.page().status == 200
    clock.advance(1)
    assert caller.page().status == 401
    again = Caller(caller.simulator, "acme")
    caller.simulator.logins.revoke("somebody else")
    assert again.page().status == 200
    caller.simulator.logins.revoke("acme")
    assert again.page().status == 401


def test_revoking_may_take_the_refresh_token_too(simulator: Simulator) -> None:
    token = log_in(simulator, "acme").json()["refresh_token"]
    simulator.logins.revoke()
    token = refresh(simulator, token).json()["refresh_token"]
    simulator.logins.revoke(refresh_too=True)
    assert refresh(simulator, token).status == 401


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer unknown", "Basic YTpi"])
def test_data_needs_a_token(simulator: Simulator, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = simulator.handle(Request.to("GET", "/v2/incidents", headers=headers))
    assert (answer.status, answer.body) == (401, b"")


def test_tenants_do_not_see_each_other(simulator: Simulator) -> None:
    other = simulator.add_tenant("other", incidents=1)
    assert Caller(simulator, "other").uuids() == other.uuids()
    uuid = simulator.tenants["acme"].uuids()[0]
    assert Caller(simulator, "other").ask(f"/v2/incidents/{uuid}").status == 404


# Headers and limits


def test_every_answer_has_a_request_id_and_the_clock_s_date(caller: Caller, clock: FakeClock) -> None:
    answers = [caller.page(), caller.ask("/nowhere"), log_in(caller.simulator, "acme", "wrong")]
    assert len({answer.headers["request-id"] for answer in answers}) == 3
    assert parsedate_to_datetime(answers[0].headers["date"]).timestamp() * SECOND == START
    caller.simulator.settings.date_skew_seconds = -90
    assert parsedate_to_datetime(caller.page().headers["date"]).timestamp() * SECOND == START - 90 * SECOND
    caller.simulator.settings.date_header = False
    assert "date" not in caller.page().headers


def test_the_rate_limit_counts_an_account_over_any_second(caller: Caller, clock: FakeClock) -> None:
    caller.simulator.add_tenant("other")
    settings = caller.simulator.settings
    settings.requests_per_second = 2
    assert [caller.page().status for _ in range(3)] == [200, 200, 429]
    assert "retry-after" not in caller.page().headers
    settings.retry_after = "seconds"
    assert caller.page().headers["retry-after"] == "1"
    settings.retry_after = "date"
    clock.advance(0.5)
    assert parsedate_to_datetime(caller.page().headers["retry-after"]).timestamp() * SECOND == START + 2 * SECOND
    assert log_in(caller.simulator, "other").status == 200
    clock.advance(0.5)
    assert caller.page().status == 200


def test_requests_are_remembered(caller: Caller) -> None:
    caller.page("has(tags)")
    caller.ask("/v2/incidents/x", response_id="r")
    seen = list(caller.simulator.requests)
    assert [(r.username, r.operation, r.status) for r in seen] == [
        ("acme", "login", 200),
        ("acme", "list", 200),
        ("acme", "get", 404),
    ]
    assert seen[1].query == {"filter": "has(tags)"}
    assert seen[2].response_id == "r"


def test_the_same_seed_and_requests_give_the_same_answers() -> None:
    def story() -> list[Answer]:
        simulator = Simulator(FakeClock(), seed=9)
        simulator.add_tenant("acme", incidents=10)
        caller = Caller(simulator, "acme")
        simulator.faults.inject(Fault(effect="answer", status=503, probability=0.5))
        return [caller.page(page_size=3) for _ in range(20)]

    assert story() == story()


# The 202 chain


def test_a_pending_answer_is_fetched_by_its_id_once(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="pending", polls=2, count=1, body="null"))
    before = caller.simulator.tenants["acme"].uuids()
    first = caller.ask("/v2/incidents")
    response_id = first.headers["response-id"]
    assert (first.status, first.body) == (202, b"null")
    caller.simulator.tenants["acme"].delete(before[0])
    second = caller.ask("/v2/incidents", response_id=response_id)
    assert (second.status, second.headers["response-id"]) == (202, response_id)
    third = caller.ask("/v2/incidents", response_id=response_id)
    assert [i["uuid"] for i in third.json()["incidents"]] == before[:50], "the state of the first request"
    assert caller.ask("/v2/incidents", response_id=response_id).status == 404


def test_a_response_id_is_good_for_ten_minutes_and_one_request_only(caller: Caller, clock: FakeClock) -> None:
    caller.simulator.faults.inject(Fault(effect="pending", count=2))
    ids = [caller.ask("/v2/incidents", {"pageSize": "5"}).headers["response-id"] for _ in range(2)]
    assert caller.ask("/v2/incidents", {"pageSize": "6"}, response_id=ids[0]).status == 404
    clock.advance(599)
    caller.token = log_in(caller.simulator, "acme").json()["access_token"]
    assert caller.ask("/v2/incidents", {"pageSize": "5"}, response_id=ids[0]).status == 200
    clock.advance(1)
    assert caller.ask("/v2/incidents", {"pageSize": "5"}, response_id=ids[1]).status == 404


def test_resuming_needs_a_token(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="pending", count=1))
    response_id = caller.ask("/v2/incidents").headers["response-id"]
    caller.simulator.logins.revoke()
    assert caller.ask("/v2/incidents", response_id=response_id).status == 401


def test_a_chain_may_end_in_504(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="pending", count=1, status=504))
    response_id = caller.ask("/v2/incidents").headers["response-id"]
    assert caller.ask("/v2/incidents", response_id=response_id).status == 504
    assert caller.ask("/v2/incidents", response_id=response_id).status == 404


def test_a_login_and_a_refresh_may_be_pending_too(simulator: Simulator) -> None:
    simulator.faults.inject(Fault(effect="pending", on="login", count=2))
    first = log_in(simulator, "acme")
    tokens = log_in(simulator, "acme", response_id=first.headers["response-id"]).json()
    second = refresh(simulator, tokens["refresh_token"])
    assert second.status == 202
    done = refresh(simulator, tokens["refresh_token"], response_id=second.headers["response-id"])
    assert done.json()["access_token"] != tokens["access_token"]


def test_a_refused_request_is_never_pending(caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="pending"))
    assert caller.page("nonsense").status == 400


# One incident


def test_get_shows_device_and_detection_uuids(caller: Caller) -> None:
    uuid = caller.uuids()[0]
    incident = caller.ask(f"/v2/incidents/{uuid}").json()["incident"]
    assert incident["deviceUuids"]
    assert incident["detectionUuids"]
    assert caller.ask("/v2/incidents/unknown").status == 404
    assert caller.ask(f"/v2/incidents/{'a' * 101}").status == 400


def test_the_list_may_show_empty_details(clock: FakeClock) -> None:
    simulator = Simulator(clock, settings=Settings(list_details="empty"))
    simulator.add_tenant("acme", incidents=1)
    caller = Caller(simulator, "acme")
    (incident,) = caller.page().json()["incidents"]
    assert (incident["deviceUuids"], incident["detectionUuids"]) == ([], [])
    assert caller.ask(f"/v2/incidents/{incident['uuid']}").json()["incident"]["deviceUuids"]


def test_uuids_are_opaque(caller: Caller) -> None:
    uuid = caller.simulator.tenants["acme"].create(uuid="a:b é:close")
    assert caller.simulator.handle(caller.request(f"/v2/incidents/{uuid}")).status == 200


def test_devices_can_be_filtered_though_the_list_hides_them(caller: Caller) -> None:
    uuid = caller.simulator.tenants["acme"].create({"deviceUuids": ["one", "two"]})
    assert caller.uuids('"one" in incident.device_uuids') == [uuid]


def test_a_raw_record_is_shown_by_get_as_it_is(caller: Caller) -> None:
    caller.simulator.tenants["acme"].put_raw(b'{"odd": 1}', uuid="odd")
    assert caller.ask("/v2/incidents/odd").body == b'{"incident":{"odd": 1}}'


# Changes


def test_close_reopen_and_update_move_update_time(caller: Caller, clock: FakeClock) -> None:
    tenant = caller.simulator.tenants["acme"]
    uuid = tenant.uuids()[0]
    clock.advance(1)
    path = f"/v2/incidents/{uuid}"
    reason = b'{"closureReason": "INCIDENT_RESOLVE_REASON_SUSPICIOUS"}'
    assert caller.ask(path + ":close", method="POST", body=reason).json() == {}
    assert (tenant.get(uuid)["status"], tenant.get(uuid)["resolveReason"]) == (
        CLOSED,
        "INCIDENT_RESOLVE_REASON_SUSPICIOUS",
    )
    assert caller.ask(path + ":reopen", method="POST", body=b"{}").status == 200
    assert tenant.get(uuid)["status"] == OPEN
    body = b'{"displayName": "new", "description": "not in the mask", "updateMask": "display_name,severity"}'
    answer = caller.ask(path + "/basic-attributes:update", method="POST", body=body)
    assert answer.status == 400, "severity is in the mask but not in the body"
    body = b'{"displayName": "new", "description": "not in the mask", "updateMask": "display_name"}'
    incident = caller.ask(path + "/basic-attributes:update", method="POST", body=body).json()["incident"]
    assert (incident["displayName"], incident["description"] != "not in the mask") == ("new", True)
    assert tenant.store.incidents[uuid].updated == clock.now()


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        (":close", b""),
        (":close", b"[]"),
        (":close", b'{"closureReason": "BORED"}'),
        (":close", b'{"closureReason": {}}'),
        ("/basic-attributes:update", b'{"updateMask": "status"}'),
        ("/basic-attributes:update", b'{"displayName": 5}'),
        ("/basic-attributes:update", b'{"updateMask": 5}'),
    ],
)
def test_a_change_that_cannot_be_read_is_400(caller: Caller, verb: str, body: bytes) -> None:
    uuid = caller.uuids()[0]
    assert caller.ask(f"/v2/incidents/{uuid}{verb}", method="POST", body=body).status == 400


def test_changing_what_is_not_there_is_404(caller: Caller) -> None:
    assert caller.ask("/v2/incidents/x:close", method="POST", body=b"{}").status == 404
    assert caller.ask("/v2/incidents/x:open", method="POST", body=b"{}").status == 404
    assert caller.ask("/v2/incidents", method="DELETE").status == 404
