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
import signal, sys, time
from pathlib import Path
from tests.support.broker import Cluster

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
with Cluster(Path(sys.argv[1])) as cluster:
    print(*cluster.process_ids, flush=True)
    time.sleep(600)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_broker_ends_with_the_process_that_started_it(tmp_path: Path, how: signal.Signals) -> None:
    require_broker()
    command = [sys.executable, "-c", CHILD, str(tmp_path / "kafka")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            (broker,) = (psutil.Process(int(text)) for text in child.stdout.readline().split())
            assert "java" in broker.name()
            child.send_signal(how)
            child.wait(30)
        finally:
            child.kill()
    deadline = time.monotonic() + 10
    while _runs(broker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    """Where nobody collects orphans, the dead stay listed."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
