"""How a simulated ESET Connect behaves when nothing is wrong with it. What goes wrong is in `faults`."""

from typing import Annotated, Literal

import msgspec


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Every choice that the API's documents leave open. May be changed at any time; rendered incidents stay."""

    token_lifetime_seconds: float = 3600
    refresh_lifetime_seconds: float = 86_400
    refused_login_status: Literal[400, 401] = 401
    requests_per_second: float | None = None
    """Per account, over any one second; above it 429. None: no limit. ESET documents 10."""
    retry_after: Literal["absent", "seconds", "date"] = "absent"
    """Whether the limit's own 429 carries Retry-After, and in which form."""

    default_order: str = ""
    """The orderBy of a request without one. Empty: the order in which incidents were created here."""
    camel_case_order: bool = False
    """Whether orderBy takes `updateTime` too; the current documents demand `update_time`."""
    last_page: Literal["empty_token", "no_token", "mixed"] = "empty_token"
    """Whether a last page shows `"nextPageToken": ""`, leaves it out, or either of them, drawn each time."""
    trailing_empty_page: bool = False
    """Whether a result that ends with a full page still names a next page, which is then empty."""

    date_header: bool = True
    date_skew_seconds: float = 0

    time_digits: Annotated[int, msgspec.Meta(ge=0, le=9)] | Literal["mixed"] = 6
    """Fractional digits of createTime and updateTime. What they cannot show is cut from the stored instant too."""
    time_offset_minutes: int | Literal["mixed"] = 0
    new_update_time: Literal["created", "missing", "mixed"] = "created"
    """updateTime of an incident that was never updated: its createTime, or none, or drawn for each."""
    missing_time: Literal["absent", "null", "empty"] = "absent"
    """How a time that an incident does not have is shown."""
    integers: Literal["numbers", "strings", "mixed"] = "numbers"
    """How the counts of `metrics` are shown; protobuf's JSON shows int64 as strings."""
    list_details: Literal["absent", "empty"] = "absent"
    """How a list shows deviceUuids and detectionUuids."""

    keep_history: bool = True
    memo_pages: int = 0
    """How many list answers are kept ready until the tenant changes; for benchmarks that scan."""
