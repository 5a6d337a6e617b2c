"""What an answer of ESET Connect means: the table of the contract, as functions of what was answered. Pure.

Not here: the waiting and sending that follows (`relay.eset.exchange`).
"""

from typing import Final, Literal

from relay import transport, words
from relay.clock import Instant

Step = Literal["read", "collect", "afresh", "reauthorize", "denied", "pause", "retry"]
"""What to do next with a request, see `classify`."""

MAX_RETRY_AFTER_SECONDS = 3600.0
MAX_COLLECT_WAIT_SECONDS = 60.0

HINTS: Final = {
    400: "the server does not accept this request, or not its authorization",
    401: "the token endpoint issues tokens that the API refuses: do base_url and token_url belong to one region?",
    403: "does the API user have the permission to read incidents, and the account a licence for them?",
    404: "is the region, or base_url, the one where the account lives?",
    501: "this region or licence does not offer incident management",
}
"""What a person may look at, by status."""


def classify(status: int, *, asked_with_id: bool = False, offers_id: bool = False) -> Step:
    """The next step after an answer.

    - read: the body is the content
    - collect: not ready; send the same request with the response-id, later
    - afresh: the response-id is used up, or the query took too long; send it again without one
    - reauthorize: with a new token, or refused for good
    - denied: asking again does not help
    - pause: the account has to wait
    - retry: the same request again, after a backoff

    `asked_with_id`: the request carried a response-id; `offers_id`: the answer does.
    """
    if status == 200:
        return "read"
    if status == 202:
        return "collect" if offers_id or asked_with_id else "retry"
    if status == 504 or (status == 404 and asked_with_id):
        return "afresh"
    if status in (400, 401):
        return "reauthorize"
    if status == 429:
        return "pause"
    if status in (408, 425) or (status >= 500 and status != 501) or status < 300:
        return "retry"
    return "denied"


def is_throttling(status: int) -> bool:
    """Whether the answer is one of ESET's ways to say "slower": 429, or of its fair-use layer 202 and 50x."""
    return status in (202, 429, 500, 502, 503, 504)


http_date = transport.http_date
server_time = transport.server_time
one_line = words.one_line


def retry_after_seconds(header: str | None, now: Instant) -> float | None:
    """How long `Retry-After` asks to wait (seconds or an HTTP date), at most an hour; None when it says nothing usable.

    `now` is the server's clock where known.
    """
    return transport.retry_after_seconds(header, now, at_most=MAX_RETRY_AFTER_SECONDS)


def backoff_seconds(attempt: int, *, initial: float, maximum: float, random: float) -> float:
    """Exponential backoff with full jitter: `random` (0 to 1) of the attempt's ceiling. The first attempt is 1."""
    ceiling: float = initial * 2 ** min(attempt - 1, 32)
    return random * min(maximum, ceiling)


def collect_wait_seconds(collected: int) -> float:
    """How long to wait before a 202 is asked for again: 1, 2, 4 … s, at most a minute. The first time is 0."""
    wait: float = 2 ** min(collected, 32)
    return min(wait, MAX_COLLECT_WAIT_SECONDS)
