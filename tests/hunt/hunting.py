"""Plays many schedules in processes of their own, or one script alone, which is then cut down. Prints nothing."""

import gc
import logging
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, Final

import structlog

from tests.hunt.checker import Violation
from tests.hunt.script import Script, drawn
from tests.hunt.shrink import shrunk
from tests.hunt.world import CAN_SWEEP, blank_journal, play

MEMORY: Final = Path("/dev/shm")
_REPORT_EVERY: Final = 20
"""Schedules that a worker plays between two words to its parent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """A seed whose schedule broke a guarantee."""

    seed: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a whole hunt came to."""

    schedules: int
    seconds: float
    finds: Sequence[Find]


def hunt(
    *, schedules: int, seed: int, workers: int, seconds: float, stop_at_first: bool, journal: str = "sqlite"
) -> Tally:
    """Plays the schedules of the seeds from `seed` on, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    finds: list[Find] = []
    done = 0
    started = time.monotonic()
    with _folder() as folder:
        told: Any = context.Queue()
        over: Any = context.Event()
        bodies = [
            context.Process(
                target=_work,
                args=(range(seed + index, seed + schedules, workers), folder / str(index), journal, told, over),
                daemon=True,
            )
            for index in range(workers)
        ]
        for body in bodies:
            body.start()
        working = len(bodies)
        while working:
            if time.monotonic() - started > seconds:
                over.set()
            try:
                word = told.get(timeout=0.5)
            except Empty:
                if any(body.exitcode not in {None, 0} for body in bodies):
                    raise RuntimeError("a worker of the hunt died") from None
                continue
            if isinstance(word, Find):
                finds.append(word)
                if stop_at_first:
                    over.set()
            elif word is None:
                working -= 1
            else:
                done += word
        for body in bodies:
            body.join()
    return Tally(schedules=done, seconds=time.monotonic() - started, finds=finds)


def _work(seeds: Sequence[int], folder: Path, journal: str, told: Any, over: Any) -> None:
    """A worker: says how many schedules it played, and each find; None at the end."""
    with _stage(folder) as playing:
        played = 0
        for seed in seeds:
            if over.is_set():
                break
            violation = playing(schedule(seed, journal), None)
            played += 1
            if violation is not None:
                told.put(Find(seed=seed, kind=violation.kind, text=str(violation)))
            if played % _REPORT_EVERY == 0:
                told.put(_REPORT_EVERY)
        told.put(played % _REPORT_EVERY)
    told.put(None)


Playing = Callable[[Script, Callable[[str], None] | None], Violation | None]


@contextmanager
def _stage(folder: Path) -> Iterator[Playing]:
    """Where scripts are played one after the other: without logs, without other people's garbage."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    sys.unraisablehook = lambda unraisable: None  # coroutines of killed processes are thrown away half-way
    folder.mkdir(parents=True)
    blank = blank_journal(folder / "blank.db")
    gc.collect()
    gc.freeze()

    def playing(script: Script, trace: Callable[[str], None] | None) -> Violation | None:
        return play(script, folder / "relay", blank, trace=trace)

    yield playing


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory where there is such a thing."""
    folder = Path(tempfile.mkdtemp(prefix="hunt-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimal:
    """The least that fails, and how."""

    script: Script
    violation: Violation


def examine(script: Script, trace: Callable[[str], None] | None = None) -> Minimal | None:
    """Plays one script, and cuts it down if it fails; `trace` is told what happens in what is left."""
    with _folder() as folder, _stage(folder / "one") as playing:
        violation = playing(script, None)
        if violation is None:
            if trace is not None:
                playing(script, trace)
            return None
        kind = violation.kind

        def fails(one: Script) -> bool:
            found = playing(one, None)
            return found is not None and found.kind == kind

        small = shrunk(script, fails)
        return Minimal(script=small, violation=playing(small, trace) or violation)


def schedule(seed: int, journal: str = "sqlite") -> Script:
    """The script of a seed, for the poller at hand."""
    return drawn(seed, sweep=CAN_SWEEP, journal=journal)
