"""What the image holds, and that its commands work within it."""

import asyncio
import os
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from relay import __version__
from tests.e2e.stage import report, stage
from tests.kube import tools
from tests.kube.image import AUTHORITIES, Archive, Container
from tests.kube.steps import ROOT, step

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]

MOST_BYTES = 90_000_000
START_SECONDS = 2.0
INSTALLERS = {"pip", "pip3", "uv", "gcc", "g++", "cc", "c99", "clang", "ld", "make", "hatchling"}


def test_the_image_runs_as_nobody_in_particular_and_takes_its_signals_itself(archive: Archive) -> None:
    config = archive.configuration["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["relay"]
    assert config["Cmd"] == ["run"]
    assert config["WorkingDir"] == "/var/lib/relay"
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert "PYTHONUNBUFFERED=1" in config["Env"]
    _, journal = archive.files["var/lib/relay"]
    assert (journal.uid, journal.gid, journal.mode & 0o777) == (10001, 10001, 0o700)


def test_the_labels_say_what_it_is_and_what_it_was_made_of(archive: Archive) -> None:
    labels = {
        name.removeprefix("org.opencontainers.image."): text
        for name, text in archive.configuration["config"]["Labels"].items()
    }
    assert labels["title"] == "Incident Relay"
    assert labels["version"] == __version__
    assert labels["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["description"] in (ROOT / "pyproject.toml").read_text()


def test_nothing_in_it_installs_or_compiles(archive: Archive) -> None:
    programs = {path for path in archive.files if re.search(r"(^|/)s?bin/[^/]+$", path)}
    assert programs, "no programs were found at all"
    assert not {path for path in programs if re.sub(r"[-\d.]+$", "", Path(path).name) in INSTALLERS}
    assert not [path for path in archive.files if "/pip/" in path or "/ensurepip/" in path or "/setuptools/" in path]
    assert not [path for path in archive.files if "cel_expr_python/ext/" in path]


def test_all_that_is_run_belongs_to_root_and_is_writable_by_nobody_else(archive: Archive) -> None:
    ours = {path: member for path, (_, member) in archive.files.items() if path.startswith("opt/relay")}
    assert len(ours) > 1000
    assert not [path for path, member in ours.items() if member.uid != 0]
    assert not [path for path, member in ours.items() if member.mode & 0o022 and not member.issym()]


def test_no_address_certificate_or_secret_of_the_machine_that_built_it_is_in_any_layer(archive: Archive) -> None:
    texts = [b"/run/secrets/ca", b"BEGIN PRIVATE KEY", str(ROOT).encode()]
    texts += [
        value.encode()
        for name, value in os.environ.items()
        if re.fullmatch(r"(?i)pip_(index_url|extra_index_url|find_links)|uv_.*index.*|\w*https?_proxy|all_proxy", name)
        and len(value) > 8
    ]
    base = archive.content("etc/ssl/certs/ca-certificates.crt").decode()
    mark = "-----END CERTIFICATE-----"
    own = [part.strip() for part in AUTHORITIES.read_text().split(mark) if part.strip()]
    known = {"".join(part.split()) for part in base.split(mark)}
    # One line of each authority that only this machine trusts.
    texts += [part.splitlines()[-2].encode() for part in own if "".join(part.split()) not in known]
    found = [place for place in archive.containing(*texts) if "/run/secrets/ca" not in place]
    # The words of the Dockerfile itself stay in the history of the stage that is not shipped.
    assert not [place for place in found if "libcrypto" not in place and "certifi" not in place], found


def test_it_is_small(archive: Archive) -> None:
    with step("compress the layers"):
        size = archive.compressed_bytes()
    report("image", compressed_megabytes=f"{size / 1e6:.1f}")
    assert size <= MOST_BYTES


def test_the_dockerfile_is_as_its_linter_wants_it(programs: None) -> None:
    linted = subprocess.run([tools.BIN / "hadolint", ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert linted.stdout == ""
    assert linted.returncode == 0


def test_version_answers(container: Container) -> None:
    finished = container.run("relay", "version")
    assert finished.stdout.split() == [__version__], finished.stderr


def test_check_reads_a_mounted_configuration(container: Container, tmp_path: Path) -> None:
    document = {
        "sources": {"acme": {"region": "eu", "username": "api@acme.example", "password": "not a real one"}},
        "sinks": {"out": {"type": "stdout"}},
        "journal": {"path": "/var/lib/relay/relay.db"},
    }
    _write(tmp_path, document)
    finished = container.run("relay", "check", "--offline", volumes={tmp_path: "/etc/relay"})
    assert finished.returncode == 0, finished.stdout + finished.stderr

    document["sinks"] = {"out": {"type": "stdou"}}
    _write(tmp_path, document)
    finished = container.run("relay", "check", "--offline", volumes={tmp_path: "/etc/relay"})
    assert finished.returncode == 2
    assert "stdou" in finished.stdout + finished.stderr


def test_rules_know_the_time_zones(container: Container) -> None:
    code = "from relay.rules import Rule; Rule('incident.createTime.getHours(\"Europe/Vienna\") >= 8')"
    finished = container.run("python", "-c", code)
    assert finished.returncode == 0, finished.stderr
    refused = container.run("python", "-c", code.replace("Vienna", "Atlantis"))
    assert "not a time zone known here" in refused.stderr


def test_no_module_of_ours_is_compiled_at_start(container: Container) -> None:
    finished = container.run("python", "-v", "-c", "import relay.app, relay.cli")
    assert finished.returncode == 0
    assert finished.stderr.count("code object from") > 400, "the interpreter did not say where modules came from"
    assert not re.findall(r"code object from '?/\S+\.py\b", finished.stderr)


async def test_the_first_poll_comes_soon_after_the_start(container: Container, tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=20) as it:
        it.configure({"out": {"type": "stdout"}}, journal={"path": "/var/lib/relay/relay.db"})
        _readable(tmp_path)
        # What Buildah takes to enter the container is not ours.
        start = ("sh", "-c", "date +%s.%N >&2; exec relay run")
        process = await asyncio.create_subprocess_exec(
            *container.command(*start, volumes={tmp_path: "/etc/relay"}),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(60):
                began = float(await process.stderr.readline())
                while not any("incidents" in request.path for request in it.simulator.requests):
                    await asyncio.sleep(0.005)
            seconds = time.time() - began
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                if child.name() == "relay":
                    child.terminate()
            await process.communicate()
    report("image", seconds_to_first_poll=f"{seconds:.2f}")
    assert seconds <= START_SECONDS


def _write(folder: Path, document: dict[str, object]) -> None:
    (folder / "relay.yaml").write_text(yaml.safe_dump(document))
    _readable(folder)


def _readable(folder: Path) -> None:
    """By the user of the image."""
    folder.chmod(0o755)
    (folder / "relay.yaml").chmod(0o644)
