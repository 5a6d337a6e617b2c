"""Incidents change as they are told to, appear where they should, and the history says when."""

import random
from typing import Any

import msgspec
import pytest

from relay.clock import SECOND
from relay.simulator import Settings, Simulator, Tenant
from relay.simulator.filters import parse_filter, parse_order
from relay.simulator.samples import CLOSED, OPEN
from relay.simulator.store import Query
from relay.simulator.times import parse_time, render_time
from tests.support.clock import START, FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def tenant(clock: FakeClock, settings: Settings) -> Tenant:
    return Simulator(clock, settings=settings).add_tenant("acme")


def listed(tenant: Tenant, where: str = "", order_by: str = "") -> list[dict[str, Any]]:
    query = Query(conditions=parse_filter(where), order=parse_order(order_by))
    records, _ = tenant.store.page(query, offset=0, size=100_000)
    return [msgspec.json.decode(record) for record in records]


def since(instant: int, field: str = "update_time") -> str:
    return f'{field} >= timestamp("{render_time(instant, digits=9)}")'


def test_a_new_incident_shows_the_fields_of_the_list_and_keeps_the_rest_for_get(tenant: Tenant) -> None:
    uuid = tenant.create({"displayName": "a", "deviceUuids": ["d"], "surprise": 1})
    (shown,) = listed(tenant)
    assert (shown["displayName"], shown["surprise"], "deviceUuids" in shown) == ("a", 1, False)
    assert tenant.get(uuid)["deviceUuids"] == ["d"]
    assert shown["createTime"] == shown["updateTime"] == "2026-05-28T20:26:40.000000Z"


def test_an_update_moves_update_time_to_now_and_changes_something(tenant: Tenant, clock: FakeClock) -> None:
    uuid = tenant.create()
    before = tenant.get(uuid)
    for _ in range(50):
        clock.advance(1)
        tenant.update(uuid)
        after = tenant.get(uuid)
        assert parse_time(after["updateTime"]) == clock.now()
        assert after["createTime"] == before["createTime"]
        assert {**after, "updateTime": ""} != {**before, "updateTime": ""}
        before = after


def test_many_updates_at_one_instant_tie(tenant: Tenant, clock: FakeClock) -> None:
    uuids = tenant.create_many(300, spread_seconds=100)
    clock.advance(5)
    tenant.update(uuids[:200])
    assert [i["uuid"] for i in listed(tenant, since(clock.now()), "update_time,uuid")] == sorted(uuids[:200])


def test_bulk_close_and_reopen(tenant: Tenant, clock: FakeClock) -> None:
    uuids = tenant.create_many(5)
    clock.advance(1)
    tenant.close(uuids[:3], "INCIDENT_RESOLVE_REASON_FALSE_POSITIVE")
    closed = listed(tenant, "status == INCIDENT_STATUS_CLOSED")
    assert {i["uuid"] for i in closed} == set(uuids[:3])
    assert {i["resolveReason"] for i in closed} == {"INCIDENT_RESOLVE_REASON_FALSE_POSITIVE"}
    assert set(tenant.pick(9, closed=True)) == set(uuids[:3])
    tenant.reopen(uuids[0])
    assert tenant.get(uuids[0])["status"] == OPEN
    assert tenant.get(uuids[1])["status"] == CLOSED


def test_a_late_arrival_appears_now_with_older_times(tenant: Tenant, clock: FakeClock) -> None:
    tenant.create()
    clock.advance(100)
    uuid = tenant.arrive_late(age_seconds=60)
    assert parse_time(tenant.get(uuid)["updateTime"]) == START + 40 * SECOND
    assert tenant.history[-1].since == clock.now()


def test_a_silent_edit_leaves_update_time(tenant: Tenant, clock: FakeClock) -> None:
    uuid = tenant.create()
    before = tenant.get(uuid)
    clock.advance(1)
    tenant.edit_silently(uuid)
    after = tenant.get(uuid)
    assert after["updateTime"] == before["updateTime"]
    assert after != before


def test_regress_sets_update_time_back(tenant: Tenant, clock: FakeClock) -> None:
    uuid = tenant.create()
    clock.advance(60)
    tenant.update(uuid)
    tenant.regress(uuid, by_seconds=90, fields={"displayName": "older"})
    assert parse_time(tenant.get(uuid)["updateTime"]) == START - 30 * SECOND
    assert listed(tenant, since(START)) == []


def test_delete_and_restore(tenant: Tenant) -> None:
    first, second = tenant.create(), tenant.create()
    record = tenant.get(first)
    tenant.delete(first)
    assert tenant.uuids() == [second]
    assert tenant.deleted() == [first]
    assert [i["uuid"] for i in listed(tenant, order_by="update_time")] == [second]
    tenant.restore(first)
    assert tenant.get(first) == record
    assert tenant.uuids() == [first, second]
    assert tenant.deleted() == []


def test_a_raw_record_is_listed_byte_for_byte(tenant: Tenant) -> None:
    for record in (b'{"uuid": 5}', b"null", b'"text"', b'{"uuid": "x", "createTime": "garbage"}', b'{"a": '):
        uuid = tenant.put_raw(record)
        assert tenant.store.page(Query(), offset=len(tenant) - 1, size=1) == ([record], False)
        assert listed_bytes(tenant, since(START)).count(record) == 1
        tenant.update(uuid)  # a bad record can be repaired
        assert tenant.get(uuid)["updateTime"]


def listed_bytes(tenant: Tenant, where: str) -> list[bytes]:
    records, _ = tenant.store.page(Query(conditions=parse_filter(where)), offset=0, size=1000)
    return records


def test_an_incident_never_updated_matches_no_update_time_filter_and_sorts_first(tenant: Tenant) -> None:
    updated = tenant.create()
    never = tenant.create(updated="never")
    assert "updateTime" not in tenant.get(never)
    assert [i["uuid"] for i in listed(tenant, since(0))] == [updated]
    assert [i["uuid"] for i in listed(tenant, 'update_time <= timestamp("2099-01-01T00:00:00Z")')] == [updated]
    assert [i["uuid"] for i in listed(tenant, 'update_time != timestamp("2099-01-01T00:00:00Z")')] == [updated]
    assert [i["uuid"] for i in listed(tenant, "", "update_time")] == [never, updated]
    assert {i["uuid"] for i in listed(tenant, since(START, "create_time"))} == {never, updated}


@pytest.mark.parametrize(("form", "shown"), [("null", None), ("empty", "")])
def test_a_missing_update_time_may_be_shown_as_null_or_empty(
    tenant: Tenant, settings: Settings, form: str, shown: str | None
) -> None:
    settings.new_update_time = "missing"
    settings.missing_time = "null" if form == "null" else "empty"
    assert tenant.get(tenant.create())["updateTime"] == shown


def test_digits_offsets_and_integers_may_be_mixed(tenant: Tenant, settings: Settings, clock: FakeClock) -> None:
    settings.time_digits = settings.time_offset_minutes = settings.integers = settings.new_update_time = "mixed"
    clock.advance(0.123456789)
    tenant.create_many(400)
    incidents = listed(tenant)
    times = [i["createTime"] for i in incidents]
    assert {len(t.rstrip("Z").split("+")[0]) for t in times} >= {19, 21, 22, 23, 24, 25, 26, 27, 28, 29}
    assert any(t.endswith("Z") for t in times)
    assert any(t.endswith("+01:00") for t in times)
    assert {type(i["metrics"]["deviceCount"]) for i in incidents} == {int, str}
    assert 0 < sum("updateTime" in i for i in incidents) < 400
    in_order = [parse_time(i["updateTime"]) for i in listed(tenant, since(0), "update_time")]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize("order_by", ["update_time", "update_time,uuid", "update_time desc,uuid desc", "create_time"])
@pytest.mark.parametrize("extra", ["", " && has(status)"])
def test_the_index_and_the_search_give_the_same_pages(
    tenant: Tenant, clock: FakeClock, order_by: str, extra: str
) -> None:
    """A condition on another field forces the search; it holds for all, so nothing may change."""
    tenant.create_many(200, spread_seconds=50)
    clock.advance(1)
    tenant.update(tenant.pick(70))
    time = order_by.split(",", maxsplit=1)[0].split(maxsplit=1)[0]
    conditions = since(START - 20 * SECOND, time)
    query = Query(conditions=parse_filter(conditions + extra), order=parse_order(order_by))
    path = query.order[0].field.path
    expected = sorted(
        (parse_time(i[path]) for i in listed(tenant) if parse_time(i[path]) >= START - 20 * SECOND),
        reverse="desc" in order_by,
    )
    shown: list[int] = []
    more = True
    while more:
        records, more = tenant.store.page(query, offset=len(shown), size=30)
        shown += [parse_time(msgspec.json.decode(record)[path]) for record in records]
    assert shown == expected


def change_somehow(tenant: Tenant, rng: random.Random, uuids: list[str]) -> None:
    one = uuids[0] if uuids else None
    rng.choice(
        (
            lambda: tenant.update(uuids),
            lambda: tenant.close(uuids + uuids),
            lambda: tenant.edit_silently(uuids),
            lambda: tenant.regress(uuids, by_seconds=5),
            lambda: tenant.delete(uuids[:20]),
            lambda: tenant.restore(tenant.deleted()[:30]),
            lambda: tenant.put_raw(b"{}", uuid=one),
            lambda: tenant.create(uuid=one),
        )
    )()


@pytest.mark.parametrize("seed", range(5))
def test_indices_stay_true_whatever_happens(clock: FakeClock, seed: int) -> None:
    """Few changes at once edit the indices in place, many sort them again; both are drawn here."""
    tenant = Simulator(clock, seed=seed).add_tenant("acme", incidents=100, spread_seconds=50)
    rng = random.Random(seed)
    for _ in range(60):
        clock.advance(rng.random())
        change_somehow(tenant, rng, tenant.pick(rng.choice((1, 3, 90))))
        incidents = tenant.store.incidents.values()
        for path in ("createTime", "updateTime"):
            expected = [i.listed for i in sorted(incidents, key=lambda i: (i.key(path), i.uuid))]
            order = parse_order(f"{path},uuid", camel_case=True)
            assert tenant.store.page(Query(order=order), offset=0, size=1000) == (expected, False)
        in_order = [i.listed for i in sorted(incidents, key=lambda i: i.serial)]
        assert tenant.store.page(Query(), offset=0, size=1000) == (in_order, False)
    assert {v.uuid: v.content for v in tenant.history if v.until is None} == {
        i.uuid: i.listed for i in tenant.store.incidents.values()
    }


def test_intervals_of_both_times_meet(tenant: Tenant, clock: FakeClock) -> None:
    tenant.create_many(100, spread_seconds=100)
    clock.advance(10)
    tenant.update(tenant.uuids()[::2])
    both = f'{since(clock.now())} && create_time <= timestamp("{render_time(START - 50 * SECOND, digits=0)}")'
    assert [i["uuid"] for i in listed(tenant, both)] == tenant.uuids()[:50:2]


def test_other_orders_sort_enums_by_rank_and_counts_by_number(tenant: Tenant) -> None:
    for level, count in (("HIGH", 10), ("LOW", "9"), ("MEDIUM", 1), ("LOW", 2)):
        tenant.create({"severity": f"INCIDENT_SEVERITY_LEVEL_{level}", "metrics": {"deviceCount": count}})
    ranked = [
        (i["severity"][24:], i["metrics"]["deviceCount"])
        for i in listed(tenant, "", "severity desc,metrics.device_count")
    ]
    assert ranked == [("HIGH", 10), ("MEDIUM", 1), ("LOW", 2), ("LOW", "9")]


def test_history_says_what_was_current_when(tenant: Tenant, clock: FakeClock) -> None:
    uuid = tenant.create({"displayName": "one"})
    clock.advance(1)
    tenant.update(uuid, {"displayName": "two"})
    clock.advance(1)
    tenant.delete(uuid)
    clock.advance(1)
    tenant.restore(uuid)
    spans = [(v.since - START, v.until and v.until - START) for v in tenant.history]
    assert spans == [(0, SECOND), (SECOND, 2 * SECOND), (3 * SECOND, None)]
    names = [
        [msgspec.json.decode(v.content)["displayName"] for v in tenant.current_at(START + half * SECOND // 2).values()]
        for half in (1, 3, 5, 7)
    ]
    assert names == [["one"], ["two"], [], ["two"]]
    assert [v.revision for v in tenant.history] == [1, 2, 4]


def test_history_may_be_switched_off(clock: FakeClock) -> None:
    tenant = Simulator(clock, settings=Settings(keep_history=False)).add_tenant("acme", incidents=10)
    tenant.update(tenant.pick(3))
    assert tenant.history == []


def test_the_same_seed_gives_the_same_incidents() -> None:
    def story(seed: int) -> list[dict[str, Any]]:
        clock = FakeClock()
        tenant = Simulator(clock, seed=seed).add_tenant("acme", incidents=20, spread_seconds=60)
        clock.advance(1)
        tenant.update(tenant.pick(5))
        tenant.close(tenant.pick(5))
        return listed(tenant)

    assert story(1) == story(1) != story(2)


def test_pick_takes_no_more_than_there_are(tenant: Tenant) -> None:
    uuids = tenant.create_many(3)
    assert tenant.pick(2, which="oldest") == uuids[:2]
    assert tenant.pick(2, which="newest") == uuids[1:]
    assert sorted(tenant.pick(9)) == sorted(uuids)
    assert tenant.pick(9, closed=True) == []
