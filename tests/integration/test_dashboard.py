"""The Grafana dashboard: each of its queries asks a real Prometheus about a real relay in trouble, and is answered.

No Grafana is at hand: how it looks is not checked, only that it is whole, fits one screen and says what it shows.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import click
import typer
import yaml

from relay.cli import app
from relay.clock import SystemClock
from relay.metrics import Metrics
from relay.simulator import Fault, Tenant
from tests.e2e.stage import CONFIGURATION, SOURCE, USER, Stage, stage, until
from tests.support.packages import skip_without
from tests.support.process import PATIENCE_SECONDS, Child
from tests.support.prometheus import JOB, Prometheus
from tests.support.receiver import Told, receiving, unused_port

DASHBOARD: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "deploy" / "grafana" / "relay.json").read_bytes()
)
PANELS: Final[list[dict[str, Any]]] = DASHBOARD["panels"]
VARIABLES: Final = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
QUERIES: Final = [(panel, target) for panel in PANELS for target in panel["targets"]]

COLUMNS: Final = 24
ROWS: Final = 28
"""38 pixels each: what a screen of 1080 shows in kiosk mode."""
ALL: Final = ".*"
SCRAPE_SECONDS: Final = 2
RATE_INTERVAL: Final = "8s"
RANGE: Final = "120s"
THEMES: Final = ("#ffffff", "#181b1f")
"""What Grafana draws panels on, light and dark."""

OTHER, LOST = "beta", "lost"
OTHER_USER = "api@beta.example"
SECONDS_OF_CHANGES: Final = 12.0
FLOWING, LATE, BLOCKED, DOWN = 0, 1, 2, 3


def asked(expression: str, *, source: str = ALL, sink: str = ALL) -> str:
    """The expression as Grafana sends it. Several values of a variable come as `(a|b)`."""
    values = {
        "__rate_interval": RATE_INTERVAL,
        "__range": RANGE,
        "job": JOB,
        "instance": ALL,
        "source": source,
        "sink": sink,
    }
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)


def stat(title: str) -> str:
    """The one query of a panel."""
    [panel] = [panel for panel in PANELS if panel["title"] == title]
    [target] = panel["targets"]
    expression: str = target["expr"]
    return expression


def every(value: Any, key: str) -> Iterator[Any]:
    """All values of a key, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from every(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from every(inner, key)


# -- against a relay ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A relay in every kind of trouble, and the Prometheus that watches it since `began`."""

    relay: Child
    prometheus: Prometheus
    began: float
    choices: Mapping[str, list[str]]
    """What each variable may be."""

    async def figure(self, title: str, **chosen: str) -> float | None:
        """What a figure of the first row shows; None when it has no data."""
        found = await self.prometheus.query(asked(stat(title), **chosen))
        return found[0].value if found else None

    async def unanswered(self, **chosen: str) -> list[str]:
        """The queries that draw nothing, or whose legend names a label that is not there."""
        silent = []
        for panel, target in QUERIES:
            expression = asked(target["expr"], **chosen)
            if target["instant"]:
                drawn = [(one.labels, [one.value]) for one in await self.prometheus.query(expression)]
            else:
                series = await self.prometheus.query_range(expression, start=self.began)
                drawn = [(one.labels, [value for _, value in one.points]) for one in series]
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            lines = [labels for labels, values in drawn if any(math.isfinite(value) for value in values)]
            if not lines or any(not labels.get(name) for labels in lines for name in named):
                silent.append(f"{panel['title']}: {expression}: {drawn}")
        return silent


@asynccontextmanager
async def trouble(folder: Path) -> AsyncIterator[Scene]:
    """Sources: one well but throttled for a while, one with a bad record, one that nobody answers for.

    Sinks: one well, one that fails, one that refuses every event, one that is gone.
    """
    skip_without("prometheus")
    async with AsyncExitStack() as held:
        set_up = await held.enter_async_context(stage(folder, incidents=20))
        other = set_up.simulator.add_tenant(OTHER_USER, "the password of beta", incidents=10, spread_seconds=86_400)
        sinks: dict[str, dict[str, Any]] = {"archive": {"type": "file", "path": "events.ndjson"}}
        for name, status in (("down", 503), ("refusing", 400), ("gone", 410)):
            receiver = await held.enter_async_context(receiving())
            receiver.says(Told(status=status))
            sinks[name] = {"type": "webhook", "url": receiver.url}
        sinks["refusing"]["retry"] = ["0s"]
        configure(set_up, sinks)
        relay = await held.enter_async_context(set_up.relay())
        await relay.started()
        port = (await relay.logged("relay started"))["http_port"]
        watching = Prometheus(folder=folder, targets={JOB: [f"127.0.0.1:{port}"]}, scrape_seconds=SCRAPE_SECONDS)
        prometheus = await held.enter_async_context(watching)
        began = time.time()
        set_up.simulator.faults.inject(Fault(effect="answer", tenant=USER, on="list", status=503, count=12))
        throttled = Fault(effect="answer", tenant=USER, on="list", status=429, headers={"Retry-After": "1"}, count=3)
        set_up.simulator.faults.inject(throttled)
        other.put_raw(b'{"displayName": "no uuid"}', uuid="bad")
        await changes(set_up.tenant, other)
        await settled(relay, prometheus)
        choices = {
            "job": [JOB],
            "instance": [f"127.0.0.1:{port}"],
            "source": [SOURCE, OTHER, LOST],
            "sink": sorted(sinks),
        }
        yield Scene(relay=relay, prometheus=prometheus, began=began, choices=choices)


def configure(set_up: Stage, sinks: Mapping[str, Mapping[str, Any]]) -> None:
    set_up.configure(sinks)
    path = set_up.folder / CONFIGURATION
    document = yaml.safe_load(path.read_text())
    acme = document["sources"][SOURCE]
    document["sources"][OTHER] = acme | {"username": OTHER_USER, "password": "the password of beta"}
    nowhere = f"http://127.0.0.1:{unused_port()}"
    document["sources"][LOST] = acme | {"base_url": nowhere, "token_url": f"{nowhere}/oauth/token"}
    path.write_text(yaml.safe_dump(document))


async def changes(*tenants: Tenant) -> None:
    end = time.monotonic() + SECONDS_OF_CHANGES
    while time.monotonic() < end:
        for tenant in tenants:
            tenant.create()
            tenant.update(tenant.uuids()[0])
        await asyncio.sleep(0.3)


async def settled(relay: Child, prometheus: Prometheus) -> None:
    """Waits until every trouble shows, all that can be read and sent is, and Prometheus knows it."""
    last_change = time.time()

    async def shows() -> bool:
        states = {
            sink: await relay.metric("relay_sink_state", sink=sink, state=state)
            for sink, state in (("down", "failing"), ("gone", "parked"), ("archive", "ok"), ("refusing", "ok"))
        }
        up_to = [await relay.metric("relay_complete_up_to_timestamp_seconds", source=name) for name in (SOURCE, OTHER)]
        found = await relay.metric("relay_events_total")
        return (
            set(states.values()) == {1.0}
            and {line["source"] for line in relay.events("backfill completed")} == {SOURCE, OTHER}
            and min(up_to) > last_change
            and found == await relay.metric("relay_deliveries_total", sink="archive", outcome="delivered")
            and found == await relay.metric("relay_dead_letters", component="sink", name="refusing")
            and await relay.metric("relay_backlog_events", sink="archive") == 0
            and await relay.metric("relay_polls_total", source=SOURCE, outcome="failed") > 0
            and await relay.metric("relay_api_throttled_total", source=SOURCE, code="429") > 0
            and await relay.metric("relay_dead_letters", component="source", name=OTHER) == 1
        )

    await until(shows, "every trouble shows", within=2 * PATIENCE_SECONDS)
    dead = await relay.metric("relay_dead_letters")
    await prometheus.wait(f"sum(relay_dead_letters) == {dead} and sum(relay_backlog_events{{sink='archive'}}) == 0")


async def test_every_query_is_answered_and_the_first_row_tells_the_truth(tmp_path: Path) -> None:
    async with trouble(tmp_path) as scene:
        assert await scene.unanswered() == []
        assert await scene.unanswered(source=f"({SOURCE}|{OTHER})", sink="(archive|down)") == []

        dead = await scene.relay.metric("relay_dead_letters")
        assert dead > 20
        shown = {panel["title"]: await scene.figure(panel["title"]) for panel in PANELS if panel["type"] == "stat"}
        lag, oldest = shown.pop("Lag p95"), shown.pop("Oldest waiting")
        assert shown == {
            "Data": BLOCKED,
            "Sources behind": 1,
            "Sinks waiting": 1,
            "Parked": 1,
            "Dead letters": dead,
            "Polling": 0,
            "Held back": 0,
        }
        assert lag is not None
        assert 0.5 < lag < 60
        assert oldest is not None
        assert SECONDS_OF_CHANGES < oldest < 300
        assert await scene.figure("Oldest waiting", sink="archive") == 0
        assert await scene.figure("Dead letters", source=SOURCE, sink="refusing") == dead - 1

        verdicts = {
            (source, sink): await scene.figure("Data", source=source, sink=sink)
            for source in (SOURCE, OTHER, LOST)
            for sink in ("archive", "down", "gone", "refusing")
        }
        assert {key: verdict for key, verdict in verdicts.items() if key[0] == SOURCE} == {
            (SOURCE, "archive"): FLOWING,
            (SOURCE, "down"): LATE,
            (SOURCE, "gone"): BLOCKED,
            (SOURCE, "refusing"): BLOCKED,
        }
        assert verdicts[OTHER, "archive"] == BLOCKED
        assert verdicts[LOST, "archive"] == LATE

        for variable in VARIABLES.values():
            if variable["type"] == "query":
                assert await values(scene.prometheus, variable) == scene.choices[variable["name"]]

        await scene.relay.kill()
        await scene.prometheus.wait(asked(stat("Data")), lambda found: [one.value for one in found] == [DOWN])
        assert await scene.figure("Sources behind") is None


async def values(prometheus: Prometheus, variable: Mapping[str, Any]) -> list[str]:
    """What Grafana offers: `label_values(selector, label)` asks for series."""
    assert variable["definition"] == variable["query"]["query"]
    found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
    assert found is not None
    series = await prometheus.ask("series", **{"match[]": asked(found[1])})
    return sorted({one[found[2]] for one in series})


# -- as a document ------------------------------------------------------------------------------------------------


def test_it_can_be_imported_as_it_is() -> None:
    assert DASHBOARD["uid"] == "incident-relay"
    assert DASHBOARD["schemaVersion"] >= 39
    assert not {"__inputs", "__requires", "id"} & DASHBOARD.keys()
    assert list(VARIABLES) == ["datasource", "job", "instance", "source", "sink"]
    assert {panel["type"] for panel in PANELS} == {"stat", "timeseries", "state-timeline"}, "no plugin is needed"
    sources = [one["uid"] for one in every([PANELS, DASHBOARD["templating"]], "datasource")]
    assert set(sources) == {"${datasource}"}
    assert len(sources) == len(PANELS) + len(QUERIES) + len(VARIABLES) - 1
    assert {name for name, one in VARIABLES.items() if one.get("multi")} == {"instance", "source", "sink"}
    assert all(one["allValue"] == ALL for one in VARIABLES.values() if one.get("includeAll"))
    assert VARIABLES["job"]["current"]["value"] == JOB


def test_it_fits_one_screen_and_no_panel_lies_on_another() -> None:
    cells: list[set[tuple[int, int]]] = []
    for panel in PANELS:
        x, y, wide, high = (panel["gridPos"][name] for name in ("x", "y", "w", "h"))
        assert x + wide <= COLUMNS
        assert y + high <= ROWS
        cells.append({(column, row) for column in range(x, x + wide) for row in range(y, y + high)})
    assert not [pair for pair in combinations(cells, 2) if pair[0] & pair[1]]
    assert set.union(*cells) == {
        (column, row) for column in range(COLUMNS) for row in range(len(set.union(*cells)) // COLUMNS)
    }
    assert sorted(panel["id"] for panel in PANELS) == list(range(1, len(PANELS) + 1))


def test_every_panel_has_a_unit_and_says_what_it_shows_and_what_to_do() -> None:
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"]
        shows, _, does = panel["description"].partition("\n\n")
        assert len(shows) > 30, panel["title"]
        assert len(does) > 30, panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        assert set(every(panel["fieldConfig"]["overrides"], "options")) & set("ABC") <= set(refs)


def test_every_command_that_is_named_exists() -> None:
    texts = [panel["description"] for panel in PANELS]
    named = {tuple(found.split()) for text in texts for found in re.findall(r"`relay ([a-z -]+)", text)}
    assert {("status",), ("check",), ("dead-letters", "list"), ("sinks", "enable")} <= named
    for words in named:
        command: Any = typer.main.get_command(app)
        for word in words:
            command = command.get_command(click.Context(command), word)
            assert command is not None, words


def test_every_metric_and_label_is_one_of_the_relay() -> None:
    metrics = Metrics(SystemClock())
    metrics.source("a")
    metrics.sink("a")
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    known = {family.name + end for family in metrics.registry.collect() for end in ends.get(family.type, ("",))}
    expressions = [target["expr"] for _, target in QUERIES]
    expressions += [one["definition"] for one in VARIABLES.values() if one["type"] == "query"]
    used = {name for expression in expressions for name in re.findall(r"\brelay_\w+", expression)}
    assert used <= known
    assert len(used) > 20
    for expression in expressions:
        assert set(re.findall(r"\$(\w+)", expression)) <= {*VARIABLES, "__rate_interval", "__range"}
        for selector in re.findall(r"{(.*?)}", expression):
            assert selector.startswith('job="$job"'), expression


def test_colours_can_be_told_from_either_background() -> None:
    colours = {one for one in [*every(PANELS, "fixedColor"), *every(PANELS, "color")] if str(one).startswith("#")}
    assert len(colours) == 5
    for colour in colours:
        for theme in THEMES:
            assert contrast(colour, theme) >= 3.5, (colour, theme)


def contrast(one: str, other: str) -> float:
    """By WCAG 2."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
