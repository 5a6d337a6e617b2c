"""The status page in a real Chromium, served by the real HTTP application, and once by a running relay."""

import base64
import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from jsonschema import Draft202012Validator

import relay
from relay import page
from relay.clock import SECOND, Instant
from relay.incidents import parse_instant
from relay.status import DeadFacts, RelayFacts, SinkFacts, SourceFacts, WayFacts
from tests.e2e.stage import SOURCE, stage, until
from tests.support.browser import HOST, ON_ITS_LOOP, Board, Sight, board, open_page

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator

pytestmark = ON_ITS_LOOP

EXAMPLES = Path(__file__).parents[1] / "data" / "status"
STATES = sorted(path.stem for path in EXAMPLES.glob("*.json"))
SCHEMA = json.loads((Path(relay.__file__).parent / "status" / "status.schema.json").read_text())
NOW = parse_instant("2026-11-22T10:14:32.418Z")
GREEN = "rgb(23, 112, 59)"
INTERVAL_MILLISECONDS = 10_000
"""How often the page asks for news."""
MARKER = "window.owned = (window.owned || 0) + 1"
HOSTILE = {
    "script": f"</script><script>{MARKER}</script>",
    "comment": f"<!--<script>{MARKER}</script>-->",
    "image": f'"><img src=x onerror="{MARKER}"><svg onload="{MARKER}">',
    "address": f"javascript:{MARKER}//https://console.example",
    "template": "{{constructor.constructor('" + MARKER + "')()}}${" + MARKER + "}",
    "direction": "invoice\u202efdp.exe\u2066\u200b",
    "control": "a\x00b\x1b[31mc\u2028d\u2029e\r\nf\x85",
    "prototype": "__proto__",
    "constructor": "constructor",
    "long": "W" * 30_000,
}


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    """Where the machine is busy, an assertion may take longer than Playwright's 5 s."""
    from playwright.async_api import expect  # noqa: PLC0415

    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


def example(state: str, *, events: int = 12) -> dict[str, Any]:
    """A document of `tests/data/status`, with the first of its events: the others are alike, and axe takes its time."""
    document: dict[str, Any] = json.loads((EXAMPLES / f"{state}.json").read_text())
    del document["events"][events:]
    return document


@asynccontextmanager
async def seen(browser: "Browser", document: Any, **how: Any) -> AsyncIterator[tuple[Sight, Board]]:
    """The page of this document in a browser."""
    async with board(document) as shown, open_page(browser, shown.url, **how) as sight:
        yield sight, shown


async def cells(row: "Locator") -> list[str]:
    """The texts of a row of a table."""
    return [" ".join(cell.split()) for cell in (await row.inner_text()).split("\t")]


def source(name: str = "acme", **changes: Any) -> SourceFacts:
    usual: dict[str, Any] = {
        "region": "eu",
        "state": "ok",
        "since": NOW - 3600 * SECOND,
        "error": "",
        "hint": "",
        "failures": 0,
        "last_poll": NOW - 12 * SECOND,
        "next_poll": NOW + 48 * SECOND,
        "poll_interval_seconds": 60,
        "throttled_until": None,
        "complete_up_to": NOW - 12 * SECOND,
        "start_from": None,
        "first_start": NOW - 3600 * SECOND,
        "backfill": "done",
        "backfill_up_to": NOW - 3600 * SECOND,
        "ledger_incidents": 48_211,
        "clock_skew_seconds": 0.2,
    }
    return SourceFacts(name=name, **(usual | changes))


def sink(name: str, **changes: Any) -> SinkFacts:
    usual: dict[str, Any] = {
        "type": "webhook",
        "target": "soar.example",
        "state": "ok",
        "since": None,
        "reason": "",
        "failures": 0,
        "next_try": None,
        "paused_until": None,
        "waiting": 0,
        "oldest": None,
        "last_success": NOW - SECOND,
        "delivered": 4,
        "dead_letters": 0,
    }
    return SinkFacts(name=name, **(usual | changes))


def facts(
    sources: list[SourceFacts], sinks: list[SinkFacts] | None = None, *, now: Instant = NOW, **more: Any
) -> RelayFacts:
    return RelayFacts(
        now=now,
        version="1.0.0",
        process="relay-0:1",
        started=NOW - 3600 * SECOND,
        sources=sources,
        sinks=[sink("soar")] if sinks is None else sinks,
        **more,
    )


# -- what every state looks like --------------------------------------------------------------------------------------


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("state", STATES)
async def test_the_page_says_the_verdict_breaks_no_rule_of_wcag_and_asks_nobody_else(
    chromium: "Browser", state: str, dark: bool, phone: bool
) -> None:
    document = example(state)
    async with seen(chromium, document, dark=dark, phone=phone) as (sight, shown):
        assert await sight.page.locator("h1").inner_text() == document["verdict"]["headline"]
        assert await sight.page.locator("#events tbody tr").count() == 12
        assert await sight.overflow() == 0
        assert await sight.violations() == []

        await sight.page.get_by_role("link", name="Dead letters").first.click()

        assert sight.page.url == f"{shown.url}#dead-letters"
        assert await sight.page.locator("#dead-letters").evaluate("e => e === document.activeElement")
        assert set(sight.requests) <= {shown.url, f"{shown.url}api/status"}
        assert sight.complaints == []


async def test_each_part_of_the_issue_is_on_the_page(chromium: "Browser") -> None:
    async with seen(chromium, example("throttled-and-backfilling", events=50)) as (sight, _):
        assert await cells(sight.page.locator("#sources tbody tr", has_text="globex").first) == [
            "globex us",
            "throttled until 10:21:20",
            "keyset",
            "3 min 12 s ago throttled",
            "09:51:01",
            "23 min",
            "done 20 Nov 06:38",
            "121,902",
        ]
        bar = sight.page.get_by_role("progressbar", name="Backfill")
        assert await bar.get_attribute("aria-valuenow") == "60"
        assert await bar.locator("i").evaluate("e => e.getBoundingClientRect().width / e.parentNode.clientWidth") == (
            pytest.approx(0.605, abs=0.01)
        )
        paused = await cells(sight.page.locator("#sinks tbody tr", has_text="teams").first)
        assert paused[1] == "paused until 10:14:42"
        assert paused[-1].endswith("Teams answered 429 with Retry-After: 30.")
        assert await sight.page.locator("#events tbody tr").count() == 50
        assert await sight.page.locator("#chart path.delivered").get_attribute("d") != ""
    async with seen(chromium, example("sink-parked")) as (sight, _):
        parked = await cells(sight.page.locator("#sinks tbody tr", has_text="soc").first)
        assert parked[:4] == ["soc slack", "parked since 21 Nov 21:40", "118", "12 h 34 min ago"]
        assert await sight.page.locator("#dead-letters tbody tr").count() == 3


async def test_on_a_phone_a_source_that_is_well_takes_one_line_and_one_that_is_not_a_card(chromium: "Browser") -> None:
    async with seen(chromium, example("throttled-and-backfilling"), phone=True) as (sight, _):

        async def row(name: str) -> tuple[str, float]:
            found = sight.page.locator("#sources tbody tr:not(.note)", has_text=name)
            box = await found.bounding_box()
            assert box is not None
            return " ".join((await found.inner_text()).split()), box["height"]

        well, height = await row("northwind")
        assert (well, height < 40) == ("northwind jpn ok 10:14:20 12 s", True)
        for name in ("globex", "initech"):  # throttled, and with a backfill
            text, height = await row(name)
            assert ("Ledger" in text or "keyset" in text, height > 100) == (True, True)


# -- its policy -------------------------------------------------------------------------------------------------------


class _Blocks(HTMLParser):
    """The text of every `script` and `style`, and every attribute that would be one."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: dict[str, str] = {}
        self.inline: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = dict(attrs).get("type") or tag
        self._open = kind if tag in ("script", "style") else ""
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self._open:
            assert self._open not in self.found
            self.found[self._open] = data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


async def test_the_policy_names_the_blocks_that_are_served_and_nothing_else() -> None:
    async with (
        board(example("all-well")) as shown,
        httpx.AsyncClient(base_url=shown.local_url, trust_env=False) as http,
    ):
        got = await http.get("/")
        head = await http.head("/")
        posted = await http.post("/")
        status = await http.get("/api/status")

    blocks = _Blocks(got.text)
    hashes = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in blocks.found.items()
    }
    assert got.headers["content-security-policy"] == (
        f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert blocks.inline == []
    assert json.loads(blocks.found["application/json"]) == example("all-well")
    for answer in (got, head, status):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
    assert (got.headers["content-type"], head.content) == ("text/html; charset=utf-8", b"")
    assert head.headers["content-security-policy"] == got.headers["content-security-policy"]
    assert posted.status_code == 405


async def test_the_shipped_file_holds_no_document() -> None:
    text = (Path(page.__file__).parent / "status.html").read_text()
    assert _Blocks(text).found.keys() == {"style", "script"}
    assert not re.search(r"acme|globex|console\.example", text)


# -- foreign text -----------------------------------------------------------------------------------------------------


def _poisoned(value: Any, text: str, key: str = "") -> Any:
    """The same document with every text replaced, also where only the relay's own words are expected."""
    if isinstance(value, dict):
        return {name: _poisoned(one, text, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_poisoned(one, text, key) for one in value]
    return text if isinstance(value, str) and not key.endswith("_time") else value


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_text_stays_text_wherever_it_stands(chromium: "Browser", kind: str) -> None:
    text = HOSTILE[kind]
    document = _poisoned(example("sink-parked", events=50), text)
    document["source_counts"] = {"total": 9, "by_state": {text: 5, "ok": 4}}
    document["sources"][0]["read_note"] = document["events"][0]["link"] = text
    document["dead_letters"]["items"][0]["incident_uuid"] = text
    document["sources"][1]["backfill"]["state"] = "running"
    async with seen(chromium, document, phone=True) as (sight, shown):
        assert await sight.page.locator("#events tbody tr").count() == 50
        assert await sight.page.evaluate("window.owned") is None
        assert await sight.page.locator("script").count() == 2
        assert await sight.page.locator("img, iframe, object, [onerror], [onload], .page svg[onload]").count() == 0
        assert await sight.page.locator("a:not([href^='#']):not([href^='https:'])").count() == 3  # the footer's
        assert await sight.overflow() == 0
        await sight.page.set_viewport_size({"width": 1400, "height": 900})
        assert await sight.overflow() == 0
        shows = await sight.page.locator("h1").inner_text()
        if kind == "direction":
            assert shows == "invoiceU+202Efdp.exeU+2066U+200B"
        elif kind == "control":
            assert shows == "aU+0000bU+001B[31mcU+2028dU+2029eU+000DU+000AfU+0085"
        elif kind == "long":
            assert shows == "W" * 599 + "…"
        else:
            assert shows == text
        assert set(sight.requests) <= {shown.url, f"{shown.url}api/status"}
        assert sight.complaints == []


async def test_a_link_is_one_only_with_https(chromium: "Browser") -> None:
    document = example("all-well")
    good = ["https://console.example/a", "HTTPS://console.example/b"]
    links = [*good, "http://console.example", "javascript:alert(1)", " https://x", "data:,x", None, ""]
    for event, link in zip(document["events"], links, strict=False):
        event["link"] = link
    del document["events"][len(links) :]
    async with seen(chromium, document) as (sight, _):
        found = await sight.page.locator("#events a").evaluate_all("all => all.map(a => [a.href, a.rel])")
    assert found == [[f"https://console.example/{name}", "noreferrer noopener"] for name in "ab"]


async def test_hidden_titles_leave_the_uuid(chromium: "Browser") -> None:
    document = example("sink-parked")
    for one in (*document["events"], *document["dead_letters"]["items"]):
        one["title"] = ""
    document["events"][1]["incident_uuid"] = ""
    async with seen(chromium, document) as (sight, _):
        events = await sight.page.locator("#events .title").all_inner_texts()
        letters = await sight.page.locator("#dead-letters .title").all_inner_texts()
    assert events[:2] == [document["events"][0]["incident_uuid"], "unknown incident"]
    assert letters == [one["incident_uuid"] for one in document["dead_letters"]["items"]]


# -- what may be missing ----------------------------------------------------------------------------------------------


def _least(schema: Mapping[str, Any], *, items: int, word: str | None = None) -> Any:
    """A document with null wherever the schema allows it, and so many items in each list; `word` for known words."""
    kinds = schema.get("type", [])
    if "null" in kinds or any(one.get("type") == "null" for one in schema.get("anyOf", ())):
        return None
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else word or schema["enum"][0]
    match kinds:
        case "object":
            properties = schema.get("properties", {})
            return {name: _least(properties[name], items=items, word=word) for name in schema.get("required", ())}
        case "array":
            return [_least(schema["items"], items=items, word=word) for _ in range(items)]
        case "boolean":
            return False
        case "string":
            return "2026-11-22T10:14:32Z" if schema.get("format") == "date-time" else word or ""
        case _:
            return schema.get("minimum", 0)


async def test_a_relay_without_sources_and_sinks_is_drawn(chromium: "Browser") -> None:
    document = _least(SCHEMA, items=0)
    Draft202012Validator(SCHEMA).validate(document)
    async with seen(chromium, document) as (sight, _):
        text = await sight.page.locator("main").inner_text()
        assert sight.complaints == []
        assert await sight.violations() == []
    for part in (
        "No source is configured",
        "No sink is configured",
        "None yet",
        "no sample yet",
        "0 events in all sinks",
    ):
        assert part in text
    assert not re.search(r"null|undefined|NaN|Invalid", text)


@pytest.mark.parametrize("word", [None, "brand_new"])
async def test_nulls_and_unknown_words_are_drawn(chromium: "Browser", word: str | None) -> None:
    document = _least(SCHEMA, items=1, word=word)
    if word is None:
        Draft202012Validator(SCHEMA).validate(document)
    async with seen(chromium, document) as (sight, _):
        text = await sight.page.locator("main").inner_text()
        assert sight.complaints == []
    assert not re.search(r"null|undefined|NaN|Invalid", text)
    assert text.count("brand_new") >= 10 or word is None
    assert "never" in text


SERIES: tuple[tuple[list[float | None], list[float | None]], ...] = (
    ([], []),
    ([5.0], []),
    ([None], [None, None]),
    ([1.0, None, 3.0], [2.0]),
    ([60.0] * 7, [61.0] * 60),
    ([1.0] * 61, [9e6] * 90),
)


async def test_a_short_series_ends_at_the_right_edge_and_an_empty_one_says_so(chromium: "Browser") -> None:
    document = example("all-well")
    async with seen(chromium, document) as (sight, _):
        for read, delivered in SERIES:
            document["lag"] |= {"read_max_seconds": read, "delivered_max_seconds": delivered}
            await sight.page.reload()
            caption = await sight.page.locator("figcaption").inner_text()
            drawn = await sight.page.locator("path.read").get_attribute("d")
            assert ("no sample yet" in caption) == (not any(x is not None for x in (*read, *delivered)))
            assert bool(drawn) == any(x is not None for x in read)
            if drawn:
                box = await sight.page.locator("path.read").evaluate(
                    "e => { const b = e.getBBox(); return b.x + b.width }"
                )
                assert box == pytest.approx(
                    await sight.page.locator("#chart").evaluate("e => e.clientWidth - 1"), abs=0.1
                )
        assert sight.complaints == []


async def test_the_journal_may_have_no_limit_or_be_in_kafka(chromium: "Browser") -> None:
    document = example("all-well")
    nothing = dict.fromkeys(("used_bytes", "limit_bytes", "fill_ratio", "growth_bytes_per_day", "oldest_event_time"))
    async with seen(chromium, document) as (sight, _):
        for journal, shows in (
            ({"kind": "kafka"}, "in Kafka"),
            ({"used_bytes": 5 << 20}, "5.0 MiB"),
            ({"limit_bytes": 5 << 30, "used_bytes": 5 << 29, "fill_ratio": 0.5}, "2.50 GiB of 5.00 GiB, 50 %"),
            ({"polling_stopped": {"reason": "the journal is full", "since_time": "2026-11-22T10:00:00Z"}}, "is full"),
        ):
            document["journal"] = nothing | {"kind": "sqlite", "polling_stopped": None} | journal
            await sight.page.reload()
            assert shows in await sight.page.locator("#facts").inner_text()
        assert sight.complaints == []


# -- more than fits ---------------------------------------------------------------------------------------------------


async def test_a_thousand_sources_make_a_page_below_a_megabyte_that_says_what_is_not_listed(
    chromium: "Browser",
) -> None:
    bad = source("zulu", state="refused", error="log in: refused", error_reason="login_refused", failures=1)
    new = [source(f"new_{number:02}", state="starting", complete_up_to=None) for number in range(2)]
    many = [source(f"tenant_{number:03}") for number in range(997)]
    sinks = [sink(f"hook_{number:03}") for number in range(201)]
    letter = DeadFacts(
        id="7c2e91d04ab8",
        component="sink",
        name="hook_000",
        since=NOW,
        source="zulu",
        reason="http_422: no",
        attempts=1,
    )
    letters = [dataclasses.replace(letter, id=f"{number:012x}") for number in range(20)]
    sinks[0] = sink("hook_000", dead_letters=4_321, dead_since=NOW)
    async with seen(chromium, facts([*many, *new, bad], sinks, dead_letters=letters)) as (sight, shown):
        rows = sight.page.locator("#sources tbody tr:not(.note)")
        assert await rows.count() == 200
        assert "zulu" in await rows.first.inner_text()
        assert await sight.page.locator("#h-sources").inner_text() == "Sources\n1,000"
        more = await sight.page.locator(".more").all_inner_texts()
        assert [" ".join(text.split()) for text in more] == [
            "800 sources are not listed: all ok. To list all: relay sources list Copy",
            "1 sink is not listed: ok. To list all: relay sinks list Copy",
            "4,301 dead letters are not listed. To list all: relay dead-letters list Copy",
        ]
        assert sight.complaints == []
        async with httpx.AsyncClient(trust_env=False) as http:
            assert len((await http.get(shown.local_url)).content) < 1_000_000

        worse = [source(f"bad_{number:03}", state="failing", error="dns", failures=1) for number in range(203)]
        shown.shown = facts([*many[:100], *new, *worse])
        await sight.page.reload()
        assert (
            "105 sources are not listed: 3 failing, 100 ok, 2 starting."
            in await sight.page.locator(".more").inner_text()
        )


async def test_a_source_read_in_a_lesser_way_says_so_below_its_row(chromium: "Browser") -> None:
    ways = {"update_time": WayFacts(mode="scan", since=NOW, reason="filters are refused")}
    async with seen(chromium, facts([source(ways=ways), source("globex")])) as (sight, _):
        assert "scan / keyset" in await sight.page.locator("#sources tbody tr").first.inner_text()
        notes = sight.page.locator("#sources tr.note")
        assert await notes.count() == 1
        assert (
            "acme is read scan since 10:14:32: filters are refused (update_time). Nothing is lost"
            in await notes.inner_text()
        )


# -- news -------------------------------------------------------------------------------------------------------------


async def test_news_are_drawn_by_themselves_and_what_has_the_focus_keeps_it(chromium: "Browser") -> None:
    from playwright.async_api import expect  # noqa: PLC0415

    document = example("all-well")
    async with seen(chromium, document, clock=True) as (sight, shown):
        link = sight.page.locator("#events a").nth(1)
        await link.focus()
        href = await link.get_attribute("href")
        newer = copy.deepcopy(document)
        newer["generated_time"] = "2026-11-22T10:14:42.000Z"
        newer["events"].insert(0, document["events"][0] | {"id": "new", "title": "Just seen"})
        shown.shown = newer

        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)

        await expect(sight.page.locator("#as-of")).to_have_text("As of 10:14:42, all times UTC")
        assert await sight.page.locator("#events .title").first.inner_text() == "Just seen"
        assert await sight.page.evaluate("document.activeElement.href") == href
        assert sight.requests == [shown.url, f"{shown.url}api/status"]
        assert await sight.page.locator("#spoken").inner_text() == ""

        shown.shown = example("sink-parked")
        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)

        await expect(sight.page.locator("#spoken")).to_have_text(shown.shown["verdict"]["headline"])
        assert await sight.page.title() == "Blocked – Incident Relay"
        assert sight.complaints == []


async def test_a_relay_that_is_gone_is_said_and_unsaid_when_it_is_back(chromium: "Browser") -> None:
    from playwright.async_api import expect  # noqa: PLC0415

    async with seen(chromium, example("all-well"), clock=True) as (sight, shown):
        notice = sight.page.locator("#stale")
        glyph = sight.page.locator("h1 .glyph")
        await expect(notice).to_be_hidden()
        await expect(glyph).to_have_css("color", GREEN)
        await shown.stop()
        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)
        await expect(notice).to_have_text(
            "The relay has not answered since 10:14:32 UTC; what follows is from then. "
            "To see whether it runs: relay status"
        )
        await expect(glyph).not_to_have_css("color", GREEN)
        assert await sight.violations() == []
        await shown.start()
        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)
        await expect(notice).to_be_hidden()
        await expect(glyph).to_have_css("color", GREEN)
        shown.shown = {"schema_version": 2}
        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)
        await expect(notice).to_contain_text("The relay answered, but this page could not show it")


async def test_text_that_is_selected_is_not_drawn_away(chromium: "Browser") -> None:
    from playwright.async_api import expect  # noqa: PLC0415

    async with seen(chromium, example("all-well"), clock=True) as (sight, shown):
        await sight.page.locator("h1").evaluate("e => getSelection().selectAllChildren(e)")
        shown.shown = example("sink-parked")
        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)
        await expect(sight.page.locator("#as-of")).to_have_text("As of 10:14:32, held while text is selected")
        assert await sight.page.title() == "Incident Relay"
        await sight.page.evaluate("getSelection().removeAllRanges()")
        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)
        await expect(sight.page.locator("h1")).to_have_text(shown.shown["verdict"]["headline"])


async def test_below_a_path_of_a_gateway_it_asks_there(chromium: "Browser") -> None:
    from playwright.async_api import expect  # noqa: PLC0415

    async with (
        board(example("all-well"), prefix="/soc/relay") as shown,
        open_page(chromium, f"{shown.url}soc/relay/", clock=True) as sight,
    ):
        shown.shown = example("sink-parked")
        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)
        await expect(sight.page.locator("h1")).to_have_text(shown.shown["verdict"]["headline"])
        assert sight.requests[1:] == [f"{shown.url}soc/relay/api/status"]
        links = await sight.page.locator("footer a").evaluate_all("all => all.map(a => a.pathname)")
        assert links == ["/soc/relay/api/status", "/soc/relay/metrics", "/soc/relay/readyz"]


async def test_a_running_relay_shows_itself_and_updates_by_itself(chromium: "Browser", tmp_path: Path) -> None:
    from playwright.async_api import expect  # noqa: PLC0415

    async with stage(tmp_path, incidents=3) as play:
        play.configure({"disk": {"type": "file", "path": "events.ndjson"}})
        async with play.relay() as child:
            await child.started()
            port = child.events("relay started")[0]["http_port"]

            async def read() -> bool:
                status = await child.status()
                return bool(status["sources"][0]["ledger_incidents"] == len(status["events"]) == 3)

            await until(read, "the relay has read what there is")
            async with open_page(chromium, f"http://{HOST}:{port}/") as sight:
                ledger = sight.page.locator("#sources tbody tr", has_text=SOURCE).first.locator("td").last
                await expect(ledger).to_have_text("3")
                await expect(sight.page.locator("h1")).to_contain_text("Data flows")
                events = sight.page.locator("#events tbody tr")
                before = await events.count()
                play.tenant.create()
                await expect(ledger).to_have_text("4")
                await expect(events).to_have_count(before + 1)
                assert "disk file" in await sight.page.locator("#sinks").inner_text()
                assert set(sight.requests) == {sight.page.url, f"{sight.page.url}api/status"}
                assert sight.complaints == []


# -- how it is used ---------------------------------------------------------------------------------------------------


async def test_a_command_is_copied_without_a_secure_context_and_the_page_goes_on(chromium: "Browser") -> None:
    from playwright.async_api import expect  # noqa: PLC0415

    async with seen(chromium, example("sink-parked"), clock=True) as (sight, shown):
        assert await sight.page.evaluate("navigator.clipboard") is None
        button = sight.page.get_by_role("button", name="Copy relay dead-letters redrive --sink soar")
        await button.click()
        await expect(button).to_have_text("Copied")
        assert await sight.page.evaluate("getSelection().isCollapsed")

        await sight.page.context.grant_permissions(["clipboard-read"])
        reader = await sight.page.context.new_page()
        await reader.goto(shown.local_url)
        await reader.bring_to_front()
        assert await reader.evaluate("navigator.clipboard.readText()") == "relay dead-letters redrive --sink soar"
        await reader.close()

        await sight.page.bring_to_front()
        await sight.page.clock.fast_forward(INTERVAL_MILLISECONDS)
        await expect(button).to_have_text("Copy")
        assert await button.evaluate("e => e === document.activeElement")
        assert sight.complaints == []


async def test_where_copying_is_refused_the_command_is_selected(chromium: "Browser") -> None:
    refused = "document.execCommand = () => false"
    async with seen(chromium, example("sink-parked"), before=refused) as (sight, _):
        button = sight.page.get_by_role("button", name="Copy relay sinks enable soc").first
        await button.click()
        assert await button.inner_text() == "Selected"
        assert await sight.page.evaluate("getSelection().toString()") == "relay sinks enable soc"
        assert sight.complaints == []


async def test_the_keyboard_reaches_everything_in_order_and_may_skip_to_the_sources(chromium: "Browser") -> None:
    name = "(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText).trim()"
    async with seen(chromium, example("sink-parked")) as (sight, _):
        order = []
        for _step in range(9):
            await sight.page.keyboard.press("Tab")
            order.append(await sight.page.evaluate(name))
            outline = await sight.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", order
            box = await sight.page.evaluate(
                "(r => [r.left >= 0, r.top >= 0, r.height > 0])(document.activeElement.getBoundingClientRect())"
            )
            assert box == [True, True, True], order
        assert order == [
            "Skip to the sources",
            "Sources 4",
            "Sinks 5",
            "Dead letters 3",
            "Events",
            "Copy relay sinks enable soc",
            "Copy relay dead-letters redrive --sink soar",
            "Copy relay sinks enable soc",  # in the row of soc
            "3",  # the dead letters of soar
        ]

        await sight.page.reload()
        await sight.page.keyboard.press("Tab")
        await sight.page.keyboard.press("Enter")
        assert await sight.page.evaluate("document.activeElement.id") == "sources"
        await sight.page.keyboard.press("Tab")
        assert await sight.page.evaluate(name) == "Copy relay sinks enable soc"


async def test_without_scripts_it_says_where_the_facts_are(chromium: "Browser") -> None:
    async with seen(chromium, example("all-well"), scripts=False) as (sight, _):
        notice = sight.page.locator("noscript")
        assert (
            "This page needs JavaScript. The same facts: /api/status, or run relay status." in await notice.inner_text()
        )
        assert await notice.locator("a").get_attribute("href") == "api/status"
    async with seen(chromium, example("all-well")) as (sight, _):
        assert "needs JavaScript" not in await sight.page.locator("body").inner_text()


async def test_in_forced_colours_and_in_print_nothing_is_lost(chromium: "Browser") -> None:
    async with seen(chromium, example("sink-parked"), dark=True, size=(720, 1000)) as (sight, _):
        await sight.page.emulate_media(forced_colors="active")
        fill, text = await sight.page.evaluate(
            "['h1 .glyph', 'h1'].map((name, i) => getComputedStyle(document.querySelector(name))[i ? 'color' : 'fill'])"
        )
        assert fill == text
        full, empty = await sight.page.locator("#facts .bar").evaluate(
            "bar => [bar.firstChild, bar].map(one => getComputedStyle(one).backgroundColor)"
        )
        assert full != empty
        assert await sight.overflow() == 0

        await sight.page.emulate_media(forced_colors="none", media="print")
        assert await sight.page.locator(".cmd button").first.is_hidden()
        assert await sight.page.locator("#nav").is_hidden()
        assert await sight.page.locator("#sources table").evaluate("e => getComputedStyle(e).display") == "table"
        assert (
            await sight.page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
            == "rgb(255, 255, 255)"
        )
        assert await sight.page.locator(".cmd code").first.is_visible()
        assert await sight.overflow() == 0
        assert sight.complaints == []


async def test_the_page_is_in_the_wheel(tmp_path: Path) -> None:
    from zipfile import ZipFile  # noqa: PLC0415

    from hatchling.builders.wheel import WheelBuilder  # noqa: PLC0415

    (wheel,) = WheelBuilder(str(Path(relay.__file__).parents[1])).build(directory=str(tmp_path), versions=["standard"])
    with ZipFile(wheel) as files:
        assert {"relay/page/status.html", "relay/status/status.schema.json"} <= set(files.namelist())
