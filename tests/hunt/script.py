"""A schedule as plain data: how the world is set up, and what happens in it. Drawn from a seed, printed, read back.

An operation with `at` waits for the next run (a poll, a wait …) and happens at that point of it: points are counted
over every request that is sent, every answer that arrives, every job of the disk and every batch of a sink.
"""

import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

RUNS: Final = frozenset({"poll", "backfill", "sweep", "wait"})
"""Operations during which time passes; all others happen at one instant."""
FAULTS: Final = (
    "503", "429", "429+", "429 date", "202", "lost", "504", "401", "400", "403", "500 html", "200 html", "reset",
    "close", "truncate", "latency", "repeat_page", "short_page", "loop_token", "refuse_filter", "refuse_z",
    "refuse_uuid_order", "ignore_filter", "ignore_order", "truncate_times",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What holds for a whole schedule. The defaults are the plainest world."""

    world: int = 1
    """The seed of everything that is drawn while the schedule runs: contents, durations, jitter."""
    old: int = 0
    """So many incidents were there before, created over the last `spread` seconds."""
    spread: float = 3600.0
    start_from: str = "all"
    """all, now, or seconds before the beginning."""
    page_size: int = 1000
    lookback: float = 300.0
    enrich: bool = False
    requests_per_second: float = 1000.0
    slow: bool = False
    """Requests and the disk take seconds rather than milliseconds."""
    sinks: str = "plain"
    """plain, atomic, or both; on Kafka also inline (written with the poll), or all."""
    batch: int = 1000
    digits: int = 6
    offset_minutes: int = 0
    new_update_time: str = "created"
    missing_time: str = "absent"
    integers: str = "numbers"
    details: str = "absent"
    trailing_empty_page: bool = False
    last_page: str = "empty_token"
    default_order: str = ""
    date_header: bool = True
    date_skew: float = 0.0
    local_skew: float = 0.0
    token_seconds: float = 3600.0
    limit: float = 0.0
    """The server's own requests per second; 0: none."""
    journal: str = "sqlite"
    """sqlite, or kafka."""
    partitions: int = 1
    """Of the state, on Kafka."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One thing that happens. `pick` says to which incidents, modulo how many there are."""

    name: str
    at: int | None = None
    pick: int = 0
    count: int = 1
    seconds: float = 0.0
    mode: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A schedule."""

    setup: Setup
    ops: tuple[Op, ...]


# -- text -------------------------------------------------------------------------------------------------------------


def written(script: Script) -> str:
    """A script as text that `read` understands: one line for the world, one for each operation."""
    lines = [shlex.join(["world", *_differing(script.setup, Setup())])]
    for op in script.ops:
        plain = Op(name=op.name)
        when = [] if op.at is None else [f"@{op.at}"]
        lines.append(shlex.join([*when, op.name, *_differing(replace(op, at=None), plain)]))
    return "\n".join(lines)


def read(text: str) -> Script:
    """The script of a text. Raises ValueError, TypeError."""
    setup = Setup()
    ops: list[Op] = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "world":
            setup = replace(setup, **_values(words[1:], Setup()))
            continue
        at = int(words.pop(0)[1:]) if words[0].startswith("@") else None
        ops.append(replace(Op(name=words[0], at=at), **_values(words[1:], Op(name=""))))
    return Script(setup=setup, ops=tuple(ops))


def _differing(one: Any, plain: Any) -> list[str]:
    names = [field.name for field in fields(one)]
    return [f"{name}={getattr(one, name)}" for name in names if getattr(one, name) != getattr(plain, name)]


def _values(words: list[str], like: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        kind = type(getattr(like, name))
        values[name] = text == "True" if kind is bool else kind(text)
    return values


# -- drawing ----------------------------------------------------------------------------------------------------------


def drawn(seed: int, *, sweep: bool, journal: str = "sqlite") -> Script:
    """The schedule of a seed. `sweep`: the poller at hand can sweep."""
    rng = random.Random(f"hunt/{seed}" if journal == "sqlite" else f"hunt/{journal}/{seed}")
    setup = _setup(rng)
    # A schedule is about a few things at a time: with everything at once, nothing ever gets far.
    themes = rng.sample(sorted(_THEMES), rng.choice((1, 2, 2, 3, 4)))
    known = dict(_THEMES)
    if journal == "kafka":
        sinks = rng.choice(("plain", "atomic", "both", "inline", "all"))
        setup = replace(setup, journal=journal, sinks=sinks, partitions=rng.choice((1, 2, 3)))
        themes = themes[: rng.choice((0, 1, 1, 2))] + rng.sample(sorted(_KAFKA_THEMES), rng.choice((1, 1, 2, 3)))
        known |= _KAFKA_THEMES
    palette = [*_EVERYDAY, *(name for theme in themes for name in known[theme])]
    ops: list[Op] = []
    for _round in range(rng.choice((1, 2, 2, 3, 3, 4, 5))):
        changes = rng.choice((0, 1, 1, 2, 3, 5))
        ops.extend(_op(rng, rng.choice(palette)) for _ in range(changes))
        ops.extend(_run(rng, sweep=sweep, sweeping="gone" in themes or "back" in themes))
    return Script(setup=setup, ops=tuple(ops))


_EVERYDAY: Final = ("create", "create", "never", "update", "update", "tie", "tie", "close", "reopen")
_THEMES: Final[dict[str, tuple[str, ...]]] = {
    "silent": ("silent", "silent", "silent", "untracked"),
    "late": ("late", "late", "beyond"),
    "gone": ("delete", "delete", "restore"),
    "back": ("regress", "regress", "silent"),
    "clock": ("local", "server", "date"),
    "fault": ("fault", "fault", "fault", "clear"),
    "lies": ("lie", "lie", "clear"),
    "crash": ("crash", "crash", "power", "stop"),
    "crash at a commit": ("commit", "commit", "commit", "power", "disk before"),
    "sink": ("sink down", "sink unsure", "refuse", "crash"),
    "disk": ("disk before", "disk after"),
    "busy": ("create", "update", "tie", "close", "tie"),
    "bad": ("bad",),
}
_KAFKA_THEMES: Final[dict[str, tuple[str, ...]]] = {
    "doubt": ("broker", "broker", "broker", "sending"),
    "takeover": ("fence", "session", "member", "fence", "session"),
    "cache": ("lost cache", "power", "broken cache", "crash", "compact"),
    "sending": ("sending", "sending", "crash", "commit", "fence"),
    "outage": ("brokers", "crash", "broker"),
    "refused": ("refuse", "refuse", "broker", "commit"),
}
_LIES: Final = (
    "repeat_page", "short_page", "loop_token", "refuse_filter", "refuse_z", "refuse_uuid_order", "ignore_filter",
    "ignore_order", "truncate_times",
)  # fmt: skip
_HONEST: Final = tuple(name for name in FAULTS if name not in _LIES)
_WAITS: Final = (0.0, 0.001, 0.2, 0.9, 1.0, 3.0, 10.0, 30.0, 61.0, 120.0, 299.0, 400.0, 900.0)


def _setup(rng: random.Random) -> Setup:
    odd = rng.random() < 0.4
    start_from = "all" if rng.random() < 0.85 else rng.choice(("now", str(rng.choice((0, 60, 600, 3000)))))
    setup = Setup(
        world=rng.randrange(1_000_000),
        old=rng.choice((0, 0, 1, 2, 3, 5, 9)),
        spread=rng.choice((0.0, 2.0, 100.0, 3600.0, 86_400.0)),
        start_from=start_from,
        page_size=rng.choice((1, 2, 3, 3, 4, 5, 6, 10, 10, 1000)),
        lookback=rng.choice((0.0, 10.0, 60.0, 60.0, 300.0, 300.0)),
        enrich=rng.random() < 0.1,
        requests_per_second=rng.choice((8.0, 1000.0)),
        slow=rng.random() < 0.15,
        sinks=rng.choice(("plain", "atomic", "both")),
        batch=rng.choice((1, 2, 5, 1000)),
    )
    if not odd:
        return setup
    return replace(
        setup,
        digits=rng.choice((0, 1, 3, 6, 7, 9)),
        offset_minutes=rng.choice((0, 0, 120, -300)),
        new_update_time=rng.choice(("created", "missing", "mixed")),
        missing_time=rng.choice(("absent", "null", "empty")),
        integers=rng.choice(("numbers", "strings", "mixed")),
        details=rng.choice(("absent", "empty")),
        trailing_empty_page=rng.random() < 0.4,
        last_page=rng.choice(("empty_token", "no_token", "mixed")),
        default_order=rng.choice(("", "uuid", "update_time desc", "create_time desc")),
        date_header=rng.random() < 0.7,
        date_skew=rng.choice((0.0, 0.0, 2.0, -2.0, 50.0, -50.0, -4000.0)),
        local_skew=rng.choice((0.0, 0.0, 1.0, -1.0, 40.0, -40.0, -4000.0)),
        token_seconds=rng.choice((3600.0, 600.0, 90.0)),
        limit=rng.choice((0.0, 0.0, 0.0, 3.0)),
    )


def _run(rng: random.Random, *, sweep: bool, sweeping: bool) -> list[Op]:
    """What lets time pass, mostly a poll; at times with the past or a sweep beside it."""
    ops = [Op(name="wait", seconds=seconds)] if (seconds := rng.choice(_WAITS)) else []
    if rng.random() < 0.45:
        ops.append(Op(name="backfill"))
    if sweep and rng.random() < (0.5 if sweeping else 0.15):
        ops.append(Op(name="sweep"))
    return [*ops, Op(name="poll")]


def _op(rng: random.Random, name: str) -> Op:
    at = rng.randrange(rng.choice((6, 20, 60))) if rng.random() < 0.55 or name in _ARMED else None
    op = Op(name=name, at=at, pick=rng.randrange(20))
    return replace(op, **{field: rng.choice(values) for field, values in _CHOICES.get(name, {}).items()})


_ARMED: Final = frozenset({"crash", "power", "stop", "lost cache"})
_CHOICES: Final[dict[str, dict[str, Sequence[Any]]]] = {
    "create": {"count": (1, 1, 1, 2, 4)},
    "never": {"count": (1, 1, 1, 2, 4)},
    "tie": {"name": ("update",), "count": (1, 2, 3, 4, 6, 9)},
    "close": {"count": (1, 2, 3, 4, 6, 9)},
    "delete": {"count": (1, 1, 2, 5)},
    "late": {"seconds": (1.0, 5.0, 20.0, 50.0, 70.0, 200.0, 290.0)},
    "beyond": {"name": ("late",), "seconds": (310.0, 1000.0, 5000.0)},
    "regress": {"seconds": (0.001, 1.0, 30.0, 500.0)},
    "silent": {"mode": "AAB"},
    "local": {"seconds": (-3600.0, -100.0, -20.0, -1.0, 1.0, 20.0, 100.0, 3600.0)},
    "server": {"seconds": (-3600.0, -100.0, -20.0, -1.0, 1.0, 20.0, 100.0, 3600.0)},
    "date": {"seconds": (-3600.0, -100.0, -20.0, -1.0, 1.0, 20.0, 100.0, 3600.0)},
    "fault": {"mode": _HONEST, "count": (1, 1, 2, 3, 6), "seconds": (0.0, 0.0, 5.0, 100.0, 1000.0)},
    "lie": {"name": ("fault",), "mode": _LIES, "count": (1, 1, 2, 3, 6), "seconds": (0.0, 0.0, 5.0, 100.0, 1000.0)},
    "commit": {"name": ("crash",), "mode": ("commit",), "count": (1, 1, 2, 3, 4, 5, 6, 8)},
    "power": {"name": ("crash",), "mode": ("power",)},
    "sink down": {"name": ("sink",), "mode": ("down",), "count": (1, 1, 2, 4)},
    "sink unsure": {"name": ("sink",), "mode": ("unsure",), "count": (1, 1, 2, 4)},
    "refuse": {"name": ("sink",), "mode": ("refuse",), "count": (1, 1, 2, 4)},
    "broker": {"mode": ("lost", "kept", "late", "open", "fenced", "slow"), "count": (1, 1, 2, 3)},
    "brokers": {"seconds": (0.5, 5.0, 60.0, 400.0)},
    "fence": {"count": (1, 1, 2, 4)},
    "session": {"seconds": (0.01, 1.0, 10.0, 100.0)},
    "member": {"seconds": (0.5, 5.0, 30.0, 200.0, 1000.0)},
    "sending": {"mode": ("late", "open")},
    "lost cache": {"name": ("crash",), "mode": ("cache",)},
    "broken cache": {"name": ("cache",), "count": (1, 1, 2)},
    "disk before": {"name": ("disk",), "mode": ("before",), "count": (1, 1, 2, 5)},
    "disk after": {"name": ("disk",), "mode": ("after",), "count": (1, 1, 2, 5)},
}
