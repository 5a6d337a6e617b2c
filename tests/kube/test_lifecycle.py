"""The chart's life on a real node: installed, killed, replaced, upgraded, rolled back and stopped; nothing is lost."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from relay.simulator import Fault
from tests.e2e.stage import report, until
from tests.kube.cluster import Cluster
from tests.kube.image import NEXT
from tests.kube.life import Life, true
from tests.kube.scene import GRACE_SECONDS, RELEASE, Scene, pod_of, scene
from tests.kube.steps import step

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]

POD = pod_of(RELEASE)
INCIDENTS = 300
"""More than change: what a relay that forgot would send again."""
HESITATION_SECONDS = 0.7
"""Of the webhook: with a poll a second, there is nearly always something that it has and has not yet answered."""
SLOW_SECONDS = 4.0
OWED = 40
"""More than a webhook this slow takes in within the grace."""
FINALIZER = "test.invalid/look"


# -- a first install --------------------------------------------------------------------------------------------------


async def test_an_install_from_nothing_is_ready_and_flows_and_answers_commands(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path) as it:
        with step("helm install --wait"):
            notes = await it.install()
        assert f"helm test {RELEASE}" in notes
        with step("all events in Kafka and at the webhook"):
            verdicts = await it.settled()
        assert all(verdict.exactly_once_in_order for verdict in verdicts), verdicts
        assert (await it.status())["verdict"]["state"] == "flowing"
        assert "Data flows" in await it.said("relay", "status")
        sinks = await it.said("relay", "sinks", "list")
        assert "siem" in sinks
        assert "soar" in sinks
        fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"
        url = f"http://{RELEASE}.{namespace}.svc.cluster.local:8080/metrics"
        with step("/metrics by the Service's name"):
            metrics = await it.said("python", "-c", fetch, url)
        assert 'relay_complete_up_to_timestamp_seconds{source="acme"}' in metrics
        proxied = f"/api/v1/namespaces/{namespace}/services/{RELEASE}:http/proxy/metrics"
        assert "relay_complete_up_to_timestamp_seconds" in await it.kubectl("get", "--raw", proxied)
        with step("helm test"):
            checked = await it.test()
        assert "Succeeded" in checked
        for named in ("acme", "siem", "soar"):
            assert named in checked, checked


# -- whatever happens to the pod --------------------------------------------------------------------------------------


async def test_nothing_is_lost_or_doubled_whatever_happens_to_the_pod(
    cluster: Cluster, namespace: str, tmp_path: Path, next_image: Path
) -> None:
    async with scene(cluster, namespace, tmp_path, incidents=INCIDENTS) as it:
        with step("helm install --wait"):
            await it.install()
        life = Life(it)
        began = time.monotonic()
        await it.settled()
        it.hook.slow_seconds = HESITATION_SECONDS
        async with life.changing():
            async with life.disturbance("process killed"):
                await _kill(it)
            async with life.disturbance("pod deleted"):
                await it.kubectl("delete", "pod", POD)
            async with life.disturbance("pod deleted with no grace"):
                await it.kubectl("delete", "pod", POD, "--grace-period=0", "--force")
            async with life.disturbance("kubelet killed, then the process, kubelet back"):
                await asyncio.to_thread(cluster.kill, "kubelet")
                await life.goes_on()
                await _kill(it, meanwhile=lambda: cluster.run("kubelet"))
            async with life.disturbance("helm upgrade to another image"):
                old = await _image_id(it)
                await asyncio.to_thread(cluster.load, next_image)
                await it.upgrade(image={"tag": NEXT})
                assert await _image_id(it) != old
            async with life.disturbance("helm upgrade to another configuration"):
                uid = (await it.pod())["metadata"]["uid"]
                await it.upgrade(image={"tag": NEXT}, configuration={"log": {"level": "debug"}})
                assert (await it.pod())["metadata"]["uid"] != uid
                assert '"level":"debug"' in (await it.logs()).replace(" ", "")
            async with life.disturbance("helm rollback to the first revision"):
                await it.rollback(revision=1)
                assert await _image_id(it) == old
        with step("the rest delivered"):
            kafka, hook = await it.settled()
        repeats = len(it.received()) - hook.arrivals
        report(
            "Kubernetes, pods and upgrades",
            versions=kafka.versions,
            records=kafka.arrivals,
            webhook_repeats=repeats,
            disturbances=7,
            seconds=round(time.monotonic() - began, 1),
        )
        assert kafka.exactly_once_in_order, kafka
        assert hook.exactly_once_in_order, hook
        assert repeats, "no kill came amid a delivery"
        status = await it.status()
        assert status["verdict"]["state"] == "flowing", status


# -- stopping ---------------------------------------------------------------------------------------------------------


async def test_a_pod_stopped_amid_a_202_chain_with_a_slow_webhook_and_no_kafka_exits_0_in_time_and_loses_nothing(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path, incidents=OWED) as it:
        with step("helm install --wait"):
            await it.install()
        await it.settled()
        it.hook.slow_seconds = SLOW_SECONDS
        await asyncio.to_thread(it.kafka.kill)
        asked = len(it.hook.receiver.asked)
        tenant, simulator = it.stage.tenant, it.stage.simulator
        tenant.update(tenant.pick(OWED))
        await until(true(lambda: len(it.hook.receiver.asked) >= asked + 8), "the webhook is busy")
        simulator.requests.clear()
        chain = simulator.faults.inject(Fault(effect="pending", on="list", polls=1000))
        await until(true(lambda: sum(seen.status == 202 for seen in simulator.requests) >= 2), "a poll is in a chain")
        tenant.create_many(5)
        async with _kept_when_deleted(it):
            [process] = [psutil.Process(number) for number in cluster.pod_processes(POD, namespace)]
            following = asyncio.create_task(it.logs(RELEASE, "--follow", "--tail=5"))
            accepted = len(it.received())
            with step("SIGTERM to exit"):
                began = time.monotonic()
                await it.kubectl("delete", "pod", POD, "--wait=false")
                await asyncio.to_thread(process.wait, GRACE_SECONDS + 60)
                seconds = time.monotonic() - began
            ended = "--for=jsonpath={.status.containerStatuses[0].state.terminated}"
            await it.kubectl("wait", f"pod/{POD}", ended, "--timeout=30s")
            pod, log = await it.pod(), await following
        [container] = pod["status"]["containerStatuses"]
        assert container["state"]["terminated"]["exitCode"] == 0, container
        assert pod["spec"]["terminationGracePeriodSeconds"] == GRACE_SECONDS + 5
        assert seconds < GRACE_SECONDS + 5
        assert len(it.received()) > accepted, "nothing was delivered within the grace"
        assert "relay stopped" in log.splitlines()[-1]
        owed = len(tenant.history) - len(set(it.received()))
        assert owed >= OWED / 4, "the webhook was not slow"
        simulator.faults.remove(chain)
        it.hook.slow_seconds = 0
        await asyncio.to_thread(it.kafka.restart)
        with step("the next pod delivers what was owed"):
            verdicts = await it.settled()
        report(
            "Kubernetes, SIGTERM", seconds=round(seconds, 1), owed_to_the_webhook=owed, versions=verdicts[0].versions
        )
        assert all(verdict.exactly_once_in_order for verdict in verdicts), verdicts


# -- the pod, from outside --------------------------------------------------------------------------------------------


async def _kill(it: Scene, *, meanwhile: Callable[[], None] = lambda: None) -> None:
    """SIGKILL to the relay amid a delivery, until the kubelet has started it again."""
    before = await _restarts(it)
    processes = await asyncio.to_thread(it.cluster.pod_processes, POD, it.namespace)
    await until(true(lambda: bool(it.hook.busy)), "the webhook has something to answer")
    for process in processes:
        os.kill(process, signal.SIGKILL)
    meanwhile()

    async def restarted() -> bool:
        return await _restarts(it) > before

    await until(restarted, "the container was restarted")


async def _restarts(it: Scene) -> int:
    [container] = (await it.pod())["status"]["containerStatuses"]
    count: int = container["restartCount"]
    return count


async def _image_id(it: Scene) -> str:
    [container] = (await it.pod())["status"]["containerStatuses"]
    name: str = container["imageID"]
    return name


@asynccontextmanager
async def _kept_when_deleted(it: Scene) -> AsyncIterator[None]:
    """The kubelet ends the pod all the same; until the block is left it can be looked at, and none follows."""

    def finalizers(names: list[str] | None) -> tuple[str, ...]:
        return "patch", "pod", POD, "--type=merge", f"--patch={json.dumps({'metadata': {'finalizers': names}})}"

    await it.kubectl(*finalizers([FINALIZER]))
    try:
        yield
    finally:
        await it.kubectl(*finalizers(None))
