"""The chart on the node, and what surrounds it: a simulated tenant and a webhook behind TLS, a real Kafka, Secrets.

Each release has its own topic and webhook path. Installs and asks; what has to come of it is for tests to say.
"""

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.e2e.stage import LOOKBACK_SECONDS, PASSWORD, SOURCE, USER, Stage, stage, until
from tests.e2e.verdict import Arrival, Verdict, from_line, from_record, judge
from tests.kube.cluster import MACHINE, Cluster, CommandError
from tests.kube.far import encrypted
from tests.kube.image import NAME
from tests.kube.steps import ROOT
from tests.support import broker
from tests.support.kafka import committed, require_broker
from tests.support.receiver import FINE, Asked, Receiver, Script, Told, receiving
from tests.support.tls import make_certificates

CHART: Final = ROOT / "helm" / "incident-relay"
RELEASE: Final = "relay"
SECRETS: Final = "relay-secrets"
AUTHORITY: Final = "authority"
SIGNING_SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
GRACE_SECONDS: Final = 10
"""`shutdown_grace`; the chart gives the pod 5 s more."""
PATIENCE_SECONDS: Final = 120


@dataclass
class Hook:
    """The far side of every release's webhook. `slow_seconds`: how long it takes to answer; `busy`: with how many."""

    receiver: Receiver
    slow_seconds: float = 0
    busy: int = 0
    accepted: defaultdict[str, list[Arrival]] = field(default_factory=lambda: defaultdict(list))
    """By release: what was answered with 200, in that order."""

    def answer(self, asked: Asked) -> Told | Script:
        """Says 200, when it is time, and takes the event even when nobody waits for the answer any more."""
        release, arrival = asked.target.strip("/"), _from_webhook(asked)

        async def later(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.busy += 1
            try:
                await asyncio.sleep(self.slow_seconds)
            finally:
                self.busy -= 1
            self.accepted[release].append(arrival)
            writer.write(FINE.bytes())

        if self.slow_seconds:
            return later
        self.accepted[release].append(arrival)
        return FINE


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One namespace. `stage.tenant` may be changed, `kafka` killed, `hook` slowed down at any time."""

    cluster: Cluster
    namespace: str
    stage: Stage
    kafka: broker.Cluster
    hook: Hook
    tenant_url: str
    hook_url: str

    # -- what is installed

    def values(self, release: str = RELEASE, **values: Any) -> dict[str, Any]:
        """Everything the relay needs here, with these over it, key by key; a key that is None is left out."""
        source = {
            "base_url": self.tenant_url,
            "token_url": f"{self.tenant_url}/oauth/token",
            "username": USER,
            "password_file": "/run/secrets/relay/acme",
            "poll_interval": "1s",
            "lookback": f"{LOOKBACK_SECONDS}s",
            "backoff": {"initial": "100ms", "max": "1s"},
        }
        webhook = {
            "type": "webhook",
            "url": f"{self.hook_url}/{release}",
            "secrets_file": "/run/secrets/relay/signing",
        }
        base = {
            "image": {"repository": NAME, "tag": "test", "pullPolicy": "Never"},
            "existingSecret": SECRETS,
            "caBundle": {"configMapName": AUTHORITY},
            "persistence": {"size": "1Gi"},
            "configuration": {
                "sources": {SOURCE: source},
                "kafka": {"bootstrap.servers": self.kafka.bootstrap},
                "kafka_prefix": release,
                "sinks": {"siem": {"type": "kafka", "topic": topic_of(release)}, "soar": webhook},
                "shutdown_grace": f"{GRACE_SECONDS}s",
            },
        }
        return _merged(base, values)

    async def install(
        self,
        release: str = RELEASE,
        *,
        wait: bool = True,
        volume: bool = True,
        within: int = PATIENCE_SECONDS,
        **values: Any,
    ) -> str:
        """`helm install`; what it printed. `volume`: whether one is made first. Raises CommandError."""
        if volume:
            await asyncio.to_thread(self.cluster.volume, f"{self.namespace}-{release}")
        return await self._helm("install", release, wait=wait, within=within, values=self.values(release, **values))

    async def upgrade(
        self, release: str = RELEASE, *, wait: bool = True, within: int = PATIENCE_SECONDS, **values: Any
    ) -> str:
        """`helm upgrade` to these values and no others. Raises CommandError."""
        return await self._helm("upgrade", release, wait=wait, within=within, values=self.values(release, **values))

    async def rollback(self, release: str = RELEASE, revision: int = 0, *, within: int = PATIENCE_SECONDS) -> str:
        """`helm rollback` to a revision, 0 for the one before. Raises CommandError."""
        return await self._helm("rollback", release, str(revision), wait=True, within=within)

    async def uninstall(self, release: str = RELEASE) -> None:
        """`helm uninstall`, until its pod is gone."""
        await self._helm("uninstall", release, wait=True, within=PATIENCE_SECONDS)

    async def test(self, release: str = RELEASE) -> str:
        """`helm test --logs`. Raises CommandError when a check failed."""
        line = ("test", release, "--namespace", self.namespace, "--logs", f"--timeout={PATIENCE_SECONDS}s")
        return await asyncio.to_thread(self.cluster.helm, *line)

    # -- what it says

    async def kubectl(self, *arguments: str, within: float = 120) -> str:
        """In this namespace. Raises CommandError."""
        call = partial(self.cluster.kubectl, "--namespace", self.namespace, *arguments, within=within)
        return await asyncio.to_thread(call)

    async def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get … -o json` in this namespace."""
        return await asyncio.to_thread(self.cluster.get, "--namespace", self.namespace, *arguments)

    async def pod(self, release: str = RELEASE) -> dict[str, Any]:
        """The release's one pod. Raises CommandError."""
        return await self.get("pod", pod_of(release))

    async def pods(self, release: str = RELEASE) -> list[dict[str, Any]]:
        """All of the release's that nobody has told to end, by name; not that of `helm test`."""
        found = await self.get("pods", f"--selector={selector_of(release)}", "--sort-by=.metadata.name")
        return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]

    async def ready(self, release: str = RELEASE, *, within: int = PATIENCE_SECONDS) -> None:
        """Waits until its pod is there and Ready."""
        await self.kubectl("wait", f"pod/{pod_of(release)}", "--for=create", f"--timeout={within}s", within=within + 5)
        wait = ("wait", f"pod/{pod_of(release)}", "--for=condition=Ready", f"--timeout={within}s")
        await self.kubectl(*wait, within=within + 5)

    async def said(self, *command: str, release: str = RELEASE, pod: str = "") -> str:
        """What a command within the pod prints; without a name, within the one there is. Raises CommandError."""
        return await self.kubectl("exec", pod or pod_of(release), "--container=relay", "--", *command)

    async def status(self, release: str = RELEASE, *, pod: str = "") -> dict[str, Any]:
        """`relay status --json` within the pod. Raises CommandError."""
        document: dict[str, Any] = json.loads(await self.said("relay", "status", "--json", release=release, pod=pod))
        return document

    async def logs(self, release: str = RELEASE, *options: str) -> str:
        """Of the relay, not of the check before it."""
        return await self.kubectl("logs", pod_of(release), "--container=relay", *options)

    async def happened(self) -> list[str]:
        """The namespace's events, `Reason: message` each."""
        found = await self.get("events", "--sort-by=.metadata.creationTimestamp")
        return [f"{event['reason']}: {event['message']}" for event in found["items"]]

    async def told(self) -> str:
        """All that helps to see why something did not come true."""
        texts = []
        logs = [["logs", pod["metadata"]["name"], "--all-containers", "--tail=30"] for pod in await self.pods()]
        for line in (["get", "all"], ["describe", "pods"], *logs):
            try:
                texts.append(await self.kubectl(*line))
            except CommandError as exc:
                texts.append(str(exc))
        return "\n".join(texts)

    # -- what arrived

    async def events(self, release: str = RELEASE) -> list[Arrival]:
        """What a reader of committed records finds in its topic."""
        records = await asyncio.to_thread(committed, self.kafka.bootstrap, topic_of(release))
        return [from_record(record) for record in records]

    def received(self, release: str = RELEASE) -> list[str]:
        """The ids that its webhook accepted, repeats and all."""
        return [arrival.id for arrival in self.hook.accepted[release]]

    async def verdicts(self, release: str = RELEASE) -> tuple[Verdict, Verdict]:
        """Of Kafka as it is; of the webhook with repeated ids taken once."""
        history = self.stage.tenant.history
        once = list({arrival.id: arrival for arrival in self.hook.accepted[release]}.values())
        return judge(history, await self.events(release)), judge(history, once)

    async def settled(self, release: str = RELEASE, *, within: float = PATIENCE_SECONDS) -> tuple[Verdict, Verdict]:
        """Waits until nothing is owed, one poll more, and judges. Raises TimeoutError, which says what is owed."""
        last: tuple[Verdict, Verdict] | None = None

        async def paid() -> bool:
            nonlocal last
            last = await self.verdicts(release)
            return not any(verdict.missing for verdict in last)

        try:
            await until(paid, "everything was delivered", within=within)
        except TimeoutError as exc:
            exc.add_note(f"{last}\n{await self.told()}")
            raise
        await asyncio.sleep(2)
        return await self.verdicts(release)

    async def _helm(
        self, verb: str, *what: str, wait: bool, within: int, values: Mapping[str, Any] | None = None
    ) -> str:
        line = [verb, *what, "--namespace", self.namespace, f"--timeout={within}s"]
        if values is not None:
            line[2:2] = [str(CHART), "--values=-"]
        if wait:
            line.append("--wait")
        try:
            return await asyncio.to_thread(
                partial(self.cluster.helm, *line, stdin=json.dumps(values or {}), within=within + 30)
            )
        except CommandError as exc:
            if wait:
                exc.add_note(await self.told())
            raise


@asynccontextmanager
async def scene(cluster: Cluster, namespace: str, folder: Path, *, incidents: int = 30) -> AsyncIterator[Scene]:
    """All but a release. Skips the test where no Kafka can be started."""
    require_broker()
    certificates = make_certificates(folder, MACHINE)
    authority = ssl.PEM_cert_to_DER_cert(certificates.ca.read_text().split("-----BEGIN P")[0])
    async with (
        stage(folder, incidents=incidents) as it,
        receiving() as receiver,
        encrypted(it.served.port, certificates) as tenant_url,
        encrypted(receiver.port, certificates) as hook_url,
    ):
        hook = Hook(receiver)
        receiver.answer = hook.answer
        kafka = broker.Cluster(folder / "kafka", host=MACHINE)
        try:
            await asyncio.to_thread(kafka.start)
            secrets = {"acme": PASSWORD, "signing": SIGNING_SECRET}
            trusted = {"ca.pem": ssl.DER_cert_to_PEM_cert(authority)}
            await asyncio.to_thread(
                cluster.apply,
                _object("Secret", namespace, SECRETS, stringData=secrets),
                _object("ConfigMap", namespace, AUTHORITY, data=trusted),
            )
            yield Scene(
                cluster=cluster,
                namespace=namespace,
                stage=it,
                kafka=kafka,
                hook=hook,
                tenant_url=tenant_url,
                hook_url=hook_url,
            )
        finally:
            await asyncio.to_thread(kafka.close)


def full_name(release: str) -> str:
    """What the chart calls its objects."""
    return (
        release
        if "incident-relay" in release or "incident-relay".endswith(f"-{release}")
        else f"{release}-incident-relay"
    )


def pod_of(release: str) -> str:
    """Its one pod."""
    return f"{full_name(release)}-0"


def selector_of(release: str) -> str:
    """By which its pods are found."""
    return f"app.kubernetes.io/instance={release},app.kubernetes.io/component=relay"


def topic_of(release: str) -> str:
    """Where its Kafka sink writes."""
    return f"{release}.incidents"


def _from_webhook(asked: Asked) -> Arrival:
    """A CloudEvent, whose `data` is the value that Kafka gets."""
    event = msgspec.json.decode(asked.body, type=dict[str, msgspec.Raw])
    arrival = from_line(bytes(event["data"]))
    assert arrival.id == asked.headers["webhook-id"]
    return arrival


def _object(kind: str, namespace: str, name: str, **content: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, **content}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result
