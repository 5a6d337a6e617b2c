"""Killed again and again at random instants, the relay still carries every version exactly once, in order."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.clock import SECOND
from tests.e2e.stage import SOURCE, Stage, report, stage, until
from tests.e2e.unrest import Polls, Unrest
from tests.e2e.verdict import Arrival, from_line, from_record, judge
from tests.support.kafka import Kafka, committed, fresh
from tests.support.process import Child

SHARE_IN_BACKFILL = 0.4
LONGEST_LIFE_SECONDS = 3.0
REQUESTS_PER_SECOND = 16
"""Half of them are the backfill's: with `page_size` below, it outlasts the lives that are to end within it."""
PAGE = "a page"
INTERESTING = ("sink opened", "poll completed", "batch delivered", "sweep completed")
PACE_SECONDS = 3.5
"""What one life among the live changes takes, its start included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When to kill: so long after the start, or earlier: `plus_seconds` after the `nth` line or page since then."""

    seconds: float = LONGEST_LIFE_SECONDS
    after: str = ""
    nth: int = 1
    plus_seconds: float = 0.0

    async def come(self, relay: Child, polls: Polls) -> bool:
        """Waits for it; True when it was the line or the page."""
        try:
            async with asyncio.timeout(self.seconds):
                if not self.after:
                    await asyncio.Event().wait()
                await (polls.answered(self.nth) if self.after == PAGE else self._line(relay))
                await asyncio.sleep(self.plus_seconds)
        except TimeoutError:
            return False
        return True

    async def _line(self, relay: Child) -> None:
        at = 0
        for _ in range(self.nth):
            found = await relay.logged(self.after, after=at)
            at = relay.log.index(found, at) + 1


@dataclass(slots=True, kw_only=True)
class Story:
    """What was done. `stdout` is what each life wrote there."""

    kills: int = 0
    in_backfill: int = 0
    on_cue: int = 0
    seconds: float = 0.0
    exit_code: int = -1
    stdout: list[bytes]


def moments(rng: random.Random, kills: int) -> list[Moment]:
    """A third at any instant, a third after a line, a third while a page is being committed or delivered."""
    drawn = []
    for _ in range(kills):
        kind = rng.randrange(3)
        if kind == 0:
            moment = Moment(seconds=rng.uniform(0.05, LONGEST_LIFE_SECONDS))
        elif kind == 1:
            line, plus = rng.choice(INTERESTING), rng.choice((0.0, rng.uniform(0, 0.05)))
            moment = Moment(after=line, nth=rng.randrange(1, 4), plus_seconds=plus)
        else:
            moment = Moment(after=PAGE, nth=rng.randrange(1, 16), plus_seconds=rng.uniform(0, 0.06))
        drawn.append(moment)
    return drawn


async def kill_story(set_up: Stage, *, changes: int, kills: int, seed: int) -> Story:
    """Backfill, then live changes; SIGKILL and start again all the while; at last SIGTERM."""
    rng = random.Random(seed)
    planned = moments(rng, kills)
    polls = Polls(set_up.simulator)
    unrest = Unrest(set_up, polls, random.Random(seed + 1))
    story = Story(stdout=[])
    early = round(kills * SHARE_IN_BACKFILL)
    few = changes // 10
    read = False
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        changing = [group.create_task(unrest.spread(few, over_seconds=early * PACE_SECONDS))]
        for number, moment in enumerate(planned):
            async with set_up.relay() as relay:
                await relay.started()
                polls.new_life()
                if number == early:
                    await until(partial(_has_read_the_past, relay), "the past was read", within=120)
                    unrest.stir_the_past()
                    late = unrest.spread(changes - few, over_seconds=(kills - early) * PACE_SECONDS)
                    changing.append(group.create_task(late))
                story.on_cue += await moment.come(relay, polls)
                await relay.kill()
                story.kills += 1
                read = read or bool(relay.events("backfill completed"))
                story.in_backfill += not read
            story.stdout.append(bytes(relay.stdout))
        async with set_up.relay() as relay:
            await relay.started()
            polls.new_life()
            await asyncio.wait(changing)
            await until(lambda: _has_read(relay, unrest), "everything was read")
            story.exit_code = await relay.stop()
        story.stdout.append(bytes(relay.stdout))
    story.seconds = time.monotonic() - began
    assert unrest.changes == changes
    return story


async def _has_read_the_past(relay: Child) -> bool:
    """As the relay says; one that has not got so far as to say it is asked in vain."""
    try:
        return bool((await relay.status())["sources"][0]["backfill"]["state"] == "done")
    except httpx.HTTPError:
        return False


async def _has_read(relay: Child, unrest: Unrest) -> bool:
    """Read and committed, not yet delivered: that is for the stop to do."""
    up_to = await relay.metric("relay_complete_up_to_timestamp_seconds", source=SOURCE)
    return up_to > unrest.last_change / SECOND


async def kafka_story(
    kafka: Kafka, folder: Path, *, incidents: int, changes: int, kills: int, page_size: int, seed: int
) -> None:
    topic = fresh("kills")
    async with stage(folder, incidents=incidents, seed=seed) as set_up:
        _configure(set_up, {"siem": {"type": "kafka", "topic": topic}}, page_size, kafka=kafka.bootstrap)
        story = await kill_story(set_up, changes=changes, kills=kills, seed=seed)
        history = set_up.tenant.history
    records = await asyncio.to_thread(committed, kafka.bootstrap, topic)
    tried = await asyncio.to_thread(committed, kafka.bootstrap, topic, isolation="read_uncommitted")
    verdict = judge(history, [from_record(record) for record in records])
    report(
        "SIGKILL, Kafka",
        incidents=incidents,
        changes=changes,
        sigkills=story.kills,
        sigkills_in_the_backfill=story.in_backfill,
        sigkills_right_after_a_line_or_page=story.on_cue,
        versions=verdict.versions,
        records=verdict.arrivals,
        missing=verdict.missing,
        duplicates=verdict.doubled,
        gaps=verdict.gapped,
        out_of_order=verdict.disordered,
        foreign=verdict.foreign,
        aborted_records=len(tried) - len(records),
        longest_chain=max(int(record.headers["ce_sequence"]) for record in records),
        exit_code=story.exit_code,
        seconds=round(story.seconds, 1),
    )
    assert verdict.versions == incidents + changes
    assert verdict.exactly_once_in_order, verdict
    assert story.kills == kills
    assert story.exit_code == 0


@pytest.mark.kafka
async def test_kafka_gets_every_version_exactly_once_through_4_kills(kafka: Kafka, tmp_path: Path) -> None:
    await kafka_story(kafka, tmp_path, incidents=5000, changes=300, kills=4, page_size=100, seed=4)


@pytest.mark.kafka
@pytest.mark.prove
@pytest.mark.timeout(1800)
async def test_kafka_gets_every_version_exactly_once_through_100_kills(kafka: Kafka, tmp_path: Path) -> None:
    await kafka_story(kafka, tmp_path, incidents=50_000, changes=5000, kills=100, page_size=100, seed=20)


async def test_a_file_gets_no_repeat_and_no_torn_line_and_stdout_misses_nothing_through_5_kills(tmp_path: Path) -> None:
    sinks = {"disk": {"type": "file", "path": "events.ndjson"}, "out": {"type": "stdout"}}
    async with stage(tmp_path, incidents=2000, seed=5) as set_up:
        _configure(set_up, sinks, 40)
        story = await kill_story(set_up, changes=200, kills=5, seed=5)
        history = set_up.tenant.history
    file = (tmp_path / "events.ndjson").read_bytes()
    assert file.endswith(b"\n")
    on_disk = judge(history, [from_line(line) for line in file.splitlines()])
    written = [arrival for life in story.stdout for arrival in _whole_lines(life)]
    read = judge(history, list({arrival.id: arrival for arrival in written}.values()))
    report(
        "SIGKILL, file and stdout",
        incidents=2000,
        changes=200,
        sigkills=story.kills,
        versions=on_disk.versions,
        lines_in_the_file=on_disk.arrivals,
        missing=on_disk.missing,
        duplicates=on_disk.doubled,
        gaps=on_disk.gapped,
        stdout_missing=read.missing,
        stdout_repeats=len(written) - read.arrivals,
        seconds=round(story.seconds, 1),
    )
    assert on_disk.exactly_once_in_order, on_disk
    assert read.exactly_once_in_order, read
    assert story.exit_code == 0


def _configure(
    set_up: Stage, sinks: Mapping[str, Mapping[str, Any]], page_size: int, *, kafka: str | None = None
) -> None:
    top: dict[str, Any] = {"api": {"requests_per_second": REQUESTS_PER_SECOND}}
    if kafka is not None:
        top |= {"kafka": {"bootstrap.servers": kafka}, "kafka_prefix": fresh("relay")}
    set_up.configure(sinks, source={"page_size": page_size}, **top)


def _whole_lines(text: bytes) -> list[Arrival]:
    """What a kill cut off at the end was never acknowledged."""
    return [from_line(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
