"""Every documented answer of the simulator fits ESET's own OpenAPI document (`tests/data/incidents.openapi.json`)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from openapi_core import OpenAPI
from openapi_core.testing import MockRequest, MockResponse

from relay.simulator import Answer, Fault, Request, Settings, Simulator
from relay.simulator.times import render_time
from tests.support.clock import START, FakeClock
from tests.support.simulator import Caller

DOCUMENT = Path(__file__).parents[1] / "data" / "incidents.openapi.json"
DOCUMENTED = (200, 202, 400, 401, 403, 404, 429, 500, 502, 503, 504)
SETTINGS = {
    "plain": Settings(),
    "mixed": Settings(
        time_digits="mixed",
        time_offset_minutes="mixed",
        new_update_time="mixed",
        last_page="mixed",
        list_details="empty",
        trailing_empty_page=True,
    ),
}


@pytest.fixture(scope="module")
def api() -> OpenAPI:
    """The document, stricter: an incident has no other fields than those listed."""
    document = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    for operation in (o for path in document["paths"].values() for o in path.values()):
        for response in operation["responses"].values():
            if not response["content"]:
                del response["content"]
    return OpenAPI.from_dict(document)


@pytest.fixture(params=SETTINGS)
def caller(request: pytest.FixtureRequest) -> Caller:
    clock = FakeClock()
    simulator = Simulator(clock, settings=SETTINGS[request.param])
    tenant = simulator.add_tenant("acme", incidents=60, spread_seconds=86_400)
    clock.advance(10)
    tenant.update(tenant.pick(20))
    tenant.close(tenant.pick(20))
    tenant.edit_silently(tenant.pick(10))
    tenant.arrive_late(age_seconds=100)
    return Caller(simulator, "acme")


def check(api: OpenAPI, request: Request, answer: Answer) -> None:
    """Raises if the answer is not one that the document describes for the request."""
    content_type = answer.headers.get("content-type", "application/octet-stream")
    api.validate_response(
        MockRequest("http://localhost", request.method.lower(), request.path, args=dict(request.query)),
        MockResponse(
            data=answer.body,
            status_code=answer.status,
            headers=dict(answer.headers),
            content_type=content_type,
        ),
    )
    assert answer.status in DOCUMENTED
    assert str(UUID(answer.headers["request-id"])) == answer.headers["request-id"]
    if answer.status == 202:
        assert str(UUID(answer.headers["response-id"])) == answer.headers["response-id"]


def lists() -> Iterator[dict[str, str]]:
    """Well-formed and ill-formed queries of the list."""
    time = render_time(START, digits=3)
    filters = (
        "",
        f'incident.update_time >= timestamp("{time}")',
        f'createTime <= timestamp("{time}") && status == INCIDENT_STATUS_CLOSED',
        'display_name.contains("on") && size(tags) >= 1',
        "severity in [INCIDENT_SEVERITY_LEVEL_LOW, INCIDENT_SEVERITY_LEVEL_HIGH]",
        "a || b",
    )
    for where in filters:
        for order in ("", "update_time,uuid", "create_time desc", "severity desc, display_name", "updateTime"):
            for size in ("", "1", "1000", "-1"):
                query = {"filter": where, "orderBy": order, "pageSize": size}
                yield {name: value for name, value in query.items() if value}


def test_lists_fit_the_document(api: OpenAPI, caller: Caller) -> None:
    seen = set()
    for query in lists():
        request = caller.request("/v2/incidents", query)
        answer = caller.simulator.handle(request)
        check(api, request, answer)
        seen.add(answer.status)
    assert seen == {200, 400}


def test_every_page_fits_the_document(api: OpenAPI, caller: Caller) -> None:
    token, pages = "", 0
    while token or not pages:
        request = caller.request("/v2/incidents", {"pageSize": "10", "pageToken": token})
        answer = caller.simulator.handle(request)
        check(api, request, answer)
        token, pages = answer.json().get("nextPageToken", ""), pages + 1
    assert pages >= 6


def test_single_incidents_fit_the_document(api: OpenAPI, caller: Caller) -> None:
    for uuid in [*caller.uuids(), "unknown", "a" * 101]:
        request = caller.request(f"/v2/incidents/{uuid}")
        check(api, request, caller.simulator.handle(request))


@pytest.mark.parametrize(
    ("verb", "body", "status"),
    [
        (":close", {"closureReason": "INCIDENT_RESOLVE_REASON_TRUE_POSITIVE"}, 200),
        (":close", {}, 200),
        (":close", {"closureReason": "BORED"}, 400),
        (":reopen", {}, 200),
        ("/basic-attributes:update", {"displayName": "new", "severity": "INCIDENT_SEVERITY_LEVEL_LOW"}, 200),
        ("/basic-attributes:update", {"severity": "URGENT"}, 400),
    ],
)
def test_changes_fit_the_document(api: OpenAPI, caller: Caller, verb: str, body: dict[str, Any], status: int) -> None:
    request = caller.request(f"/v2/incidents/{caller.uuids()[0]}{verb}", method="POST", body=json.dumps(body).encode())
    answer = caller.simulator.handle(request)
    check(api, request, answer)
    assert answer.status == status


@pytest.mark.parametrize("status", [s for s in DOCUMENTED if s not in {200, 202}])
@pytest.mark.parametrize("path", ["/v2/incidents", "/v2/incidents/x"])
def test_every_documented_failure_can_be_had(api: OpenAPI, caller: Caller, path: str, status: int) -> None:
    caller.simulator.faults.inject(Fault(effect="answer", status=status))
    request = caller.request(path)
    answer = caller.simulator.handle(request)
    check(api, request, answer)
    assert answer.status == status


def test_a_202_chain_fits_the_document(api: OpenAPI, caller: Caller) -> None:
    caller.simulator.faults.inject(Fault(effect="pending", polls=2, count=1))
    response_id, statuses = "", []
    for _ in range(4):
        request = caller.request("/v2/incidents", response_id=response_id)
        answer = caller.simulator.handle(request)
        check(api, request, answer)
        statuses.append(answer.status)
        response_id = answer.headers.get("response-id", response_id)
    assert statuses == [202, 202, 200, 404]


def test_the_limit_and_a_missing_token_fit_the_document(api: OpenAPI) -> None:
    simulator = Simulator(FakeClock(), settings=Settings(requests_per_second=2))
    simulator.add_tenant("acme")
    caller = Caller(simulator, "acme")
    requests = [caller.request("/v2/incidents")] * 2 + [Request(method="GET", path="/v2/incidents")]
    answers = [simulator.handle(request) for request in requests]
    for request, answer in zip(requests, answers, strict=True):
        check(api, request, answer)
    assert [answer.status for answer in answers] == [200, 429, 401]


def test_a_wrong_answer_is_noticed(api: OpenAPI, caller: Caller) -> None:
    """Of the checks themselves: what the document forbids does not pass."""
    caller.simulator.tenants["acme"].put_raw(b'{"createTime": "yesterday"}')
    request = caller.request("/v2/incidents", {"pageSize": "1000"})
    with pytest.raises(Exception, match="yesterday"):
        check(api, request, caller.simulator.handle(request))
