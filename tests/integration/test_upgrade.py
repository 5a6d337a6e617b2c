"""What docs/upgrade.md promises of the journal: a copy before a migration, a newer file refused, the way back."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relay.clock import SystemClock
from relay.errors import JournalIncompatible
from relay.journal import sqlite
from relay.journal.sqlite import MIGRATIONS, SqliteJournal
from tests.support.process import finished

CONFIGURATION = """
sources:
  acme: {base_url: "http://127.0.0.1:1", token_url: "http://127.0.0.1:1/token", username: u, password: p}
sinks:
  out: {type: stdout}
http: {host: 127.0.0.1, port: 0}
"""
NEXT = "CREATE TABLE tomorrow (id INTEGER PRIMARY KEY);"


async def opened_by(version: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A relay that knows so many schemas opens the journal, and closes it. Returns the journal's id."""
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (*MIGRATIONS, NEXT)[:version])
        journal = SqliteJournal(path, max_bytes=1 << 24, retention_seconds=1e6, clock=SystemClock())
        try:
            await journal.open()
            return journal.id
        finally:
            await journal.close()


def schema_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


async def test_an_upgrade_leaves_a_copy_of_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "relay.db"
    ident = await opened_by(1, path, monkeypatch)
    assert await opened_by(2, path, monkeypatch) == ident
    copy = tmp_path / "relay.db.v1.bak"
    assert (schema_of(path), schema_of(copy)) == (2, 1)
    await opened_by(2, path, monkeypatch)
    assert sorted(tmp_path.glob("*.bak")) == [copy]


async def test_the_copy_is_the_way_back_and_the_upgrade_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "relay.db"
    ident = await opened_by(1, path, monkeypatch)
    await opened_by(2, path, monkeypatch)
    (tmp_path / "relay.db.v1.bak").rename(path)
    assert await opened_by(1, path, monkeypatch) == ident
    assert await opened_by(2, path, monkeypatch) == ident
    assert schema_of(tmp_path / "relay.db.v1.bak") == 1


async def test_a_stopped_relay_leaves_its_journal_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "relay.db"
    await opened_by(2, path, monkeypatch)
    assert not path.with_name("relay.db-wal").exists()


async def test_a_newer_journal_is_refused_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "relay.db"
    newer = len(MIGRATIONS) + 1
    await opened_by(newer, path, monkeypatch)
    before = path.read_bytes()
    with pytest.raises(JournalIncompatible, match=f"newer relay .schema {newer}, this one knows {newer - 1}"):
        await opened_by(newer - 1, path, monkeypatch)
    (tmp_path / "relay.yaml").write_text(CONFIGURATION)
    ended = await finished(tmp_path, "run")
    assert ended.code == 1
    assert "written by a newer relay" in " ".join(ended.stderr.split())
    assert path.read_bytes() == before
    await opened_by(newer, path, monkeypatch)
