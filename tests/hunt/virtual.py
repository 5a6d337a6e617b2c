"""Time that runs only when nobody has anything to do: an event loop, its clocks, and a disk. No thread, no socket.

Whatever waits, for a timer, for the rate budget or for the disk, waits in this time, so a schedule of hours takes
milliseconds and runs the same way every time.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from relay.clock import SECOND, Instant
from tests.support.clock import START


class Stuck(Exception):
    """Everything waits, and nothing is left that could wake anybody."""


class Crashed(BaseException):
    """The process is dead: whoever touches the outside world from now on is a ghost."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that jumps to its next timer. `disk` stands for every thread."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._clock_resolution = 1e-9
        self._elapsed = 0.0
        self.disk: Disk | None = None
        self.set_exception_handler(lambda loop, context: None)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._elapsed

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """Every wait takes at least a microsecond: who waits for less would wait for ever where time stands still."""
        return super().call_at(max(when, self._elapsed + 1e-6), callback, *args, context=context)

    def select(self, timeout: float | None) -> tuple[()]:
        """Nothing ever comes from outside: the time to wait has passed."""
        if timeout is None:
            raise Stuck("everything waits, and nothing will come")
        self._elapsed += timeout
        return ()

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Hands the work to the disk."""
        assert self.disk is not None
        return self.disk.submit(func, thread=executor)


class Hand:
    """A wall clock over the loop's time, which may be set forward or back. A `relay.clock.Clock`."""

    def __init__(self, loop: VirtualLoop, offset_seconds: float = 0) -> None:
        self._loop = loop
        self._offset = round(offset_seconds * SECOND)

    def now(self) -> Instant:
        """The wall clock, in nanoseconds since the epoch."""
        return START + round(self._loop.time() * SECOND) + self._offset

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Waits in virtual time."""
        await asyncio.sleep(max(0.0, seconds))

    def jump(self, seconds: float) -> None:
        """Sets the wall clock; the monotonic one does not notice."""
        self._offset += round(seconds * SECOND)


class Job:
    """One piece of work that waits for the disk."""

    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[], Any], future: "asyncio.Future[Any]") -> None:
        self.work = work
        self.future = future


class Disk:
    """The threads of a process: each does its jobs in their order; one takes its time, and is done before anybody is
    told.

    `point` is told before and after each job, and may raise Crashed: the job was not done, or nobody heard of it.
    `fails` says what becomes of the next job. `seconds` says how long it takes.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        point: Callable[[str], None],
        fails: Callable[[Callable[[], Any]], tuple[str, Exception] | None],
        done: Callable[[], None],
        seconds: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._point = point
        self._fails = fails
        self._done = done
        self._seconds = seconds
        self._jobs: defaultdict[Any, deque[Job]] = defaultdict(deque)
        self._dead = False

    def is_torn_away(self) -> bool:
        """Whether its process is dead."""
        return self._dead

    def submit(self, work: Callable[[], Any], *, thread: Any) -> "asyncio.Future[Any]":
        """The future of this work. A disk that was torn away answers nobody."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._dead:
            future.set_exception(Crashed())
            return future
        jobs = self._jobs[thread]
        jobs.append(Job(work, future))
        if len(jobs) == 1:
            self._loop.call_later(self._seconds(), self._run, thread)
        return future

    def tear_away(self) -> None:
        """The process is dead: what waits is never done, and nobody is told of what was."""
        self._dead = True
        for jobs in self._jobs.values():
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(Crashed())
        self._jobs.clear()

    def _run(self, thread: Any) -> None:
        if self._dead:
            return
        jobs = self._jobs[thread]
        job = jobs[0]
        try:
            self._point("disk")
            failure = self._fails(job.work)
            result, error = self._outcome(job, failure)
            self._done()
            self._point("written")
        except Crashed:
            return
        if self.is_torn_away() or not jobs:
            return
        jobs.popleft()
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
        if jobs:
            self._loop.call_later(self._seconds(), self._run, thread)
        else:
            del self._jobs[thread]

    @staticmethod
    def _outcome(job: Job, failure: tuple[str, Exception] | None) -> tuple[Any, BaseException | None]:
        if failure is not None and failure[0] == "before":
            return None, failure[1]
        try:
            result = job.work()
        except Exception as exc:  # noqa: BLE001  # the thread hands it to whoever waits
            return None, exc
        return result, failure[1] if failure else None
