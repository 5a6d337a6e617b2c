"""What a user sees of a server that understands less, and of incidents that vanish in numbers."""

import json
from pathlib import Path

from relay.simulator import Fault
from tests.e2e.stage import SOURCE, Stage, stage, until
from tests.support.process import Child

DISK = {"disk": {"type": "file", "path": "events.ndjson"}}


async def mode_of(relay: Child, view: str) -> set[str]:
    """The modes whose gauge is 1."""
    return {
        mode
        for mode in ("keyset", "ordered", "scan")
        if await relay.metric("relay_source_mode", source=SOURCE, view=view, mode=mode)
    }


def kinds(set_up: Stage) -> list[str]:
    lines = (set_up.folder / "events.ndjson").read_bytes().splitlines()
    return [json.loads(line)["event"]["kind"] for line in lines]


async def test_a_source_that_can_only_be_scanned_polls_less_often_and_says_so(tmp_path: Path) -> None:
    """200 incidents by tens are 20 pages: at half the rate of 16 that is a poll every 2.5 s, not every second."""
    async with stage(tmp_path, incidents=200) as set_up:
        set_up.configure(DISK, source={"page_size": 10}, api={"requests_per_second": 16})
        set_up.simulator.faults.inject(Fault(effect="ignore_order"))
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("poll completed")
            assert await mode_of(relay, "update_time") == {"scan"}

            async def stretched() -> bool:
                return await relay.metric("relay_poll_interval_seconds", source=SOURCE) >= 2.5

            await until(stretched, "the interval is stretched")
            said = await set_up.command("status")
            words = " ".join(said.stdout.split())
            assert "acme is read scan since" in words
            assert "the order was ignored (update_time" in words
            assert "every poll reads all incidents" in words
            document = await relay.status()
            assert document["sources"][0]["read_modes"]["update_time"] == "scan"
            assert document["verdict"]["state"] != "blocked"
            set_up.tenant.close(set_up.tenant.pick(3))

            async def arrived() -> bool:
                return kinds(set_up).count("closed") == 3

            await until(arrived, "the changes arrived", within=40)
            assert await relay.stop() == 0


async def test_many_missing_incidents_need_a_person_and_one_command(tmp_path: Path) -> None:
    """60 of 150 vanish amid a sweep: nothing is emitted, the status says what to do, and what it says works."""
    async with stage(tmp_path, incidents=150) as set_up:
        set_up.configure(DISK, source={"page_size": 5}, api={"requests_per_second": 40})
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("backfill completed")
            gone = set_up.tenant.pick(60, which="newest")
            set_up.tenant.delete(gone)
            await relay.logged("sweep suspended")

            async def shown() -> bool:
                return await relay.metric("relay_reconcile_suspended", source=SOURCE) == 1

            await until(shown, "the metric shows it")
            verdict = (await relay.status())["verdict"]
            assert verdict["state"] == "blocked"
            [problem] = verdict["problems"]
            assert problem["cure"]["command"] == "relay sources accept-missing acme"
            assert "missing" not in kinds(set_up)
            polls = len(relay.events("poll completed"))
            done = await set_up.command(*problem["cure"]["command"].split()[1:])
            assert (done.code, done.stdout) == (0, "a sweep of acme begins, and reports whatever it finds missing\n")

            async def emitted() -> bool:
                return kinds(set_up).count("missing") == 60

            await until(emitted, "the disappearances were reported", within=40)
            await until(lambda: healthy(relay), "the verdict is well again")
            assert len(relay.events("poll completed")) > polls
            assert await relay.stop() == 0
        unknown = await set_up.command("sources", "accept-missing", "globex")
        assert unknown.code == 2
        assert "there is no source globex: use one of acme" in unknown.stderr
        later = await set_up.command("sources", "accept-missing", SOURCE)
        assert later.code == 0
        assert "no relay runs at present" in later.stdout


async def healthy(relay: Child) -> bool:
    return bool((await relay.status())["verdict"]["state"] == "flowing")
