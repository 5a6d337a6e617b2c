"""`python -m tests.breaks [NAME …]`: one planted bug at a time; exits 1 when a bug went unnoticed or no longer fits."""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PASSES = "tests/integration/test_passes.py"
JOURNAL = "tests/integration/test_journal_contract.py"
DELIVERY = "tests/integration/test_delivery.py"
SINKS = "tests/integration/test_sinks_contract.py"
SWEEP = "tests/integration/test_sweep.py"
LADDER = "tests/integration/test_ladder.py"
MESSAGES = "tests/integration/test_messenger.py"
TROUBLES = "tests/integration/test_journal_failures.py"
VERSIONS = "tests/unit/test_incidents.py"
HUNT = "tests.hunt --first --seconds 60 --schedules 1000000"
HUNT_KAFKA = "tests.hunt --journal kafka --first --seconds 120 --schedules 1000000"
PARTITION = "relay/journal/kafka/partition.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A bug: `old` becomes `new` in `file`, and one of `tests` must fail, or the module `command` end with 1."""

    guarantee: str
    what: str
    file: str
    old: str
    new: str
    tests: str = ""
    command: str = ""


BREAKS = (
    Break(
        guarantee="Complete",
        what="the next page is asked from just behind the last row (strict >)",
        file="relay/passes.py",
        old="    start = sheet.last - OVERLAP\n",
        new="    start = sheet.last + MILLISECOND\n",
        tests=PASSES,
    ),
    Break(
        guarantee="Complete",
        what="a second with many ties is read once",
        file="relay/passes.py",
        old="            if (count, total) == before:\n                return\n",
        new="            return\n",
        tests=PASSES,
    ),
    Break(
        guarantee="Complete",
        what="a tie larger than a page is not paged on",
        file="relay/passes.py",
        old="                if not token or (sheet.last is not None",
        new="                if token or (sheet.last is not None",
        tests=PASSES,
    ),
    Break(
        guarantee="Complete",
        what="the watermark moves to now instead of the first request's time",
        file="relay/poller.py",
        old="up_to = max(state.as_of or 0, progress.complete_up_to or 0)",
        new="up_to = self._sweep._clock.now()",
        tests=PASSES,
    ),
    Break(
        guarantee="Complete",
        what="the watermark is the latest row of the last page",
        file="relay/poller.py",
        old="            return filed(counted, step.state, step.as_of)\n",
        new="            return filed(counted, step.state, step.sheet.last or step.as_of)\n",
        tests=PASSES,
    ),
    Break(
        guarantee="Complete",
        what="the cursor of a pass is stored although its page was not",
        file="relay/journal/sqlite.py",
        old="            if page.rows:\n                by_uuid",
        new="            if page.rows and False:\n                by_uuid",
        tests=JOURNAL,
    ),
    Break(
        guarantee="Complete",
        what="only the view by update time is read",
        file="relay/poller.py",
        old='passes=(PassState(view="update_time", cursor=since), PassState(view="create_time", cursor=since))',
        new='passes=(PassState(view="update_time", cursor=since),)',
        tests=PASSES,
    ),
    Break(
        guarantee="In order",
        what="an older version seen late is emitted",
        file="relay/incidents.py",
        old="    if seen.updated < known.updated and not proven:\n        return _STALE\n",
        new="",
        tests=f"{PASSES} {VERSIONS}",
    ),
    Break(
        guarantee="In order",
        what="a version overtakes an unfinished older one",
        file="relay/journal/sqlite.py",
        old="            if key not in busy:\n                busy.add(key)\n",
        new="            if True:\n",
        tests=JOURNAL,
    ),
    Break(
        guarantee="Named",
        what="the id rests on the moment of observation",
        file="relay/incidents.py",
        old='    text = f"{source}\\0{uuid}\\0{updated}',
        new='    import time\n\n    text = f"{time.time_ns()}\\0{source}\\0{uuid}\\0{updated}',
        tests=VERSIONS,
    ),
    Break(
        guarantee="Named",
        what="every version has revision 0",
        file="relay/incidents.py",
        old="revision=0 if ordinary else sequence,",
        new="revision=0,",
        tests=VERSIONS,
    ),
    Break(
        guarantee="Complete",
        what="a page that was read in one view is taken for read in the other",
        file="relay/passes.py",
        old="sha256(state.view.encode() + body)",
        new="sha256(body)",
        tests=PASSES,
    ),
    Break(
        guarantee="Complete",
        what="a commit whose caller was cancelled leaves a hole that sinks step over",
        file="relay/journal/sqlite.py",
        old="        if not self._tail or follows != self._tail[-1].position:\n",
        new="        if not self._tail:\n",
        tests=JOURNAL,
    ),
    Break(
        guarantee="Named",
        what="the position that Kafka holds is ignored at start",
        file="relay/journal/sqlite.py",
        old="        if position.position <= self._position:\n            return True\n",
        new="        return True\n",
        tests=f"{JOURNAL} {DELIVERY}",
    ),
    Break(
        guarantee="Apart",
        what="couriers share a lock",
        file="relay/delivery.py",
        old="        await self._deliver(claim)\n        return False\n",
        new='        async with vars(asyncio).setdefault("_shared", asyncio.Lock()):\n'
        "            await self._deliver(claim)\n        return False\n",
        tests=DELIVERY,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="events are settled before they are sent",
        file="relay/delivery.py",
        old="        batch, skipped = self._sorted_out(claim)\n",
        new='        batch, skipped = self._sorted_out(claim)\n        await self._settle(batch, "done")\n',
        tests=DELIVERY,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="a refused event is settled without a dead letter",
        file="relay/delivery.py",
        old='[Outcome(positions=[at], kind="dead", reason=reason)',
        new='[Outcome(positions=[at], kind="done", reason=reason)',
        tests=DELIVERY,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="unreadable records are dropped",
        file="relay/intake.py",
        old="        found.bad = step.sheet.page.bad\n",
        new="",
        tests=PASSES,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="what expires is not counted",
        file="relay/journal/sqlite.py",
        old="    return Counter({severity: events for severity, events, _first, _final in rows})\n",
        new="    return Counter()\n",
        tests=JOURNAL,
    ),
    Break(
        guarantee="Bounded",
        what="a full journal takes more",
        file="relay/journal/sqlite.py",
        old="        if _used_bytes(db) >= FULL_RATIO * self._max_bytes:\n",
        new="        if False:\n",
        tests=f"{JOURNAL} {TROUBLES}",
    ),
    Break(
        guarantee="Bounded",
        what="room is made by deleting what still waits",
        file="relay/journal/sqlite.py",
        old="WHERE position <= ? AND committed <= ? ORDER BY",
        new="WHERE position >= ? * 0 AND committed <= ? ORDER BY",
        tests=JOURNAL,
    ),
    Break(
        guarantee="Named",
        what="the position is not in the batch's transaction",
        file="relay/sinks/kafka.py",
        old="self._producer_now().produce(self._plan.cursors, msgspec.json.encode(position), self._plan.name)",
        new="del position",
        tests=SINKS,
    ),
    Break(
        guarantee="Complete",
        what="a sweep believes the list alone that an incident is gone",
        file="relay/sweep.py",
        old="absence for absence in absences if await self._api.get_incident(absence.uuid, lane=LANE) is None",
        new="absence for absence in absences",
        tests=SWEEP,
    ),
    Break(
        guarantee="Complete",
        what="a mass disappearance is believed",
        file="relay/sweep.py",
        old="suspended = state.limit is not None and len(state.absences) > state.limit",
        new="suspended = False",
        tests=SWEEP,
    ),
    Break(
        guarantee="In order",
        what="an older version is believed without proof",
        file="relay/intake.py",
        old="proven=proven and seen is not listed",
        new='proven=lane == "sweep"',
        tests=SWEEP,
    ),
    Break(
        guarantee="In order",
        what="a page that was asked for earlier undoes a silent edit",
        file="relay/intake.py",
        old="asked < self._changed.get(seen.uuid, asked)",
        new="False",
        tests=SWEEP,
    ),
    Break(
        guarantee="Complete",
        what="an order that is ignored is not looked for",
        file="relay/passes.py",
        old="if downwards is None or list(upwards) != sorted(upwards) or list(downwards) != sorted(",
        new="if downwards is None or [] != sorted(() and ",
        tests=LADDER,
    ),
    Break(
        guarantee="Complete",
        what="a listing by token is read once",
        file="relay/poller.py",
        old="return mode, state, state.done or pages <= 1 or (not first and not overlooked)",
        new="return mode, state, True",
        tests=LADDER,
    ),
    Break(
        guarantee="Complete",
        what="an ignored filter is not looked for",
        file="relay/passes.py",
        old="if any(time < _BEYOND - OVERLAP for time in beyond):",
        new="if False:",
        tests=LADDER,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="the attempts that opened the breaker are lost",
        file="relay/messenger.py",
        old="back.setdefault(strike.position, strike.attempts)",
        new="back.setdefault(strike.position, strike.attempts + 1)",
        tests=MESSAGES,
    ),
    Break(
        guarantee="Apart",
        what="a probe always takes the oldest message",
        file="relay/messenger.py",
        old="chosen = claimed[self.breaker.probes % len(claimed)]",
        new="chosen = claimed[0]",
        tests=MESSAGES,
    ),
    Break(
        guarantee="Complete",
        what="hunt: the next page is asked from just behind the last row (strict >)",
        file="relay/passes.py",
        old="    start = sheet.last - OVERLAP\n",
        new="    start = sheet.last + MILLISECOND\n",
        command=HUNT,
    ),
    Break(
        guarantee="Complete",
        what="hunt: the cursor of a pass is stored before its page",
        file="relay/intake.py",
        old="                        rows = list(found.rows.values())\n",
        new="                        rows = list(found.rows.values())\n"
        "                        await self._lease.commit(PageCommit(progress=progress))\n",
        command=HUNT,
    ),
    Break(
        guarantee="Complete",
        what="hunt: a tie larger than a page is not paged on",
        file="relay/passes.py",
        old="                if not token or (sheet.last is not None",
        new="                if token or (sheet.last is not None",
        command=HUNT,
    ),
    Break(
        guarantee="Complete",
        what="hunt: the watermark is the latest row of a page",
        file="relay/poller.py",
        old="            return filed(counted, step.state, step.as_of)\n",
        new="            return filed(counted, step.state, step.sheet.last or step.as_of)\n",
        command=HUNT,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="hunt: events are settled before they are sent",
        file="relay/delivery.py",
        old="        batch, skipped = self._sorted_out(claim)\n",
        new='        batch, skipped = self._sorted_out(claim)\n        await self._settle(batch, "done")\n',
        command=HUNT,
    ),
    Break(
        guarantee="Complete",
        what="hunt on Kafka: the cache is committed before Kafka is",
        file=PARTITION,
        old="                if records:\n"
        "                    written = True\n"
        "                    self._note(db, self._writing().commit(records))\n",
        new="            if records:\n"
        "                written = True\n"
        "                self._note(db, self._writing().commit(records))\n",
        command=HUNT_KAFKA,
    ),
    Break(
        guarantee="Named",
        what="hunt on Kafka: a commit in doubt is taken for a failed one, and nothing is read back",
        file=PARTITION,
        old="            await self._in_thread(self._fence)\n"
        "            await self._make_current()\n"
        "            await self._in_thread(lambda: self._read_numbering(self._connected()))\n",
        new="            await self._in_thread(self._fence)\n",
        command=HUNT_KAFKA,
    ),
    Break(
        guarantee="Named",
        what="hunt on Kafka: a partition is restored before its last owner is fenced",
        file=PARTITION,
        old="            await self._in_thread(self._fence)\n"
        "            await self._make_current()\n"
        "            await self._in_thread(self._start)\n",
        new="            await self._make_current()\n"
        "            await self._in_thread(self._fence)\n"
        "            await self._in_thread(self._start)\n",
        command=HUNT_KAFKA,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="hunt on Kafka: without a cache, sinks are fed from the end",
        file=PARTITION,
        old="            offset = self._numbering.offset(needed)\n",
        new="            offset = await self._common.broker.end(self._topics.changes, 0)\n",
        command=HUNT_KAFKA,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="hunt on Kafka: the cache says that it has events before it has them",
        file=PARTITION,
        old="        def work() -> int:\n            db = self._connected()\n            before = self._covered\n",
        new="        before = self._covered\n"
        "        self._covered = (before[0] if before is not None else rows[0][0], rows[-1][0])\n\n"
        "        def work() -> int:\n            db = self._connected()\n",
        command=HUNT_KAFKA,
    ),
    Break(
        guarantee="Complete",
        what="hunt on Kafka: a restoring that was cut short leaves the cache without its indexes",
        file=PARTITION,
        old='        if name == "state":  # whoever began',
        new="        if whole:  # whoever began",
        command=HUNT_KAFKA,
    ),
    Break(
        guarantee="Named",
        what="hunt on Kafka: what a commit was to write is written with the next as well",
        file=PARTITION,
        old="        self._outgoing = []\n        self._outcomes = []\n        written = False\n",
        new="        self._outcomes = []\n        written = False\n",
        command=HUNT_KAFKA,
    ),
    Break(
        guarantee="Nothing vanishes",
        what="hunt on Kafka: an event that the brokers refuse is left out without a dead letter",
        file=PARTITION,
        old="                elif outcome.refused:\n",
        new="                elif False:\n",
        command=HUNT_KAFKA,
    ),
)


def main() -> int:
    wanted = sys.argv[1:]
    unnoticed = 0
    for one in BREAKS:
        if wanted and not any(word in one.what for word in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            verdict = _try(one, Path(folder) / "tree")
        unnoticed += not verdict.startswith("noticed")
        say(f"{one.guarantee:<17} {one.what:<70} {verdict}")
    return 1 if unnoticed else 0


def _try(one: Break, tree: Path) -> str:
    ignored = shutil.ignore_patterns(".venv", ".git", ".mypy_cache", ".ruff_cache", "__pycache__", ".cache")
    shutil.copytree(ROOT, tree, ignore=ignored)
    if (ROOT / ".cache").exists():
        (tree / ".cache").symlink_to(ROOT / ".cache")
    file = tree / one.file
    text = file.read_text()
    if not one.old or text.count(one.old) != 1:
        return "DOES NOT FIT the code any more"
    file.write_text(text.replace(one.old, one.new))
    return _hunted(one, tree) if one.command else _tested(one, tree)


def _tested(one: Break, tree: Path) -> str:
    options = ["-q", "-x", "--timeout", "60", "--tb", "line"]
    done = _run(["pytest", *options, *one.tests.split()], tree)
    if done.returncode == 1:
        failed = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), "FAILED ?")
        return f"noticed by {failed.removeprefix('FAILED ').split(' - ')[0].split('::')[-1]}"
    return f"NOT NOTICED (pytest exit {done.returncode})"


def _hunted(one: Break, tree: Path) -> str:
    """What the command found, and the script that it cut down, below the verdict."""
    done = _run(one.command.split(), tree)
    if done.returncode != 1 or not done.stdout:
        return f"NOT NOTICED (exit {done.returncode}) {done.stderr[-300:]}"
    first, *rest = done.stdout.splitlines()
    return "\n    ".join([f"noticed by the hunt: {first}", *rest])


def _run(module: list[str], tree: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *module], cwd=tree, capture_output=True, text=True, check=False)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # this is a command


if __name__ == "__main__":
    raise SystemExit(main())
