"""A page of the incident list: its parameters checked, its token read, its body put together. Not whose list it is.

Tokens are offsets into the result as it is when asked: rows that move between two pages shift all that follow, so a
reader by token meets repeats and gaps, as it may with the real API.
"""

import random
import re
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from relay.simulator.faults import Effect
from relay.simulator.filters import Condition, InvalidArgument, OrderTerm, parse_filter, parse_order
from relay.simulator.settings import Settings
from relay.simulator.store import Query
from relay.simulator.tenant import Tenant

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 1000
_DECLARED_MAX_PAGE_SIZE: Final = 99_999
_MAX_LENGTH: Final = {"filter": 200, "orderBy": 100, "pageToken": 128}


def list_body(
    parameters: Mapping[str, str],
    tenant: Tenant,
    *,
    settings: Settings,
    rng: random.Random,
    effects: Collection[Effect] = (),
) -> bytes:
    """The JSON of one page. Raises InvalidArgument."""
    for name, limit in _MAX_LENGTH.items():
        if len(parameters.get(name, "")) > limit:
            raise InvalidArgument(f"{name}: longer than {limit} characters")
    query = Query(
        conditions=_conditions(parameters.get("filter", ""), effects),
        order=_order(parameters.get("orderBy", ""), settings, effects),
        whole_seconds="truncate_times" in effects,
    )
    size = page_size(parameters.get("pageSize", ""))
    if "short_page" in effects:
        size = max(1, size // 2)
    token = parameters.get("pageToken", "")
    offset = read_token(token)
    records, more = tenant.store.page(query, offset=offset, size=size)
    more = more or (settings.trailing_empty_page and len(records) == size)
    next_token = write_token(offset + size) if more else ""
    if "loop_token" in effects and next_token:
        next_token = token or next_token
    return _body(records, next_token, has_token=bool(next_token) or _shows_empty_token(settings, rng))


def page_size(text: str) -> int:
    """The page size that a parameter asks for. Raises InvalidArgument."""
    if not re.fullmatch(r"[0-9]{0,5}", text, re.ASCII):
        raise InvalidArgument(f"page_size: not a number from 0 to {_DECLARED_MAX_PAGE_SIZE}")
    return min(int(text or 0) or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def write_token(offset: int) -> str:
    """The token of a page that begins there."""
    return urlsafe_b64encode(f"{offset}.{zlib.crc32(b'%d' % offset):08x}".encode()).decode().rstrip("=")


def read_token(token: str) -> int:
    """The offset of a token, 0 for none. Raises InvalidArgument for anything that was not a token."""
    if not token:
        return 0
    try:
        text = urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii")
        offset = int(text.partition(".")[0])
    except ValueError as exc:
        raise InvalidArgument("page_token: invalid") from exc
    if token != write_token(offset):
        raise InvalidArgument("page_token: invalid")
    return offset


def _conditions(text: str, effects: Collection[Effect]) -> tuple[Condition, ...]:
    if "ignore_filter" in effects:
        return ()
    conditions = parse_filter(text, accept_z="refuse_z" not in effects)
    if conditions and "refuse_filter" in effects:
        raise InvalidArgument("filter: not supported")
    return conditions


def _order(text: str, settings: Settings, effects: Collection[Effect]) -> tuple[OrderTerm, ...]:
    default = parse_order(settings.default_order, camel_case=True)
    if "ignore_order" in effects:
        return default
    order = parse_order(text, camel_case=settings.camel_case_order)
    if "refuse_uuid_order" in effects and any(term.field.path == "uuid" for term in order):
        raise InvalidArgument("order_by: unknown field 'uuid'")
    return order or default


def _body(records: list[bytes], token: str, *, has_token: bool) -> bytes:
    end = b'],"nextPageToken":' + msgspec.json.encode(token) + b"}" if has_token else b"]}"
    return b'{"incidents":[' + b",".join(records) + end


def _shows_empty_token(settings: Settings, rng: random.Random) -> bool:
    if settings.last_page == "mixed":
        return rng.random() < 0.5
    return settings.last_page == "empty_token"
