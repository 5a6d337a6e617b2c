import dataclasses
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft202012Validator, FormatChecker
from rich.console import Console

import relay
from relay.cli import app
from relay.clock import SECOND, Instant
from relay.incidents import parse_instant
from relay.states import SinkState
from relay.status import (
    ChangeFacts,
    DeadFacts,
    EventFacts,
    LagFacts,
    PollFacts,
    RelayFacts,
    SinkFacts,
    SourceFacts,
    SourceState,
    document,
    readiness,
)
from relay.terminal import print_status

SCHEMA = json.loads((Path(relay.__file__).parent / "status" / "status.schema.json").read_text())
EXAMPLES = sorted((Path(__file__).parents[1] / "data" / "status").glob("*.json"))
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=FormatChecker())


def exists(command: str) -> bool:
    """Whether the command line has this command, with these options."""
    _relay, *words = command.split()
    found: Any = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", ()):
        found = found.commands[words.pop(0)]
    options = {option for parameter in found.params for option in parameter.opts}
    return not hasattr(found, "commands") and {word for word in words if word.startswith("-")} <= options


def at(clock: str, day: str = "2026-11-22") -> Instant:
    return parse_instant(f"{day}T{clock}Z")


NOW = at("10:14:32.418")

SOURCE = SourceFacts(
    name="acme",
    region="eu",
    state="ok",
    since=at("03:10:02", "2026-11-20"),
    error="",
    hint="",
    failures=0,
    last_poll=at("10:14:20"),
    next_poll=at("10:15:20"),
    poll_interval_seconds=60,
    throttled_until=None,
    complete_up_to=at("10:14:20"),
    start_from=None,
    first_start=at("03:10:02", "2026-11-20"),
    backfill="done",
    backfill_up_to=at("03:10:02", "2026-11-20"),
    ledger_incidents=48_211,
    clock_skew_seconds=0.2,
    poll=PollFacts(finished=at("10:14:20"), outcome="ok", duration_seconds=0.41, pages=1, incidents=3, changes=1),
)
SINK = SinkFacts(
    name="siem",
    type="kafka",
    target="eset.incidents",
    state="ok",
    since=None,
    reason="",
    failures=0,
    next_try=None,
    paused_until=None,
    waiting=0,
    oldest=None,
    last_success=at("10:14:20"),
    delivered=43,
    dead_letters=0,
)
OUT = dataclasses.replace(SINK, name="out", type="stdout", target="")


def source(name: str = "globex", **changes: Any) -> SourceFacts:
    return dataclasses.replace(SOURCE, name=name, **changes)


def sink(name: str = "siem", **changes: Any) -> SinkFacts:
    return dataclasses.replace(SINK, name=name, **changes)


def facts(*parts: SourceFacts | SinkFacts, **changes: Any) -> RelayFacts:
    """A relay with these sources and sinks, and one healthy one of the kind that is not given."""
    sources = [part for part in parts if isinstance(part, SourceFacts)]
    sinks = [part for part in parts if isinstance(part, SinkFacts)]
    usual = RelayFacts(
        now=NOW,
        version="1.0.0",
        process="relay-0:1",
        started=at("03:10:02", "2026-11-20"),
        sources=sources or [SOURCE],
        sinks=sinks or [SINK],
        journal_used_bytes=100 << 20,
        journal_limit_bytes=1 << 30,
        budget_requests_per_second=8.0,
        used_requests_per_second=0.41666,
    )
    return dataclasses.replace(usual, **changes)


THROTTLED = source(
    state="throttled",
    since=at("09:51:07"),
    error="list incidents: throttled",
    failures=3,
    complete_up_to=at("09:51:01"),
    throttled_until=at("10:21:20"),
)
FAILING_SOURCE = source(
    state="failing",
    since=at("10:09:00"),
    error="list incidents: failed 4 times, last by dns (dns)",
    failures=2,
    complete_up_to=at("10:08:00"),
    next_poll=at("10:15:00"),
)
REFUSED = source(
    state="refused",
    since=at("09:00:00"),
    error="log in as api@globex.example: refused (status 401, request-id 7f)",
    hint="are user name and password right?",
    failures=4,
    complete_up_to=at("08:59:00"),
)
STOPPED = source(state="stopped", since=at("10:00:00"), error="the journal is full", failures=1)
FAILING_SINK = sink(
    state="failing",
    since=at("10:00:18"),
    reason="kafka: no broker answered within 10 s",
    failures=3,
    next_try=at("10:15:50"),
    waiting=9,
    oldest=at("10:00:02"),
)
PARKED = dataclasses.replace(
    OUT,
    state="parked",
    since=at("21:40:12", "2026-11-21"),
    reason="stdout is closed: nobody reads it any more",
    failures=1,
    waiting=118,
    oldest=at("21:40:11", "2026-11-21"),
)
PAUSED = sink(state="paused", since=at("10:14:12"), paused_until=at("10:14:42"), waiting=2, oldest=at("10:14:12"))


def problems(made: RelayFacts) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document(made)["verdict"]["problems"]
    return found


def only_problem(*parts: SourceFacts | SinkFacts, **changes: Any) -> dict[str, Any]:
    (problem,) = problems(facts(*parts, **changes))
    return problem


# -- shape ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_schema_is_the_shared_one(path: Path) -> None:
    VALIDATOR.validate(json.loads(path.read_text()))


@pytest.mark.parametrize("poll", [None, SOURCE.poll])
@pytest.mark.parametrize("backfill", ["not_wanted", "running", "done"])
@pytest.mark.parametrize("known", [True, False])
def test_every_combination_conforms_to_the_schema_and_can_be_printed(
    *, known: bool, backfill: str, poll: PollFacts | None
) -> None:
    source_states: list[SourceState] = ["starting", "ok", "throttled", "failing", "refused", "stopped"]
    sink_states: list[SinkState] = ["ok", "failing", "paused", "parked", "disabled"]
    instant = at("10:00:00") if known else None
    for state, sink_state in itertools.product(source_states, sink_states):
        made = facts(
            source(
                state=state,
                error="gave up" if known else "",
                last_poll=instant,
                next_poll=instant,
                throttled_until=instant,
                complete_up_to=instant,
                start_from=instant,
                first_start=instant,
                backfill=backfill,
                backfill_up_to=instant,
                clock_skew_seconds=-7.5 if known else None,
                poll=poll,
                dead_letters=int(known),
            ),
            sink(
                state=sink_state,
                since=instant,
                reason="gave up" if known else "",
                next_try=instant,
                paused_until=instant,
                oldest=instant,
                last_success=instant,
                dead_letters=int(known),
            ),
            journal_used_bytes=950 << 20 if known else None,
            journal_limit_bytes=1 << 30 if known else None,
            journal_oldest_event=instant,
            polling_stopped_reason="the disk is gone" if known else None,
            polling_stopped_since=instant,
        )
        made_document = json.loads(json.dumps(document(made)))
        VALIDATOR.validate(made_document)
        print_status(made_document, Console(file=io.StringIO(), width=80))


def test_times_are_utc_and_figures_are_rounded_down() -> None:
    made = document(facts())
    assert made["generated_time"] == "2026-11-22T10:14:32.418Z"
    assert made["relay"] == {
        "version": "1.0.0",
        "started_time": "2026-11-20T03:10:02Z",
        "uptime_seconds": 198_270,
        "processes": [
            {"name": "relay-0:1", "reported_time": "2026-11-22T10:14:32Z", "sources_held": 1, "sinks_held": 1}
        ],
    }
    assert made["sources"][0]["lag_seconds"] == 12
    assert made["api"] == {
        "budget_requests_per_second": 8.0,
        "used_requests_per_second": 0.417,
        "clock_skew_seconds": 0.2,
    }
    assert made["journal"]["fill_ratio"] == 0.098


def test_what_does_not_exist_yet_is_empty_and_what_is_unknown_null() -> None:
    made = document(facts(source(poll=None), sink(dead_letters=3)))
    assert made["events"] == []
    assert made["dead_letters"] == {"total": 3, "items": []}
    assert made["lag"]["read_max_seconds"] == made["lag"]["delivered_max_seconds"] == []
    assert made["journal"]["growth_bytes_per_day"] is None
    assert made["sources"][0]["last_poll"] is None
    assert made["sources"][0]["backfill"]["finished_time"] is None


def test_lists_are_capped_and_the_worst_comes_first() -> None:
    sources = [source(f"s{index:03}") for index in range(300)] + [
        dataclasses.replace(THROTTLED, name="z1"),
        dataclasses.replace(REFUSED, name="z2"),
    ]
    made = document(facts(*sources, FAILING_SINK, PARKED, sink("disk", state="disabled")))
    assert [one["label"] for one in made["sources"]][:3] == ["z2", "z1", "s000"]
    assert len(made["sources"]) == 200
    assert made["source_counts"] == {"total": 302, "by_state": {"ok": 300, "refused": 1, "throttled": 1}}
    assert [one["name"] for one in made["sinks"]] == ["out", "siem", "disk"]


def test_at_most_twenty_problems_people_first_then_the_oldest() -> None:
    many = [dataclasses.replace(THROTTLED, name=f"s{index}", since=at("09:00:00") + index) for index in range(30)]
    found = problems(facts(*many, PARKED))
    assert len(found) == 20
    assert [problem["name"] for problem in found[:3]] == ["out", "s0", "s1"]


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({"backfill": "done"}, 1.0),
        ({"backfill": "not_wanted"}, None),
        ({"start_from": at("00:00:00", "2026-11-20"), "backfill_up_to": at("12:00:00", "2026-11-20")}, 0.5),
        ({"start_from": None}, None),
        ({"backfill_from": at("00:00:00", "2026-11-19"), "backfill_up_to": at("00:00:00", "2026-11-20")}, 0.5),
        ({"start_from": at("00:00:00", "2026-11-20"), "backfill_up_to": at("00:00:00", "2026-11-19")}, 0.0),
    ],
)
def test_progress_of_a_backfill_is_a_share_of_the_time_when_that_is_known(
    changes: dict[str, Any], ratio: float | None
) -> None:
    running = {"backfill": "running", "first_start": at("00:00:00", "2026-11-21")}
    assert document(facts(source(**{**running, **changes})))["sources"][0]["backfill"]["progress_ratio"] == ratio


def test_delivered_up_to_is_what_the_slowest_live_sink_and_source_hold() -> None:
    behind = sink(oldest=at("10:00:02"), waiting=4)
    assert document(facts(behind))["verdict"]["delivered_up_to_time"] == "2026-11-22T10:00:02Z"
    assert document(facts(SINK, PARKED))["verdict"]["delivered_up_to_time"] == "2026-11-22T10:14:20Z"
    disabled = dataclasses.replace(behind, state="disabled")
    assert document(facts(SINK, disabled))["verdict"]["delivered_up_to_time"] == "2026-11-22T10:14:20Z"
    assert document(facts(SOURCE, THROTTLED))["verdict"]["delivered_up_to_time"] == "2026-11-22T09:51:01Z"
    assert document(facts(SOURCE, source(complete_up_to=None)))["verdict"]["delivered_up_to_time"] is None


# -- verdict ----------------------------------------------------------------------------------------------------------


def test_all_is_well_in_one_sentence() -> None:
    verdict = document(facts(SOURCE, sink(since=at("22:08:20", "2026-11-21"))))["verdict"]
    assert verdict == {
        "state": "flowing",
        "headline": "Data flows: everything up to 12 s ago is delivered.",
        "since_time": "2026-11-21T22:08:20Z",
        "delivered_up_to_time": "2026-11-22T10:14:20Z",
        "problems": [],
    }


def test_a_start_is_not_called_flowing_before_every_source_has_answered() -> None:
    fresh = source(state="starting", since=at("10:14:30"), last_poll=None, complete_up_to=None)
    verdict = document(facts(SOURCE, fresh, started=at("10:14:30")))["verdict"]
    assert (verdict["state"], verdict["since_time"]) == ("starting", "2026-11-22T10:14:30Z")
    assert verdict["headline"] == "The relay is starting: 1 of 2 sources answered so far."
    again = source(state="starting", since=at("10:14:30"))
    assert document(facts(again, started=at("10:14:30")))["verdict"]["state"] == "starting"


@pytest.mark.parametrize(
    ("parts", "state", "since"),
    [
        ([THROTTLED], "late", "2026-11-22T09:51:07Z"),
        ([FAILING_SOURCE, THROTTLED, FAILING_SINK], "late", "2026-11-22T09:51:07Z"),
        ([THROTTLED, PARKED], "blocked", "2026-11-21T21:40:12Z"),
        ([REFUSED, FAILING_SINK], "blocked", "2026-11-22T09:00:00Z"),
    ],
)
def test_the_verdict_is_that_of_the_worst_problem(parts: list[SourceFacts | SinkFacts], state: str, since: str) -> None:
    verdict = document(facts(*parts))["verdict"]
    assert (verdict["state"], verdict["since_time"]) == (state, since)


@pytest.mark.parametrize(
    ("part", "headline"),
    [
        (
            THROTTLED,
            "Data flows late: ESET throttles globex until 10:21:20; globex is complete up to 09:51:01.",
        ),
        (
            FAILING_SOURCE,
            "Data flows late: polls of globex have failed since 10:09:00; globex is complete up to 10:08:00.",
        ),
        (REFUSED, "Nothing of globex has been read since 09:00:00: ESET refused the login."),
        (FAILING_SINK, "Data flows late: nothing has reached siem since 10:00:18. 9 events wait."),
        (PARKED, "Nothing has reached out since 21 Nov 21:40. 118 events wait."),
        (PAUSED, "Data flows late: siem asked to wait until 10:14:42. 2 events wait."),
        (sink(dead_letters=1), "1 event was refused by siem. No other event is delayed."),
    ],
)
def test_the_headline_is_a_sentence_about_the_worst(part: SourceFacts | SinkFacts, headline: str) -> None:
    assert document(facts(part))["verdict"]["headline"] == headline


# -- problems and their cures -----------------------------------------------------------------------------------------

EVERY_PROBLEM = facts(
    SOURCE,
    *(dataclasses.replace(one, name=f"s{index}") for index, one in enumerate([THROTTLED, FAILING_SOURCE, REFUSED])),
    source("s4", last_poll=at("10:00:00"), dead_letters=1),
    dataclasses.replace(FAILING_SOURCE, name="s5", failures=7),
    STOPPED,
    FAILING_SINK,
    PARKED,
    sink("held", state="parked", since=at("10:00:00"), reason="refused the login", dead_letters=2),
    dataclasses.replace(FAILING_SINK, name="long", failures=12),
    dataclasses.replace(PAUSED, name="chat"),
    polling_stopped_reason="the journal relay.db is full",
    polling_stopped_since=at("10:00:00"),
    journal_used_bytes=950 << 20,
)


def test_every_problem_names_its_cure_and_no_command_that_does_not_exist() -> None:
    found = problems(EVERY_PROBLEM) + problems(dataclasses.replace(EVERY_PROBLEM, polling_stopped_reason=None))
    assert {problem["scope"] for problem in found} == {"source", "sink", "dead_letters", "journal"}
    for problem in found:
        cure = problem["cure"]
        assert cure["text"]
        assert cure["command"] is None or exists(cure["command"])
        assert cure["text"].endswith(":") == (cure["command"] is not None)


def test_sentences_are_plain_and_end_once() -> None:
    for problem in problems(EVERY_PROBLEM):
        for text in (problem["text"], problem["effect"], problem["cure"]["text"]):
            assert "  " not in text
            assert ".." not in text
            assert not any(word in text.lower() for word in ("!", "please", "oops", "sorry", "recently", "none"))


def test_a_throttled_source_says_until_when_and_what_is_not_affected() -> None:
    others = [source(name) for name in ("acme", "initech", "northwind")]
    behind = sink("soar", waiting=212, oldest=at("10:13:54"))
    assert only_problem(THROTTLED, *others, SINK, behind) == {
        "scope": "source",
        "name": "globex",
        "state": "throttled",
        "needs": "wait",
        "since_time": "2026-11-22T09:51:07Z",
        "text": "ESET answered 429 three times in a row and asked to wait until 10:21:20.",
        "effect": "What changed in globex after 09:51:01 has not been read yet. "
        "The other 3 sources are delivered up to 38 s ago. Nothing is lost.",
        "cure": {"text": "Nothing to do: polling goes on at 10:21:20 by itself.", "command": None},
    }


def test_a_first_429_counts_from_the_last_poll_that_succeeded() -> None:
    waiting = source(state="throttled", throttled_until=at("10:15:00"))
    problem = only_problem(waiting)
    assert problem["since_time"] == "2026-11-22T10:14:20Z"
    assert problem["text"] == "ESET answered 429 and asked to wait until 10:15:00."


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], ""),
        ([source("a")], "The other source is delivered up to 12 s ago. "),
        ([source("a"), source("b", state="starting")], "1 other source is delivered up to 12 s ago. "),
        (
            [source("a"), source("b"), source("c", state="starting")],
            "2 other sources are delivered up to 12 s ago. ",
        ),
    ],
)
def test_only_sources_that_are_well_are_called_delivered(others: list[SourceFacts], said: str) -> None:
    (problem,) = (one for one in problems(facts(FAILING_SOURCE, *others)) if one["name"] == "globex")
    assert problem["effect"] == (f"What changed in globex after 10:08:00 has not been read yet. {said}Nothing is lost.")


def test_a_failing_source_says_what_failed_and_when_it_goes_on() -> None:
    problem = only_problem(FAILING_SOURCE)
    assert problem["text"] == ("The last 2 polls of globex failed: list incidents: failed 4 times, last by dns (dns).")
    assert problem["cure"] == {"text": "Nothing to do yet: polling goes on at 10:15:00 by itself.", "command": None}


def test_a_lasting_failure_offers_the_check() -> None:
    lasting = dataclasses.replace(FAILING_SOURCE, failures=5, next_poll=at("10:10:00"))
    assert only_problem(lasting)["cure"] == {
        "text": "Nothing to do yet: polling goes on every 1 min by itself. To find the cause, run:",
        "command": "relay check",
    }


def test_a_refused_login_needs_a_person_and_gives_the_hint() -> None:
    problem = only_problem(REFUSED)
    assert (problem["needs"], problem["state"]) == ("person", "refused")
    assert problem["cure"] == {
        "text": "Are user name and password right? A new password_file is read at the next poll; other changes need a "
        "restart. To try the login, run:",
        "command": "relay check",
    }


def test_a_refused_request_points_at_rights_licence_and_region() -> None:
    denied = dataclasses.replace(REFUSED, error="list incidents: refused (status 403, request-id 7f)", hint="")
    problem = only_problem(denied)
    assert problem["text"] == "ESET refused globex: list incidents: refused (status 403, request-id 7f)."
    assert problem["cure"]["text"] == "Check rights, licence and region of this source, then run:"


@pytest.mark.parametrize(
    ("interval", "silent_seconds", "late"),
    [(60, 179, False), (60, 181, True), (1, 29, False), (1, 31, True), (600, 1799, False)],
)
def test_a_source_is_overdue_after_three_intervals_and_never_before_half_a_minute(
    interval: float, silent_seconds: int, *, late: bool
) -> None:
    silent = source(poll_interval_seconds=interval, last_poll=NOW - silent_seconds * SECOND)
    assert [problem["state"] for problem in problems(facts(silent))] == ["late"] * late


def test_a_first_poll_that_does_not_end_is_overdue_too() -> None:
    stuck = source(state="starting", since=at("10:00:00"), last_poll=None, complete_up_to=None)
    problem = only_problem(stuck)
    assert problem["text"] == "No poll of globex has ended since 10:00:00; one is due every 1 min."
    assert problem["effect"] == "Nothing of globex has been read yet. Nothing is lost."


def test_a_failing_sink_says_when_the_next_try_is() -> None:
    assert only_problem(FAILING_SINK, OUT) == {
        "scope": "sink",
        "name": "siem",
        "state": "failing",
        "needs": "wait",
        "since_time": "2026-11-22T10:00:18Z",
        "text": "Sending to siem failed 3 times in a row: kafka: no broker answered within 10 s.",
        "effect": "9 events wait. No other sink is delayed.",
        "cure": {
            "text": "Nothing to do yet: the next try is at 10:15:50, and sending goes on at the first success.",
            "command": None,
        },
    }


def test_a_single_sink_delays_no_poll() -> None:
    assert only_problem(FAILING_SINK)["effect"] == "9 events wait. No poll is delayed."


def test_a_parked_stdout_is_cured_by_a_new_start() -> None:
    problem = only_problem(PARKED, SINK)
    assert problem["text"] == "out was given up: stdout is closed: nobody reads it any more."
    assert problem["cure"] == {
        "text": "Start the relay again with a program that reads its output; it goes on with the oldest waiting event:",
        "command": "relay run",
    }


REMOVED = sink(
    "soc",
    type="slack",
    state="parked",
    since=at("21:40:12", "2026-11-21"),
    reason="Slack answered 404 no_service: this webhook was removed; create a new incoming webhook in Slack, write its "
    "URL to the sink's url_file",
    waiting=118,
    oldest=at("21:40:02", "2026-11-21"),
    keep_seconds=7 * 86_400.0,
    max_age_seconds=86_400.0,
    notified="teams",
)


def test_a_parked_chat_sink_says_why_what_is_skipped_and_who_was_told() -> None:
    made = facts(REMOVED, SINK)
    assert document(made)["verdict"]["headline"] == (
        "Nothing has reached Slack (soc) since 21 Nov 21:40: this webhook was removed. 118 events wait."
    )
    (problem,) = problems(made)
    assert problem["text"] == "Slack answered 404 no_service: this webhook was removed."
    assert problem["effect"] == (
        "118 events wait. From 21:40:02 on the oldest are skipped, because max_age is 24 h. "
        "No other sink is delayed; teams was told."
    )
    assert problem["cure"] == {
        "text": "Create a new incoming webhook in Slack, write its URL to the sink's url_file, then run:",
        "command": "relay sinks enable soc",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_age_seconds": None}, "From 28 Nov 21:40 on the oldest expire, because keep is 7 d."),
        ({"oldest": at("09:00:00", "2026-11-21")}, "The oldest are skipped, because max_age is 24 h."),
        ({"oldest": None, "waiting": 0}, "Nothing waits. No other sink"),
        ({"notified": ""}, "No other sink is delayed."),
    ],
)
def test_what_a_parked_sink_loses_is_said_with_its_time(changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems(facts(dataclasses.replace(REMOVED, **changes), SINK))
    assert expected in problem["effect"]


def test_the_words_of_a_stranger_are_no_cure() -> None:
    reason = "soar.example answered 410: gone; run rm -rf /"
    problem = only_problem(sink("soc", state="parked", since=at("09:00:00"), reason=reason))
    assert problem["text"] == "soc was given up: soar.example answered 410: gone; run rm -rf /."
    assert problem["cure"]["text"] == "Correct the cause, then let it go on with the oldest waiting event:"


def test_readiness_names_each_source_and_sink_with_its_cause() -> None:
    ready, detail = readiness(facts(FAILING_SOURCE, SOURCE, FAILING_SINK))
    assert ready
    assert detail == {
        "ready": True,
        "sources": {
            "globex": "failing: The last 2 polls of globex failed: list incidents: failed 4 times, last by dns (dns).",
            "acme": "ok",
        },
        "sinks": {"siem": "failing: Sending to siem failed 3 times in a row: kafka: no broker answered within 10 s."},
    }


def test_only_a_source_without_any_answer_is_not_ready() -> None:
    ready, detail = readiness(facts(source(state="starting", complete_up_to=None, since=NOW), SOURCE))
    assert not ready
    assert detail["sources"] == {"globex": "starting: no answer yet", "acme": "ok"}
    ready, detail = readiness(facts(STOPPED, polling_stopped_reason="the journal is full"))
    assert ready
    assert detail["sources"] == {"globex": "stopped: Polling stopped: the journal is full."}


def test_lag_above_which_data_is_late_grows_with_the_slowest_interval() -> None:
    assert document(facts())["lag"]["late_above_seconds"] == 300
    assert document(facts(source(poll_interval_seconds=600.0)))["lag"]["late_above_seconds"] == 1800


def test_lags_events_and_estimates_are_in_the_document() -> None:
    event = EventFacts(
        id="ab",
        observed=NOW,
        updated=NOW,
        source="acme",
        origin="poll",
        kind="updated",
        sequence=2,
        uuid="u",
        title="",
        severity="HIGH",
        status="OPEN",
        changed=[ChangeFacts(field="status", old=None, new="OPEN")],
        link="",
    )
    made = facts(
        source(backfill="running", backfill_incidents=7, backfill_estimate=at("11:02:00")),
        sink(state="failing", since=at("10:00:00"), retrying=3, parks=at("10:00:00", "2026-11-27")),
        events=[event] * 60,
        lag=LagFacts(end=at("10:14:00"), read_seconds=[None, 61.04], delivered_seconds=[1.0, 2.0]),
        journal_growth_bytes_per_day=5.5,
    )
    shown = document(made)
    VALIDATOR.validate(shown)
    assert len(shown["events"]) == 50
    assert shown["events"][0]["link"] is None
    assert shown["lag"]["read_max_seconds"] == [None, 61.0]
    assert shown["journal"]["growth_bytes_per_day"] == 5.5
    assert shown["sources"][0]["backfill"]["estimated_finish_time"] == "2026-11-22T11:02:00Z"
    assert shown["sources"][0]["backfill"]["read_incidents"] == 7
    assert (shown["sinks"][0]["retrying_events"], shown["sinks"][0]["parks_time"]) == (3, "2026-11-27T10:00:00Z")


def test_dead_letters_are_said_to_be_kept() -> None:
    problem = only_problem(sink(dead_letters=3, dead_since=at("23:58:30", "2026-11-21")))
    assert problem["text"] == "3 events were refused by siem."
    assert problem["since_time"] == "2026-11-21T23:58:30Z"
    assert problem["effect"] == ("They are kept, and are not sent again by themselves. No other event is delayed.")
    assert problem["cure"]["command"] == "relay dead-letters list --sink siem"
    (of_source,) = problems(facts(source(dead_letters=1)))
    assert of_source["cure"]["command"] == "relay dead-letters list --source globex"


DEAD = DeadFacts(
    id="7c2e91d04ab8",
    component="sink",
    name="siem",
    since=at("07:31:40"),
    source="globex",
    reason='http_422: answered 422: field "assignee" must be an e-mail address',
    attempts=6,
    uuid="0b0f3f7e-6a1c-4f0a-9b1e-5b7a64a1d0c1",
    sequence=4,
    severity="INCIDENT_SEVERITY_LEVEL_MEDIUM",
    title="x" * 400,
)


def test_the_newest_dead_letters_are_shown_with_reason_and_cure() -> None:
    bad = dataclasses.replace(
        DEAD, component="source", name="acme", reason="no uuid: {}", uuid="", sequence=0, severity="", title=""
    )
    made = document(facts(source(dead_letters=1), sink(dead_letters=30), dead_letters=[DEAD, bad, *[DEAD] * 30]))
    VALIDATOR.validate(made)
    assert made["dead_letters"]["total"] == 31
    assert len(made["dead_letters"]["items"]) == 20
    assert made["dead_letters"]["items"][0] == {
        "id": "7c2e91d04ab8",
        "component": "sink",
        "name": "siem",
        "time": "2026-11-22T07:31:40Z",
        "source": "globex",
        "incident_uuid": "0b0f3f7e-6a1c-4f0a-9b1e-5b7a64a1d0c1",
        "sequence": 4,
        "severity": "MEDIUM",
        "title": "x" * 300,
        "reason": "http_422",
        "text": 'answered 422: field "assignee" must be an e-mail address',
        "attempts": 6,
        "cure": {
            "text": "Correct what the receiver complains about, then send it again:",
            "command": "relay dead-letters redrive 7c2e91d04ab8",
        },
    }
    record = made["dead_letters"]["items"][1]
    assert (record["reason"], record["text"], record["severity"]) == ("bad_record", "no uuid: {}", "")
    assert all(exists(one["cure"]["command"]) for one in made["dead_letters"]["items"])


def test_a_disabled_sink_is_no_problem_and_says_how_to_go_on() -> None:
    made = document(facts(sink(state="disabled", since=at("09:00:00"))))
    assert made["verdict"]["problems"] == []
    assert made["sinks"][0]["cure"]["command"] == "relay sinks enable siem"
    assert exists(made["sinks"][0]["cure"]["command"])


def test_a_parked_sink_is_enabled_by_a_command() -> None:
    problem = only_problem(sink("soc", state="parked", since=at("09:00:00"), reason="answered 404 no_service"))
    assert problem["cure"] == {
        "text": "Correct the cause, then let it go on with the oldest waiting event:",
        "command": "relay sinks enable soc",
    }


@pytest.mark.parametrize(("used_mib", "states"), [(799, []), (820, ["filling"]), (1024, ["filling"])])
def test_the_journal_is_a_problem_from_eighty_percent(used_mib: int, states: list[str]) -> None:
    made = facts(sink(waiting=2310), journal_used_bytes=used_mib << 20)
    assert [problem["state"] for problem in problems(made)] == states


def test_a_filling_journal_names_the_sink_that_holds_most() -> None:
    problem = only_problem(
        sink("disk", waiting=2310), sink("siem", waiting=4), journal_used_bytes=860 << 20, journal_limit_bytes=1 << 30
    )
    assert problem["text"] == "0.84 of 1.00 GiB are in use, 83 %."
    assert problem["cure"]["text"].startswith("2,310 events wait for disk. ")
    assert problem["since_time"] == "2026-11-22T10:14:32Z"


@pytest.mark.parametrize(
    ("used_mib", "reason", "headline", "cure"),
    [
        (
            950,
            "the journal relay.db is full",
            "Polling stopped at 10:00:00: the journal is full.",
            "4 events wait for siem. Polling goes on by itself as soon as that shrinks",
        ),
        (
            100,
            "input/output error",
            "Polling stopped at 10:00:00: the journal cannot be written.",
            "Give the journal a disk that can be written",
        ),
    ],
)
def test_stopped_polling_is_one_problem_of_the_journal(used_mib: int, reason: str, headline: str, cure: str) -> None:
    made = document(
        facts(
            STOPPED,
            dataclasses.replace(STOPPED, name="acme"),
            sink(waiting=4),
            journal_used_bytes=used_mib << 20,
            polling_stopped_reason=reason,
            polling_stopped_since=at("10:00:00"),
        )
    )
    (problem,) = made["verdict"]["problems"]
    assert problem["scope"] == "journal"
    assert problem["text"] == f"Polling stopped: {reason}."
    assert made["verdict"]["headline"] == headline
    assert problem["cure"]["text"].startswith(cure)
    assert [one["cure"] for one in made["sources"]] == [problem["cure"], problem["cure"]]
    assert made["journal"]["polling_stopped"] == {"reason": reason, "since_time": "2026-11-22T10:00:00Z"}


def test_cures_stand_beside_their_source_and_sink() -> None:
    made = document(facts(SOURCE, REFUSED, SINK, PARKED))
    assert [one["cure"] and one["cure"]["command"] for one in made["sources"]] == ["relay check", None]
    assert [one["cure"] and one["cure"]["command"] for one in made["sinks"]] == ["relay run", None]


def test_errors_are_shown_with_their_label_and_cut() -> None:
    failed = dataclasses.replace(FAILING_SOURCE, error="x" * 400, error_reason="dns", poll=None)
    made = document(facts(failed, FAILING_SINK))
    assert made["sources"][0]["error"] == {
        "time": "2026-11-22T10:09:00Z",
        "scope": "endpoint",
        "reason": "dns",
        "text": "x" * 256,
    }
    assert made["sinks"][0]["last_error"]["reason"] == "failing"
