"""What commands print, compared to the letter with the shared pictures in `tests/data/terminal`."""

import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import pytest
from rich.console import Console

from relay.clock import SECOND, Instant
from relay.errors import JournalError, JournalUnavailable
from relay.incidents import Observed, parse_instant, tracked_values
from relay.status import CheckLine, RelayFacts, SourceFacts, SourceState
from relay.terminal import (
    DemoFault,
    DemoSink,
    DemoSummary,
    error_line,
    print_check,
    print_dead_letter,
    print_dead_letters,
    print_demo_summary,
    print_incidents,
    print_sinks,
    print_sources,
    print_status,
    show_backfill,
    showing_copy,
)

DATA = Path(__file__).parents[1] / "data"
NOW = parse_instant("2026-11-22T10:14:32Z")

CHECKS = [
    CheckLine(outcome="ok", name="configuration", text="relay.yaml: 4 sources, 5 sinks, no unknown key"),
    CheckLine(outcome="ok", name="journal", text="relay.db opens, is not locked, 3.94 of 5 GiB"),
    CheckLine(
        outcome="ok",
        name="acme",
        text="logged in to eu in 0.4 s; one page of 1,000 in 0.4 s; keyset on both views",
    ),
    CheckLine(
        outcome="ok",
        name="globex",
        text="logged in to us in 0.6 s; one page of 1,000 in 0.7 s; keyset on both views",
    ),
    CheckLine(
        outcome="warn",
        name="initech",
        text="logged in to de in 0.4 s; the filter on update_time was refused with 400; reads ordered instead",
        cure="Nothing is lost; each poll reads more pages. The filter is tried again hourly.",
    ),
    CheckLine(
        outcome="fail",
        name="northwind",
        text="jpn refused the login with 401: invalid_grant",
        cure="Check username and password_file of this source, then:",
        command="relay check",
    ),
    CheckLine(
        outcome="ok",
        name="siem",
        text="kafka: 3 brokers, TLS, topic eset.incidents with 12 partitions; a transaction was committed",
    ),
    CheckLine(
        outcome="fail",
        name="soc",
        text="Slack answered 404 no_service: this webhook was removed",
        cure="Create a new incoming webhook in Slack, write its URL to the sink's url_file, then:",
        command="relay sinks enable soc",
    ),
    CheckLine(
        outcome="ok",
        name="teams",
        text="the URL is a Workflows URL and accepts TLS; nothing was sent; to send one:",
        command="relay sinks test teams",
    ),
    CheckLine(
        outcome="ok",
        name="soar",
        text="soar.example resolves to a public address and accepts TLS; 2 signing secrets were read",
    ),
    CheckLine(outcome="skip", name="disk", text="disabled by an operator"),
]

DEMO = DemoSummary(
    seconds=58.4,
    faults=[
        DemoFault(at_seconds=9, fault="ESET answered 429 for 8 s", reaction="waited, then read on from where it stood"),
        DemoFault(at_seconds=21.7, fault="Slack answered 503 for 6 s", reaction="kept 14 events; Kafka did not wait"),
        DemoFault(
            at_seconds=30,
            fault="the webhook was removed (410)",
            reaction="parked it, told Slack, waited for enable",
        ),
        DemoFault(
            at_seconds=37, fault="the relay was killed (KILL)", reaction="started again in 0.9 s with the same ids"
        ),
    ],
    sinks=[
        DemoSink(name="kafka", owed=5312, arrived=5312, missing=0, repeats=0, note="read_committed"),
        DemoSink(
            name="webhook",
            owed=5312,
            arrived=5313,
            missing=0,
            repeats=1,
            note="same webhook-id, so a receiver can drop it",
        ),
        DemoSink(
            name="slack",
            owed=312,
            arrived=84,
            missing=0,
            repeats=0,
            note="84 messages stand for 312 changes: 5 digests, 21 superseded",
        ),
    ],
    facts=[
        ("incidents", "5,000 read by backfill, 312 changed while it ran"),
        ("order", "every incident arrived in the order of its versions, in every sink"),
        ("lag", "half of the live changes within 1.1 s, 99 % within 9.8 s (a poll each second)"),
        ("dead", "1: refused by the webhook with 422, sent again with `redrive`, arrived"),
    ],
    guarantees_held=6,
    guarantees=6,
)


def example(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DATA / "status" / f"{name}.json").read_text())
    return document


def golden(name: str, width: int) -> str:
    return (DATA / "terminal" / f"{name}-{width}.txt").read_text()


def printed(draw: Callable[[Console], object], *, width: int = 80, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    draw(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def ascii_printed(draw: Callable[[Console], object]) -> str:
    stream = io.BytesIO()
    file = io.TextIOWrapper(stream, encoding="ascii", write_through=True)
    draw(Console(file=file, width=120))
    return stream.getvalue().decode("ascii")


def incident(name: str, *, uuid: str = "f2a9c6de-1f7c-4df5-8d2a-2f1a3a7a9e55", at: Instant = NOW) -> Observed:
    fields = {
        "displayName": name,
        "severity": "INCIDENT_SEVERITY_LEVEL_HIGH",
        "status": "INCIDENT_STATUS_IN_PROGRESS",
    }
    return Observed(uuid=uuid, created=at, updated=at, values=tracked_values(fields, {}), raw=b"{}")


def backfilling(backfill: Literal["not_wanted", "running", "done"], *, state: SourceState = "ok") -> RelayFacts:
    source = SourceFacts(
        name="acme",
        region="eu",
        state=state,
        since=NOW,
        error="",
        hint="",
        failures=0,
        last_poll=NOW,
        next_poll=None,
        poll_interval_seconds=60,
        throttled_until=None,
        complete_up_to=NOW,
        start_from=None,
        first_start=parse_instant("2026-11-22T10:00:00Z"),
        backfill=backfill,
        backfill_from=parse_instant("2026-11-22T08:00:00Z"),
        backfill_up_to=parse_instant("2026-11-22T09:00:00Z"),
        ledger_incidents=1,
        clock_skew_seconds=None,
    )
    return RelayFacts(now=NOW, version="1.0.0", process="relay-0", started=NOW, sources=[source])


def print_one(incidents: Sequence[Observed], width: int) -> str:
    return printed(lambda console: print_incidents(incidents, console, now=NOW), width=width)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("document", "picture"),
    [("throttled-and-backfilling", "status-throttled"), ("sink-parked", "status-parked")],
)
def test_status_looks_as_in_the_picture(document: str, picture: str, width: int) -> None:
    assert printed(lambda console: print_status(example(document), console), width=width) == golden(picture, width)


@pytest.mark.parametrize("width", [80, 120])
def test_check_looks_as_in_the_picture(width: int) -> None:
    assert printed(lambda console: print_check(CHECKS, console), width=width) == golden("check", width)


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_of_the_demo_looks_as_in_the_picture(width: int) -> None:
    shown = printed(lambda console: print_demo_summary(DEMO, console), width=width)
    assert shown == golden("demo-summary", width)


@pytest.mark.parametrize("width", [50, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("document", ["all-well", "throttled-and-backfilling", "sink-parked"])
def test_sentences_never_pass_the_right_edge(document: str, width: int) -> None:
    status = example(document)
    shown = printed(lambda console: print_status(status, console), width=width)
    sentences = shown.partition("\nsource")[0]
    assert max(map(len, sentences.splitlines())) <= width


def test_all_is_well_in_one_sentence() -> None:
    shown = printed(lambda console: print_status(example("all-well"), console), width=120).splitlines()
    assert shown[:3] == [
        "● Data flows: everything up to 12 s ago is delivered.",
        "  No problem since 21 Nov 22:08.",
        "",
    ]
    assert shown[-2:] == [
        "journal ██░░░░░░░░ 1.18 of 5.00 GiB, 23 %   polling stops at 90 %, in about 37 days",
        "relay   1.0.0, up 2 d 7 h   as of 10:14:32, all times UTC",
    ]


def test_what_is_unknown_is_a_dash_and_not_zero() -> None:
    status = example("all-well")
    status["sources"][0] |= {
        "last_poll": None,
        "last_successful_poll_time": None,
        "complete_up_to_time": None,
        "lag_seconds": None,
        "state": "starting",
    }
    status["journal"] |= {"used_bytes": None, "limit_bytes": None, "fill_ratio": None, "kind": "kafka"}
    shown = printed(lambda console: print_status(status, console), width=120)
    assert re.search(r"acme eu +○ starting since 20 Nov 03:10  keyset +– +– +–  done", shown)
    assert "journal in kafka\n" in shown


def test_the_last_success_stands_in_for_an_unknown_last_poll() -> None:
    status = example("all-well")
    status["sources"][1]["last_poll"] = None
    assert "globex us      ● ok   keyset            4 s ago" in printed(
        lambda console: print_status(status, console), width=120
    )


def test_a_backfill_whose_beginning_is_unknown_says_how_far_it_is() -> None:
    status = example("throttled-and-backfilling")
    status["sources"][2]["backfill"] |= {"progress_ratio": None, "estimated_finish_time": None}
    assert "up to 14 Oct 2025" in printed(lambda console: print_status(status, console), width=120)
    assert re.search(r"initech de.* running$", printed(lambda console: print_status(status, console)), re.MULTILINE)


def test_rows_that_a_capped_list_leaves_out_are_counted() -> None:
    status = example("all-well")
    status["source_counts"]["total"] = 1204
    assert "1,200 more sources not shown\n" in printed(lambda console: print_status(status, console))


def test_a_stopped_polling_is_said_beside_the_journal() -> None:
    status = example("all-well")
    status["journal"] |= {
        "fill_ratio": 0.9,
        "polling_stopped": {"reason": "full", "since_time": "2026-11-22T10:00:00Z"},
    }
    assert "90 %   polling stopped at 10:00:00\n" in printed(lambda console: print_status(status, console))


def test_no_command_is_named_for_dead_letters_that_cannot_be_listed() -> None:
    status = example("sink-parked")
    status["dead_letters"]["items"] = []
    assert "dead    3 events\n" in printed(lambda console: print_status(status, console))


def test_without_utf8_the_word_stands_alone() -> None:
    status = example("sink-parked")
    shown = ascii_printed(lambda console: print_status(status, console))
    assert shown.startswith("Nothing has reached Slack (soc)")
    assert re.search(r"soc slack +parked since 21 Nov 21:40 ", shown)
    assert "journal 3.94 of 5.00 GiB, 78 %" in shown
    assert "?" not in shown


def test_characters_that_the_terminal_lacks_do_not_end_the_command() -> None:
    lines = [CheckLine(outcome="ok", name="acme", text="Zürich answered")]
    assert "Z?rich answered" in ascii_printed(lambda console: print_check(lines, console))


def test_a_pipe_gets_no_colour() -> None:
    assert "\x1b" not in printed(lambda console: print_status(example("sink-parked"), console))


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("■ soc parked", "1;31"),
        ("× soar dead letters", "1;31"),
        ("▲ soar failing", "33"),
        ("relay sinks enable soc", "36"),
        ("● ok", "32"),
        ("118 events wait. From", "2"),
        ("acme", "1"),
        (" eu", "2"),
        ("source", "2"),
    ],
)
def test_colour_answers_who_has_to_act(said: str, code: str) -> None:
    shown = printed(
        lambda console: print_status(example("sink-parked"), console),
        width=120,
        force_terminal=True,
        color_system="standard",
        no_color=False,
    )
    assert re.search(rf"\x1b\[{re.escape(code)}m *{re.escape(said)}", shown)


def test_hostile_text_in_a_status_does_nothing() -> None:
    status = example("sink-parked")
    status["verdict"]["problems"][0]["text"] = "answered \x1b]0;owned\x07\u202e[bold red]x"
    shown = printed(lambda console: print_status(status, console), force_terminal=True)
    assert "answered U+001B]0;ownedU+0007U+202E[bold red]x" in shown.replace("\n  ", " ")


def test_failed_checks_are_named_and_exit_with_one() -> None:
    console = Console(file=io.StringIO(), width=80)
    assert print_check(CHECKS, console) == 1
    assert print_check([line for line in CHECKS if line.outcome != "fail"], console) == 0


def test_the_summary_says_when_nothing_failed() -> None:
    shown = printed(lambda console: print_check(CHECKS[:2], console))
    assert shown.endswith("\nNone of 2 checks failed. Exit code 0.\n")
    shown = printed(lambda console: print_check([CHECKS[4], CHECKS[4]], console))
    assert shown.endswith("\nNone of 2 checks failed. 2 warnings. Exit code 0.\n")


def test_a_demo_that_lost_something_says_so_first() -> None:
    lost = DemoSummary(
        seconds=80,
        faults=[],
        sinks=[DemoSink(name="kafka", owed=5312, arrived=5310, missing=2, repeats=0)],
        facts=[],
        guarantees_held=5,
        guarantees=6,
        commands=(),
    )
    shown = printed(lambda console: print_demo_summary(lost, console))
    assert shown.startswith("The demo ended after 1 min 20 s. 2 events did not arrive.\n")
    assert shown.endswith("\n■ failed  5 of 6 guarantees held. Exit code 1.\n")
    assert print_demo_summary(lost, Console(file=io.StringIO())) == 1


def test_incidents_stand_side_by_side_where_there_is_room() -> None:
    assert print_one([incident("Beacon over DNS")], 120).splitlines() == [
        "updated   severity  status       uuid                                  name",
        "10:14:32  HIGH      IN_PROGRESS  f2a9c6de-1f7c-4df5-8d2a-2f1a3a7a9e55  Beacon over DNS",
    ]


def test_incidents_put_the_uuid_below_where_there_is_not() -> None:
    long = "Credential dumping: LSASS memory read by procdump64.exe on FIN-LT-0231"
    assert print_one([incident(long, at=NOW - 400 * 86_400 * SECOND)], 80).splitlines() == [
        "updated      severity  status       name",
        "18 Oct 2025  HIGH      IN_PROGRESS  Credential dumping: LSASS memory read by",
        "                                    procdump64.exe on FIN-LT-0231",
        "                                    f2a9c6de-1f7c-4df5-8d2a-2f1a3a7a9e55",
    ]


def test_hostile_names_and_values_of_incidents_do_nothing() -> None:
    hostile = incident("a\u202eb\x1b[2J\n[red]c", uuid="x\x9b1m")
    values = ("INCIDENT_STATUS_" + "W" * 50, "\x07" + "S" * 50, *hostile.values[2:])
    shown = print_one([Observed(uuid=hostile.uuid, created=NOW, updated=NOW, values=values, raw=b"")], 120)
    assert "aU+202EbU+001B[2JU+000A[red]c" in shown
    assert "xU+009B1m" in shown
    assert "W" * 23 + "…" in shown
    assert "\x07" not in shown


def test_no_incident_is_said() -> None:
    assert print_one([], 80) == "No incident matches.\n"


def test_an_error_goes_to_standard_error_with_every_line_and_no_escape(capsys: pytest.CaptureFixture[str]) -> None:
    error_line("relay.yaml:3: sources.acme is \x1b wrong\nrelay.yaml:9: sinks is empty")
    assert capsys.readouterr() == (
        "",
        "error  relay.yaml:3: sources.acme is U+001B wrong\n       relay.yaml:9: sinks is empty\n",
    )


async def test_bars_are_shown_below_the_log_until_the_past_is_read() -> None:
    told: list[RelayFacts | JournalError] = [
        JournalUnavailable("the journal is closed"),
        backfilling("not_wanted", state="starting"),
        backfilling("running"),
        backfilling("done"),
    ]
    logged: list[TextIO] = []

    async def facts() -> RelayFacts:
        found = told.pop(0)
        if isinstance(found, JournalError):
            raise found
        return found

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    await show_backfill(facts, console, log_to=logged.append, every_seconds=0.15)
    assert not told
    assert "backfill  acme" in screen.getvalue()
    assert "50 %, read up to 09:00:00" in screen.getvalue()
    assert logged[-1] is sys.stderr


# -- lists ------------------------------------------------------------------------------------------------------------

SINKS = {
    "generated_time": "2026-11-22T10:14:32Z",
    "relay_running": True,
    "sinks": [
        {
            "name": "soc",
            "type": "slack",
            "state": "parked",
            "state_since_time": "2026-11-21T21:40:00Z",
            "backlog_events": 118,
            "oldest_waiting_time": "2026-11-21T21:40:10Z",
            "last_success_time": "2026-11-21T21:37:00Z",
            "delivered_last_hour_events": 0,
            "paused_until_time": None,
            "dead_letters": 3,
        },
        {
            "name": "old",
            "type": None,
            "state": "removed",
            "state_since_time": "2026-11-20T08:00:00Z",
            "backlog_events": 7,
            "oldest_waiting_time": "2026-11-20T08:00:10Z",
            "last_success_time": None,
            "delivered_last_hour_events": None,
            "paused_until_time": None,
            "dead_letters": 0,
        },
    ],
}
SOURCES = {
    "generated_time": "2026-11-22T10:14:32Z",
    "relay_running": False,
    "sources": [
        {
            "label": "acme",
            "region": "eu",
            "state": None,
            "throttled_until_time": None,
            "complete_up_to_time": "2026-11-22T10:14:20Z",
            "lag_seconds": 12,
            "backfill": "done",
            "ledger_incidents": 48211,
            "dead_letters": 1,
        }
    ],
}
LETTER = {
    "id": "7c2e91d04ab8aaaaaaaaaaaaaaaaaaaa",
    "component": "sink",
    "name": "soar",
    "time": "2026-11-22T07:31:40Z",
    "source": "globex",
    "incident_uuid": "0b0f3f7e-6a1c-4f0a-9b1e-5b7a64a1d0c1",
    "sequence": 4,
    "severity": "MEDIUM",
    "title": "PowerShell started a download cradle",
    "reason": "http_422",
    "text": 'answered 422: field "assignee" must be an e-mail address',
    "attempts": 6,
    "cure": {
        "text": "Correct what the receiver complains about, then send it again:",
        "command": "relay dead-letters redrive 7c2e91d04ab8aaaaaaaaaaaaaaaaaaaa",
    },
}
LETTERS = {"generated_time": "2026-11-22T10:14:32Z", "total": 3, "dead_letters": [LETTER]}


def test_sinks_are_listed_with_those_that_were_removed() -> None:
    assert printed(lambda console: print_sinks(SINKS, console), width=120) == (
        "sink       state                         waiting  oldest           last success     delivered, 1 h  dead\n"
        "soc slack  ■ parked since 21 Nov 21:40       118  12 h 34 min ago  12 h 37 min ago               0     3\n"
        "old        ○ removed since 20 Nov 08:00        7  2 d 2 h ago      –                             –     0\n"
        "as of 10:14:32, all times UTC\n"
    )


def test_sources_are_listed_without_a_relay_as_far_as_the_journal_knows() -> None:
    assert printed(lambda console: print_sources(SOURCES, console)) == (
        "source   state  complete up to   lag  ledger  dead\n"
        "acme eu  –      10:14:20        12 s  48,211     1\n"
        "as of 10:14:32, all times UTC; no relay runs at present\n"
    )


def test_dead_letters_are_listed_with_reason_and_what_to_do() -> None:
    assert printed(lambda console: print_dead_letters(LETTERS, console), width=120) == (
        "id            of    since     severity  attempts  incident                  reason\n"
        "7c2e91d04ab8  soar  07:31:40  MEDIUM           6  PowerShell started a do…  answered 422: field "
        '"assignee" must be an\n'
        "                                                                            e-mail address\n"
        "2 more dead letters not shown\n"
        "To see one whole: relay dead-letters show ID\n"
        "To send one again: relay dead-letters redrive ID\n"
    )
    assert printed(lambda console: print_dead_letters(LETTERS, console)).splitlines()[1:3] == [
        '7c2e91d04ab8  soar  07:31:40  answered 422: field "assignee" must be an e-mail',
        "                              address",
    ]
    none = {**LETTERS, "total": 0, "dead_letters": []}
    assert printed(lambda console: print_dead_letters(none, console)) == "There is no dead letter.\n"


def test_a_dead_letter_is_shown_with_its_event() -> None:
    event = {"event": {"id": "7c2e"}, "incident": {"displayName": "evil \u202e \x1b[31m"}}
    shown = {**LETTERS, "dead_letters": [{**LETTER, "kind": "updated", "event": event, "record": None}]}
    assert printed(lambda console: print_dead_letter(shown, console), width=120) == (
        "× 7c2e91d04ab8aaaaaaaaaaaaaaaaaaaa of soar since 07:31:40\n"
        '  answered 422: field "assignee" must be an e-mail address\n'
        "  updated, version 4 of incident 0b0f3f7e-6a1c-4f0a-9b1e-5b7a64a1d0c1 of globex; 6 attempts\n"
        "  Correct what the receiver complains about, then send it again:\n"
        "    relay dead-letters redrive 7c2e91d04ab8aaaaaaaaaaaaaaaaaaaa\n"
        "\n"
        "{\n"
        '  "event": {\n'
        '    "id": "7c2e"\n'
        "  },\n"
        '  "incident": {\n'
        '    "displayName": "evil U+202E \\u001b[31m"\n'
        "  }\n"
        "}\n"
    )


HOSTILE = "\x1b]0;owned\x07\u202e\r\n[red]"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_text_of_a_dead_letter_reaches_the_terminal(width: int) -> None:
    letter = {**LETTER, "title": HOSTILE, "text": HOSTILE, "severity": HOSTILE, "kind": "x", "incident_uuid": HOSTILE}
    record = {**letter, "component": "source", "event": None, "record": HOSTILE, "cure": LETTER["cure"]}
    text = printed(lambda console: print_dead_letters({**LETTERS, "dead_letters": [letter, record]}, console))
    text += printed(
        lambda console: print_dead_letter(
            {**LETTERS, "dead_letters": [{**letter, "event": {"a": HOSTILE}, "record": None}, record]}, console
        ),
        width=width,
    )
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_lists_need_neither_colour_nor_unicode() -> None:
    text = ascii_printed(lambda console: print_sinks(SINKS, console))
    assert "parked since 21 Nov 21:40" in text
    assert "?" not in text
    coloured = printed(
        lambda console: print_dead_letters(LETTERS, console), force_terminal=True, color_system="standard"
    )
    assert "\x1b[36mrelay dead-letters show ID" in coloured


def test_a_copy_is_a_bar_on_a_terminal_and_a_line_now_and_then_elsewhere() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with showing_copy(console) as tell:
        tell("copying the ledger", 0, 0)
        tell("copying the ledger", 2_000, 100_000)
    assert "copying the ledger" in screen.getvalue()
    assert "2,000 of 100,000" in screen.getvalue()
    lines, quiet = io.StringIO(), io.StringIO()
    with showing_copy(Console(file=lines), every_seconds=0) as tell, showing_copy(Console(file=quiet)) as rarely:
        tell("copying events", 1, 2)
        rarely("copying events", 1, 2)
    assert (lines.getvalue(), quiet.getvalue()) == ("copying events: 1 of 2\n", "")
