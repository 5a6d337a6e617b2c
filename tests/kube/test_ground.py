"""The relay in a pod, between a simulated tenant and a real Kafka on this machine's side of the node."""

import asyncio
from pathlib import Path

import pytest
import yaml
from confluent_kafka import Consumer, TopicPartition

from tests.e2e.stage import PASSWORD, USER, stage, until
from tests.kube.cluster import MACHINE, Cluster
from tests.kube.far import encrypted
from tests.kube.test_node import pod, started
from tests.support import broker
from tests.support.tls import make_certificates

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]

INCIDENTS = 20


async def test_the_relay_in_a_pod_polls_a_tenant_and_fills_a_topic(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    if reason := broker.missing():
        pytest.skip(reason)
    certificates = make_certificates(tmp_path, MACHINE)
    async with stage(tmp_path, incidents=INCIDENTS) as it, encrypted(it.served.port, certificates) as url:
        with broker.Cluster(tmp_path / "kafka", host=MACHINE) as kafka:
            source = {"base_url": url, "token_url": f"{url}/oauth/token", "username": USER, "password": PASSWORD}
            source |= {"poll_interval": "1s", "proxy": "none"}
            tls = {"tls": {"ca_file": "/etc/relay/ca.pem"}}
            sink = {"type": "kafka", "topic": "incidents", "kafka": {"bootstrap.servers": kafka.bootstrap}}
            document = {"sources": {"acme": source | tls}, "sinks": {"kafka": sink}}
            document |= {"journal": {"path": "/var/lib/relay/relay.db"}}
            authority = certificates.ca.read_text().split("-----BEGIN P")[0]
            files = {"relay.yaml": yaml.safe_dump(document), "ca.pem": authority}
            configuration = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "relay"}, "stringData": files}
            probe = {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1}
            mounts = [
                {"name": "configuration", "mountPath": "/etc/relay", "readOnly": True},
                {"name": "journal", "mountPath": "/var/lib/relay"},
            ]
            running = pod(
                "relay",
                container={"readinessProbe": probe, "volumeMounts": mounts},
                volumes=[
                    {"name": "configuration", "secret": {"secretName": "relay"}},
                    {"name": "journal", "emptyDir": {}},
                ],
                securityContext={"fsGroup": 10001},
            )
            within = ("exec", "--namespace", namespace, "relay", "--", "relay", "status")
            try:
                await asyncio.to_thread(started, cluster, namespace, configuration, running)
                status = await asyncio.to_thread(cluster.kubectl, *within)
            except Exception as exc:
                exc.add_note(cluster.kubectl("logs", "--namespace", namespace, "relay", "--tail=20"))
                raise
            assert "acme" in status

            async def filled() -> bool:
                return await asyncio.to_thread(records, kafka.bootstrap) == INCIDENTS

            try:
                await until(filled, f"{INCIDENTS} events are in the topic")
            except TimeoutError as exc:
                exc.add_note(cluster.kubectl(*within))
                exc.add_note(cluster.kubectl("logs", "--namespace", namespace, "relay", "--tail=20"))
                raise


def records(bootstrap: str) -> int:
    """How many events a reader of committed records finds."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics("incidents", timeout=10).topics["incidents"].partitions
        consumer.assign([TopicPartition("incidents", number, 0) for number in partitions])
        return sum(record.error() is None for record in consumer.consume(1000, 3))
    finally:
        consumer.close()
