"""What goes wrong with the journal's file, its folder and its volume: each has its own error, and nothing is half."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from relay.delivery import Courier
from relay.errors import (
    JOURNAL_REASONS,
    ConfigError,
    JournalDamaged,
    JournalDiskFull,
    JournalError,
    JournalFull,
    JournalIncompatible,
    JournalLocked,
    JournalMisplaced,
    JournalMissing,
    JournalReadOnly,
    JournalUnavailable,
)
from relay.journal import PageCommit, Progress, SourceLease
from relay.journal import sqlite as journal_module
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics
from relay.sinks.ndjson import FileSink
from tests.support.clock import FakeClock
from tests.support.incidents import START, chain

PROGRESS = Progress(identity="eu/api-user", first_start=START, start_from=0)
ROOMY = 1 << 30
NOBODY = 65534
PAGE = 4096


def page(prefix: str, count: int, *, padding: int = 0) -> PageCommit:
    """So many new incidents; `padding` bytes more in each."""
    histories = [chain(f"{prefix}-{number}", 1) for number in range(count)]
    more = msgspec.json.encode({"uuid": prefix, "description": "x" * padding})
    return PageCommit(
        progress=PROGRESS,
        rows=[known for _, known in histories],
        events=[msgspec.structs.replace(event, incident=more) for events, _ in histories for event in events],
    )


@asynccontextmanager
async def opened(path: Path, *, max_bytes: int = ROOMY) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(path, max_bytes=max_bytes, retention_seconds=7200.0, clock=FakeClock(START))
    try:
        await journal.open()
        yield journal
    finally:
        await journal.close()


async def filled(path: Path, *, pages: int = 20) -> None:
    """A sound journal of some hundred database pages, closed in order."""
    async with opened(path) as journal:
        lease = await journal.source("acme")
        for number in range(pages):
            await lease.commit(page(f"p{number}", 20, padding=500))


async def positions(journal: SqliteJournal) -> int:
    """How many events a new sink would get; each is read."""
    sink = await journal.sink("reader", start="earliest", keep_seconds=1e9)
    found = 0
    while deliveries := (await sink.claim(100, in_order=True, wait=False)).deliveries:
        found += len(deliveries)
    return found


async def read_all(path: Path) -> None:
    """Opens, and reads ledger and events."""
    async with opened(path) as journal:
        await (await journal.source("acme")).count()
        await positions(journal)


async def refusal(path: Path) -> JournalError:
    """Why this journal does not open, or cannot be read; what it says is fit for a person."""
    with pytest.raises(JournalError) as caught:
        await read_all(path)
    said = str(caught.value)
    assert caught.value.reason in JOURNAL_REASONS
    assert str(path) in said
    assert "; " in said
    assert "\n" not in said
    return caught.value


def contents(path: Path) -> dict[str, bytes]:
    """The file and its log."""
    return {one.name: one.read_bytes() for one in (path, path.with_name(f"{path.name}-wal")) if one.exists()}


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """A volume of its own; skips, by name, where this machine does not let us mount."""
    folder.mkdir()
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no right to mount here: mount {' '.join(arguments)}: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_volume(ballast: Path) -> None:
    """Leaves no room at all."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """Two MiB, in memory."""
    with mounted(tmp_path / "volume", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as folder:
        yield folder


# -- no room ----------------------------------------------------------------------------------------------------------


async def test_a_full_volume_is_told_from_a_full_journal_and_heals_by_itself(small_volume: Path) -> None:
    """The failed commit leaves nothing; given again once there is room, it is there once; acknowledgements as well."""
    ballast = small_volume / "ballast"
    async with opened(small_volume / "relay.db") as journal:
        lease = await journal.source("acme")
        sink = await journal.sink("siem", start="earliest", keep_seconds=1e9)
        await lease.commit(page("before", 10))
        fill_volume(ballast)
        refused = page("after", 10)
        for _ in range(3):
            with pytest.raises(JournalDiskFull, match=r"no room is left on the volume of the journal .*relay.db"):
                await lease.commit(refused)
        assert await lease.count() == 10
        ballast.unlink()
        await lease.commit(refused)
        assert await lease.count() == 20
        claim = await sink.claim(100, in_order=True)
        assert len({delivery.id for delivery in claim.deliveries}) == len(claim.deliveries) == 20


async def test_a_journal_on_a_full_volume_opens_and_a_new_one_says_why_not(small_volume: Path) -> None:
    await filled(small_volume / "relay.db", pages=2)
    async with opened(small_volume / "relay.db") as journal:
        await journal.sink("siem", start="earliest", keep_seconds=1e9)
    fill_volume(small_volume / "ballast")
    async with opened(small_volume / "relay.db") as journal:
        lease = await journal.source("acme")
        await journal.sink("siem", start="earliest", keep_seconds=1e9)
        assert await lease.count() == 40
    assert isinstance(await refusal(small_volume / "new.db"), JournalDiskFull)


async def test_a_page_that_exceeds_max_bytes_is_a_full_journal_and_no_full_disk(tmp_path: Path) -> None:
    async with opened(tmp_path / "relay.db", max_bytes=1 << 20) as journal:
        lease = await journal.source("acme")
        with pytest.raises(JournalFull, match="does not fit into max_bytes = 1048576"):
            await lease.commit(page("large", 100, padding=20_000))
        assert await lease.count() == 0
        await lease.commit(page("small", 10))
        assert await positions(journal) == 10


LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from relay.errors import JournalUnavailable
from tests.integration.test_journal_failures import opened, page, positions

async def main():
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    async with opened(Path(sys.argv[1])) as journal:
        lease = await journal.source("acme")
        await lease.commit(page("before", 10))
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
        for _ in range(3):
            try:
                await lease.commit(page("after", 100, padding=2000))
            except JournalUnavailable as error:
                print(error.reason)
        assert await lease.count() == 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await lease.commit(page("after", 100, padding=2000))
        assert await lease.count() == await positions(journal) == 110
    print("well")

asyncio.run(main())
"""
"""Runs wherever there is Linux: the kernel refuses to let a file grow, as a disk would."""


def test_a_write_that_the_kernel_refuses_leaves_the_connection_usable(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "relay.db")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["journal_unavailable"] * 3 + ["well"], done.stderr


async def test_at_a_full_journal_deliveries_go_on_until_room_is_back(tmp_path: Path) -> None:
    """A real courier, a real file: what is acknowledged is recorded though no change fits, so that room comes back."""
    clock = FakeClock(START)
    journal = SqliteJournal(tmp_path / "relay.db", max_bytes=2 << 20, retention_seconds=7200.0, clock=clock)
    await journal.open()
    lease = await journal.source("acme")
    sink = await journal.sink("disk", start="earliest", keep_seconds=1e9)
    committed = await until_full(lease)
    waiting = asyncio.create_task(lease.room())
    await journal.tend()
    await asyncio.sleep(0)
    assert not waiting.done()
    metrics = Metrics(clock)
    out = tmp_path / "events.ndjson"
    courier = Courier(
        sink=FileSink(out),
        lease=sink,
        kind="file",
        target=str(out),
        keep_seconds=1e9,
        metrics=metrics.sink("disk"),
        clock=clock,
    )
    courier.drain()
    await courier.run()
    assert (await sink.backlog()).events == 0
    assert (await journal.tend()).deleted > 0
    await asyncio.wait_for(waiting, 5)
    await lease.commit(page("afterwards", 10, padding=500))
    await courier.run()
    await courier.close(1)
    await journal.close()
    ids = [line["event"]["id"] for line in map(msgspec.json.decode, out.read_bytes().splitlines())]
    assert len(ids) == len(set(ids)) == committed + 10


async def until_full(lease: SourceLease) -> int:
    for number in range(1000):
        try:
            await lease.commit(page(f"p{number}", 50, padding=500))
        except JournalFull:
            return number * 50
    raise AssertionError("max_bytes was ignored")


# -- a volume that takes no writes ------------------------------------------------------------------------------------


async def test_a_read_only_volume_at_start_is_named(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as folder:
        await filled(folder / "relay.db", pages=2)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        error = await refusal(folder / "relay.db")
        assert isinstance(error, JournalReadOnly)
        assert not isinstance(error, ConfigError)
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        async with opened(folder / "relay.db") as journal:
            assert await positions(journal) == 40


@pytest.fixture
def failing_volume(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """An ext4 volume, and how to make the kernel find an error on it and mount it read-only."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here: no volume can fail")
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
    with mounted(tmp_path / "volume", "-o", "loop,errors=remount-ro", str(image)) as folder:
        device = Path(
            os.path.realpath(f"/sys/dev/block/{os.major(folder.stat().st_dev)}:{os.minor(folder.stat().st_dev)}")
        )
        trigger = Path("/sys/fs/ext4") / device.name / "trigger_fs_error"
        if not os.access(trigger, os.W_OK):
            pytest.skip(f"no right to make a volume fail here: {trigger} cannot be written")

        def fail() -> None:
            trigger.write_text("the tests want an error")

        yield folder, fail


async def test_a_volume_that_turns_read_only_refuses_by_name_and_keeps_what_was_committed(
    failing_volume: tuple[Path, Callable[[], None]], tmp_path: Path
) -> None:
    folder, fail = failing_volume
    async with opened(folder / "relay.db") as journal:
        lease = await journal.source("acme")
        await lease.commit(page("before", 10))
        fail()
        for _ in range(2):
            with pytest.raises(JournalReadOnly, match=r"the volume of the journal .*relay.db is read-only"):
                await lease.commit(page("after", 10))
        assert await lease.count() == 10
    found = tmp_path / "found"
    shutil.copytree(folder, found, ignore=shutil.ignore_patterns("lost+found"))
    async with opened(found / "relay.db") as journal:
        assert await positions(journal) == 10


@pytest.mark.parametrize("which", ["relay.db", "relay.db-wal"])
async def test_files_that_are_moved_away_while_it_runs_are_noticed_and_may_come_back(
    tmp_path: Path, which: str
) -> None:
    """SQLite would go on writing into a file that no restart finds."""
    async with opened(tmp_path / "relay.db") as journal:
        lease = await journal.source("acme")
        await lease.commit(page("before", 10))
        (tmp_path / which).rename(tmp_path / "elsewhere")
        with pytest.raises(JournalMissing, match="was moved, deleted or replaced"):
            await lease.commit(page("after", 10))
        shutil.copy(tmp_path / "elsewhere", tmp_path / which)
        with pytest.raises(JournalMissing):
            await lease.commit(page("after", 10))
        (tmp_path / "elsewhere").replace(tmp_path / which)
        await lease.commit(page("after", 10))
    async with opened(tmp_path / "relay.db") as journal:
        assert await positions(journal) == 20


# -- damage -----------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def cut_amid_a_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - PAGE - 1000)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def zero_the_middle(path: Path) -> None:
    overwrite(path, path.stat().st_size // 2 // PAGE * PAGE, bytes(8 * PAGE))


def scribble(path: Path) -> None:
    overwrite(path, path.stat().st_size // 2 + 77, random.Random(1).randbytes(3 * PAGE))


def damage_the_header(path: Path) -> None:
    overwrite(path, 0, bytes(100))


def damage_the_mark(path: Path) -> None:
    overwrite(path, 68, b"????")


def damage_the_first_page(path: Path) -> None:
    overwrite(path, 0, random.Random(2).randbytes(PAGE))


DAMAGES = [
    truncate, cut_amid_a_page, zero_the_middle, scribble, damage_the_header, damage_the_mark, damage_the_first_page
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_refused_at_start_names_its_backup_and_is_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "relay.db"
    await filled(path)
    (tmp_path / "relay.db.v1.bak").write_bytes(b"a copy")
    damage(path)
    before = contents(path)
    error = await refusal(path)
    assert isinstance(error, JournalDamaged)
    assert not isinstance(error, ConfigError)
    assert "restore relay.db.v1.bak" in str(error)
    assert contents(path) == before


async def test_random_damage_is_one_of_our_errors_or_harmless(tmp_path: Path) -> None:
    """Nothing but what a caller expects, whatever the bytes; and no file is written after damage was found."""
    sound, path = tmp_path / "sound.db", tmp_path / "relay.db"
    await filled(sound, pages=4)
    noise = random.Random(3)
    refused = 0
    for _ in range(40):
        shutil.copy(sound, path)
        for _ in range(noise.randint(1, 3)):
            overwrite(path, noise.randrange(sound.stat().st_size), noise.randbytes(noise.choice([1, 8, 64, 2000])))
        try:
            await read_all(path)
        except JournalIncompatible:
            refused += 1
        for left in tmp_path.glob("relay.db-*"):
            left.unlink()
    assert refused > 10


async def test_damage_found_while_it_runs_ends_all_writing_and_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and its log stay as they are, also when the journal is closed; the next start looks at all of it."""
    path = tmp_path / "relay.db"
    await filled(path)
    monkeypatch.setattr(journal_module, "VERIFIED_BYTES", 0)  # as if the file were larger than what a start looks at
    async with opened(path) as journal:
        lease = await journal.source("acme")
        await lease.commit(page("latest", 1))
        zero_the_middle(path)
        before = contents(path)
        with pytest.raises(JournalDamaged, match="is damaged"):
            await positions(journal)
        with pytest.raises(JournalDamaged):
            await lease.commit(page("more", 1))
        with pytest.raises(JournalDamaged):
            await journal.tend()
        await asyncio.wait_for(lease.room(), 1)
        before_close = contents(path)
    assert before_close.keys() == contents(path).keys() == {"relay.db", "relay.db-wal"}
    assert contents(path)["relay.db"] == before["relay.db"]
    assert contents(path) == before_close
    assert isinstance(await refusal(path), JournalDamaged)
    assert contents(path) == before_close


async def test_a_backup_that_is_put_in_the_place_of_a_damaged_journal_is_trusted_again(tmp_path: Path) -> None:
    path, backup = tmp_path / "relay.db", tmp_path / "copy"
    await filled(path)
    shutil.copy(path, backup)
    zero_the_middle(path)
    assert isinstance(await refusal(path), JournalDamaged)
    assert (tmp_path / "relay.db.damaged").exists()
    backup.replace(path)
    async with opened(path) as journal:
        assert await positions(journal) == 400
    assert not (tmp_path / "relay.db.damaged").exists()


async def test_a_state_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    await filled(path, pages=1)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE source SET progress = x'7b22'")
        db.commit()
    assert isinstance(await refusal(path), JournalDamaged)


# -- torn writes ------------------------------------------------------------------------------------------------------


async def torn(tmp_path: Path) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    """The bytes of a journal and its log at the instant of a kill, and how long the log was after each commit."""
    path = tmp_path / "origin" / "relay.db"
    path.parent.mkdir()
    ends = []
    async with opened(path) as journal:
        lease = await journal.source("acme")
        log = path.with_name("relay.db-wal")
        for number in range(12):
            await lease.commit(page(f"p{number}", 5, padding=number * 100))
            ends.append((log.stat().st_size, (number + 1) * 5))
        return path.read_bytes(), log.read_bytes(), ends


async def found_after(folder: Path, file: bytes, log: bytes | None) -> int:
    """How many incidents a restart finds; as many events, and each of them whole."""
    path = folder / "relay.db"
    for left in folder.glob("relay.db*"):
        left.unlink()
    path.write_bytes(file)
    if log is not None:
        path.with_name("relay.db-wal").write_bytes(log)
    async with opened(path) as journal:
        lease = await journal.source("acme")
        incidents = await lease.count()
        assert await positions(journal) == incidents
        assert (lease.progress is None) == (incidents == 0)
        await lease.commit(page("after", 1))
        return incidents


async def test_after_a_torn_write_everything_whose_commit_returned_is_there_and_nothing_half(tmp_path: Path) -> None:
    file, log, ends = await torn(tmp_path)
    noise = random.Random(4)
    begin = next(size for size, _ in ends) - 3 * PAGE
    cuts = [noise.randrange(begin, len(log) + 1) for _ in range(36)] + [size + by for size, _ in ends for by in (-1, 0)]
    for cut in cuts:
        returned = max((incidents for size, incidents in ends if size <= cut), default=0)
        assert await found_after(tmp_path, file, log[:cut]) == returned, cut


async def test_a_flipped_bit_in_the_log_costs_whole_commits_and_never_half_of_one(tmp_path: Path) -> None:
    file, log, ends = await torn(tmp_path)
    noise = random.Random(5)
    for _ in range(24):
        at = noise.randrange(ends[0][0], len(log))
        flipped = bytearray(log)
        flipped[at] ^= 1 << noise.randrange(8)
        before = max(incidents for size, incidents in ends if size <= at)
        assert await found_after(tmp_path, file, bytes(flipped)) in {before, 60}


async def test_garbage_behind_the_last_commit_is_ignored(tmp_path: Path) -> None:
    file, log, _ends = await torn(tmp_path)
    assert await found_after(tmp_path, file, log + random.Random(6).randbytes(3 * PAGE)) == 60


async def test_a_log_without_its_file_is_damage_and_is_kept(tmp_path: Path) -> None:
    """SQLite would begin anew, and delete the log."""
    _file, log, _ends = await torn(tmp_path)
    path = tmp_path / "relay.db"
    path.with_name("relay.db-wal").write_bytes(log)
    assert isinstance(await refusal(path), JournalDamaged)
    path.touch()
    assert isinstance(await refusal(path), JournalDamaged)
    assert path.with_name("relay.db-wal").read_bytes() == log


async def test_a_log_that_was_deleted_leaves_the_last_whole_state(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    await filled(path, pages=2)
    async with opened(path) as journal:
        await (await journal.source("acme")).commit(page("in the log", 5))
        file = path.read_bytes()
    assert await found_after(tmp_path, file, None) == 40


async def test_an_empty_file_and_a_shared_memory_file_that_was_left_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    path.touch()
    path.with_name("relay.db-shm").write_bytes(random.Random(7).randbytes(32 * 1024))
    await filled(path, pages=2)
    async with opened(path) as journal:
        assert await positions(journal) == 40


# -- places and locks -------------------------------------------------------------------------------------------------


def a_folder(path: Path) -> None:
    path.mkdir()


def no_folder(path: Path) -> None:
    path.parent.rmdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def another_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")


@pytest.mark.parametrize("make", [a_folder, no_folder, a_pipe, another_database])
async def test_a_path_that_cannot_be_a_journal_is_a_mistake_in_the_configuration(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "there" / "relay.db"
    path.parent.mkdir()
    make(path)
    error = await refusal(path)
    assert isinstance(error, JournalMisplaced)
    assert isinstance(error, ConfigError)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("exists", [True, False])
async def test_a_folder_that_may_not_be_written_is_a_mistake_in_the_configuration(exists: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "relay.db"
        if exists:
            await filled(path, pages=1)
            path.chmod(0o644)
            path.with_name("relay.db.lock").chmod(0o644)
        folder.chmod(0o555)
        try:
            with as_nobody():
                assert isinstance(await refusal(path), JournalMisplaced)
        finally:
            folder.chmod(0o755)


HOLDER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA locking_mode = EXCLUSIVE")
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(60)
"""


async def test_another_program_that_holds_the_file_is_named_and_disturbed_in_nothing(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    await filled(path, pages=1)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
            error = await refusal(path)
            assert isinstance(error, JournalLocked)
            assert f"locked by process {holder.pid} (" in str(error)
        finally:
            holder.send_signal(signal.SIGKILL)
    async with opened(path) as journal:
        assert await positions(journal) == 20


# -- what is counted --------------------------------------------------------------------------------------------------


def samples(metrics: Metrics, name: str) -> dict[str, float]:
    return {
        sample.labels["reason"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and sample.labels.get("component", "journal") == "journal"
    }


def test_every_reason_is_a_label_from_the_start() -> None:
    metrics = Metrics(FakeClock(START))
    assert samples(metrics, "relay_polling_stopped") == dict.fromkeys(JOURNAL_REASONS, 0)
    assert samples(metrics, "relay_errors_total") == dict.fromkeys(JOURNAL_REASONS, 0)


def test_every_error_of_the_journal_has_a_reason_of_its_own() -> None:
    def family(kind: type[JournalError]) -> list[type[JournalError]]:
        return [kind, *(one for below in kind.__subclasses__() for one in family(below))]

    kinds = family(JournalError)[1:]
    told = [kind.reason for kind in kinds if kind.__module__ == JournalError.__module__]
    assert sorted(told) == sorted(JOURNAL_REASONS)
    assert {kind.reason for kind in kinds} == set(JOURNAL_REASONS)  # what a journal has of its own is one of these
    assert issubclass(JournalDiskFull, JournalUnavailable)


def test_polling_counts_as_stopped_until_the_last_reader_goes_on() -> None:
    metrics = Metrics(FakeClock(START))
    metrics.waits_for_journal("poll acme", "journal_full")
    metrics.waits_for_journal("reconcile acme", "journal_full")
    metrics.waits_for_journal("poll acme", "")
    assert samples(metrics, "relay_polling_stopped")["journal_full"] == 1
    metrics.waits_for_journal("reconcile acme", "journal_disk_full")
    assert samples(metrics, "relay_polling_stopped")["journal_full"] == 0
    metrics.waits_for_journal("reconcile acme", "")
    assert not any(samples(metrics, "relay_polling_stopped").values())
