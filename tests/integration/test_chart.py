"""The chart as helm renders it: valid for Kubernetes, restricted, without secrets, and clear about what is wrong.

No cluster: what the rendered objects do is shown in tests/kube.
"""

import hashlib
import json
import re
import shutil
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

from relay import __version__
from relay.assembly import make_rules, make_sink
from relay.roster import CLOSE_SECONDS
from relay.settings import load
from relay.settings.model import Journal, is_secret_option, secret_keys
from relay.transport import tls_context
from tests.kube import tools
from tests.pages import chart as page
from tests.support import packages
from tests.unit.test_docs import anchors

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm" / "incident-relay"
DEPLOY: Final = ROOT / "deploy"
OLDEST, NEWEST = "1.29", "1.37"
FOREIGN: Final = {"ServiceMonitor", "PrometheusRule", "ExternalSecret"}
"""Kinds of operators: Kubernetes itself knows nothing of them."""

SOURCE: Final[Mapping[str, Any]] = {
    "region": "eu",
    "username": "api-user@acme.example",
    "password_file": "/run/secrets/relay/acme",
}
CONFIGURATION: Final[Mapping[str, Any]] = {
    "sources": {"acme": SOURCE},
    "kafka": {"bootstrap.servers": "kafka.example:9094,other.example:9095"},
    "sinks": {"siem": {"type": "kafka", "topic": "eset.incidents"}},
}
USUAL: Final[Mapping[str, Any]] = {"existingSecret": "relay-secrets", "configuration": CONFIGURATION}
PROXY: Final = {"https": "http://proxy.example:3128", "http": "http://proxy.example:3129"}
EVERYTHING: Final[Mapping[str, Any]] = {
    **USUAL,
    "secrets": [{"secretName": "more", "items": [{"key": "a", "path": "b"}], "optional": True}],
    "externalSecret": {
        "enabled": True,
        "secretStoreRef": {"name": "vault"},
        "data": [{"secretKey": "acme", "remoteRef": {"key": "eset/acme"}}],
        "dataFrom": [{"extract": {"key": "eset/more"}}],
    },
    "image": {"repository": "registry.example:5000/relay", "digest": f"sha256:{'a' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "commonLabels": {"team": "soc"},
    "persistence": {"storageClass": "fast", "size": "20Gi", "annotations": {"backup": "daily"}},
    "serviceAccount": {"annotations": {"owner": "soc"}},
    "service": {"annotations": {"a": "b"}},
    "proxy": PROXY,
    "caBundle": {"configMapName": "ca"},
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "envFrom": [{"secretRef": {"name": "more"}}],
    "extraVolumes": [
        {"name": "out", "persistentVolumeClaim": {"claimName": "out"}},
        {"name": "more", "configMap": {"name": "more"}},
    ],
    "extraVolumeMounts": [{"name": "out", "mountPath": "/out"}, {"name": "more", "mountPath": "/more"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "soc"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "soc", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
            }
        }
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
    ],
    "priorityClassName": "high",
    "networkPolicy": {
        "enabled": True,
        "ingress": {"from": [{"namespaceSelector": {}}]},
        "egress": {
            "https": {"ports": [443, 8443], "to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]},
            "extra": [{"ports": [{"protocol": "TCP", "port": 25}]}],
        },
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "relabelings": [{"action": "keep"}]},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True, "annotations": {"folder": "Security"}},
}
ON_KAFKA: Final[Mapping[str, Any]] = {**USUAL, "configuration": {**CONFIGURATION, "journal": {"kind": "kafka"}}}
EVERYTHING_ON_KAFKA: Final[Mapping[str, Any]] = {
    **{key: value for key, value in EVERYTHING.items() if key not in ("persistence", "topologySpreadConstraints")},
    "configuration": {**CONFIGURATION, "journal": {"kind": "kafka", "partitions": 32, "retention": "30d"}},
    "replicas": 5,
    "podDisruptionBudget": {"maxUnavailable": 2},
    "cache": {"sizeLimit": "2Gi"},
}
MATRIX: Final[Mapping[str, Mapping[str, Any]]] = {
    "nothing but defaults": {},
    "usual": USUAL,
    "everything": EVERYTHING,
    "existing claim": {**USUAL, "persistence": {"existingClaim": "journal"}},
    "no volume": {**USUAL, "persistence": {"enabled": False}},
    "a secret as CA": {**USUAL, "proxy": PROXY, "caBundle": {"secretName": "ca", "key": "root.crt"}},
    "no check, no account": {
        **USUAL,
        "configCheck": {"enabled": False},
        "serviceAccount": {"create": False, "name": "mine"},
    },
    "nobody in": {**USUAL, "networkPolicy": {"enabled": True}},
    "only absent": {**USUAL, "prometheusRule": {"enabled": True, "onlyAbsent": True}},
    "the Kafka journal": ON_KAFKA,
    "everything on the Kafka journal": EVERYTHING_ON_KAFKA,
    "a single replica": {**ON_KAFKA, "replicas": 1, "podDisruptionBudget": {"enabled": False}},
}
RELEASES: Final = ("relay", "blue", "incident-relay", "a" * 53)


@pytest.fixture(scope="module", autouse=True)
def helm() -> Path:
    if not (tools.BIN / "helm").exists() and (reason := tools.missing()).startswith("kubectl and helm"):
        pytest.skip(reason)
    tools.fetch()
    return tools.BIN / "helm"


def run(*arguments: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [tools.BIN / "helm", *arguments], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0 or not check, done.stderr
    return done


def template(
    values: Mapping[str, Any], *more: str, release: str = "relay", chart: Path = CHART
) -> "subprocess.CompletedProcess[str]":
    """As helm says it, its answer unread."""
    return _template(json.dumps(values), (release, chart, "--namespace", "soc", *more))


@cache
def _template(values: str, arguments: tuple[Any, ...]) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [tools.BIN / "helm", "template", *arguments, "--values", "-"],
        input=values,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, 1)
    return done


def rendered(values: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    done = template(values, **options)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document is not None]


def one(objects: list[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(suffix)]
    return found


def the(values: Mapping[str, Any], kind: str, suffix: str = "", **options: Any) -> dict[str, Any]:
    return one(rendered(values, **options), kind, suffix)


def workload(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """What makes the relay's pods."""
    (found,) = [one for one in objects if one["kind"] in ("StatefulSet", "Deployment")]
    return found


def spec(values: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Of the relay's pod."""
    found: dict[str, Any] = workload(rendered(values, **options))["spec"]["template"]["spec"]
    return found


def container(pod: Mapping[str, Any], name: str = "relay") -> dict[str, Any]:
    (found,) = [one for one in [*pod["containers"], *pod.get("initContainers", [])] if one["name"] == name]
    return dict(found)


def env(pod: Mapping[str, Any], name: str = "relay") -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container(pod, name)["env"]}


def with_configuration(**keys: Any) -> dict[str, Any]:
    return {**USUAL, "configuration": {**CONFIGURATION, **keys}}


def on_kafka(journal: Mapping[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """With the Kafka journal and more keys of it, and others of the configuration."""
    return with_configuration(journal={"kind": "kafka", **(journal or {})}, **keys)


def refusal(values: Mapping[str, Any]) -> str:
    """What helm says when it installs nothing."""
    done = template(values)
    assert done.returncode == 1, "was not refused"
    assert done.stdout == ""
    return done.stderr


# -- it is valid


def test_lint_finds_nothing() -> None:
    for values in ({}, EVERYTHING, EVERYTHING_ON_KAFKA):
        done = subprocess.run(
            [tools.BIN / "helm", "lint", "--strict", CHART, "--values", "-"],
            input=json.dumps(values),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert "WARNING" not in done.stdout


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_object_is_one_that_kubernetes_takes(values: Mapping[str, Any], version: str) -> None:
    for found in rendered(values):
        if found["kind"] not in FOREIGN:
            kubernetes_validate.validate(found, version, strict=True)


def test_the_validation_finds_a_field_that_does_not_exist() -> None:
    broken = the(USUAL, "StatefulSet")
    broken["spec"]["template"]["spec"]["enableServicelinks"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


def test_the_oldest_kubernetes_is_the_one_that_the_chart_names() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"
    assert run("template", "relay", CHART, "--kube-version", f"{OLDEST}.0").returncode == 0
    assert "kubeVersion" in run("template", "relay", CHART, "--kube-version", "1.28.9", check=False).stderr


def test_chart_relay_and_image_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    assert container(spec({}))["image"] == f"incident-relay:{__version__}"


def test_every_switch_renders_with_every_other() -> None:
    switches: list[dict[str, Any]] = [
        {"persistence": {"enabled": False}},
        {"caBundle": {"configMapName": "ca"}},
        {"proxy": PROXY},
        {"networkPolicy": {"enabled": True, "ingress": {"from": [{"podSelector": {}}]}}},
        {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}},
        {"configCheck": {"enabled": False}},
    ]
    for first, second in combinations(switches, 2):
        assert len(rendered({**USUAL, **first, **second})) >= 5
        assert len(rendered({**ON_KAFKA, **first, **second})) >= 5


# -- names


@pytest.mark.parametrize("release", RELEASES)
def test_no_name_and_no_label_is_too_long(release: str) -> None:
    for values in (USUAL, EVERYTHING, EVERYTHING_ON_KAFKA, {**USUAL, "nameOverride": "n" * 70}):
        for found in rendered(values, release=release):
            assert len(found["metadata"]["name"]) <= 63
            labels = (
                found["metadata"]["labels"] | found["spec"].get("selector", {}).get("matchLabels", {})
                if (found["kind"] in ("StatefulSet", "Deployment"))
                else found["metadata"]["labels"]
            )
            assert all(len(text) <= 63 for text in labels.values()), found["kind"]
            if found["kind"] == "StatefulSet":  # its pods are labelled with the name, a hyphen and ten characters
                assert len(found["metadata"]["name"]) <= 52


def test_long_releases_that_begin_alike_get_different_names() -> None:
    names = {the(USUAL, "StatefulSet", release=f"{'a' * 52}{end}")["metadata"]["name"] for end in "xy"}
    assert len(names) == 2


@pytest.mark.parametrize("values", [EVERYTHING, EVERYTHING_ON_KAFKA], ids=["one pod", "replicas"])
def test_two_releases_in_one_namespace_share_nothing(values: Mapping[str, Any]) -> None:
    blue, green = rendered(values, release="blue"), rendered(values, release="green")
    named = [{(found["kind"], found["metadata"]["name"]) for found in release} for release in (blue, green)]
    assert len(named[0]) == len(blue)
    assert named[0].isdisjoint(named[1])
    pods = [workload(release)["spec"]["template"]["metadata"]["labels"] for release in (blue, green)]
    for release, other in ((blue, pods[1]), (green, pods[0])):
        for selector in (
            workload(release)["spec"]["selector"]["matchLabels"],
            one(release, "Service")["spec"]["selector"],
            one(release, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
            one(release, "ServiceMonitor")["spec"]["selector"]["matchLabels"],
        ):
            assert not selector.items() <= other.items()


@pytest.mark.parametrize("values", [EVERYTHING, EVERYTHING_ON_KAFKA], ids=["one pod", "replicas"])
def test_the_service_leads_to_the_relay_and_not_to_the_test(values: Mapping[str, Any]) -> None:
    objects = rendered(values)
    selector = one(objects, "Service")["spec"]["selector"].items()
    assert selector <= workload(objects)["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= one(objects, "Pod")["metadata"]["labels"].items()


def test_a_release_called_relay_gets_no_service_links() -> None:
    for values in (USUAL, ON_KAFKA):
        objects = rendered(values, release="relay")
        assert one(objects, "Service")["metadata"]["name"] == "relay"
        assert workload(objects)["spec"]["template"]["spec"]["enableServiceLinks"] is False
        assert one(objects, "Pod")["spec"]["enableServiceLinks"] is False


# -- upgrades


def test_what_kubernetes_never_lets_change_is_the_same_in_another_version(tmp_path: Path) -> None:
    newer = tmp_path / "incident-relay"
    shutil.copytree(CHART, newer)
    text = (newer / "Chart.yaml").read_text().replace(__version__, "9.9.9")
    (newer / "Chart.yaml").write_text(text)
    old, new = (the(ON_KAFKA, "Deployment", chart=chart) for chart in (CHART, newer))
    assert old["metadata"]["labels"] != new["metadata"]["labels"]
    assert old["spec"]["selector"] == new["spec"]["selector"]
    before, after = (the(EVERYTHING, "StatefulSet", chart=chart) for chart in (CHART, newer))
    assert before["metadata"]["labels"] != after["metadata"]["labels"]
    for key in ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"):
        assert before["spec"][key] == after["spec"][key]


def test_a_new_chart_alone_makes_no_new_pod(tmp_path: Path) -> None:
    newer = tmp_path / "incident-relay"
    shutil.copytree(CHART, newer)
    text = (newer / "Chart.yaml").read_text().replace(f"\nversion: {__version__}", "\nversion: 9.9.9")
    (newer / "Chart.yaml").write_text(text)
    for values in (EVERYTHING, EVERYTHING_ON_KAFKA):
        before, after = (workload(rendered(values, chart=chart))["spec"]["template"] for chart in (CHART, newer))
        assert before == after


@pytest.mark.parametrize("values", [USUAL, ON_KAFKA], ids=["one pod", "replicas"])
def test_a_changed_configuration_makes_a_new_pod_and_nothing_else_does(values: Mapping[str, Any]) -> None:
    def checksum(values: Mapping[str, Any]) -> str:
        annotations = workload(rendered(values))["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/configuration"])

    sources = {"sources": {"acme": {**SOURCE, "poll_interval": "30s"}}}
    changed = {**values, "configuration": {**values["configuration"], **sources}}
    assert checksum(changed) != checksum(values)
    assert checksum({**values, "resources": {}}) == checksum(values)


def test_one_pod_whatever_happens() -> None:
    found = the(USUAL, "StatefulSet")["spec"]
    assert found["replicas"] == 1
    assert found["podManagementPolicy"] == "Parallel"
    assert not [one for one in rendered(EVERYTHING) if one["kind"] == "PodDisruptionBudget"]
    assert "additional properties 'replicaCount' not allowed" in refusal({**USUAL, "replicaCount": 2})
    assert the({**USUAL, "replicas": 0}, "StatefulSet")["spec"]["replicas"] == 0


# -- several pods


def test_the_kafka_journal_is_a_deployment_without_a_volume() -> None:
    objects = rendered(ON_KAFKA)
    assert {one["kind"] for one in objects} == {
        "PodDisruptionBudget",
        "ServiceAccount",
        "ConfigMap",
        "Service",
        "Deployment",
        "Pod",
    }
    pod = workload(objects)["spec"]["template"]["spec"]
    assert not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume or "ephemeral" in volume]
    assert {volume["name"]: volume for volume in pod["volumes"]}["cache"] == {
        "name": "cache",
        "emptyDir": {"sizeLimit": "5Gi"},
    }
    assert "PodDisruptionBudget" not in {one["kind"] for one in rendered(MATRIX["a single replica"])}


def test_how_many_replicas_there_are_is_one_value_which_alone_makes_no_new_pod() -> None:
    assert the(ON_KAFKA, "Deployment")["spec"]["replicas"] == 2
    more = the({**ON_KAFKA, "replicas": 16}, "Deployment")["spec"]
    assert more["replicas"] == 16
    assert more["template"] == the(ON_KAFKA, "Deployment")["spec"]["template"]
    assert the({**ON_KAFKA, "replicas": 0}, "Deployment")["spec"]["replicas"] == 0


def test_a_new_replica_has_joined_before_an_old_one_leaves() -> None:
    found = the(ON_KAFKA, "Deployment")["spec"]
    assert found["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert found["minReadySeconds"] == 10


def test_a_drained_node_takes_one_replica_at_a_time_and_never_waits_for_a_broken_one() -> None:
    objects = rendered(ON_KAFKA)
    budget = one(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    selector = budget["selector"]["matchLabels"].items()
    assert selector <= workload(objects)["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= one(objects, "Pod")["metadata"]["labels"].items()
    assert the(EVERYTHING_ON_KAFKA, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 2


def test_replicas_go_to_different_nodes_where_there_are_any_unless_told_otherwise() -> None:
    objects = rendered(ON_KAFKA)
    (constraint,) = workload(objects)["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "kubernetes.io/hostname"
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
    assert constraint["labelSelector"] == workload(objects)["spec"]["selector"]
    own = {"topologySpreadConstraints": EVERYTHING["topologySpreadConstraints"]}
    assert spec({**ON_KAFKA, **own})["topologySpreadConstraints"] == EVERYTHING["topologySpreadConstraints"]
    assert "topologySpreadConstraints" not in spec(USUAL)


def test_the_cache_and_the_socket_beside_it_are_where_a_replica_can_write(tmp_path: Path) -> None:
    pod = spec(ON_KAFKA)
    for name in ("relay", "check"):
        mounts = {mount["mountPath"]: mount["name"] for mount in container(pod, name)["volumeMounts"]}
        assert mounts["/var/lib/relay"] == "cache"
        assert env(pod, name)["RELAY_JOURNAL__CACHE_DIR"] == "/var/lib/relay/cache"
        assert "RELAY_JOURNAL__PATH" not in env(pod, name)
    configuration = tmp_path / "relay.yaml"
    configuration.write_text(
        the(ON_KAFKA, "ConfigMap")["data"]["relay.yaml"].replace(SOURCE["password_file"], "secret")
    )
    (tmp_path / "secret").write_text("secret")
    given = {name: value for name, value in env(pod).items() if name.startswith("RELAY_") and name != "RELAY_CONFIG"}
    settings = load(configuration, given, tmp_path)
    assert settings.journal.cache_dir == Path("/var/lib/relay/cache")
    assert settings.admin_socket_path.parent == Path("/var/lib/relay")
    assert settings.kafka_prefix == "soc-relay"
    own = {**CONFIGURATION, "journal": {"kind": "kafka", "cache_dir": "/fast/cache"}}
    fast = {
        "extraVolumes": [{"name": "fast", "emptyDir": {"medium": "Memory"}}],
        "extraVolumeMounts": [{"name": "fast", "mountPath": "/fast"}],
    }
    assert "RELAY_JOURNAL__CACHE_DIR" not in env(spec({**ON_KAFKA, "configuration": own, **fast}))


def test_the_chart_and_the_relay_agree_on_how_many_partitions_there_are() -> None:
    """The chart has to know the default, for more replicas than that are refused."""
    default = Journal.model_fields["partitions"].default
    assert rendered({**ON_KAFKA, "replicas": default})
    assert f"but configuration.journal.partitions {default}" in refusal({**ON_KAFKA, "replicas": default + 1})


# -- the pod


@pytest.mark.parametrize(
    ("grace", "seconds"),
    [
        ("25s", 30),
        ("1m30s", 95),
        ("0s", 5),
        ("1500ms", 7),
        ("1h", 3605),
        ("1d2h3m4s5ms", 93790),
        ("08s", 13),
    ],
)
def test_kubernetes_waits_for_the_grace_and_for_what_comes_after_it(grace: str, seconds: int) -> None:
    assert spec(with_configuration(shutdown_grace=grace))["terminationGracePeriodSeconds"] == seconds


def test_the_margin_is_longer_than_the_closing_of_sinks() -> None:
    assert spec(USUAL)["terminationGracePeriodSeconds"] - 25 > CLOSE_SECONDS + 1


def test_a_grace_that_cannot_be_read_is_refused_by_name() -> None:
    assert "/configuration/shutdown_grace" in refusal(with_configuration(shutdown_grace="soon"))
    done = template(with_configuration(shutdown_grace="soon"), "--skip-schema-validation")
    assert "configuration.shutdown_grace is not a duration; write 25s or 1m30s" in done.stderr


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_pod_meets_the_standard_restricted(values: Mapping[str, Any]) -> None:
    objects = rendered(values)
    for pod in (workload(objects)["spec"]["template"]["spec"], one(objects, "Pod")["spec"]):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
        for each in [*pod["containers"], *pod.get("initContainers", [])]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not each["image"].endswith(":latest")
            assert each["resources"]["limits"].keys() == {"memory"}
        allowed = {"configMap", "emptyDir", "projected", "persistentVolumeClaim", "secret"}
        assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    for account in [one for one in objects if one["kind"] == "ServiceAccount"]:
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("values", [USUAL, ON_KAFKA], ids=["one pod", "replicas"])
def test_probes_ask_what_the_contract_says(values: Mapping[str, Any]) -> None:
    relay = container(spec(values))
    paths = {name: relay[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {
        "startupProbe": {"path": "/livez", "port": "http"},
        "livenessProbe": {"path": "/livez", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
    }
    startup = relay["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 600


def test_a_chosen_port_is_that_of_container_and_probes_while_the_service_keeps_its_own() -> None:
    objects = rendered(with_configuration(http={"port": 9090}))
    pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
    assert container(pod)["ports"] == [{"name": "http", "containerPort": 9090}]
    assert one(objects, "Service")["spec"]["ports"] == [{"name": "http", "port": 8080, "targetPort": "http"}]


@pytest.mark.parametrize("values", [EVERYTHING, EVERYTHING_ON_KAFKA], ids=["one pod", "replicas"])
def test_the_check_and_the_test_see_what_the_relay_sees(values: Mapping[str, Any]) -> None:
    objects = rendered(values)
    pod = workload(objects)["spec"]["template"]["spec"]
    relay, check = container(pod), container(pod, "check")
    test = one(objects, "Pod")["spec"]["containers"][0]
    assert [relay["args"], check["args"], test["args"]] == [["run"], ["check", "--offline"], ["check"]]
    for key in ("image", "env", "envFrom", "volumeMounts", "securityContext"):
        assert relay[key] == check[key] == test[key], key
    for each in (relay, check, test):
        assert each["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert "initContainers" not in spec({**USUAL, "configCheck": {"enabled": False}})


def test_the_test_takes_no_volume_that_the_relay_has() -> None:
    test = the(EVERYTHING, "Pod")
    volumes = {volume.pop("name"): volume for volume in test["spec"]["volumes"]}
    assert volumes["journal"] == volumes["out"] == {"emptyDir": {}}
    assert volumes["more"] == {"configMap": {"name": "more"}}
    assert test["spec"]["restartPolicy"] == "Never"
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert test["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation"


def test_every_mount_has_its_volume_and_no_volume_is_idle() -> None:
    for values in MATRIX.values():
        objects = rendered(values)
        claims = workload(objects)["spec"].get("volumeClaimTemplates", [])
        for pod, more in (
            (workload(objects)["spec"]["template"]["spec"], claims),
            (one(objects, "Pod")["spec"], []),
        ):
            volumes = [volume["name"] for volume in pod["volumes"]] + [claim["metadata"]["name"] for claim in more]
            mounts = [mount["name"] for mount in pod["containers"][0]["volumeMounts"]]
            assert sorted(volumes) == sorted(mounts)


def test_what_users_add_reaches_the_pod() -> None:
    pod = spec(EVERYTHING)
    for key in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName"):
        assert pod[key] == EVERYTHING[key]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    metadata = the(EVERYTHING, "StatefulSet")["spec"]["template"]["metadata"]
    assert metadata["labels"]["team"] == "soc"
    assert metadata["annotations"]["a"] == "b"
    assert container(pod)["image"] == f"registry.example:5000/relay:{__version__}@sha256:{'a' * 64}"
    for values in (EVERYTHING, EVERYTHING_ON_KAFKA):
        assert all(found["metadata"]["labels"]["team"] == "soc" for found in rendered(values))


def test_a_mirror_of_openshift_may_choose_the_user() -> None:
    pod = spec({**USUAL, "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}})
    assert pod["securityContext"].keys() == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}


# -- the configuration


def test_the_configuration_is_the_users_own_and_the_relay_can_read_it(tmp_path: Path) -> None:
    configuration = {
        **CONFIGURATION,
        "api": {"requests_per_second": 2.5},
        "kafka": {"bootstrap.servers": "kafka.example", "message.max.bytes": 1000000, "socket.keepalive.enable": True},
        "sinks": {
            "siem": {"type": "kafka", "topic": "eset.{source}", "max_event_bytes": "900KiB", "create_topic": False},
            "out": {"type": "stdout", "when": 'incident.severity == "HIGH" && event.sequence > 1', "omit": ["tags"]},
        },
    }
    written = the({**USUAL, "configuration": configuration}, "ConfigMap")["data"]["relay.yaml"]
    assert yaml.safe_load(written) == configuration
    assert "1e+06" not in written
    settings = _loaded(written, tmp_path)
    assert settings.kafka_options("siem")["message.max.bytes"] == "1000000"


def test_the_journal_is_on_its_volume() -> None:
    pod = spec(USUAL)
    mounts = {mount["mountPath"]: mount["name"] for mount in container(pod)["volumeMounts"]}
    for name in ("relay", "check"):
        assert env(pod, name)["RELAY_CONFIG"] == "/etc/relay/relay.yaml"
        assert env(pod, name)["RELAY_JOURNAL__PATH"] == "/var/lib/relay/relay.db"
    assert mounts["/var/lib/relay"] == "journal"
    assert mounts["/etc/relay"] == "configuration"
    own = with_configuration(journal={"path": "/var/lib/relay/state/relay.db"})
    assert "RELAY_JOURNAL__PATH" not in env(spec(own))


def test_releases_are_told_apart_in_kafka() -> None:
    assert env(spec(USUAL))["RELAY_KAFKA_PREFIX"] == "soc-relay"
    assert "RELAY_KAFKA_PREFIX" not in env(spec(with_configuration(kafka_prefix="relay")))


def test_the_volume_is_one_that_a_single_pod_may_have() -> None:
    (claim,) = the(USUAL, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "journal"
    assert claim["spec"] == {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "5Gi"}}}
    (claim,) = the(EVERYTHING, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    own = the(MATRIX["existing claim"], "StatefulSet")["spec"]
    assert "volumeClaimTemplates" not in own
    volumes = {volume["name"]: volume for volume in own["template"]["spec"]["volumes"]}
    assert volumes["journal"]["persistentVolumeClaim"] == {"claimName": "journal"}
    volumes = {volume["name"]: volume for volume in spec(MATRIX["no volume"])["volumes"]}
    assert volumes["journal"]["emptyDir"] == {"sizeLimit": "5Gi"}


def test_secrets_are_files_that_a_rotation_reaches() -> None:
    pod = spec(EVERYTHING)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["secrets"]["projected"] == {
        "defaultMode": 0o440,
        "sources": [
            {"secret": {"name": "relay-secrets"}},
            {"secret": {"name": "relay"}},
            {"secret": {"name": "more", "items": [{"key": "a", "path": "b"}], "optional": True}},
        ],
    }
    (mount,) = [mount for mount in container(pod)["volumeMounts"] if mount["name"] == "secrets"]
    assert mount == {"name": "secrets", "mountPath": "/run/secrets/relay", "readOnly": True}
    external = the(EVERYTHING, "ExternalSecret")
    assert external["spec"]["target"] == {"name": "relay"}
    assert external["spec"]["secretStoreRef"] == {"name": "vault", "kind": "SecretStore"}
    assert not [found for found in rendered(EVERYTHING) if found["kind"] == "Secret"]


def test_proxy_and_authorities_are_variables_that_the_relay_heeds() -> None:
    found = env(spec(EVERYTHING))
    assert found["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert found["HTTP_PROXY"] == "http://proxy.example:3129"
    assert found["NO_PROXY"] == "localhost,127.0.0.1,.svc,.cluster.local"
    assert found["SSL_CERT_FILE"] == "/etc/relay-ca/ca.pem"
    assert not {"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE"} & env(spec(USUAL)).keys()
    for values, kind, key in (
        (EVERYTHING, "configMap", "ca.pem"),
        (MATRIX["a secret as CA"], "secret", "root.crt"),
    ):
        volumes = {volume["name"]: volume for volume in spec(values)["volumes"]}
        source = {kind: {"name": "ca", "items": [{"key": key, "path": "ca.pem"}]}}
        assert volumes["ca"]["projected"]["sources"] == [source]


def test_the_relay_trusts_the_bundle_beside_the_authorities_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {name: _certificate(tmp_path / name) for name in ("bundle", "system", "stranger")}
    ask = ["openssl", "x509", "-hash", "-noout", "-in", str(made["system"])]
    digest = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    folder = tmp_path / "etc"  # as /etc/ssl/certs has them, by the hash of the name
    folder.mkdir()
    (folder / f"{digest}.0").write_bytes(made["system"].read_bytes())
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    monkeypatch.setenv("SSL_CERT_FILE", str(made["bundle"]))
    assert _shake_hands(made["bundle"])
    assert _shake_hands(made["system"])
    assert not _shake_hands(made["stranger"])
    monkeypatch.delenv("SSL_CERT_FILE")
    assert not _shake_hands(made["bundle"])


def _certificate(path: Path) -> Path:
    """Of a server that is its own authority, with its key."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    about = ["-subj", f"/CN={path.name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = path.with_suffix(".key")
    subprocess.run([*new, *about, "-keyout", key, "-out", path], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


def _shake_hands(certificate: Path) -> bool:
    """Whether the relay takes the certificate of a server, without a socket."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls_context().wrap_bio(ours, theirs, server_hostname="127.0.0.1")
    its = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    its.load_cert_chain(certificate)
    server = its.wrap_bio(theirs, ours, server_side=True)
    try:
        for _ in range(4):
            for side in (client, server):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError:
        return False
    return client.version() is not None


# -- around it


def test_the_network_policy_lets_in_and_out_what_was_said() -> None:
    policy = the(EVERYTHING, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": "http"}]}]
    dns, https, kafka, proxy, extra = policy["egress"]
    assert dns == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    assert https["to"] == [{"ipBlock": {"cidr": "203.0.113.0/24"}}]
    assert [port["port"] for port in https["ports"]] == [443, 8443]
    assert [port["port"] for port in kafka["ports"]] == [9094, 9095]
    assert [port["port"] for port in proxy["ports"]] == [3128, 3129]
    assert extra == {"ports": [{"protocol": "TCP", "port": 25}]}
    shut = the(MATRIX["nobody in"], "NetworkPolicy")["spec"]
    assert shut["ingress"] == []
    assert len(shut["egress"]) == 3
    without = with_configuration(kafka={}, sinks={"out": {"type": "stdout"}}) | {"networkPolicy": {"enabled": True}}
    assert len(the(without, "NetworkPolicy")["spec"]["egress"]) == 2


def test_prometheus_is_told_where_to_scrape() -> None:
    monitor = the(EVERYTHING, "ServiceMonitor")
    service = the(EVERYTHING, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_the_alerts_are_those_of_everybody_else() -> None:
    theirs = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    ours = the(
        {**USUAL, "prometheusRule": {"enabled": True, "runbook": "https://wiki.example/relay"}}, "PrometheusRule"
    )
    text = json.dumps(ours["spec"])
    assert "https://wiki.example/relay#incidentrelayabsent" in text
    for new, old in (
        (r"job=\"relay\",namespace=\"soc\"", r"job=\"incident-relay\""),
        ("https://wiki.example/relay#", "docs/operations.md#"),
    ):
        assert new in text
        text = text.replace(new, old)
    assert json.loads(text) == theirs


def test_the_alerts_as_rendered_are_ones_that_prometheus_takes(tmp_path: Path) -> None:
    packages.skip_without("promtool")
    for name in ("everything", "only absent"):
        file = tmp_path / "rules.yaml"
        file.write_text(yaml.safe_dump(the(MATRIX[name], "PrometheusRule")["spec"]))
        done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_second_release_can_leave_the_shared_alerts_to_the_first() -> None:
    (group,) = the(MATRIX["only absent"], "PrometheusRule")["spec"]["groups"]
    assert [rule["alert"] for rule in group["rules"]] == ["IncidentRelayAbsent"]


def test_the_dashboard_is_that_of_everybody_else() -> None:
    found = the(EVERYTHING, "ConfigMap", "-dashboard")
    assert found["data"]["incident-relay.json"] == (DEPLOY / "grafana" / "relay.json").read_text()
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "configuration names no source and no sink"),
        (with_configuration(sinks={}), "configuration names no sink"),
        (MATRIX["no volume"], "persistence.enabled is false"),
        (USUAL, "helm test relay --namespace soc --logs"),
        (USUAL, "kubectl --namespace soc exec relay-0 -- relay status"),
        (USUAL, "port-forward service/relay 8080:8080"),
        (USUAL, "http://relay.soc.svc:8080/metrics"),
        (USUAL, "Load the alerts"),
        (EVERYTHING, "Prometheus scrapes /metrics as job relay"),
        (ON_KAFKA, "2 replicas on the Kafka journal"),
        (ON_KAFKA, "kubectl --namespace soc rollout status deployment/relay"),
        (ON_KAFKA, "kubectl --namespace soc exec deployment/relay -- relay status"),
        (ON_KAFKA, "--selector app.kubernetes.io/instance=relay,app.kubernetes.io/component=relay"),
        ({**ON_KAFKA, "replicas": 1}, "1 replica on the Kafka journal"),
        ({**ON_KAFKA, "replicas": 0}, "replicas is 0"),
    ],
)
def test_the_notes_say_what_to_do_next(values: Mapping[str, Any], said: str) -> None:
    notes = _notes(values)
    assert said in notes
    assert all(len(line) <= 130 for line in notes.splitlines())


def test_a_good_installation_is_not_warned_of() -> None:
    for values in (USUAL, ON_KAFKA, {**ON_KAFKA, "persistence": {"enabled": False}}):
        assert "WARNING" not in _notes(values)


def _notes(values: Mapping[str, Any]) -> str:
    done = subprocess.run(
        [tools.BIN / "helm", "install", "relay", CHART, "--dry-run=client", "--namespace", "soc", "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


# -- what is refused

HIDDEN: Final = "tr0ub4dor"
_SLACK: Final = {"type": "slack"}
PLAIN: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "configuration.sources.acme.password": (
        {"sources": {"acme": {"region": "eu", "username": "a", "password": HIDDEN}}},
        "password_file: /run/secrets/relay/KEY",
    ),
    "configuration.sources.acme.proxy": (
        {"sources": {"acme": {**SOURCE, "proxy": f"http://me:{HIDDEN}@proxy.example"}}},
        "proxy_file: /run/secrets/relay/KEY",
    ),
    "configuration.sinks.soc.url": (
        {"sinks": {"soc": {"type": "slack", "url": f"https://hooks.example/{HIDDEN}"}}},
        "url_file: /run/secrets/relay/KEY",
    ),
    "configuration.sinks.desk.url": (
        {"sinks": {"desk": {"type": "teams", "url": f"https://hooks.example/{HIDDEN}"}}},
        "url_file: /run/secrets/relay/KEY",
    ),
    "configuration.sinks.soar.url": (
        {"sinks": {"soar": {"type": "webhook", "url": f"https://soar.example/?token={HIDDEN}"}}},
        "url_file: /run/secrets/relay/KEY",
    ),
    "configuration.sinks.soar.secrets": (
        {"sinks": {"soar": {"type": "webhook", "url": "https://soar.example/", "secrets": HIDDEN}}},
        "secrets_file: /run/secrets/relay/KEY",
    ),
    "configuration.sinks.soar.headers.Authorization": (
        {"sinks": {"soar": {"type": "webhook", "url": "https://a.example/", "headers": {"Authorization": HIDDEN}}}},
        "Authorization_file: /run/secrets/relay/KEY",
    ),
    "configuration.sinks.soar.proxy": (
        {"sinks": {"soar": {"type": "webhook", "url": "https://a.example/", "proxy": f"http://a:{HIDDEN}@proxy"}}},
        "proxy_file: /run/secrets/relay/KEY",
    ),
    "configuration.kafka.sasl.password": (
        {"kafka": {"bootstrap.servers": "a", "sasl.password": HIDDEN}},
        "sasl.password_file: /run/secrets/relay/KEY",
    ),
    "configuration.kafka.ssl.key.pem": (
        {"kafka": {"bootstrap.servers": "a", "ssl.key.pem": HIDDEN}},
        "ssl.key.pem_file: /run/secrets/relay/KEY",
    ),
    "configuration.sinks.siem.kafka.sasl.password": (
        {"sinks": {"siem": {"type": "kafka", "topic": "a", "kafka": {"sasl.password": HIDDEN}}}},
        "sasl.password_file: /run/secrets/relay/KEY",
    ),
}


@pytest.mark.parametrize(("key", "plain"), PLAIN.items(), ids=PLAIN.keys())
def test_a_secret_in_the_configuration_is_refused_by_name_and_not_shown(
    key: str, plain: tuple[Mapping[str, Any], str]
) -> None:
    said = refusal(with_configuration(**plain[0]))
    assert f"{key} is a secret, and would stand in a ConfigMap; put it into a Secret" in said
    assert plain[1] in said
    assert HIDDEN not in said


def test_every_key_that_the_relay_hides_is_one_that_the_chart_refuses() -> None:
    """A secret that is added to the settings has to be added here."""
    from relay.settings import SlackSink, Source, TeamsSink, WebhookSink  # noqa: PLC0415

    known = {key.rsplit(".", 2)[-1] for key in PLAIN} | {"headers"}
    for group in (Source, WebhookSink, SlackSink, TeamsSink):
        assert set(secret_keys(group)) <= known
    pattern = re.search(r'regexMatch "(pas\|[^"]+)"', (CHART / "templates" / "refused.yaml").read_text())
    assert pattern is not None
    for option in (
        "sasl.password",
        "ssl.key.pem",
        "sasl.oauthbearer.config",
        "x.secret.y",
        "bootstrap.servers",
        "acks",
    ):
        assert bool(re.search(pattern[1].replace("\\\\", "\\"), option)) is is_secret_option(option)


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = refusal(
        with_configuration(
            journal={"path": "relay.db"},
            sources={"acme": {"region": "eu", "username": "a", "password": HIDDEN}},
            sinks={"disk": {"type": "file", "path": "events.ndjson"}},
        )
    )
    assert "sources.acme.password" in said
    assert "journal.path" in said
    assert "sinks.disk.path" in said


REFUSED: Final[Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]]] = {
    "a journal of no kind": (with_configuration(journal={"kind": "redis"}), ("/configuration/journal/kind",)),
    "two pods with one file": (
        {**USUAL, "replicas": 2},
        ("replicas is 2, but the SQLite journal is one file of one process", "configuration.journal.kind: kafka"),
    ),
    "less than no pod": ({**ON_KAFKA, "replicas": -1}, ("/replicas",)),
    "half a pod": ({**ON_KAFKA, "replicas": 1.5}, ("/replicas", "integer")),
    "more pods than work": (
        {**on_kafka({"partitions": 4}), "replicas": 5},
        ("replicas is 5, but configuration.journal.partitions 4", "lower replicas"),
    ),
    "a journal without brokers": (
        on_kafka(kafka={}),
        ("configuration.kafka.bootstrap.servers is missing", "configuration.journal.kind: kafka"),
    ),
    "brokers of a sink alone": (
        on_kafka(kafka={}, sinks={"siem": {"type": "kafka", "topic": "a", "kafka": {"bootstrap.servers": "b"}}}),
        ("configuration.kafka.bootstrap.servers is missing",),
    ),
    "a volume for a journal that needs none": (
        {**ON_KAFKA, "persistence": {"size": "20Gi", "storageClass": "fast", "existingClaim": "journal"}},
        (
            "persistence.existingClaim, persistence.size, persistence.storageClass goes with the SQLite journal",
            "cache.sizeLimit",
        ),
    ),
    "another mode for a volume that is none": (
        {**ON_KAFKA, "persistence": {"accessModes": ["ReadWriteOnce"]}},
        ("persistence.accessModes goes with the SQLite journal",),
    ),
    "a file for a journal that has none": (
        on_kafka({"path": "/var/lib/relay/relay.db"}),
        ("configuration.journal.path goes with the other kind of journal", "kind: sqlite"),
    ),
    "partitions of a file": (
        with_configuration(journal={"partitions": 4, "cache_dir": "/var/lib/relay/cache"}),
        ("configuration.journal.partitions goes with", "configuration.journal.cache_dir goes with", "kind: kafka"),
    ),
    "a cache beside the configuration": (
        on_kafka({"cache_dir": "cache"}),
        ("configuration.journal.cache_dir can't be written", "it is then /var/lib/relay/cache"),
    ),
    "a cache that is the mount itself": (
        on_kafka({"cache_dir": "/var/lib/relay"}),
        ("configuration.journal.cache_dir can't be written",),
    ),
    "a cache that leaves its volume": (
        on_kafka({"cache_dir": "/var/lib/relay/../cache"}),
        ("configuration.journal.cache_dir",),
    ),
    "a cache that a variable moves": (
        {**ON_KAFKA, "extraEnv": [{"name": "RELAY_JOURNAL__CACHE_DIR", "value": "/tmp"}]},
        ("extraEnv RELAY_JOURNAL__CACHE_DIR", "configuration.journal.cache_dir"),
    ),
    "one name for all members": (
        on_kafka(kafka={**CONFIGURATION["kafka"], "group.instance.id": "relay"}),
        ("configuration.kafka.group.instance.id would be the same in every pod", "remove it"),
    ),
    "one name for all members, by a variable": (
        {**ON_KAFKA, "extraEnv": [{"name": "RELAY_KAFKA__GROUP_INSTANCE_ID", "value": "relay"}]},
        ("extraEnv RELAY_KAFKA__GROUP_INSTANCE_ID would be the same in every pod",),
    ),
    "a file that goes with its pod": (
        on_kafka(sinks={"disk": {"type": "file", "path": "/var/lib/relay/events.ndjson"}}),
        ("configuration.sinks.disk.path is in a folder that goes with its pod", "extraVolumeMounts"),
    ),
    "a budget of nothing": ({**ON_KAFKA, "podDisruptionBudget": {"maxUnavailable": 0}}, ("maxUnavailable",)),
    "a cache of no size": ({**ON_KAFKA, "cache": {"sizeLimit": "large"}}, ("/cache/sizeLimit",)),
    "a journal beside the configuration": (
        with_configuration(journal={"path": "relay.db"}),
        ("configuration.journal.path", "it is then /var/lib/relay/relay.db"),
    ),
    "a journal that leaves its volume": (
        with_configuration(journal={"path": "/var/lib/relay/../relay.db"}),
        ("configuration.journal.path",),
    ),
    "a journal in /tmp": (with_configuration(journal={"path": "/tmp/relay.db"}), ("configuration.journal.path",)),
    "a socket beside the configuration": (
        with_configuration(admin_socket="relay.sock"),
        ("configuration.admin_socket", "remove the key"),
    ),
    "a file that can't be written": (
        with_configuration(sinks={"disk": {"type": "file", "path": "/data/events.ndjson"}}),
        ("configuration.sinks.disk.path", "extraVolumeMounts"),
    ),
    "an address that probes don't reach": (
        with_configuration(http={"host": "127.0.0.1"}),
        ("configuration.http.host", "0.0.0.0"),
    ),
    "a port that nobody knows": (with_configuration(http={"port": 0}), ("configuration.http.port", "8080")),
    "a variable of the chart's": (
        {**USUAL, "extraEnv": [{"name": "RELAY_HTTP__PORT", "value": "9000"}]},
        ("extraEnv RELAY_HTTP__PORT", "configuration.http.port"),
    ),
    "a secret in a variable": (
        {**USUAL, "extraEnv": [{"name": "RELAY_SOURCES__ACME__PASSWORD", "value": HIDDEN}]},
        ("extraEnv RELAY_SOURCES__ACME__PASSWORD is a secret", "secretKeyRef"),
    ),
    "a login of a proxy": (
        {**USUAL, "proxy": {"https": f"http://me:{HIDDEN}@proxy.example:3128"}},
        ("proxy.https holds a login", "HTTPS_PROXY"),
    ),
    "files that nothing brings": (
        {"configuration": CONFIGURATION},
        ("no Secret is mounted there", "existingSecret"),
    ),
    "a vault without a name": (
        {**USUAL, "externalSecret": {"enabled": True, "data": [{"secretKey": "a"}]}},
        ("externalSecret.secretStoreRef.name",),
    ),
    "a vault that brings nothing": (
        {**USUAL, "externalSecret": {"enabled": True, "secretStoreRef": {"name": "vault"}}},
        ("externalSecret brings nothing",),
    ),
    "two authorities": (
        {**USUAL, "caBundle": {"configMapName": "a", "secretName": "b"}},
        ("caBundle names a ConfigMap and a Secret",),
    ),
    "a scrape that is not let in": (
        {**USUAL, "networkPolicy": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        ("networkPolicy.ingress.from",),
    ),
    "a claim that is not used": (
        {**USUAL, "persistence": {"enabled": False, "existingClaim": "a"}},
        ("persistence.existingClaim",),
    ),
    "a key that does not exist": ({**USUAL, "podLabel": {}}, ("podLabel",)),
    "a key that does not exist, below": ({**USUAL, "image": {"name": "a"}}, ("/image", "name")),
    "latest": ({**USUAL, "image": {"tag": "latest"}}, ("/image/tag",)),
    "a digest that is none": ({**USUAL, "image": {"digest": "abc"}}, ("/image/digest",)),
    "text for a number": ({**USUAL, "service": {"port": "http"}}, ("/service/port", "integer")),
    "a probe's path": ({**USUAL, "livenessProbe": {"httpGet": {"path": "/"}}}, ("/livenessProbe", "httpGet")),
    "a volume that many may have": (
        {**USUAL, "persistence": {"accessModes": ["ReadWriteMany"]}},
        ("/persistence/accessModes/0",),
    ),
    "a secret without a name": ({**USUAL, "secrets": [{"name": "a"}]}, ("/secrets/0", "secretName")),
    "a key that the relay does not know": (
        with_configuration(sources={"acme": {**SOURCE, "poll_intervall": "1m"}}),
        ("/configuration/sources/acme", "poll_intervall"),
    ),
    "a value that the relay does not take": (
        with_configuration(sources={"acme": {**SOURCE, "region": "mars"}}),
        ("/configuration/sources/acme/region", "'eu', 'de', 'us', 'ca', 'jpn'"),
    ),
    "a key of another sink": (
        with_configuration(sinks={"soc": {"type": "slack", "url_file": "/run/secrets/relay/a", "topic": "x"}}),
        ("/configuration/sinks/soc", "'topic' not allowed"),
    ),
    "a sink of no type": (with_configuration(sinks={"soc": {}}), ("/configuration/sinks/soc", "type")),
    "a duration without a unit": (
        with_configuration(sources={"acme": {**SOURCE, "lookback": 300}}),
        ("/configuration/sources/acme/lookback",),
    ),
}


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_before_it_is_installed(values: Mapping[str, Any], said: tuple[str, ...]) -> None:
    error = refusal(values)
    for part in said:
        assert part in error
    assert HIDDEN not in error
    assert len(error.splitlines()) < 10, error


def test_where_a_secret_would_stand_is_said_as_it_is() -> None:
    plain = {"extraEnv": [{"name": "RELAY_SOURCES__ACME__PASSWORD", "value": HIDDEN}]}
    assert "would stand in the StatefulSet" in refusal({**USUAL, **plain})
    assert "would stand in the Deployment" in refusal({**ON_KAFKA, **plain})


def test_brokers_and_names_of_members_may_come_from_variables() -> None:
    without = on_kafka(kafka={})
    assert rendered({**without, "extraEnv": [{"name": "RELAY_KAFKA__BOOTSTRAP_SERVERS", "value": "kafka:9092"}]})
    assert rendered({**without, "envFrom": [{"configMapRef": {"name": "brokers"}}]})
    by_pod = {"fieldRef": {"fieldPath": "metadata.name"}}
    assert rendered({**ON_KAFKA, "extraEnv": [{"name": "RELAY_KAFKA__GROUP_INSTANCE_ID", "valueFrom": by_pod}]})


def test_what_may_be_written_in_the_configuration_is_let_through() -> None:
    values = with_configuration(
        journal={"path": "/var/lib/relay/deep/relay.db"},
        http={"host": "::"},
        sinks={
            "soar": {"type": "webhook", "url": "https://soar.example/hook", "headers": {"X-Key_file": "/run/a"}},
            "disk": {"type": "file", "path": "/out/events.ndjson"},
        },
    )
    assert rendered({**values, "extraVolumeMounts": [{"name": "out", "mountPath": "/out/"}]})
    by_variable: dict[str, Any] = {
        "configuration": {"sources": {"acme": {"region": "eu", "username": "a"}}, "sinks": {"out": {"type": "stdout"}}},
        "extraEnv": [
            {
                "name": "RELAY_SOURCES__ACME__PASSWORD",
                "valueFrom": {"secretKeyRef": {"name": "relay-acme", "key": "password"}},
            }
        ],
    }
    assert container(spec(by_variable))["env"][-1] == by_variable["extraEnv"][0]
    assert rendered({**USUAL, "global": {"anything": 1}})


# -- its papers


def test_every_value_has_a_comment() -> None:
    def leaves(at: tuple[str, ...], content: Any) -> list[tuple[str, ...]]:
        if at in said or not isinstance(content, dict):
            return [at]
        return [leaf for key, below in content.items() for leaf in leaves((*at, key), below)]

    said = {value.key for value in page.values()}
    missing = [".".join(leaf) for leaf in leaves((), yaml.safe_load(page.VALUES.read_text())) if leaf not in said]
    assert missing == []
    assert len(said) > 60


def test_the_schema_is_one_and_takes_the_defaults() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(page.VALUES.read_text()))


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.PAGE.read_text())
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = (CHART / file).resolve()
        assert target.exists()
        assert not anchor or anchor in anchors(target)


@pytest.mark.parametrize("document", [page.PAGE, ROOT / "docs" / "kubernetes.md"], ids=lambda path: path.name)
def test_values_in_the_documents_can_be_installed(document: Path) -> None:
    found = re.findall(r"^( *)```ya?ml\n(.*?)^\1```$", document.read_text(), re.MULTILINE | re.DOTALL)
    values = [yaml.safe_load(textwrap.dedent(text)) for _, text in found]
    assert any("configuration" in example for example in values)
    for example in values:
        assert rendered({**USUAL, **example})


def test_the_packaged_chart_holds_what_it_needs(tmp_path: Path) -> None:
    run("package", CHART, "--destination", tmp_path)
    (archive,) = tmp_path.glob("*.tgz")
    for values in (EVERYTHING, EVERYTHING_ON_KAFKA):
        assert rendered(values, chart=archive) == rendered(values)


# -- deploy/

MANIFESTS: Final = DEPLOY / "kubernetes" / "relay.yaml"


def test_the_plain_manifests_are_what_helm_makes_of_their_values() -> None:
    done = run(
        *("template", "relay", "helm/incident-relay", "--namespace", "incident-relay"),
        *("--values", "deploy/kubernetes/values.yaml", "--skip-tests"),
    )
    head, _, body = MANIFESTS.read_text().partition("---\n")
    assert head.startswith("# ")
    assert f"---\n{body}" == done.stdout, "run make manifests"


def test_the_plain_manifests_are_ones_that_kubernetes_takes() -> None:
    found = [document for document in yaml.safe_load_all(MANIFESTS.read_text()) if document]
    kinds = ["NetworkPolicy", "ServiceAccount", "ConfigMap", "Service", "StatefulSet"]
    assert [one["kind"] for one in found] == kinds
    for document in found:
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(document, version, strict=True)


EXAMPLES: Final = sorted((DEPLOY / "examples").glob("*.yaml"))
CONTENTS: Final = {
    "password": "secret",
    "proxy": "http://me:secret@proxy.example:3128",
    "secrets": "whsec_c2VjcmV0IG9mIHRoZSBkb2N1bWVudHM=",
    "sasl.password": "secret",
    "url": "https://hooks.example/services/T0/B0/x",
}


def _loaded(text: str, folder: Path) -> Any:
    """The settings, every file that they name in a folder of the test."""
    certificate = _certificate(folder / "ca").read_bytes()
    for key, path in set(re.findall(r"([\w.]+)(?:_file|\.location): (/\S+)", text)):
        file = folder / path.strip("/").replace("/", "-")
        file.write_bytes(CONTENTS[key].encode() if key in CONTENTS else certificate)
        text = text.replace(f": {path}", f": {file}")
    (folder / "relay.yaml").write_text(text)
    return load(folder / "relay.yaml", {}, folder)


def test_there_is_an_example_for_each_situation() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "behind-a-proxy",
        "kafka-journal-with-sasl",
        "kafka-with-scram-and-tls",
        "many-tenants",
        "one-tenant-to-kafka",
        "slack-only",
    ]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_relay_takes_the_example_without_a_warning(example: Path, tmp_path: Path) -> None:
    settings = _loaded(example.read_text(), tmp_path)
    assert settings.warnings == ()
    make_rules(settings)
    for name in settings.sinks:
        make_sink(name, settings=settings, journal_id="docs")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_chart_takes_the_example_as_it_is(example: Path) -> None:
    configuration = yaml.safe_load(example.read_text())
    values = {**USUAL, "caBundle": {"configMapName": "ca"}, "configuration": configuration}
    assert yaml.safe_load(the(values, "ConfigMap")["data"]["relay.yaml"]) == configuration


def test_the_compose_file_is_valid_and_its_parts_are() -> None:
    file = DEPLOY / "compose.yaml"
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [str(program), "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    compose = yaml.safe_load(file.read_text())
    assert compose["services"]["relay"]["image"] == f"incident-relay:{__version__}"
    for service in compose["services"].values():
        assert not re.search(r"(:latest|^[^:]+)$", service["image"])
        for kind in ("configs", "secrets"):
            assert {one["source"] for one in service.get(kind, [])} <= compose[kind].keys()
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
    (alerts,) = [
        volume.split(":")[0] for volume in compose["services"]["prometheus"]["volumes"] if volume.startswith("./")
    ]
    assert (DEPLOY / alerts).resolve() == DEPLOY / "prometheus" / "alerts.yaml"
    example = compose["configs"]["relay"]["file"].removeprefix("${RELAY_YAML:-").removesuffix("}")
    settings = yaml.safe_load((DEPLOY / example).read_text())
    secret = compose["services"]["relay"]["secrets"][0]["target"]
    assert settings["sources"]["acme"]["password_file"] == secret


def test_prometheus_takes_its_part_of_the_compose_file(tmp_path: Path) -> None:
    packages.skip_without("promtool")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    shutil.copy(DEPLOY / "prometheus" / "alerts.yaml", tmp_path)
    (tmp_path / "prometheus.yml").write_text(compose["configs"]["prometheus"]["content"])
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rules found" in done.stdout


def test_one_hash_of_the_alerts_is_in_chart_and_deploy() -> None:
    digests = {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (CHART / "files" / "alerts.yaml", DEPLOY / "prometheus" / "alerts.yaml")
    }
    assert len(digests) == 1


def test_the_service_of_systemd_is_closed_but_for_what_it_needs(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not on this machine: the service was NOT looked at")
    unit = tmp_path / "relay.service"
    unit.write_text((DEPLOY / "systemd" / "incident-relay.service").read_text())
    command = [analyze, "security", "--offline=true", "--threshold=15", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:]


def test_nothing_in_deploy_or_chart_holds_a_secret() -> None:
    for path in chain(CHART.rglob("*.yaml"), DEPLOY.rglob("*.yaml")):
        assert not re.search(r"^\s*(password|secrets|sasl\.password): *[^\s\[{\"|]", path.read_text(), re.MULTILINE), (
            path
        )
