"""Microsoft Teams by a workflow's webhook: one card an event, or one digest for many.

What the cards look like is `formats.teams`'s. The webhook is the HTTP trigger of a Power Automate flow: it answers 202
before the flow runs, so that a message is accepted and not seen to be delivered. Errors of the trigger come as JSON
with a code.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal

import httpx
import msgspec

from relay.clock import Clock
from relay.errors import Gone, Refused
from relay.formats import teams
from relay.formats.message import Notice, digest_of, facts_of
from relay.sinks import Delivery, Position
from relay.sinks.post import Poster, Reply, reason_of, require_success

_HEADERS: Final = {"content-type": "application/json; charset=utf-8"}
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{1,80}", re.ASCII)
_NEW_FLOW: Final = "create the flow again in the Workflows app of Teams, write its URL to the sink's url_file"
_COPY_URL: Final = "copy the whole URL of the flow's trigger, signature included, to the sink's url_file"

MESSAGE_AT_FAULT: Final = frozenset(
    {
        "ContentLengthExceeded",
        "InvalidJson",
        "InvalidRequestContent",
        "RequestContentTooLarge",
        "RequestEntityTooLarge",
        "TriggerInputSchemaMismatch",
    }
)
"""The flow's trigger does not take this body; it takes others."""

PERMANENT: Final[Mapping[str, tuple[str, str]]] = {
    "DirectApiAuthorizationRequired": (
        "the URL lacks its signature, or the flow takes requests of its own tenant only",
        "set who can trigger the flow to Anyone, copy its whole URL to the sink's url_file",
    ),
    "EnvironmentNotFound": ("the environment of this flow was removed", _NEW_FLOW),
    "InvalidSharedAccessSignature": ("the signature in the URL is not valid", _COPY_URL),
    "SharedAccessSignatureExpired": ("the signature in the URL has expired", _COPY_URL),
    "AuthorizationFailed": ("the signature in the URL is not valid", _COPY_URL),
    "InvalidAuthorization": ("the signature in the URL is not valid", _COPY_URL),
    "ExpiredAuthenticationToken": ("the signature in the URL has expired", _COPY_URL),
    "OutsideOfTokenValidity": ("the signature in the URL has expired", _COPY_URL),
    "WorkflowDisabled": ("this flow is switched off", "turn it on in the Workflows app of Teams"),
    "WorkflowNotFound": ("this flow was removed", _NEW_FLOW),
    "WorkflowSuspended": ("this flow was suspended", "correct what it complains about, turn it on in Power Automate"),
    "WorkflowTriggerIsNotEnabled": (
        "this flow was switched off or removed",
        "turn it on in the Workflows app of Teams, or create it again and write its URL to the sink's url_file",
    ),
    "WorkflowTriggerNotFound": ("the trigger of this flow was removed", _NEW_FLOW),
}
"""What it means, and what a person has to do: trying again does not help."""


class TeamsSink:
    """Posts to the workflow that `url` names at that moment.

    `links` maps sources to templates of a link; `digest_above` is only named in a digest.
    """

    max_batch = 50
    atomic = False
    outcome: Literal["delivered", "accepted"] = "accepted"
    """The flow answers before it posts, and nothing tells whether it did."""

    def __init__(
        self,
        name: str,
        *,
        url: Callable[[], str],
        http: httpx.AsyncClient,
        timeout_seconds: float,
        omit: Collection[str],
        links: Mapping[str, str],
        clock: Clock,
        digest_above: int | None = None,
    ) -> None:
        self._name = f"teams {name}"
        self._poster = Poster(self._name, url=url, http=http, timeout_seconds=timeout_seconds, clock=clock)
        self._omit = frozenset(omit)
        self._links = links
        self._digest_above = digest_above
        self._clock = clock

    def __repr__(self) -> str:
        return f"TeamsSink({self._name!r})"

    async def open(self) -> Position | None:
        """Nothing to connect to: each message is a request of its own."""
        return None

    async def send(self, batch: Sequence[Delivery], *, upto: int | None = None) -> None:
        """One card for one event, one digest for several; returns when the flow has accepted it."""
        if not batch:
            return
        if len(batch) == 1:
            payload = teams.message(facts_of(batch[0], omit=self._omit, links=self._links))
        else:
            digest = digest_of(batch, omit=self._omit, links=self._links, above=self._digest_above)
            payload = teams.digest(digest)
        await self._post(payload, [delivery.position for delivery in batch])

    async def tell(self, notice: Notice) -> None:
        """Posts a notice. Raises as `send` does; a refusal names no position."""
        await self._post(teams.notice(notice, now=self._clock.now()), [])

    async def probe(self) -> str:
        """Connects, and posts nothing."""
        return await self._poster.probe()

    async def close(self, timeout_seconds: float) -> None:
        """Closes the connections."""
        await self._poster.close()

    async def _post(self, payload: dict[str, Any], positions: Collection[int]) -> None:
        reply = await self._poster.post(msgspec.json.encode(payload), _HEADERS)
        if 200 <= reply.status < 300:
            return
        code = _code(reply)
        what = f"Teams answered {reply.status} {code}"
        if code in PERMANENT:
            meaning, cure = PERMANENT[code]
            raise Gone(f"{what}: {meaning}; {cure}", reason="gone")
        if code in MESSAGE_AT_FAULT:
            raise Refused(what, positions=dict.fromkeys(positions, what), reason=reason_of(reply.status))
        require_success(self._name, reply, positions=positions, now=self._clock.now())


def _code(reply: Reply) -> str:
    """The code of `{"error": {"code": …}}`; empty for anything else."""
    try:
        error = msgspec.json.decode(reply.body)["error"]
        code = error["code"]
    except (ValueError, LookupError, TypeError):
        return ""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""
