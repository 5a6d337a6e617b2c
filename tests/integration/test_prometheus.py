"""The Prometheus that other tests lean on: scrapes, answers, alerts, follows its targets, and leaves nothing behind."""

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.packages import skip_without
from tests.support.prometheus import Prometheus, Sample
from tests.support.receiver import Receiver, Told, receiving, unused_port

RULES = {
    "groups": [
        {
            "name": "test",
            "rules": [
                {
                    "alert": "Hot",
                    "expr": "temperature_celsius > 30",
                    "labels": {"severity": "warning"},
                    "annotations": {"summary": "{{ $labels.room }} is at {{ $value }} °C"},
                }
            ],
        }
    ]
}


def says(receiver: Receiver, celsius: float) -> None:
    text = f'# TYPE temperature_celsius gauge\ntemperature_celsius{{room="attic"}} {celsius}\n'
    receiver.says(Told(headers={"content-type": "text/plain; version=0.0.4"}, body=text.encode()))


@asynccontextmanager
async def attic(celsius: float) -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        says(receiver, celsius)
        yield receiver


async def test_it_scrapes_answers_alerts_and_follows_its_targets(tmp_path: Path) -> None:
    skip_without("prometheus")
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps(RULES))
    async with attic(20) as cool, attic(40) as hot:
        targets = {"attic": [f"127.0.0.1:{cool.port}"]}
        async with Prometheus(folder=tmp_path, targets=targets, rules=[rules]) as prometheus:
            process_id = prometheus.process_id
            begun = time.time()
            [sample] = await prometheus.query("temperature_celsius")
            assert (sample.labels["room"], sample.value) == ("attic", 20)
            assert await prometheus.alerts() == []
            assert await prometheus.query("2 * 3") == [Sample(labels={}, value=6)]
            with pytest.raises(ValueError, match="parse error"):
                await prometheus.query("temperature_celsius{")

            await prometheus.set_targets({"attic": [f"127.0.0.1:{hot.port}"]})
            await prometheus.wait("temperature_celsius", lambda found: [one.value for one in found] == [40])
            await prometheus.wait('ALERTS{alertname="Hot",alertstate="firing"}')
            [alert] = await prometheus.alerts()
            assert (alert.name, alert.state, alert.labels["severity"]) == ("Hot", "firing", "warning")
            assert alert.annotations["summary"] == "attic is at 40 °C"
            assert abs(alert.active_at.timestamp() - time.time()) < 60
            series = await prometheus.query_range("temperature_celsius", start=begun)
            assert {value for one in series for _, value in one.points} == {20, 40}
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


async def test_a_target_that_does_not_answer_is_down_and_a_restart_keeps_the_data(tmp_path: Path) -> None:
    skip_without("prometheus")
    prometheus = Prometheus(folder=tmp_path, targets={"attic": [f"127.0.0.1:{unused_port()}"]})
    async with prometheus:
        assert [sample.value for sample in await prometheus.query("up")] == [0]
        seen = time.time()
    async with prometheus:
        assert [sample.value for sample in await prometheus.query("up", at=seen)] == [0]


async def test_a_rule_that_cannot_be_read_fails_the_start_with_its_log(tmp_path: Path) -> None:
    skip_without("prometheus")
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: [{name: test, rules: [{alert: Hot, expr: 'temperature >'}]}]")
    with pytest.raises(RuntimeError, match="could not parse expression"):
        async with Prometheus(folder=tmp_path, targets={}, rules=[rules]):
            pass
