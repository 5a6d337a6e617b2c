"""The command line itself; what the commands do is shown in tests/e2e."""

import subprocess
import sys

import msgspec
import pytest

from relay.control import AnyCommand, ListDeadLetters, Redrive, Replay, point_in_time
from relay.errors import ConfigError
from relay.incidents import parse_instant

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


def test_a_time_is_written_in_full_or_as_how_long_ago() -> None:
    now = parse_instant("2026-11-22T10:00:00Z")
    assert point_in_time("2026-11-21T09:00:00.5Z", now) == parse_instant("2026-11-21T09:00:00.5Z")
    assert point_in_time("2h", now) == parse_instant("2026-11-22T08:00:00Z")
    with pytest.raises(ConfigError, match="'yesterday' is no time: write it like 2026-11-22T10:00:00Z"):
        point_in_time("yesterday", now)


def test_commands_survive_the_way_to_the_relay() -> None:
    """Each is data; what the running relay reads is what was asked."""
    asked = [
        Redrive(ids=("7c2e",), sink="soar", superseded=True),
        Replay(sink="disk", since=1, until=None, incident="u1"),
        ListDeadLetters(source="acme"),
    ]
    for command in asked:
        assert msgspec.json.decode(msgspec.json.encode(command), type=AnyCommand) == command
