"""Microsoft Teams by a workflow's webhook: one card an event, or one digest for many.

What the cards look like is `formats.teams`'s. The webhook is the HTTP trigger of a Power Automate flow: it answers 202
before the flow runs, so that a message is accepted and not seen to be delivered. Errors of the trigger come as JSON
with a code.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final, Literal

import msgspec

from relay.errors import Gone, Refused
from relay.formats import teams
from relay.sinks.chat import ChatSink
from relay.sinks.post import Reply, reason_of, require_success

_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{1,80}", re.ASCII)
_NEW_FLOW: Final = "create the flow again in the Workflows app of Teams, write its URL to the sink's url_file"
_TURN_ON: Final = ("this flow is switched off", "turn it on in the Workflows app of Teams")
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
    "WorkflowDisabled": _TURN_ON,
    "WorkflowNotFound": ("this flow was removed", _NEW_FLOW),
    "WorkflowSuspended": ("this flow was suspended", "correct what it complains about, turn it on in Power Automate"),
    "WorkflowTriggerIsNotEnabled": (
        "this flow was switched off or removed",
        "turn it on in the Workflows app of Teams, or create it again and write its URL to the sink's url_file",
    ),
    "WorkflowTriggerNotFound": ("the trigger of this flow was removed", _NEW_FLOW),
}
"""What it means, and what a person has to do: trying again does not help."""

_STATES: Final[Mapping[bytes, tuple[str, str]]] = {
    b"'Disabled'": _TURN_ON,
    b"'Deleted'": ("this flow was removed", _NEW_FLOW),
    b"'Suspended'": ("this flow was suspended", "correct what it complains about, turn it on in Power Automate"),
}
"""`WorkflowTriggerIsNotEnabled` is said of all three; the message beside it names the state."""

_TRIGGER: Final = re.compile(r"/.*/triggers/[^/]+/paths/invoke/?")
_ONLY_POST: Final = "TriggerRequestMethodNotValid"
"""The trigger takes POST alone: it refuses a GET before the flow would run, when it is switched on."""


class TeamsSink(ChatSink):
    """Posts to a workflow."""

    outcome: Literal["delivered", "accepted"] = "accepted"
    """The flow answers before it posts, and nothing tells whether it did."""
    kind = "teams"
    look = teams

    async def _ask(self) -> str:
        reply = await self._poster.ask("GET", _TRIGGER, b"", {})
        if reply is None:
            return ""
        code = _code(reply)
        if code in PERMANENT:
            self._require_taken(reply, [])
        if code == _ONLY_POST:
            return "its flow is switched on"
        return f"Teams answered {reply.status}, which does not tell whether its flow is switched on"

    def _require_taken(self, reply: Reply, positions: Collection[int]) -> None:
        if 200 <= reply.status < 300:
            return
        code = _code(reply)
        what = f"Teams answered {reply.status} {code}"
        if code in PERMANENT:
            meaning, cure = _meaning(code, reply)
            raise Gone(f"{what}: {meaning}; {cure}", reason="gone")
        if code in MESSAGE_AT_FAULT:
            raise Refused(what, positions=dict.fromkeys(positions, what), reason=reason_of(reply.status))
        require_success(self._name, reply, positions=positions, now=self._clock.now())


def _meaning(code: str, reply: Reply) -> tuple[str, str]:
    """What the code means, and what a person has to do."""
    if code == "WorkflowTriggerIsNotEnabled":
        for state, found in _STATES.items():
            if state in reply.body:
                return found
    return PERMANENT[code]


def _code(reply: Reply) -> str:
    """The code of `{"error": {"code": …}}`; empty for anything else."""
    try:
        error = msgspec.json.decode(reply.body)["error"]
        code = error["code"]
    except (ValueError, LookupError, TypeError):
        return ""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""
