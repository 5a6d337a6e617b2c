"""Slack by incoming webhook: one message an event, or one digest for many. What they look like is `formats.slack`'s.

The answers are those of https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks ("Handling errors")
and, where a webhook was seen to give them, of `chat.postMessage`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final, Literal

import msgspec

from relay.errors import Gone, Refused, Unavailable
from relay.formats import slack
from relay.sinks.chat import ChatSink
from relay.sinks.post import THROTTLED_SECONDS, Reply, reason_of, require_success

SECONDS_PER_MESSAGE: Final = 1.0
"""Slack takes one message a second per webhook: https://docs.slack.dev/apis/web-api/rate-limits"""

_WORD: Final = re.compile(r"[a-z][a-z_]{1,60}", re.ASCII)
_NEW_WEBHOOK: Final = "create a new incoming webhook in Slack, write its URL to the sink's url_file"

MESSAGE_AT_FAULT: Final = frozenset(
    {
        "invalid_attachments",
        "invalid_blocks",
        "invalid_blocks_format",
        "invalid_payload",
        "missing_text_or_fallback_or_attachments",
        "msg_blocks_too_long",
        "msg_too_long",
        "no_text",
        "too_many_attachments",
        "user_not_found",
    }
)
"""Slack does not take this message; it takes others."""

ENDPOINT_AT_FAULT: Final = frozenset(
    {
        "fatal_error",
        "internal_error",
        "message_limit_exceeded",
        "org_login_required",
        "rate_limited",
        "ratelimited",
        "request_timeout",
        "rollup_error",
        "service_unavailable",
        "team_added_to_org",
    }
)
"""Slack itself is in trouble, or asks to wait: nothing is wrong with the message or the webhook."""

PERMANENT: Final[Mapping[str, tuple[str, str]]] = {
    "action_prohibited": (
        "an administrator of the workspace forbids this webhook to post",
        "have it allowed, or create a new incoming webhook and write its URL to the sink's url_file",
    ),
    "channel_is_archived": (
        "the channel of this webhook was archived",
        "unarchive it, or create an incoming webhook for another channel and write its URL to the sink's url_file",
    ),
    "channel_not_found": ("the channel of this webhook does not exist any more", _NEW_WEBHOOK),
    "ekm_access_denied": (
        "an administrator has suspended posting to this workspace",
        "have posting allowed again",
    ),
    "invalid_token": ("the URL is not that of a webhook", _NEW_WEBHOOK),
    "no_active_hooks": ("this webhook was switched off", _NEW_WEBHOOK),
    "no_service": ("this webhook was removed", _NEW_WEBHOOK),
    "no_service_id": ("the URL names no webhook", _NEW_WEBHOOK),
    "no_team": ("the workspace of this webhook does not exist any more", _NEW_WEBHOOK),
    "posting_to_general_channel_denied": (
        "whoever created this webhook may not post to the general channel",
        "create an incoming webhook for another channel, write its URL to the sink's url_file",
    ),
    "team_disabled": (
        "the workspace of this webhook is not active any more",
        "have it activated, or create an incoming webhook in another one and write its URL to the sink's url_file",
    ),
}
"""What it means, and what a person has to do: trying again does not help."""

_WEBHOOK: Final = re.compile(r"/services/[^/]+/[^/]+/[^/]+/?")
"""Slack's own URLs of incoming webhooks. Others, as those that start a workflow in Slack, are not asked."""
_NO_MESSAGE: Final = b"no message: relay check asks whether this webhook exists"
"""Not JSON: Slack answers `invalid_payload` when the webhook exists, and says what is wrong when it does not."""

_EXHAUSTED: Final = frozenset({"message_limit_exceeded", "rate_limited", "ratelimited"})


class SlackSink(ChatSink):
    """Posts to an incoming webhook, at most once a second."""

    outcome: Literal["delivered", "accepted"] = "delivered"
    """Slack answers after it has posted."""
    kind = "slack"
    look = slack
    _next_turn = 0.0

    async def _turn(self) -> None:
        """The turn is taken before the wait, so that notices and messages of other tasks come after it."""
        wait = self._next_turn - self._clock.monotonic()
        self._next_turn = self._clock.monotonic() + max(0.0, wait) + SECONDS_PER_MESSAGE
        if wait > 0:
            await self._clock.sleep(wait)

    async def _ask(self) -> str:
        reply = await self._poster.ask("POST", _WEBHOOK, _NO_MESSAGE, {"content-type": "application/json"})
        if reply is None:
            return ""
        word = _word(reply)
        if word in PERMANENT:
            self._require_taken(reply, [])
        if word in MESSAGE_AT_FAULT:
            return "Slack knows the webhook"
        return f"Slack answered {reply.status}, which does not tell whether it knows the webhook"

    def _require_taken(self, reply: Reply, positions: Collection[int]) -> None:
        word = _word(reply)
        if reply.status == 200 and word == "ok":
            return
        what = f"Slack answered {reply.status} {word}"
        if word in PERMANENT:
            meaning, cure = PERMANENT[word]
            raise Gone(f"{what}: {meaning}; {cure}", reason="gone")
        if word in MESSAGE_AT_FAULT:
            raise Refused(what, positions=dict.fromkeys(positions, what), reason=_label(reply.status))
        if word in ENDPOINT_AT_FAULT:
            raise Unavailable(what, retry_after_seconds=self._asked(reply, word), reason=_label(reply.status))
        require_success(self._name, reply, positions=positions, now=self._clock.now())
        raise Unavailable(
            f"{self._name}: {reply.host} answered {reply.status}, but not Slack's ok: {reply.text}"[:256],
            reason=_label(reply.status),
        )

    def _asked(self, reply: Reply, word: str) -> float | None:
        """What the answer asks to wait; a word that means throttling asks for a minute at least by itself."""
        try:
            require_success(self._name, reply, positions=(), now=self._clock.now())
        except Unavailable as error:
            if error.retry_after_seconds is not None:
                return error.retry_after_seconds
        except (Gone, Refused):
            pass
        return THROTTLED_SECONDS if word in _EXHAUSTED else None


def _word(reply: Reply) -> str:
    """The one word of Slack's answer, also when it came as JSON; empty for anything else."""
    text = reply.body.decode(errors="replace").strip()
    if text.startswith("{"):
        try:
            text = str(msgspec.json.decode(text).get("error", ""))
        except ValueError:
            return ""
    return text if _WORD.fullmatch(text) else ""


def _label(status: int) -> str:
    """The reason for metrics; an error that came with a success has none of its own."""
    return "http_other" if 200 <= status < 300 else reason_of(status)
