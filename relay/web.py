"""What the relay shows over HTTP: health, metrics, status and its page; and the sockets that it listens on.

TCP is read-only. Commands that change something come by the admin socket, see `relay.control`.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from relay import page
from relay.errors import ConfigError
from relay.metrics import Metrics
from relay.status import RelayFacts, document, readiness

log = structlog.get_logger()

STUCK_SECONDS = 60.0
"""A call to the journal that takes longer means a hung disk: a restart is worth trying."""


class Shown(Protocol):
    """What the servers need of the relay."""

    metrics: Metrics
    """What `/metrics` shows."""

    async def facts(self) -> RelayFacts:
        """Everything that the status says, of all processes of the relay."""
        ...

    async def own_facts(self) -> RelayFacts:
        """The same of this process alone."""
        ...

    def stuck_seconds(self) -> float:
        """For how long the oldest unfinished call to the journal has been waiting."""
        ...

    def ended_tasks(self) -> list[str]:
        """Long-lived tasks that are no longer running."""
        ...


class _Server(uvicorn.Server):
    """uvicorn inside our loop: signals stay ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def application(relay: Shown, *, commands: Sequence[Route] = ()) -> Starlette:
    """`/`, `/livez`, `/readyz`, `/metrics`, `/api/status`; and `commands`, which belong on the admin socket alone."""

    async def livez(_request: Request) -> Response:
        ended = relay.ended_tasks()
        stuck = relay.stuck_seconds()
        if ended:
            return PlainTextResponse(f"ended: {', '.join(ended)}\n", status_code=503)
        if stuck > STUCK_SECONDS:
            return PlainTextResponse(f"the journal has not answered for {stuck:.0f} s\n", status_code=503)
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        ready, detail = readiness(await relay.own_facts())
        return JSONResponse(detail, status_code=200 if ready else 503)

    async def metrics(_request: Request) -> Response:
        text = await asyncio.to_thread(generate_latest, relay.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def status(_request: Request) -> Response:
        return JSONResponse(document(await relay.facts()), headers=page.HEADERS)

    async def status_page(_request: Request) -> Response:
        return HTMLResponse(page.render(document(await relay.facts())), headers=page.PAGE_HEADERS)

    return Starlette(
        routes=[
            Route("/", status_page),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/api/status", status),
            *commands,
        ]
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"cannot listen on http.host {host}, http.port {port}: {(exc.strerror or '').lower()}; choose another "
            "port, or 0 for a free one"
        ) from exc
    return listener


def bind_admin(path: Path) -> socket.socket:
    """A listening Unix socket that only its owner may use. Raises ConfigError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"cannot make the admin_socket {path}: {exc.strerror or exc}; name a short path in a writable folder"
        ) from exc
    return listener


async def serve(app: Starlette, listener: socket.socket) -> None:
    """Serves until cancelled."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        raise
    finally:
        listener.close()
