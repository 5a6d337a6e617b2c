"""What only the file and stdout sinks promise, against real files, pipes and a killed child process."""

import asyncio
import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from relay.errors import ConfigError, Gone, Unavailable
from relay.sinks import ndjson
from relay.sinks.ndjson import FileSink, StdoutSink
from tests.support.deliveries import deliveries, delivery
from tests.support.sinks import ids_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.ndjson"


async def test_a_torn_last_line_is_cut_and_its_event_written_again(path: Path) -> None:
    first, second = delivery(1).body + b"\n", delivery(2).body + b"\n"
    path.write_bytes(first + second[: len(second) // 2])
    sink = FileSink(path)
    await sink.open()
    assert path.read_bytes() == first
    await sink.send(deliveries(1, 2), upto=2)
    await sink.close(5)
    assert path.read_bytes() == first + second


async def test_a_file_without_any_line_end_is_one_torn_line(path: Path) -> None:
    path.write_bytes(b'{"event":{"id":"x')
    sink = FileSink(path)
    await sink.open()
    await sink.close(5)
    assert path.read_bytes() == b""


async def test_only_the_tail_is_remembered_and_lines_of_others_are_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndjson, "TAIL_LINES", 3)
    monkeypatch.setattr(ndjson, "_CHUNK_BYTES", 100)
    lines = [delivery(n).body for n in (1, 2, 3)] + [b"not json", delivery(4).body]
    path.write_bytes(b"\n".join(lines) + b"\n")
    sink = FileSink(path)
    await sink.open()
    await sink.send(deliveries(1, 5), upto=5)
    await sink.close(5)
    written = path.read_bytes().splitlines()
    assert written[:5] == lines
    assert written[5:] == [delivery(n).body for n in (1, 2, 5)], "3 and 4 were in the tail"


async def test_a_batch_that_was_acknowledged_but_not_recorded_is_not_written_twice(path: Path) -> None:
    sink = FileSink(path)
    await sink.open()
    await sink.send(deliveries(1, 10), upto=10)
    await sink.send(deliveries(1, 12), upto=12)
    await sink.close(5)
    assert ids_of(path.read_bytes()) == [d.id for d in deliveries(1, 12)]


async def test_a_replay_is_written_again(path: Path) -> None:
    sink = FileSink(path)
    await sink.open()
    await sink.send([delivery(1)], upto=1)
    await sink.send([delivery(1, origin="replay")], upto=None)
    await sink.close(5)
    assert len(path.read_bytes().splitlines()) == 2


async def test_a_file_that_was_moved_away_is_followed_by_a_new_one(path: Path) -> None:
    sink = FileSink(path)
    await sink.open()
    await sink.send(deliveries(1, 2), upto=2)
    rotated = path.rename(path.with_suffix(".1"))
    await sink.send(deliveries(3, 4), upto=4)
    path.unlink()
    await sink.send(deliveries(2, 5), upto=5)
    await sink.close(5)
    assert ids_of(rotated.read_bytes()) == [d.id for d in deliveries(1, 2)]
    assert ids_of(path.read_bytes()) == [delivery(5).id], "what the rotated files hold is not repeated"


async def test_a_new_file_is_readable_by_its_group_and_nobody_else(path: Path) -> None:
    before = os.umask(0)
    try:
        sink = FileSink(path)
        await sink.open()
        await sink.close(5)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


async def test_a_full_disk_is_unavailable_leaves_no_part_of_the_batch_and_heals(path: Path) -> None:
    """The limit on file size stands in for the disk: a partial write, then an error, as ENOSPC."""
    batch = deliveries(1, 50, padding=1000)
    sink = FileSink(path)
    await sink.open()
    await sink.send(batch[:10], upto=10)
    size = path.stat().st_size
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 7000, hard))
    try:
        with pytest.raises(Unavailable, match="file too large"):
            await sink.send(batch[10:], upto=50)
        assert path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    await sink.send(batch[10:], upto=50)
    await sink.close(5)
    assert ids_of(path.read_bytes()) == [d.id for d in batch]


async def test_no_space_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "")

    sink = FileSink(path)
    await sink.open()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="no space left on device") as refused:
            await sink.send(deliveries(1, 3), upto=3)
        assert refused.value.reason == "disk_full"
    assert path.read_bytes() == b"", "lines that no disk may have are not left to be taken for written"
    await sink.send(deliveries(1, 3), upto=3)
    await sink.close(5)
    assert len(ids_of(path.read_bytes())) == 3


async def test_a_path_that_is_no_regular_file_is_a_configuration_error(tmp_path: Path) -> None:
    sink = FileSink(tmp_path)
    with pytest.raises(ConfigError, match="type: stdout"):
        await sink.open()
    await sink.close(5)


async def test_omitted_fields_are_not_written(path: Path) -> None:
    sink = FileSink(path, omit=("description", "status"))
    await sink.open()
    await sink.send([delivery(1, padding=20)], upto=1)
    await sink.close(5)
    value = msgspec.json.decode(path.read_bytes())
    assert "description" not in value["incident"]
    assert value["event"]["changed"] == []


CHILD = """
import asyncio, sys
from pathlib import Path
from relay.sinks.ndjson import FileSink
from tests.support.deliveries import deliveries

async def main():
    sink = FileSink(Path(sys.argv[1]))
    await sink.open()
    at = 0
    while True:
        await sink.send(deliveries(at + 1, at + 50, padding=200), upto=at + 50)
        at += 50
        print(at, flush=True)

asyncio.run(main())
"""


async def test_a_killed_process_has_on_disk_what_it_acknowledged_and_its_successor_repeats_nothing(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = 0
    while acknowledged < 500:
        acknowledged = int(child.stdout.readline())
    child.kill()
    acknowledged = max([acknowledged, *(int(line) for line in child.stdout.read().split("\n")[:-1])])
    child.wait()
    child.stdout.close()
    assert set(ids_of(path.read_bytes().rpartition(b"\n")[0] + b"\n")) >= {d.id for d in deliveries(1, acknowledged)}

    sink = FileSink(path)
    await sink.open()
    batch = deliveries(acknowledged - 49, acknowledged + 500, padding=200)
    await sink.send(batch, upto=acknowledged + 500)
    await sink.close(5)
    assert ids_of(path.read_bytes()) == [d.id for d in deliveries(1, acknowledged + 500)]


async def test_a_reader_that_went_away_parks_stdout() -> None:
    reader, writer = os.pipe()
    sink = StdoutSink(writer)
    await sink.open()
    os.close(reader)
    with pytest.raises(Gone, match="nobody reads"):
        await sink.send(deliveries(1, 1), upto=1)
    await sink.close(5)
    os.close(writer)


async def test_a_reader_that_does_not_read_holds_up_neither_cancel_nor_close() -> None:
    reader, writer = os.pipe()
    sink = StdoutSink(writer)
    await sink.open()
    sending = asyncio.create_task(sink.send(deliveries(1, 1000, padding=1000), upto=1000))
    await asyncio.sleep(0.05)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    started = time.monotonic()
    await sink.close(0.2)
    assert time.monotonic() - started < 1
    os.close(reader)
    os.close(writer)
