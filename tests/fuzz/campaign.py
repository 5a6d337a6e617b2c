"""Mutated answers of one seed, over several processes; a failure is shrunk, and told so that it can be replayed."""

import multiprocessing
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.fuzz.mutations import Base, bases, mutated
from tests.fuzz.oracle import examine, poll

POLLED = 1000
"""One of so many answers goes through a whole poller with its journal."""
MAX_FAILURES = 5
SHRINK_TRIES = 3000
SHRINK_SECONDS = 30.0


@dataclass(kw_only=True)
class Tally:
    """What came of the answers."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.counts["answers"] / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {number}" for name, number in self.counts.items())
        return f"{counts}, seconds {self.seconds:.1f}, answers per second {self.rate:.0f}"


def campaign(responses: int, seed: int, *, workers: int = 1) -> Tally:
    """Answers number 0 to `responses` of this seed; number n is the same with any number of workers."""
    began = time.perf_counter()
    total = Tally()
    shares = [(seed, first, responses, workers) for first in range(workers)]
    if workers == 1:
        parts = [work(shares[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            parts = pool.map(work, shares, chunksize=1)
    for part in parts:
        total.counts += part.counts
        total.failures += part.failures
    total.seconds = time.perf_counter() - began
    return total


def work(share: tuple[int, int, int, int]) -> Tally:
    """One worker's share: seed, its first answer, how many there are, and from one to the next."""
    seed, first, responses, step = share
    tally = Tally()
    known = bases(seed)
    for number in range(first, responses, step):
        base, body = answer(known, seed, number)
        tally.counts["answers"] += 1
        try:
            page = examine(body, base.known)
            if page is None:
                tally.counts["refused"] += 1
            else:
                tally.counts["pages"] += 1
                tally.counts["incidents"] += len(page.observed)
                tally.counts["dead letters"] += len(page.bad)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the find
            tally.failures.append(told(error, seed, number, body, partial(examine, known=base.known)))
        if (number // step) % POLLED == 0:
            try:
                tally.counts["polls"] += 1
                tally.counts["polls completed"] += poll(body)
            except Exception as error:  # noqa: BLE001
                tally.failures.append(told(error, seed, number, body, poll))
        if len(tally.failures) >= MAX_FAILURES:
            break
    return tally


def answer(known: list[Base], seed: int, number: int) -> tuple[Base, bytes]:
    """Answer number `number` of a seed, and the page that it once was."""
    rng = random.Random((seed << 40) + number)
    base = rng.choice(known)
    return base, mutated(base, rng.choice(known), rng)


def told(error: Exception, seed: int, number: int, body: bytes, check: Callable[[bytes], object]) -> str:
    """Everything that is needed to see it again."""
    small = shrunk(body, type(error), check)
    trace = "".join(traceback.format_exception(error)[-6:])
    which = f"seed {seed}, answer {number}: {error!r:.300}"
    return f"{which}\n{trace}shrunk to {len(small)} of {len(body)} bytes: {small!r:.4000}"


def shrunk(body: bytes, kind: type[Exception], check: Callable[[bytes], object]) -> bytes:
    """The same failure with fewer bytes: pieces are left out as long as it stays."""
    deadline = time.monotonic() + SHRINK_SECONDS
    tries = 0
    size = len(body) // 2
    while size >= 1:
        smaller = False
        for candidate in _without_pieces(body, size):
            tries += 1
            if tries > SHRINK_TRIES or time.monotonic() > deadline:
                return body
            if _fails(candidate, kind, check):
                body, smaller = candidate, True
                break
        if not smaller:
            size //= 2
    return body


def _without_pieces(body: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(body), size):
        yield body[:at] + body[at + size :]


def _fails(body: bytes, kind: type[Exception], check: Callable[[bytes], object]) -> bool:
    try:
        check(body)
    except Exception as error:  # noqa: BLE001
        return type(error) is kind
    return False
