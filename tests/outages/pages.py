"""Writes docs/outages.md out of what the last run of each outage left; knows nothing of how one is played."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Final

from tests.outages.play import Recorded, Scenario

WIDTH: Final = 120
SCALE: Final = 60
_HEAD: Final = """
# Outages, played

What happens when something fails: which alert fires, what `relay status` and the status page say, what ends it, and
what is lost, which is nothing.

Each outage below was played with the real relay, a real Kafka, a real Prometheus with the rules of
[alerts.yaml](../deploy/prometheus/alerts.yaml), and stand-ins for ESET Connect, Slack and Teams. Time ran sixty times
faster: sources were polled every second instead of every minute, and a copy of the rules had each `for` and each other
span of time divided by 60. So 8 s in a table are about 8 minutes in operation. What the relay does by its own clock did
not run faster: Slack takes one message a second, and a sink that fails is probed every few seconds; a transaction to
Kafka was given 2 s instead of 30.

In each run there are three sources, of which acme and globex are served by one address of ESET Connect and initech by
another, and four sinks: siem (Kafka), soc (Slack, incidents of high severity), oncall (Teams, told when soc is parked)
and disk (a file). Three incidents a second were created or changed all the time. Before each outage no alert fired;
during it the sinks that were not concerned got everything within 5 s; after it Kafka and the file held every version
exactly once and in order, and Slack every change that it was owed.
"""


def written(scenarios: Sequence[Scenario], records: Mapping[str, Recorded], pictures: Path) -> str:
    """The whole page, of those outages of which there is a record."""
    there = [scenario for scenario in scenarios if scenario.name in records]
    contents = "\n".join(f"- [{one.title}](#{_anchor(one.title)})" for one in there)
    return "\n".join([_HEAD.lstrip(), f"{contents}\n", *(_section(one, records[one.name], pictures) for one in there)])


def _section(scenario: Scenario, record: Recorded, pictures: Path) -> str:
    picture = pictures / f"outage-{scenario.name}.png"
    lines = [f"## {scenario.title}", "", *_wrapped(scenario.done), ""]
    lines += ["| in the run | in operation | |", "|---|---|---|", *_rows(record), ""]
    lines += ["`relay status`, shortly before the end:", "", "```text", record.terminal[WIDTH].rstrip(), "```", ""]
    if picture.exists():
        lines += [f"![The status page: {scenario.title}](pictures/{picture.name})", ""]
    lines += [*_wrapped(f"**What ended it.** {scenario.ended}"), "", *_wrapped(_held(record)), ""]
    return "\n".join(lines)


def _rows(record: Recorded) -> Iterator[str]:
    """What happened, by time."""
    happened: list[tuple[float, str]] = [(0.0, "the outage begins"), (record.ended, "the outage ends")]
    first = record.verdicts[0].state == "flowing"
    happened += [(said.at, _verdict(said.state)) for said in record.verdicts[first:]]
    for alert in record.alerts:
        if alert.fired is not None:
            happened.append((alert.fired, f"{_alert(alert.name)} fires, {alert.severity}"))
            if alert.resolved is not None:
                happened.append((alert.resolved, f"{_alert(alert.name)} is resolved"))
    for at, what in sorted(happened, key=lambda one: one[0]):
        yield f"| {at:.1f} s | {_span(at * SCALE)} | {what} |"


def _alert(named: str) -> str:
    """With a link to its runbook, and what it is about."""
    name, _, about = named.rstrip("}").partition("{")
    return f"[{name}](operations.md#{name.lower()})" + f" ({about.replace('=', ' ')})" * bool(about)


def _verdict(state: str) -> str:
    return "the relay does not answer" if state == "no answer" else f"the verdict is **{state}**"


def _span(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes >= 1 or not seconds else "< 1 min"


def _held(record: Recorded) -> str:
    held = record.held
    return (
        f"**What was lost.** Nothing: of {held['versions']} versions Kafka held {held['in_kafka']} and the file "
        f"{held['in_file']}; {held['messages']} messages in Slack stood for {held['changes_for_slack']} changes."
    )


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
