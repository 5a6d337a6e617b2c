"""Cuts a script down to what it needs to fail: fewer operations first, then plainer ones in a plainer world."""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from tests.hunt.script import RUNS, Op, Script, Setup

Fails = Callable[[Script], bool]
"""Whether a script still breaks the same guarantee."""


def shrunk(script: Script, fails: Fails, *, seconds: float = 30.0) -> Script:
    """The smallest script found within the time that fails as this one does."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        smaller = next((one for one in _smaller(script) if time.monotonic() < ends and fails(one)), None)
        if smaller is None:
            break
        script = smaller
    return script


def _smaller(script: Script) -> Iterator[Script]:
    """Scripts that are a little less, the boldest cuts first."""
    ops = script.ops
    size = len(ops) // 2
    while size:
        for start in range(0, len(ops), size):
            yield replace(script, ops=ops[:start] + ops[start + size :])
        size //= 2
    plain = Setup()
    for field in fields(Setup):
        if field.name not in {"world", "journal"} and getattr(script.setup, field.name) != getattr(plain, field.name):
            yield replace(script, setup=replace(script.setup, **{field.name: getattr(plain, field.name)}))
    for number in (1, 2, 3):
        if script.setup.old > number:
            yield replace(script, setup=replace(script.setup, old=number))
    for index, op in enumerate(ops):
        for plainer in _plainer(op):
            yield replace(script, ops=(*ops[:index], plainer, *ops[index + 1 :]))


def _plainer(op: Op) -> Iterator[Op]:
    if op.at is not None and op.name not in {"crash", "stop"}:
        yield replace(op, at=None)
    if op.at:
        yield from (replace(op, at=at) for at in {0, op.at // 2, op.at - 1} if at < op.at)
    if op.pick:
        yield from (replace(op, pick=pick) for pick in {0, op.pick // 2} if pick < op.pick)
    if op.count > 1:
        yield from (replace(op, count=count) for count in {1, op.count // 2, op.count - 1} if count < op.count)
    if op.seconds and op.name in RUNS:
        yield from (replace(op, seconds=seconds) for seconds in (1.0, 10.0, 100.0) if seconds < op.seconds)
