"""The node the other tests stand on: that it enforces what they rely on, and that nothing of it stays."""

import asyncio
import json
import time
from typing import Any

import psutil
import pytest

from tests.kube.cluster import MACHINE, Cluster, CommandError
from tests.kube.steps import step

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]

IMAGE = "localhost/incident-relay:test"
RESTRICTED: dict[str, Any] = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(name: str, *command: str, security: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """One that runs this command in the relay's image."""
    container = {
        "name": "relay",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": list(command) or None,
        "securityContext": RESTRICTED if security is None else security,
        **spec.pop("container", {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **spec,
        },
    }


def started(cluster: Cluster, namespace: str, *objects: dict[str, Any]) -> None:
    cluster.kubectl("apply", "--namespace", namespace, "--filename=-", stdin=json.dumps(_list(objects)))
    for document in objects:
        if document["kind"] == "Pod":
            name = document["metadata"]["name"]
            cluster.kubectl("wait", "--namespace", namespace, f"pod/{name}", "--for=condition=Ready", "--timeout=60s")


def _list(objects: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}


WAIT = ("python", "-c", "import time; print('here', flush=True); time.sleep(600)")


def test_a_pod_that_may_write_its_root_or_gain_rights_is_refused(cluster: Cluster, namespace: str) -> None:
    lax = {**RESTRICTED, "allowPrivilegeEscalation": True}
    with pytest.raises(CommandError, match="violates PodSecurity"):
        started(cluster, namespace, pod("lax", *WAIT, security=lax))


def test_the_image_runs_restricted_on_a_read_only_root(cluster: Cluster, namespace: str) -> None:
    started(cluster, namespace, pod("relay", *WAIT))
    at = ("--namespace", namespace)
    assert cluster.kubectl("logs", *at, "relay") == "here\n"
    assert cluster.kubectl("exec", *at, "relay", "--", "relay", "version").strip() == "0.1.0"
    assert cluster.kubectl("exec", *at, "relay", "--", "id", "-u").strip() == "10001"
    with pytest.raises(CommandError, match="Read-only file system"):
        cluster.kubectl("exec", *at, "relay", "--", "touch", "/opt/relay/new")
    [*processes] = cluster.pod_processes("relay", namespace)
    assert [psutil.Process(process).name() for process in processes] == ["python"]


def test_a_local_volume_is_bound_and_belongs_to_the_group(cluster: Cluster, namespace: str) -> None:
    volume = f"{namespace}-journal"
    cluster.volume(volume, "16Mi", memory=True)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "journal"},
        "spec": {
            "accessModes": ["ReadWriteOncePod"],
            "storageClassName": "local",
            "volumeName": volume,
            "resources": {"requests": {"storage": "16Mi"}},
        },
    }
    mounted = pod(
        "relay",
        *WAIT,
        container={"volumeMounts": [{"name": "journal", "mountPath": "/var/lib/relay"}]},
        volumes=[{"name": "journal", "persistentVolumeClaim": {"claimName": "journal"}}],
        securityContext={"fsGroup": 10001},
    )
    started(cluster, namespace, claim, mounted)
    within = ("exec", "--namespace", namespace, "relay", "--")
    cluster.kubectl(*within, "sh", "-c", "echo kept > /var/lib/relay/file")
    assert cluster.kubectl(*within, "stat", "-c", "%g", "/var/lib/relay/file").strip() == "10001"
    with pytest.raises(CommandError, match="No space left on device"):
        cluster.kubectl(*within, "dd", "if=/dev/zero", "of=/var/lib/relay/big", "bs=1M", "count=32")


async def test_pods_reach_services_by_name_and_this_machine_by_address(cluster: Cluster, namespace: str) -> None:
    serving = pod("server", "python", "-m", "http.server", "--directory", "/usr/share/zoneinfo", "8080")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "zones"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nthis machine")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, MACHINE, 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        await asyncio.to_thread(started, cluster, namespace, serving, service, pod("client", *WAIT))
        within = ("exec", "--namespace", namespace, "client", "--", "python", "-c", fetch)
        by_address = await asyncio.to_thread(cluster.kubectl, *within, f"http://{MACHINE}:{port}/")
        assert by_address.strip() == "this machine"
    by_name = await asyncio.to_thread(
        _until_answered, cluster, within, f"http://zones.{namespace}.svc.cluster.local/zone.tab"
    )
    assert "Europe/Vienna" in by_name


def _until_answered(cluster: Cluster, within: tuple[str, ...], url: str) -> str:
    """The proxy writes its rules a moment after the pod is Ready."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return cluster.kubectl(*within, url)
        except CommandError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_a_kubelet_that_is_killed_and_started_again_keeps_its_pods(cluster: Cluster, namespace: str) -> None:
    started(cluster, namespace, pod("relay", *WAIT))
    before = cluster.pod_processes("relay", namespace)
    with step("kubelet killed and back"):
        cluster.kill("kubelet")
        cluster.run("kubelet")
        cluster.kubectl("wait", "node/node", "--for=condition=Ready", "--timeout=60s")
        deadline = time.monotonic() + 60
        while True:
            try:
                assert cluster.kubectl("exec", "--namespace", namespace, "relay", "--", "id", "-u").strip() == "10001"
                break
            except CommandError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
    assert cluster.pod_processes("relay", namespace) == before != []


def test_helm_is_there(cluster: Cluster) -> None:
    assert cluster.helm("version", "--short").startswith("v4.")
    assert cluster.helm("list", "--all-namespaces", "--output=json").strip() == "[]"
