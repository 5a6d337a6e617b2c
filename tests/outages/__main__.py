"""Plays outages one after the other, and prints what happened when; `--write` writes docs/outages.md with pictures.

`python -m tests.outages [--write] [NAME …]`; without a name all of them.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

import msgspec

from tests.outages.pages import written
from tests.outages.play import Recorded, play
from tests.outages.scenarios import BY_NAME, SCENARIOS
from tests.support.packages import require

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "outages"
DOCS = ROOT / "docs"
PROGRAMS = ("prometheus", "java")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.outages", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/outages.md and its pictures")
    parser.add_argument("names", nargs="*", choices=[[], *BY_NAME], metavar="NAME", help=", ".join(BY_NAME))
    chosen = parser.parse_args()
    try:
        require(*PROGRAMS, *(("chromium", "pngquant") if chosen.write else ()))
    except LookupError as exc:
        print(f"Programs are missing. Type, then again:\n  {exc}")  # noqa: T201
        return 1
    failed = [name for name in chosen.names or BY_NAME if not _played(name, write=chosen.write)]
    if chosen.write:
        _write()
    return bool(failed)


def _played(name: str, *, write: bool) -> bool:
    picture = DOCS / "pictures" / f"outage-{name}.png" if write else None
    began = time.monotonic()
    try:
        record = asyncio.run(play(BY_NAME[name], picture=picture))
    except (AssertionError, EOFError, OSError, RuntimeError) as exc:
        print(f"{name}: failed after {time.monotonic() - began:.0f} s: {exc}", flush=True)  # noqa: T201
        return False
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / f"{name}.json").write_bytes(msgspec.json.encode(record))
    print(f"{name}: {time.monotonic() - began:.0f} s", *told(record), sep="\n  ", flush=True)  # noqa: T201
    return True


def told(record: Recorded) -> list[str]:
    """What happened when, a line each."""
    lines = [
        f"{alert.name}: pending {_at(alert.pending)}, fired {_at(alert.fired)}, resolved {_at(alert.resolved)}"
        for alert in record.alerts
    ]
    lines += [f"{said.at:.1f} s: {said.state} {said.headline}" for said in record.verdicts]
    return [*lines, f"ended {record.ended} s, recovered {record.recovered} s, held {record.held}"]


def _at(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


def _write() -> None:
    records = {}
    for scenario in SCENARIOS:
        stored = CACHE / f"{scenario.name}.json"
        if stored.exists():
            records[scenario.name] = msgspec.json.decode(stored.read_bytes(), type=Recorded)
    (DOCS / "outages.md").write_text(written(SCENARIOS, records, DOCS / "pictures"), encoding="utf-8")
    print(f"docs/outages.md: {', '.join(records)}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
