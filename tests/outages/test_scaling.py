"""The faster copy of the rules: every time in it is a sixtieth, and nothing else has changed."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.outages.scaling import RULES, SMALLEST_TIME, scaled, scaled_duration, scaled_expression, write_scaled
from tests.support.packages import skip_without


@pytest.mark.parametrize(
    ("slow", "fast"),
    [("1m", "1s"), ("10m", "10s"), ("2h", "120s"), ("1d", "1440s"), ("30s", "500ms"), ("1h30m", "90s")],
)
def test_a_duration_becomes_a_sixtieth_in_a_spelling_that_prometheus_takes(slow: str, fast: str) -> None:
    assert scaled_duration(slow) == fast


@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        ("rate(relay_polls_total[5m]) > 0", "rate(relay_polls_total[5s]) > 0"),
        ("avg_over_time((x > bool 0)[10m:1m]) > 0.5", "avg_over_time((x > bool 0)[10s:1s]) > 0.5"),
        ("x offset 1d == 1", "x offset 1440s == 1"),
        ("(time() - x_seconds) > 900", "(time() - x_seconds) > 15"),
        ("clamp_min(5 * relay_poll_interval_seconds, 300)", "clamp_min(5 * relay_poll_interval_seconds, 5)"),
        ("(time() - x) > 90", "(time() - x) > 1.5"),
        ("a / b > 0.85", "a / b > 0.85"),
        ("x < 59", "x < 59"),
    ],
)
def test_durations_and_seconds_of_an_expression_are_scaled_and_ratios_factors_and_counts_are_not(
    slow: str, fast: str
) -> None:
    assert scaled_expression(slow) == fast


def test_names_and_texts_that_hold_digits_are_left_alone() -> None:
    expression = """x{code="429", job='every 5m', path=~"/v2/.+"} + relay_x_99 + foo5m"""
    assert scaled_expression(expression) == expression


def test_only_times_differ_between_the_rules_and_their_copy() -> None:
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for slow, fast in zip(rules["groups"], scaled(rules)["groups"], strict=True):
        for before, after in zip(slow["rules"], fast["rules"], strict=True):
            same = {name for name in before if before[name] == after[name]}
            assert before.keys() - same <= {"expr", "for", "keep_firing_for"}, before["alert"]
            assert ("for" in before) is ("for" in after)
            assert _without_times(before["expr"]) == _without_times(after["expr"])


def test_every_number_that_is_taken_for_a_time_is_a_whole_number_of_minutes() -> None:
    """So that a count of 100, say, does not slip in unnoticed."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            taken = [int(text) for text in re.findall(r"(?<![\w.\"])\d+(?![\w.\"])", rule["expr"])]
            assert [number for number in taken if number >= SMALLEST_TIME and number % 60] == [], rule["alert"]


def test_prometheus_takes_the_copy(tmp_path: Path) -> None:
    skip_without("promtool")
    copy = write_scaled(tmp_path / "alerts.yaml")
    done = subprocess.run(["promtool", "check", "rules", str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _without_times(expression: str) -> list[str]:
    return re.split(r"\d+(?:ms|[smhdwy])?", expression)
