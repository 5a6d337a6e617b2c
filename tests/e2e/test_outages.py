"""Outages against a real Prometheus: exactly those alerts fire that should, the status is right, nothing is lost.

Time runs sixty times faster than in operation; see `tests.outages`. The two quickest run with every `make test`.
"""

import pytest

from tests.e2e.stage import report
from tests.outages.__main__ import PROGRAMS
from tests.outages.play import Scenario, play
from tests.outages.scenarios import SCENARIOS
from tests.support.kafka import require_broker
from tests.support.packages import skip_without

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

QUICK = ("wrong-password", "slack-revoked")


async def _play(scenario: Scenario) -> None:
    skip_without(*PROGRAMS)
    require_broker()
    try:
        record = await play(scenario)
    except PermissionError as exc:
        pytest.skip(str(exc))
    report(
        f"outage {scenario.name}",
        lasted_seconds=record.ended,
        recovered_seconds_after=round(record.recovered - record.ended, 1),
        fired={alert.name: round(alert.fired, 1) for alert in record.alerts if alert.fired is not None},
        verdicts=[said.state for said in record.verdicts],
        **record.held,
    )


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.name in QUICK], ids=lambda one: one.name)
async def test_an_outage_fires_exactly_its_alerts_names_its_cure_and_loses_nothing(scenario: Scenario) -> None:
    await _play(scenario)


@pytest.mark.prove
@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.name not in QUICK], ids=lambda one: one.name)
async def test_a_longer_outage_fires_exactly_its_alerts_names_its_cure_and_loses_nothing(scenario: Scenario) -> None:
    await _play(scenario)
