"""The status document, made from facts and problems. Its shape is `status.schema.json`, beside this file."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from relay.clock import SECOND, Instant
from relay.incidents import format_instant, severity_name
from relay.states import VIEWS
from relay.status.facts import (
    DeadFacts,
    EventFacts,
    LagFacts,
    PollFacts,
    RelayFacts,
    SinkFacts,
    SourceFacts,
)
from relay.status.problems import OVERDUE_INTERVALS, Problem, ago, find_problems, read_note, sink_problems, state_since
from relay.words import count

LATE_SECONDS: Final = 300
"""Data older than that is late: the line in the chart, and the colour of a lag."""
MAX_PROBLEMS: Final = 20
MAX_ROWS: Final = 200
MAX_DEAD: Final = 20
MAX_EVENTS: Final = 50
TITLE_CHARACTERS: Final = 300
_LABEL: Final = re.compile(r"[a-z][a-z0-9_]*")
TEXT_CHARACTERS: Final = 256
_RANKS: Final = {"throttled": 1, "failing": 1, "paused": 1, "starting": 2, "disabled": 2, "ok": 3}
"""Worst first; what is not named needs a person."""


def document(facts: RelayFacts) -> dict[str, Any]:
    """The JSON document of `status.schema.json`. Null is unknown or not applicable; lists are capped, worst first."""
    problems = find_problems(facts)
    cures = {(problem.scope, problem.name): _cure(problem) for problem in problems}
    dead = sum(source.dead_letters for source in facts.sources) + sum(sink.dead_letters for sink in facts.sinks)
    return {
        "schema_version": 1,
        "generated_time": format_instant(facts.now, digits=3),
        "relay": _relay(facts),
        "verdict": _verdict(facts, problems),
        "lag": _lag(facts),
        "journal": _journal(facts),
        "api": _api(facts),
        "source_counts": _counts([source.state for source in facts.sources]),
        "sources": [
            _source(source, facts, cures.get(("source", source.name)) or _stopped_cure(source, cures))
            for source in sorted(facts.sources, key=_rank)[:MAX_ROWS]
        ],
        "sink_counts": _counts([sink.state for sink in facts.sinks]),
        "sinks": [
            _sink(sink, facts, cures.get(("sink", sink.name)) or _disabled_cure(sink))
            for sink in sorted(facts.sinks, key=_rank)[:MAX_ROWS]
        ],
        "dead_letters": {"total": dead, "items": [dead_letter(one) for one in facts.dead_letters[:MAX_DEAD]]},
        "events": [_event(event) for event in facts.events[:MAX_EVENTS]],
    }


def readiness(facts: RelayFacts) -> tuple[bool, dict[str, Any]]:
    """Whether each source has had an answer or a classified error, and how each source and sink is, in plain words.

    A vendor that is down does not make the relay unready: a restart would not help.
    """
    texts = {(problem.scope, problem.name): problem.text for problem in find_problems(facts)}

    def words(scope: Literal["source", "sink"], one: SourceFacts | SinkFacts) -> str:
        if one.state == "starting":
            return "starting: no answer yet"
        text = texts.get((scope, one.name)) or (texts.get(("journal", "journal")) if one.state == "stopped" else None)
        return f"{one.state}: {text}" if text else one.state

    ready = all(source.state != "starting" for source in facts.sources)
    return ready, {
        "ready": ready,
        "sources": {source.name: words("source", source) for source in facts.sources},
        "sinks": {sink.name: words("sink", sink) for sink in facts.sinks},
    }


def sink_row(sink: SinkFacts, facts: RelayFacts) -> dict[str, Any]:
    """One of the document's `sinks`, by itself."""
    cures = {problem.name: _cure(problem) for problem in sink_problems(facts)}
    return _sink(sink, facts, cures.get(sink.name) or _disabled_cure(sink))


def dead_letter(letter: DeadFacts) -> dict[str, Any]:
    """One of the document's `dead_letters`."""
    label, _, text = letter.reason.partition(": ")
    if not _LABEL.fullmatch(label):
        label, text = "bad_record" if letter.component == "source" else "refused", letter.reason
    if letter.component == "sink":
        cure = "Correct what the receiver complains about, then send it again:"
        command = f"relay dead-letters redrive {letter.id}"
    else:
        cure, command = "Look at it; if it is of no use, discard it:", f"relay dead-letters show {letter.id}"
    return {
        "id": letter.id,
        "component": letter.component,
        "name": letter.name,
        "time": _time(letter.since),
        "source": letter.source,
        "incident_uuid": letter.uuid,
        "sequence": letter.sequence,
        "severity": severity_name(letter.severity) if letter.severity else "",
        "title": letter.title[:TITLE_CHARACTERS],
        "reason": label,
        "text": (text or label)[:TEXT_CHARACTERS],
        "attempts": letter.attempts,
        "cure": {"text": cure, "command": command},
    }


def _verdict(facts: RelayFacts, problems: Sequence[Problem]) -> dict[str, Any]:
    up_to = facts.delivered_up_to
    started = [source for source in facts.sources if source.state != "starting"]
    state, since = "flowing", _quiet_since(facts)
    if problems:
        worst = problems[0]
        state, headline, since = "blocked" if worst.needs == "person" else "late", worst.headline, worst.since
    elif up_to is None or len(started) < len(facts.sources):
        state, since = "starting", facts.started
        headline = f"The relay is starting: {len(started)} of {count(len(facts.sources), 'source')} answered so far."
    else:
        headline = f"Data flows: everything up to {ago(up_to, facts.now)} is delivered."
    return {
        "state": state,
        "headline": headline,
        "since_time": _time(since),
        "delivered_up_to_time": _time(up_to),
        "problems": [_problem(problem) for problem in problems[:MAX_PROBLEMS]],
    }


def _quiet_since(facts: RelayFacts) -> Instant:
    """When the last state changed."""
    changes = [source.since for source in facts.sources] + [
        sink.since for sink in facts.sinks if sink.since is not None
    ]
    return max(changes, default=facts.started)


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "scope": problem.scope,
        "name": problem.name,
        "state": problem.state,
        "needs": problem.needs,
        "since_time": _time(problem.since),
        "text": problem.text,
        "effect": problem.effect,
        "cure": _cure(problem),
    }


def _cure(problem: Problem) -> dict[str, Any]:
    return {"text": problem.cure, "command": problem.command}


def _disabled_cure(sink: SinkFacts) -> dict[str, Any] | None:
    """It is no problem, for a person wants it so; but it is said how to end it."""
    if sink.state != "disabled":
        return None
    return {"text": "Disabled by an operator. To send what waits:", "command": f"relay sinks enable {sink.name}"}


def _stopped_cure(source: SourceFacts, cures: dict[tuple[Any, str], dict[str, Any]]) -> dict[str, Any] | None:
    return cures.get(("journal", "journal")) if source.state == "stopped" else None


def _relay(facts: RelayFacts) -> dict[str, Any]:
    process = {
        "name": facts.process,
        "reported_time": _time(facts.now),
        "sources_held": facts.held[0] if facts.held else len(facts.sources),
        "sinks_held": facts.held[1] if facts.held else len(facts.sinks),
    }
    others = [
        {
            "name": one.name,
            "reported_time": _time(one.reported),
            "sources_held": one.sources_held,
            "sinks_held": one.sinks_held,
        }
        for one in facts.others
    ]
    return {
        "version": facts.version,
        "started_time": _time(facts.started),
        "uptime_seconds": max(0, (facts.now - facts.started) // SECOND),
        "processes": [process, *others],
    }


def _lag(facts: RelayFacts) -> dict[str, Any]:
    lag = facts.lag or LagFacts(end=facts.now - facts.now % (60 * SECOND), read_seconds=[], delivered_seconds=[])
    slowest = max((source.poll_interval_seconds for source in facts.sources), default=0.0)
    return {
        "window_end_time": _time(lag.end),
        "step_seconds": 60,
        "late_above_seconds": int(max(LATE_SECONDS, OVERDUE_INTERVALS * slowest)),
        "read_max_seconds": [_rounded(seconds) for seconds in lag.read_seconds],
        "delivered_max_seconds": [_rounded(seconds) for seconds in lag.delivered_seconds],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _event(event: EventFacts) -> dict[str, Any]:
    return {
        "id": event.id,
        "observed_time": format_instant(event.observed, digits=3),
        "update_time": format_instant(event.updated, digits=3),
        "source": event.source,
        "origin": event.origin,
        "kind": event.kind,
        "sequence": event.sequence,
        "incident_uuid": event.uuid,
        "title": event.title,
        "severity": event.severity,
        "status": event.status,
        "changed": [{"field": one.field, "old": one.old, "new": one.new} for one in event.changed],
        "link": event.link or None,
    }


def _journal(facts: RelayFacts) -> dict[str, Any]:
    stopped = facts.polling_stopped_reason
    ratio = facts.fill_ratio
    return {
        "kind": facts.journal_kind,
        "used_bytes": facts.journal_used_bytes,
        "limit_bytes": facts.journal_limit_bytes,
        "fill_ratio": None if ratio is None else round(ratio, 3),
        "growth_bytes_per_day": facts.journal_growth_bytes_per_day,
        "oldest_event_time": _time(facts.journal_oldest_event),
        "polling_stopped": None
        if stopped is None
        else {"reason": stopped, "since_time": _time(facts.polling_stopped_since or facts.started)},
    }


def _api(facts: RelayFacts) -> dict[str, Any]:
    skews: list[float] = [one.clock_skew_seconds for one in facts.sources if one.clock_skew_seconds is not None]
    skew = max(skews, key=abs, default=0.0)
    return {
        "budget_requests_per_second": facts.budget_requests_per_second,
        "used_requests_per_second": round(facts.used_requests_per_second, 3),
        "clock_skew_seconds": round(skew, 3),
    }


def _source(source: SourceFacts, facts: RelayFacts, cure: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "label": source.name,
        "region": source.region or None,
        "state": source.state,
        "state_since_time": _time(state_since(source)),
        "read_modes": {view: source.way(view).mode for view in VIEWS},
        "read_note": read_note(source, facts.now) or None,
        "poll_interval_seconds": source.poll_interval_seconds,
        "last_poll": _poll(source.poll),
        "last_successful_poll_time": _time(source.last_poll),
        "next_poll_time": _time(source.next_poll),
        "complete_up_to_time": _time(source.complete_up_to),
        "lag_seconds": None if source.complete_up_to is None else max(0, (facts.now - source.complete_up_to) // SECOND),
        "throttled_until_time": _time(source.throttled_until),
        "error": _source_error(source),
        "cure": cure,
        "backfill": _backfill(source),
        "sweep": {
            "last_finished_time": _time(source.sweep.finished),
            "running": source.sweep.running,
            "suspended": source.sweep.suspended,
            "late_arrivals": source.sweep.late,
            "silent_changes": source.sweep.silent,
            "missing": source.sweep.missing,
        },
        "ledger_incidents": source.ledger_incidents,
    }


def _poll(poll: PollFacts | None) -> dict[str, Any] | None:
    if poll is None:
        return None
    return {
        "finished_time": _time(poll.finished),
        "outcome": poll.outcome,
        "duration_seconds": round(poll.duration_seconds, 3),
        "pages": poll.pages,
        "incidents": poll.incidents,
        "changes": poll.changes,
    }


def _source_error(source: SourceFacts) -> dict[str, Any] | None:
    if not source.error:
        return None
    failed = source.poll is not None and source.poll.outcome != "ok"
    return {
        "time": _time(source.poll.finished if source.poll is not None and failed else source.since),
        "scope": "endpoint" if source.state == "failing" else "account",
        "reason": source.error_reason or source.state,
        "text": source.error[:TEXT_CHARACTERS],
    }


def _backfill(source: SourceFacts) -> dict[str, Any]:
    wanted = source.backfill != "not_wanted"
    up_to = source.first_start if source.backfill == "done" else source.backfill_up_to or None
    return {
        "state": source.backfill,
        "from_time": _time(_backfill_start(source)) if wanted else None,
        "up_to_time": _time(up_to) if wanted else None,
        "to_time": _time(source.first_start) if wanted else None,
        "progress_ratio": _progress_ratio(source),
        "read_incidents": source.backfill_incidents,
        "finished_time": _time(source.backfill_finished),
        "estimated_finish_time": _time(source.backfill_estimate),
    }


def _backfill_start(source: SourceFacts) -> Instant | None:
    """Where the past begins: at what the backfill met first, else where it was told to begin."""
    return source.start_from if source.backfill_from is None else source.backfill_from


def _progress_ratio(source: SourceFacts) -> float | None:
    """The share of the time span; unknown when it is not known where the past begins."""
    if source.backfill == "done":
        return 1.0
    start, at, end = _backfill_start(source), source.backfill_up_to, source.first_start
    if source.backfill == "not_wanted" or start is None or at is None or end is None or end <= start:
        return None
    return round(min(1.0, max(0.0, (at - start) / (end - start))), 4)


def _sink(sink: SinkFacts, facts: RelayFacts, cure: dict[str, Any] | None) -> dict[str, Any]:
    since = sink.since or facts.started
    error = {"time": _time(since), "scope": "endpoint", "reason": sink.error_reason or sink.state}
    return {
        "name": sink.name,
        "type": sink.type,
        "target": sink.target,
        "state": sink.state,
        "state_since_time": _time(since),
        "backlog_events": sink.waiting,
        "oldest_waiting_time": _time(sink.oldest),
        "retrying_events": sink.retrying,
        "last_success_time": _time(sink.last_success),
        "delivered_last_hour_events": sink.delivered,
        "paused_until_time": _time(sink.paused_until),
        "next_probe_time": _time(sink.next_try),
        "parks_time": _time(sink.parks),
        "expires_time": _time(sink.expires),
        "last_error": {**error, "text": sink.reason[:TEXT_CHARACTERS]} if sink.reason else None,
        "cure": cure,
        "dead_letters": sink.dead_letters,
    }


def _rank(one: SourceFacts | SinkFacts) -> tuple[int, str]:
    return _RANKS.get(one.state, 0), one.name


def _counts(states: Iterable[str]) -> dict[str, Any]:
    by_state = Counter(states)
    return {"total": by_state.total(), "by_state": dict(sorted(by_state.items()))}


def _time(instant: Instant | None) -> str | None:
    return None if instant is None else format_instant(instant, digits=0)
