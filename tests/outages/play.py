"""Plays one outage: a healthy stretch, the fault, its cure, the recovery; and records who said what, when.

What fails is in `scenarios`, what it is played with in `world`.
"""

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import httpx
import msgspec

from tests.e2e.stage import until
from tests.outages.scaling import write_scaled
from tests.outages.world import SOURCES, Held, World, running, world
from tests.support.browser import Sight, launched, open_page
from tests.support.process import Finished
from tests.support.prometheus import Alert

if TYPE_CHECKING:
    from playwright.async_api import FloatRect

WIDTHS: Final = (80, 120)
HEALTHY_SECONDS: Final = 4.0
"""≙ 4 minutes in which no alert may fire."""
SETTLING_SECONDS: Final = 3.0
"""After the recovery, in which no other alert may fire."""
UNDELAYED_SECONDS: Final = 5.0
"""What may lie between a change and its arrival at a sink that is not concerned; a poll takes 1 s, Slack 1 s more."""
SINKS: Final = ("siem", "soc", "disk")
SHOWN_LABELS: Final = ("source", "sink", "name", "component", "reason")

_SHOWN: Final = """() => {
  const rows = document.querySelectorAll("#events tbody tr");
  const last = rows[Math.min(rows.length, 5) - 1] ?? document.body;
  return [innerWidth, Math.ceil(last.getBoundingClientRect().bottom + scrollY) + 8];
}"""
"""The size of the page down to its fifth event."""

Act = Callable[[World], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What fails and how it ends, and what has to be said of it."""

    name: str
    title: str
    done: str
    """What was done, for the docs."""
    ended: str
    """What ended it, for the docs."""
    begin: Act
    end: Act
    lasts_seconds: float = 10.0
    """At least; it lasts until every alert fired that has to."""
    alerts: frozenset[str]
    """All that fire, as `named` names them."""
    quiet_seconds: float = 0.0
    """Before that none fires."""
    verdict: Literal["late", "blocked", ""]
    """At the height; empty: there is none."""
    says: tuple[str, ...]
    """What `relay status` has to say at the height, white space aside."""
    late_sources: frozenset[str] = frozenset()
    late_sinks: frozenset[str] = frozenset()
    small_volume: bool = False
    journal_bytes: int | None = None
    """The limit of the journal; None: the default."""
    kills: bool = False
    """Whether no relay answers at the height."""
    after: Callable[[World], None] | None = None
    """What else has to be so in the end."""


class AlertTimes(msgspec.Struct, kw_only=True):
    """Of one alert, in seconds since the fault began; None: it did not get there."""

    name: str
    severity: str
    pending: float | None = None
    fired: float | None = None
    resolved: float | None = None


class Said(msgspec.Struct, frozen=True):
    """What the verdict was from then on."""

    at: float
    state: str
    headline: str


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What a run left, for the docs. Times are seconds since the fault began."""

    name: str
    ended: float
    recovered: float
    alerts: list[AlertTimes]
    verdicts: list[Said]
    terminal: dict[int, str]
    held: dict[str, int]


@dataclass(kw_only=True)
class Watch:
    """Looks at Prometheus' alerts and at the relay's verdict all the time."""

    world: World
    began: float = 0.0
    alerts: dict[str, AlertTimes] = field(default_factory=dict)
    verdicts: list[Said] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the fault began."""
        return time.monotonic() - self.began

    def fired(self) -> set[str]:
        """Every alert that has fired so far."""
        return {name for name, times in self.alerts.items() if times.fired is not None}

    async def run(self) -> None:
        """For ever."""
        while True:
            self._note(await self.world.prometheus.alerts())
            await self._verdict()
            await asyncio.sleep(0.2)

    def _note(self, alerts: list[Alert]) -> None:
        now = self.now()
        there = {named(alert): alert for alert in alerts}
        for name, alert in there.items():
            new = AlertTimes(name=name, severity=alert.labels.get("severity", ""), pending=now)
            times = self.alerts.setdefault(name, new)
            if alert.state == "firing" and times.fired is None:
                times.fired = now
            times.resolved = None
        for name, times in self.alerts.items():
            if name not in there and times.resolved is None:
                times.resolved = now

    async def _verdict(self) -> None:
        state, headline = "no answer", ""
        with suppress(httpx.HTTPError):
            verdict = (await self.world.relay.status())["verdict"]
            state, headline = verdict["state"], verdict["headline"]
        if not self.verdicts or self.verdicts[-1].state != state:
            self.verdicts.append(Said(self.now(), state, headline))


def named(alert: Alert) -> str:
    """An alert by its name and what it is about."""
    about = [f"{label}={alert.labels[label]}" for label in SHOWN_LABELS if label in alert.labels]
    return f"{alert.name}{{{', '.join(about)}}}" if about else alert.name


async def play(scenario: Scenario, *, picture: Path | None = None) -> Recorded:
    """One outage from its healthy stretch to its end, with a picture of the status page at its height.

    Raises AssertionError for what is not as it has to be.
    """
    with tempfile.TemporaryDirectory(prefix=f"outage-{scenario.name}-", ignore_cleanup_errors=True) as folder:
        rules = write_scaled(Path(folder) / "alerts.yaml")
        async with world(
            Path(folder) / "relay",
            rules=rules,
            small_volume=scenario.small_volume,
            journal_bytes=scenario.journal_bytes,
        ) as played:
            if picture is None:
                return await _played(scenario, played)
            async with launched() as browser, open_page(browser, played.page_url) as sight:
                return await _played(scenario, played, partial(_shoot, scenario, sight, picture))


async def _shoot(scenario: Scenario, sight: Sight, picture: Path) -> None:
    """A page that was open before the relay went stays as it is, and says so; the last events are cut off."""
    if scenario.kills:
        await sight.page.locator("#stale").wait_for(state="visible")
    else:
        await sight.page.reload()
    width, height = await sight.page.evaluate(_SHOWN)
    clip: FloatRect = {"x": 0, "y": 0, "width": width, "height": height}
    await sight.page.screenshot(path=picture, full_page=True, animations="disabled", clip=clip)
    pngquant = ["pngquant", "--force", "--strip", "--speed=1", "--output", str(picture), "64", str(picture)]
    await asyncio.to_thread(subprocess.run, pngquant, check=True)


async def _played(scenario: Scenario, played: World, shoot: Callable[[], Awaitable[None]] | None = None) -> Recorded:
    watch = Watch(world=played, began=time.monotonic())
    async with running(watch.run()) as watching:
        await asyncio.sleep(HEALTHY_SECONDS)
        assert watch.fired() == set(), f"fired while all was well: {watch.fired()}"
        watch.alerts.clear()
        watch.verdicts.clear()
        watch.began = time.monotonic()
        await scenario.begin(played)
        await _height(scenario, watch, watching)
        shown = await asyncio.gather(*(played.command("status", columns=columns) for columns in WIDTHS))
        terminal = dict(zip(WIDTHS, map(said_by, shown), strict=True))
        if shoot is not None:
            await shoot()
        _look(scenario, watch, terminal[120])
        slow = await _slow(scenario, played)
        assert not slow, f"{slow} were delayed, and are not concerned"
        ended = watch.now()
        await scenario.end(played)
        played.changes.begin()
        await until(lambda: _recovered(watch, watching), "data flows again and no alert fires", within=120)
        recovered = watch.now()
        await asyncio.sleep(SETTLING_SECONDS)
        assert watch.fired() == scenario.alerts, f"fired: {watch.fired()}; had to: {scenario.alerts}"
        first = min(times.fired for times in watch.alerts.values() if times.fired is not None)
        assert first >= scenario.quiet_seconds, f"{watch.fired()} fired after {first:.1f} s"
        played.changes.rest()
        await asyncio.sleep(2)
        await until(played.drained, "the rest was delivered")
        if scenario.after is not None:
            scenario.after(played)
    held = await played.held()
    assert await played.relay.stop() == 0
    return _recorded(scenario, watch, ended=ended, recovered=recovered, terminal=terminal, held=held)


async def _height(scenario: Scenario, watch: Watch, watching: asyncio.Task[None]) -> None:
    """Waits until it has lasted, and every alert has fired that has to."""

    async def all_fired() -> bool:
        _require_alive(watching)
        return watch.now() >= scenario.lasts_seconds and watch.fired() >= scenario.alerts

    try:
        await until(all_fired, "every alert fires")
    except TimeoutError as exc:
        raise AssertionError(f"fired: {watch.fired()}; had to: {scenario.alerts}") from exc


async def _recovered(watch: Watch, watching: asyncio.Task[None]) -> bool:
    _require_alive(watching)
    well = all(times.resolved is not None for times in watch.alerts.values() if times.fired is not None)
    return well and await watch.world.flows()


def _require_alive(watching: asyncio.Task[None]) -> None:
    if watching.done():
        watching.result()


def _look(scenario: Scenario, watch: Watch, shown: str) -> None:
    """Whether verdict and terminal say at the height what they have to."""
    state = watch.verdicts[-1].state
    assert state == (scenario.verdict or "no answer"), watch.verdicts
    said = " ".join(shown.split())
    for words in scenario.says:
        assert words in said, f"not said: {words!r}\n{shown}"


async def _slow(scenario: Scenario, played: World) -> list[str]:
    """The sinks that the outage does not concern, and that do not have what the other sources showed of late."""
    if scenario.kills:
        return []
    return await played.slower_than(
        UNDELAYED_SECONDS,
        sources=[source for source in SOURCES if source not in scenario.late_sources],
        sinks=[sink for sink in SINKS if sink not in scenario.late_sinks],
    )


def said_by(command: Finished) -> str:
    """What a person reads, without spaces that nobody sees."""
    lines = (command.stdout + command.stderr).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"


def _recorded(
    scenario: Scenario, watch: Watch, *, ended: float, recovered: float, terminal: dict[int, str], held: Held
) -> Recorded:
    return Recorded(
        name=scenario.name,
        ended=round(ended, 1),
        recovered=round(recovered, 1),
        alerts=list(watch.alerts.values()),
        verdicts=watch.verdicts,
        terminal=terminal,
        held=msgspec.to_builtins(held),
    )
