"""Nothing of a node outlives the tests, however they end. First of all, since a machine holds one node at a time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kube.cluster import LINK, Cluster
from tests.kube.steps import ROOT

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]

_STARTS_AND_WAITS = """
import sys, time
from pathlib import Path
from tests.kube.cluster import Cluster
with Cluster(images=[Path(sys.argv[1])]) as cluster:
    cluster.kubectl("run", "waits", "--image=localhost/incident-relay:test", "--command", "--", "sleep", "600")
    cluster.kubectl("wait", "pod/waits", "--for=condition=Ready", "--timeout=60s")
    print("runs", flush=True)
    if sys.argv[2] == "wait":
        time.sleep(600)
"""


def left_over() -> list[str]:
    """Processes, mounts, links and cgroups of a node."""
    home = str(ROOT / ".cache" / "kube")
    found = [str(path) for pattern in ("kubepods", "*/kubepods") for path in Path("/sys/fs/cgroup").glob(pattern)]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{home}/run" in line]
    found += [f"link {LINK}"] if Path(f"/sys/class/net/{LINK}").exists() else []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{home}/run" in command or f"{home}/bin/" in command or "containerd-shim" in command:
            found.append(command)
    return found


@pytest.mark.parametrize("end", ["orderly", "killed"])
def test_nothing_is_left(image: Path, end: str) -> None:
    assert left_over() == []
    process = subprocess.Popen(
        [sys.executable, "-c", _STARTS_AND_WAITS, str(image), "wait" if end == "killed" else "go"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        if end == "killed":
            assert len(left_over()) > 8, "the places to look at are not where a node leaves its traces"
            process.send_signal(signal.SIGKILL)
    finally:
        if process.wait(60) not in {0, -signal.SIGKILL}:
            os.write(2, b"the node did not start or end\n")
        process.communicate()
    deadline = time.monotonic() + 20
    while left_over() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_over() == []


def test_a_second_node_is_refused_and_leaves_the_first_alone(image: Path) -> None:
    with Cluster() as first:
        with pytest.raises(RuntimeError, match="another cluster runs"):
            Cluster().start()
        assert first.get("node", "node")["metadata"]["name"] == "node"
    assert left_over() == []
