"""Turns what was counted at the far sides into the summary that is printed. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from relay.demo.checker import GUARANTEES, Arrival, Comparison, Owed, Space, kept, percentile
from relay.demo.told import Hardship, Told
from relay.terminal import DemoFault, DemoSink, DemoSummary
from relay.words import count, number, size

NAMED_EVENTS: Final = 3
"""How many of the events that something is wrong with are named."""

_AFTER_SUCCESS: Final = ("To run it against ESET:", ("relay check", "relay run"))
_AFTER_FAILURE: Final = ("To look into it, keep events and log:", ("relay demo --keep demo",))

Fact = tuple[str, str]


def summarize(
    told: Told,
    comparisons: Sequence[Comparison],
    *,
    notes: Mapping[str, str],
    space: Space | None,
    seconds: float,
) -> DemoSummary:
    """The summary, red unless every guarantee held. `notes` say how each sink was counted."""
    held = kept(comparisons, told_to_the_end=told.to_the_end, ordeals=told.ordeals, burials=told.burials, space=space)
    next_step, commands = _AFTER_SUCCESS if all(held.values()) else _AFTER_FAILURE
    return DemoSummary(
        seconds=seconds,
        faults=[_fault(hardship, same_ids=held["named"]) for hardship in told.hardships],
        sinks=[
            DemoSink(
                name=one.sink,
                owed=one.owed,
                arrived=one.arrived,
                missing=len(one.missing),
                repeats=len(one.repeats),
                note=notes[one.sink],
            )
            for one in comparisons
        ],
        facts=[*_figures(told, comparisons, space), *_problems(told, comparisons, held)],
        guarantees_held=sum(held.values()),
        guarantees=len(GUARANTEES),
        next_step=next_step,
        commands=commands,
    )


def _fault(hardship: Hardship, *, same_ids: bool) -> DemoFault:
    came_back = hardship.killed and hardship.ended is not None
    reaction = f"{hardship.reaction} with the same ids" if came_back and same_ids else hardship.reaction
    return DemoFault(at_seconds=hardship.at_seconds, fault=hardship.fault, reaction=reaction)


def _figures(told: Told, comparisons: Sequence[Comparison], space: Space | None) -> Iterator[Fact]:
    live = max(one.owed for one in comparisons) - told.past
    yield "incidents", f"{number(told.past)} read by backfill, {count(live, 'change')} while it ran"
    if not any(one.misplaced for one in comparisons):
        yield "order", "every incident arrived in the order of its versions, in every sink"
    yield from _lag(told, comparisons)
    back = sum(burial.came_back for burial in told.burials)
    if back:
        yield "dead", f"{back}: refused by the webhook with 422, sent again with `redrive`, arrived"
    if space is not None:
        memory = f"{space.memory_bytes / (1 << 20):.0f} of {space.memory_limit_bytes / (1 << 20):.0f} MiB"
        yield "space", f"journal {size(space.journal_bytes, space.journal_limit_bytes)}, memory at most {memory}"
    if told.exit_code is not None:
        yield "stop", f"SIGTERM ended it in {told.stop_seconds:.1f} s with exit code {told.exit_code}"


def _lag(told: Told, comparisons: Sequence[Comparison]) -> Iterator[Fact]:
    """What was changed amid a fault has to wait for its end: the worst case counts it, the usual one does not."""
    lags = [(one.sink, since, lag) for one in comparisons for since, lag in one.lags]
    usual = [lag for sink, since, lag in lags if not any(each.covers(since, sink) for each in told.hardships)]
    if usual:
        half, most = f"{percentile(usual, 0.5):.1f} s", f"{percentile(usual, 0.99):.1f} s"
        worst = f"{max(lag for _, _, lag in lags):.1f} s amid a fault"
        yield "lag", f"half of the changes within {half}, 99 % within {most} (a poll each second); at worst {worst}"


def _problems(told: Told, comparisons: Sequence[Comparison], held: Mapping[str, bool]) -> Iterator[Fact]:
    """What a person needs to look further."""
    if told.stalled:
        yield "broken off", told.stalled
    broken = [name for name in GUARANTEES if not held[name]]
    if broken:
        yield "broken", ", ".join(broken)
    for one in comparisons:
        yield from _named(one.sink, "missing", one.missing)
        yield from _named(one.sink, "repeated", () if one.may_repeat else one.repeats)
        yield from _named(one.sink, "unknown", one.unknown)
        yield from _named(one.sink, "altered", one.altered)
        yield from _named(one.sink, "misplaced", one.misplaced)
        yield from _named(one.sink, "held up", one.delayed)


def _named(sink: str, problem: str, events: Sequence[Owed | Arrival]) -> Iterator[Fact]:
    if events:
        first = "; ".join(f"{one.source} {one.uuid} {one.sequence} {one.kind}" for one in events[:NAMED_EVENTS])
        left = len(events) - NAMED_EVENTS
        yield problem, f"{sink}: {first}{f'; and {number(left)} more' if left > 0 else ''}"
