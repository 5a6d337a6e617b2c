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

import msgspec
import psutil
import pytest
from rich.console import Console

from relay.clock import SECOND
from relay.demo.arrivals import EventFile
from relay.demo.checker import Arrival, Comparison, Owed, compare, kept, owed, percentile
from relay.demo.report import summarize
from relay.demo.screen import Screen
from relay.demo.story import INCIDENTS, Hardship, Told
from relay.eset.wire import decode_incident
from relay.formats.native import render
from relay.incidents import Event, Known, Scope, diff
from relay.simulator import Simulator, Tenant
from relay.terminal import print_demo_summary
from tests.support.clock import START, FakeClock
from tests.support.kafka import Kafka

SCOPE = Scope(source="acme", start_from=0, first_start=0)


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


def compared(owing: Sequence[Owed], arrivals: Sequence[Arrival]) -> Comparison:
    return compare("disk", owing, arrivals, live_since=START + SECOND)


def verdict(comparison: Comparison, told: Told | None = None) -> tuple[int, str]:
    """Exit code and text of the summary."""
    console = Console(file=StringIO(), width=120)
    told = told or Told(exit_code=0)
    summary = summarize(told, [comparison], notes={"disk": "lines"}, kinds=Counter(["created"]), seconds=31)
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
    assert kept([comparison], told_to_the_end=True) == {"complete": True, "in order": True, "named": True}
    code, text = verdict(comparison)
    assert code == 0
    assert "Nothing was lost." in text
    assert "3 of 3 guarantees held. Exit code 0." in text


def test_incidents_need_not_wait_for_one_another(owing: list[Owed]) -> None:
    by_incident = sorted(arrivals_of(owing), key=lambda arrival: arrival.uuid)
    assert verdict(compared(owing, by_incident))[0] == 0


@pytest.mark.parametrize("hidden", [0, 7, -1])
def test_an_event_that_is_hidden_from_the_comparison_is_missing(owing: list[Owed], hidden: int) -> None:
    arrivals = arrivals_of(owing)
    gone = arrivals.pop(hidden)
    comparison = compared(owing, arrivals)
    assert [version.id for version in comparison.missing] == [gone.id]
    assert kept([comparison], told_to_the_end=True) == {"complete": False, "in order": True, "named": True}
    code, text = verdict(comparison)
    assert code == 1
    assert "1 event did not arrive." in text
    assert f"missing     disk: acme {gone.uuid} {gone.sequence} {gone.kind}" in text
    assert "failed  2 of 3 guarantees held. Exit code 1." in text
    assert "To run it against ESET" not in text


def test_an_empty_far_side_misses_everything(owing: list[Owed]) -> None:
    comparison = compared(owing, [])
    assert (len(comparison.missing), comparison.lags) == (len(owing), [])
    assert verdict(comparison)[0] == 1


def test_the_same_id_again_is_a_repeat_wherever_it_stands(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    comparison = compared(owing, [*arrivals, arrivals[0]])
    assert (len(comparison.repeats), len(comparison.misplaced)) == (1, 0)
    assert kept([comparison], told_to_the_end=True) == {"complete": True, "in order": True, "named": False}
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
    assert kept([comparison], told_to_the_end=True) == {"complete": False, "in order": True, "named": False}


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
        (Told(stalled="a whole poll did not come in time", exit_code=0), "broken off"),
        (Told(exit_code=1), "SIGTERM ended it in 0.0 s with exit code 1"),
        (Told(exit_code=None), ""),
    ],
    ids=["stalled", "stopped badly", "ended by itself"],
)
def test_a_story_that_was_not_told_to_its_end_fails_although_all_arrived(
    owing: list[Owed], told: Told, said: str
) -> None:
    code, text = verdict(compared(owing, arrivals_of(owing)), told)
    assert code == 1
    assert said in text
    assert "2 of 3 guarantees held" in text


def test_one_bad_far_side_is_enough(owing: list[Owed]) -> None:
    arrivals = arrivals_of(owing)
    good, bad = compared(owing, arrivals), compared(owing, arrivals[1:])
    assert kept([good, bad], told_to_the_end=True)["complete"] is False


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
    _, text = verdict(compared(owing, arrivals), Told(exit_code=0, hardships=[amid]))
    assert "half of the changes within 0.5 s, 99 % within 0.5 s (a poll each second); at worst 9.0 s" in text


def test_only_a_relay_that_came_back_without_repeats_has_the_same_ids(owing: list[Owed]) -> None:
    kill = Hardship(at_seconds=4, fault="KILL", began=START, killed=True, reaction="started again", ended=START + 1)
    arrivals = arrivals_of(owing)
    assert "with the same ids" in verdict(compared(owing, arrivals), Told(exit_code=0, hardships=[kill]))[1]
    repeated = compared(owing, [*arrivals, arrivals[0]])
    assert "with the same ids" not in verdict(repeated, Told(exit_code=0, hardships=[kill]))[1]


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
    assert "3 of 3 guarantees held. Exit code 0." in found.stdout
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
    assert f"disk {len(lines):,} {len(lines):,} 0 0 lines of a file" in " ".join(found.stdout.split())
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
