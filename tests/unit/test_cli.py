"""The command line itself; what the commands do is shown in tests/e2e."""

import subprocess
import sys

HELD = """
import os
os.close(1)
from relay.cli import hold_standard_descriptors
hold_standard_descriptors()
taken = os.open(os.devnull, os.O_RDWR)
try:
    os.write(1, b"event")
except OSError:
    os._exit(taken)
os._exit(1)
"""


def test_no_file_takes_the_place_of_a_closed_standard_output() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], check=False)
    assert done.returncode > 2


def test_version_needs_nothing_heavy() -> None:
    text = (
        "import sys, relay.cli; print(sorted({'httpx', 'confluent_kafka', 'pydantic', 'uvicorn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
