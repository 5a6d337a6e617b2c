"""Which tasks this process runs: begun when the journal gives them, put down when it takes them away.

On a file that is everything, for as long as the process lives. Knows neither servers nor signals.
"""

import asyncio
import zlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from relay.assembly import Accounts, introduce_to_each_other, make_courier, make_source
from relay.clock import Clock
from relay.delivery import Carrier
from relay.errors import JournalUnavailable, LeaseLost
from relay.journal import Component, Journal
from relay.metrics import Metrics
from relay.settings import Settings
from relay.tasks import SourceTask

if TYPE_CHECKING:
    from relay.rules import Rule

log = structlog.get_logger()

PAGE_PATIENCE_SECONDS: Final = 5.0
"""How long a stop waits for the page in hand; every page is committed by itself, so nothing is lost after that."""
CLOSE_SECONDS: Final = 3.0
"""How long a sink may take to let go, after the grace; all at once, so that a stop stays under Kubernetes' 30 s."""
HAND_OVER_SECONDS: Final = 4.0
"""How long what is on its way may take when another process takes over; the group waits twice as long."""
REQUESTS_A_POLL: Final = 2
"""Both views, one page each."""
_RETRY_SECONDS: Final = 1.0


@dataclass(slots=True, kw_only=True)
class _Post:
    """One task that is held: what does its work, and the coroutines that run for it."""

    epoch: int
    worker: SourceTask | Carrier
    running: "list[asyncio.Task[None]]" = field(default_factory=list)


def timekeeper() -> AsyncIOScheduler:
    """Keeps time only: a job sets an event, a task of ours polls."""
    return AsyncIOScheduler(
        timezone=UTC,
        # Runs a job in place: one that runs beside us is cancelled at the end, which is logged as an error.
        executors={"default": DebugExecutor()},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )


class Roster:
    """The tasks of this process."""

    def __init__(
        self,
        settings: Settings,
        *,
        journal: Journal,
        accounts: Accounts,
        rules: "Mapping[str, Rule]",
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._accounts = accounts
        self._rules = rules
        self._metrics = metrics
        self._clock = clock
        self._posts: dict[tuple[Component, str], _Post] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False
        self._stretch = self._stretched()
        self._group: asyncio.TaskGroup | None = None
        self._scheduler = timekeeper()

    @property
    def sources(self) -> list[SourceTask]:
        """The sources that are held, in the order of the configuration."""
        return [one for one in self._workers("source", self._settings.sources) if isinstance(one, SourceTask)]

    @property
    def couriers(self) -> list[Carrier]:
        """Whoever delivers to the sinks that are held, in the order of the configuration."""
        return [one for one in self._workers("sink", self._settings.sinks) if isinstance(one, Carrier)]

    def _workers(self, component: Component, names: Mapping[str, Any]) -> list[SourceTask | Carrier]:
        posts = (self._posts.get((component, name)) for name in names)
        return [post.worker for post in posts if post is not None]

    def ended(self) -> list[str]:
        """Tasks that are no longer running though nobody asked for a stop."""
        return [task.get_name() for post in self._posts.values() for task in post.running if task.done()]

    # -- beginning and putting down ---------------------------------------------------------------------------------

    async def adopt(self) -> bool:
        """Makes what is held and is not there yet, puts down what is held no longer.

        False when something could not be made for now. Raises ConfigError, JournalError.
        """
        whole = True
        for component, names in self._names():
            for name in names:
                epoch = self._journal.holding(component, name)
                post = self._posts.get((component, name))
                if post is not None and post.epoch != epoch:
                    self._put_down(component, name)
                    post = None
                if post is None and epoch is not None:
                    whole = await self._take_up(component, name, epoch) and whole
        introduce_to_each_other(self.couriers, self._settings)
        self._show()
        return whole

    def _names(self) -> "list[tuple[Component, list[str]]]":
        return [("source", list(self._settings.sources)), ("sink", list(self._settings.sinks))]

    async def _take_up(self, component: Component, name: str, epoch: int) -> bool:
        try:
            worker = await self._made(component, name)
        except (LeaseLost, JournalUnavailable) as error:
            if self._journal.holding(component, name) != epoch:
                return True  # its next owner makes it
            log.warning("task could not be begun", task=f"{component} {name}", reason=error.reason, error=str(error))
            return False
        post = self._posts[component, name] = _Post(epoch=epoch, worker=worker)
        if self._group is not None:
            self._begin(post)
        return True

    async def _made(self, component: Component, name: str) -> SourceTask | Carrier:
        if component == "source":
            return await make_source(
                name,
                settings=self._settings,
                journal=self._journal,
                accounts=self._accounts,
                metrics=self._metrics,
                clock=self._clock,
            )
        return await make_courier(
            name,
            settings=self._settings,
            journal=self._journal,
            rules=self._rules,
            metrics=self._metrics,
            clock=self._clock,
        )

    def start(self, group: asyncio.TaskGroup) -> None:
        """From now on, what is held runs, in this group."""
        self._group = group
        self._scheduler.start()
        for post in self._posts.values():
            self._begin(post)

    async def follow(self) -> None:
        """Follows what the journal gives and takes, for ever."""
        seen = -1
        while True:
            seen = await self._journal.reassigned(seen)
            while not await self.adopt():
                await self._clock.sleep(_RETRY_SECONDS)

    def _begin(self, post: _Post) -> None:
        worker = post.worker
        if isinstance(worker, SourceTask):
            self._keep_time(worker)
            post.running += [
                self._spawn(f"poll {worker.name}", worker.run()),
                self._spawn(f"reconcile {worker.name}", worker.reconcile()),
            ]
        else:
            post.running.append(self._spawn(f"deliver {worker.name}", worker.run()))

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        assert self._group is not None  # noqa: S101  # start() was called
        return self._group.create_task(work, name=name)

    def _put_down(self, component: Component, name: str) -> None:
        """Another process has it, or will have it in a moment: what is on its way may arrive, nothing is begun."""
        post = self._posts.pop((component, name))
        task = asyncio.create_task(self._hand_over(post), name=f"hand over {component} {name}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _hand_over(self, post: _Post) -> None:
        worker = post.worker
        if isinstance(worker, SourceTask):
            if self._scheduler.get_job(worker.name) is not None:
                self._scheduler.remove_job(worker.name)
            worker.finish()
        else:
            worker.hand_over()
        if post.running:
            await asyncio.wait(post.running[:1], timeout=HAND_OVER_SECONDS)
        for task in post.running:
            task.cancel()
        await asyncio.gather(*post.running, return_exceptions=True)
        await worker.release()
        await (worker.close() if isinstance(worker, SourceTask) else worker.close(CLOSE_SECONDS))
        worker.forget_figures()
        self._show()

    # -- keeping time -----------------------------------------------------------------------------------------------

    def _keep_time(self, source: SourceTask) -> None:
        """Lets it be told whenever its time has come."""
        interval = self._settings.sources[source.name].poll_interval.total_seconds() * self._stretch
        source.poll_interval_seconds = interval
        self._metrics.poll_interval.labels(source.name).set(interval)
        offset = zlib.crc32(source.name.encode()) % 1000 / 1000 * interval
        self._scheduler.add_job(
            source.on_tick,
            IntervalTrigger(seconds=interval, start_date=datetime.now(UTC) + timedelta(seconds=offset), timezone=UTC),
            id=source.name,
            replace_existing=True,
        )

    def _stretched(self) -> float:
        """How much longer every interval gets when polling alone would exceed the budget of requests."""
        settings = self._settings
        wanted = sum(REQUESTS_A_POLL / source.poll_interval.total_seconds() for source in settings.sources.values())
        factor = max(1.0, wanted / settings.api.requests_per_second)
        if factor > 1.0:
            log.warning(
                "poll intervals stretched",
                factor=round(factor, 2),
                requests_per_second=settings.api.requests_per_second,
            )
        return factor

    def _show(self) -> None:
        """How much is held here, and what of the rate goes with it."""
        sources = sum(component == "source" for component, _name in self._posts)
        self._metrics.tasks_held.labels("source").set(sources)
        self._metrics.tasks_held.labels("sink").set(len(self._posts) - sources)
        self._accounts.budget.change(share=max(1, sources) / max(1, len(self._settings.sources)))

    # -- stopping ---------------------------------------------------------------------------------------------------

    async def finish(self, grace_seconds: float) -> None:
        """No new polls; the one in hand gets a few seconds of the grace, and what is committed stays. Then drain."""
        deadline = self._clock.monotonic() + grace_seconds
        self._scheduler.shutdown(wait=False)
        posts = list(self._posts.values())
        polling = [post.running[0] for post in posts if isinstance(post.worker, SourceTask) and post.running]
        reading = [task for post in posts if isinstance(post.worker, SourceTask) for task in post.running]
        sending = [task for post in posts if isinstance(post.worker, Carrier) for task in post.running]
        for source in self.sources:
            source.finish()
        if polling:
            await asyncio.wait(polling, timeout=min(PAGE_PATIENCE_SECONDS, deadline - self._clock.monotonic()))
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        await self.drain(sending, max(0.0, deadline - self._clock.monotonic()))
        await self.close()

    async def drain(self, sending: "list[asyncio.Task[None]]", grace_seconds: float | None) -> None:
        """Lets the couriers deliver what is due, within the grace."""
        for courier in self.couriers:
            courier.drain()
        if not sending:
            return
        _done, left = await asyncio.wait(sending, timeout=grace_seconds)
        for task in left:
            log.warning("delivery was cut short by shutdown_grace", task=task.get_name())
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def close(self) -> None:
        """Lets go of sinks and API, once."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await asyncio.gather(*(courier.close(CLOSE_SECONDS) for courier in self.couriers))
        await asyncio.gather(*(source.close() for source in self.sources))
        await self._accounts.close()
