"""What docs/install.md says to type works: the wheel is whole, the service is one that systemd takes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "install.md"
UNIT = ROOT / "deploy" / "systemd" / "incident-relay.service"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the page's own command."""
    (line,) = re.findall(r"^\.venv/bin/(pip wheel .*)$", PAGE.read_text(), re.MULTILINE)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", *line.replace("--wheel-dir dist", f"--wheel-dir {folder}").split(), "-q"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    (found,) = folder.glob("incident_relay-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel alone; what it depends on is the tests' own."""
    folder = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(wheel),
    ]
    subprocess.run(command, check=True, timeout=240, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return folder


def test_the_wheel_holds_every_file_of_the_relay_and_nothing_else(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {str(path) for path in found if "__pycache__" not in path.parts}

    assert files(installed / "relay") == files(ROOT / "relay")
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} <= {"relay", "bin"}


@pytest.mark.parametrize("command", ["version", "schema config"])
def test_what_is_installed_runs_without_the_checkout(installed: Path, tmp_path: Path, command: str) -> None:
    program = f"import sys, relay.cli; assert relay.__file__.startswith({str(installed)!r}); relay.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip()


def test_the_service_on_the_page_is_the_file() -> None:
    assert blocks(PAGE, "ini") == [UNIT.read_text()]


def test_the_service_is_one_that_systemd_takes(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip(f"systemd-analyze is not on this machine: {UNIT.name} was NOT verified")
    text = UNIT.read_text()
    unit = tmp_path / "relay.service"
    unit.write_text(text.replace("/opt/relay/bin/relay", sys.executable))
    done = subprocess.run([verify, "verify", str(unit)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "relay.service" in line]
    assert (done.returncode, said) == (0, [])
