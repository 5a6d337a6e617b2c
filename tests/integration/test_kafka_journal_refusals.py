"""What a journal on Kafka does not start on, each with its cure; and what it starts on all the same, on a real broker.

Whatever is refused is refused by the real command. `docs/troubleshooting.md` shows what is printed.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from confluent_kafka import KafkaError
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from relay.clock import SystemClock
from relay.errors import JournalMisplaced, JournalUnavailable
from relay.journal.kafka import KafkaBroker, KafkaJournal
from relay.sinks.kafka_cluster import Watch
from tests.support.broker import Cluster
from tests.support.kafka import USERS, Kafka, create_topic, fresh, partitions_of, require_broker
from tests.support.process import child, finished
from tests.support.receiver import unused_port

pytestmark = pytest.mark.kafka

PAGE: Final = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
PARTITIONS: Final = 3
LONG_SECONDS: Final = 90.0
Topic, Group, TransactionalId = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
Describe, Read, Write, Create = AclOperation.DESCRIBE, AclOperation.READ, AclOperation.WRITE, AclOperation.CREATE
DescribeConfigs = AclOperation.DESCRIBE_CONFIGS


@pytest.fixture
def prefix() -> str:
    return fresh("relay")


def journal_on(
    bootstrap: str, prefix: str, folder: Path, options: Mapping[str, str] | None = None, *, partitions: int = PARTITIONS
) -> KafkaJournal:
    """One process's part of this journal."""
    chosen = {"bootstrap.servers": bootstrap, **(options or {})}
    return KafkaJournal(
        KafkaBroker(chosen, prefix=prefix),
        prefix=prefix,
        partitions=partitions,
        cache_dir=folder,
        max_bytes=1 << 30,
        retention_seconds=7200.0,
        clock=SystemClock(),
    )


@asynccontextmanager
async def opened(journal: KafkaJournal) -> AsyncIterator[KafkaJournal]:
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


def configure(folder: Path, kafka: Mapping[str, str], prefix: str, **journal: Any) -> None:
    """A relay with this journal, whose source does not answer."""
    nowhere = f"http://127.0.0.1:{unused_port()}"
    source = {"base_url": nowhere, "token_url": nowhere, "username": "api@acme.example", "password": "canary-password"}
    document = {
        "sources": {"acme": source},
        "journal": {"kind": "kafka", "partitions": PARTITIONS, **journal},
        "kafka_prefix": prefix,
        "kafka": dict(kafka),
        "sinks": {"disk": {"type": "file", "path": "events.ndjson"}},
        "http": {"port": 0, "host": "127.0.0.1"},
    }
    (folder / "relay.yaml").write_text(yaml.safe_dump(document))


async def refusal(folder: Path, kafka: Mapping[str, str], prefix: str, *, code: int = 2, **journal: Any) -> str:
    """What `relay run` refuses this with, as one error; its lines joined."""
    configure(folder, kafka, prefix, **journal)
    result = await finished(folder, "run", within=LONG_SECONDS)
    assert result.code == code, result
    assert not [secret for secret in ("canary", *USERS.values()) if secret in result.stdout + result.stderr]
    assert "Traceback" not in result.stderr
    (told,) = errors(result.stderr)
    return told


def errors(output: str) -> list[str]:
    """What is said to whoever started it."""
    found = re.findall(r"^error +(.*\n(?: {2,}.*\n)*)", output, re.MULTILINE)
    return [re.sub(r"\s+", " ", one).strip() for one in found]


def login(kafka: Kafka, user: str, password: str = "") -> dict[str, str]:
    return {
        "bootstrap.servers": kafka.own.bootstrap_of("SASL"),
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": password or USERS[user],
    }


def allow(kafka: Kafka, kind: ResourceType, name: str, *operations: AclOperation) -> None:
    """Lets `limited` do these things with everything that begins with this name."""
    admin = AdminClient({"bootstrap.servers": kafka.own.bootstrap, "log_level": 2})
    prefixed, allowed = ResourcePatternType.PREFIXED, AclPermissionType.ALLOW
    bindings = [AclBinding(kind, name, prefixed, "User:limited", "*", one, allowed) for one in operations]
    for made in admin.create_acls(bindings).values():
        made.result(30)


# -- several at once --------------------------------------------------------------------------------------------------


async def test_three_that_start_at_once_on_an_empty_cluster_are_one_journal(kafka: Kafka, tmp_path: Path) -> None:
    for turn in range(5):
        prefix = fresh("relay")
        journals = [journal_on(kafka.bootstrap, prefix, tmp_path / f"{turn}-{number}") for number in range(3)]
        try:
            await asyncio.gather(*(journal.open() for journal in journals))
            assert len({journal.id for journal in journals}) == 1
        finally:
            await asyncio.gather(*(journal.close() for journal in journals))
        async with opened(journal_on(kafka.bootstrap, prefix, tmp_path / f"{turn}-0")) as again:
            assert again.id == journals[0].id


# -- topics that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        (("state", PARTITIONS, "delete"), "has cleanup.policy=delete; it needs cleanup.policy=compact"),
        (("state", 2, "compact"), "has 2 partitions instead of 3; write journal.partitions: 2"),
        (("changes", 1, "compact"), "has cleanup.policy=compact; it needs cleanup.policy=delete"),
        (("changes", 2, "delete"), "has 2 partitions instead of 1"),
        (("dead-letters", 1, "delete"), "has cleanup.policy=delete; it needs cleanup.policy=compact,delete"),
        (("control", 1, "delete"), "has cleanup.policy=delete; it needs cleanup.policy=compact"),
        (("control", 2, "compact"), "has 2 partitions instead of 1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
async def test_a_topic_that_is_wrong_is_named_with_what_it_needs(
    kafka: Kafka, prefix: str, tmp_path: Path, topic: tuple[str, int, str], said: str
) -> None:
    """And nothing is made beside it."""
    name, partitions, policy = topic
    create_topic(kafka.bootstrap, f"{prefix}.{name}", partitions=partitions, config={"cleanup.policy": policy})
    told = await refusal(tmp_path, {"bootstrap.servers": kafka.bootstrap}, prefix)
    assert told.startswith(f"the journal on Kafka: topic {prefix}.{name} {said}")
    assert told.endswith("set another kafka_prefix")
    own = ("state", "changes", "dead-letters", "control")
    assert [one for one in own if partitions_of(kafka.bootstrap, f"{prefix}.{one}")] == [name]


async def test_a_policy_is_the_same_in_any_order(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    create_topic(kafka.bootstrap, f"{prefix}.dead-letters", config={"cleanup.policy": "delete,compact"})
    async with opened(journal_on(kafka.bootstrap, prefix, tmp_path)) as journal:
        assert journal.id


async def test_another_number_of_partitions_than_the_journal_was_begun_with_is_refused(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    async with opened(journal_on(kafka.bootstrap, prefix, tmp_path / "cache")):
        pass
    told = await refusal(tmp_path, {"bootstrap.servers": kafka.bootstrap}, prefix, partitions=5)
    assert told == (
        f"the journal on Kafka: topic {prefix}.state has 3 partitions instead of 5; write journal.partitions: 3, or "
        "set another kafka_prefix"
    )


async def test_more_copies_than_there_are_brokers_are_refused(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    told = await refusal(tmp_path, {"bootstrap.servers": kafka.own.bootstrap}, prefix, replication_factor=3)
    assert told.startswith(f"the journal on Kafka: topic {prefix}.state could not be created: ")
    assert "; let replication_factor be no more than the brokers that run, or create it by hand (3 partitions, " in told
    assert partitions_of(kafka.bootstrap, f"{prefix}.state") == 0


# -- logins and rights ------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_a_matter_of_the_configuration(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    told = await refusal(tmp_path, login(kafka, "relay", "canary-that-is-wrong"), prefix)
    assert told == (
        f"the journal on Kafka: connecting: the broker refused the login: {kafka.own.bootstrap_of('SASL')}: "
        "Authentication failed: Invalid username or password; check sasl.mechanism, sasl.username and sasl.password"
    )


async def test_options_that_librdkafka_refuses_are_named(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    told = await refusal(tmp_path, {"bootstrap.servers": kafka.bootstrap, "security.protocol": "bogus"}, prefix)
    assert told.startswith("the journal on Kafka: the options cannot be used: ")
    assert "security.protocol" in told


async def test_whoever_follows_what_is_refused_arrives_at_a_journal_that_starts(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """Everything that is missing is named at once; nothing else has to be allowed."""
    options = login(kafka, "limited")
    topics = f"on the topics that begin with {prefix}."
    allowed = "the journal on Kafka: User:limited lacks rights; allow User:limited"
    ids = f"Describe and Write on the transactional ids that begin with {prefix}-"
    assert await refusal(tmp_path, options, prefix) == (
        f"{allowed} Create, Describe, DescribeConfigs, Read and Write {topics}; Read on group {prefix}; {ids}"
    )
    allow(kafka, Topic, f"{prefix}.", Describe)
    assert await refusal(tmp_path, options, prefix) == f"{allowed} Read on group {prefix}; {ids}"
    allow(kafka, Group, prefix, Describe)
    allow(kafka, TransactionalId, f"{prefix}-", Describe)
    assert await refusal(tmp_path, options, prefix) == f"{allowed} Read on group {prefix}; {ids}"
    allow(kafka, Group, prefix, Read)
    assert await refusal(tmp_path, options, prefix) == f"{allowed} {ids}"
    allow(kafka, TransactionalId, f"{prefix}-", Write)
    told = await refusal(tmp_path, options, prefix)
    assert told.startswith(f"the journal on Kafka: topic {prefix}.state could not be created: Authorization failed; ")
    assert f"allow User:limited Create on the topics that begin with {prefix}., or create it by hand (3 pa" in told
    allow(kafka, Topic, f"{prefix}.", Create)
    assert await refusal(tmp_path, options, prefix) == f"{allowed} DescribeConfigs, Read and Write {topics}"
    allow(kafka, Topic, f"{prefix}.", DescribeConfigs, Read, Write)
    journal = journal_on(kafka.own.bootstrap, prefix, tmp_path / "cache", options)
    async with opened(journal), asyncio.timeout(LONG_SECONDS):
        await journal.settled()
        assert (await journal.source("acme")).progress is None


async def test_topics_that_others_have_made_need_no_right_to_create(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    async with opened(journal_on(kafka.own.bootstrap, prefix, tmp_path / "owner")) as first:
        ident = first.id
    allow(kafka, Topic, f"{prefix}.", DescribeConfigs, Read, Write)
    allow(kafka, Group, prefix, Read)
    allow(kafka, TransactionalId, f"{prefix}-", Write)
    options = login(kafka, "limited")
    async with opened(journal_on(kafka.own.bootstrap, prefix, tmp_path / "cache", options)) as journal:
        assert journal.id == ident
        async with asyncio.timeout(LONG_SECONDS):
            await journal.settled()


# -- brokers ----------------------------------------------------------------------------------------------------------


async def test_brokers_that_nobody_can_reach_are_not_a_matter_of_the_configuration(prefix: str, tmp_path: Path) -> None:
    address = f"127.0.0.1:{unused_port()}"
    with pytest.raises(JournalUnavailable) as refused:
        await journal_on(address, prefix, tmp_path).open()
    assert not isinstance(refused.value, JournalMisplaced)
    assert str(refused.value) == (
        f"the journal on Kafka: no broker could be used: {address}: Connection refused; check bootstrap.servers and "
        "security.protocol, and that this machine reaches every broker by its advertised name"
    )


async def test_a_journal_that_could_not_be_opened_opens_once_its_broker_is_back(prefix: str, tmp_path: Path) -> None:
    require_broker()
    with Cluster(tmp_path / "kafka") as cluster:
        journal = journal_on(cluster.bootstrap, prefix, tmp_path / "cache")
        await asyncio.to_thread(cluster.kill)
        with pytest.raises(JournalUnavailable):
            await journal.open()
        await asyncio.to_thread(cluster.restart)
        async with opened(journal):
            assert journal.id


async def test_brokers_that_cannot_keep_transactions_are_told_what_they_need(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node, and a log of transactions that wants three: the cluster answers, a transaction never begins."""
    require_broker()
    monkeypatch.setattr("relay.journal.kafka.cluster.PATIENCE_SECONDS", 6.0)
    with Cluster(tmp_path / "kafka", properties={"transaction.state.log.replication.factor": "3"}) as cluster:
        with pytest.raises(JournalUnavailable) as refused:
            await journal_on(cluster.bootstrap, prefix, tmp_path / "cache").open()
        assert partitions_of(cluster.bootstrap, f"{prefix}.state") == 0
    assert not isinstance(refused.value, JournalMisplaced)
    assert str(refused.value) == (
        "the journal on Kafka: fencing took too long; let transaction.state.log.replication.factor and "
        "transaction.state.log.min.isr of the brokers be no more than the brokers that run, and all of these reachable"
    )


@pytest.mark.parametrize("code", [KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION])
def test_brokers_that_know_no_transactions_are_named(code: int) -> None:
    plan = KafkaBroker({"bootstrap.servers": "kafka.example:9092"}, prefix="relay")._plan
    told = str(Watch(plan).unavailable("fencing", KafkaError(code)))
    assert told.startswith("the journal on Kafka: fencing: the brokers know no transactions, or not this kind of group")
    assert told.endswith("; use Apache Kafka 2.5 or later, or what is compatible with it in both")


# -- options of the group ---------------------------------------------------------------------------------------------


async def test_a_replica_with_a_name_of_its_own_gets_back_what_it_had_and_nobody_else_is_disturbed(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """Static membership: who is back within the session finds everything where it was."""

    def make(name: str) -> KafkaJournal:
        options = {"session.timeout.ms": "20000", "group.instance.id": name}
        return journal_on(kafka.bootstrap, prefix, tmp_path / name, options, partitions=6)

    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(opened(make("one")))
        two = await stack.enter_async_context(opened(make("two")))
        await shared(one, two, partitions=6)
        before = held(one)
        seen = two._version
        await one.close()
        one = await stack.enter_async_context(opened(make("one")))
        async with asyncio.timeout(10):
            await one.settled()
        assert held(one) == before
        assert two._version == seen


async def test_of_two_replicas_with_one_name_the_first_ends_and_says_why(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    options = {"bootstrap.servers": kafka.bootstrap, "group.instance.id": "same"}
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        folder.mkdir()
        configure(folder, options, prefix)
    async with child(one, "run") as first:
        await first.logged("partition taken")
        async with child(two, "run") as second:
            assert await first.ended() == 1
            assert "Traceback" not in first.stderr.decode()
            (told,) = errors(first.stderr.decode())
            await second.logged("partition taken")
    assert is_on_the_page(told)
    assert told == (
        "the journal on Kafka: taking part in the group: another process uses this group.instance.id, or one that was "
        "killed did: Broker: Static consumer fenced by other consumer with same group.instance.id; give each replica "
        "one of its own"
    )


def is_on_the_page(told: str) -> bool:
    return told in re.sub(r"\s+", " ", PAGE.read_text())


async def test_the_newer_protocol_of_groups_needs_nothing_else(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    options = {"group.protocol": "consumer"}
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(
                opened(journal_on(kafka.bootstrap, prefix, tmp_path / name, options, partitions=6))
            )
            for name in ("one", "two")
        ]
        await shared(one, two, partitions=6)
        assert len(await one._broker.members(prefix)) == 2
        await one.close()
        async with asyncio.timeout(LONG_SECONDS):
            while len(held(two)) < 6:
                await two.reassigned(two._version)


async def test_what_the_newer_protocol_does_not_take_is_refused_by_name(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    options = {"bootstrap.servers": kafka.bootstrap, "group.protocol": "consumer", "session.timeout.ms": "9000"}
    told = await refusal(tmp_path, options, prefix)
    assert told.startswith("the journal on Kafka: the options cannot be used: ")
    assert "session.timeout.ms" in told


def held(journal: KafkaJournal) -> set[int]:
    return set(journal._epochs)


async def shared(*journals: KafkaJournal, partitions: int) -> None:
    """Waits until each has some, and together they have all. Raises TimeoutError."""
    async with asyncio.timeout(LONG_SECONDS):
        while True:
            has = [held(journal) for journal in journals]
            if all(has) and sum(map(len, has)) == partitions and not any(journal._taking for journal in journals):
                return
            await asyncio.sleep(0.05)
