"""The alerts fire when they should and at no other time, speak of metrics that exist, and lead to a runbook."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.journal.sqlite import SHORT_RATIO
from relay.status import FILLING_RATIO
from tests.pages.metrics import collectors, exposed_name
from tests.support.packages import skip_without
from tests.unit.test_docs import ROOT, anchors

FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "alerts.yaml"
RUNBOOKS = ROOT / "docs" / "operations.md"
CASES = sorted((FOLDER / "tests").glob("*.yaml"))
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
NAMES = sorted({alert["alert"] for alert in ALERTS})

_SELECTOR = re.compile(r"\b(relay_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_TARGET_LABELS = {"job", "instance"}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


def test_prometheus_takes_the_rules() -> None:
    skip_without("promtool")
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_each_alert_fires_at_its_time_and_not_just_below_its_threshold(case: Path) -> None:
    skip_without("promtool")
    tested = promtool("test", "rules", case)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_is_tried_in_both_directions() -> None:
    fires: set[str] = set()
    quiet: set[str] = set()
    for case in CASES:
        for one in yaml.safe_load(case.read_text())["tests"]:
            for check in one.get("alert_rule_test", ()):
                (fires if check["exp_alerts"] else quiet).add(check["alertname"])
    assert sorted(fires) == NAMES
    assert sorted(quiet) == NAMES


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_each_alert_speaks_of_metrics_and_labels_that_exist(alert: dict[str, Any]) -> None:
    known = {exposed_name(metric): set(metric._labelnames) for metric in collectors()} | {"up": set()}
    selectors = _SELECTOR.findall(re.sub(r"\bby\b|\bon\b|\bwithout\b", "", alert["expr"]))
    assert selectors
    for name, matchers in selectors:
        assert name in known, f"{alert['alert']}: there is no {name}"
        assert set(_MATCHER.findall(matchers)) <= known[name] | _TARGET_LABELS, (
            f"{alert['alert']}: {name}{{{matchers}}}"
        )
    written = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    available = set().union(*(known[name] for name, _ in selectors)) | _TARGET_LABELS
    assert written <= available


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_each_alert_has_a_severity_says_what_it_means_and_leads_to_its_runbook(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"IncidentRelay([A-Z][a-z]+)+", alert["alert"])
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert ROOT / page == RUNBOOKS
    assert anchor == alert["alert"].lower()
    assert anchor in anchors(RUNBOOKS)
    for text in (alert["annotations"]["summary"], alert["annotations"]["description"]):
        assert "!" not in text
        assert "please" not in text.lower()


def test_each_runbook_belongs_to_an_alert() -> None:
    headings = re.findall(r"^## (IncidentRelay\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(headings) == NAMES


def test_delivered_events_go_before_the_journal_is_said_to_fill() -> None:
    """Else a relay whose sinks keep up would stand at the threshold for ever."""
    (alert,) = [one for one in ALERTS if one["alert"] == "IncidentRelayJournalFilling"]
    assert alert["expr"].endswith(f"> {FILLING_RATIO}")
    assert SHORT_RATIO < FILLING_RATIO
