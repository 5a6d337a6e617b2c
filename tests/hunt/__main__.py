"""`python -m tests.hunt`: plays random schedules until their number or the time is up; exits 1 when one fails."""

import argparse
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.hunt.hunting import examine, hunt, schedule
from tests.hunt.script import Script, read, written


def show(script: Script, *, trace: bool) -> bool:
    """Plays a script; True when it fails, and then says how, and the least that does."""
    minimal = examine(script, say if trace else None)
    if minimal is None:
        say("nothing is broken")
        return False
    say(f"{minimal.violation}\n\n{written(minimal.script)}")
    if minimal.violation.__cause__ is not None:
        say("".join(traceback.format_exception(minimal.violation.__cause__)))
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.hunt", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after that long")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first schedule; each next one is one more")
    parser.add_argument("--journal", choices=("sqlite", "kafka"), default="sqlite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--first", action="store_true", help="stop at the first find")
    parser.add_argument("--replay", type=int, metavar="SEED", help="play the schedule of one seed, and cut it down")
    parser.add_argument("--script", type=Path, help="play a script as it was printed")
    parser.add_argument("--trace", action="store_true", help="with --replay and --script: every request and commit")
    chosen = parser.parse_args(arguments)
    if chosen.script is not None:
        return int(show(read(chosen.script.read_text()), trace=chosen.trace))
    if chosen.replay is not None:
        return int(show(schedule(chosen.replay, chosen.journal), trace=chosen.trace))
    tally = hunt(
        schedules=chosen.schedules,
        seed=chosen.seed,
        workers=chosen.workers,
        seconds=chosen.seconds,
        stop_at_first=chosen.first,
        journal=chosen.journal,
    )
    rate = tally.schedules / tally.seconds * 60
    say(f"{tally.schedules} schedules in {tally.seconds:.1f} s ({rate:.0f} a minute), {len(tally.finds)} found")
    for find in tally.finds[:20]:
        say(f"seed {find.seed}: {find.text}")
    if tally.finds:
        say("")
        show(schedule(tally.finds[0].seed, chosen.journal), trace=chosen.trace)
    return 1 if tally.finds else 0


def say(text: str) -> None:
    """Prints it at once."""
    print(text, flush=True)  # noqa: T201  # this is a command


if __name__ == "__main__":
    raise SystemExit(main())
