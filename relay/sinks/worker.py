"""One thread that does a sink's blocking work, job after job. Not a pool: jobs of a sink never overlap."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class Worker:
    """Runs jobs in the order in which they came.

    A cancelled `run` leaves a job that has begun running to its end; the next job waits for it. The thread is a
    daemon, so that a far side that hangs can't keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, job: Callable[[], Result]) -> Result:
        """What the job returns or raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._jobs.put((future, job))
        return await asyncio.wrap_future(future)

    async def finish(self, job: Callable[[], None], timeout_seconds: float) -> None:
        """Runs a last job and ends the thread; after that time both are left to themselves. `run` may follow."""
        if self._thread is None:
            return
        try:
            await asyncio.wait_for(self.run(job), timeout_seconds)
        except TimeoutError:
            pass
        finally:
            self._jobs.put(None)
            self._jobs, self._thread = SimpleQueue(), None


def _work(jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (item := jobs.get()) is not None:
        future, job = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(job())
        except BaseException as exc:  # noqa: BLE001 - whoever waits for the job gets it
            future.set_exception(exc)
        del item, future, job
