"""The page about logs lists what the code logs: every event, its levels and its fields, and nothing else."""

import re
from pathlib import Path

import pytest

from tests.support.loglines import PACKAGE, Logged, Unclear, logged

PAGE = PACKAGE.parent / "docs" / "logs.md"
COMMON = frozenset({"source", "sink", "username", "poll_id"})
"""Bound to the logger or the poll at most places: the page has them once, for all."""

_ROW = re.compile(r"^\| `([^`]+)` \| ([a-z, ]+) \|([^|\n]*)\|[^|\n]+\|[^|\n]+\|$", re.MULTILINE)
_NAME = re.compile(r"`([a-z_]+)`")


def documented() -> dict[str, Logged]:
    """The rows of its tables. An event may stand there once."""
    rows = _ROW.findall(PAGE.read_text())
    found = {
        event: Logged(levels=set(levels.split(", ")), fields=set(_NAME.findall(fields)))
        for event, levels, fields in rows
    }
    assert len(found) == len(rows)
    return found


CODE = logged()
ROWS = documented()


def test_every_event_of_the_code_is_on_the_page_and_none_besides() -> None:
    assert ROWS.keys() == CODE.keys()


@pytest.mark.parametrize("event", sorted(CODE))
def test_level_and_fields_of_an_event_are_those_on_the_page(event: str) -> None:
    told, real = ROWS[event], CODE[event]
    assert told.levels == real.levels
    assert told.fields == real.fields - COMMON


def test_common_fields_are_on_the_page() -> None:
    first_cells = "".join(line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `"))
    repeated = {"timestamp", "level", "event", "reason", "error", "failures", "retries", "pauses", "refusals", "since"}
    assert COMMON | repeated | {"seconds", "logger"} <= set(_NAME.findall(first_cells))


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ('self._log.info(f"sink {state}")', "sink"),
        ('self._log.info("sink failed", **fields)', "fields"),
        ('level = self._log.info\n        level("sink failed")', "does not look"),
        ('getattr(self, "x")(self._log.warning)', "does not look"),
    ],
)
def test_a_line_that_cannot_be_told_from_the_code_is_refused(tmp_path: Path, statement: str, problem: str) -> None:
    (tmp_path / "one.py").write_text(f"class One:\n    def told(self, state):\n        {statement}\n")
    with pytest.raises(Unclear, match=problem):
        logged(tmp_path)


def test_events_levels_and_fields_are_found_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "class One:\n"
        "    def first(self):\n"
        "        write = self._log.info if self.due else log.debug\n"
        "        write('poll ended', pages=1)\n"
        "        structlog.get_logger().error('poll ended', seconds=2)\n"
        "        self.second('journal lost')\n"
        "    def second(self, event):\n"
        "        self._log.warning(event, reason='')\n"
        "        other.info('no line')\n"
    )
    assert logged(tmp_path) == {
        "poll ended": Logged(levels={"info", "debug", "error"}, fields={"pages", "seconds"}),
        "journal lost": Logged(levels={"warning"}, fields={"reason"}),
    }
