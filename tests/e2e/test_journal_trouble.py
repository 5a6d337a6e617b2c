"""A real relay whose journal fails: a path that is none, damage, a full disk, a full journal. It says so, and heals."""

import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from relay.errors import JOURNAL_REASONS
from tests.e2e.stage import Stage, stage, until
from tests.e2e.test_lifecycle import DISK, INCIDENTS, is_flowing, is_one_message, lines_in
from tests.e2e.verdict import from_line, judge
from tests.support.process import Child

JOURNAL = "volume/relay.db"
PAGE = 4096


@pytest.fixture
async def set_up(tmp_path: Path) -> AsyncIterator[Stage]:
    (tmp_path / "volume").mkdir()
    async with stage(tmp_path, incidents=INCIDENTS) as one:
        one.configure(DISK, journal={"path": JOURNAL})
        yield one


@pytest.fixture
def small_volume(set_up: Stage) -> Iterator[Path]:
    """Eight MiB, in memory, where the journal lies; skips where this machine does not let us mount."""
    folder = set_up.folder / "volume"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no right to mount a volume here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def overwrite_with_zeros(path: Path, at: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(size))


def fill_volume(folder: Path) -> Path:
    """Leaves no room; returns what takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    return ballast


async def stopped_by(relay: Child) -> str:
    """The reason for which polling stands, by the metric; empty when it goes on."""
    standing = [reason for reason in JOURNAL_REASONS if await relay.metric("relay_polling_stopped", reason=reason)]
    assert len(standing) <= 1
    return standing[0] if standing else ""


async def is_stopped_by(relay: Child, reason: str) -> bool:
    return await stopped_by(relay) == reason


async def problem_of(relay: Child) -> dict[str, Any]:
    """The one problem of the journal in the status, whose source says that it is stopped."""
    document = await relay.status()
    (problem,) = (one for one in document["verdict"]["problems"] if one["scope"] == "journal")
    assert document["verdict"]["state"] == "blocked"
    assert [source["state"] for source in document["sources"]] == ["stopped"]
    assert "relay.db" in document["journal"]["polling_stopped"]["reason"]
    assert problem["effect"]
    assert problem["cure"]["text"]
    found: dict[str, Any] = problem
    return found


def is_without_traceback(relay: Child) -> bool:
    return b"Traceback" not in relay.stderr and not relay.not_json


async def test_a_journal_that_cannot_be_opened_is_one_message_an_exit_code_and_a_line_of_check(set_up: Stage) -> None:
    path = set_up.folder / JOURNAL
    path.mkdir()
    folder = await set_up.command("run")
    assert is_one_message(folder, code=2), folder
    path.rmdir()
    assert (await set_up.command("run", "--once")).code == 0
    overwrite_with_zeros(path, path.stat().st_size // 2 // PAGE * PAGE, 8 * PAGE)
    before = path.read_bytes()
    damaged = await set_up.command("run")
    assert is_one_message(damaged, code=1), damaged
    assert re.search(
        r"relay\.db is damaged .* stop the relay, move .* restore your latest backup", one_line(damaged.stderr)
    )
    checked = await set_up.command("check")
    assert checked.code == 1
    assert "is damaged" in one_line(checked.stdout)
    assert "Traceback" not in checked.stdout + checked.stderr
    assert path.read_bytes() == before


def one_line(text: str) -> str:
    return " ".join(text.split())


async def test_a_full_disk_stops_polling_by_name_and_heals_by_itself_with_nothing_lost(
    set_up: Stage, small_volume: Path
) -> None:
    async with set_up.relay() as relay:
        await relay.started()
        await until(lambda: is_flowing(relay), "data flows")
        ballast = fill_volume(small_volume)
        set_up.tenant.close(set_up.tenant.pick(20))
        await until(lambda: is_stopped_by(relay, "journal_disk_full"), "polling stops")
        problem = await problem_of(relay)
        assert problem["text"].startswith("Polling stopped: no room is left on the volume of the journal")
        assert (await relay.metric("relay_errors_total", component="journal", reason="journal_disk_full")) > 0
        assert (await relay.get("/livez")).status_code == 200
        checked = await set_up.command("check")
        assert checked.code == 0
        assert "is held by a running relay" in one_line(checked.stdout)
        ballast.unlink()
        await until(lambda: is_flowing(relay), "data flows again")
        await until(lambda: is_stopped_by(relay, ""), "everything goes on")
        assert is_without_traceback(relay)
        assert await relay.stop() == 0
    delivered = judge(set_up.tenant.history, [from_line(line) for line in lines_in(set_up.folder)])
    assert delivered.versions == INCIDENTS + 20
    assert delivered.exactly_once_in_order, delivered


async def test_damage_while_it_runs_leaves_the_file_alone_and_says_what_to_do(tmp_path: Path) -> None:
    """It goes on answering, so that a person can read why; it ends in order, and does not start again on that file."""
    path = tmp_path / "relay.db"
    async with stage(tmp_path, incidents=3000) as set_up:
        # More events than the look at the start leaves in the cache; none is read again before the sink has a folder.
        set_up.configure({"disk": {"type": "file", "path": "later/events.ndjson"}})
        assert (await set_up.command("run", "--once")).code == 1
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("logged in")
            overwrite_with_zeros(path, PAGE, path.stat().st_size - PAGE)
            (tmp_path / "later").mkdir()
            await until(lambda: is_stopped_by(relay, "journal_damaged"), "the damage is found")
            before = path.read_bytes()
            problem = await problem_of(relay)
            assert "backup" in problem["cure"]["text"]
            assert (await relay.get("/livez")).status_code == 200
            assert is_without_traceback(relay)
            assert await relay.stop() == 0
            assert path.read_bytes() == before
        again = await set_up.command("run")
        assert is_one_message(again, code=1), again
        assert path.read_bytes() == before
