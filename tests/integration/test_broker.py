"""The test broker itself: no Java process outlives the test that started it, however that ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.kafka import require_broker

pytestmark = pytest.mark.kafka

CHILD = """
import sys, time
from pathlib import Path
from tests.support.broker import Cluster

with Cluster(Path(sys.argv[1])) as cluster:
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_broker_ends_with_the_process_that_started_it(tmp_path: Path, how: signal.Signals) -> None:
    require_broker()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "kafka")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    started = psutil.Process(child.pid).children(recursive=True)
    assert any("java" in process.name() for process in started)
    child.send_signal(how)
    child.wait(30)
    child.stdout.close()
    deadline = time.monotonic() + 10
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in started):
        assert time.monotonic() < deadline, started
        time.sleep(0.05)
