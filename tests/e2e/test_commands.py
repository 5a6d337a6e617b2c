"""What operators do, with a running relay and without: each command as a child process of its own."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from relay.journal import Outcome
from relay.journal.sqlite import SqliteJournal
from relay.words import inert
from tests.e2e.stage import CONFIGURATION, SOURCE, Stage, stage, until
from tests.support.kafka import Kafka, committed, fresh
from tests.support.process import Child, Finished

DISK = {"type": "file", "path": "events.ndjson"}
OUT = {"type": "stdout"}
HOSTILE = b'{"uuid": 5, "displayName": "\\u202eevil \xe2\x80\xae"}'
INCIDENTS = 20


def events_in(folder: Path, file: str = "events.ndjson") -> list[dict[str, Any]]:
    path = folder / file
    return [json.loads(line)["event"] for line in path.read_bytes().splitlines()] if path.exists() else []


async def said(set_up: Stage, *command: str) -> str:
    """What a command that succeeds prints, its lines joined."""
    ended = await set_up.command(*command)
    assert (ended.code, ended.stderr) == (0, ""), ended
    return " ".join(ended.stdout.split())


async def answer(set_up: Stage, *command: str) -> dict[str, Any]:
    ended = await set_up.command(*command, "--json")
    assert (ended.code, ended.stderr) == (0, ""), ended
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


async def refused(set_up: Stage, *command: str) -> tuple[int, str]:
    ended = await set_up.command(*command)
    assert ended.code, ended
    assert not ended.stdout, ended
    assert "Traceback" not in ended.stderr
    return ended.code, " ".join(ended.stderr.split()).removeprefix("error ")


async def arrived(set_up: Stage, count: int, file: str = "events.ndjson") -> None:
    async def there() -> bool:
        return len(events_in(set_up.folder, file)) >= count

    await until(there, f"{count} events arrived in {file}")
    assert len(events_in(set_up.folder, file)) == count


async def bad_record(set_up: Stage, relay: Child) -> None:
    """A record that nobody can read."""
    set_up.tenant.put_raw(HOSTILE)

    async def counted() -> bool:
        return await relay.metric("relay_dead_letters", component="source") == 1

    await until(counted, "it is a dead letter")


async def test_commands_on_a_running_relay(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=INCIDENTS) as set_up:
        set_up.configure({"disk": DISK, "out": OUT})
        async with set_up.relay() as relay:
            await relay.started()
            await arrived(set_up, INCIDENTS)
            await bad_record(set_up, relay)
            await bad_records_are_listed_shown_and_discarded(set_up, relay)
            await a_disabled_sink_keeps_its_events(set_up, relay)
            await a_replay_reaches_one_sink(set_up, relay)
            assert "can be written" in await said(set_up, "sinks", "test", "disk")
            code, text = await refused(set_up, "sinks", "rename", "disk", "archive")
            assert (code, "a relay runs: to rename a sink, stop it" in text) == (1, True)
            code, text = await refused(set_up, "sinks", "enable", "dsik")
            assert (code, text) == (2, "there is no sink dsik: use one of disk, out")
            code, text = await refused(set_up, "replay", "--sink", "disk", "--since", "yesterday")
            assert (code, "'yesterday' is no time" in text) == (2, True)
            (source,) = (await answer(set_up, "sources", "list"))["sources"]
            assert (source["label"], source["state"], source["ledger_incidents"]) == (SOURCE, "ok", INCIDENTS + 1)
            with pytest.raises(httpx.HTTPStatusError, match="404"):
                (await relay.get("/api/backup")).raise_for_status()
            assert await relay.stop() == 0


async def bad_records_are_listed_shown_and_discarded(set_up: Stage, relay: Child) -> None:
    listed = await answer(set_up, "dead-letters", "list", "--source", SOURCE)
    assert listed["total"] == 1
    (letter,) = listed["dead_letters"]
    status = await relay.status()
    assert [one["id"] for one in status["dead_letters"]["items"]] == [letter["id"]]
    assert status["verdict"]["problems"][0]["cure"]["command"] == f"relay dead-letters list --source {SOURCE}"
    assert letter["id"][:12] in await said(set_up, "dead-letters", "list")
    assert await said(set_up, "dead-letters", "list", "--sink", "disk") == "There is no dead letter."
    shown = await set_up.command("dead-letters", "show", letter["id"][:8])
    assert inert(shown.stdout.replace("\n", " ")) == shown.stdout.replace("\n", " ")
    assert "evil" in shown.stdout
    code, text = await refused(set_up, "dead-letters", "redrive", letter["id"])
    assert (code, "there is no event to send" in text) == (1, True)
    assert await said(set_up, "dead-letters", "discard", letter["id"]) == "1 dead letter was discarded for good"
    assert (await answer(set_up, "dead-letters", "list"))["total"] == 0


async def a_disabled_sink_keeps_its_events(set_up: Stage, relay: Child) -> None:
    assert "disk is disabled" in await said(set_up, "sinks", "disable", "disk")
    set_up.tenant.create()

    async def waits() -> bool:
        return await relay.metric("relay_backlog_events", sink="disk") == 1

    await until(waits, "the event waits")
    disk, out = (await answer(set_up, "sinks", "list"))["sinks"]
    assert (disk["state"], disk["backlog_events"], out["state"]) == ("disabled", 1, "ok")
    assert len(events_in(set_up.folder)) == INCIDENTS
    assert "disk was disabled and goes on" in await said(set_up, "sinks", "enable", "disk")
    await arrived(set_up, INCIDENTS + 1)


async def a_replay_reaches_one_sink(set_up: Stage, relay: Child) -> None:
    before = relay.stdout.count(b"\n")
    done = await answer(set_up, "replay", "--sink", "disk", "--since", "1h")
    assert done["events"] == INCIDENTS + 1
    await arrived(set_up, 2 * (INCIDENTS + 1))
    first, second = events_in(set_up.folder)[: INCIDENTS + 1], events_in(set_up.folder)[INCIDENTS + 1 :]
    assert [event["id"] for event in first] == [event["id"] for event in second]
    assert {event["origin"] for event in second} == {"replay"}
    assert relay.stdout.count(b"\n") == before
    uuid = set_up.tenant.uuids()[0]
    assert "1 event committed from" in await said(
        set_up, "replay", "--sink", "out", "--since", "1h", "--incident", uuid
    )

    async def printed() -> bool:
        return relay.stdout.count(b"\n") == before + 1

    await until(printed, "it was printed")
    assert json.loads(relay.stdout.splitlines()[-1])["event"]["origin"] == "replay"


async def test_commands_without_a_relay(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=INCIDENTS) as set_up:
        set_up.configure({"disk": DISK})
        code, text = await refused(set_up, "sinks", "list")
        assert (code, "there is no journal" in text) == (1, True)
        assert not (tmp_path / "relay.db").exists()
        assert "nothing was sent" in await said(set_up, "sinks", "test", "disk")
        assert not (tmp_path / "relay.db").exists()
        assert (await set_up.command("run", "--once")).code == 0
        assert "disk is disabled" in await said(set_up, "sinks", "disable", "disk")
        set_up.tenant.create()
        assert (await set_up.command("run", "--once")).code == 1
        (disk,) = (await answer(set_up, "sinks", "list"))["sinks"]
        assert (disk["state"], disk["backlog_events"]) == ("disabled", 1)
        assert "goes on when a relay runs" in await said(set_up, "sinks", "enable", "disk")
        assert (await answer(set_up, "replay", "--sink", "disk", "--since", "1h"))["events"] == INCIDENTS
        assert (await set_up.command("run", "--once")).code == 0
        await arrived(set_up, 2 * INCIDENTS + 1)
        await names_are_changed(set_up)
        await dead_letters_are_redriven(set_up)


async def names_are_changed(set_up: Stage) -> None:
    """Stop, edit, rename, start: nothing is read or sent again."""
    before = len(events_in(set_up.folder))
    assert (await refused(set_up, "sinks", "rename", "disk", "archive"))[0] == 2
    path = set_up.folder / CONFIGURATION
    document = yaml.safe_load(path.read_text())
    document["sources"] = {"globex": document["sources"].pop(SOURCE)}
    document["sinks"] = {"archive": document["sinks"].pop("disk")}
    path.write_text(yaml.safe_dump(document))
    assert "acme is globex from now on" in await said(set_up, "sources", "rename", SOURCE, "globex")
    assert "disk is archive from now on" in await said(set_up, "sinks", "rename", "disk", "archive")
    code, text = await refused(set_up, "sources", "rename", SOURCE, "globex")
    assert (code, text) == (2, "the journal knows no source acme: use one of globex")
    set_up.tenant.close(set_up.tenant.pick(1))
    assert (await set_up.command("run", "--once")).code == 0
    assert [event["source"] for event in events_in(set_up.folder)[before:]] == ["globex"]


async def dead_letters_are_redriven(set_up: Stage) -> None:
    """A version of an incident was refused, and the next one sent."""
    (uuid,) = set_up.tenant.pick(1)
    set_up.tenant.update(uuid, {"displayName": "the refused"})
    await said(set_up, "sinks", "disable", "archive")
    assert (await set_up.command("run", "--once")).code == 1
    await bury(set_up, "archive")
    set_up.tenant.update(uuid, {"displayName": "the next"})
    before = len(events_in(set_up.folder))
    async with set_up.relay() as relay:
        await relay.started()
        await said(set_up, "sinks", "enable", "archive")
        await arrived(set_up, before + 1)
        (letter,) = (await answer(set_up, "dead-letters", "show", (await letters_of(relay))[0][:12]))["dead_letters"]
        assert (letter["reason"], letter["text"]) == ("http_422", "no")
        assert letter["event"]["incident"]["displayName"] == "the refused"
        kept = await answer(set_up, "dead-letters", "redrive", "--sink", "archive")
        assert (kept["events"], kept["older"]) == (0, [letter["id"]])
        assert "add --superseded" in kept["done"]
        done = await answer(set_up, "dead-letters", "redrive", letter["id"], "--superseded")
        assert done["events"] == 1
        await arrived(set_up, before + 2)
        assert events_in(set_up.folder)[-1]["id"] == letter["id"]
        assert await relay.stop() == 0


async def letters_of(relay: Child) -> list[str]:
    return [one["id"] for one in (await relay.status())["dead_letters"]["items"]]


async def bury(set_up: Stage, sink: str) -> None:
    """Everything that waits becomes a dead letter; a file refuses nothing by itself."""
    journal = SqliteJournal(
        set_up.folder / "relay.db", max_bytes=1 << 31, retention_seconds=1e9, clock=set_up.simulator.clock
    )
    await journal.open()
    try:
        lease = await journal.sink(sink, start="earliest", keep_seconds=1e9)
        claim = await lease.claim(100, in_order=True, wait=False)
        assert claim.deliveries
        positions = [delivery.position for delivery in claim.deliveries]
        await lease.settle([Outcome(positions=positions, kind="dead", reason="http_422: no")])
    finally:
        await journal.close()


async def test_a_backup_of_a_running_relay_is_started_in_its_place(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=INCIDENTS) as set_up:
        set_up.configure({"disk": DISK})
        async with set_up.relay() as relay:
            await relay.started()
            await arrived(set_up, INCIDENTS)
            copied: Finished = await set_up.command("backup", "copy.db")
            assert (copied.code, copied.stderr) == (0, "")
            assert (await refused(set_up, "backup", "copy.db"))[0] == 2
            assert not list(tmp_path.glob("*.part"))
            assert not list(tmp_path.glob("relay.db.copy*"))
            assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
            assert await relay.stop() == 0
        assert (await set_up.command("backup", "later.db")).code == 0
        check = await asyncio.to_thread(_checked, tmp_path / "later.db")
        assert check == "ok"
        document = yaml.safe_load((tmp_path / CONFIGURATION).read_text())
        document["journal"]["path"] = "copy.db"
        (tmp_path / CONFIGURATION).write_text(yaml.safe_dump(document))
        set_up.tenant.create()
        assert (await set_up.command("run", "--once")).code == 0
        await arrived(set_up, INCIDENTS + 1)


def _checked(path: Path) -> str:
    with sqlite3.connect(path) as db:
        found = str(db.execute("PRAGMA integrity_check").fetchone()[0])
    db.close()
    return found


@pytest.mark.kafka
async def test_a_renamed_kafka_sink_repeats_nothing_even_after_a_kill(kafka: Kafka, tmp_path: Path) -> None:
    """Its far side knows how far it got under the old name; here the journal is put back behind that."""
    topic = fresh("renamed")
    async with stage(tmp_path, incidents=INCIDENTS) as set_up:

        def configure(sink: str) -> None:
            set_up.configure(
                {sink: {"type": "kafka", "topic": topic}},
                kafka={"bootstrap.servers": kafka.bootstrap},
                kafka_prefix=prefix,
            )

        prefix = fresh("relay")
        configure("siem")
        assert (await set_up.command("run", "--once")).code == 0
        with sqlite3.connect(tmp_path / "relay.db") as db:
            db.execute("UPDATE sink SET position = 3")
        db.close()
        configure("lake")
        assert "siem is lake from now on" in await said(set_up, "sinks", "rename", "siem", "lake")
        set_up.tenant.create()
        assert (await set_up.command("run", "--once")).code == 0
        assert (await answer(set_up, "replay", "--sink", "lake", "--since", "1h"))["events"] == INCIDENTS + 1
        assert (await set_up.command("run", "--once")).code == 0
    records = await asyncio.to_thread(committed, kafka.bootstrap, topic)
    origins = [record.headers["ce_origin"] for record in records]
    assert (len(origins), origins.count("replay")) == (2 * (INCIDENTS + 1), INCIDENTS + 1)
