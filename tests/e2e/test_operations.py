"""What docs/operations.md tells the people on call to type works, on the relay that it speaks of."""

import asyncio
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from tests.e2e.stage import SOURCE, Stage, report, stage, until
from tests.e2e.test_messages import backfilled, delivered_all, webhook
from tests.pages.metrics import collectors, exposed_name
from tests.support.packages import skip_without
from tests.support.process import Child
from tests.support.receiver import Asked, Told, receiving
from tests.unit.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "operations.md"
ADDRESS = "127.0.0.1:8080"
LETTER = "4f1c0a"
"""How the page writes the id of a dead letter."""
RENAMES = ("relay sources rename", "relay sinks rename")
CHANGING = ("relay sinks enable", "relay sinks disable")
INCIDENTS = 12
HISTOGRAM_SAMPLES = ("_bucket", "_sum", "_count")


def commands() -> list[str]:
    """The lines of the page in their order; of those that only look, each once."""
    text = "\n".join(blocks(PAGE, "sh")).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line for number, line in enumerate(lines) if line.startswith(CHANGING) or line not in lines[:number]]


def expressions() -> list[str]:
    """What the page writes as PromQL."""
    text = re.sub(r"^```.*?^```$", "", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for code in re.findall(r"`([^`]+)`", text) if re.search(r"\b(relay_\w+|up)[{\[]", code)]


async def typed(folder: Path, line: str) -> tuple[int, str]:
    """Its exit code and all that it prints, as typed into a shell in the folder of the configuration."""
    bin_folder = str(Path(sys.executable).parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", line),
        cwd=folder,
        env=environment | {"PATH": f"{bin_folder}:{os.environ['PATH']}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def go_through(set_up: Stage, relay: Child, lines: list[str]) -> dict[str, str]:
    """Types each line while the relay runs; what each printed."""
    code, listed = await typed(set_up.folder, "relay dead-letters list --sink soar --json")
    assert code == 0, listed
    (letter,) = yaml.safe_load(listed)["dead_letters"]
    port = (await relay.logged("relay started"))["http_port"]
    printed = {}
    for line in lines:
        real = line.replace(ADDRESS, f"127.0.0.1:{port}").replace(LETTER, letter["id"][: len(LETTER)])
        code, printed[line] = await typed(set_up.folder, real)
        assert code == 0, f"{line} ended with {code}:\n{printed[line]}"
    return printed


async def test_every_command_of_the_page_works_and_a_renamed_or_restored_relay_goes_on(tmp_path: Path) -> None:
    lines = commands()
    renames = [line for line in lines if line.startswith(RENAMES)]
    assert len(renames) == len(RENAMES)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    async with stage(tmp_path, incidents=INCIDENTS) as set_up, receiving() as soc, receiving() as soar:
        soc.says(Told(body=b"ok"))
        refusals = [Told(status=422, body=b"no such field")]

        def refuse_the_first(_asked: Asked) -> Told:
            return refusals.pop() if refusals else Told()

        soar.answer = refuse_the_first
        sinks = {
            "soc": {"type": "slack", "url": soc.url, "proxy": "none"},
            "soar": webhook(soar, retry="[0s]"),
            "disk": {"type": "file", "path": "events.ndjson"},
        }
        set_up.configure(sinks)
        async with set_up.relay() as relay:
            await relay.started()
            await backfilled(relay)
            await until(lambda: delivered_all(relay, "soc", "soar", "disk"), "all is delivered")
            printed = await go_through(set_up, relay, [line for line in lines if line not in renames])
            await until(lambda: delivered_all(relay, "soc", "soar", "disk"), "all is delivered again")
            assert (await relay.status())["dead_letters"]["total"] == 0
            assert await relay.stop() == 0
        assert "http_422" in printed[f"relay dead-letters show {LETTER}"]
        assert len((tmp_path / "events.ndjson").read_bytes().splitlines()) == 2 * INCIDENTS  # the replay of 2 h
        adapted = yaml.safe_load((tmp_path / "alerts.yaml").read_text())["groups"][0]["rules"]
        assert 'job="eset"' in adapted[0]["expr"]
        assert {rule["annotations"]["runbook_url"].partition("#")[0] for rule in adapted} == {
            "https://wiki.example/relay"
        }

        text = (tmp_path / "relay.yaml").read_text()
        (tmp_path / "relay.yaml").write_text(text.replace("  acme:", "  umbra:").replace("  disk:", "  archive:"))
        for line in renames:
            code, said = await typed(tmp_path, line)
            assert code == 0, said
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("poll completed")
            assert (await relay.status())["sources"][0]["ledger_incidents"] == INCIDENTS
            assert await relay.metric("relay_events_total") == 0  # nothing is new to it
            assert await relay.stop() == 0

        (tmp_path / "relay.yaml").write_text(text)
        for file in tmp_path.glob("relay.db*"):
            file.rename(tmp_path / f"old-{file.name}")
        (tmp_path / "relay-backup.db").rename(tmp_path / "relay.db")
        set_up.tenant.create({"displayName": "since the backup"})
        async with set_up.relay() as relay:
            await relay.started()

            async def read() -> bool:
                return await relay.metric("relay_events_total", source=SOURCE) == 1

            await until(read, "what is new since the backup was read, and no more")
            assert await relay.stop() == 0
    report("operations", commands=len(lines))


def test_every_command_names_what_the_page_says_there_is() -> None:
    for line in commands():
        words = shlex.split(line)
        assert words[0] in ("relay", "curl", "sed"), line
        for option, name in itertools.pairwise(words):
            if option in ("--sink", "--source"):
                assert name in (SOURCE, "soc", "soar", "disk"), line


def test_every_expression_of_the_page_is_one_and_speaks_of_metrics_that_exist(tmp_path: Path) -> None:
    skip_without("promtool")
    found = expressions()
    assert len(found) > 8
    rules = [{"record": f"page:{number}", "expr": expression} for number, expression in enumerate(found)]
    file = tmp_path / "page.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    known = {exposed_name(metric) for metric in collectors()}
    samples = {f"{name}{ending}" for name in known for ending in HISTOGRAM_SAMPLES}
    for expression in found:
        assert set(re.findall(r"\brelay_\w+", expression)) <= known | samples, expression
