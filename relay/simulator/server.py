"""Carries the simulated ESET Connect over HTTP, inside the caller's loop, and breaks the connections it is told to.

uvicorn's protocol is used without its server: no signal handlers, no lifespan, and stopping takes no time.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import uvicorn
from starlette.requests import Request as HttpRequest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from relay.clock import SystemClock
from relay.simulator.api import TOKEN_PATH, Simulator
from relay.simulator.control import CONTROL_PATH, control
from relay.simulator.messages import Answer, Request, decoded_query
from relay.simulator.scenario import Scenario, Step, TenantSpec, play, set_up

DEFAULT_TENANT: Final = "api@demo.example"
EVERYDAY: Final = (
    Step(do="create", at=2, every=7),
    Step(do="update", at=5, every=5),
    Step(do="close", at=11, every=23),
    Step(do="reopen", at=60, every=97),
    Step(do="late", at=30, every=61, age=45),
    Step(do="silent", at=45, every=83),
)
"""What happens in a stand-alone simulator without a scenario: a quiet day, for ever."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_KEEP_ALIVE_SECONDS: Final = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where a simulator listens."""

    host: str
    port: int

    @property
    def base_url(self) -> str:
        """For the data API and the control endpoint."""
        return f"http://{self.host}:{self.port}"

    @property
    def token_url(self) -> str:
        """Of the login."""
        return self.base_url + TOKEN_PATH


class Application:
    """The ASGI application. `scope["state"]["connection"]` is the protocol whose transport it may break."""

    def __init__(self, simulator: Simulator, *, control_enabled: bool) -> None:
        self._simulator = simulator
        self._control_enabled = control_enabled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        request = await _read(scope, receive)
        if self._control_enabled and request.path.startswith(CONTROL_PATH):
            answer = control(self._simulator, request)
        else:
            answer = self._simulator.handle(request)
        try:
            if answer.delay_seconds:
                await self._simulator.clock.sleep(answer.delay_seconds)
            await _write(answer, scope, receive, send)
        except asyncio.CancelledError:
            return  # the server stops, and has already dropped the connection


async def _read(scope: Scope, receive: Receive) -> Request:
    incoming = HttpRequest(scope, receive)
    return Request(
        method=incoming.method,
        path=scope["path"],
        query=decoded_query(scope["query_string"].decode("latin-1")),
        headers=dict(incoming.headers),
        body=await incoming.body(),
    )


async def _write(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    transport: asyncio.Transport = scope["state"]["connection"].transport
    if answer.wire in {"whole", "truncated"}:
        headers = {"content-length": str(len(answer.body)), **answer.headers}
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": answer.body, "more_body": answer.wire == "truncated"})
    if answer.wire == "whole":
        return
    if answer.wire == "reset":
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def serve(
    simulator: Simulator, *, host: str = "127.0.0.1", port: int = 0, control_enabled: bool = True
) -> AsyncIterator[Served]:
    """Listens until the block is left, then drops every connection. Port 0: a free one. Raises OSError."""
    config = uvicorn.Config(
        Application(simulator, control_enabled=control_enabled),
        http=H11Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    config.load()
    state = ServerState()

    def connection() -> H11Protocol:
        own: dict[str, object] = {}
        protocol = H11Protocol(config=config, server_state=state, app_state=own)
        own["connection"] = protocol
        return protocol

    server = await asyncio.get_running_loop().create_server(connection, host, port)
    try:
        yield Served(host=host, port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await _drop_connections(state)


async def _drop_connections(state: ServerState) -> None:
    for open_connection in list(state.connections):
        open_connection.transport.abort()
    await asyncio.sleep(0)
    tasks = list(state.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def everyday_scenario(*, tenants: Sequence[str] = (DEFAULT_TENANT,), incidents: int = 200, seed: int = 1) -> Scenario:
    """A quiet day for tenants of these user names, all with the password `password`; it never ends."""
    return Scenario(
        seed=seed,
        tenants=[TenantSpec(username=username, incidents=incidents) for username in tenants],
        steps=list(EVERYDAY),
    )


async def run(
    scenario: Scenario,
    *,
    host: str = "127.0.0.1",
    port: int = 8089,
    control_enabled: bool = True,
    on_ready: Callable[[Served, Simulator], None] | None = None,
) -> None:
    """Serves a scenario in real time until cancelled. Raises OSError if the port is taken."""
    simulator = Simulator(SystemClock(), seed=scenario.seed, settings=scenario.settings)
    set_up(simulator, scenario)
    async with serve(simulator, host=host, port=port, control_enabled=control_enabled) as served:
        if on_ready is not None:
            on_ready(served, simulator)
        await play(simulator, scenario.steps)
        await asyncio.Event().wait()
