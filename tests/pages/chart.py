"""The table of values in the chart's README, from the comments of its `values.yaml`. The prose around it is not.

A comment that begins with `# --` stands above the key that it explains, and for all that is below that key.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm" / "incident-relay"
PAGE: Final = CHART / "README.md"
VALUES: Final = CHART / "values.yaml"
BEGIN: Final = "<!-- values: written by `python -m tests.pages` -->\n"
END: Final = "<!-- end of values -->\n"

_KEY: Final = re.compile(r"( *)(\w+):")
_COMMENT: Final = re.compile(r" *# ?(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A key with what its comment says."""

    key: tuple[str, ...]
    default: Any
    about: str


def render() -> str:
    """The page with its table as it is now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [f"| `{'.'.join(value.key)}` | `{_shown(value.default)}` | {value.about} |" for value in values()]
    table = "\n".join(["", "| value | default | what it does |", "|---|---|---|", *rows, ""])
    return f"{before}{BEGIN}{table}\n{END}{after}"


def values() -> Iterator[Value]:
    """Every key that has a comment of its own, in order."""
    content = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    said: list[str] = []
    path: list[tuple[int, str]] = []
    for line in VALUES.read_text(encoding="utf-8").splitlines():
        if comment := _COMMENT.fullmatch(line):
            text = comment[1]
            if text.startswith("-- "):
                said = [text.removeprefix("-- ")]
            elif said:
                said.append(text)
        elif match := _KEY.match(line):
            path = [(depth, name) for depth, name in path if depth < len(match[1])]
            path.append((len(match[1]), match[2]))
            if said:
                key = tuple(name for _, name in path)
                yield Value(key=key, default=_at(content, key), about=" ".join(said))
            said = []
        else:
            said = []


def _at(content: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        content = content[part]
    return content


def _shown(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False)
