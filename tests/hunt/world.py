"""One schedule, played: simulator, network, relay, disk and sinks in one event loop whose time is virtual.

A crash happens at a point: everything that the process held is dropped, and what follows is made anew from what the
home of the journal kept: its file, or its topics and a cache.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, cast

import httpx
import msgspec

from relay.clock import SECOND, Instant
from relay.delivery import Courier
from relay.errors import JournalError, JournalUnavailable, LeaseLost, RelayError, SourceError
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import EsetClient
from relay.journal import Component, Journal, Progress, SinkLease, SourceLease
from relay.journal.sqlite import SqliteJournal
from relay.metrics import SinkMetrics
from relay.poller import Poller, StartFrom
from relay.simulator import Fault, Settings, Simulator, Tenant
from relay.sinks import Delivery
from tests.hunt.checker import (
    Chronicle,
    Ledger,
    Violation,
    Window,
    require_complete,
    require_delivered,
    require_true,
    require_whole,
)
from tests.hunt.far import API, TOKEN_URL, Asked, Line, MemorySink, Shore, Start, Watched
from tests.hunt.homes import INLINE, KAFKA_OPS, Deaf, FileHome, Home, KafkaHome, nothing, require_nothing_by_hand
from tests.hunt.script import Op, Script, Setup
from tests.hunt.virtual import Crashed, Disk, Hand, Stuck, VirtualLoop
from tests.support.clock import START

SOURCE: Final = "acme"
CAN_SWEEP: Final = hasattr(Poller, "sweep")
MAX_POINTS: Final = 20_000
"""More than that in one schedule: something runs in circles."""
HAND_OVER_SECONDS: Final = 4.0
"""How long what is on its way may take when a task is somebody else's."""
HELD_SECONDS: Final = 60.0
"""How long a poll waits for its source to be held."""
_SINKS: Final = {"both": ("plain", "atomic"), "all": ("plain", "atomic", INLINE)}


class _Observer(Deaf):
    """Hears what the poller claims to be complete."""

    def __init__(self, claimed: Callable[[Instant], None]) -> None:
        self.complete_up_to = claimed


@dataclass(slots=True, kw_only=True)
class Part:
    """One poll as the world sees it, from its first request to its claim. `bound`: no later may the claim be."""

    resumed: bool
    begun: int | None = None
    start: Start | None = None
    bound: Instant | None = None
    high: Instant | None = None
    lied: bool = False
    truncating: bool = False


def _joined(before: Part, part: Part) -> Part:
    """A poll in pieces: it began with the first, and what was met in any counts."""
    highs = [one.high for one in (before, part) if one.high is not None]
    return Part(
        resumed=part.resumed,
        begun=before.begun,
        start=before.start or part.start,
        bound=before.bound if before.bound is not None else part.bound,
        high=min(highs, default=None),
        lied=before.lied or part.lied,
        truncating=before.truncating or part.truncating,
    )


@dataclass(slots=True, kw_only=True)
class Past:
    """The reading of the past, or a sweep, as the world sees it."""

    begun: int | None = None
    lied: bool = False


@dataclass(slots=True, kw_only=True)
class Post:
    """A task of the relay that the process holds, and what runs for it; a poll stands first."""

    epoch: int
    lease: SourceLease | SinkLease
    poller: Poller | None = None
    courier: Courier | None = None
    running: "list[asyncio.Task[Any]]" = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Process:
    """Everything that a crash forgets."""

    journal: Journal
    posts: dict[tuple[Component, str], Post] = field(default_factory=dict)
    tasks: dict[str, "asyncio.Task[Any]"] = field(default_factory=dict)
    leaving: "set[asyncio.Task[Any]]" = field(default_factory=set)

    @property
    def source(self) -> Post | None:
        """Its source, while it holds that."""
        return self.posts.get(("source", SOURCE))

    @property
    def couriers(self) -> dict[str, Courier]:
        """Those of the sinks that it holds."""
        return {name: post.courier for (_component, name), post in self.posts.items() if post.courier is not None}


class World:
    """Plays one script. `play` raises Violation."""

    def __init__(
        self, script: Script, loop: VirtualLoop, path: Path, blank: bytes, *, trace: Callable[[str], None] | None
    ) -> None:
        """`trace` is told in a line what happens."""
        setup = script.setup
        self.script = script
        self.setup = setup
        self.loop = loop
        self.rng = random.Random(setup.world)
        self.local = Hand(loop, setup.local_skew)
        self.server = Hand(loop)
        self.simulator = Simulator(self.server, seed=setup.world, settings=_settings(setup))
        self.trace = trace
        self.tenant: Tenant = self.simulator.add_tenant(SOURCE, "password")
        self.chronicle = Chronicle()
        self.ledger = Ledger(source=SOURCE)
        self.shores = {
            name: Shore(name=name, atomic=name == "atomic", batch=setup.batch)
            for name in _SINKS.get(setup.sinks, (setup.sinks,))
        }
        kind = KafkaHome if setup.journal == "kafka" else FileHome
        self.home: Home = kind(self, path, blank)
        self.process: Process | None = None
        self.polling: Post | None = None
        """The source of the poll in hand, which may have lost it."""
        self.disk: Disk | None = None
        self.dead = False
        self.armed: list[Op] = []
        self.points = 0
        self.all_points = 0
        self.ticks = 0
        self.interrupt: asyncio.Future[str] | None = None
        self.violation: Violation | None = None
        self.failing: list[str] = []
        self.commits_left = 0
        self.dies_now = False
        self.bad: dict[bytes, tuple[int, Instant]] = {}
        self.first_start: Instant | None = None
        self.first_bound: Instant | None = None
        self.claimed: Instant | None = None
        self.pending: Part | None = None
        self.doubted: list[Instant] = []
        """The bounds of polls that failed since the last claim: on Kafka, any of them may have been committed."""
        self.part = Part(resumed=False)
        self.past = Past()
        self.past_read = False
        self.swept = Past()
        self.done_polls = 0

    # -- the world ------------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Orders what happens at one instant."""
        self.ticks += 1
        return self.ticks

    def _note(self, text: str) -> None:
        if self.trace:
            self.trace(f"{self.loop.time():12.4f} {text}")

    def travel(self) -> float:
        """How long the network takes one way, in seconds."""
        return self.rng.choice((0.3, 2.0, 8.0) if self.setup.slow else (0.001, 0.01, 0.05, 0.3))

    def _disk_seconds(self) -> float:
        if self.setup.slow:
            return self.rng.choice((0.01, 0.5, 3.0))
        return 0.2 if self.rng.random() < 0.05 else 0.0004

    def point(self, label: str) -> None:
        """Something can happen here: what the script has armed for this point does. Raises Crashed."""
        if self.dead:
            raise Crashed
        self.points += 1
        if self.trace:
            self._note(f"{self.points:4d} {label}")
        self.all_points += 1
        if self.all_points > MAX_POINTS:
            self._found(Violation("endless", f"more than {MAX_POINTS} requests, jobs and sends"))
            self._interrupt("found")
            self._die("")
        if label == "written" and self.dies_now:
            self._die("")
        while self.armed and (op := self.armed[0]).at is not None and op.at <= self.points:
            self.armed.pop(0)
            self.happens(op)

    def happens(self, op: Op) -> None:
        """One operation that takes no time. Raises Crashed."""
        if self.trace:
            self._note(f"{op.name} {op.mode}")
        if op.name == "crash" and op.mode == "commit":
            self.commits_left = op.count
        elif op.name == "crash":
            self._die(op.mode)
        elif op.name == "stop":
            self._interrupt("stop")
        elif op.name in KAFKA_OPS:
            if isinstance(self.home, KafkaHome):
                self.home.happens(op)
        elif op.name in _FAR_CHANGES:
            _FAR_CHANGES[op.name](self, op)
        else:
            self._change(op)

    def _interrupt(self, why: str) -> None:
        if self.interrupt is not None and not self.interrupt.done():
            self.interrupt.set_result(why)

    def _found(self, violation: Violation) -> None:
        if self.violation is None:
            self.violation = violation

    def _die(self, mode: str) -> None:
        """The process is killed, or with `power` the machine: what was not synced is gone then."""
        if self.process is None and self.disk is None:
            return
        self.dead = True
        self.dies_now = False
        self.commits_left = 0
        if self.disk is not None:
            self.disk.tear_away()
        self.home.die(mode)
        self._interrupt("crash")
        raise Crashed

    def _done_on_disk(self) -> None:
        """Counts commits for a crash that waits for one."""
        if self.home.written() and self.commits_left:
            self.commits_left -= 1
            self.dies_now = not self.commits_left

    def _disk_fails(self, work: Callable[[], Any]) -> tuple[str, Exception] | None:
        if not self.failing or getattr(work, "__name__", "") != "call":
            return None
        return self.failing.pop(0), JournalUnavailable("the disk failed, as the script wanted")

    # -- what changes on the far side -----------------------------------------------------------------------------

    def _change(self, op: Op) -> None:
        """One change of the tenant, written down in the chronicle."""
        before = len(self.tenant.history)
        some = self._picked(op)
        if op.name in _ARRIVALS:
            _ARRIVALS[op.name](self.tenant, op)
        elif op.name == "bad":
            self._put_bad()
            return
        elif some:
            _CHANGES[op.name](self.tenant, some, op)
        tick = self.tick()
        for version in self.tenant.history[before:]:
            self.chronicle.shown(version.uuid, version.content, tick)
        for uuid in some if op.name == "delete" else ():
            self.chronicle.gone(uuid, tick)

    def _picked(self, op: Op) -> list[str]:
        """The incidents that an operation is about, by order of creation."""
        known = [uuid for uuid in self.tenant.uuids() if uuid in self.chronicle.stages]
        return [known[(op.pick + index) % len(known)] for index in range(min(op.count, len(known)))]

    def _put_bad(self) -> None:
        number = len(self.bad)
        if number >= self.setup.page_size - 1:
            return  # a page without a single time is left one second at a time: it takes for ever, by design
        raw = b'{"displayName":"no uuid","number":%d}' % number
        self.bad[raw] = (self.tick(), self.server.now())
        self.tenant.put_raw(raw, uuid=f"bad-{number}")

    def _inject(self, op: Op) -> None:
        plain = Fault(effect="answer", on="data")
        headers = {
            "429+": {"retry-after": "7"},
            "429 date": {"retry-after": formatdate(self.server.now() // SECOND + 30, usegmt=True)},
        }
        word = op.mode.partition(" ")[0].rstrip("+")
        if op.mode == "200 html":
            fault = msgspec.structs.replace(plain, body="<html>")
        elif word == "202" or op.mode == "lost":
            fault = Fault(effect="pending", on="data", polls=2, status=404 if op.mode == "lost" else 200)
        elif word.isdecimal():
            fault = msgspec.structs.replace(plain, status=int(word), headers=headers.get(op.mode, {}), body="<html>")
        elif op.mode == "latency":
            fault = Fault(effect="latency", on="data", delay_seconds=40)
        else:
            fault = Fault(effect=op.mode, on="any")  # type: ignore[arg-type]
        lasting = {"duration_seconds": op.seconds} if op.seconds else {"count": op.count}
        self.simulator.faults.inject(msgspec.structs.replace(fault, **lasting))

    def _trouble_sinks(self, op: Op) -> None:
        for shore in self.shores.values():
            if op.mode == "down":
                shore.down += op.count
            elif op.mode == "unsure":
                shore.unsure += op.count
            else:
                shore.refusing += op.count

    def _skew_date(self, op: Op) -> None:
        self.simulator.settings.date_skew_seconds += op.seconds

    # -- the process ----------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Makes everything anew from the file; a disk that fails meanwhile is tried again."""
        while self.process is None:
            self.dead = False
            self.interrupt = self.loop.create_future()
            self.disk = self.loop.disk = Disk(
                self.loop,
                point=self.point,
                fails=self._disk_fails,
                done=self._done_on_disk,
                seconds=self._disk_seconds,
            )
            try:
                self.process = await self._made()
            except JournalError:
                await self.home.give_up()
                await asyncio.sleep(1)

    async def _made(self) -> Process:
        journal = self.home.journal()
        await journal.open()
        process = Process(journal=journal)
        if self.setup.journal == "kafka":
            process.tasks["follow"] = self._spawn(self._follow(process), "follow")
        else:
            await self._adopt(process)
        return process

    async def _follow(self, process: Process) -> None:
        """Holds what the journal gives, lets go of what it takes, for ever."""
        seen = -1
        while True:
            seen = await process.journal.reassigned(seen)
            while not await self._adopt(process):
                await asyncio.sleep(1)

    async def _adopt(self, process: Process) -> bool:
        """Takes up what is held and puts down what is not; False when something could not be taken up for now."""
        whole = True
        fresh: list[tuple[str, Post]] = []
        names: list[tuple[Component, str]] = [("source", SOURCE), *(("sink", name) for name in self.shores)]
        for component, name in names:
            epoch = process.journal.holding(component, name)
            post = process.posts.get((component, name))
            if post is not None and post.epoch != epoch:
                self._put_down(process, component, name)
                post = None
            if post is None and epoch is not None:
                try:
                    post = await self._taken_up(process.journal, component, name, epoch)
                except (LeaseLost, JournalUnavailable):
                    if self.setup.journal != "kafka":
                        raise
                    whole = whole and process.journal.holding(component, name) != epoch
                    continue
                process.posts[component, name] = post
                fresh.append((name, post))
        for name, post in fresh:
            if post.courier is not None:
                task = process.tasks[name] = self._spawn(post.courier.run(), name)
                post.running.append(task)
            elif (progress := cast(SourceLease, post.lease).progress) and progress.complete_up_to is not None:
                self._goes_on(progress.complete_up_to)
        return whole

    async def _taken_up(self, journal: Journal, component: Component, name: str, epoch: int) -> Post:
        if component == "source":
            source = await journal.source(name)
            return Post(epoch=epoch, lease=source, poller=self._poller(source))
        sink = await journal.sink(name, start="earliest", keep_seconds=1e9)
        courier = Courier(
            sink=MemorySink(self.shores[name], self, journal.id),
            lease=sink,
            kind="memory",
            target=name,
            keep_seconds=1e9,
            metrics=cast(SinkMetrics, Deaf()),
            clock=self.local,
        )
        return Post(epoch=epoch, lease=sink, courier=courier)

    def _put_down(self, process: Process, component: Component, name: str) -> None:
        post = process.posts.pop((component, name))
        process.tasks.pop(name, None)
        self._note(f"{component} {name} is held no longer")
        task = self._spawn(self._hand_over(post), f"hand over {component} {name}")
        process.leaving.add(task)
        task.add_done_callback(process.leaving.discard)

    async def _hand_over(self, post: Post) -> None:
        """What is on its way may arrive; nothing is begun."""
        if post.courier is not None:
            post.courier.hand_over()
        if post.running:
            await asyncio.wait(post.running[:1], timeout=HAND_OVER_SECONDS)
        for task in post.running:
            task.cancel()
        if post.running:
            await asyncio.wait(post.running)
        await post.lease.release()
        if post.courier is not None:
            await post.courier.close(3.0)

    async def _held(self) -> Post | None:
        """The source, once it is held; None when it is not for long."""
        process = self.process
        assert process is not None
        ends = self.loop.time() + HELD_SECONDS
        while process.source is None and self.loop.time() < ends:
            await asyncio.sleep(0.5)
        return process.source

    async def _reads(self, post: Post, work: Coroutine[Any, Any, Any], *, poll: bool = False) -> bool:
        """What a source does, for as long as it is held; whether it ended well."""
        task = self._spawn(work, "read")
        post.running.insert(0 if poll else len(post.running), task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            post.running.remove(task)
        return not task.cancelled() and task.result()

    def _poller(self, lease: SourceLease) -> Poller:
        """The poller and its client. The one place that knows what they are made of."""
        setup = self.setup
        http = cast(httpx.AsyncClient, Line(self, self.simulator, self.local))
        budget = RateBudget(setup.requests_per_second)
        draw = self.rng.random
        account = Account(
            token_url=TOKEN_URL,
            username=SOURCE,
            secret=lambda: "password",
            http=http,
            budget=budget,
            clock=self.local,
            draw=draw,
        )
        client = EsetClient(
            source=SOURCE, base_url=API, account=account, http=http, budget=budget, clock=self.local, draw=draw
        )
        api = Watched(client, tick=self.tick, asks=self._asks, told=self._told)
        newer: dict[str, Any] = {"enrich": setup.enrich} if CAN_SWEEP else {}
        return Poller(
            identity="hunt",
            api=api,
            lease=lease,
            start_from=_start_from(setup.start_from),
            lookback_seconds=setup.lookback,
            page_size=setup.page_size,
            clock=self.local,
            observer=cast(Any, _Observer(self._claims)),
            **newer,
        )

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> "asyncio.Task[bool]":
        return self.loop.create_task(self._guarded(work), name=name)

    async def _guarded(self, work: Coroutine[Any, Any, Any]) -> bool:
        """False when it failed as it may; anything else that it raises is a bug."""
        try:
            await work
        except (SourceError, JournalError) as error:
            if self.trace:
                self._note(f"failed: {type(error).__name__} {error}")
            return False
        except (Crashed, asyncio.CancelledError):
            raise
        except Violation as violation:
            self._found(violation)
            return False
        except Exception as exc:  # noqa: BLE001  # the very thing that is looked for
            self._found(Violation("bug", f"{type(exc).__name__}: {exc}"))
            self._bug = exc
            self._interrupt("found")
            return False
        return True

    _bug: Exception | None = None

    async def _bury(self) -> None:
        """What is left of a killed process: its ghosts reach nothing any more."""
        await self._silence(1)
        self.home.bury()
        self.process = self.polling = None
        self.disk = None
        self._end_part()

    async def _silence(self, seconds: float) -> None:
        ghosts = asyncio.all_tasks(self.loop) - {asyncio.current_task(self.loop)}
        for ghost in ghosts:
            ghost.cancel()
        if ghosts:
            await asyncio.wait(ghosts, timeout=seconds)

    async def _stop(self, polling: "asyncio.Task[Any] | None") -> None:
        """In order: the poll in hand has five seconds, then everything that reads ends, then the sinks drain."""
        process = self.process
        if process is None:
            return
        if polling is not None:
            await asyncio.wait({polling}, timeout=5)
        reading = [task for name, task in process.tasks.items() if name not in process.couriers]
        reading += [polling] if polling is not None else []
        for task in reading:
            task.cancel()
        if reading:
            await asyncio.wait(reading, timeout=30)
        for courier in process.couriers.values():
            courier.drain()
        if draining := [process.tasks[name] for name in process.couriers] + list(process.leaving):
            _done, late = await asyncio.wait(draining, timeout=25)
            for task in late:
                task.cancel()
        await asyncio.sleep(0)
        if self.dead:
            return
        await process.journal.close()
        self.home.ended()
        self.process = self.polling = None
        self.disk = None
        self._end_part()

    # -- what the relay does, as seen from outside ----------------------------------------------------------------

    def _asks(self, asked: Asked) -> None:
        if self.trace:
            self._note(f"asks {asked.lane} {asked.query}")
        if asked.lane == "live" and not self._is_probe(asked):
            if self.part.begun is None:
                self.part.begun = asked.tick
        elif asked.lane == "backfill" and self.past.begun is None:
            self.past.begun = asked.tick
        elif asked.lane == "sweep" and self.swept.begun is None:
            self.swept.begun = asked.tick

    def _told(self, asked: Asked) -> None:
        if self.trace:
            self._note(f"told {asked.lane} sent {asked.sent:.4f} as of {asked.as_of}")
        if asked.lane == "backfill":
            self.past.lied |= asked.lied
        elif asked.lane == "sweep":
            self.swept.lied |= asked.lied
        elif self._introduces(asked):
            self._may_begin(asked.as_of)
        elif not self._is_probe(asked):
            part = self.part
            part.lied |= asked.lied
            part.truncating |= asked.truncating
            start = asked.start
            if part.bound is None:
                part.start, part.bound = start, asked.as_of
            elif start is not None and part.start is not None and asked.as_of is not None and start.again(part.start):
                part.bound = max(part.bound, asked.as_of)
            if asked.until is not None:
                part.high = asked.until if part.high is None else min(part.high, asked.until)

    def _may_begin(self, instant: Instant | None) -> None:
        """The source's first start is no later; on Kafka an earlier try may be the one that was committed."""
        before = self.first_bound
        if self.setup.journal == "kafka" and instant is not None and before is not None:
            instant = max(instant, before)
        self.first_bound = instant

    def _is_probe(self, asked: Asked) -> bool:
        """Whether the request asks for something else than a page of a pass."""
        return self._introduces(asked) or asked.query["page_size"] != str(self.setup.page_size)

    def _introduces(self, asked: Asked) -> bool:
        """Whether it only asks what time it is over there."""
        return self._progress() is None and asked.query["filter"] == asked.query["order_by"] == ""

    def _claims(self, instant: Instant) -> None:
        """The relay says that all is complete up to there."""
        part, self.part = self.part, Part(resumed=False)
        if self.trace:
            self._note(f"complete up to {instant}, {part}")
        pending, self.pending = self.pending, None
        if part.resumed and pending is not None:
            part = _joined(pending, part)
        before = self._low_mark()
        doubted = self.doubted if part.resumed and self.setup.journal == "kafka" else ()
        if part.bound is None or instant > max(part.bound, self.claimed or 0, *doubted):
            what = f"complete_up_to is {instant}, its poll allows no later than {part.bound}"
            self._found(Violation("watermark", what))
        self.harvest()
        if not part.lied and part.begun is not None and part.high is not None:
            low = before - int(self.setup.lookback * SECOND) + (SECOND if part.truncating else 0)
            window = Window(begun=part.begun, low=low, high=part.high)
            self._require(window, "after a whole poll")
        self.claimed = instant
        self.doubted.clear()
        self.done_polls += 1

    def _low_mark(self) -> Instant:
        return self.claimed if self.claimed is not None else self._read_first_start()

    def _goes_on(self, instant: Instant) -> None:
        """A restarted relay goes on from here: allowed when a poll had come so far."""
        if self.claimed is not None and instant <= self.claimed:
            return
        parts = [part for part in (self.pending, self.part) if part is not None]
        bounds = [part.bound for part in parts if part.bound is not None]
        if self.setup.journal == "kafka":
            bounds += self.doubted
        if not bounds or instant > max(bounds):
            self._found(Violation("watermark", f"complete_up_to is {instant} after a restart, allowed are {bounds}"))
        self.claimed = instant

    def _require(self, window: Window, what: str) -> None:
        try:
            require_complete(what, window, self.chronicle, self.ledger, start_from=self._begin())
            self._require_bad(window)
        except Violation as violation:
            self._found(violation)

    def _require_bad(self, window: Window) -> None:
        owed = [raw for raw, (tick, at) in self.bad.items() if tick < window.begun and window.low <= at <= window.high]
        if owed:
            buried = set(self.home.letters("source"))
            if missing := [raw for raw in owed if raw not in buried]:
                raise Violation("lost", f"a bad record is no dead letter: {missing[0]!r}")

    def _begin(self) -> Instant:
        """What was last updated before makes no event."""
        chosen = _start_from(self.setup.start_from)
        if chosen == "all":
            return 0
        return self._read_first_start() if chosen == "now" else chosen

    def _read_first_start(self) -> Instant:
        if self.first_start is None and (progress := self._progress()) is not None:
            self.first_start = progress.first_start
            if self.first_bound is not None and self.first_start > self.first_bound:
                self._found(Violation("watermark", f"first_start {self.first_start} is later than {self.first_bound}"))
        return self.first_start or 0

    def harvest(self) -> None:
        """Reads what is new in the journal."""
        for event in self.home.events(self.ledger.position()):
            self.ledger.add(event)

    def _end_part(self) -> None:
        """The poll in hand failed or was cut off: another will resume it, or not."""
        part, self.part = self.part, Part(resumed=False)
        if part.begun is None:
            return
        if part.bound is not None:
            self.doubted.append(part.bound)
        if self.pending is None:
            self.pending = part
        elif part.resumed or part.bound is None:
            self.pending = _joined(self.pending, part)
        else:
            self.pending = replace(_joined(self.pending, part), bound=part.bound)

    # -- the course of the script ---------------------------------------------------------------------------------

    async def play(self) -> None:
        """All operations, then rest. Raises Violation."""
        if self.setup.old:
            self.tenant.create_many(self.setup.old, spread_seconds=self.setup.spread)
            tick = self.tick()
            for version in self.tenant.history:
                self.chronicle.shown(version.uuid, version.content, tick)
        for op in self.script.ops:
            if op.name in {"poll", "wait"}:
                await self._run(op)
            elif op.name in {"backfill", "sweep"}:
                await self._beside(op.name)
            elif op.at is not None:
                self.armed.append(op)
            else:
                with suppress(Crashed):
                    self.happens(op)
                await self._interrupted(None)
            self._raise()
        await self._rest()

    def _raise(self) -> None:
        if self.violation is not None:
            raise self.violation from self._bug
        for task in self.process.tasks.values() if self.process else ():
            if task.done() and not task.cancelled() and task.exception() is None and task.get_name() in self.shores:
                raise Violation("bug", f"the courier of {task.get_name()} ended by itself")

    async def _up(self) -> None:
        """Makes sure that a process runs; one may die while it starts."""
        while self.process is None:
            try:
                await self._start()
            except Crashed:
                await self._bury()

    async def _run(self, op: Op) -> bool:
        """A poll or a wait, with what the script has armed for it. True when it ended well."""
        await self._up()
        assert self.process is not None
        self.points = 0
        self.armed.sort(key=lambda armed: armed.at or 0)
        work = self._poll() if op.name == "poll" else self._guarded(asyncio.sleep(op.seconds))
        task = self.loop.create_task(work, name=op.name)
        await self._interrupted(task)
        left, self.armed = self.armed, []
        for one in left:
            with suppress(Crashed):
                self.happens(one)
            await self._interrupted(None)
        return task.done() and not task.cancelled() and task.exception() is None and task.result() is True

    async def _interrupted(self, task: "asyncio.Task[Any] | None") -> None:
        """Waits for the task; when the process dies or is told to stop meanwhile, it does."""
        if self.interrupt is None:
            return
        if task is not None:
            await asyncio.wait({task, self.interrupt}, return_when=asyncio.FIRST_COMPLETED)
        if not self.interrupt.done():
            return
        if self.interrupt.result() == "stop" and not self.dead:
            with suppress(Crashed):
                await self._stop(task)
        if self.dead:
            await self._bury()
        self.interrupt = None if self.process is None else self.loop.create_future()

    async def _poll(self) -> bool:
        post = await self._held()
        if post is None or post.poller is None:
            return False
        self._read_first_start()
        progress = self._progress()
        self.part = Part(resumed=progress is not None and progress.poll is not None)
        done = self.done_polls
        if self.trace:
            self._note(f"poll begins, {self.part}")
        self.polling = post
        went_well = await self._reads(post, post.poller.poll(), poll=True)
        self.polling = None
        if self.trace:
            self._note(f"poll ends, {went_well}")
        if went_well and self.done_polls == done:
            self._found(Violation("watermark", "a poll ended well, and complete_up_to was not moved"))
        self._end_part()
        return went_well

    async def _beside(self, name: str) -> None:
        """Starts the backfill or a sweep, unless one runs; it goes on while other things happen."""
        await self._up()
        process = self.process
        assert process is not None
        before = process.tasks.get(name)
        if before is None or before.done():
            work = self._backfill() if name == "backfill" else self._sweep()
            process.tasks[name] = self.loop.create_task(work, name=name)

    async def _backfill(self) -> bool:
        post = await self._held()
        if post is None or post.poller is None or not await self._reads(post, post.poller.backfill()):
            return False
        self.harvest()
        if not self.past_read and self.past.begun is not None and not self.past.lied:
            chosen = _start_from(self.setup.start_from)
            window = Window(
                begun=self.past.begun,
                low=0 if isinstance(chosen, str) else chosen,
                high=self._read_first_start(),
                views=("create_time",) if chosen == "all" else ("update_time", "create_time"),
            )
            self._require(window, "after the backfill")
        self.past_read = True
        return True

    async def _sweep(self) -> bool:
        post = await self._held()
        if post is None or post.poller is None:
            return False
        self.swept = Past()
        sweep: Callable[[], Coroutine[Any, Any, Any]] = getattr(post.poller, "sweep")  # noqa: B009
        return await self._reads(post, sweep())

    async def _rest(self) -> None:
        """No fault any more: a few clean polls and a sweep must bring everything to rest."""
        self.armed.clear()
        self.commits_left = 0
        self.dies_now = False
        self.failing.clear()
        self.simulator.faults.clear()
        self.home.calm()
        for shore in self.shores.values():
            shore.down = shore.unsure = shore.refusing = 0
        contents = [stage.content for stages in self.chronicle.stages.values() for stage in stages if stage.content]
        last = max((max(content.created, content.state[0]) for content in contents), default=0)
        shown = self.server.now() + int(min(0.0, self.simulator.settings.date_skew_seconds) * SECOND)
        ahead = (last - min(self.local.now(), shown)) / SECOND
        await asyncio.sleep(max(0.0, ahead) + 1.0)
        await self._calm("poll")
        await self._calm("backfill")
        if CAN_SWEEP:
            if self._progress() is not None and getattr(self._progress(), "sweep", None) is not None:
                await self._calm("sweep")  # the rest of one that was interrupted
            await self._calm("sweep")
        await self._calm("poll")
        await self._drained()
        self.harvest()
        self._check_rest()
        await self._stop(None)
        self._raise()

    async def _calm(self, what: str) -> None:
        """One of these until it ends well."""
        for attempt in range(12):
            await self._up()
            assert self.process is not None
            if what == "poll":
                well = await self._run(Op(name="poll"))
            else:
                before = self.process.tasks.get(what)
                if before is not None and not before.done():
                    await asyncio.wait({before})
                await self._beside(what)
                task = self.process.tasks[what]
                await asyncio.wait({task})
                self._raise()
                well = task.result() is True
            self._raise()
            if well:
                return
            await asyncio.sleep(60.0 * 2**attempt)
        raise Violation("rest", f"no {what} ends well although nothing is wrong any more")

    def _progress(self) -> Progress | None:
        post = self.polling or (self.process.source if self.process is not None else None)
        return cast(SourceLease, post.lease).progress if post is not None else None

    async def _drained(self) -> None:
        assert self.process is not None
        for name in self.shores:
            for _ in range(60):
                self._raise()
                waiting = await self._waiting(name)
                if waiting == 0:
                    break
                await asyncio.sleep(10)
            else:
                raise Violation("sink", f"{name} does not come to rest: {waiting} wait")

    async def _waiting(self, name: str) -> int | None:
        """How much waits for a sink; None when it is not held."""
        assert self.process is not None
        courier = self.process.couriers.get(name)
        if courier is None:
            return None
        with suppress(LeaseLost):
            return (await courier.backlog()).events
        return None

    def _check_rest(self) -> None:
        progress = self._progress()
        if progress is None or progress.complete_up_to is None:
            raise Violation("rest", "nothing is complete")
        if progress.poll is not None or not progress.backfill_done:
            raise Violation("rest", "a poll or the backfill is still in hand")
        begin, first_start = self._begin(), self._read_first_start()
        if CAN_SWEEP:
            require_whole(self.chronicle, self.ledger, start_from=begin)
        require_true(self.chronicle, self.ledger, start_from=begin, first_start=first_start)
        for name, shore in self.shores.items():
            self._check_sink(name, shore)

    def _check_sink(self, name: str, shore: Shore) -> None:
        letters = self.home.letters("sink", name)
        dead = [msgspec.msgpack.decode(body, type=Delivery) for body in letters]
        arrivals, refused, events = shore.arrivals, shore.refused, self.ledger.events
        if name == INLINE:
            require_nothing_by_hand(name, arrivals)
            positions = {event.id: event.position for event in events}
            arrivals = cast(KafkaHome, self.home).inline_arrivals(positions)
            refused = refused & positions.keys()  # some were refused before a crash, and never found again
        repeats = not shore.atomic and name != INLINE
        require_delivered(name, events, arrivals, {d.id: d.body for d in dead}, repeats=repeats)
        if {d.id for d in dead} != refused:
            raise Violation("sink", f"{name} refused {len(refused)}, dead letters are {len(dead)}")


def _restore(tenant: Tenant, op: Op) -> None:
    if deleted := tenant.deleted():
        tenant.restore(deleted[op.pick % len(deleted)])


_ARRIVALS: Final[Mapping[str, Callable[[Tenant, Op], Any]]] = {
    "create": lambda tenant, op: [tenant.create() for _ in range(op.count)],
    "never": lambda tenant, op: [tenant.create(updated="never") for _ in range(op.count)],
    "late": lambda tenant, op: tenant.arrive_late(age_seconds=op.seconds),
    "restore": _restore,
}
_CHANGES: Final[Mapping[str, Callable[[Tenant, list[str], Op], None]]] = {
    "update": lambda tenant, some, op: tenant.update(some),
    "close": lambda tenant, some, op: tenant.close(some),
    "reopen": lambda tenant, some, op: tenant.reopen(some),
    "silent": lambda tenant, some, op: tenant.edit_silently(some, {"displayName": op.mode or "A"}),
    "untracked": lambda tenant, some, op: tenant.edit_silently(some, {"triageDuration": f"{op.pick}s"}),
    "regress": lambda tenant, some, op: tenant.regress(some, by_seconds=op.seconds),
    "delete": lambda tenant, some, op: tenant.delete(some),
}
_FAR_CHANGES: Final[Mapping[str, Callable[[World, Op], None]]] = {
    "fault": World._inject,
    "clear": lambda world, op: world.simulator.faults.clear(),
    "local": lambda world, op: world.local.jump(op.seconds),
    "server": lambda world, op: world.server.jump(op.seconds),
    "date": World._skew_date,
    "sink": World._trouble_sinks,
    "disk": lambda world, op: world.failing.extend([op.mode] * op.count),
}


def play(script: Script, path: Path, blank: bytes, *, trace: Callable[[str], None] | None = None) -> Violation | None:
    """Plays a script over a fresh journal at `path`; what is broken, or None. `blank` is an empty file of one."""
    random.seed(script.setup.world)
    loop = VirtualLoop()
    world = World(script, loop, path, blank, trace=trace)
    try:
        loop.run_until_complete(world.play())
    except Violation as violation:
        return violation
    except Stuck as exc:
        return Violation("stuck", str(exc))
    except RelayError as exc:
        return Violation("bug", f"{type(exc).__name__}: {exc}")
    finally:
        world.dead = True
        if world.disk is not None:
            world.disk.tear_away()
        with suppress(Stuck):
            loop.run_until_complete(world._silence(1))
        world.home.bury()
        loop.close()
    return world.violation


async def _blank(path: Path, clock: Hand) -> None:
    journal = SqliteJournal(path, max_bytes=1 << 30, retention_seconds=1e9, clock=clock)
    await journal.open()
    await journal.close()


def blank_journal(path: Path) -> bytes:
    """A journal that nobody has written to: made once, copied for each schedule."""
    loop = VirtualLoop()
    loop.disk = Disk(loop, point=nothing, fails=nothing, done=nothing, seconds=lambda: 0.0)
    loop.run_until_complete(_blank(path, Hand(loop)))
    loop.close()
    return path.read_bytes()


def _settings(setup: Setup) -> Settings:
    values: dict[str, Any] = {
        "time_digits": setup.digits,
        "time_offset_minutes": setup.offset_minutes,
        "new_update_time": setup.new_update_time,
        "missing_time": setup.missing_time,
        "integers": setup.integers,
        "list_details": setup.details,
        "trailing_empty_page": setup.trailing_empty_page,
        "last_page": setup.last_page,
        "default_order": setup.default_order,
        "date_header": setup.date_header,
        "date_skew_seconds": setup.date_skew,
        "token_lifetime_seconds": setup.token_seconds,
        "requests_per_second": setup.limit or None,
    }
    return Settings(**values)


def _start_from(text: str) -> StartFrom:
    if text in {"all", "now"}:
        return cast(StartFrom, text)
    return START - int(float(text) * SECOND)
