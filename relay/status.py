"""The status document (`/api/status`, `relay status --json`), made from plain facts. Pure: knows no task, no socket.

Its shape is `status.schema.json`, beside this file. Every sentence that page and terminal show is written here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Literal, get_args

from relay.clock import SECOND, Instant
from relay.incidents import format_instant, severity_name
from relay.words import count, moment, sentence, size, span

SourceState = Literal["starting", "ok", "throttled", "failing", "refused", "stopped"]
SinkState = Literal["ok", "failing", "paused", "parked", "disabled"]
View = Literal["update_time", "create_time"]
Mode = Literal["keyset", "ordered", "scan"]
VIEWS: Final[tuple[View, ...]] = get_args(View)
Needs = Literal["person", "wait"]
CheckOutcome = Literal["ok", "warn", "fail", "skip"]

LATE_SECONDS: Final = 300
"""Data older than that is late: the line in the chart, and the colour of a lag."""
OVERDUE_INTERVALS: Final = 3
OVERDUE_SECONDS: Final = 30.0
"""The least that a poll may be overdue, so that short intervals raise no alarm at the first slow answer."""
FILLING_RATIO: Final = 0.8
FULL_RATIO: Final = 0.9
LASTING_FAILURES: Final = 5
"""After so many failures in a row a person may want to look, although it still cures itself."""
# Why polling stopped: what is so, what else that means, and the cure.
_WAITING: Final = "Sending waits as well, for what was sent could not be noted. Nothing is lost."
_STOPPED: Final[Mapping[str, tuple[str, str, str]]] = {
    "journal_full": (
        "the journal is full",
        "Sending goes on. Nothing is lost.",
        (
            "{holder} Polling goes on by itself as soon as that shrinks; or raise journal.max_bytes and restart the "
            "relay. To look again, run:"
        ),
    ),
    "journal_disk_full": (
        "the volume of the journal is full",
        _WAITING,
        "Make room on that volume, or enlarge it; polling and sending go on by themselves. To look again, run:",
    ),
    "journal_read_only": (
        "the volume of the journal is read-only",
        _WAITING,
        (
            "See in the log of the kernel why, and mount it writable; polling and sending go on by themselves. "
            "To look again, run:"
        ),
    ),
    "journal_missing": (
        "the files of the journal are gone",
        "Sending waits as well. Nothing is lost while the files exist.",
        (
            "Put back the files that were moved, or mount their volume; polling and sending go on by themselves. "
            "A relay that is restarted uses what is there then. To look again, run:"
        ),
    ),
    "journal_damaged": (
        "the journal is damaged",
        "Nothing is sent any more. The file is left as it is.",
        (
            "Stop the relay, move the damaged file and its -wal away together, put a backup in their place, and start "
            "the relay; what has changed since that backup is read and sent again. To look at the file before, run:"
        ),
    ),
    "journal_unavailable": (
        "the journal cannot be written",
        _WAITING,
        (
            "Give the journal a disk that can be written; polling goes on by itself at the first success. "
            "To look again, run:"
        ),
    ),
}
_LESSER: Final = {"ordered": 1, "scan": 2}
MAX_PROBLEMS: Final = 20
MAX_ROWS: Final = 200
MAX_DEAD: Final = 20
MAX_EVENTS: Final = 50
TITLE_CHARACTERS: Final = 300
_LABEL: Final = re.compile(r"[a-z][a-z0-9_]*")
TEXT_CHARACTERS: Final = 256

_TIMES: Final = ("", "", " twice", " three times", " four times", " five times")
_RANKS: Final = {"throttled": 1, "failing": 1, "paused": 1, "starting": 2, "disabled": 2, "ok": 3}
"""Worst first; what is not named needs a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One thing that `relay check` tried: what was found, and what to do about it."""

    outcome: CheckOutcome
    name: str
    text: str
    cure: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollFacts:
    """How one poll ended. `outcome` is `ok` or the reason why it failed."""

    finished: Instant
    outcome: str
    duration_seconds: float
    pages: int
    incidents: int
    changes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WayFacts:
    """How one view is read. `reason` says why not `keyset`."""

    mode: Mode = "keyset"
    since: Instant | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFacts:
    """What the sweeps do and found. The counts are those of the last one; `suspended`: too many were missing."""

    running: bool = False
    finished: Instant | None = None
    suspended: bool = False
    late: int = 0
    silent: int = 0
    missing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What one source's task knows of itself."""

    name: str
    region: str
    """`eu` …, or the host of an explicit base_url."""
    state: SourceState
    since: Instant
    error: str
    hint: str
    failures: int
    last_poll: Instant | None
    """When the last poll succeeded."""
    next_poll: Instant | None
    poll_interval_seconds: float
    throttled_until: Instant | None
    complete_up_to: Instant | None
    start_from: Instant | None
    first_start: Instant | None
    backfill: Literal["not_wanted", "running", "done"]
    backfill_up_to: Instant | None
    ledger_incidents: int
    clock_skew_seconds: float | None
    error_reason: str = ""
    """The metric label of `error`."""
    poll: PollFacts | None = None
    """The last poll that ended, well or not."""
    backfill_incidents: int = 0
    """Rows that the backfill read; some of them twice where pages overlap."""
    backfill_from: Instant | None = None
    """The earliest time that the backfill met; None before its first page."""
    backfill_finished: Instant | None = None
    backfill_estimate: Instant | None = None
    """When it ends at its present pace; None when that can't be told."""
    dead_letters: int = 0
    """Records that could not be read."""
    dead_since: Instant | None = None
    ways: Mapping[View, WayFacts] = field(default_factory=dict)
    """How each view is read; what is not named is read by keyset."""
    sweep: SweepFacts = field(default_factory=SweepFacts)

    def way(self, view: View) -> WayFacts:
        """How this view is read."""
        return self.ways.get(view, WayFacts())


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkFacts:
    """What one sink's courier knows of itself."""

    name: str
    type: str
    target: str
    """Where it goes, without any secret: a topic, a path; empty where there is nothing to say."""
    state: SinkState
    since: Instant | None
    reason: str
    failures: int
    next_try: Instant | None
    paused_until: Instant | None
    waiting: int
    oldest: Instant | None
    last_success: Instant | None
    delivered: int
    """Events acknowledged within the last hour."""
    dead_letters: int
    error_reason: str = ""
    """The metric label of `reason`."""
    dead_since: Instant | None = None
    retrying: int = 0
    """Of those that wait, how many were tried before."""
    parks: Instant | None = None
    """When a failing one is given up; None when it is not, or never."""
    keep_seconds: float | None = None
    """How long what waits is kept."""
    max_age_seconds: float | None = None
    """What is older is skipped by a sink that people read."""
    notified: str = ""
    """The sink that was told that this one is parked."""

    @property
    def expires(self) -> Instant | None:
        """When the oldest waiting event expires or is skipped, at the latest; None when nothing waits."""
        limits = [seconds for seconds in (self.keep_seconds, self.max_age_seconds) if seconds is not None]
        return None if self.oldest is None or not limits else self.oldest + int(min(limits) * SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFacts:
    """One field that changed, as text; both None where the values are too long to show, or hidden."""

    field: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFacts:
    """One event as it is shown. Title, uuid and values are foreign text; the title is empty when titles are hidden."""

    id: str
    observed: Instant
    updated: Instant
    source: str
    origin: str
    kind: str
    sequence: int
    uuid: str
    title: str
    severity: str
    status: str
    changed: Sequence[ChangeFacts]
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LagFacts:
    """The greatest lag of each minute up to `end`, oldest first; None where it is not known."""

    end: Instant
    read_seconds: Sequence[float | None]
    delivered_seconds: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFacts:
    """One dead letter: an event that a sink refused, or a record of a source that could not be read."""

    id: str
    component: Literal["source", "sink"]
    name: str
    since: Instant
    source: str
    reason: str
    """As it was given: a label, `label: text`, or text."""
    attempts: int
    uuid: str = ""
    sequence: int = 0
    severity: str = ""
    title: str = ""
    """Foreign text; empty when titles are not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFacts:
    """Everything that the status says, in one moment."""

    now: Instant
    version: str
    process: str
    started: Instant
    sources: list[SourceFacts] = field(default_factory=list)
    sinks: list[SinkFacts] = field(default_factory=list)
    journal_kind: Literal["sqlite", "kafka"] = "sqlite"
    journal_used_bytes: int | None = None
    journal_limit_bytes: int | None = None
    journal_oldest_event: Instant | None = None
    journal_filling_since: Instant | None = None
    """Since when more than FILLING_RATIO of the journal is in use."""
    polling_stopped_reason: str | None = None
    polling_stopped_by: str = ""
    """The metric label of that reason."""
    polling_stopped_since: Instant | None = None
    budget_requests_per_second: float = 0.0
    used_requests_per_second: float = 0.0
    dead_letters: Sequence[DeadFacts] = ()
    """The newest, newest first."""
    events: Sequence[EventFacts] = ()
    """The newest, newest first."""
    lag: LagFacts | None = None
    journal_growth_bytes_per_day: float | None = None

    @property
    def fill_ratio(self) -> float | None:
        """The share of the journal that is in use; None when it has no limit."""
        if self.journal_used_bytes is None or not self.journal_limit_bytes:
            return None
        return self.journal_used_bytes / self.journal_limit_bytes

    @property
    def read_up_to(self) -> Instant | None:
        """Every source is read up to here; None: one is unread."""
        return _read_up_to(self.sources)

    @property
    def delivered_up_to(self) -> Instant | None:
        """Everything up to here is in every sink that is neither parked nor disabled; None: a source is unread."""
        return _delivered_up_to(self.sources, self.sinks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong, what it means for the data, and its cure. `headline` is what is said when it is the worst."""

    scope: Literal["source", "sink", "dead_letters", "journal"]
    name: str
    state: str
    needs: Needs
    since: Instant
    headline: str
    text: str
    effect: str
    cure: str
    command: str | None = None


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
    cures = {problem.name: _cure(problem) for problem in _sink_problems(facts)}
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


# -- what is wrong ----------------------------------------------------------------------------------------------------


def find_problems(facts: RelayFacts) -> list[Problem]:
    """Everything wrong: what needs a person first, then the oldest first."""
    found = [*_journal_problems(facts), *_source_problems(facts), *_sink_problems(facts), *_dead_letter_problems(facts)]
    return sorted(found, key=lambda problem: (problem.needs != "person", problem.since))


def _journal_problems(facts: RelayFacts) -> Iterator[Problem]:
    ratio = facts.fill_ratio or 0.0
    if facts.polling_stopped_reason is not None:
        by = facts.polling_stopped_by or ("journal_full" if ratio >= FULL_RATIO else "journal_unavailable")
        yield _polling_stopped(facts, by)
    elif ratio >= FILLING_RATIO:
        yield _journal_filling(facts, ratio)


def _polling_stopped(facts: RelayFacts, by: str) -> Problem:
    since = facts.polling_stopped_since or facts.started
    at = moment(since, facts.now)
    is_so, effect, cure = _STOPPED.get(by, _STOPPED["journal_unavailable"])
    return Problem(
        scope="journal",
        name="journal",
        state="stopped",
        needs="person",
        since=since,
        headline=f"Polling stopped at {at}: {is_so}.",
        text=sentence(f"Polling stopped: {facts.polling_stopped_reason}"),
        effect=f"No source has been read since {at}. {effect}",
        cure=cure.format(holder=_holder(facts.sinks)),
        command="relay check" if by == "journal_damaged" else "relay status",
    )


def _journal_filling(facts: RelayFacts, ratio: float) -> Problem:
    percent = int(ratio * 100)
    return Problem(
        scope="journal",
        name="journal",
        state="filling",
        needs="wait",
        since=facts.journal_filling_since or facts.now,
        headline=f"The journal is {percent} % full; polling stops at 90 %.",
        text=f"{size(facts.journal_used_bytes or 0, facts.journal_limit_bytes or 0)} are in use, {percent} %.",
        effect="At 90 % polling stops until there is room. No sink is delayed, and nothing is lost.",
        cure=f"{_holder(facts.sinks)} Nothing to do while that shrinks: room returns by itself. If it grows, raise "
        "journal.max_bytes and restart the relay.",
    )


def _holder(sinks: Sequence[SinkFacts]) -> str:
    """Names the sink for which most events wait."""
    most = max(sinks, key=attrgetter("waiting"), default=None)
    if most is None:
        return "No sink is configured."
    return f"{count(most.waiting, 'event')} {'waits' if most.waiting == 1 else 'wait'} for {most.name}."


def _source_problems(facts: RelayFacts) -> Iterator[Problem]:
    for source in facts.sources:
        if source.state == "throttled":
            yield _throttled(source, facts)
        elif source.state == "failing":
            yield _failing_source(source, facts)
        elif source.state == "refused":
            yield _refused(source, facts)
        elif source.state in ("ok", "starting") and _is_overdue(source, facts.now):
            yield _overdue(source, facts)
        if source.sweep.suspended:
            yield _suspended(source, facts)


def _throttled(source: SourceFacts, facts: RelayFacts) -> Problem:
    times = _TIMES[source.failures] if source.failures < len(_TIMES) else f" {source.failures} times"
    row = f"{times} in a row" if times else ""
    until = f" until {moment(source.throttled_until, facts.now)}" if source.throttled_until else ""
    again = f" at {moment(source.throttled_until, facts.now)}" if source.throttled_until else ""
    return Problem(
        scope="source",
        name=source.name,
        state="throttled",
        needs="wait",
        since=_since(source),
        headline=f"Data flows late: ESET throttles {source.name}{until}; {_complete(source, facts.now)}.",
        text=f"ESET answered 429{row} and asked to wait{until}.",
        effect=_unread(source, facts),
        cure=f"Nothing to do: polling goes on{again} by itself.",
    )


def _failing_source(source: SourceFacts, facts: RelayFacts) -> Problem:
    polls = f"The last {source.failures} polls" if source.failures > 1 else "The last poll"
    due = source.next_poll if source.next_poll is not None and source.next_poll > facts.now else None
    again = f"at {moment(due, facts.now)}" if due else f"every {span(source.poll_interval_seconds)}"
    lasting = source.failures >= LASTING_FAILURES
    hint = f" {_question(source.hint)}" if source.hint else ""
    return Problem(
        scope="source",
        name=source.name,
        state="failing",
        needs="wait",
        since=source.since,
        headline=f"Data flows late: polls of {source.name} have failed since {moment(source.since, facts.now)}; "
        f"{_complete(source, facts.now)}.",
        text=sentence(f"{polls} of {source.name} failed: {source.error}"),
        effect=_unread(source, facts),
        cure=f"Nothing to do yet: polling goes on {again} by itself.{hint}{' To find the cause, run:' * lasting}",
        command="relay check" if lasting else None,
    )


def _refused(source: SourceFacts, facts: RelayFacts) -> Problem:
    since = moment(source.since, facts.now)
    login = source.error_reason == "login_refused" or source.error.startswith("log in")
    hint = f"{_question(source.hint)} " if source.hint else ""
    what = (
        "A new password_file is read at the next poll; other changes need a restart. To try the login, run:"
        if login
        else "Check rights, licence and region of this source, then run:"
    )
    return Problem(
        scope="source",
        name=source.name,
        state="refused",
        needs="person",
        since=source.since,
        headline=f"Nothing of {source.name} has been read since {since}: ESET refused "
        f"{'the login' if login else 'the request'}.",
        text=sentence(f"ESET refused {source.name}: {source.error}"),
        effect=_unread(source, facts),
        cure=f"{hint}{what}",
        command="relay check",
    )


def _suspended(source: SourceFacts, facts: RelayFacts) -> Problem:
    since = source.sweep.finished or facts.started
    return Problem(
        scope="source",
        name=source.name,
        state="suspended",
        needs="person",
        since=since,
        headline=f"The sweep of {source.name} stopped at {moment(since, facts.now)}: too many incidents are missing.",
        text=f"More than 1 % of the incidents of {source.name} are gone from the list: that is taken for lost rights "
        "or another account, and none is reported missing.",
        effect=f"Nothing is lost. Polling of {source.name} goes on; only disappearances are not reported.",
        cure=f"Check the rights and the licence of the API user of {source.name}; the next sweep looks again. If the "
        "incidents were deleted, run:",
        command=f"relay sources accept-missing {source.name}",
    )


def read_note(source: SourceFacts, now: Instant) -> str:
    """What a way of reading other than by keyset means, and what it costs; empty when there is nothing to say."""
    worst = max((source.way(view) for view in VIEWS), key=lambda way: _LESSER.get(way.mode, 0))
    if worst.mode == "keyset":
        return ""
    views = " and ".join(view for view in VIEWS if source.way(view).mode == worst.mode)
    since = f" since {moment(worst.since, now)}" if worst.since is not None else ""
    pages = f" The last poll read {count(source.poll.pages, 'page')}." if source.poll and source.poll.pages else ""
    cost = (
        "every poll reads all incidents, so polls may come less often"
        if worst.mode == "scan"
        else "each poll reads from the newest row back, without a filter"
    )
    return (
        f"{source.name} is read {worst.mode}{since}: {worst.reason} ({views}). Nothing is lost; {cost}.{pages} "
        "The better way is tried again hourly."
    )


def _overdue(source: SourceFacts, facts: RelayFacts) -> Problem:
    since = source.last_poll or source.since
    return Problem(
        scope="source",
        name=source.name,
        state="late",
        needs="wait",
        since=since,
        headline=f"Data flows late: no poll of {source.name} has ended since {moment(since, facts.now)}; "
        f"{_complete(source, facts.now)}.",
        text=f"No poll of {source.name} has ended since {moment(since, facts.now)}; "
        f"one is due every {span(source.poll_interval_seconds)}.",
        effect=_unread(source, facts),
        cure="Nothing to do yet: ESET may take up to 15 min for one answer, and polling goes on by itself after it.",
    )


def _is_overdue(source: SourceFacts, now: Instant) -> bool:
    allowed = max(OVERDUE_INTERVALS * source.poll_interval_seconds, OVERDUE_SECONDS)
    return now - (source.last_poll or source.since) > allowed * SECOND


def _since(source: SourceFacts) -> Instant:
    """A poll in hand may be waiting out its first 429: then nothing has failed yet."""
    if source.state == "throttled" and not source.failures:
        return source.last_poll or source.since
    return source.since


def _complete(source: SourceFacts, now: Instant) -> str:
    if source.complete_up_to is None:
        return f"nothing of {source.name} has been read yet"
    return f"{source.name} is complete up to {moment(source.complete_up_to, now)}"


def _unread(source: SourceFacts, facts: RelayFacts) -> str:
    """What is missing, and what is not."""
    if source.complete_up_to is None:
        missing = f"Nothing of {source.name} has been read yet."
    else:
        after = moment(source.complete_up_to, facts.now)
        missing = f"What changed in {source.name} after {after} has not been read yet."
    return " ".join(part for part in (missing, _others(source, facts), "Nothing is lost.") if part)


def _others(source: SourceFacts, facts: RelayFacts) -> str:
    well = [one for one in facts.sources if one.state == "ok" and one.name != source.name]
    up_to = _delivered_up_to(well, facts.sinks)
    if not well or up_to is None:
        return ""
    all_others = len(well) == len(facts.sources) - 1
    if len(well) == 1:
        who = "The other source is" if all_others else "1 other source is"
    else:
        who = f"The other {len(well)} sources are" if all_others else f"{len(well)} other sources are"
    return f"{who} delivered up to {_ago(up_to, facts.now)}."


def _sink_problems(facts: RelayFacts) -> Iterator[Problem]:
    for sink in facts.sinks:
        if sink.state == "parked":
            yield _parked(sink, facts)
        elif sink.state == "failing":
            yield _failing_sink(sink, facts)
        elif sink.state == "paused":
            yield _paused(sink, facts)


def _parked(sink: SinkFacts, facts: RelayFacts) -> Problem:
    since = sink.since or facts.started
    text, hint = own_words(sink.reason)
    _, _, why = text.partition(": ") if hint else ("", "", "")
    cure = f"{hint[:1].upper()}{hint[1:]}, then run:" if hint else _CORRECT
    command = f"relay sinks enable {sink.name}"
    if sink.type == "stdout":  # this process will never have another one
        cure = "Start the relay again with a program that reads its output; it goes on with the oldest waiting event:"
        command = "relay run"
    told = f"; {sink.notified} was told" if sink.notified else ""
    given_up = f"{sink.name} was given up"
    return Problem(
        scope="sink",
        name=sink.name,
        state="parked",
        needs="person",
        since=since,
        headline=f"Nothing has reached {_place(sink)} since {moment(since, facts.now)}"
        f"{f': {why}' if why else ''}. {_waiting(sink)}",
        text=sentence(text if hint else f"{given_up}: {text}" if text else given_up),
        effect=" ".join(
            part for part in (_waiting(sink), _expiry(sink, facts), f"{_unhindered(facts)[:-1]}{told}.") if part
        ),
        cure=cure,
        command=command,
    )


_CORRECT: Final = "Correct the cause, then let it go on with the oldest waiting event:"


def own_words(reason: str) -> tuple[str, str]:
    """What happened, and what to do about it.

    Only where the reason is our own does its end say what to do; all else of it may be the far side's text.
    """
    text, _, hint = (
        reason.partition("; ") if reason.startswith(("Slack answered ", "Teams answered ")) else ("", "", "")
    )
    return (text, hint) if hint else (reason, "")


def _place(sink: SinkFacts) -> str:
    """The sink as people call it."""
    return f"{sink.type.capitalize()} ({sink.name})" if sink.type in ("slack", "teams") else sink.name


def _expiry(sink: SinkFacts, facts: RelayFacts) -> str:
    """From when on something is missing for good."""
    if sink.expires is None or sink.keep_seconds is None:
        return ""
    skips = sink.max_age_seconds is not None and sink.max_age_seconds <= sink.keep_seconds
    seconds = sink.max_age_seconds if skips and sink.max_age_seconds is not None else sink.keep_seconds
    what = (
        f"are skipped, because max_age is {_limit(seconds)}" if skips else f"expire, because keep is {_limit(seconds)}"
    )
    if sink.expires <= facts.now:
        return f"The oldest {what}."
    return f"From {moment(sink.expires, facts.now)} on the oldest {what}."


def _limit(seconds: float) -> str:
    """As people configure it: `24 h` rather than `1 d`."""
    return f"{seconds / 3600:.0f} h" if seconds % 3600 == 0 and seconds <= 72 * 3600 else span(seconds)


def _failing_sink(sink: SinkFacts, facts: RelayFacts) -> Problem:
    since = sink.since or facts.started
    times = f" {sink.failures} times in a row" if sink.failures > 1 else ""
    due = sink.next_try if sink.next_try is not None and sink.next_try > facts.now else None
    try_ = f"the next try is at {moment(due, facts.now)}" if due else "it is being tried"
    lasting = sink.failures >= LASTING_FAILURES
    return Problem(
        scope="sink",
        name=sink.name,
        state="failing",
        needs="wait",
        since=since,
        headline=f"Data flows late: nothing has reached {sink.name} since {moment(since, facts.now)}. {_waiting(sink)}",
        text=sentence(f"Sending to {sink.name} failed{times}: {sink.reason}"),
        effect=f"{_waiting(sink)} {_unhindered(facts)}",
        cure=f"Nothing to do yet: {try_}, and sending goes on at the first success."
        f"{' To find the cause, run:' * lasting}",
        command="relay check" if lasting else None,
    )


def _paused(sink: SinkFacts, facts: RelayFacts) -> Problem:
    until = f" until {moment(sink.paused_until, facts.now)}" if sink.paused_until else ""
    again = f" at {moment(sink.paused_until, facts.now)}" if sink.paused_until else ""
    return Problem(
        scope="sink",
        name=sink.name,
        state="paused",
        needs="wait",
        since=sink.since or facts.started,
        headline=f"Data flows late: {sink.name} asked to wait{until}. {_waiting(sink)}",
        text=f"{sink.name} asked to wait{until}.",
        effect=f"{_waiting(sink)} {_unhindered(facts)}",
        cure=f"Nothing to do: sending goes on{again} by itself.",
    )


def _waiting(sink: SinkFacts) -> str:
    if not sink.waiting:
        return "Nothing waits."
    return f"{count(sink.waiting, 'event')} {'waits' if sink.waiting == 1 else 'wait'}."


def _unhindered(facts: RelayFacts) -> str:
    return "No other sink is delayed." if len(facts.sinks) > 1 else "No poll is delayed."


def _dead_letter_problems(facts: RelayFacts) -> Iterator[Problem]:
    for source in facts.sources:
        if source.dead_letters:
            what = f"{count(source.dead_letters, 'record')} of {source.name} could not be read."
            yield Problem(
                scope="dead_letters",
                name=source.name,
                state="dead",
                needs="person",
                since=source.dead_since or facts.started,
                headline=f"{what} All other records were read.",
                text=what,
                effect="They are kept as they came. All other records were read.",
                cure="Look at them: ESET may have changed its format, then update the relay. What is of no use can be "
                "discarded. To list them, run:",
                command=f"relay dead-letters list --source {source.name}",
            )
    for sink in facts.sinks:
        if sink.dead_letters:
            verb = "was" if sink.dead_letters == 1 else "were"
            what = f"{count(sink.dead_letters, 'event')} {verb} refused by {sink.name}."
            yield Problem(
                scope="dead_letters",
                name=sink.name,
                state="dead",
                needs="person",
                since=sink.dead_since or facts.started,
                headline=f"{what} No other event is delayed.",
                text=what,
                effect="They are kept, and are not sent again by themselves. No other event is delayed.",
                cure="Correct what the receiver complains about, then redrive them; what is of no use can be "
                "discarded. To list them with their reasons, run:",
                command=f"relay dead-letters list --sink {sink.name}",
            )


def _question(hint: str) -> str:
    """A hint of the client as a sentence of its own; it is lower case, and mostly a question."""
    return sentence(hint[:1].upper() + hint[1:])


# -- the parts of the document ----------------------------------------------------------------------------------------


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
        headline = f"Data flows: everything up to {_ago(up_to, facts.now)} is delivered."
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
        "sources_held": len(facts.sources),
        "sinks_held": len(facts.sinks),
    }
    return {
        "version": facts.version,
        "started_time": _time(facts.started),
        "uptime_seconds": max(0, (facts.now - facts.started) // SECOND),
        "processes": [process],
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
        "state_since_time": _time(_since(source)),
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


def _delivered_up_to(sources: Sequence[SourceFacts], sinks: Sequence[SinkFacts]) -> Instant | None:
    read = _read_up_to(sources)
    waiting = [sink.oldest for sink in sinks if sink.state not in ("parked", "disabled") and sink.oldest is not None]
    return None if read is None else min([read, *waiting])


def _read_up_to(sources: Sequence[SourceFacts]) -> Instant | None:
    known = [source.complete_up_to for source in sources if source.complete_up_to is not None]
    return min(known) if known and len(known) == len(sources) else None


def _rank(one: SourceFacts | SinkFacts) -> tuple[int, str]:
    return _RANKS.get(one.state, 0), one.name


def _counts(states: Iterable[str]) -> dict[str, Any]:
    by_state = Counter(states)
    return {"total": by_state.total(), "by_state": dict(sorted(by_state.items()))}


def _ago(instant: Instant, now: Instant) -> str:
    return f"{span((now - instant) / SECOND)} ago"


def _time(instant: Instant | None) -> str | None:
    return None if instant is None else format_instant(instant, digits=0)
