"""Simulator and relay together, through a short story with faults; what arrived is counted at the far side.

The relay is a real process with a configuration of its own; the demo sees no more of it than its user would.
"""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from relay.clock import Clock, SystemClock
from relay.demo.arrivals import FarSide
from relay.demo.chat import compare_posts
from relay.demo.checker import Space, compare
from relay.demo.process import RelayProcess, peak_memory_bytes
from relay.demo.report import summarize
from relay.demo.screen import Screen
from relay.demo.stage import JOURNAL_BYTES, Stage, stage
from relay.demo.story import Story, set_the_scene
from relay.simulator import Simulator, serve
from relay.terminal import DemoSummary, make_console, print_demo_summary

__all__ = ["demo"]

SEED = 1
MEMORY_BYTES = 384 << 20
"""What the relay may take: its own 110 MiB, and room for the pages in flight. Measured with the demo's own at fork."""


async def demo(*, kafka: str | None = None, keep: Path | None = None) -> int:
    """Tells the story in less than a minute and returns the exit code: 0 only if every guarantee held.

    `kafka` are the bootstrap servers of a broker to go through as well; `keep` is a folder, new or empty, for journal,
    events and log. Raises ConfigError. SIGINT and SIGTERM stop it; whatever ends it, no process is left behind.
    """
    telling = asyncio.create_task(_demo(kafka, keep), name="tell the story")
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        telling.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return await telling
    except asyncio.CancelledError:
        if not interrupted:
            raise
        make_console().print("The demo was stopped before its end; nothing was counted.", highlight=False)
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _demo(kafka: str | None, keep: Path | None) -> int:
    clock, console = SystemClock(), make_console()
    screen = Screen(console, clock)
    async with stage(kafka, keep, clock) as set_up:
        screen.headline("A simulated ESET Connect, the real relay, and faults on purpose: about a minute.")
        summary = await _play(set_up, screen, clock)
    screen.blank()
    return print_demo_summary(summary, console)


async def _play(set_up: Stage, screen: Screen, clock: Clock) -> DemoSummary:
    simulator = Simulator(clock, seed=SEED)
    set_the_scene(simulator)
    async with serve(simulator, control_enabled=False) as served:
        relay = RelayProcess(set_up.folder, set_up.configuration(served))
        story = Story(simulator, relay, set_up, screen, clock)
        try:
            await _tell(story, set_up.sides, screen)
        finally:
            await relay.kill()
    space = Space(
        journal_bytes=relay.journal_bytes(),
        journal_limit_bytes=JOURNAL_BYTES,
        memory_bytes=peak_memory_bytes(),
        memory_limit_bytes=MEMORY_BYTES,
    )
    told = story.told
    owing = story.owing()
    comparisons = [
        compare(
            side.name,
            owing,
            side.arrivals,
            live_since=told.live_since,
            ordeals=told.ordeals,
            may_repeat=side.may_repeat,
        )
        for side in set_up.sides
    ]
    channel, note = compare_posts(set_up.channel.name, story.changes(), set_up.channel.posts)
    notes = {side.name: side.note for side in set_up.sides} | {channel.sink: note}
    return summarize(told, [*comparisons, channel], notes=notes, space=space, seconds=screen.seconds)


async def _tell(story: Story, sides: Sequence[FarSide], screen: Screen) -> None:
    """Follows the far sides while the story goes on, and reads them to their ends once the relay has stopped."""
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(side.follow(), name=f"follow {side.name}") for side in sides]
        watching.append(group.create_task(screen.show(sides[0].arrivals), name="show events"))
        await story.tell()
        for task in watching:
            task.cancel()
    try:
        for side in sides:
            await side.finish()
    except TimeoutError as exc:
        story.told.stalled = story.told.stalled or f"what arrived could not be counted: {exc}"
