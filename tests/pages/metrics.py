"""Writes docs/metrics.md from the metrics themselves. What each means stands in `relay.metrics`, not here."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, get_args

from prometheus_client.metrics import MetricWrapperBase

from relay.clock import SystemClock
from relay.errors import JOURNAL_REASONS, SOURCE_REASONS
from relay.incidents import KINDS
from relay.metrics import (
    LIVE_ORIGINS,
    SEVERITIES,
    SKIPPED_REASONS,
    DeliveryOutcome,
    Metrics,
    PollOutcome,
)
from relay.states import MODES, SINK_STATES, VIEWS

PAGE: Final = Path(__file__).parents[2] / "docs" / "metrics.md"

SECTIONS: Final = (
    ("relay_polls_total", "Reading"),
    ("relay_api_requests_total", "The API"),
    ("relay_deliveries_total", "Sending"),
    ("relay_errors_total", "The relay itself"),
)
"""Each by its first metric."""
UNITS: Final = (
    ("_timestamp_seconds", "Unix time"),
    ("_seconds", "seconds"),
    ("_seconds_total", "seconds"),
    ("_bytes", "bytes"),
)

HEAD: Final = """\
# Metrics

What `/metrics` shows, in Prometheus' text format. This page is made from `relay/metrics.py` by
`python -m tests.pages`; names and labels stay as they are from release to release. How to scrape, and what to do when
an alert fires: [operations](operations.md).

- A counter is there, at zero, from the start on for every label set that is known beforehand; one that is not, such as
  an HTTP status never seen before, begins with its first count. Counters begin again at each start of the relay.
- Times are seconds since 1970 (Unix time). A time that is not known is absent, not zero.
- Gauges that come from the journal (what waits, dead letters, bytes, the ledger, the pause of an account) are as of the
  last 2 s.
- A source or sink that another process has taken over is no longer shown.
"""

LABELS: Final = """\
## Labels

| label | values |
|---|---|
| `source` | the label of the source |
| `sink` | the name of the sink |
| `outcome` of `relay_polls_total` | {polls} |
| `outcome` of `relay_deliveries_total` | {deliveries} |
| `reason` of `relay_deliveries_total` | empty where it went well; {skipped} of `skipped`; `keep` of `expired`; else what the far side said, in a word or an HTTP status |
| `component` of `relay_errors_total` | `source NAME`, `sink NAME`, `journal` |
| `reason` of `relay_errors_total` | of a source `bad_record`, {sources}, or more closely; of a sink `when`; of the journal {journal} |
| `reason` of `relay_polling_stopped` | the same as of the journal |
| `component` of `relay_dead_letters` | `source`, `sink`; `name` is which |
| `kind` of `relay_events_total` | {kinds} |
| `origin` | {origins} |
| `kind` of `relay_tasks_held` | `source`, `sink` |
| `view` | {views} |
| `mode` | {modes} |
| `state` | {states} |
| `severity` | {severities}, or as ESET spelled it |
| `code` | the HTTP status, or why none came: `timeout`, `dns`, `connect`, `tls`, `proxy`, `reset`, `truncated`, `protocol`, `address`, `too_large` |
| `version` | the version of the relay |

`retried` counts attempts; every other outcome is final and counts deliveries. What a rule does not want is `skipped`
with the reason `when`.
"""  # noqa: E501 - rows of a table

COST: Final = """\
## What a scrape costs

With 200 sources and 5 sinks a scrape is 13,000 lines, 0.9 MB, and takes 0.2 s of one core. It is made in a thread of
its own: meanwhile the relay answers within 20 ms; made in its loop, it would stand still for all of that time. A scrape
every 30 s is plenty.
"""


def collectors() -> list[MetricWrapperBase]:
    """Every metric, in the order in which `relay.metrics` defines them."""
    return [one for one in vars(Metrics(SystemClock())).values() if isinstance(one, MetricWrapperBase)]


def exposed_name(metric: MetricWrapperBase) -> str:
    """As it stands in a scrape; of a histogram without `_bucket`, `_sum` and `_count`."""
    return f"{metric._name}_total" if metric._type == "counter" else metric._name


def unit(name: str) -> str:
    """What it counts or measures in, by its name."""
    for ending, found in UNITS:
        if name.endswith(ending):
            return found
    return ""


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD.rstrip("\n"), *_sections(), "", _labels(), COST])


def _sections() -> Iterator[str]:
    titles = dict(SECTIONS)
    for metric in collectors():
        name = exposed_name(metric)
        if name in titles:
            yield f"\n## {titles[name]}\n\n| metric | type | labels | unit | meaning | absent |\n|{'---|' * 6}"
        meaning, _, absent = metric._documentation.rstrip(".").partition("; absent ")
        labels = " ".join(f"`{label}`" for label in metric._labelnames)
        yield f"| `{name}` | {metric._type} | {labels} | {unit(name)} | {meaning} | {absent} |"


def _labels() -> str:
    def quoted(values: Iterable[str]) -> str:
        return ", ".join(f"`{value}`" for value in values)

    return LABELS.format(
        polls=quoted(get_args(PollOutcome)),
        deliveries=quoted(get_args(DeliveryOutcome)),
        skipped=quoted(SKIPPED_REASONS),
        sources=quoted(SOURCE_REASONS),
        journal=quoted(JOURNAL_REASONS),
        kinds=quoted(KINDS),
        origins=quoted(LIVE_ORIGINS),
        views=quoted(VIEWS),
        modes=quoted(MODES),
        states=quoted(SINK_STATES),
        severities=quoted(SEVERITIES),
    )


def main() -> None:
    """Writes the page."""
    PAGE.write_text(render())


if __name__ == "__main__":
    main()
