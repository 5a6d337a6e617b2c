"""A story that a simulated ESET Connect plays: what happens to whom, when. In YAML, JSON or Python.

```yaml
seed: 7                                   # decides everything that is drawn
settings: {requests_per_second: 10}       # any of relay.simulator.settings.Settings
tenants:
  - {username: api@acme.example, password: demo, incidents: 40, spread: 30d}
steps:                                    # times count from the start: 500ms, 9s, 5m, 2h, 1d
  - {at: 2s, do: create, count: 3, fields: {severity: HIGH}}
  - {at: 4s, do: update, count: 5}                    # 5 incidents at one instant: a tie
  - {at: 5s, do: update, uuids: [4f…], fields: {status: IN_PROGRESS}}
  - {at: 6s, do: close, count: 10, pick: oldest}
  - {at: 7s, do: reopen}
  - {at: 8s, do: late, age: 90s}                      # appears now, with times of 90 s ago
  - {at: 9s, do: silent}                              # content changes, updateTime does not
  - {at: 10s, do: regress, age: 60s}                  # updateTime goes back
  - {at: 11s, do: delete}
  - {at: 12s, do: restore}
  - {at: 13s, do: raw, raw: '{"uuid": 5}'}            # a record byte for byte
  - {at: 14s, do: fault, fault: {effect: answer, status: 503, count: 3}}
  - {at: 20s, do: clear_faults}
  - {at: 21s, do: revoke}                             # every access token
  - {at: 30s, do: create, every: 5s, times: 100}      # without times: for ever
```

A step applies to the tenant named by `tenant`, or to every tenant; `uuids` or `count` and `pick` (random, newest,
oldest) say which incidents. The control endpoint takes the same steps, without the times.
"""

import asyncio
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import yaml

from relay.simulator.api import DEFAULT_PASSWORD, Simulator
from relay.simulator.faults import Fault
from relay.simulator.settings import Settings
from relay.simulator.tenant import Pick, Tenant
from relay.simulator.times import parse_duration

Duration = str | float
Do = Literal[
    "create",
    "update",
    "close",
    "reopen",
    "late",
    "silent",
    "regress",
    "delete",
    "restore",
    "raw",
    "fault",
    "clear_faults",
    "revoke",
]
_SHORT_VALUES: Final = {
    "severity": "INCIDENT_SEVERITY_LEVEL_",
    "status": "INCIDENT_STATUS_",
    "resolveReason": "INCIDENT_RESOLVE_REASON_",
}


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that happens. Fields that do not belong to what is done are ignored."""

    do: Do
    at: Duration = 0
    every: Duration | None = None
    times: int | None = None
    tenant: str = ""
    uuids: list[str] = []
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    pick: Pick = "random"
    fields: dict[str, Any] | None = None
    """By the names of the API's JSON; enum values may be short (`severity: HIGH`)."""
    age: Duration = 60
    """late: how old the incident's times are; regress: how far updateTime goes back."""
    spread: Duration = 0
    """create: the time over which `count` incidents came into being, ending now."""
    raw: str = ""
    fault: Fault | None = None

    def __post_init__(self) -> None:
        for duration in (self.at, self.every or 0, self.age, self.spread):
            parse_duration(duration)
        if self.every is not None and not parse_duration(self.every):
            raise ValueError("`every` must be longer than 0")
        if self.do == "fault" and self.fault is None:
            raise ValueError("a step that does `fault` needs `fault:`")


class TenantSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant that exists from the start, with incidents created over the last `spread`."""

    username: str
    password: str = DEFAULT_PASSWORD
    incidents: int = 0
    spread: Duration = "30d"

    def __post_init__(self) -> None:
        parse_duration(self.spread)


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole story."""

    seed: int = 1
    settings: Settings = msgspec.field(default_factory=Settings)
    tenants: list[TenantSpec] = []
    steps: list[Step] = []


def parse_scenario(text: str) -> Scenario:
    """A scenario out of YAML. Raises ValueError that names the place."""
    try:
        return msgspec.convert(yaml.safe_load(text) or {}, Scenario)
    except yaml.YAMLError as exc:
        raise ValueError(f"not YAML: {exc}") from exc


def load_scenario(path: Path) -> Scenario:
    """A scenario out of a YAML file. Raises OSError, or ValueError that names the place."""
    return parse_scenario(path.read_text(encoding="utf-8"))


def set_up(simulator: Simulator, scenario: Scenario) -> None:
    """Adds the scenario's tenants. Its seed and settings are given to the Simulator's constructor."""
    for spec in scenario.tenants:
        simulator.add_tenant(
            spec.username, spec.password, incidents=spec.incidents, spread_seconds=parse_duration(spec.spread)
        )


def apply(simulator: Simulator, step: Step) -> list[str]:
    """Does one step now. Returns the uuids of the incidents it touched. Raises KeyError for what does not exist."""
    match step.do:
        case "fault":
            if step.fault is not None:
                simulator.faults.inject(step.fault)
        case "clear_faults":
            simulator.faults.clear()
        case "revoke":
            simulator.logins.revoke(step.tenant)
        case _:
            tenants = [simulator.tenants[step.tenant]] if step.tenant else list(simulator.tenants.values())
            return [uuid for tenant in tenants for uuid in _apply_to(tenant, step)]
    return []


class Timeline:
    """The steps of a scenario in the order of time, repeated ones included."""

    def __init__(self, steps: list[Step]) -> None:
        self._coming = [(parse_duration(step.at), place, 1, step) for place, step in enumerate(steps)]
        heapq.heapify(self._coming)

    def next_at(self) -> float | None:
        """Seconds from the start to the next step; None after the last one."""
        return self._coming[0][0] if self._coming else None

    def due(self, elapsed_seconds: float) -> Iterator[Step]:
        """Takes out every step that is due by then."""
        while self._coming and self._coming[0][0] <= elapsed_seconds:
            at, place, number, step = heapq.heappop(self._coming)
            if step.every is not None and (step.times is None or number < step.times):
                heapq.heappush(self._coming, (at + parse_duration(step.every), place, number + 1, step))
            yield step


async def play(simulator: Simulator, steps: list[Step]) -> None:
    """Does the steps at their times, by the simulator's clock. Returns after the last one, which may be never."""
    timeline = Timeline(steps)
    start = simulator.clock.monotonic()
    while (at := timeline.next_at()) is not None:
        wait = start + at - simulator.clock.monotonic()
        if wait > 0:
            await simulator.clock.sleep(wait)
        for step in timeline.due(simulator.clock.monotonic() - start):
            apply(simulator, step)
        await asyncio.sleep(0)


def _apply_to(tenant: Tenant, step: Step) -> list[str]:
    fields = _spelled_out(step.fields)
    match step.do:
        case "create":
            return tenant.create_many(step.count, fields, spread_seconds=parse_duration(step.spread))
        case "late":
            return [tenant.arrive_late(fields, age_seconds=parse_duration(step.age)) for _ in range(step.count)]
        case "raw":
            return [tenant.put_raw(step.raw.encode(), uuid=next(iter(step.uuids), None))]
        case "restore":
            uuids = step.uuids or tenant.deleted()[: step.count]
            tenant.restore(uuids)
            return uuids
        case _:
            uuids = step.uuids or tenant.pick(step.count, which=step.pick, closed=_WANTED_CLOSED.get(step.do))
            _change(tenant, step, uuids, fields)
            return uuids


_WANTED_CLOSED: Final[dict[Do, bool]] = {"close": False, "reopen": True}


def _change(tenant: Tenant, step: Step, uuids: list[str], fields: dict[str, Any] | None) -> None:
    match step.do:
        case "update":
            tenant.update(uuids, fields)
        case "close":
            tenant.close(uuids)
        case "reopen":
            tenant.reopen(uuids)
        case "silent":
            tenant.edit_silently(uuids, fields)
        case "regress":
            tenant.regress(uuids, by_seconds=parse_duration(step.age), fields=fields)
        case _:
            tenant.delete(uuids)


def _spelled_out(fields: dict[str, Any] | None) -> dict[str, Any] | None:
    """The fields with short enum values in full."""
    if fields is None:
        return None
    return {
        name: _SHORT_VALUES[name] + value
        if name in _SHORT_VALUES and isinstance(value, str) and not value.startswith("INCIDENT_")
        else value
        for name, value in fields.items()
    }
