"""Starting, stopping and asking a real relay process: exit codes, signals, the lock, and what the commands say."""

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay import __version__
from relay.simulator import Fault
from tests.e2e.stage import CONFIGURATION, SOURCE, Stage, stage, until
from tests.e2e.verdict import from_line, from_record, judge
from tests.support.kafka import Kafka, committed, fresh
from tests.support.process import Child, Finished, finished

INCIDENTS = 300
DISK = {"disk": {"type": "file", "path": "events.ndjson"}}
NO_BROKER = {"siem": {"type": "kafka", "topic": "incidents", "kafka": {"bootstrap.servers": "127.0.0.1:9"}}}
"""Nobody listens at port 9."""


@pytest.fixture
async def set_up(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, incidents=INCIDENTS) as one:
        one.configure(DISK)
        yield one


async def is_flowing(relay: Child) -> bool:
    state: str = (await relay.status())["verdict"]["state"]
    return state == "flowing"


def lines_in(folder: Path) -> list[bytes]:
    return (folder / "events.ndjson").read_bytes().splitlines()


def spare_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_one_message(command: Finished, *, code: int) -> bool:
    """An exit code, nothing on standard output, and an error without a traceback."""
    return (
        command.code == code
        and not command.stdout
        and "Traceback" not in command.stderr
        and len(re.findall(r"^error ", command.stderr, re.MULTILINE)) == 1
    )


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.kafka
async def test_sigterm_amid_a_backfill_delivers_what_was_committed_and_exits_0_within_the_grace(
    kafka: Kafka, tmp_path: Path
) -> None:
    topic, grace_seconds = fresh("drain"), 25
    async with stage(tmp_path, incidents=20_000) as set_up:
        set_up.configure(
            {"siem": {"type": "kafka", "topic": topic}},
            source={"page_size": 500},
            kafka={"bootstrap.servers": kafka.bootstrap},
            kafka_prefix=fresh("relay"),
            api={"requests_per_second": 1000},
            shutdown_grace=f"{grace_seconds}s",
        )
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("batch delivered")
            asked = time.monotonic()
            assert await relay.stop() == 0
            assert time.monotonic() - asked < grace_seconds
            assert not relay.events("delivery was cut short by shutdown_grace")
            assert not relay.not_json
        assert await set_up.backlog("siem") == 0
        history = set_up.tenant.history
    records = await asyncio.to_thread(committed, kafka.bootstrap, topic)
    delivered = judge(history, [from_record(record) for record in records])
    assert 0 < delivered.arrivals < delivered.versions
    assert delivered.doubled == delivered.foreign == delivered.gapped == 0
    assert delivered.missing == delivered.versions - delivered.arrivals


async def test_sigterm_while_the_sink_is_unreachable_exits_0_within_the_grace_and_keeps_all(set_up: Stage) -> None:
    set_up.configure(NO_BROKER, shutdown_grace="2s")
    async with set_up.relay() as relay:
        await relay.started()
        await relay.logged("backfill completed")
        asked = time.monotonic()
        assert await relay.stop() == 0
        # What Kubernetes leaves beyond our default grace.
        assert time.monotonic() - asked < 2 + 5
    assert await set_up.backlog("siem") == INCIDENTS


async def test_sigterm_while_the_api_hangs_and_the_sink_is_unreachable_takes_one_grace_for_both(set_up: Stage) -> None:
    set_up.configure(NO_BROKER, shutdown_grace="6s")
    async with set_up.relay() as relay:
        await relay.started()
        await relay.logged("backfill completed")
        set_up.simulator.requests.clear()
        set_up.simulator.faults.inject(Fault(effect="latency", on="list", delay_seconds=120))
        await until(lambda: _is_asked(set_up), "a poll hangs")
        asked = time.monotonic()
        assert await relay.stop() == 0
        # The page in hand is waited for up to 5 s: not in addition.
        assert time.monotonic() - asked < 6 + 4
    assert await set_up.backlog("siem") == INCIDENTS


async def _is_asked(set_up: Stage) -> bool:
    return bool(set_up.simulator.requests)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_leaves_at_once(set_up: Stage, second: signal.Signals) -> None:
    set_up.configure(NO_BROKER, shutdown_grace="10m")
    async with set_up.relay() as relay:
        await relay.started()
        await relay.logged("backfill completed")
        relay.signal(signal.SIGTERM)
        await relay.logged("relay stopping")
        asked = time.monotonic()
        relay.signal(second)
        assert await relay.ended() == 1
        assert time.monotonic() - asked < 5
    assert await set_up.backlog("siem") == INCIDENTS


async def test_interrupt_stops_as_orderly_as_sigterm(set_up: Stage) -> None:
    async with set_up.relay() as relay:
        await relay.started()
        await relay.logged("backfill completed")
        relay.signal(signal.SIGINT)
        assert await relay.ended() == 0
        assert relay.log[-1]["event"] == "relay stopped"
    assert len(lines_in(set_up.folder)) == INCIDENTS
    assert not (set_up.folder / "relay.db.sock").exists()


# -- one journal, one relay -------------------------------------------------------------------------------------------


async def test_a_second_relay_on_the_same_journal_is_refused_by_name_and_disturbs_nothing(set_up: Stage) -> None:
    async with set_up.relay() as first:
        await first.started()
        await until(lambda: is_flowing(first), "data flows")
        began = time.monotonic()
        second = await set_up.command("run")
        assert time.monotonic() - began >= 10
        assert is_one_message(second, code=1)
        assert f"process {first.process_id} on {socket.gethostname()}" in " ".join(second.stderr.split())
        assert (await first.get("/livez")).status_code == 200
        assert (await set_up.command("status", "--json")).code == 0
        assert await first.stop() == 0


async def test_a_successor_waits_for_its_predecessor_to_drain(set_up: Stage) -> None:
    set_up.configure(NO_BROKER, shutdown_grace="4s")
    async with set_up.relay() as first:
        await first.started()
        await first.logged("backfill completed")
        first.signal(signal.SIGTERM)
        await first.logged("relay stopping")
        async with set_up.relay() as second:
            await second.started()
            assert await first.ended() == 0
            assert await second.stop() == 0


# -- once -------------------------------------------------------------------------------------------------------------


async def test_once_delivers_everything_and_exits_0(set_up: Stage) -> None:
    assert (await set_up.command("run", "--once")).code == 0
    set_up.tenant.close(set_up.tenant.pick(5))
    assert (await set_up.command("run", "--once")).code == 0
    delivered = judge(set_up.tenant.history, [from_line(line) for line in lines_in(set_up.folder)])
    assert delivered.versions == INCIDENTS + 5
    assert delivered.exactly_once_in_order, delivered


async def test_once_exits_1_when_the_api_is_down(set_up: Stage) -> None:
    nowhere = f"http://127.0.0.1:{spare_port()}"
    set_up.configure(DISK, source={"base_url": nowhere, "token_url": f"{nowhere}/oauth/token"})
    once = await set_up.command("run", "--once", within=240)
    assert once.code == 1
    assert "Traceback" not in once.stderr
    assert "poll failed" in once.stderr


async def test_once_exits_1_when_something_is_left(set_up: Stage) -> None:
    set_up.configure({"disk": {"type": "file", "path": "missing/events.ndjson"}})
    assert (await set_up.command("run", "--once")).code == 1
    assert await set_up.backlog("disk") == INCIDENTS


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("run",), ("run", "--once"), ("check", "--offline"), ("status",)])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sorces": {}}, "sorces"),
        ({"sources": {}}, "source"),
        ({"sinks": {}}, "sink"),
        ({"sinks": {"disk": {"type": "file"}}}, "sinks.disk.path"),
        ({"sinks": {"out": {"type": "stdout", "format": "ocsf"}}}, "sinks.out.format"),
        ({"api": {"requests_per_second": 0}}, "api.requests_per_second"),
    ],
    ids=["unknown key", "no source", "no sink", "missing key", "not yet", "out of range"],
)
async def test_a_bad_configuration_is_one_message_that_names_the_key_and_exit_2(
    set_up: Stage, change: dict[str, Any], named: str, command: tuple[str, ...]
) -> None:
    path = set_up.folder / CONFIGURATION
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    ended = await set_up.command(*command)
    assert is_one_message(ended, code=2), ended
    assert named in ended.stderr


async def test_a_file_that_is_no_yaml_or_not_there_exits_2(set_up: Stage) -> None:
    (set_up.folder / CONFIGURATION).write_text("sources: {acme: [")
    broken = await set_up.command("run")
    assert is_one_message(broken, code=2), broken
    (set_up.folder / CONFIGURATION).unlink()
    absent = await set_up.command("run")
    assert is_one_message(absent, code=2), absent
    assert CONFIGURATION in absent.stderr


async def test_a_password_file_that_cannot_be_read_exits_2(set_up: Stage) -> None:
    path = set_up.folder / CONFIGURATION
    document = yaml.safe_load(path.read_text())
    del document["sources"][SOURCE]["password"]
    document["sources"][SOURCE]["password_file"] = "missing/acme"
    path.write_text(yaml.safe_dump(document))
    ended = await set_up.command("run")
    assert is_one_message(ended, code=2), ended
    assert "password_file" in ended.stderr


async def test_an_unknown_variable_of_ours_exits_2(set_up: Stage) -> None:
    ended = await finished(
        set_up.folder, "run", "--config", CONFIGURATION, environment={"RELAY_SOURCES__ACME__PASWORD": "x"}
    )
    assert is_one_message(ended, code=2), ended
    assert "RELAY_SOURCES__ACME__PASWORD" in ended.stderr


async def test_a_port_that_is_taken_exits_2(set_up: Stage) -> None:
    set_up.configure(DISK, http={"host": "127.0.0.1", "port": set_up.served.port})
    ended = await set_up.command("run")
    assert is_one_message(ended, code=2), ended
    assert "http.port" in ended.stderr


async def test_an_unknown_option_exits_2(set_up: Stage) -> None:
    ended = await set_up.command("run", "--twice")
    assert ended.code == 2
    assert "--twice" in ended.stderr
    assert "Traceback" not in ended.stderr


# -- commands ---------------------------------------------------------------------------------------------------------


async def test_check_exits_0_when_all_is_well_and_1_when_the_password_is_wrong(set_up: Stage) -> None:
    assert (await set_up.command("check")).code == 0
    set_up.configure(DISK, source={"password": "not the password"})
    refused = await set_up.command("check")
    assert refused.code == 1
    assert "Traceback" not in refused.stdout + refused.stderr
    assert SOURCE in refused.stdout
    assert "not the password" not in refused.stdout + refused.stderr


async def test_status_says_how_the_running_relay_is_and_exits_1_without_one(set_up: Stage) -> None:
    nobody = await set_up.command("status")
    assert is_one_message(nobody, code=1), nobody
    async with set_up.relay() as relay:
        await relay.started()
        await until(lambda: is_flowing(relay), "data flows")
        shown = await set_up.command("status")
        asked = await set_up.command("status", "--json")
        assert await relay.stop() == 0
    assert shown.code == asked.code == 0
    assert SOURCE in shown.stdout
    assert "disk" in shown.stdout
    document = json.loads(asked.stdout)
    assert document["verdict"]["state"] == "flowing"
    assert [source["label"] for source in document["sources"]] == [SOURCE]
    assert [(sink["name"], sink["type"]) for sink in document["sinks"]] == [("disk", "file")]
    assert document["relay"]["version"] == __version__


async def test_incidents_are_listed_and_shown_as_the_api_has_them(set_up: Stage) -> None:
    (newest,) = set_up.tenant.pick(1, which="newest")
    set_up.tenant.update(newest, {"severity": "INCIDENT_SEVERITY_LEVEL_HIGH"})
    listed = await set_up.command("incidents", "list", "--json", "--limit", "3")
    assert listed.code == 0
    found = [json.loads(line) for line in listed.stdout.splitlines()]
    assert len(found) == 3
    assert found[0]["uuid"] == newest
    for people in (await set_up.command("incidents", "list"), await set_up.command("incidents", "get", newest)):
        assert people.code == 0
        assert people.stdout
    absent = await set_up.command("incidents", "get", "00000000-0000-0000-0000-000000000000")
    assert is_one_message(absent, code=1), absent


async def test_version_is_one_line_and_needs_no_configuration(tmp_path: Path) -> None:
    said = await finished(tmp_path, "version")
    assert (said.code, said.stdout, said.stderr) == (0, f"{__version__}\n", "")
