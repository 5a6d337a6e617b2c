"""The simulated ESET Connect: a request in, an answer out. No socket, no sleep; seed and clock decide everything.

What ESET documents is done as documented; what it leaves open is a choice in `Settings`; what goes wrong is a `Fault`.
Comments on incidents are left out.
"""

import math
import random
import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from relay.clock import SECOND, Clock, Instant
from relay.simulator.faults import SETTLING, Effect, Fault, FaultQueue, Operation
from relay.simulator.filters import ENUMS, InvalidArgument
from relay.simulator.listing import list_body
from relay.simulator.logins import Logins
from relay.simulator.messages import Answer, Request, error_answer, json_answer
from relay.simulator.samples import new_uuid
from relay.simulator.settings import Settings
from relay.simulator.tenant import Tenant

TOKEN_PATH: Final = "/oauth/token"  # noqa: S105 (a path)
INCIDENTS_PATH: Final = "/v2/incidents"
DEFAULT_PASSWORD: Final = "password"  # noqa: S105 (a simulated one)
RESPONSE_ID_SECONDS: Final = 600
_MAX_UUID_LENGTH: Final = 100
_REMEMBERED_REQUESTS: Final = 10_000
_JSON: Final = {"content-type": "application/json"}
_CHANGE = re.compile(r"/v2/incidents/(?P<uuid>[^/]+?)(?P<verb>:close|:reopen|/basic-attributes:update)")
_GET = re.compile(r"/v2/incidents/(?P<uuid>[^/]+)")
_UPDATABLE: Final = {
    "assignee_uuid": "assigneeUuid",
    "description": "description",
    "display_name": "displayName",
    "severity": "severity",
}


class SeenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it was answered, for assertions about what a client did."""

    at: Instant
    username: str
    operation: Operation
    method: str
    path: str
    query: dict[str, str]
    response_id: str
    status: int
    """0: the connection ended without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A request, and what it asks of whom. `tenant` is None if neither credentials nor token say."""

    request: Request
    operation: Operation
    tenant: Tenant | None
    uuid: str = ""
    verb: str = ""

    @property
    def username(self) -> str:
        return "" if self.tenant is None else self.tenant.username

    @property
    def response_id(self) -> str:
        return self.request.headers.get("response-id", "")

    def is_login(self) -> bool:
        return self.operation in {"login", "refresh"}

    def is_same_as(self, other: "_Call") -> bool:
        """Whether it asks the same for the same tenant; headers apart, since a new access token is fine."""
        same_tenant = self.tenant is other.tenant or self.is_login()
        return same_tenant and replace(self.request, headers={}) == replace(other.request, headers={})


@dataclass(slots=True, kw_only=True)
class _Chain:
    """A request that was answered with 202, and its real answer."""

    call: _Call
    answer: Answer
    body: bytes
    polls_left: int
    expires: float


class Simulator:
    """ESET Connect for any number of tenants.

    `tenants`, `faults`, `logins` and `settings` may be used at any time between two requests; `requests` holds the
    last 10,000.
    """

    def __init__(self, clock: Clock, *, seed: int = 1, settings: Settings | None = None) -> None:
        self.clock = clock
        self.seed = seed
        self.settings = settings or Settings()
        self.tenants: dict[str, Tenant] = {}
        self.faults = FaultQueue(clock, random.Random(f"{seed}/faults"))
        self.logins = Logins(clock, self.settings, random.Random(f"{seed}/logins"))
        self.requests: deque[SeenRequest] = deque(maxlen=_REMEMBERED_REQUESTS)
        self._rng = random.Random(f"{seed}/answers")
        self._chains: dict[str, _Chain] = {}
        self._recent: dict[str, deque[float]] = {}
        self._last_list: dict[str, bytes] = {}
        self._memo: dict[tuple[str, ...], bytes] = {}

    def add_tenant(
        self, username: str, password: str = DEFAULT_PASSWORD, *, incidents: int = 0, spread_seconds: float = 0
    ) -> Tenant:
        """A new customer, with incidents created evenly over the last `spread_seconds`. Replaces one of that name."""
        tenant = Tenant(username, password, clock=self.clock, settings=self.settings, seed=self.seed)
        if incidents:
            tenant.create_many(incidents, spread_seconds=spread_seconds)
        self.tenants[username] = tenant
        return tenant

    def handle(self, request: Request) -> Answer:
        """Answers one request. Never raises for anything that a client sends."""
        call = self._recognised(request)
        answer = self._answer(call)
        self.requests.append(
            SeenRequest(
                at=self.clock.now(),
                username=call.username,
                operation=call.operation,
                method=request.method,
                path=request.path,
                query=dict(request.query),
                response_id=call.response_id,
                status=answer.status,
            )
        )
        return replace(answer, headers=self._common_headers() | dict(answer.headers))

    def _recognised(self, request: Request) -> _Call:
        if request.path == TOKEN_PATH and request.method == "POST":
            return self._recognised_login(request)
        tenant = self.tenants.get(self.logins.owner(_bearer(request)))
        if request.method == "GET" and request.path == INCIDENTS_PATH:
            return _Call(request=request, operation="list", tenant=tenant)
        if request.method == "GET" and (match := _GET.fullmatch(request.path)):
            return _Call(request=request, operation="get", tenant=tenant, uuid=match["uuid"])
        if request.method == "POST" and (match := _CHANGE.fullmatch(request.path)):
            return _Call(request=request, operation="change", tenant=tenant, uuid=match["uuid"], verb=match["verb"])
        return _Call(request=request, operation="other", tenant=tenant)

    def _recognised_login(self, request: Request) -> _Call:
        form = _form(request)
        if form.get("grant_type") == "refresh_token":
            owner = self.logins.refresh_owner(form.get("refresh_token", ""))
            return _Call(request=request, operation="refresh", tenant=self.tenants.get(owner))
        return _Call(request=request, operation="login", tenant=self.tenants.get(form.get("username", "")))

    def _answer(self, call: _Call) -> Answer:
        met = self.faults.met_by(call.operation, call.username, has_response_id=bool(call.response_id))
        effects = {fault.effect for fault in met}
        if met and met[-1].effect in SETTLING:
            answer = self._settled(met[-1], call, effects)
        elif call.tenant is not None and self._is_over_limit(call.tenant.username):
            answer = Answer(status=429, headers=self._retry_after())
        elif call.response_id:
            answer = self._resumed(call)
        else:
            answer = self._honest(call, effects)
        for fault in met:
            if fault.effect == "truncate" and answer.wire == "whole":
                answer = _truncated(answer, fault.keep_bytes)
        return replace(answer, delay_seconds=sum(fault.delay_seconds for fault in met)) if met else answer

    def _settled(self, fault: Fault, call: _Call, effects: Collection[Effect]) -> Answer:
        match fault.effect:
            case "close":
                return Answer(status=0, wire="closed")
            case "reset":
                return Answer(status=0, wire="reset")
            case "pending":
                return self._postponed(fault, call, effects)
            case _:
                headers = {name.lower(): value for name, value in fault.headers.items()}
                return Answer(status=fault.status, headers=headers, body=fault.body.encode())

    def _postponed(self, fault: Fault, call: _Call, effects: Collection[Effect]) -> Answer:
        """The first 202 of a chain; a request that fails is answered at once."""
        answer = self._honest(call, effects)
        if answer.status != 200:
            return answer
        now = self.clock.monotonic()
        self._chains = {key: chain for key, chain in self._chains.items() if now < chain.expires}
        response_id = new_uuid(self._rng)
        self._chains[response_id] = _Chain(
            call=call,
            answer=answer if fault.status == 200 else Answer(status=fault.status),
            body=fault.body.encode(),
            polls_left=fault.polls - 1,
            expires=now + RESPONSE_ID_SECONDS,
        )
        return Answer(status=202, headers={"response-id": response_id}, body=fault.body.encode())

    def _resumed(self, call: _Call) -> Answer:
        """The next answer of a chain; 404 for an id that was fetched, is too old, or belongs to another request."""
        if call.tenant is None and not call.is_login():
            return Answer(status=401)
        chain = self._chains.get(call.response_id)
        if chain is None or self.clock.monotonic() >= chain.expires or not call.is_same_as(chain.call):
            return Answer(status=404)
        if chain.polls_left:
            chain.polls_left -= 1
            return Answer(status=202, headers={"response-id": call.response_id}, body=chain.body)
        del self._chains[call.response_id]
        return chain.answer

    def _honest(self, call: _Call, effects: Collection[Effect]) -> Answer:
        if call.operation == "login":
            return self._login(call)
        if call.operation == "refresh":
            return self._refresh(call)
        if call.tenant is None:
            return Answer(status=401)
        try:
            match call.operation:
                case "list":
                    return self._list(call.request, call.tenant, effects)
                case "get":
                    return _get(call.tenant, call.uuid)
                case "change":
                    return _change(call.tenant, call)
                case _:
                    return error_answer(404, "no such path", code=5)
        except InvalidArgument as exc:
            return error_answer(400, str(exc))

    def _login(self, call: _Call) -> Answer:
        form = _form(call.request)
        if not call.request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return Answer(status=415)
        if form.get("grant_type") != "password":
            return json_answer(400, {"error": "unsupported_grant_type"})
        if call.tenant is None or form.get("password") != call.tenant.password:
            return json_answer(self.settings.refused_login_status, {"error": "invalid_grant"})
        return json_answer(200, self.logins.issue(call.tenant.username))

    def _refresh(self, call: _Call) -> Answer:
        if call.tenant is None:
            return json_answer(self.settings.refused_login_status, {"error": "invalid_grant"})
        self.logins.use_up(_form(call.request)["refresh_token"])
        return json_answer(200, self.logins.issue(call.tenant.username))

    def _list(self, request: Request, tenant: Tenant, effects: Collection[Effect]) -> Answer:
        if "repeat_page" in effects and tenant.username in self._last_list:
            return Answer(status=200, headers=_JSON, body=self._last_list[tenant.username])
        body = self._list_body(request, tenant, effects)
        self._last_list[tenant.username] = body
        return Answer(status=200, headers=_JSON, body=body)

    def _list_body(self, request: Request, tenant: Tenant, effects: Collection[Effect]) -> bytes:
        if effects or not self.settings.memo_pages:
            return list_body(request.query, tenant, settings=self.settings, rng=self._rng, effects=effects)
        key = (tenant.username, str(tenant.store.revision), *(f"{k}={v}" for k, v in sorted(request.query.items())))
        body = self._memo.get(key)
        if body is None:
            if len(self._memo) >= self.settings.memo_pages:
                self._memo.clear()
            body = self._memo[key] = list_body(request.query, tenant, settings=self.settings, rng=self._rng)
        return body

    def _is_over_limit(self, username: str) -> bool:
        """Whether the account had its requests of this second; if not, this is one of them."""
        limit = self.settings.requests_per_second
        if limit is None:
            return False
        recent = self._recent.setdefault(username, deque())
        now = self.clock.monotonic()
        while recent and recent[0] <= now - 1:
            recent.popleft()
        if len(recent) >= limit:
            return True
        recent.append(now)
        return False

    def _retry_after(self) -> dict[str, str]:
        match self.settings.retry_after:
            case "seconds":
                return {"retry-after": "1"}
            case "date":
                return {"retry-after": formatdate(math.ceil(self.clock.now() / SECOND) + 1, usegmt=True)}
            case _:
                return {}

    def _common_headers(self) -> dict[str, str]:
        headers = {"request-id": new_uuid(self._rng)}
        if self.settings.date_header:
            headers["date"] = formatdate(self.clock.now() // SECOND + self.settings.date_skew_seconds, usegmt=True)
        return headers


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))


def _truncated(answer: Answer, keep_bytes: int | None) -> Answer:
    keep = len(answer.body) // 2 if keep_bytes is None else keep_bytes
    headers = {**answer.headers, "content-length": str(max(len(answer.body), keep + 1))}
    return replace(answer, headers=headers, body=answer.body[:keep], wire="truncated")


def _get(tenant: Tenant, uuid: str) -> Answer:
    incident = tenant.store.incidents.get(_checked(uuid))
    if incident is None:
        return error_answer(404, "incident not found", code=5)
    record = incident.listed if incident.details == b"{}" else msgspec.json.encode(incident.full())
    return Answer(status=200, headers=_JSON, body=b'{"incident":' + record + b"}")


def _change(tenant: Tenant, call: _Call) -> Answer:
    """Closes, reopens or edits an incident as an analyst does, so that updateTime moves."""
    if _checked(call.uuid) not in tenant.store.incidents:
        return error_answer(404, "incident not found", code=5)
    body = _json_object(call.request.body)
    match call.verb:
        case ":close":
            tenant.close(call.uuid, _enum(body.get("closureReason", ENUMS["resolveReason"][0]), "resolveReason"))
            return json_answer(200, {})
        case ":reopen":
            tenant.reopen(call.uuid)
            return json_answer(200, {})
        case _:
            tenant.update(call.uuid, _attributes(body))
            return json_answer(200, {"incident": tenant.get(call.uuid)})


def _checked(uuid: str) -> str:
    if len(uuid) > _MAX_UUID_LENGTH:
        raise InvalidArgument(f"incident_uuid: longer than {_MAX_UUID_LENGTH} characters")
    return uuid


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise InvalidArgument("body: not a JSON object") from exc


def _enum(value: Any, path: str) -> str:
    if value not in ENUMS[path]:
        raise InvalidArgument(f"{path}: unknown value")
    return str(value)


def _attributes(body: dict[str, Any]) -> dict[str, Any]:
    """The fields to set: those of `updateMask` (comma separated), or all that are given."""
    mask = body.get("updateMask") or ",".join(name for name in _UPDATABLE.values() if name in body)
    if not isinstance(mask, str):
        raise InvalidArgument("update_mask: not text")
    fields: dict[str, Any] = {}
    for name in mask.split(",") if mask else ():
        path = _UPDATABLE.get(name.strip(), name.strip())
        value = body.get(path, "")
        if path not in _UPDATABLE.values() or not isinstance(value, str):
            raise InvalidArgument(f"update_mask: {path!r} cannot be set so")
        fields[path] = _enum(value, "severity") if path == "severity" else value
    return fields
