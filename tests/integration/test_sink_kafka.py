"""What only the Kafka sink promises: exactly once over crashes, fences and broken brokers. Against a real Kafka."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from relay.errors import ConfigError, Refused, Unavailable
from relay.formats.cloudevents import kafka_headers
from relay.sinks import Position
from tests.support.broker import Cluster
from tests.support.deliveries import deliveries, delivery
from tests.support.kafka import PATIENCE_SECONDS, USERS, Kafka, committed, create_topic, events, fresh, partitions_of
from tests.support.sinks import JOURNAL, KafkaStage

pytestmark = pytest.mark.kafka


@pytest.fixture
def stage(kafka: Kafka) -> KafkaStage:
    return KafkaStage(kafka=kafka, transactional=True)


def _position(at: int) -> Position:
    return Position(journal_id=JOURNAL, position=at)


def _login(kafka: Kafka, user: str, password: str = "") -> dict[str, str]:
    return {
        "bootstrap.servers": kafka.own.bootstrap_of("SASL"),
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": password or USERS[user],
    }


@contextmanager
def _open_transaction(kafka: Kafka, topic: str) -> Iterator[Producer]:
    """A transaction of somebody else's that holds the end of the topic back from readers."""
    options = {"bootstrap.servers": kafka.bootstrap, "transactional.id": fresh("other")}
    producer = Producer(options)
    producer.init_transactions(PATIENCE_SECONDS)
    producer.begin_transaction()
    producer.produce(topic, b"{}", b"other")
    producer.flush(PATIENCE_SECONDS)
    yield producer
    producer.abort_transaction(PATIENCE_SECONDS)


async def test_a_successor_fences_its_predecessor_for_good(stage: KafkaStage) -> None:
    zombie = stage.sink()
    await zombie.open()
    await zombie.send(deliveries(1, 2), upto=2)
    successor = stage.sink()
    assert await successor.open() == _position(2)
    with pytest.raises(Unavailable) as refused:
        await zombie.send(deliveries(3, 4), upto=4)
    assert refused.value.reason == "fenced"
    with pytest.raises(Unavailable):
        await zombie.send(deliveries(3, 4), upto=4)
    await successor.send(deliveries(3, 5), upto=5)
    await zombie.close(5)
    await successor.close(5)
    assert sorted(stage.ids()) == [d.id for d in deliveries(1, 5)]


async def test_sinks_and_journals_do_not_fence_each_other(stage: KafkaStage) -> None:
    first, second = stage.sink("first"), stage.sink("second")
    assert await first.open() is None
    await first.send(deliveries(1, 3), upto=3)
    assert await second.open() is None
    await second.send(deliveries(1, 9), upto=9)
    await first.send(deliveries(4, 4), upto=4)
    assert (await first.open(), await second.open()) == (_position(4), _position(9))
    await first.close(5)
    await second.close(5)


async def test_the_position_is_found_behind_another_sinks_open_transaction(kafka: Kafka, stage: KafkaStage) -> None:
    """A reader with read_committed stops before the first open transaction, our own last commit behind it."""
    sink = stage.sink()
    await sink.open()
    await sink.send(deliveries(1, 1), upto=1)
    with _open_transaction(kafka, f"{stage.prefix}.cursors"):
        await sink.send(deliveries(2, 2), upto=2)
        reopening = asyncio.create_task(sink.open())
        await asyncio.sleep(1.0)
        assert not reopening.done()
    assert await reopening == _position(2)
    await sink.close(5)


async def test_a_cancelled_send_is_either_there_with_its_position_or_not_at_all(stage: KafkaStage) -> None:
    """Cancelled at different moments; whatever the outcome was, going on from the position repeats nothing."""
    sink = stage.sink()
    await sink.open()
    done = 0
    for round_ in range(8):
        sending = asyncio.create_task(sink.send(deliveries(done + 1, done + 500), upto=done + 500))
        await asyncio.sleep(0.004 * round_)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        position = await sink.open()
        done = position.position if position else 0
        assert done % 500 == 0
    await sink.send(deliveries(done + 1, done + 500), upto=done + 500)
    await sink.close(5)
    assert sorted(stage.ids()) == [d.id for d in deliveries(1, done + 500)]


async def test_a_broker_killed_mid_batch_and_started_again_gets_the_batch_once(kafka: Kafka, stage: KafkaStage) -> None:
    cluster = kafka.own
    sink = stage.sink()
    await sink.open()
    await sink.send(deliveries(1, 100), upto=100)
    batch = deliveries(101, 1100, padding=10_000)
    sending = asyncio.create_task(sink.send(batch, upto=1100))
    await asyncio.sleep(0.05)
    cluster.kill()
    await asyncio.to_thread(cluster.restart)
    try:
        await sending
    except Unavailable:
        position = await sink.open()
        done = position.position if position else 0
        assert done in {100, 1100}
        await sink.send(batch if done == 100 else [], upto=1100)
    assert await sink.open() == _position(1100)
    await sink.close(5)
    assert sorted(stage.ids()) == [d.id for d in deliveries(1, 1100)]


async def test_a_broker_that_is_gone_is_unavailable_in_time_and_close_does_not_wait_for_it(
    kafka: Kafka, stage: KafkaStage
) -> None:
    cluster = kafka.own
    sink = stage.sink(patience_seconds=2.0)
    await sink.open()
    await sink.send(deliveries(1, 1), upto=1)
    # A lone broker that is killed between the acknowledgement of a commit and its markers never writes these.
    assert stage.ids() == [delivery(1).id]
    assert len(committed(kafka.bootstrap, f"{stage.prefix}.cursors")) == 1
    cluster.kill()
    try:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await sink.send(deliveries(2, 500), upto=500)
        with pytest.raises(Unavailable):
            await sink.open()
        sending = time.monotonic()
        await sink.close(3)
        assert sending - started < 8
        assert time.monotonic() - sending < 3
    finally:
        await asyncio.to_thread(cluster.restart)
    successor = stage.sink()
    assert await successor.open() == _position(1)
    await successor.close(5)


async def test_close_interrupts_a_send_that_hangs(kafka: Kafka, stage: KafkaStage) -> None:
    cluster = kafka.own
    sink = stage.sink()
    await sink.open()
    cluster.pause()
    try:
        sending = asyncio.create_task(sink.send(deliveries(1, 10), upto=10))
        await asyncio.sleep(0.3)
        started = time.monotonic()
        await sink.close(3)
        assert time.monotonic() - started < 3
        with pytest.raises(Unavailable):
            await sending
    finally:
        cluster.resume()


async def test_three_brokers_lose_one_and_nothing_repeats(three_brokers: Cluster) -> None:
    stage = KafkaStage(kafka=Kafka(bootstrap=three_brokers.bootstrap, cluster=three_brokers), transactional=True)
    sink = stage.sink(partitions=3)
    await sink.open()
    await sink.send(deliveries(1, 300), upto=300)
    three_brokers.kill(1)
    done = 300
    deadline = time.monotonic() + 60
    while done < 900:
        assert time.monotonic() < deadline
        try:
            await sink.send(deliveries(done + 1, done + 300), upto=done + 300)
            done += 300
        except Unavailable:
            position = await sink.open()
            done = position.position if position else 0
    assert await sink.probe() == (
        f"kafka: 2 brokers, no TLS, topic {stage.topic} with 3 partitions; a transaction was committed"
    )
    await sink.close(5)
    assert sorted(stage.ids()) == [d.id for d in deliveries(1, 900)]


async def test_a_record_is_a_cloud_event_keyed_by_the_incident(stage: KafkaStage) -> None:
    sink = stage.sink()
    await sink.open()
    sent = delivery(7, uuid="3a1b2c3d-0000-4000-8000-000000000001")
    before = int(time.time() * 1000)
    await sink.send([sent], upto=7)
    await sink.close(5)
    (record,) = committed(stage.kafka.bootstrap, stage.topic)
    expected = {name: value.decode() if isinstance(value, bytes) else value for name, value in kafka_headers(sent)}
    assert record.headers == expected
    assert (record.key, record.value) == (sent.uuid, sent.body)
    assert record.timestamp >= before - 1000, "the record's own time; updateTime would expire it at once"


async def test_a_key_goes_to_the_partition_that_every_java_client_gives_it(stage: KafkaStage) -> None:
    sink = stage.sink(partitions=6)
    await sink.open()
    await sink.send(deliveries(1, 60), upto=60)
    await sink.close(5)
    for record in committed(stage.kafka.bootstrap, stage.topic):
        assert record.partition == _murmur2(record.key.encode()) % 6


def _murmur2(data: bytes) -> int:
    """`Utils.toPositive(Utils.murmur2(key))` of Apache Kafka."""
    mask, magic = 0xFFFFFFFF, 0x5BD1E995
    state = (0x9747B28C ^ len(data)) & mask
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * magic & mask
        word = (word ^ word >> 24) * magic & mask
        state = (state * magic & mask) ^ word
    if rest := data[whole:]:
        state = (state ^ int.from_bytes(rest, "little")) * magic & mask
    state = (state ^ state >> 13) * magic & mask
    return (state ^ state >> 15) & 0x7FFFFFFF


async def test_a_topic_may_follow_source_and_severity(stage: KafkaStage) -> None:
    base = stage.topic
    sink = stage.sink(topic=base + ".{source}.{severity}", partitions=2)
    await sink.open()
    batch = [
        delivery(1, source="acme"),
        delivery(2, source="globex", severity="INCIDENT_SEVERITY_LEVEL_LOW"),
        delivery(3, source="acme", severity="brand new/level"),
        delivery(4, source="acme", severity=""),
    ]
    await sink.send(batch, upto=4)
    await sink.close(5)
    names = ["acme.high", "globex.low", "acme.brand_new_level", "acme.unspecified"]
    for name, sent in zip(names, batch, strict=True):
        assert events(committed(stage.kafka.bootstrap, f"{base}.{name}")) == [sent.id]


async def test_missing_topics_are_made_and_the_positions_topic_is_compacted(stage: KafkaStage) -> None:
    sink = stage.sink(partitions=4)
    await sink.open()
    await sink.close(5)
    assert partitions_of(stage.kafka.bootstrap, stage.topic) == 4
    assert partitions_of(stage.kafka.bootstrap, f"{stage.prefix}.cursors") == 1
    again = stage.sink()
    assert await again.open() is None, "what was made is accepted"
    await again.close(5)


async def test_a_missing_topic_that_must_not_be_made_is_a_configuration_error_that_names_it(
    stage: KafkaStage,
) -> None:
    sink = stage.sink(create_topic=False)
    with pytest.raises(ConfigError, match=f"topic {stage.topic} does not exist; create it"):
        await sink.open()
    with pytest.raises(Unavailable, match=f"topic {stage.topic} does not exist"):
        await sink.probe()
    await sink.close(5)
    assert partitions_of(stage.kafka.bootstrap, stage.topic) == 0


@pytest.mark.parametrize(("partitions", "policy"), [(1, "delete"), (3, "compact")])
async def test_a_positions_topic_that_would_forget_is_refused_with_the_cure(
    stage: KafkaStage, partitions: int, policy: str
) -> None:
    name = f"{stage.prefix}.cursors"
    create_topic(stage.kafka.bootstrap, name, partitions=partitions, config={"cleanup.policy": policy})
    sink = stage.sink()
    with pytest.raises(ConfigError, match=r"cleanup\.policy=compact and 1 partition") as refused:
        await sink.open()
    assert name in str(refused.value)
    await sink.close(5)


async def test_what_is_no_position_is_not_guessed_at(stage: KafkaStage) -> None:
    sink = stage.sink()
    await sink.open()
    producer = Producer({"bootstrap.servers": stage.kafka.bootstrap})
    producer.produce(f"{stage.prefix}.cursors", b"not a position", b"siem")
    producer.flush(PATIENCE_SECONDS)
    with pytest.raises(ConfigError, match="kafka_prefix"):
        await sink.open()
    await sink.close(5)


async def test_the_broker_refuses_one_event_for_its_size_and_only_that_one_is_blamed(stage: KafkaStage) -> None:
    """The request was refused as a whole; sent again one by one, the culprit is found, and nothing was visible."""
    create_topic(stage.kafka.bootstrap, stage.topic, config={"max.message.bytes": "5000"})
    sink = stage.sink()
    await sink.open()
    batch = [delivery(1), delivery(2, padding=20_000), delivery(3), delivery(4, padding=30_000)]
    with pytest.raises(Refused) as refused:
        await sink.send(batch, upto=4)
    assert set(refused.value.positions) == {2, 4}
    assert refused.value.reason == "too_large"
    assert stage.ids() == []
    await sink.send([batch[0], batch[2]], upto=4)
    assert await sink.open() == _position(4)
    await sink.close(5)
    assert stage.ids() == [batch[0].id, batch[2].id]


async def test_a_topic_whose_limit_is_below_a_whole_request_still_gets_every_event(stage: KafkaStage) -> None:
    create_topic(stage.kafka.bootstrap, stage.topic, config={"max.message.bytes": "5000"})
    sink = stage.sink()
    await sink.open()
    await sink.send(deliveries(1, 40, padding=1000), upto=40)
    await sink.close(5)
    assert stage.ids() == [d.id for d in deliveries(1, 40)]


async def test_an_event_over_the_limit_has_its_lists_cut(stage: KafkaStage) -> None:
    sink = stage.sink(max_event_bytes=4000)
    await sink.open()
    await sink.send([delivery(1, detectionUuids=[f"detection-{n}" for n in range(1000)])], upto=1)
    await sink.close(5)
    (record,) = committed(stage.kafka.bootstrap, stage.topic)
    assert record.value is not None
    assert len(record.value) <= 4000
    value = msgspec.json.decode(record.value)
    assert value["event"]["truncated"] == {"detectionUuids": 1000}
    assert value["incident"]["detectionUuids"][0] == "detection-0"


async def test_omitted_fields_never_reach_the_cluster(stage: KafkaStage) -> None:
    sink = stage.sink(omit=("description", "status"))
    await sink.open()
    await sink.send([delivery(1, padding=50)], upto=1)
    await sink.close(5)
    (record,) = committed(stage.kafka.bootstrap, stage.topic)
    value = msgspec.json.decode(record.value or b"")
    assert "description" not in value["incident"]
    assert (value["event"]["changed"], value["event"]["previous"]) == ([], {})


async def test_an_aborted_transaction_is_seen_by_no_reader(stage: KafkaStage) -> None:
    """Its records are in the log: only a reader with read_uncommitted, which is not asked for, would see them."""
    create_topic(stage.kafka.bootstrap, stage.topic, config={"max.message.bytes": "5000"})
    sink = stage.sink()
    await sink.open()
    with pytest.raises(Refused):
        await sink.send([delivery(1), delivery(2, padding=20_000)], upto=2)
    await sink.close(5)
    assert committed(stage.kafka.bootstrap, stage.topic) == []
    assert len(committed(stage.kafka.bootstrap, stage.topic, isolation="read_uncommitted")) == 1


@pytest.mark.parametrize("transactional", [True, False])
async def test_a_wrong_password_is_named_at_once_and_shown_nowhere(
    kafka: Kafka, transactional: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """librdkafka raises nothing then, and tries for ever."""
    caplog.set_level(logging.DEBUG)
    stage = KafkaStage(kafka=kafka, transactional=transactional)
    sink = stage.sink(options=_login(kafka, "relay", "wrong-password"))
    started = time.monotonic()
    for attempt in (sink.open, sink.probe):
        with pytest.raises(Unavailable, match=r"Invalid username or password.*check sasl\.mechanism") as refused:
            await attempt()
        assert refused.value.reason == "login_refused"
        assert "wrong-password" not in f"{refused.value!r}{refused.value.__cause__!r}{vars(sink)}"
    assert time.monotonic() - started < 5
    assert "wrong-password" not in caplog.text
    await sink.close(5)


async def test_the_right_password_delivers(kafka: Kafka, stage: KafkaStage) -> None:
    sink = stage.sink(options=_login(kafka, "relay"))
    await sink.open()
    await sink.send(deliveries(1, 3), upto=3)
    await sink.close(5)
    assert sorted(stage.ids()) == [d.id for d in deliveries(1, 3)]


async def test_what_is_forbidden_says_what_to_allow_step_by_step(kafka: Kafka, stage: KafkaStage) -> None:
    """A user who follows the hints arrives at a sink that delivers; nothing else had to be allowed."""
    create_topic(kafka.own.bootstrap, stage.topic)
    sink = stage.sink(options=_login(kafka, "limited"), patience_seconds=10)
    cursors = f"{stage.prefix}.cursors"
    on_cursors = [AclOperation.CREATE, AclOperation.WRITE, AclOperation.DESCRIBE]
    for said, kind, name, operations in [
        (f"looking at topic {stage.topic}.*Describe", ResourceType.TOPIC, stage.topic, [AclOperation.DESCRIBE]),
        (f"{stage.topic} may not be written", ResourceType.TOPIC, stage.topic, [AclOperation.WRITE]),
        (f"looking at topic {cursors}.*Create, Read", ResourceType.TOPIC, cursors, on_cursors),
        ("Write on the transactional ids", ResourceType.TRANSACTIONAL_ID, stage.prefix, on_cursors[1:]),
        (f"settings of topic {cursors}.*DescribeConfigs", ResourceType.TOPIC, cursors, [AclOperation.DESCRIBE_CONFIGS]),
    ]:
        with pytest.raises(Unavailable, match=said) as refused:
            await sink.open()
        assert refused.value.reason == "forbidden"
        for operation in operations:
            _allow(kafka, kind, name, operation)
    await sink.open()
    await sink.send(deliveries(1, 3), upto=3)
    with pytest.raises(Unavailable, match=r"opening.*Read and DescribeConfigs"):
        await sink.open()
    _allow(kafka, ResourceType.TOPIC, cursors, AclOperation.READ)
    assert await sink.open() == _position(3)
    assert "a transaction was committed" in await sink.probe()
    await sink.close(5)
    assert sorted(stage.ids()) == [d.id for d in deliveries(1, 3)]


def _allow(kafka: Kafka, kind: ResourceType, name: str, operation: AclOperation) -> None:
    options: dict[str, str | int | float | bool] = {"bootstrap.servers": kafka.own.bootstrap}
    admin = AdminClient(options)
    binding = AclBinding(
        kind, name, ResourcePatternType.PREFIXED, "User:limited", "*", operation, AclPermissionType.ALLOW
    )
    for future in admin.create_acls([binding]).values():
        future.result(PATIENCE_SECONDS)


async def test_an_option_that_does_not_exist_is_a_configuration_error(stage: KafkaStage) -> None:
    sink = stage.sink(options={"bootstrap.server": "typo"})
    with pytest.raises(ConfigError, match="No such configuration property"):
        await sink.open()
    await sink.close(5)


async def test_without_transactions_a_dropped_producer_is_replaced_by_the_next_send(kafka: Kafka) -> None:
    cluster = kafka.own
    stage = KafkaStage(kafka=kafka, transactional=False)
    sink = stage.sink(patience_seconds=1.0)
    await sink.open()
    cluster.kill()
    with pytest.raises(Unavailable):
        await sink.send(deliveries(1, 3), upto=3)
    await asyncio.to_thread(cluster.restart)
    for _ in range(20):
        try:
            await sink.send(deliveries(1, 3), upto=3)
            break
        except Unavailable:
            continue
    await sink.close(5)
    assert sorted(set(stage.ids())) == [d.id for d in deliveries(1, 3)]


async def test_a_thousand_events_are_one_transaction_of_tens_of_milliseconds(stage: KafkaStage) -> None:
    """No promise, a tripwire: `make bench` measures."""
    sink = stage.sink()
    await sink.open()
    for at in range(0, 5000, 1000):
        started = time.monotonic()
        await sink.send(deliveries(at + 1, at + 1000, padding=800), upto=at + 1000)
        seconds = time.monotonic() - started
    await sink.close(5)
    assert seconds < 1.0
