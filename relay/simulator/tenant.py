"""One customer of the simulated ESET Connect: its incidents, every way in which they change, and their history.

The history holds every version that was ever current, and from when until when, so that a checker can compare what a
reader saw with what there was to see. With one `now` for several changes, versions of no length appear in it: nobody
could have seen them.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from relay.clock import SECOND, Clock, Instant
from relay.simulator.samples import CLOSED, closing, new_uuid, reopening, sample_change, sample_incident
from relay.simulator.settings import Settings
from relay.simulator.store import Incident, Store
from relay.simulator.times import render_time, rounded_down

Pick = Literal["random", "newest", "oldest"]
DETAILS = ("deviceUuids", "detectionUuids")
"""Fields that GET shows and the list does not."""

_OFFSETS = (0, 0, 60, 120, -300, 330)


class Version(msgspec.Struct, kw_only=True, gc=False):
    """One version of one incident, current from `since` until `until` (None: still) by the clock's `now`.

    `updated` is what updateTime says, None if there is none; `content` is the JSON that the list shows. `revision`
    orders all changes of a tenant; changes of one call share it.
    """

    uuid: str
    updated: Instant | None
    content: bytes
    revision: int
    since: Instant
    until: Instant | None = None


class Tenant:
    """Changes incidents as analysts and the product would, and as neither should. Deterministic by seed and clock.

    Where a method takes `uuids`, one or many may be given, and all change at one instant.
    """

    def __init__(self, username: str, password: str, *, clock: Clock, settings: Settings, seed: int) -> None:
        self.username = username
        self.password = password
        self.store = Store()
        self.history: list[Version] = []
        self._clock = clock
        self._settings = settings
        self._rng = random.Random(f"{seed}/{username}")
        self._serial = 0
        self._current: dict[str, Version] = {}
        self._deleted: dict[str, Incident] = {}

    def __len__(self) -> int:
        return len(self.store.incidents)

    def create(
        self,
        fields: Mapping[str, Any] | None = None,
        *,
        uuid: str | None = None,
        created: Instant | None = None,
        updated: Instant | Literal["never"] | None = None,
    ) -> str:
        """A new incident, visible at once. `fields` overrides what is drawn; times default to now and to `created`."""
        incident = self._new(fields or {}, uuid=uuid, created=created, updated=updated)
        self._put([incident])
        return incident.uuid

    def create_many(
        self, count: int, fields: Mapping[str, Any] | None = None, *, spread_seconds: float = 0
    ) -> list[str]:
        """New incidents at once, created evenly over the last `spread_seconds`, ending now; 0: all at one instant."""
        now = self._clock.now()
        spread = int(spread_seconds * SECOND)
        incidents = [
            self._new(fields or {}, created=now - spread + spread * (number + 1) // count) for number in range(count)
        ]
        self._put(incidents)
        return [incident.uuid for incident in incidents]

    def arrive_late(self, fields: Mapping[str, Any] | None = None, *, age_seconds: float) -> str:
        """A new incident that appears now but carries times of `age_seconds` ago."""
        return self.create(fields, created=self._clock.now() - int(age_seconds * SECOND))

    def update(
        self, uuids: str | Iterable[str], fields: Mapping[str, Any] | None = None, *, at: Instant | None = None
    ) -> None:
        """Changes fields (drawn for each incident if not given) and sets updateTime to `at`, by default now.

        A clock that has not moved since the last update gives the same updateTime again, as a coarse one may live.
        """
        instant = self._clock.now() if at is None else at
        self._put([self._edited(uuid, fields, updated=instant) for uuid in _each(uuids)])

    def close(self, uuids: str | Iterable[str], reason: str = "") -> None:
        """Closes incidents, in bulk at one instant; the resolve reason is drawn if not given."""
        now = self._clock.now()
        self._put([self._edited(uuid, closing(self._rng, reason), updated=now) for uuid in _each(uuids)])

    def reopen(self, uuids: str | Iterable[str]) -> None:
        """Opens closed incidents again."""
        self.update(uuids, reopening())

    def edit_silently(self, uuids: str | Iterable[str], fields: Mapping[str, Any] | None = None) -> None:
        """Changes fields and leaves updateTime as it is."""
        self._put([self._edited(uuid, fields, updated=None) for uuid in _each(uuids)])

    def regress(
        self, uuids: str | Iterable[str], *, by_seconds: float, fields: Mapping[str, Any] | None = None
    ) -> None:
        """Changes fields and sets updateTime back."""
        back = int(by_seconds * SECOND)
        before = [self.store.incidents[uuid] for uuid in _each(uuids)]
        self._put([self._edited(old.uuid, fields, updated=self._last_time(old) - back) for old in before])

    def delete(self, uuids: str | Iterable[str]) -> None:
        """Takes incidents away: not in the list, 404 by GET."""
        gone = self.store.drop(_each(uuids))
        self._deleted.update((incident.uuid, incident) for incident in gone)
        self._end_versions(gone, self._clock.now())

    def restore(self, uuids: str | Iterable[str]) -> None:
        """Brings deleted incidents back as they were."""
        self._put([self._deleted.pop(uuid) for uuid in _each(uuids)])

    def put_raw(
        self, record: bytes, *, uuid: str | None = None, created: Instant | None = None, updated: Instant | None = None
    ) -> str:
        """Adds or replaces a record whose JSON in the list is `record`, byte for byte, good or bad.

        `uuid` and the times only place it in the indices (times: now by default); what it shows is up to you.
        """
        now = self._clock.now()
        known = self.store.incidents.get(uuid or "")
        incident = Incident(
            uuid=uuid or new_uuid(self._rng),
            serial=known.serial if known else self._next_serial(),
            created=now if created is None else created,
            updated=now if updated is None else updated,
            listed=record,
        )
        self._put([incident])
        return incident.uuid

    def pick(self, count: int = 1, *, which: Pick = "random", closed: bool | None = None) -> list[str]:
        """Up to `count` uuids, by order of creation; `closed`: only such that are, or are not."""
        rows = self.store.in_order_of_creation()
        if closed is not None:
            rows = [row for row in rows if (self.get(row[1]).get("status") == CLOSED) is closed]
        count = min(count, len(rows))
        if which == "random":
            return [uuid for _, uuid in self._rng.sample(rows, count)]
        return [uuid for _, uuid in (rows[:count] if which == "oldest" else rows[len(rows) - count :])]

    def get(self, uuid: str) -> dict[str, Any]:
        """An incident's fields as GET shows them. Raises KeyError."""
        return self.store.incidents[uuid].full()

    def uuids(self) -> list[str]:
        """All incidents that exist now, in order of creation."""
        return [uuid for _, uuid in self.store.in_order_of_creation()]

    def deleted(self) -> list[str]:
        """What `restore` can bring back."""
        return list(self._deleted)

    def current_at(self, instant: Instant) -> dict[str, Version]:
        """The versions that a reader could have seen at an instant, by uuid. Needs the history."""
        return {
            version.uuid: version
            for version in self.history
            if version.since <= instant and (version.until is None or instant < version.until)
        }

    def _new(
        self,
        fields: Mapping[str, Any],
        *,
        uuid: str | None = None,
        created: Instant | None = None,
        updated: Instant | Literal["never"] | None = None,
    ) -> Incident:
        uuid = uuid or new_uuid(self._rng)
        digits = self._digits()
        born = rounded_down(self._clock.now() if created is None else created, digits=digits)
        changed = self._first_update(born) if updated is None else updated
        instant = None if changed == "never" else rounded_down(changed, digits=digits)
        drawn = sample_incident(self._rng) | {"uuid": uuid}
        self._show_time(drawn, "createTime", born, digits)
        self._show_time(drawn, "updateTime", instant, digits)
        drawn.update(fields)
        return self._rendered(drawn, uuid=uuid, serial=self._next_serial(), created=born, updated=instant)

    def _edited(self, uuid: str, fields: Mapping[str, Any] | None, *, updated: Instant | None) -> Incident:
        """The incident with other fields; `updated` None leaves updateTime alone."""
        old = self.store.incidents[uuid]
        new = {"uuid": uuid} | old.full()
        instant = old.updated
        if updated is not None:
            digits = self._digits()
            instant = rounded_down(updated, digits=digits)
            self._show_time(new, "updateTime", instant, digits)
        new.update(sample_change(self._rng, new) if fields is None else fields)
        return self._rendered(new, uuid=uuid, serial=old.serial, created=old.created, updated=instant)

    def _rendered(
        self, fields: dict[str, Any], *, uuid: str, serial: int, created: Instant | None, updated: Instant | None
    ) -> Incident:
        details = {name: fields.pop(name) for name in DETAILS if name in fields}
        if self._settings.list_details == "empty":
            fields |= {name: [] for name in DETAILS}
        metrics = fields.get("metrics")
        if isinstance(metrics, dict):
            fields["metrics"] = {name: self._shown_count(count) for name, count in metrics.items()}
        return Incident(
            uuid=uuid,
            serial=serial,
            created=created,
            updated=updated,
            listed=msgspec.json.encode(fields),
            details=msgspec.json.encode(details),
        )

    def _show_time(self, fields: dict[str, Any], name: str, instant: Instant | None, digits: int) -> None:
        if instant is not None:
            fields[name] = render_time(instant, digits=digits, offset_minutes=self._offset())
        elif self._settings.missing_time != "absent":
            fields[name] = None if self._settings.missing_time == "null" else ""

    def _shown_count(self, count: Any) -> Any:
        form = self._settings.integers
        if form == "mixed":
            form = self._rng.choice(("numbers", "strings"))
        return str(count) if form == "strings" and isinstance(count, int) else count

    def _digits(self) -> int:
        digits = self._settings.time_digits
        return self._rng.randrange(10) if digits == "mixed" else digits

    def _offset(self) -> int:
        offset = self._settings.time_offset_minutes
        return self._rng.choice(_OFFSETS) if offset == "mixed" else offset

    def _first_update(self, created: Instant) -> Instant | Literal["never"]:
        choice = self._settings.new_update_time
        if choice == "mixed":
            choice = self._rng.choice(("created", "missing"))
        return created if choice == "created" else "never"

    def _last_time(self, incident: Incident) -> Instant:
        known = incident.created if incident.updated is None else incident.updated
        return self._clock.now() if known is None else known

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _put(self, incidents: Sequence[Incident]) -> None:
        self.store.put(incidents)
        if not self._settings.keep_history:
            return
        now = self._clock.now()
        self._end_versions(incidents, now)
        for incident in incidents:
            version = Version(
                uuid=incident.uuid,
                updated=incident.updated,
                content=incident.listed,
                revision=self.store.revision,
                since=now,
            )
            self.history.append(version)
            self._current[incident.uuid] = version

    def _end_versions(self, incidents: Iterable[Incident], now: Instant) -> None:
        for incident in incidents:
            version = self._current.pop(incident.uuid, None)
            if version is not None:
                version.until = now


def _each(uuids: str | Iterable[str]) -> list[str]:
    return [uuids] if isinstance(uuids, str) else list(dict.fromkeys(uuids))
