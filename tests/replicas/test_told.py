"""Any replica tells of the whole relay, and takes commands for what another one owns."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stage import CONFIGURATION, until
from tests.replicas.fleet import Replica
from tests.replicas.scene import Plan, scene, tenants
from tests.support.kafka import Kafka
from tests.support.process import finished

pytestmark = pytest.mark.kafka

SECONDS = 60.0


async def command(replica: Replica, *words: str) -> str:
    """What the command prints beside this replica. Raises AssertionError when it fails."""
    ended = await finished(replica.folder, *words, "--config", CONFIGURATION)
    assert ended.code == 0, ended.stderr
    return ended.stdout


async def asked(replica: Replica, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await command(replica, *words, "--json"))
    return found


async def test_two_replicas_tell_the_same_and_obey_for_each_other(kafka: Kafka, tmp_path: Path) -> None:
    plan = Plan(replicas=2, tenants=tenants(8), poll_seconds=1)
    async with scene(tmp_path, kafka.bootstrap, plan) as set_up:
        await set_up.fleet.start()
        one, other = set_up.fleet.replicas

        async def all_are_told() -> bool:
            for replica in (one, other):
                status = await replica.process.status()
                processes = status["relay"]["processes"]
                if len(processes) != 2 or sum(process["sources_held"] for process in processes) != 8:
                    return False
                if [source["label"] for source in status["sources"] if source["state"] == "ok"] != list(plan.tenants):
                    return False
            return True

        await until(all_are_told, "both tell of both, and of every source", within=SECONDS)
        held = [await replica.process.metric("relay_tasks_held", kind="source") for replica in (one, other)]
        assert min(held) > 0
        assert sum(held) == 8

        async def state(replica: Replica) -> str:
            rows = (await asked(replica, "sinks", "list"))["sinks"]
            return str(next(row["state"] for row in rows if row["name"] == "soar"))

        for replica, listener in ((one, other), (other, one)):
            assert "soar is disabled" in await command(replica, "sinks", "disable", "soar")

            async def is_disabled(listener: Replica = listener) -> bool:
                return await state(listener) == "disabled"

            await until(is_disabled, "the other one says that it is disabled", within=SECONDS)
            assert "goes on with the oldest waiting event" in await command(replica, "sinks", "enable", "soar")
        sources = await asked(other, "sources", "list")
        assert [row["ledger_incidents"] > 0 for row in sources["sources"]] == [True] * 8
        assert "no dead letter" in await command(one, "dead-letters", "list")
        for replica in (one, other):
            said = await command(replica, "sources", "accept-missing", next(iter(plan.tenants)))
            assert "a sweep of t00 begins" in said
        unknown = await finished(one.folder, "sinks", "disable", "nothing", "--config", CONFIGURATION)
        assert unknown.code == 2
        assert "there is no sink nothing" in unknown.stderr
        await set_up.fleet.stop()
