"""What is wrong, what it means for the data, and its cure: every sentence of page, terminal and notices. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Literal

from relay.clock import SECOND, Instant
from relay.states import VIEWS
from relay.status.facts import (
    FILLING_RATIO,
    FULL_RATIO,
    Needs,
    RelayFacts,
    SinkFacts,
    SourceFacts,
    delivered_up_to,
)
from relay.words import count, moment, sentence, size, span

OVERDUE_INTERVALS: Final = 3
OVERDUE_SECONDS: Final = 30.0
"""The least that a poll may be overdue, so that short intervals raise no alarm at the first slow answer."""
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
_TIMES: Final = ("", "", " twice", " three times", " four times", " five times")


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


def find_problems(facts: RelayFacts) -> list[Problem]:
    """Everything wrong: what needs a person first, then the oldest first."""
    found = [*_journal_problems(facts), *_source_problems(facts), *sink_problems(facts), *_dead_letter_problems(facts)]
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
        since=state_since(source),
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


def state_since(source: SourceFacts) -> Instant:
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
    up_to = delivered_up_to(well, facts.sinks)
    if not well or up_to is None:
        return ""
    all_others = len(well) == len(facts.sources) - 1
    if len(well) == 1:
        who = "The other source is" if all_others else "1 other source is"
    else:
        who = f"The other {len(well)} sources are" if all_others else f"{len(well)} other sources are"
    return f"{who} delivered up to {ago(up_to, facts.now)}."


def sink_problems(facts: RelayFacts) -> Iterator[Problem]:
    """What is wrong with the sinks themselves; their dead letters are another matter."""
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


def ago(instant: Instant, now: Instant) -> str:
    """`38 s ago`."""
    return f"{span((now - instant) / SECOND)} ago"
