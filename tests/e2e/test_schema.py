"""What a real relay writes fits the schema that it prints."""

import json
from pathlib import Path

from jsonschema import Draft202012Validator

from relay.schema import config_schema, event_schema
from tests.e2e.stage import CONFIGURATION, stage
from tests.unit.test_schema import read


async def test_every_event_of_a_real_run_fits_the_schema(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=40) as set_up:
        set_up.configure({"disk": {"type": "file", "path": "events.ndjson"}}, source={"enrich": True})
        assert (await set_up.command("run", "--once", within=60)).code == 0
        for uuid in set_up.tenant.pick(5, closed=False):
            set_up.tenant.update(uuid, {"tags": ["schema"], "futureField": {"of": ["tomorrow"]}})
        assert (await set_up.command("run", "--once", within=60)).code == 0
    Draft202012Validator(config_schema()).validate(read((tmp_path / CONFIGURATION).read_text()))
    events = [json.loads(line) for line in (tmp_path / "events.ndjson").read_bytes().splitlines()]
    assert len(events) == 45
    assert [event["event"].get("enriched") for event in events[40:]] == [True] * 5
    fitting = Draft202012Validator(event_schema())
    assert [error.message for event in events for error in fitting.iter_errors(event)] == []
