"""The incidents of one tenant as the list reads them: rendered JSON behind sorted indices. Not how they change.

A `>=` on a time, ordered by that time, costs a bisection and a slice, whatever the number of incidents; every other
filter or order reads all candidates once and is then remembered until something changes.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from typing import Any, Final

import msgspec

from relay.clock import Instant
from relay.simulator.filters import EARLIEST, LATEST, Condition, OrderTerm, normalised

Row = tuple[Instant, str]
"""A sort key, then the uuid."""

_REMEMBERED_RESULTS = 64
_ONE_BY_ONE = 64
"""Up to so many changes at once, an index is edited in place; beyond, it is sorted again."""


class Incident(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One incident as it is now.

    `listed` is its JSON in the list, byte for byte; `details` are the fields that only GET shows, as JSON. `serial` is
    its place in the order of creation.
    """

    uuid: str
    serial: int
    created: Instant | None
    updated: Instant | None
    listed: bytes
    details: bytes = b"{}"

    def shown(self) -> dict[str, Any]:
        """The fields as the list shows them; nothing if the JSON was set by hand to something else."""
        try:
            fields = msgspec.json.decode(self.listed)
        except msgspec.DecodeError:
            return {}
        return fields if isinstance(fields, dict) else {}

    def full(self) -> dict[str, Any]:
        """The fields as GET shows them."""
        details: dict[str, Any] = msgspec.json.decode(self.details)
        return self.shown() | details

    def key(self, path: str) -> Instant:
        """Its key in an index; what has no such time comes before everything."""
        if path == "":
            return self.serial
        time = self.created if path == "createTime" else self.updated
        return EARLIEST if time is None else time


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What a list is asked for, without its page. `whole_seconds`: compare as if stored times had no fraction."""

    conditions: tuple[Condition, ...] = ()
    order: tuple[OrderTerm, ...] = ()
    whole_seconds: bool = False


class _Index:
    """Rows in ascending order."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.rows: list[Row] = []

    def replace(self, gone: Collection[Incident], new: Collection[Incident]) -> None:
        old_rows = [(incident.key(self._path), incident.uuid) for incident in gone]
        new_rows = [(incident.key(self._path), incident.uuid) for incident in new]
        if len(old_rows) + len(new_rows) <= _ONE_BY_ONE:
            for row in old_rows:
                del self.rows[bisect_left(self.rows, row)]
            for row in new_rows:
                insort(self.rows, row)
            return
        if old_rows:
            dropped = set(old_rows)
            self.rows = [row for row in self.rows if row not in dropped]
        self.rows.extend(new_rows)
        self.rows.sort()

    def between(self, low: Instant, high: Instant) -> tuple[int, int]:
        """Positions of the half-open interval of keys."""
        start = bisect_left(self.rows, (low, ""))
        return start, max(start, bisect_left(self.rows, (high, "")))


class Store:
    """Holds incidents by uuid and answers pages of them."""

    def __init__(self) -> None:
        self.incidents: dict[str, Incident] = {}
        self.revision = 0
        """Grows with every change."""
        self._indices: Final = {path: _Index(path) for path in ("", "createTime", "updateTime")}
        self._results: dict[Query, list[str]] = {}

    def put(self, new: Collection[Incident]) -> None:
        """Adds incidents, or replaces those of the same uuid."""
        gone = [self.incidents[incident.uuid] for incident in new if incident.uuid in self.incidents]
        self.incidents.update((incident.uuid, incident) for incident in new)
        self._changed(gone, new)

    def drop(self, uuids: Iterable[str]) -> list[Incident]:
        """Takes incidents out and returns them. Raises KeyError for an unknown one."""
        gone = [self.incidents.pop(uuid) for uuid in uuids]
        self._changed(gone, ())
        return gone

    def in_order_of_creation(self) -> list[Row]:
        """Serial and uuid of all incidents. Not to be changed."""
        return self._indices[""].rows

    def page(self, query: Query, *, offset: int, size: int) -> tuple[list[bytes], bool]:
        """The JSON of the incidents from `offset` on, at most `size`, and whether more follow."""
        uuids, more = self._uuids(query, offset, size)
        incidents = self.incidents
        return [incidents[uuid].listed for uuid in uuids], more

    def _changed(self, gone: Collection[Incident], new: Collection[Incident]) -> None:
        for index in self._indices.values():
            index.replace(gone, new)
        self._results.clear()
        self.revision += 1

    def _uuids(self, query: Query, offset: int, size: int) -> tuple[list[str], bool]:
        path = _index_path(query.order)
        end = offset + size
        if path is None or any(not (c.is_range() and c.field.path == path) for c in query.conditions):
            result = self._result(query)
            return result[offset:end], end < len(result)
        index = self._indices[path]
        first, last = index.between(*_interval(query, path))
        if query.order and query.order[0].descending:
            rows = index.rows[max(first, last - end) : max(first, last - offset)][::-1]
        else:
            rows = index.rows[first + offset : min(last, first + end)]
        return [row[1] for row in rows], first + end < last

    def _result(self, query: Query) -> list[str]:
        known = self._results.get(query)
        if known is None:
            if len(self._results) >= _REMEMBERED_RESULTS:
                self._results.clear()
            known = self._results[query] = self._search(query)
        return known

    def _search(self, query: Query) -> list[str]:
        rest = [c for c in query.conditions if not c.is_range()]
        found = [incident for incident in self._candidates(query) if all(_holds(c, incident) for c in rest)]
        found.sort(key=lambda incident: incident.serial)
        for term in reversed(query.order):
            found.sort(key=_sort_key(term), reverse=term.descending)
        return [incident.uuid for incident in found]

    def _candidates(self, query: Query) -> list[Incident]:
        """Those within every interval of time that the query names."""
        uuids: set[str] | None = None
        for path in {c.field.path for c in query.conditions if c.is_range()}:
            index = self._indices[path]
            first, last = index.between(*_interval(query, path))
            within = {row[1] for row in index.rows[first:last]}
            uuids = within if uuids is None else uuids & within
        if uuids is None:
            return list(self.incidents.values())
        return [self.incidents[uuid] for uuid in uuids]


def _index_path(order: tuple[OrderTerm, ...]) -> str | None:
    """The index whose order, or reversed order, is the one asked for."""
    match [(term.field.path, term.descending) for term in order]:
        case []:
            return ""
        case [("createTime" | "updateTime" as path, _)]:
            return path
        case [("createTime" | "updateTime" as path, descending), ("uuid", also)] if descending == also:
            return path
        case _:
            return None


def _interval(query: Query, path: str) -> tuple[Instant, Instant]:
    """What all intervals of one field leave. Without any, everything, missing times included."""
    low, high = EARLIEST, LATEST
    for condition in query.conditions:
        if condition.is_range() and condition.field.path == path:
            bounds = condition.interval(whole_seconds=query.whole_seconds)
            low, high = max(low, bounds[0]), min(high, bounds[1])
    return low, high


def _holds(condition: Condition, incident: Incident) -> bool:
    if condition.field.kind == "time":
        return condition.holds(incident.created if condition.field.path == "createTime" else incident.updated)
    return condition.holds(normalised(condition.field, incident.full()))


def _sort_key(term: OrderTerm) -> Any:
    if term.field.kind == "time":
        return lambda incident: incident.key(term.field.path)
    return lambda incident: normalised(term.field, incident.full())
