"""Several relays of one configuration as child processes, each with files, port and log of its own, started anew when
one ends by itself, as Kubernetes would. What is done to them is up to `faults`.
"""

import asyncio
import math
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx

from tests.e2e.stage import CONFIGURATION, until
from tests.support.process import Child, child

LOG: Final = "relay.log"
READY_WITHIN_SECONDS: Final = 120.0
AGAIN_AFTER_SECONDS: Final = 0.5
KEPT_LEVELS: Final = ("warning", "error", "critical")


class Replica:
    """One place in the fleet: a folder with a configuration, and one process after another that runs it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.exit_codes: Counter[int] = Counter()
        """Of what was asked to end."""
        self.ended_by_itself: list[str] = []
        """Once it ran: its exit code and its last words."""
        self.did_not_start: list[str] = []
        """As when no broker answers; it is started again until it does."""
        self._told: list[dict[str, Any]] = []
        self._now: Child | None = None
        self._life = AsyncExitStack()
        self._spilled = 0
        self._turn = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def process(self) -> Child:
        """The process that runs."""
        if self._now is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._now

    async def start(self) -> None:
        """Starts a process, and again until one says that it has started. Raises TimeoutError."""
        async with self._turn:
            await self._start()

    async def ready(self) -> None:
        """Waits until it says so at `/readyz`. Raises TimeoutError."""
        await until(self._is_ready, f"{self.name} is ready", within=READY_WITHIN_SECONDS)

    async def kill(self) -> None:
        """SIGKILL: gone at once."""
        async with self._turn:
            await self._leave_alone()
            await self.process.kill()
            await self._end()

    async def stop(self) -> None:
        """SIGTERM, and its exit code is counted. Raises TimeoutError."""
        async with self._turn:
            await self._leave_alone()
            self.exit_codes[await self.process.stop()] += 1
            await self._end()

    def freeze(self) -> None:
        """SIGSTOP: it does not know that time passes."""
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.signal(signal.SIGCONT)

    async def close(self) -> None:
        """Kills what runs."""
        await self._leave_alone()
        async with self._turn:
            await self._end()

    def told(self, event: str) -> list[dict[str, Any]]:
        """All warnings with this event, of every process that there was."""
        now = self._now.log if self._now is not None else []
        return [line for line in (*self._told, *now) if line.get("event") == event]

    def spill(self) -> None:
        """Appends what the process logged since the last call to the file."""
        if self._now is not None:
            with (self.folder / LOG).open("ab") as file:
                file.write(self._now.stderr[self._spilled :])
            self._spilled = len(self._now.stderr)

    async def _start(self) -> None:
        async with asyncio.timeout(READY_WITHIN_SECONDS):
            while not await self._has_started():
                await asyncio.sleep(AGAIN_AFTER_SECONDS)

    async def _has_started(self) -> bool:
        self._spilled = 0
        self._now = await self._life.enter_async_context(child(self.folder, "run", "--config", CONFIGURATION))
        try:
            await self._now.started()
        except EOFError:
            self.did_not_start.append(self._now.last_words())
            await self._end()
            return False
        self._keeper = asyncio.create_task(self._keep(self._now), name=f"keep {self.name}")
        return True

    async def _keep(self, process: Child) -> None:
        """Starts another when this one ends by itself."""
        code = await process.ended(within=math.inf)
        async with self._turn:
            if process is self._now:
                self.ended_by_itself.append(f"{self.name} ended with {code}:\n{process.last_words()}")
                await self._end()
                await self._start()

    async def _leave_alone(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _end(self) -> None:
        """The process is gone; what it told is kept."""
        await self._life.aclose()
        if self._now is not None:
            self.spill()
            self._told += [line for line in self._now.log if line.get("level") in KEPT_LEVELS]
            self._now = None

    async def _is_ready(self) -> bool:
        try:
            return (await self.process.get("/readyz")).status_code == 200
        except (httpx.HTTPError, RuntimeError):
            return False


class Fleet:
    """The replicas of one relay."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas

    def __getitem__(self, name: str) -> Replica:
        return next(replica for replica in self.replicas if replica.name == name)

    async def start(self) -> None:
        """All at once, and waits until all are ready."""
        await asyncio.gather(*(replica.start() for replica in self.replicas))
        await asyncio.gather(*(replica.ready() for replica in self.replicas))

    async def stop(self) -> None:
        """SIGTERM to all at once."""
        await asyncio.gather(*(replica.stop() for replica in self.replicas))

    async def close(self) -> None:
        """Kills all that run."""
        for replica in self.replicas:
            await replica.close()

    async def spill(self) -> None:
        """Writes the logs to their files while they grow, for ever."""
        while True:
            await asyncio.sleep(1)
            for replica in self.replicas:
                replica.spill()

    def told(self, event: str) -> list[dict[str, Any]]:
        """All warnings with this event."""
        return [line for replica in self.replicas for line in replica.told(event)]

    def exit_codes(self) -> dict[int, int]:
        """How often each."""
        return dict(sum((replica.exit_codes for replica in self.replicas), Counter()))

    def ended_by_itself(self) -> list[str]:
        """Every process that ended without being asked to."""
        return [text for replica in self.replicas for text in replica.ended_by_itself]

    def did_not_start(self) -> int:
        """How many processes ended before they had started."""
        return sum(len(replica.did_not_start) for replica in self.replicas)
