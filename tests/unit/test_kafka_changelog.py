"""Rows as records: what one release writes another reads, and tables come back as they were."""

import sqlite3

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.errors import JournalIncompatible
from relay.journal.kafka.broker import Message
from relay.journal.kafka.changelog import SHAPE, Changelog
from relay.journal.kafka.partition import Numbering
from relay.journal.sqlite import MIGRATIONS


def cache() -> sqlite3.Connection:
    """An empty cache with the tables of a journal."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for script in MIGRATIONS:
        db.executescript(script)
    return db


def said(key: list[object], value: list[object] | None, offset: int = 0) -> Message:
    return Message(offset, msgspec.json.encode(key), None if value is None else msgspec.msgpack.encode(value), ())


SINK = ["soar", 7, 60.0, b"{}", None]


def test_a_column_of_the_next_release_is_left_out_and_one_of_an_earlier_release_gets_its_default() -> None:
    db = cache()
    rows = Changelog(db)
    rows.apply([said(["sink", "soar"], [SHAPE + 1, *SINK, "a column of the next release"])])
    assert db.execute("SELECT * FROM sink").fetchall() == [tuple(SINK)]
    shorter = ["soar", 9, 1, "u1", 2, 5, "no"]  # before `cause`, `since` and `body` were there
    rows.apply([said(["pending", "soar", 9], [SHAPE, *shorter])])
    assert db.execute("SELECT * FROM pending").fetchall() == [(*shorter, "", 0, None)]


def test_what_a_release_after_the_next_wrote_is_refused() -> None:
    with pytest.raises(JournalIncompatible, match=f"newer relay .shape {SHAPE + 2}.*run that version"):
        Changelog(cache()).apply([said(["sink", "soar"], [SHAPE + 2, *SINK])])


def test_tables_of_a_later_release_are_passed_over() -> None:
    db = cache()
    Changelog(db).apply([said(["of later", "x"], [SHAPE, 1]), said(["sink", "soar"], [SHAPE, *SINK])])
    assert db.execute("SELECT count(*) FROM sink").fetchone() == (1,)


def test_rows_of_the_file_itself_are_not_told() -> None:
    db = cache()
    rows = Changelog(db)
    rows.watch()
    db.execute("INSERT INTO meta VALUES ('id', 'x'), ('cache', '{}'), ('numbering', '[]')")
    assert [msgspec.json.decode(key) for _table, key, _value in rows.taken()] == [["meta", "numbering"]]
    assert rows.taken() == []


@pytest.mark.parametrize(
    "insert",
    [
        "incident VALUES (?, 1, hex(?1), 0, 0, 0, 1, x'', 1, x'', 0)",
        "done VALUES ('siem', ?)",
        "executed VALUES (?, 0)",
    ],
)
def test_to_note_a_row_costs_the_same_however_many_are_noted(insert: str) -> None:
    db = cache()
    Changelog(db).watch()
    costs = []
    steps: list[None] = []
    db.set_progress_handler(lambda: steps.append(None), 1)
    db.execute("BEGIN")
    for number in range(400):
        steps.clear()
        db.execute(f"INSERT INTO {insert}", (number,))
        costs.append(len(steps))
    assert max(costs[300:]) < 1.5 * max(costs[:50])


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "move", "drop", "upsert"]), st.integers(0, 4), st.integers(0, 4)), max_size=30
)


@settings(deadline=None)
@given(OPERATIONS)
def test_the_records_of_every_transaction_make_the_same_tables_again(operations: list[tuple[str, int, int]]) -> None:
    origin, copy = cache(), cache()
    here, there = Changelog(origin), Changelog(copy)
    here.watch()
    for number, (what, one, other) in enumerate(operations):
        origin.execute("BEGIN")
        if what == "put":
            origin.execute("INSERT OR REPLACE INTO done VALUES (?, ?)", (f"s{one}", other))
        elif what == "drop":
            origin.execute("DELETE FROM done WHERE position = ?", (other,))
        elif what == "move":  # the key itself changes
            origin.execute("UPDATE OR IGNORE done SET sink = ? WHERE sink = ?", (f"s{other}", f"s{one}"))
        else:
            origin.execute(
                "INSERT INTO expired VALUES (?, ?, 1, 1, 1) ON CONFLICT DO UPDATE SET events = events + 1",
                (f"s{one}", f"v{other}"),
            )
        records = here.taken()
        origin.execute("COMMIT")
        there.apply([Message(number, key, value, ()) for _table, key, value in records])
    for table in ("done", "expired"):
        query = f"SELECT * FROM {table} ORDER BY 1, 2"
        assert copy.execute(query).fetchall() == origin.execute(query).fetchall()


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100)), max_size=4), st.integers(0, 300))
def test_positions_only_grow_with_offsets_and_lead_back_to_them(steps: list[tuple[int, int]], offset: int) -> None:
    numbering, at, highest = Numbering(), 0, 0
    for further, jump in steps:
        at += further
        highest = numbering.position(at - 1) + jump
        numbering.above(highest, at)
        assert numbering.position(at) == highest + 1
    assert numbering.position(offset + 1) > numbering.position(offset)
    assert numbering.offset(numbering.position(offset)) == offset
