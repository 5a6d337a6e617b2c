"""`relay check` with the journal on Kafka, on a real broker: beside replicas that run, and before the first of them."""

import asyncio
import shutil
from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka.admin import AclOperation, ResourceType  # type: ignore[attr-defined]

from relay.assembly import make_journal
from relay.check import check
from relay.clock import SystemClock
from relay.journal.kafka import KafkaJournal
from relay.journal.kafka.meta import new_meta, write_meta
from relay.settings import Settings, load
from relay.simulator import Simulator, serve
from relay.status import CheckLine
from tests.integration.test_journal_contract import fill
from tests.integration.test_kafka_journal_refusals import allow, login
from tests.support.broker import Cluster
from tests.support.kafka import Kafka, committed, create_topic, fresh, partitions_of, require_broker
from tests.support.receiver import unused_port

pytestmark = pytest.mark.kafka

USER, PASSWORD = "api@acme.example", "canary"
OWN = ("state", "changes", "dead-letters", "control")

SettingsOf = Callable[..., Settings]


@pytest.fixture
def prefix() -> str:
    return fresh("relay")


@pytest.fixture
async def settings_of(prefix: str, tmp_path: Path) -> AsyncIterator[SettingsOf]:
    """Loads a configuration with a healthy source, a file sink and this journal."""
    simulator = Simulator(SystemClock())
    simulator.add_tenant(USER, PASSWORD, incidents=3)

    async with serve(simulator) as served:

        def loaded(kafka: str | dict[str, str], *, sinks: dict[str, Any] | None = None, **journal: Any) -> Settings:
            source = {
                "base_url": served.base_url,
                "token_url": served.token_url,
                "username": USER,
                "password": PASSWORD,
                "proxy": "none",
            }
            document = {
                "sources": {"acme": source},
                "journal": {"kind": "kafka", "partitions": 3, "max_bytes": "1MiB", "cache_dir": "cache", **journal},
                "kafka_prefix": prefix,
                "kafka": {"bootstrap.servers": kafka} if isinstance(kafka, str) else kafka,
                "sinks": {"disk": {"type": "file", "path": "events.ndjson"}, **(sinks or {})},
            }
            (tmp_path / "relay.yaml").write_text(yaml.safe_dump(document))
            return load(tmp_path / "relay.yaml", {}, tmp_path)

        yield loaded


async def lines_of(settings: Settings, name: str) -> list[CheckLine]:
    """The lines of this name; whatever is wrong, none shows a secret, and the source was read."""
    lines = await check(settings, offline=False)
    assert "canary" not in str(lines)
    assert "-secret" not in str(lines)
    assert next(line for line in lines if line.name == "acme").outcome == "ok"
    return [line for line in lines if line.name == name]


async def journal_line(settings: Settings) -> CheckLine:
    (line,) = await lines_of(settings, "journal")
    return line


def journal_of(settings: Settings) -> KafkaJournal:
    journal = make_journal(settings, clock=SystemClock())
    assert isinstance(journal, KafkaJournal)
    return journal


# -- all is well ------------------------------------------------------------------------------------------------------


async def test_before_the_first_start_it_says_what_that_will_make_and_makes_nothing(
    kafka: Kafka, prefix: str, settings_of: SettingsOf, tmp_path: Path
) -> None:
    line = await journal_line(settings_of(kafka.bootstrap))
    assert line.outcome == "ok"
    assert line.text == (
        f"kafka: 1 broker, no TLS; journal {prefix} with 3 partitions, not begun yet; the first start makes the topics "
        f"{prefix}.state, {prefix}.changes, {prefix}.dead-letters and {prefix}.control; a transaction was begun; "
        "no replica runs"
    )
    assert not [name for name in OWN if partitions_of(kafka.bootstrap, f"{prefix}.{name}")]
    assert [path.name for path in tmp_path.iterdir()] == ["relay.yaml"]


async def test_beside_replicas_that_run_it_commits_a_transaction_and_disturbs_nobody(
    kafka: Kafka, prefix: str, settings_of: SettingsOf
) -> None:
    replicas = [journal_of(settings_of(kafka.bootstrap, cache_dir=name)) for name in ("one", "two")]
    settings = settings_of(kafka.bootstrap, sinks={"siem": {"type": "kafka", "topic": prefix}})
    try:
        async with asyncio.timeout(60):
            for replica in replicas:
                await replica.open()
            while sum(len(replica._held) for replica in replicas) < 3 or not all(one._held for one in replicas):
                await asyncio.sleep(0.05)
        before = [replica._version for replica in replicas]
        records = len(committed(kafka.bootstrap, f"{prefix}.control"))
        line = await journal_line(settings)
        assert (line.outcome, line.text) == (
            "ok",
            f"kafka: 1 broker, no TLS; journal {prefix} with 3 partitions; a transaction was committed; 2 replicas run",
        )
        last = committed(kafka.bootstrap, f"{prefix}.control")
        assert (len(last), last[-1].key, last[-1].value) == (records + 1, "-check", None)
        owner = next(replica for replica in replicas if replica.holding("source", "acme") is not None)
        await fill(await owner.source("acme"), 3)
        assert [replica._version for replica in replicas] == before
        assert [replica.fenced for replica in replicas] == [0, 0]
    finally:
        for replica in replicas:
            await replica.close()
    assert (await journal_line(settings)).text.endswith("; a transaction was committed; no replica runs")


async def test_of_known_incidents_it_says_where_they_are(kafka: Kafka, settings_of: SettingsOf) -> None:
    sinks = {"siem": {"type": "kafka", "topic": fresh("topic"), "when": 'incident.severity == "HIGH"'}}
    settings = settings_of(kafka.bootstrap, sinks=sinks)
    assert (await lines_of(settings, "siem"))[1].text == "rule; no incident is known yet that it could match"
    journal = journal_of(settings)
    await journal.open()
    await journal.close()
    assert (await lines_of(settings, "siem"))[1].text == (
        "rule; no known incident can be looked at: what is known of them is in Kafka"
    )


# -- sinks that are written with the polls ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "more", "said"),
    [
        (2, {}, "ok: written with the polls; topic {topic} with 2 partitions"),
        (0, {}, "ok: written with the polls; topic {topic} to be made with 6 partitions"),
        (0, {"create_topic": False}, "fail: topic {topic} does not exist"),
        (0, {"create_topic": {"replication_factor": 3}}, "fail: topic {topic} cannot be created: "),
        (0, {"topic": "{topic}.{{source}}"}, "ok: written with the polls; topics {topic}.{{source}}, made when "),
    ],
)
async def test_the_topic_of_an_inline_sink(
    kafka: Kafka, settings_of: SettingsOf, there: int, more: dict[str, Any], said: str
) -> None:
    topic = fresh("topic")
    if there:
        create_topic(kafka.own.bootstrap, topic, partitions=there)
    chosen = {"type": "kafka", "topic": topic} | more
    chosen["topic"] = chosen["topic"].format(topic=topic)
    (line,) = await lines_of(settings_of(kafka.bootstrap, sinks={"siem": chosen}), "siem")
    assert f"{line.outcome}: {line.text}".startswith(said.format(topic=topic))
    assert bool(line.cure) == (line.outcome == "fail")
    assert partitions_of(kafka.bootstrap, topic) == there


# -- what is wrong ----------------------------------------------------------------------------------------------------


async def test_what_is_not_allowed_is_named_at_once(kafka: Kafka, prefix: str, settings_of: SettingsOf) -> None:
    topic = fresh("topic")
    create_topic(kafka.own.bootstrap, topic)
    settings = settings_of(login(kafka, "limited"), sinks={"siem": {"type": "kafka", "topic": topic}})
    line = await journal_line(settings)
    assert (line.outcome, line.text, line.command) == ("fail", "User:limited lacks rights", "relay check")
    assert line.cure == (
        "Allow User:limited Create, Describe, DescribeConfigs, Read and Write on the topics that begin with "
        f"{prefix}.; Read on group {prefix}; Describe and Write on the transactional ids that begin with {prefix}-. "
        "To try again:"
    )
    allow(kafka, ResourceType.TOPIC, f"{prefix}.", AclOperation.CREATE, AclOperation.DESCRIBE)
    allow(kafka, ResourceType.GROUP, prefix, AclOperation.READ)
    allow(kafka, ResourceType.TRANSACTIONAL_ID, f"{prefix}-", AclOperation.WRITE)
    assert (await journal_line(settings)).outcome == "ok"
    for name, partitions, policy in zip(
        OWN, (3, 1, 1, 1), ("compact", "delete", "compact,delete", "compact"), strict=True
    ):
        create_topic(kafka.bootstrap, f"{prefix}.{name}", partitions=partitions, config={"cleanup.policy": policy})
    line = await journal_line(settings)
    assert line.cure == (
        f"Allow User:limited DescribeConfigs, Read and Write on the topics that begin with {prefix}. To try again:"
    )
    rights = (AclOperation.DESCRIBE_CONFIGS, AclOperation.READ, AclOperation.WRITE)
    allow(kafka, ResourceType.TOPIC, f"{prefix}.", *rights)
    lines = await check(settings, offline=False)
    assert next(one for one in lines if one.name == "journal").outcome == "ok"
    siem = next(one for one in lines if one.name == "siem")
    assert (siem.outcome, siem.cure) == (
        "fail",
        f"Allow User:limited Describe and Write on topic {topic}. To try again:",
    )


async def test_a_topic_that_is_wrong_is_named(kafka: Kafka, prefix: str, settings_of: SettingsOf) -> None:
    create_topic(kafka.bootstrap, f"{prefix}.changes", config={"cleanup.policy": "compact"})
    line = await journal_line(settings_of(kafka.bootstrap))
    assert (line.outcome, line.text) == ("fail", f"topic {prefix}.changes has cleanup.policy=compact")
    assert line.cure == "It needs cleanup.policy=delete: set that, or set another kafka_prefix. To try again:"


async def test_half_a_copy_is_named(kafka: Kafka, prefix: str, settings_of: SettingsOf) -> None:
    settings = settings_of(kafka.bootstrap)
    journal = journal_of(settings)
    await journal.open()
    half = new_meta(3, whole=False)
    await write_meta(journal._broker, journal.topics, lambda _found: half, clock=SystemClock())
    await journal.close()
    line = await journal_line(settings)
    assert line.outcome == "fail"
    assert (
        line.text
        == f"the journal {prefix} on Kafka is half a copy: `relay journal copy` is at work, or was interrupted"
    )


async def test_brokers_that_cannot_be_reached_are_told_once(settings_of: SettingsOf) -> None:
    sinks = {"siem": {"type": "kafka", "topic": "eset.incidents"}}
    lines = await check(settings_of(f"127.0.0.1:{unused_port()}", sinks=sinks), offline=False)
    journal = next(line for line in lines if line.name == "journal")
    assert journal.outcome == "fail"
    assert journal.text.startswith("no broker could be used: ")
    siem = next(line for line in lines if line.name == "siem")
    assert (siem.outcome, siem.text) == ("skip", "written with the polls, which need the journal first")


async def test_brokers_that_cannot_keep_transactions_are_told_what_they_need(
    settings_of: SettingsOf, tmp_path: Path
) -> None:
    require_broker()
    with Cluster(tmp_path / "kafka", properties={"transaction.state.log.replication.factor": "3"}) as cluster:
        line = await journal_line(settings_of(cluster.bootstrap))
    assert (line.outcome, line.text) == ("fail", "fencing took too long")
    assert line.cure.startswith("Let transaction.state.log.replication.factor and transaction.state.log.min.isr of ")


# -- the cache --------------------------------------------------------------------------------------------------------


async def test_a_cache_that_cannot_be_made_is_a_failure(kafka: Kafka, settings_of: SettingsOf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _journal, line = await lines_of(settings_of(kafka.bootstrap, cache_dir="file/cache"), "journal")
    assert (line.outcome, line.text) == ("fail", f"the cache cache cannot be made in {tmp_path / 'file'}")
    assert line.cure.startswith("Name a folder on a local disk that the relay can write in journal.cache_dir.")


async def test_room_for_what_may_wait_in_the_cache(
    kafka: Kafka, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1 << 40, 0, 2 << 20))
    _journal, line = await lines_of(settings_of(kafka.bootstrap), "journal")
    assert (line.outcome, line.text) == ("warn", "2 MiB are there for cache; journal.max_bytes = 1 MiB wants 2.5 MiB")
    assert line.cure.startswith("Give the cache a larger volume, or lower journal.max_bytes.")
