"""The bodies that ESET Connect answers with, read record by record: a bad record never spoils its page.

Not here: HTTP. Source: `v2ListIncidentsResponse` and `v2GetIncidentResponse` of ESET's OpenAPI document.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, TypedDict

import msgspec

from relay.errors import BadAnswer
from relay.incidents import BadRecord, Observed, parse_instant, tracked_values

MAX_BAD_RECORD_BYTES = 64 * 1024
MAX_UUID_CHARACTERS = 1024
"""A uuid is a key of the ledger and of Kafka, and a part of URLs. ESET's have 36 characters."""
MAX_DEPTH = 100
"""Of one record's nesting. Whatever reads an incident after us has a limit of its own, and may find less room."""
INSTANTS: Final = range(1 << 63)
"""What filters can ask for and a ledger can hold: from 1970 into 2262."""

_BOM = b"\xef\xbb\xbf"
# Python's reader knows such escapes, msgspec's does not; an escaped backslash before the `u` makes it plain text.
_ESCAPED_SURROGATE = re.compile(
    rb"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_TEXT_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


class DecodedPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of the list: what could be read in the order of the page, and what could not."""

    observed: list[Observed]
    bad: list[BadRecord]
    next_page_token: str = ""


class _Page(msgspec.Struct):
    incidents: list[msgspec.Raw] | None = None
    next_page_token: str | None = msgspec.field(name="nextPageToken", default=None)
    code: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Single(msgspec.Struct):
    incident: msgspec.Raw = msgspec.Raw()


class _Record(TypedDict, total=False):
    """The fields that the relay reads; of any type, for one odd value must not cost an incident."""

    uuid: Any
    createTime: Any
    updateTime: Any
    status: Any
    severity: Any
    resolveReason: Any
    assigneeUuid: Any
    displayName: Any
    description: Any
    tags: Any
    metrics: Any


_read_page = msgspec.json.Decoder(_Page).decode
_read_single = msgspec.json.Decoder(_Single).decode
_read_record = msgspec.json.Decoder(_Record).decode


def decode_page(body: bytes) -> DecodedPage:
    """The body of a 200 to `GET /v2/incidents`.

    An object without incidents is an empty page. Raises BadAnswer for what is no page: empty, truncated, not JSON,
    not an object (`null` and `[]` too), or an error object under a 200.
    """
    body = _compact(body)
    try:
        page = _read_page(body)
    except msgspec.MsgspecError as exc:
        raise BadAnswer(f"a page of another shape: {exc}", status=200) from None
    if page.incidents is None and any(
        bytes(value) not in (b"", b"null") for value in (page.code, page.message, page.error)
    ):
        raise BadAnswer("an error object in place of a page", status=200)
    observed: list[Observed] = []
    bad: list[BadRecord] = []
    for raw in page.incidents or ():
        record = _observe(bytes(raw))
        if isinstance(record, Observed):
            observed.append(record)
        else:
            bad.append(record)
    return DecodedPage(observed=observed, bad=bad, next_page_token=page.next_page_token or "")


def decode_incident(body: bytes) -> Observed:
    """The body of a 200 to `GET /v2/incidents/{uuid}`; the incident may come bare or under `incident`.

    Raises BadAnswer for what is no incident.
    """
    body = _compact(body)
    try:
        single = _read_single(body)
    except msgspec.MsgspecError as exc:
        raise BadAnswer(f"an incident of another shape: {exc}", status=200) from None
    record = _observe(bytes(single.incident) or body)
    if isinstance(record, BadRecord):
        raise BadAnswer(f"an incident that cannot be read: {record.reason}", status=200)
    return record


def _compact(body: bytes) -> bytes:
    """The same JSON as UTF-8 without white space; numbers, escapes, order and repeated keys stay as they are.

    Half surrogate pairs and broken UTF-8 become U+FFFD: names come from attackers' files, and an incident must not
    stay unseen for one. Raises BadAnswer.
    """
    try:
        return _format(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _format(_pruned(_mended(body)))
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise BadAnswer(f"not JSON, or cut short: {exc}", status=200) from None


def _format(body: bytes) -> bytes:
    body.decode()  # msgspec does not look at the bytes of text that it only carries
    return msgspec.json.format(body, indent=-1)


def _pruned(body: bytes) -> bytes:
    """The same JSON with an empty text in place of what is nested so deeply that no reader gets through it.

    What is left of such a record is still too deep to be taken for an incident.
    """
    kept: list[bytes] = []
    end = 0
    for start, stop in _too_deep(body, 2 * MAX_DEPTH):
        kept += (body[end:start], b'""')
        end = stop
    return b"".join((*kept, body[end:])) if kept else body


def _too_deep(body: bytes, limit: int) -> Iterator[tuple[int, int]]:
    """Where the containers begin and end that lie within `limit` others."""
    depth = start = 0
    for found in _TEXT_OR_BRACKET.finditer(body):
        bracket = found[0]
        if bracket in (b"[", b"{"):
            depth += 1
            if depth == limit + 1:
                start = found.start()
        elif bracket in (b"]", b"}"):
            if depth == limit + 1:
                yield start, found.end()
            depth -= 1


def _mended(body: bytes) -> bytes:
    text = body.removeprefix(_BOM).decode(errors="replace").encode()
    return _ESCAPED_SURROGATE.sub(lambda match: match[0] if match[2] else match[1] + rb"\ufffd", text)


def _observe(raw: bytes) -> Observed | BadRecord:
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and any(_too_deep(raw, MAX_DEPTH)):
        return _bad(f"nested more than {MAX_DEPTH} deep", raw)
    try:
        record = _read_record(raw)
    except msgspec.MsgspecError as exc:
        return _bad(f"not an incident: {exc}", raw)
    uuid = record.get("uuid")
    if not isinstance(uuid, str) or not uuid:
        return _bad("no uuid", raw)
    if len(uuid) > MAX_UUID_CHARACTERS:
        return _bad(f"a uuid of more than {MAX_UUID_CHARACTERS} characters", raw)
    try:
        created = parse_instant(text) if (text := record.get("createTime")) else None
        updated = parse_instant(text) if (text := record.get("updateTime")) else None
    except (ValueError, TypeError, LookupError):  # the latter two: not even a text
        return _bad("a time that is not RFC 3339", raw, uuid)
    if created is None and updated is None:
        return _bad("no time", raw, uuid)
    if (created or 0) not in INSTANTS or (updated or 0) not in INSTANTS:
        return _bad("a time before 1970 or after 2262", raw, uuid)
    return Observed(
        uuid=uuid,
        created=updated if created is None else created,  # type: ignore[arg-type]  # one of them is there
        updated=created if updated is None else updated,  # type: ignore[arg-type]
        created_shown=created is not None,
        updated_shown=updated is not None,
        values=tracked_values(record, record.get("metrics")),
        raw=raw,
    )


def _bad(reason: str, raw: bytes, uuid: str = "") -> BadRecord:
    return BadRecord(reason=reason, raw=raw[:MAX_BAD_RECORD_BYTES], uuid=uuid)
