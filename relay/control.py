"""Commands that change a relay: as routes of its admin socket, or on its journal when no relay runs.

A command is durable when it is answered, and done once, by whoever owns the task that it is about.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from relay.assembly import make_journal
from relay.clock import Clock
from relay.errors import ConfigError, JournalError, RelayError
from relay.journal import PageCommit
from relay.settings import Settings
from relay.tasks import SourceTask

ANSWER_SECONDS: Final = 30.0


class Commanded(Protocol):
    """What commands need of a running relay."""

    sources: list[SourceTask]
    """The tasks of its sources."""


def routes(relay: Commanded) -> Sequence[Route]:
    """What the admin socket offers beside what is shown."""

    async def accept_missing(request: Request) -> Response:
        label = request.path_params["label"]
        for source in relay.sources:
            if source.name == label:
                try:
                    await source.accept_missing()
                except JournalError as error:
                    return JSONResponse({"error": str(error)}, status_code=503)
                return JSONResponse({"done": f"a sweep of {label} begins, and reports whatever it finds missing"})
        return JSONResponse({"error": _no_source(label, [source.name for source in relay.sources])}, status_code=404)

    return [Route("/api/sources/{label}/accept-missing", accept_missing, methods=["POST"])]


async def accept_missing(settings: Settings, label: str, *, clock: Clock) -> str:
    """Lets the next sweep of this source report any number of disappearances. Raises RelayError."""
    if label not in settings.sources:
        raise ConfigError(_no_source(label, settings.sources))
    answer = ask_running(settings.admin_socket_path, "POST", f"/api/sources/{label}/accept-missing")
    if answer is not None:
        return str(answer["done"])
    journal = make_journal(settings, clock=clock)
    await journal.open()
    try:
        lease = await journal.source(label)
        if lease.progress is None:
            raise RelayError(f"{label} has not been read yet: there is nothing to accept")
        progress = msgspec.structs.replace(lease.progress, accept_missing=True, sweep=None)
        await lease.commit(PageCommit(progress=progress))
    finally:
        await journal.close()
    return f"the next sweep of {label} reports whatever it finds missing; no relay runs at present"


def ask_running(path: Path, method: str, address: str) -> dict[str, Any] | None:
    """The answer of the relay behind this admin socket; None when none runs. Raises RelayError when it refuses."""
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=ANSWER_SECONDS) as client:
            answer = client.request(method, f"http://relay{address}")
    except httpx.ConnectError:
        return None
    except httpx.HTTPError as exc:
        raise RelayError(f"the relay at {path} did not answer in {ANSWER_SECONDS:g} s: look at its log") from exc
    content: dict[str, Any] = answer.json()
    if answer.is_success:
        return content
    raise RelayError(str(content.get("error", f"the relay answered {answer.status_code}")))


def _no_source(label: str, known: Iterable[str]) -> str:
    return f"there is no source {label}: use one of {', '.join(known)}"
