"""What a person sees when something is wrong with the chart on a real node: where it is said, and that it heals."""

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.errors import JOURNAL_REASONS
from relay.web import STUCK_SECONDS
from tests.e2e.stage import PASSWORD, SOURCE, until
from tests.kube.cluster import Cluster, CommandError
from tests.kube.scene import CHART, PATIENCE_SECONDS, RELEASE, SIGNING_SECRET, Scene, pod_of, scene
from tests.kube.steps import step

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]

SMALL = {"size": "64Mi"}
JOURNAL = "/var/lib/relay"


async def secret(it: Scene, name: str, **keys: str) -> None:
    """Makes or changes a Secret, as `kubectl apply` does."""
    metadata = {"name": name, "namespace": it.namespace}
    document = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys}
    await asyncio.to_thread(it.cluster.apply, document)


async def restarts(it: Scene, release: str = RELEASE) -> int:
    """Of the relay's container in this pod."""
    (container,) = (await it.pod(release))["status"]["containerStatuses"]
    count: int = container["restartCount"]
    return count


async def asked(it: Scene, path: str, release: str = RELEASE) -> httpx.Response:
    """Its HTTP port, from the node's other side."""
    address = (await it.pod(release))["status"]["podIP"]
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        return await client.get(f"http://{address}:8080{path}")


async def stopped_by(it: Scene) -> list[str]:
    """The reasons for which polling stands, by the metric that the alert watches."""
    text = (await asked(it, "/metrics")).raise_for_status().text
    return [
        sample.labels["reason"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "relay_polling_stopped" and sample.value == 1
    ]


def one_line(text: str) -> str:
    """Without the breaks and columns in which it is shown."""
    return " ".join(text.split())


async def is_described(it: Scene, *words: str, release: str = RELEASE) -> None:
    """Waits until `kubectl describe pod` holds all of them."""
    last = ""

    async def found() -> bool:
        nonlocal last
        with suppress(CommandError):  # there is no pod yet
            last = one_line(await it.kubectl("describe", "pod", pod_of(release)))
        return all(word in last for word in words)

    try:
        await until(found, f"kubectl describe names {words}", within=PATIENCE_SECONDS)
    except TimeoutError as exc:
        exc.add_note(last)
        raise


async def told_until(
    it: Scene, reached: Callable[[], Awaitable[bool]], what: str, *, within: float = PATIENCE_SECONDS
) -> None:
    """`until`, whose failure shows what the cluster says."""
    try:
        await until(reached, what, within=within)
    except TimeoutError as exc:
        exc.add_note(await it.told())
        raise


async def flows(it: Scene, release: str = RELEASE) -> None:
    """Waits until its status says so."""

    async def flowing() -> bool:
        with suppress(CommandError):  # it may not run yet
            return bool((await it.status(release))["verdict"]["state"] == "flowing")
        return False

    await told_until(it, flowing, f"{release} says that data flows")


async def is_once_in_kafka(it: Scene, release: str = RELEASE) -> None:
    """Waits until everything has arrived, and judges: Kafka has no repeats, the webhook lacks nothing."""
    kafka, hook = await it.settled(release)
    assert kafka.exactly_once_in_order, kafka
    assert hook.exactly_once_in_order, hook


# -- a wrong value ----------------------------------------------------------------------------------------------------

MISSPELT_KEY = {"sources": {SOURCE: {"poll_intervall": "5s"}}}
MISSPELT_FIELD = {"sinks": {"siem": {"when": 'incident.sevrity == "HIGH"'}}}


async def test_a_wrong_value_is_named_where_the_notes_say_and_a_corrected_one_needs_nobody(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path) as it:
        with step("helm install refuses unknown keys"), pytest.raises(CommandError) as refused:
            await it.install(volume=False, imge={}, configuration=MISSPELT_KEY)
        assert (
            "at '/configuration/sources/acme': additional properties 'poll_intervall' not allowed"
            in refused.value.stderr
        )
        assert "at '': additional properties 'imge' not allowed" in refused.value.stderr
        assert await it.kubectl("get", "all,secrets,configmaps", "--selector=app.kubernetes.io/instance=relay") == ""

        with step("helm install --wait of a rule that only the relay can judge"), pytest.raises(CommandError) as waited:
            await it.install(within=15, configuration=MISSPELT_FIELD)
        assert f"resource StatefulSet/{namespace}/relay not ready" in waited.value.stderr
        # Helm knows no more, but it keeps the notes, and they name the command that does.
        notes = await asyncio.to_thread(cluster.helm, "get", "notes", RELEASE, "--namespace", namespace)
        assert f"kubectl --namespace {namespace} describe pod {pod_of(RELEASE)}\n" in notes
        with step("kubectl describe names the rule"):
            await is_described(
                it,
                "configuration relay.yaml: 1 source, 2 sinks",
                "configuration sinks.siem.when holds incident.sevrity in column 1, which does not exist",
                "Did you mean incident.severity?",
            )

        values = json.dumps(it.values(configuration=MISSPELT_KEY))
        forced = ("upgrade", RELEASE, str(CHART), "--namespace", namespace, "--values=-", "--skip-schema-validation")
        await asyncio.to_thread(partial(cluster.helm, *forced, stdin=values))
        with step("kubectl describe names the key"):
            await is_described(
                it,
                "Message: error /etc/relay/relay.yaml:",
                "sources.acme.poll_intervall is unknown; did you mean sources.acme.poll_interval?",
            )
        assert "did you mean" in await it.kubectl("logs", pod_of(RELEASE), "--container=check", "--previous")
        with step("helm upgrade to a corrected value"):
            await it.upgrade()
        await is_once_in_kafka(it)


# -- a Secret ---------------------------------------------------------------------------------------------------------


async def test_a_missing_secret_is_named_by_the_pods_events_and_the_pod_starts_when_it_is_there(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path) as it:
        await it.install(wait=False, existingSecret="later")
        with step("the pod's events name the Secret"):
            await is_described(it, "FailedMount", 'secret "later" not found')
        assert "Init:0/1" in await it.kubectl("get", "pod", pod_of(RELEASE))
        before = (await it.pod())["metadata"]["uid"]
        await secret(it, "later", signing=SIGNING_SECRET)
        with step("the check names the key that the Secret lacks"):
            await is_described(it, "Message: error /etc/relay/relay.yaml:", "sources.acme.password_file cannot be read")
        await secret(it, "later", signing=SIGNING_SECRET, acme=PASSWORD)
        with step("the pod starts by itself"):
            await it.ready()
        assert (await it.pod())["metadata"]["uid"] == before
        await is_once_in_kafka(it)


async def test_a_wrong_password_is_named_by_a_ready_pod_which_takes_the_right_one_by_itself(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path) as it:
        await secret(it, "relay-secrets", acme="not that one")
        with step("helm install --wait"):
            await it.install()
        await it.kubectl("wait", f"pod/{pod_of(RELEASE)}", "--for=condition=Ready", "--timeout=1s")
        status = one_line(await it.said("relay", "status"))
        assert "Nothing of acme has been read since" in status
        assert "ESET refused the login." in status
        assert "A new password_file is read at the next poll" in status
        with pytest.raises(CommandError, match="exit code 1") as checked:
            await it.said("relay", "check")
        with step("helm test"), pytest.raises(CommandError, match="check failed") as tested:
            await it.test()
        for refused in (checked.value, tested.value):
            text = one_line(refused.stdout)
            assert "refused the login with 401: wrong user name or password" in text
            assert "Check username, password_file, base_url and token_url of this source" in text
        await secret(it, "relay-secrets", acme=PASSWORD)
        with step("the corrected Secret is taken"):
            await flows(it)
        await is_once_in_kafka(it)
        assert await restarts(it) == 0


# -- two releases -----------------------------------------------------------------------------------------------------


async def test_two_releases_in_one_namespace_leave_each_other_alone(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path) as it:
        with step("two releases"):
            await asyncio.gather(it.install(), it.install("second"))
        for release in (RELEASE, "second"):
            await is_once_in_kafka(it, release)
        claims = (await it.get("persistentvolumeclaims"))["items"]
        assert len({claim["spec"]["volumeName"] for claim in claims}) == 2
        links = '{"spec":{"template":{"spec":{"enableServiceLinks":true}}}}'
        for release in (RELEASE, "second"):
            environment = await it.said("env", release=release)
            assert "RELAY_SERVICE_HOST" not in environment
        await it.kubectl("patch", "statefulset/relay", "--patch", links)
        with step("relay with service links"):
            await it.kubectl("rollout", "status", "statefulset/relay", "--timeout=60s")
        environment = await it.said("env")
        assert "RELAY_PORT=tcp://" in environment
        assert "RELAY_SERVICE_HOST=" in environment
        it.stage.tenant.close(it.stage.tenant.pick(10))
        with step("second uninstalled"):
            await is_once_in_kafka(it, "second")
            await it.uninstall("second")
        it.stage.tenant.reopen(it.stage.tenant.pick(3))
        await is_once_in_kafka(it)
        assert await restarts(it) == 0


# -- the volume -------------------------------------------------------------------------------------------------------


async def is_stopped(it: Scene, reason: str, says: str, *, stays_seconds: float = 3) -> None:
    """Waits until the alert's metric says why, and looks at all that a person and Kubernetes look at, twice."""

    async def stopped() -> bool:
        return await stopped_by(it) == [reason]

    assert reason in JOURNAL_REASONS
    with step(f"polling stands: {reason}"):
        await told_until(it, stopped, f"relay_polling_stopped is 1 for {reason}")
    with step("nothing restarts"):
        await asyncio.sleep(stays_seconds)
    assert await stopped()
    for path in ("/readyz", "/livez"):
        assert (await asked(it, path)).status_code == 200
    await it.kubectl("wait", f"pod/{pod_of(RELEASE)}", "--for=condition=Ready", "--timeout=1s")
    assert await restarts(it) == 0
    document = await it.status()
    assert document["verdict"]["state"] == "blocked"
    status = one_line(await it.said("relay", "status"))
    assert says in status
    assert "polling and sending go on by themselves" in status


async def test_a_full_volume_is_named_restarts_nothing_and_goes_on_when_there_is_room(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    async with scene(cluster, namespace, tmp_path) as it:
        await asyncio.to_thread(cluster.volume, f"{namespace}-small", "64Mi", memory=True)
        await it.install(volume=False, persistence=SMALL)
        await flows(it)
        with pytest.raises(CommandError, match="No space left on device"):
            await it.said("sh", "-c", f"cat /dev/zero > {JOURNAL}/ballast")
        it.stage.tenant.close(it.stage.tenant.pick(20))
        await is_stopped(
            it, "journal_disk_full", "Make room on that volume, or enlarge it", stays_seconds=STUCK_SECONDS + 5
        )
        await it.said("rm", f"{JOURNAL}/ballast")
        with step("it goes on"):
            await flows(it)
        assert await stopped_by(it) == []
        await is_once_in_kafka(it)
        assert await restarts(it) == 0


async def test_a_volume_that_turns_read_only_is_named_by_status_and_by_a_pod_that_starts_on_it(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here: no volume can fail")
    async with scene(cluster, namespace, tmp_path) as it:
        folder = await asyncio.to_thread(cluster.volume, f"{namespace}-disk", "64Mi")
        image = tmp_path / "disk"
        mount = ("mount", "-o", "loop,errors=remount-ro", str(image), str(folder))
        cluster.inside("mkfs.ext4", "-q", str(image), "48m")
        cluster.inside(*mount)
        device = cluster.inside("findmnt", "--noheadings", "--output=SOURCE", str(folder)).strip()
        trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
        if not os.access(trigger, os.W_OK):
            pytest.skip(f"no right to make a volume fail here: {trigger} cannot be written")
        await it.install(volume=False, persistence=SMALL)
        await flows(it)
        trigger.write_text("the tests want an error")
        it.stage.tenant.close(it.stage.tenant.pick(20))
        await is_stopped(it, "journal_read_only", "mount it writable")
        await it.kubectl("delete", "pod", pod_of(RELEASE))
        with step("a pod that starts on it names it"):
            await is_described(it, "relay.db is read-only; mount it writable")
        await it.kubectl("scale", "statefulset/relay", "--replicas=0")
        await it.kubectl("wait", f"pod/{pod_of(RELEASE)}", "--for=delete", "--timeout=60s")
        with step("fsck"):
            cluster.inside("umount", str(folder))
            cluster.inside("sh", "-c", f"fsck.ext4 -fy {image} || [ $? -eq 1 ]")
            cluster.inside(*mount)
        await it.kubectl("scale", "statefulset/relay", "--replicas=1")
        await flows(it)
        await is_once_in_kafka(it)
