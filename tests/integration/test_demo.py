"""The demo counts honestly: whatever is wrong with what arrived makes it fail, and nothing else does."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from rich.console import Console

from relay.clock import SECOND
from relay.demo.arrivals import EventFile
from relay.demo.chat import Digest, Message, Notice, Post, compare_posts, post_of
from relay.demo.checker import (
    GUARANTEES,
    Arrival,
    Burial,
    Comparison,
    Ordeal,
    Owed,
    Space,
    compare,
    kept,
    owed,
    percentile,
)
from relay.demo.receivers import Channel, EventReceiver
from relay.demo.report import summarize
from relay.demo.screen import Screen
from relay.demo.story import INCIDENTS
from relay.demo.told import Hardship, Told
from relay.eset.wire import decode_incident
from relay.formats import slack
from relay.formats.cloudevents import structured
from relay.formats.message import Parked, digest_of, facts_of
from relay.formats.native import render
from relay.incidents import Event, Known, Scope, diff
from relay.signing import key_of
from relay.simulator import Simulator, Tenant
from relay.sinks import Delivery
from relay.sinks.webhook import signed
from relay.terminal import print_demo_summary
from tests.support.clock import START, FakeClock
from tests.support.kafka import Kafka

SCOPE = Scope(source="acme", start_from=0, first_start=0)
ORDEAL = Ordeal(sink="slack", began=0, lifted=1)
BURIAL = Burial(id="0" * 32, attempts=2, refused=[1, 2], redriven=3, arrived=4)
SPACE = Space(journal_bytes=1 << 20, journal_limit_bytes=64 << 20, memory_bytes=9 << 20, memory_limit_bytes=99 << 20)


def lived(clock: FakeClock) -> Tenant:
    """A tenant whose incidents were created, changed, closed, edited silently and reopened; a tie, a late one."""
    tenant = Simulator(clock).add_tenant("api@acme.example", incidents=5, spread_seconds=60)
    changes: Sequence[Callable[[], object]] = (
        lambda: tenant.update(tenant.uuids()),
        lambda: tenant.close(tenant.uuids()[:3]),
        lambda: tenant.edit_silently(tenant.uuids()[0], {"displayName": "edited"}),
        lambda: tenant.reopen(tenant.uuids()[1]),
        lambda: tenant.arrive_late(age_seconds=5),
        lambda: tenant.regress(tenant.uuids()[4], by_seconds=0, fields={"displayName": "same time, other content"}),
    )
    for change in changes:
        clock.advance(2)
        change()
    return tenant


def events_of(tenant: Tenant) -> list[Event]:
    """What the relay makes of each version, in their order."""
    known: dict[str, Known] = {}
    events: list[Event] = []
    for version in tenant.history:
        found = diff(known.get(version.uuid), decode_incident(version.content), scope=SCOPE, now=version.since)
        assert found.row is not None
        assert found.event is not None
        known[version.uuid] = found.row
        events.append(found.event)
    return events


@pytest.fixture
def owing() -> list[Owed]:
    return owed("acme", lived(FakeClock()).history)


def arrivals_of(owing: Sequence[Owed], *, after_seconds: float = 0.5) -> list[Arrival]:
    """Everything that is owed, as it should arrive."""
    return [
        Arrival(
            id=version.id,
            source=version.source,
            uuid=version.uuid,
            sequence=version.sequence,
            kind=version.kind,
            content=version.content,
            at=version.since + int(after_seconds * SECOND),
        )
        for version in owing
    ]


def compared(owing: Sequence[Owed], arrivals: Sequence[Arrival], *, may_repeat: bool = False) -> Comparison:
    return compare("disk", owing, arrivals, live_since=START + SECOND, ordeals=[ORDEAL], may_repeat=may_repeat)


def told_well(**changed: object) -> Told:
    """A story that was told to its end, with all that has to happen in it."""
    told = Told(exit_code=0, ordeals=[ORDEAL], burials=[BURIAL])
    for name, value in changed.items():
        setattr(told, name, value)
    return told


def held(comparisons: Sequence[Comparison], told: Told | None = None, space: Space | None = SPACE) -> set[str]:
    """The guarantees that did not hold."""
    told = told or told_well()
    found = kept(comparisons, told_to_the_end=told.to_the_end, ordeals=told.ordeals, burials=told.burials, space=space)
    assert tuple(found) == GUARANTEES
    return {name for name, is_kept in found.items() if not is_kept}


def verdict(comparison: Comparison, told: Told | None = None, space: Space | None = SPACE) -> tuple[int, str]:
    """Exit code and text of the summary."""
    console = Console(file=StringIO(), width=120)
    summary = summarize(told or told_well(), [comparison], notes={comparison.sink: "lines"}, space=space, seconds=31)
    code = print_demo_summary(summary, console)
    assert isinstance(console.file, StringIO)
    return code, console.file.getvalue()


# -- what is owed ----------------------------------------------------------------------------------------------------


def test_every_version_is_owed_as_the_relay_names_and_describes_it() -> None:
    tenant = lived(FakeClock())
    expected = [
        (event.id, event.uuid, event.sequence, event.kind, event.incident) for event in events_of(tenant)
    ]  # by the relay's diff, of which the checker knows nothing
    found = [
        (version.id, version.uuid, version.sequence, version.kind, version.content)
        for version in owed("acme", tenant.history)
    ]
    assert found == expected
    assert Counter(kind for _, _, _, kind, _ in found) == {"created": 6, "updated": 7, "closed": 3, "reopened": 1}
    assert len({id_ for id_, *_ in found}) == len(found)


# -- what the comparison sees ----------------------------------------------------------------------------------------


def test_all_that_is_owed_in_its_order_is_well(owing: list[Owed]) -> None:
    comparison = compared(owing, arrivals_of(owing))
    assert held([comparison]) == set()
    code, text = verdict(comparison)
    assert code == 0
    assert "Nothing was lost." in text
    assert "6 of 6 guarantees held. Exit code 0." in text


def test_incidents_need_not_wait_for_one_another(owing: list[Owed]) -> None:
    by_incident = sorted(arrivals_of(owing), key=lambda arrival: arrival.uuid)
    assert verdict(compared(owing, by_incident))[0] == 0


@pytest.mark.parametrize("hidden", [0, 7, -1])
def test_an_event_that_is_hidden_from_the_comparison_is_missing(owing: list[Owed], hidden: int) -> None:
    arrivals = arrivals_of(owing)
    gone = arrivals.pop(hidden)
    comparison = compared(owing, arrivals)
    assert [version.id for version in comparison.missing] == [gone.id]
    assert held([comparison]) == {"complete"}
    code, text = verdict(comparison)
    assert code == 1
    assert "1 event did not arrive." in text
    assert f"missing     disk: acme {gone.uuid} {gone.sequence} {gone.kind}" in text
    assert "failed  5 of 6 guarantees held. Exit code 1." in text
    assert "To run it against ESET" not in text


def test_an_empty_far_side_misses_everything(owing: list[Owed]) -> None:
    comparison = compared(owing, [])
    assert (len(comparison.missing), comparison.lags) == (len(owing), [])
    assert verdict(comparison)[0] == 1


def test_the_same_id_again_is_a_repeat_wherever_it_stands(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    comparison = compared(owing, [*arrivals, arrivals[0]])
    assert (len(comparison.repeats), len(comparison.misplaced)) == (1, 0)
    assert held([comparison]) == {"named"}
    code, text = verdict(comparison)
    assert (code, "Nothing was lost." in text) == (1, True)


def test_versions_of_one_incident_the_wrong_way_round_are_out_of_order(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    first, second = (at for at, one in enumerate(arrivals) if one.uuid == arrivals[0].uuid and one.sequence in {1, 2})
    arrivals[first], arrivals[second] = arrivals[second], arrivals[first]
    comparison = compared(owing, arrivals)
    assert [arrival.sequence for arrival in comparison.misplaced] == [1]
    code, text = verdict(comparison)
    assert (code, "every incident arrived in the order" in text) == (1, False)


def test_an_id_that_no_version_has_is_unknown_and_its_version_missing(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    arrivals[3] = replace(arrivals[3], id="0" * 32)
    comparison = compared(owing, arrivals)
    assert (len(comparison.unknown), len(comparison.missing)) == (1, 1)
    assert held([comparison]) == {"complete", "named"}


@pytest.mark.parametrize(
    "changed",
    [{"content": b"{}"}, {"kind": "updated"}, {"sequence": 9}, {"uuid": "another"}, {"source": "globex"}],
    ids=lambda changed: next(iter(changed)),
)
def test_an_event_that_says_something_else_than_its_version_breaks_completeness(
    owing: list[Owed], changed: dict[str, object]
) -> None:
    arrivals = arrivals_of(owing)
    arrivals[0] = msgspec.convert({**msgspec.to_builtins(arrivals[0], builtin_types=(bytes,)), **changed}, Arrival)
    comparison = compared(owing, arrivals)
    assert [arrival.id for arrival in comparison.altered] == [owing[0].id]
    assert verdict(comparison)[0] == 1


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (told_well(stalled="a whole poll did not come in time"), "broken off"),
        (told_well(exit_code=1), "SIGTERM ended it in 0.0 s with exit code 1"),
        (told_well(exit_code=None), ""),
    ],
    ids=["stalled", "stopped badly", "ended by itself"],
)
def test_a_story_that_was_not_told_to_its_end_fails_although_all_arrived(
    owing: list[Owed], told: Told, said: str
) -> None:
    code, text = verdict(compared(owing, arrivals_of(owing)), told)
    assert code == 1
    assert said in text
    assert "4 of 6 guarantees held" in text
    assert "complete, apart" in text


def test_one_bad_far_side_is_enough(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    good, bad = compared(owing, arrivals), compared(owing, arrivals[1:])
    assert "complete" in held([good, bad])


# -- each of the other guarantees ------------------------------------------------------------------------------------


def test_a_repeat_is_no_fault_where_the_same_id_may_come_again_unless_it_says_something_else(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    again = compared(owing, [*arrivals, arrivals[0]], may_repeat=True)
    assert (len(again.repeats), held([again])) == (1, set())
    other = compared(owing, [*arrivals, replace(arrivals[0], content=b"{}")], may_repeat=True)
    assert held([other]) == {"complete"}


def test_what_waited_for_another_sink_breaks_apart_and_for_its_own_does_not(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    last = owing[-1]
    arrivals[-1] = replace(arrivals[-1], at=last.since + 9 * SECOND)
    down = Ordeal(sink="slack", began=last.since, lifted=last.since + 8 * SECOND)
    held_up = compare("disk", owing, arrivals, live_since=START, ordeals=[down])
    assert [version.id for version in held_up.delayed] == [last.id]
    assert held([held_up]) == {"apart"}
    assert f"disk: acme {last.uuid} {last.sequence} {last.kind}" in verdict(held_up)[1]
    for no_fault in (replace(down, sink="disk"), replace(down, lifted=last.since + 9 * SECOND)):
        assert held([compare("disk", owing, arrivals, live_since=START, ordeals=[no_fault])]) == set()


def test_without_an_ordeal_or_a_dead_letter_nothing_is_shown_of_them(owing: list[Owed]) -> None:
    comparison = compared(owing, arrivals_of(owing))
    assert held([comparison], told_well(ordeals=[])) == {"apart"}
    assert held([comparison], told_well(burials=[])) == {"nothing vanishes"}
    assert held([comparison], space=None) == {"bounded"}


@pytest.mark.parametrize(
    "burial",
    [
        replace(BURIAL, arrived=None),
        replace(BURIAL, redriven=None),
        replace(BURIAL, arrived=2),
        replace(BURIAL, refused=[1]),
        replace(BURIAL, refused=[1, 2, 3]),
        replace(BURIAL, refused=[1, 4]),
    ],
    ids=["lost", "not asked for", "came by itself", "tried too rarely", "tried too often", "tried after the redrive"],
)
def test_a_dead_letter_that_does_not_come_back_as_it_should_has_vanished(owing: list[Owed], burial: Burial) -> None:
    code, text = verdict(compared(owing, arrivals_of(owing)), told_well(burials=[BURIAL, burial]))
    assert code == 1
    assert "broken      nothing vanishes" in text


@pytest.mark.parametrize("taken", [{"journal_bytes": (64 << 20) + 1}, {"memory_bytes": (99 << 20) + 1}], ids=str)
def test_more_disk_or_memory_than_allowed_breaks_bounded(owing: list[Owed], taken: dict[str, int]) -> None:
    code, text = verdict(compared(owing, arrivals_of(owing)), space=replace(SPACE, **taken))
    assert (code, "5 of 6 guarantees held" in text) == (1, True)


# -- chat ------------------------------------------------------------------------------------------------------------


def delivery_of(event: Event) -> Delivery:
    return Delivery(
        position=1,
        id=event.id,
        kind=event.kind,
        source=event.source,
        origin=event.origin,
        uuid=event.uuid,
        sequence=event.sequence,
        updated=event.updated,
        severity=event.severity,
        body=render(event),
    )


LINKS = {"acme": "https://console.example/incidents/{uuid}"}


def posted(*events: Event) -> Post:
    """What the channel makes of the relay's own message for these, a digest when there are several."""
    deliveries = [delivery_of(event) for event in events]
    if len(deliveries) == 1:
        payload = slack.message(facts_of(deliveries[0], links=LINKS))
    else:
        payload = slack.digest(digest_of(deliveries, links=LINKS))
    return post_of(msgspec.json.encode(payload), at=max(event.observed for event in events) + SECOND)


@pytest.fixture
def events() -> list[Event]:
    return events_of(lived(FakeClock()))


def in_chat(owing: Sequence[Owed], posts: Sequence[Post]) -> Comparison:
    return compare_posts("slack", owing, posts)[0]


def test_the_channel_reads_of_a_message_what_people_can_read_of_it(events: list[Event]) -> None:
    for event in events:
        post = posted(event)
        assert isinstance(post, Message)
        assert (post.source, post.uuid, post.kind) == ("acme", event.uuid, event.kind)
        assert post.second == event.updated // SECOND
    digest = posted(*events)
    assert isinstance(digest, Digest)
    assert (digest.total, len(digest.listed)) == (len(events), 10)
    assert {row[0] for row in digest.listed} <= {event.uuid for event in events}
    assert sum(digest.severities.values()) == len(events)
    notice = slack.notice(Parked(sink="webhook", reason="it answered 410", since=START, waiting=3), now=START)
    assert isinstance(post_of(msgspec.json.encode(notice), at=START), Notice)
    assert isinstance(post_of(b"not a message", at=START), Notice)


def test_a_message_for_each_change_or_one_digest_for_all_is_well(owing: list[Owed], events: list[Event]) -> None:
    singles, digest = [posted(event) for event in events], [posted(*events)]
    for posts in (singles, digest):
        comparison, note = compare_posts("slack", owing, posts)
        assert held([comparison]) == set()
        assert (comparison.owed, comparison.arrived, note.endswith(" 0 superseded")) == (len(owing), len(posts), True)
    assert compare_posts("slack", owing, digest)[1].startswith("1 message stands for 17 changes: 1 digest")


def test_a_newer_version_stands_for_an_older_one_and_never_the_other_way_round(
    owing: list[Owed], events: list[Event]
) -> None:
    newest = {event.uuid: event for event in events}
    comparison, note = compare_posts("slack", owing, [posted(event) for event in newest.values()])
    assert comparison.missing == []
    assert note.endswith(f"{len(events) - len(newest)} superseded")
    oldest = {event.uuid: event for event in reversed(events)}
    changed = {event.uuid for event in events if event.sequence > 1}
    comparison = in_chat(owing, [posted(event) for event in oldest.values()])
    assert {version.uuid for version in comparison.missing} == changed
    assert verdict(comparison)[0] == 1


@pytest.mark.parametrize("hidden", range(7))
def test_a_newest_version_that_no_message_stands_for_is_missing(
    owing: list[Owed], events: list[Event], hidden: int
) -> None:
    newest = list({event.uuid: event for event in events}.values())
    gone = newest.pop(hidden % len(newest))
    for posts in ([posted(event) for event in newest], [posted(*newest)]):
        assert [version.uuid for version in in_chat(owing, posts).missing] == [gone.uuid]


def test_a_digest_stands_for_no_more_than_it_counts_of_a_severity_and_a_time(owing: list[Owed]) -> None:
    newest = list({version.uuid: version for version in owing}.values())
    seconds = [version.updated // SECOND for version in newest]
    severities = Counter(version.severity for version in newest)
    at = max(version.since for version in owing)
    digest = Digest(total=len(newest), severities=severities, listed=[], begin=min(seconds), end=max(seconds), at=at)
    assert in_chat(owing, [digest]).missing == []
    fewer = severities - Counter([newest[0].severity])
    assert len(in_chat(owing, [replace(digest, severities=fewer)]).missing) == 1
    assert in_chat(owing, [replace(digest, end=max(seconds) - 1)]).missing != []
    assert in_chat(owing, [replace(digest, at=at - 1)]).missing != []


def test_chat_messages_out_of_order_or_of_nothing_that_was_are_found(owing: list[Owed], events: list[Event]) -> None:
    posts = [posted(event) for event in events]
    assert len(in_chat(owing, [*posts, posts[0]]).repeats) == 1
    assert "in order" in held([in_chat(owing, posts[::-1])])
    first = posts[0]
    assert isinstance(first, Message)
    assert held([in_chat(owing, [*posts, replace(first, second=1)])]) == {"named"}
    assert held([in_chat(owing, [*posts, replace(first, severity="NONE")])]) == {"named"}


# -- the receivers ---------------------------------------------------------------------------------------------------


async def test_the_receiver_takes_what_is_signed_and_refuses_as_it_is_told(events: list[Event]) -> None:
    clock = FakeClock()
    receiver = EventReceiver(clock)
    delivery = delivery_of(events[0])
    body = structured(delivery, delivery.body)

    async def post(headers: dict[str, str]) -> int:
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.post(receiver.sink["url"], content=body, headers=headers)).status_code

    async with receiver.open():
        key = key_of(receiver.sink["secrets"])
        good = signed(delivery.id, 1_700_000_000, body, [key])
        assert await post(good) == 204
        assert [arrival.id for arrival in receiver.arrivals] == [delivery.id]
        assert receiver.arrivals[0].content == events[0].incident
        assert receiver.note == "every signature was verified"
        receiver.refuse(delivery.uuid)
        assert await post(good) == 422
        receiver.refuse("")
        receiver.remove()
        assert await post(good) == 410
        receiver.restore()
        assert (len(receiver.arrivals), len(receiver.refused), receiver.turned_away) == (1, 1, 1)
        assert await post(good) == 204
        assert "same webhook-id" in receiver.note
        for bad in (
            signed(delivery.id, 1_700_000_000, body, [b"another"]),
            {**good, "webhook-id": "another"},
            {name: value for name, value in good.items() if name != "webhook-signature"},
        ):
            assert await post(bad) == 401
            assert receiver.arrivals.pop().id == ""


async def test_the_channel_answers_ok_and_503_while_it_is_down(events: list[Event]) -> None:
    channel = Channel(FakeClock())
    body = msgspec.json.encode(slack.message(facts_of(delivery_of(events[0]))))
    async with channel.open(), httpx.AsyncClient(trust_env=False) as client:
        answers = [await client.post(channel.sink["url"], content=body)]
        channel.fail()
        answers.append(await client.post(channel.sink["url"], content=body))
        channel.recover()
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "ok"), (503, "service_unavailable")]
    assert (len(channel.posts), channel.turned_away) == (1, 1)
    assert channel.posted_since(START)


# -- lag and faults --------------------------------------------------------------------------------------------------


def test_lag_counts_live_changes_from_their_first_moment(owing: list[Owed]) -> None:
    comparison = compared(owing, arrivals_of(owing, after_seconds=0.7))
    live = [version for version in owing if version.since > START]
    assert [since for since, _ in comparison.lags] == [version.since for version in live]
    assert {lag for _, lag in comparison.lags} == {0.7}


def test_changes_amid_a_fault_count_for_the_worst_lag_only(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    last = owing[-1]
    arrivals[-1] = replace(arrivals[-1], at=last.since + 9 * SECOND)
    amid = Hardship(at_seconds=4, fault="429", began=last.since, killed=False, ended=last.since + 9 * SECOND)
    _, text = verdict(compared(owing, arrivals), told_well(hardships=[amid]))
    assert "half of the changes within 0.5 s, 99 % within 0.5 s (a poll each second); at worst 9.0 s" in text


def test_only_a_relay_that_came_back_without_repeats_has_the_same_ids(owing: list[Owed]) -> None:
    kill = Hardship(at_seconds=4, fault="KILL", began=START, killed=True, reaction="started again", ended=START + 1)
    arrivals = arrivals_of(owing)
    assert "with the same ids" in verdict(compared(owing, arrivals), told_well(hardships=[kill]))[1]
    repeated = compared(owing, [*arrivals, arrivals[0]])
    assert "with the same ids" not in verdict(repeated, told_well(hardships=[kill]))[1]


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.99, 4.0), (0.25, 1.0), (0.26, 2.0), (1.0, 4.0)])
def test_percentile_is_a_value_that_was_measured(share: float, value: float) -> None:
    assert percentile([4.0, 2.0, 1.0, 3.0], share) == value


# -- far sides and screen --------------------------------------------------------------------------------------------


async def test_a_file_is_read_by_whole_lines_and_what_is_no_event_has_no_id(tmp_path: Path) -> None:
    clock = FakeClock()
    event = events_of(lived(clock))[0]
    line = render(event)
    far = EventFile(tmp_path / "events.ndjson", clock)
    await far.finish()
    (tmp_path / "events.ndjson").write_bytes(line + b"\n" + b"not an event\n" + line[:20])
    await far.finish()
    assert [arrival.id for arrival in far.arrivals] == [event.id, ""]
    assert far.arrivals[0].content == event.incident
    with (tmp_path / "events.ndjson").open("ab") as file:
        file.write(line[20:] + b"\n")
    await far.finish()
    assert [arrival.id for arrival in far.arrivals] == [event.id, "", event.id]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
async def test_what_is_shown_of_an_incident_can_do_nothing_and_fits_the_line(
    owing: list[Owed], tmp_path: Path, encoding: str
) -> None:
    clock = FakeClock()
    with (tmp_path / "out").open("w", encoding=encoding) as out:
        screen = Screen(Console(file=out, width=80), clock)
        title = {"displayName": "a\x1b[31m\u202e" + "b" * 200, "severity": "INCIDENT_SEVERITY_LEVEL_HIGH"}
        shown = [replace(arrivals_of(owing)[0], content=msgspec.json.encode(title), at=clock.now())] * 3
        screen.say("Something happened.", events=2)
        showing = asyncio.create_task(screen.show(shown))
        await asyncio.sleep(0.01)
        showing.cancel()
    lines = (tmp_path / "out").read_text(encoding=encoding).splitlines()
    assert lines[1].startswith("   0 s  Something")
    assert len(lines) == 4
    assert lines[2].startswith("        20:26:40  acme    created   HIGH     aU+001B[31mU+202Ebbb")
    assert all(len(line) <= 80 for line in lines)


# -- the demo itself -------------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "relay", "demo", *arguments]


def environment(folder: Path) -> dict[str, str]:
    """Ours, without a broker, and with a setting of another relay, which must not count."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return {**ours, "TMPDIR": str(folder), "RELAY_SOURCES__OTHER__REGION": "eu", "COLUMNS": "120"}


def require_success(found: "subprocess.CompletedProcess[str]", seconds: float) -> None:
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stderr == ""
    assert "Nothing was lost." in found.stdout
    assert "6 of 6 guarantees held. Exit code 0." in found.stdout
    assert "\x1b" not in found.stdout
    assert seconds < 60


def test_the_demo_tells_its_story_in_a_minute_and_keeps_every_guarantee(tmp_path: Path) -> None:
    kept_folder = tmp_path / "kept"
    began = time.monotonic()
    found = subprocess.run(
        command("--keep", str(kept_folder)),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    require_success(found, time.monotonic() - began)
    lines = (kept_folder / "events.ndjson").read_bytes().splitlines()
    ids = {msgspec.json.decode(line)["event"]["id"] for line in lines}
    assert len(ids) == len(lines) > INCIDENTS
    said = " ".join(found.stdout.split())
    assert f"disk {len(lines):,} {len(lines):,} 0 0 lines of a file" in said
    assert f"webhook {len(lines):,} " in said
    assert f"messages stand for {len(lines) - INCIDENTS} changes: " in said
    assert "dead 1: refused by the webhook with 422, sent again with `redrive`, arrived" in said
    for fault in ("Slack answered 503 for", "the webhook was removed (410)", "ESET answered 429 for"):
        assert fault in said
    assert "did not recover in time" not in said
    assert (kept_folder / "relay.log").read_text().count('"event": "relay started"') == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


@pytest.mark.kafka
@pytest.mark.prove
def test_the_demo_through_a_broker_is_read_back_in_read_committed(tmp_path: Path, kafka: Kafka) -> None:
    began = time.monotonic()
    found = subprocess.run(
        command("--kafka", kafka.bootstrap),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    require_success(found, time.monotonic() - began)
    assert "read_committed" in found.stdout
    assert list(tmp_path.iterdir()) == []


@contextmanager
def begun(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", psutil.Process]]:
    """A demo and its relay, once events arrive."""
    with subprocess.Popen(command(), env=environment(folder), stdout=subprocess.DEVNULL) as demo:
        try:
            deadline = time.monotonic() + 30
            while not list(folder.glob("relay-demo-*/events.ndjson")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            (relay,) = psutil.Process(demo.pid).children()
            yield demo, relay
        finally:
            demo.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_neither_process_nor_folder(tmp_path: Path, number: signal.Signals) -> None:
    with begun(tmp_path) as (demo, relay):
        demo.send_signal(number)
        assert demo.wait(10) == 1
        relay.wait(5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_relay_does_not_survive_a_killed_demo(tmp_path: Path) -> None:
    with begun(tmp_path) as (demo, relay):
        demo.kill()
        demo.wait(10)
        relay.wait(5)


def test_a_folder_that_is_in_use_is_refused_and_so_is_a_broker_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, said in (
        (["--keep", str(tmp_path)], "holds something already; name a new folder"),
        (["--kafka", "127.0.0.1:1"], "no Kafka broker answers on 127.0.0.1:1"),
    ):
        found = subprocess.run(
            command(*arguments), env=environment(tmp_path), capture_output=True, text=True, timeout=30, check=False
        )
        assert (found.returncode, said in found.stderr) == (2, True), found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
