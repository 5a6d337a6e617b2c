"""The chart with the Kafka journal and three replicas: whatever is taken away, the others go on and nothing is lost."""

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.stage import SOURCE, report
from tests.kube.cluster import Cluster, CommandError
from tests.kube.image import NEXT
from tests.kube.life import Life
from tests.kube.replicas import COUNT, DEPLOYMENT, Claims, Replicas
from tests.kube.scene import RELEASE, Scene, full_name, scene
from tests.kube.steps import step

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]

INCIDENTS = 300
"""More than change: what a replica that forgot would send again."""
HESITATION_SECONDS = 0.7
"""Of the webhook: with a poll a second, there is nearly always something that it has and has not yet answered."""


async def test_each_of_three_replicas_tells_of_all_and_a_drain_takes_one_at_a_time(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path) as it:
        replicas = Replicas(it=it)
        with step("helm install --wait, three replicas"):
            notes = await replicas.install()
        assert f"exec {DEPLOYMENT} -- relay status" in notes
        await replicas.ready()
        with step("all events in Kafka and at the webhook"):
            verdicts = await it.settled()
        assert all(verdict.exactly_once_in_order for verdict in verdicts), verdicts
        assert (await it.get("persistentvolumeclaims"))["items"] == []
        names = await replicas.names()
        for name in names:
            await replicas.told_until(partial(_tells_of_all, it, name), f"{name} tells of all that there is")
        assert "Data flows" in await it.kubectl("exec", DEPLOYMENT, "--", "relay", "status")
        with step("helm test"):
            checked = await it.test()
        assert "Succeeded" in checked
        with step("a drain"):
            await replicas.told_until(lambda: _may_go(it, 1), "the budget lets one go")
            await replicas.evict(names[0])
            with pytest.raises(CommandError, match="violate the pod's disruption budget"):
                await replicas.evict(names[1])
            await replicas.ready()
            await replicas.told_until(lambda: _may_go(it, 1), "the budget lets the next go")
            await replicas.evict(names[1])
            await replicas.ready()
        it.stage.tenant.create_many(5)
        verdicts = await it.settled()
        assert all(verdict.exactly_once_in_order for verdict in verdicts), verdicts


@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.prove, id="with everything else that happens")]
)
async def test_nothing_is_lost_or_doubled_whatever_happens_to_three_replicas(
    cluster: Cluster, namespace: str, tmp_path: Path, next_image: Path, whole: bool
) -> None:
    async with scene(cluster, namespace, tmp_path, incidents=INCIDENTS) as it:
        replicas = Replicas(it=it)
        with step("helm install --wait, three replicas"):
            await replicas.install()
        life = Life(it, Claims(it.stage.simulator), replicas.ready)
        began = time.monotonic()
        await it.settled()
        it.hook.slow_seconds = HESITATION_SECONDS
        async with life.changing():
            async with life.disturbance("process killed, of the replica that polls"):
                await replicas.kill([await replicas.holder("source")])
            async with life.disturbance("process killed, of the replica that posts, amid a delivery"):
                await replicas.kill([await replicas.holder("sink")], amid=lambda: bool(it.hook.busy))
            if whole:
                await _more_deaths(it, replicas, life)
            async with life.disturbance("helm upgrade to another image"):
                old = await _image_ids(it)
                await asyncio.to_thread(cluster.load, next_image)
                assert await replicas.fewest_while(replicas.upgrade(image={"tag": NEXT})) == COUNT
                assert (await _image_ids(it)).isdisjoint(old)
            if whole:
                await _upgrade_amid_a_death(replicas, life)
            async with life.disturbance("helm rollback to the first revision"):
                assert await replicas.fewest_while(it.rollback(revision=1, within=240)) == COUNT
                assert await _image_ids(it) == old
            if whole:
                await _one_then_three(replicas, life)
        with step("the rest delivered"):
            kafka, hook = await it.settled()
        repeats = len(it.received()) - hook.arrivals
        report(
            "Kubernetes, three replicas",
            versions=kafka.versions,
            records=kafka.arrivals,
            webhook_repeats=repeats,
            disturbances=9 if whole else 4,
            seconds=round(time.monotonic() - began, 1),
        )
        assert kafka.exactly_once_in_order, kafka
        assert hook.exactly_once_in_order, hook
        assert repeats, "no kill came amid a delivery"
        status = await it.status(pod=(await replicas.names())[0])
        assert status["verdict"]["state"] == "flowing", status


async def test_a_new_configuration_that_does_not_start_takes_nothing_from_the_replicas_that_run(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path) as it:
        replicas = Replicas(it=it)
        with step("helm install --wait, three replicas"):
            await replicas.install()
        await it.settled()
        names = set(await replicas.names())
        life = Life(it, Claims(it.stage.simulator), replicas.ready)
        async with life.changing():
            with step("helm upgrade to a configuration that no pod can start with"):
                unreadable = {"sources": {SOURCE: {"password_file": "/run/secrets/relay/none"}}}
                await replicas.upgrade(wait=False, configuration=unreadable)
                await replicas.told_until(lambda: _has_failed(it, "password_file cannot be read"), "a pod says why")
            assert len(names & set(await replicas.names())) == COUNT
            await life.goes_on()
            async with life.disturbance("helm rollback"):
                await it.rollback()
            assert set(await replicas.names()) == names, "replicas that ran well were replaced"
        verdicts = await it.settled()
        assert all(verdict.exactly_once_in_order for verdict in verdicts), verdicts


async def _more_deaths(it: Scene, replicas: Replicas, life: Life) -> None:
    async with life.disturbance("two of three killed at once"):
        spared, *others = await replicas.names()
        await replicas.kill(others)
        assert spared in await replicas.names()
    async with life.disturbance("pod deleted, of the replica that polls"):
        await it.kubectl("delete", "pod", await replicas.holder("source"))
    async with life.disturbance("pod deleted with no grace, of the replica that posts"):
        await it.kubectl("delete", "pod", await replicas.holder("sink"), "--grace-period=0", "--force")


async def _upgrade_amid_a_death(replicas: Replicas, life: Life) -> None:
    async with life.disturbance("helm upgrade to another configuration, one replica killed meanwhile"):
        names = await replicas.names()
        upgrade = asyncio.create_task(replicas.upgrade(image={"tag": NEXT}, configuration={"log": {"level": "debug"}}))
        await replicas.kill([await replicas.holder("source")])
        await upgrade
        assert set(names).isdisjoint(await replicas.names())


async def _one_then_three(replicas: Replicas, life: Life) -> None:
    async with life.disturbance("one replica, then three again"):
        await replicas.upgrade(replicas=1)
        await replicas.ready(1)
        await life.goes_on()
        await replicas.upgrade()


async def _tells_of_all(it: Scene, name: str) -> bool:
    """Whichever replica has a task, this one knows of it."""
    status = await it.status(pod=name)
    told = {source["label"] for source in status["sources"]} | {sink["name"] for sink in status["sinks"]}
    replicas = len(status["relay"]["processes"])
    return told == {SOURCE, "siem", "soar"} and replicas == COUNT and status["verdict"]["state"] == "flowing"


async def _may_go(it: Scene, count: int) -> bool:
    status = (await it.get("poddisruptionbudget", full_name(RELEASE)))["status"]
    return bool(status["disruptionsAllowed"] == count and status["currentHealthy"] == COUNT)


async def _has_failed(it: Scene, words: str) -> bool:
    """Whether the check before a relay ended with these."""
    for pod in await it.pods():
        for check in pod["status"].get("initContainerStatuses", []):
            for state in (check["state"], check.get("lastState", {})):
                if words in state.get("terminated", {}).get("message", ""):
                    return True
    return False


async def _image_ids(it: Scene) -> set[str]:
    return {container["imageID"] for pod in await it.pods() for container in pod["status"]["containerStatuses"]}
