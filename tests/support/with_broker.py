"""Runs a command with a real Kafka broker beside it, named by RELAY_TEST_KAFKA; `make demo KAFKA=1` is its use."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.broker import Cluster, missing


def main() -> int:
    if reason := missing():
        sys.stderr.write(f"no Kafka broker: {reason}\n")
        return 1
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder) / "kafka") as cluster:
        environment = {**os.environ, "RELAY_TEST_KAFKA": cluster.bootstrap}
        return subprocess.run(sys.argv[1:], env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
