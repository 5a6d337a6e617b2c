"""An ESET Connect stand-in, good enough to develop a connector against. It knows nothing of the relay but its clock.

In process: `Simulator(clock).handle(Request.to("GET", "/v2/incidents"))`. Over HTTP: `async with serve(simulator)`.
"""

from relay.simulator.api import SeenRequest, Simulator
from relay.simulator.faults import Fault, Injected
from relay.simulator.messages import Answer, Request
from relay.simulator.scenario import Scenario, Step, TenantSpec, apply, load_scenario, parse_scenario, play, set_up
from relay.simulator.server import Served, everyday_scenario, run, serve
from relay.simulator.settings import Settings
from relay.simulator.tenant import Tenant, Version

__all__ = [
    "Answer",
    "Fault",
    "Injected",
    "Request",
    "Scenario",
    "SeenRequest",
    "Served",
    "Settings",
    "Simulator",
    "Step",
    "Tenant",
    "TenantSpec",
    "Version",
    "apply",
    "everyday_scenario",
    "load_scenario",
    "parse_scenario",
    "play",
    "run",
    "serve",
    "set_up",
]
