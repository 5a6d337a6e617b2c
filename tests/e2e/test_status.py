"""What a real relay says of itself over HTTP: the status document, and whether it is ready."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

import relay
from relay.simulator import Fault
from tests.e2e.stage import SOURCE, Stage, stage, until
from tests.support.process import Child

SCHEMA = json.loads((Path(relay.__file__).parent / "status" / "status.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=FormatChecker())
DISK = {"disk": {"type": "file", "path": "events.ndjson"}}
INCIDENTS = 300
LINK = {"link": "https://console.example/incidents/{uuid}"}


@pytest.fixture
async def set_up(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, incidents=INCIDENTS) as one:
        yield one


async def shown(relay: Child, *, events: int) -> dict[str, Any]:
    """The status once that many events are in it and nothing waits."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        nonlocal found
        found = await relay.status()
        VALIDATOR.validate(found)
        return len(found["events"]) >= events and found["verdict"]["state"] == "flowing"

    await until(there, f"{events} events in the status")
    return found


async def test_the_last_fifty_events_are_shown_and_outlive_a_restart(set_up: Stage) -> None:
    set_up.configure(DISK, source=LINK)
    (uuid,) = set_up.tenant.pick()
    async with set_up.relay() as running:
        await running.started()
        await shown(running, events=50)
        set_up.tenant.update(uuid, {"displayName": "a new \u202ename", "status": "INCIDENT_STATUS_IN_PROGRESS"})

        async def updated() -> bool:
            return bool((await running.status())["events"][0]["kind"] == "updated")

        await until(updated, "the update in the status")
        status = await running.status()
        assert await running.stop() == 0
    event = status["events"][0]
    assert (event["incident_uuid"], event["source"], event["origin"]) == (uuid, SOURCE, "poll")
    assert event["title"] == "a new \u202ename"
    assert {change["field"]: change["new"] for change in event["changed"]}["status"] == "IN_PROGRESS"
    assert event["link"] == f"https://console.example/incidents/{uuid}"
    async with set_up.relay() as running:
        await running.started()
        again = await shown(running, events=50)
        assert again["events"] == status["events"]


async def test_titles_that_are_not_wanted_are_nowhere_in_the_status(set_up: Stage) -> None:
    (uuid,) = set_up.tenant.pick()
    set_up.tenant.update(uuid, {"displayName": "a secret project"})
    set_up.configure(DISK, http={"host": "127.0.0.1", "port": 0, "titles": False})
    async with set_up.relay() as running:
        await running.started()
        await shown(running, events=50)
        set_up.tenant.update(uuid, {"displayName": "another secret project"})

        async def updated() -> bool:
            return bool((await running.status())["events"][0]["kind"] == "updated")

        await until(updated, "the update in the status")
        text = (await running.get("/api/status")).text
        assert "displayName" in text
        assert "secret project" not in text


async def test_a_backfill_that_ended_says_when_and_how_much_it_read(set_up: Stage) -> None:
    set_up.configure(DISK)
    async with set_up.relay() as running:
        await running.started()

        async def done() -> bool:
            return bool((await running.status())["sources"][0]["backfill"]["finished_time"])

        await until(done, "the end of the backfill")
        status = await running.status()
    backfill = status["sources"][0]["backfill"]
    assert (backfill["state"], backfill["progress_ratio"]) == ("done", 1.0)
    assert backfill["read_incidents"] >= INCIDENTS
    assert 0 < status["api"]["used_requests_per_second"] <= status["api"]["budget_requests_per_second"]


async def test_ready_says_of_each_how_it_is_and_a_vendor_that_is_down_makes_it_not_unready(set_up: Stage) -> None:
    set_up.simulator.faults.inject(Fault(effect="answer", on="any", status=503))
    set_up.configure(DISK)
    async with set_up.relay() as running:
        await running.started()

        async def ready() -> bool:
            return (await running.get("/readyz")).status_code == 200

        await until(ready, "readiness")
        detail = (await running.get("/readyz")).json()
        assert detail["sources"][SOURCE].startswith("failing: The last ")
        assert detail["sinks"] == {"disk": "ok"}
        assert (await running.get("/livez")).status_code == 200
