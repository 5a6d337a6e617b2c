"""A copy of the alerts' rules in which time runs sixty times faster, as it does for the relay in these runs.

Scaled are each `for`, `keep_firing_for` and `interval`; in an expression each duration (`[10m:1m]`, `offset 1d`), and
each whole number of 60 or more: those are times in seconds (`> 900`). Ratios, factors and counts are smaller than that.
"""

import re
from pathlib import Path
from typing import Any, Final

import yaml

SCALE: Final = 60
RULES: Final = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yaml"
SMALLEST_TIME: Final = 60
_UNITS_MILLISECONDS: Final = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
    "y": 365 * 86_400_000,
}
_PART: Final = re.compile(r"(\d+)(ms|[smhdwy])")
_TOKEN: Final = re.compile(
    r"""(?P<text>"[^"]*"|'[^']*')|(?P<duration>(?<![\w.])(?:\d+(?:ms|[smhdwy]))+\b)|(?P<number>(?<![\w.])\d+(?![\w.]))"""
)


def write_scaled(target: Path, *, source: Path = RULES) -> Path:
    """Writes the copy there."""
    target.write_text(yaml.safe_dump(scaled(yaml.safe_load(source.read_text(encoding="utf-8"))), sort_keys=False))
    return target


def scaled(rules: dict[str, Any]) -> dict[str, Any]:
    """The document of a file of rules, faster."""
    return {"groups": [_group(group) for group in rules["groups"]]}


def scaled_expression(expression: str) -> str:
    """The same expression, faster. Texts in quotes are left alone."""
    return _TOKEN.sub(_token, expression)


def scaled_duration(duration: str) -> str:
    """A sixtieth of it, in whole seconds where that is possible."""
    milliseconds = sum(int(number) * _UNITS_MILLISECONDS[unit] for number, unit in _PART.findall(duration)) // SCALE
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def _group(group: dict[str, Any]) -> dict[str, Any]:
    interval = {"interval": scaled_duration(group["interval"])} if "interval" in group else {}
    return group | interval | {"rules": [_rule(rule) for rule in group["rules"]]}


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    spans = {name: scaled_duration(rule[name]) for name in ("for", "keep_firing_for") if name in rule}
    return rule | {"expr": scaled_expression(rule["expr"])} | spans


def _token(found: re.Match[str]) -> str:
    if found["duration"]:
        return scaled_duration(found["duration"])
    if found["number"] and int(found["number"]) >= SMALLEST_TIME:
        return f"{int(found['number']) / SCALE:g}"
    return found[0]
