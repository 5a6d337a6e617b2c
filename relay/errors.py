"""Every error that the relay raises on purpose, named for what the caller does about it.

RelayError
├── ConfigError              fix the configuration: exit 2
├── SourceError              a request or poll failed; the next tick tries again
│   ├── LoginRefused         back off for long; ended early when the secret changes
│   ├── AccessDenied         403, 404, 501: a person has to look (permission, licence, region)
│   ├── QueryRefused         400: this filter or order is not accepted
│   ├── BadAnswer            truncated, not JSON, too large, tokens that loop, rows out of order
│   └── SourceUnavailable    network, 5xx, 429 beyond patience, 202 beyond patience
├── SinkError                a send failed
│   ├── Refused              the message is at fault: it becomes a dead letter
│   ├── Unavailable          the endpoint is at fault: hold everything, try again
│   └── Gone                 the endpoint is gone for good: park the sink
└── JournalError
    ├── JournalLocked        another process holds it
    ├── JournalIncompatible  written by a newer relay
    │   ├── JournalMisplaced the path cannot hold a journal: fix the configuration, exit 2
    │   └── JournalDamaged   never written again; a person restores a backup
    ├── JournalFull          polling waits for room; acknowledgements still fit
    ├── JournalUnavailable   disk or broker trouble; nothing was written, and it is tried again
    │   ├── JournalDiskFull  its volume has no room left
    │   ├── JournalReadOnly  its volume was mounted read-only
    │   └── JournalMissing   its files were moved, deleted or replaced while it was open
    └── LeaseLost            somebody else owns this task now

What is none of these is a bug and ends the process.

Messages are lower case and say what, which, and a hint. They never hold a secret, and never more than
256 characters of a body.
"""

from collections.abc import Mapping
from typing import Final


class RelayError(Exception):
    """Base of all. `reason` is a closed set of short words, fit for a metric label."""

    reason = "error"


class ConfigError(RelayError):
    """The configuration cannot be used. The message names the key, the file and the cure."""

    reason = "configuration"


class SourceError(RelayError):
    """A request to ESET Connect failed for good within this poll.

    `reason` is fit for a metric label; `status` is the HTTP status when one was answered; `hint` says what a person
    may do, or is empty; `request_id` is what the server called the request that failed it, empty when it said none.
    """

    reason = "source"

    def __init__(
        self, message: str, *, status: int | None = None, hint: str = "", reason: str = "", request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint
        self.request_id = request_id
        if reason:
            self.reason = reason


class LoginRefused(SourceError):
    """The token endpoint refused the credentials."""

    reason = "login_refused"


class AccessDenied(SourceError):
    """403, 404 without a response-id, or 501: retrying soon does not help."""

    reason = "access_denied"


class QueryRefused(SourceError):
    """400 to a request whose token is good: a filter or an order that the server does not accept."""

    reason = "query_refused"


class BadAnswer(SourceError):
    """A 200 that cannot be used as a page."""

    reason = "bad_answer"


class SourceUnavailable(SourceError):
    """The far side is not answering usefully right now."""

    reason = "unavailable"


class SinkError(RelayError):
    """A send failed; nothing of the batch counts as acknowledged."""

    reason = "sink"

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        if reason:
            self.reason = reason


class Refused(SinkError):
    """Messages of the batch are at fault. `positions` maps the journal position of each to its reason."""

    reason = "refused"

    def __init__(self, message: str, *, positions: Mapping[int, str], reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.positions = dict(positions)


class Unavailable(SinkError):
    """The endpoint is at fault. `retry_after_seconds` is what it asked for, if it did."""

    reason = "unavailable"

    def __init__(self, message: str, *, retry_after_seconds: float | None = None, reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.retry_after_seconds = retry_after_seconds


class Gone(SinkError):
    """The endpoint will not come back by itself."""

    reason = "gone"


class JournalError(RelayError):
    """Base of what the journal raises."""

    reason = "journal"


class JournalLocked(JournalError):
    """Another process holds the journal."""

    reason = "journal_locked"


class JournalIncompatible(JournalError):
    """The journal cannot be used by this relay: trying again does not help."""

    reason = "journal_incompatible"


class JournalMisplaced(JournalIncompatible, ConfigError):
    """What the path names cannot be a journal: a folder, another program's database, a place where none can be made."""

    reason = "journal_misplaced"


class JournalDamaged(JournalIncompatible):
    """The journal's content is not what was written. From then on it is neither read nor written."""

    reason = "journal_damaged"


class JournalFull(JournalError):
    """No room for new changes; acknowledgements still fit."""

    reason = "journal_full"


class JournalUnavailable(JournalError):
    """The disk or the broker failed; nothing was written, and trying again is right."""

    reason = "journal_unavailable"


class JournalDiskFull(JournalUnavailable):
    """The volume of the journal has no room left, though the journal itself is not full."""

    reason = "journal_disk_full"


class JournalReadOnly(JournalUnavailable):
    """The volume of the journal takes no writes any more."""

    reason = "journal_read_only"


class JournalMissing(JournalUnavailable):
    """The path does not name the journal that was opened any more: what is written now would be lost."""

    reason = "journal_missing"


class LeaseLost(JournalError):
    """This task belongs to somebody else now; whatever was not committed is theirs to do."""

    reason = "lease_lost"


JOURNAL_REASONS: Final = (
    "journal_damaged",
    "journal_disk_full",
    "journal_full",
    "journal_incompatible",
    "journal_locked",
    "journal_misplaced",
    "journal_missing",
    "journal_read_only",
    "journal_unavailable",
    "lease_lost",
)
"""Every reason for which a journal may refuse, for metrics that start at zero."""

SOURCE_REASONS: Final = (
    "access_denied",
    "bad_answer",
    "login_refused",
    "query_refused",
    "throttled",
    "unavailable",
)
"""Why a source is refused or fails at large, for metrics that start at zero; an error may say more closely why."""
