"""Several replicas of the chart on one node: which of them has what, and how to take them away."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families

from relay.clock import SECOND, Instant
from relay.simulator import Simulator
from relay.simulator.times import parse_time
from tests.e2e.stage import LOOKBACK_SECONDS, SOURCE, until
from tests.e2e.unrest import Polls
from tests.kube.cluster import CommandError
from tests.kube.life import true
from tests.kube.scene import PATIENCE_SECONDS, RELEASE, Scene, full_name

COUNT: Final = 3
TASKS: Final = {"source": SOURCE, "sink": "soar"}
"""By which label their figures are found, which only their owner shows."""
DEPLOYMENT: Final = f"deployment/{full_name(RELEASE)}"


class Claims(Polls):
    """How far the tenant has been read, whichever replica reads it.

    A poll asks for what is at most the lookback older than that up to which the relay is complete: so each says how far
    the one before has brought it. The relay is held to that: a version replaced from then on and not sent is lost.
    """

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self._seen = simulator.requests
        self._asked: Instant = 0

    def look(self) -> None:
        """Takes in the requests since the last look."""
        while self._seen:
            request = self._seen.popleft()
            live = request.query.get("filter", "").startswith("incident.update_time")
            if request.operation != "list" or request.status != 200 or not live:
                continue
            since = parse_time(request.query["filter"].partition('"')[2].partition('"')[0])
            complete = since + LOOKBACK_SECONDS * SECOND
            # Later than that only a further page begins: nobody is complete up to a time before anybody asked.
            if complete <= self._asked:
                self.read_up_to = max(self.read_up_to, complete)
            self._asked = max(self._asked, request.at)

    def new_life(self) -> None:
        """Means nothing here: what is claimed is claimed by all."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Those of the scene's one release."""

    it: Scene

    def values(self, **values: Any) -> dict[str, Any]:
        """For the scene's `install` and `upgrade`: the Kafka journal, and no volume."""
        configuration = {"journal": {"kind": "kafka"}, **values.pop("configuration", {})}
        return {"replicas": COUNT, "persistence": None, "configuration": configuration, **values}

    async def install(self, **values: Any) -> str:
        """`helm install --wait`, without making a volume."""
        return await self.it.install(volume=False, **self.values(**values))

    async def upgrade(self, *, wait: bool = True, **values: Any) -> str:
        """`helm upgrade` to these values and no others; long enough for one pod after another."""
        return await self.it.upgrade(wait=wait, within=2 * PATIENCE_SECONDS, **self.values(**values))

    async def names(self) -> list[str]:
        """Of all pods that nobody has told to end."""
        return [pod["metadata"]["name"] for pod in await self.it.pods()]

    async def ready(self, count: int = COUNT) -> None:
        """Waits until there are so many, no more, and all of them Ready."""

        async def all_ready() -> bool:
            pods = await self.it.pods()
            return len(pods) == count and all(_is_ready(pod) for pod in pods)

        await self.told_until(all_ready, f"{count} replicas are Ready")

    async def holder(self, kind: Literal["source", "sink"]) -> str:
        """Waits until one replica alone has metrics of the source, or of the webhook; its name."""
        found: list[str] = []

        async def one_has_it() -> bool:
            pods = [pod for pod in await self.it.pods() if _is_ready(pod)]
            held = await asyncio.gather(*(_has(pod, kind) for pod in pods), return_exceptions=True)
            found[:] = [pod["metadata"]["name"] for pod, has in zip(pods, held, strict=True) if has is True]
            return len(found) == 1

        await self.told_until(one_has_it, f"one replica has the {kind}")
        return found[0]

    async def kill(self, names: Iterable[str], *, amid: Callable[[], bool] = lambda: True) -> None:
        """SIGKILL to their processes at once, as soon as `amid`; until the kubelet has started all of them again."""
        before = {name: await self._restarts(name) for name in names}
        found = [self.it.cluster.pod_processes(name, self.it.namespace) for name in before]
        await until(true(amid), "there is something amid which to kill")
        for process in [process for processes in found for process in processes]:
            os.kill(process, signal.SIGKILL)

        async def restarted() -> bool:
            return all([await self._restarts(name) > count for name, count in before.items()])

        await self.told_until(restarted, "the containers were restarted")

    async def evict(self, name: str) -> None:
        """As `kubectl drain` does. Raises CommandError when the budget forbids it."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": self.it.namespace},
        }
        path = f"/api/v1/namespaces/{self.it.namespace}/pods/{name}/eviction"
        line = ("create", f"--raw={path}", "--filename=-")
        await asyncio.to_thread(self.it.cluster.kubectl, *line, stdin=json.dumps(eviction))

    async def fewest_while(self, work: Coroutine[Any, Any, object]) -> int:
        """Does it once all are available; returns how many were at the worst moment meanwhile."""

        async def all_available() -> bool:
            return await self._available() == COUNT

        await self.told_until(all_available, f"{COUNT} replicas are available")
        fewest = COUNT
        task = asyncio.create_task(work)
        try:
            while not task.done():
                fewest = min(fewest, await self._available())
                await asyncio.sleep(0.5)
            await task
        finally:
            task.cancel()
        return fewest

    async def told_until(self, reached: Callable[[], Coroutine[Any, Any, bool]], what: str) -> None:
        """`until`, whose failure shows what the cluster says; a command may fail meanwhile."""

        async def look() -> bool:
            try:
                return await reached()
            except CommandError:
                return False

        try:
            await until(look, what, within=PATIENCE_SECONDS)
        except TimeoutError as exc:
            exc.add_note(await self.it.told())
            raise

    async def _available(self) -> int:
        count: int = (await self.it.get(DEPLOYMENT))["status"].get("availableReplicas", 0)
        return count

    async def _restarts(self, name: str) -> int:
        [container] = (await self.it.get("pod", name))["status"]["containerStatuses"]
        count: int = container["restartCount"]
        return count


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


async def _has(pod: dict[str, Any], kind: str) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"http://{pod['status']['podIP']}:8080/metrics")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return any(sample.labels.get(kind) == TASKS[kind] for sample in samples)
