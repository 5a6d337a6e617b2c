"""The one thread behind a sink."""

import asyncio
import threading
import time

import pytest

from relay.sinks.worker import Worker


async def test_jobs_run_one_after_another_in_one_thread() -> None:
    worker = Worker("test")
    seen: list[tuple[int, int]] = []

    def job(number: int) -> int:
        seen.append((number, threading.get_ident()))
        time.sleep(0.001)
        return number

    results = await asyncio.gather(*(worker.run(lambda n=n: job(n)) for n in range(20)))  # type: ignore[misc]
    assert results == [number for number, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen}) == 1
    await worker.finish(lambda: None, 1)


async def test_what_a_job_raises_is_raised_to_whoever_waits() -> None:
    worker = Worker("test")

    def fail() -> None:
        raise LookupError("why")

    with pytest.raises(LookupError, match="why"):
        await worker.run(fail)
    assert await worker.run(lambda: 1) == 1
    await worker.finish(lambda: None, 1)


async def test_after_a_cancelled_wait_the_next_job_still_waits_for_the_cancelled_one() -> None:
    worker = Worker("test")
    release, order = threading.Event(), []

    def slow() -> None:
        release.wait()
        order.append("slow")

    waiting = asyncio.create_task(worker.run(slow))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    following = asyncio.create_task(worker.run(lambda: order.append("next")))
    await asyncio.sleep(0.01)
    assert order == []
    release.set()
    await following
    assert order == ["slow", "next"]
    await worker.finish(lambda: None, 1)


async def test_finish_keeps_its_time_when_a_job_hangs_and_work_may_follow() -> None:
    worker = Worker("test")
    release = threading.Event()
    hanging = asyncio.create_task(worker.run(release.wait))
    await asyncio.sleep(0.01)
    started = time.monotonic()
    await worker.finish(lambda: None, 0.05)
    assert time.monotonic() - started < 0.5
    assert await worker.run(lambda: "again") == "again"
    release.set()
    assert await hanging
    await worker.finish(lambda: None, 1)


async def test_finish_before_any_work_is_nothing() -> None:
    await Worker("test").finish(lambda: pytest.fail("no job was run"), 0.1)
