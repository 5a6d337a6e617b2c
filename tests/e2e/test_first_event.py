"""What README.md says to type leads to the first event, and stands on its first screen."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from tests.e2e.stage import USER, stage
from tests.unit.test_docs import ROOT, blocks

README = ROOT / "README.md"
SCREEN_LINES = 42
PATIENCE_SECONDS = 60.0


def way() -> str:
    """The block that leads to the first event."""
    (text,) = [block for block in blocks(README, "sh") if "relay run" in block]
    return text


def test_the_first_screen_holds_what_it_is_both_commands_and_the_way() -> None:
    screen = "\n".join(README.read_text().splitlines()[:SCREEN_LINES])
    assert way() in screen
    for said in ("Kafka, exactly once", "make demo", "make test", "relay.yaml"):
        assert said in screen
    assert len(way().splitlines()) <= 6


async def test_what_it_says_to_type_prints_the_first_event(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=5) as set_up:
        hosts = f"BASE_URL={set_up.served.base_url} RELAY_SOURCES__ACME__TOKEN_URL={set_up.served.token_url}"
        script = way()
        for written, here in (
            ("make setup\n", ""),
            ("REGION=eu", hosts),
            ("api-user@acme.example", USER),
            (".venv/bin/relay", f"{sys.executable} -m relay"),
        ):
            assert written in script
            script = script.replace(written, here)
        free = {"RELAY_HTTP__PORT": "0", "RELAY_SOURCES__ACME__PROXY": "none"}
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-ec",
            script,
            cwd=tmp_path,
            env=os.environ | free,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{set_up.tenant.password}\n".encode())
            checked: list[str] = []
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (line := await process.stdout.readline()).startswith(b"{"):
                    assert line, await process.stderr.read() if process.stderr else b""
                    checked.append(line.decode())
            assert "Exit code 0." in "".join(checked)
            assert json.loads(line)["event"]["kind"] == "created"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()
