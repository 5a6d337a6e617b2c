"""The control endpoint of a simulated ESET Connect: what a test does in Python, over HTTP. Not part of the real API.

POST   /control/incidents   a step (see `relay.simulator.scenario`) or a list of them → {"uuids": […]}
GET    /control/incidents   ?tenant=U → {"uuids": […]}, in order of creation
GET    /control/history     ?tenant=U → {"versions": […]}
GET    /control/faults      → {"faults": [{"id", "fault", "ends", "passing", "left"}]}
POST   /control/faults      a fault or a list of them → {"ids": […]}
DELETE /control/faults[/ID]
POST   /control/tenants     {"username", "password", "incidents", "spread"}
POST   /control/settings    some of the settings, changed at once → all of them
GET    /control/requests    → {"requests": […]}, the last 10,000; DELETE forgets them
"""

from typing import Final, TypeVar

import msgspec

from relay.simulator.api import Simulator
from relay.simulator.faults import Fault
from relay.simulator.messages import Answer, Request, error_answer, json_answer
from relay.simulator.scenario import Scenario, Step, TenantSpec, apply, set_up
from relay.simulator.settings import Settings
from relay.simulator.tenant import Version

T = TypeVar("T")

CONTROL_PATH: Final = "/control/"


def control(simulator: Simulator, request: Request) -> Answer:
    """Answers one control request: 400 for one that cannot be read, 404 for what does not exist."""
    subject, _, rest = request.path.removeprefix(CONTROL_PATH).partition("/")
    try:
        match request.method, subject:
            case "POST", "incidents":
                steps = _one_or_many(request.body, Step)
                return json_answer(200, {"uuids": [uuid for step in steps for uuid in apply(simulator, step)]})
            case "GET", "incidents":
                return json_answer(200, {"uuids": simulator.tenants[request.query["tenant"]].uuids()})
            case "GET", "history":
                versions = simulator.tenants[request.query["tenant"]].history
                return json_answer(200, {"versions": [_readable(version) for version in versions]})
            case _, "faults":
                return _faults(simulator, request, rest)
            case "POST", "tenants":
                set_up(simulator, Scenario(tenants=_one_or_many(request.body, TenantSpec)))
                return json_answer(200, {"usernames": list(simulator.tenants)})
            case "POST", "settings":
                return _settings(simulator, request.body)
            case "GET", "requests":
                return json_answer(200, {"requests": list(simulator.requests)})
            case "DELETE", "requests":
                simulator.requests.clear()
                return json_answer(200, {})
            case _:
                return error_answer(404, "no such control", code=5)
    except KeyError as exc:
        return error_answer(404, f"there is no {exc}", code=5)
    except (ValueError, msgspec.MsgspecError) as exc:
        return error_answer(400, str(exc))


def _faults(simulator: Simulator, request: Request, rule_id: str) -> Answer:
    match request.method:
        case "GET":
            return json_answer(200, {"faults": simulator.faults.active()})
        case "POST":
            return json_answer(
                200, {"ids": [simulator.faults.inject(fault) for fault in _one_or_many(request.body, Fault)]}
            )
        case "DELETE" if rule_id:
            if not simulator.faults.remove(int(rule_id)):
                raise KeyError(rule_id)
            return json_answer(200, {})
        case "DELETE":
            simulator.faults.clear()
            return json_answer(200, {})
        case _:
            return error_answer(404, "no such control", code=5)


def _settings(simulator: Simulator, body: bytes) -> Answer:
    """Changes the settings in place: the tenants and the logins hold the same object."""
    known = msgspec.structs.asdict(simulator.settings)
    changed = msgspec.convert(known | msgspec.json.decode(body, type=dict[str, object]), Settings)
    for name, value in msgspec.structs.asdict(changed).items():
        setattr(simulator.settings, name, value)
    return json_answer(200, simulator.settings)


def _one_or_many(body: bytes, kind: type[T]) -> list[T]:
    value = msgspec.json.decode(body)
    return [msgspec.convert(item, kind) for item in (value if isinstance(value, list) else [value])]


def _readable(version: Version) -> dict[str, object]:
    """A version whose content is text, since a record may be anything."""
    return {**msgspec.structs.asdict(version), "content": version.content.decode("utf-8", "replace")}
