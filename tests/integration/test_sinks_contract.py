"""One suite over every sink: what `relay.sinks.Sink` promises, against real files, pipes, sockets and a real Kafka."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.errors import Gone, Refused, Unavailable
from relay.sinks import Delivery, Position
from tests.support.deliveries import deliveries, delivery
from tests.support.kafka import Kafka
from tests.support.receiver import receiving
from tests.support.sinks import JOURNAL, FileStage, KafkaStage, Stage, StdoutStage, WebhookStage


@pytest.fixture(
    params=[
        pytest.param("kafka", marks=pytest.mark.kafka),
        pytest.param("kafka-non-transactional", marks=pytest.mark.kafka),
        "file",
        "stdout",
        "webhook",
    ]
)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    if request.param == "file":
        yield FileStage(path=tmp_path / "events.ndjson")
    elif request.param == "stdout":
        out = StdoutStage()
        yield out
        out.end()
    elif request.param == "webhook":
        async with receiving() as receiver:
            yield WebhookStage(receiver=receiver)
    else:
        kafka: Kafka = request.getfixturevalue("kafka")
        yield KafkaStage(kafka=kafka, transactional=request.param == "kafka")


def _ids(batch: list[Delivery]) -> list[str]:
    return [delivery.id for delivery in batch]


async def test_what_was_acknowledged_is_there_in_order(stage: Stage) -> None:
    sink = stage.sink()
    await sink.open()
    versions = [delivery(position, uuid="one-incident") for position in range(1, 301)]
    for start in range(0, 300, 100):
        await sink.send(versions[start : start + 100], upto=start + 100)
    await sink.close(5)
    assert stage.ids() == _ids(versions)


async def test_an_atomic_sink_gives_back_the_position_that_was_stored_with_the_last_batch(stage: Stage) -> None:
    sink = stage.sink()
    assert await sink.open() is None
    await sink.send(deliveries(1, 5), upto=7)
    await sink.send(deliveries(8, 9), upto=None)
    await sink.close(5)
    successor = stage.sink()
    expected = Position(journal_id=JOURNAL, position=7) if sink.atomic else None
    assert await successor.open() == expected
    await successor.close(5)


async def test_an_empty_batch_moves_the_position_alone(stage: Stage) -> None:
    sink = stage.sink()
    await sink.open()
    await sink.send([], upto=41)
    position = await sink.open()
    await sink.close(5)
    assert position == (Position(journal_id=JOURNAL, position=41) if sink.atomic else None)
    assert stage.ids() == []


async def test_a_successor_sends_what_the_far_side_lacks_and_nothing_is_repeated(stage: Stage) -> None:
    """The predecessor is left as a crash leaves it: not closed, its last acknowledgement never recorded."""
    crashed = stage.sink()
    await crashed.open()
    await crashed.send(deliveries(1, 50), upto=50)
    await crashed.send(deliveries(51, 80), upto=80)

    successor = stage.sink()
    position = await successor.open()
    recorded = position.position if position else 50
    await successor.send(deliveries(recorded + 1, 120), upto=120)
    await successor.close(5)
    await crashed.close(5)
    seen = stage.ids()
    assert sorted(set(seen)) == _ids(deliveries(1, 120))
    if not stage.repeats:
        assert len(seen) == 120


async def test_a_sink_can_be_opened_again_after_it_was_closed(stage: Stage) -> None:
    sink = stage.sink()
    await sink.open()
    await sink.send(deliveries(1, 3), upto=3)
    await sink.close(5)
    await sink.open()
    await sink.send(deliveries(4, 6), upto=6)
    await sink.close(5)
    assert sorted(stage.ids()) == _ids(deliveries(1, 6))


async def test_close_keeps_its_time_and_may_come_first_and_twice(stage: Stage) -> None:
    sink = stage.sink()
    await sink.close(1)
    await sink.open()
    started = time.monotonic()
    await sink.close(2)
    await sink.close(2)
    assert time.monotonic() - started < 2


async def test_a_far_side_that_cannot_be_reached_is_unavailable_or_gone_within_bounded_time(stage: Stage) -> None:
    sink = stage.broken()
    started = time.monotonic()
    with pytest.raises((Unavailable, Gone)):
        await sink.open()
    with pytest.raises((Unavailable, Gone)):
        await sink.probe()
    assert time.monotonic() - started < 5
    await sink.close(1)


async def test_a_probe_sends_no_event_and_disturbs_no_open_sink(stage: Stage) -> None:
    sink = stage.sink()
    await sink.open()
    await sink.send(deliveries(1, 2), upto=2)
    checker = stage.sink()
    line = await checker.probe()
    assert "\n" not in line
    assert line
    await checker.close(5)
    await sink.send(deliveries(3, 4), upto=4)
    assert await sink.open() == (Position(journal_id=JOURNAL, position=4) if sink.atomic else None)
    await sink.close(5)
    assert sorted(stage.ids()) == _ids(deliveries(1, 4))


@pytest.mark.kafka
async def test_a_refused_event_leaves_nothing_of_its_batch_behind_and_the_sink_goes_on(kafka: Kafka) -> None:
    stage = KafkaStage(kafka=kafka, transactional=True)
    sink = stage.sink(max_event_bytes=2000)
    await sink.open()
    batch = [delivery(1), delivery(2, padding=3000), delivery(3)]
    with pytest.raises(Refused) as refused:
        await sink.send(batch, upto=3)
    assert list(refused.value.positions) == [2]
    assert stage.ids() == []
    await sink.send([batch[0], batch[2]], upto=3)
    await sink.close(5)
    assert sorted(stage.ids()) == [batch[0].id, batch[2].id]
