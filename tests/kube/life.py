"""A tenant that changes all the while, and a release on the node that has to survive what tests do to it.

Does nothing to pods itself.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from tests.e2e.stage import until
from tests.e2e.unrest import Polls, Unrest
from tests.kube.scene import PATIENCE_SECONDS, RELEASE, Scene
from tests.kube.steps import step

PAUSE_SECONDS: Final = 0.15
"""Between two changes, on average."""


class Life:
    """Changes the tenant all the while, and sees that the relay survives what is done to it.

    `polls` tells what has been read, `ready` waits until all pods are; without them, of a relay of one pod.
    """

    def __init__(
        self, it: Scene, polls: Polls | None = None, ready: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.it = it
        self.polls = polls or Polls(it.stage.simulator)
        self.unrest = Unrest(it.stage, self.polls, random.Random(7))
        self._ready = ready or it.ready
        self._disturbed = False

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """One change after another until the block is left."""
        self.unrest.stir_the_past()
        task = asyncio.create_task(self._change())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert self.unrest.changes

    @asynccontextmanager
    async def disturbance(self, name: str) -> AsyncIterator[None]:
        """What happens within is survived: the relay is Ready again, and sends what changed after it."""
        self._disturbed = True
        before = self.unrest.changes
        with step(name):
            yield
            await self._ready()
            self._disturbed = False
            await self.goes_on()
        assert self.unrest.changes > before, "nothing changed meanwhile"

    async def goes_on(self) -> None:
        """A version from now on arrives in Kafka and at the webhook."""
        history = self.it.stage.tenant.history
        known = len(history)

        async def arrived() -> bool:
            late = {version.content for version in history[known:]}
            in_kafka = {arrival.content for arrival in await self.it.events()}
            at_the_hook = {arrival.content for arrival in self.it.hook.accepted[RELEASE]}
            return bool(late & in_kafka and late & at_the_hook)

        try:
            await until(arrived, "the relay went on", within=PATIENCE_SECONDS)
        except TimeoutError as exc:
            exc.add_note(await self.it.told())
            raise

    async def _change(self) -> None:
        while True:
            await asyncio.sleep(random.uniform(0, 2 * PAUSE_SECONDS))
            if self._disturbed:
                # Which process polls is not known now, so no poll counts as read to its end.
                self.polls.new_life()
            self.unrest.change()


def true(reached: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    """For `until`."""

    async def ask() -> bool:
        return reached()

    return ask
