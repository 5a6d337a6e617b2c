"""What a chat message says, as plain facts: of one event, of a digest, of a parked sink. Not how it is written there.

Text of an incident is written by attackers. Here it becomes one bounded line in which hidden characters are visible;
what could still be markup is marked `foreign`, and must only go where the far side parses nothing.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

import msgspec

from relay.clock import SECOND, Instant
from relay.formats import native
from relay.incidents import SEVERITY_PREFIX, Kind, format_instant, severity_name
from relay.words import count, inert, number, span

TITLE_CHARACTERS: Final = 300
ROW_TITLE_CHARACTERS: Final = 120
DESCRIPTION_CHARACTERS: Final = 300
CHANGE_CHARACTERS: Final = 100
WORD_CHARACTERS: Final = 100
REASON_CHARACTERS: Final = 300
LINK_CHARACTERS: Final = 500
"""A longer link is left out: no real one is, and ten of them would fill a card."""
WORST: Final = 10
SOURCES_NAMED: Final = 5

SEVERITIES: Final = ("HIGH", "MEDIUM", "LOW", "UNSPECIFIED")
"""The known ones, worst first. One that we do not know may be worse than all of them, and is listed first."""
OTHER: Final = "other"
"""Stands for every unknown severity in counts."""

_STATUS_PREFIX: Final = "INCIDENT_STATUS_"
_REASON_PREFIX: Final = "INCIDENT_RESOLVE_REASON_"
PREFIXES: Final[Mapping[str, str]] = {
    "status": _STATUS_PREFIX,
    "severity": SEVERITY_PREFIX,
    "resolveReason": _REASON_PREFIX,
}
"""What short names of enums go without."""
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    "status": frozenset({"OPEN", "IN_PROGRESS", "WAITING_FOR_INPUT", "CLOSED"}),
    "severity": frozenset(SEVERITIES),
    "resolveReason": frozenset({"TRUE_POSITIVE", "FALSE_POSITIVE", "SUSPICIOUS"}),
}
_LABELS: Final[Mapping[str, str]] = {
    "status": "Status",
    "severity": "Severity",
    "resolveReason": "Reason",
    "assigneeUuid": "Assignee",
    "displayName": "Title",
    "description": "Description",
    "tags": "Tags",
    "metrics.deviceCount": "Devices",
    "metrics.executableCount": "Executables",
    "metrics.processCount": "Processes",
}
_COUNTS: Final = (("deviceCount", "device"), ("executableCount", "executable"), ("processCount", "process"))
_PHRASES: Final[Mapping[Kind, str]] = {
    "created": "created in",
    "updated": "updated in",
    "closed": "closed in",
    "reopened": "reopened in",
    "missing": "missing from",
    "restored": "restored in",
}
_NOTES: Final[Mapping[Kind, str]] = {
    "missing": "ESET does not list this incident any more. These are its last known values.",
    "restored": "ESET lists this incident again. It was missing.",
}
_UNREAD: Final = "Its earlier versions were not read, so what changed is not known."
# Nothing in it is markup anywhere: an underscore only within a word, no two slashes, no brackets.
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9 .,:;()'%+→-]|/(?!/)|(?<=[A-Za-z0-9])_(?=[A-Za-z0-9]))*", re.ASCII)


class Source(Protocol):
    """What a message is made of; a `Delivery` has it all. `body` is the event as `native` JSON."""

    @property
    def kind(self) -> Kind:
        """What happened."""
        ...

    @property
    def source(self) -> str:
        """The label of the source."""
        ...

    @property
    def uuid(self) -> str:
        """The incident."""
        ...

    @property
    def updated(self) -> Instant:
        """When the incident became this version."""
        ...

    @property
    def severity(self) -> str:
        """The raw enum value."""
        ...

    @property
    def body(self) -> bytes:
        """The event as JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Value:
    """A short text. `foreign`: somebody else chose it, so it may hold markup of any kind."""

    text: str
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One labelled value; with `before`, what it was until now."""

    label: str
    after: Value
    before: Value | None = None

    @property
    def foreign(self) -> bool:
        """Whether any part of it may hold markup."""
        return self.after.foreign or (self.before is not None and self.before.foreign)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one message says of one event. `title`, `description` and `uuid` are foreign.

    `phrase` is the kind and its preposition, `outcome` the reason with which it was closed, `facts` the changes first,
    `note` a sentence of ours. Empty: there is nothing to say.
    """

    severity: Value
    kind: Kind
    phrase: str
    source: str
    time: Instant
    title: str
    uuid: str
    outcome: Value | None = None
    facts: Sequence[Fact] = ()
    description: str = ""
    note: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What one message says of many events. `severities` and `sources` are counts, the most important first."""

    total: int
    severities: Mapping[str, int]
    sources: Mapping[str, int]
    begin: Instant
    end: Instant
    worst: Sequence[Facts]
    above: int | None = None

    @property
    def title(self) -> str:
        """`37 changes: 4 HIGH, 12 MEDIUM, 21 LOW`."""
        return f"{count(self.total, 'change')}: {severity_counts(self.severities)}"

    @property
    def heading(self) -> str:
        """What introduces the list."""
        return "The ten worst:" if self.total > WORST else "All of them, the worst first:"

    @property
    def why(self) -> tuple[str, str]:
        """How many are not listed and why this is a digest; and the key of the configuration behind it."""
        rest = self.total - len(self.worst)
        missing = "" if not rest else f"{number(rest)} more {'is' if rest == 1 else 'are'} not listed. "
        because = (
            f"More than {number(self.above)} changes waited, so one message stands for all"
            if self.above is not None
            else "So many changes waited that one message stands for all"
        )
        return f"{missing}{because}", "digest_above"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """Says that a sink was parked, to the sink that its `notify` names.

    `reason` is the text of the error that parked it; what follows its first `; ` is a hint. `place` names the far side
    within a sentence. `skipped_from`: when `max_age` begins to skip what waits. `cure` ends with a colon; the hint of
    the reason, or a general one, when empty.
    """

    sink: str
    reason: str
    since: Instant
    waiting: int
    oldest: Instant | None = None
    kept_until: Instant | None = None
    skipped_from: Instant | None = None
    place: str = "it"
    cure: str = ""
    command: str = ""

    @property
    def title(self) -> str:
        """The verdict."""
        return f"Sink {self.sink} is parked: nothing is sent to {self.place} any more"

    @property
    def what(self) -> Value:
        """The reason without its hint."""
        return foreign(self.reason.partition("; ")[0], REASON_CHARACTERS)

    @property
    def way_out(self) -> str:
        """What a person has to do before the command."""
        hint = self.reason.partition("; ")[2]
        if self.cure:
            return self.cure
        if hint and not foreign(hint, REASON_CHARACTERS).foreign:
            return f"{hint[:1].upper()}{hint[1:]}, then run:"
        return "Correct the cause, then run:"

    @property
    def run(self) -> str:
        """The command that ends it."""
        return self.command or f"relay sinks enable {self.sink}"

    def waits(self, now: Instant) -> str:
        """`9 events, oldest 14 min`."""
        if self.oldest is None or not self.waiting:
            return count(self.waiting, "event")
        return f"{count(self.waiting, 'event')}, oldest {span((now - self.oldest) / SECOND, units=1)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Says, after an outage, how many events a sink skipped because they were older than its `max_age`.

    `severities` counts them by raw or short value; `begin` and `end` are the update times of the oldest and the newest.
    """

    sink: str
    severities: Mapping[str, int]
    max_age_seconds: float
    begin: Instant
    end: Instant

    @property
    def counts(self) -> Mapping[str, int]:
        """By short name, worst first."""
        return _ordered(self.severities)

    @property
    def title(self) -> str:
        """`43 changes were skipped: 2 HIGH, 11 MEDIUM, 30 LOW`."""
        total = sum(self.severities.values())
        return f"{count(total, 'change')} {'was' if total == 1 else 'were'} skipped: {severity_counts(self.counts)}"

    @property
    def why(self) -> tuple[str, str]:
        """What happened, and the key of the configuration behind it."""
        total = sum(self.severities.values())
        hours = self.max_age_seconds / 3600
        age = f"{hours:.0f} h" if hours in range(24, 73) else span(self.max_age_seconds)
        return f"{'It was' if total == 1 else 'They were'} older than {age} when {self.sink} could be reached again", (
            "max_age"
        )

    @property
    def effect(self) -> str:
        """What a person has to do about it."""
        return "Nothing to do: newer changes are sent as usual. Nothing was skipped for any other sink by this."


Notice = Parked | Skipped


def facts_of(event: Source, *, omit: Collection[str] = (), links: Mapping[str, str] | None = None) -> Facts:
    """What there is to say of one event, without the fields of `omit`. `links` maps sources to templates.

    Whatever the body holds, there is a message; what can't be read is left out.
    """
    about, incident = halves(event.body, omit)
    changed = about.get("changed")
    names = [name for name in changed if isinstance(name, str)] if isinstance(changed, list) else []
    previous = about.get("previous")
    before = previous if isinstance(previous, dict) else {}
    changes = [_change(name, before.get(name), field_of(incident, name)) for name in names if name in _LABELS]
    facts = list(changes)
    if "status" not in names:
        facts.append(Fact(label="Status", after=_standing(incident, whole="assigneeUuid" not in names)))
    if not changes:
        seen = _seen_on(incident)
        facts += [Fact(label="Seen on", after=Value(seen))] if seen else []
    new_text = not changes or "description" in names
    uuid = "" if "uuid" in omit else event.uuid
    template = (links or {}).get(event.source, "")
    unread = event.kind == "updated" and "changed" in about and changed is None
    return Facts(
        severity=_enum("severity", "" if "severity" in omit else event.severity),
        kind=event.kind,
        phrase=_PHRASES.get(event.kind, "changed in"),
        source=line(event.source, WORD_CHARACTERS),
        time=event.updated,
        title=line(incident.get("displayName"), TITLE_CHARACTERS) or "Incident without a name",
        uuid=line(uuid, WORD_CHARACTERS),
        outcome=_outcome(event.kind, incident),
        facts=facts,
        description=line(incident.get("description"), DESCRIPTION_CHARACTERS) if new_text else "",
        note=_UNREAD if unread else _NOTES.get(event.kind, ""),
        link=link_of(template, uuid),
    )


def digest_of(
    events: Sequence[Source],
    *,
    omit: Collection[str] = (),
    links: Mapping[str, str] | None = None,
    above: int | None = None,
) -> Digest:
    """What there is to say of all of them; `above` is the number that made it a digest, if known."""
    hidden = "severity" in omit
    severities = Counter("" if hidden else event.severity for event in events)
    ranked = sorted(events, key=lambda event: (0 if hidden else _rank(event.severity), -event.updated))
    return Digest(
        total=len(events),
        severities=_ordered(severities),
        sources=dict(
            sorted(Counter(line(e.source, WORD_CHARACTERS) for e in events).items(), key=lambda s: (-s[1], s[0]))
        ),
        begin=min(event.updated for event in events),
        end=max(event.updated for event in events),
        worst=[facts_of(event, omit=omit, links=links) for event in ranked[:WORST]],
        above=above,
    )


def source_list(digest: Digest, write: Callable[[str, int], str]) -> str:
    """`acme, globex and initech`, each as `write` puts it with its number of changes; many are not all named."""
    named = [write(source, changes) for source, changes in list(digest.sources.items())[:SOURCES_NAMED]]
    further = len(digest.sources) - len(named)
    if further:
        named.append(f"{number(further)} more source{'s' * (further > 1)}")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def severity_counts(counts: Mapping[str, int]) -> str:
    """`4 HIGH, 12 MEDIUM, 21 LOW`."""
    return ", ".join(f"{number(events)} {name}" for name, events in counts.items())


def link_of(template: str, uuid: str) -> str:
    """The template with the uuid in it, percent-encoded; empty unless that is a usable http or https URL."""
    if not template or not uuid:
        return ""
    url = template.replace("{uuid}", quote(uuid, safe="", errors="replace"))
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    usable = parts.scheme in {"http", "https"} and bool(parts.netloc) and url.isascii() and url.isprintable()
    return url if usable and " " not in url and len(url) <= LINK_CHARACTERS else ""


def foreign(value: Any, limit: int) -> Value:
    """A value that somebody else chose; one that can't be markup anywhere needs no care any more."""
    text = line(value, limit)
    return Value(text, foreign=_PLAIN.fullmatch(text) is None)


def line(value: Any, limit: int) -> str:
    """Any value as one line of at most `limit` characters, with its hidden characters made visible."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    words = " ".join(text.split())
    return cut(inert(words[: limit + 1]), limit)


def cut(text: str, limit: int) -> str:
    """At most `limit` UTF-16 code units, as Slack and Teams count; an ellipsis shows that something is missing."""
    if _units(text) <= limit:
        return text
    kept = text[: limit - 1]
    while _units(kept) > limit - 1:
        kept = kept[:-1]
    return f"{kept.rstrip()}…"


def utc(instant: Instant) -> str:
    """`2026-11-22 10:14:20 UTC`; what no calendar has is said so."""
    try:
        return format_instant(instant, digits=0).replace("T", " ").replace("Z", " UTC")
    except ValueError:
        return "at an unknown time"


def _units(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def halves(body: bytes, omit: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Event and incident of the body, empty when unreadable; `omit` is gone before anything else is looked at."""
    try:
        shown = native.omit(body, omit)
        decoded = _decode(shown)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return {}, {}
    if not isinstance(decoded, dict):
        return {}, {}
    about, incident = decoded.get("event"), decoded.get("incident")
    return about if isinstance(about, dict) else {}, incident if isinstance(incident, dict) else {}


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except ValueError:
        # Halves of surrogate pairs, which only this one reads.
        return json.loads(body)


def field_of(incident: Mapping[str, Any], name: str) -> Any:
    """The value of a field as `changed` names it: `status`, `metrics.deviceCount`."""
    parent, _, child = name.partition(".")
    value = incident.get(parent)
    if not child:
        return value
    return value.get(child) if isinstance(value, dict) else None


def _change(name: str, before: Any, after: Any) -> Fact:
    old, new = _shown(name, before), _shown(name, after)
    if old.text == new.text and old.text.endswith("…"):
        new = Value("another text that begins alike")
    return Fact(label=_LABELS[name], before=old, after=new)


def _shown(name: str, value: Any) -> Value:
    if name in _KNOWN:
        return _enum(name, value)
    if isinstance(value, dict) and value.get("truncated") is True:
        return Value(f"a text of {number(_whole(value.get('bytes')) or 0)} bytes")
    if name == "tags" and isinstance(value, list):
        value = ", ".join(line(tag, CHANGE_CHARACTERS) for tag in value[:20])
    if name.startswith("metrics."):
        return Value(number(_whole(value) or 0))
    return foreign(value, CHANGE_CHARACTERS) if value not in (None, "", []) else Value("none")


def _enum(name: str, value: Any) -> Value:
    """The short name of an enum's value, as `when` writes it; what we don't know is foreign."""
    text = line(value, WORD_CHARACTERS)
    short = severity_name(text) if name == "severity" else text.removeprefix(PREFIXES[name])
    if name != "severity" and short in {"", "UNSPECIFIED"}:
        return Value("none")
    return Value(short, foreign=short not in _KNOWN[name])


def _standing(incident: Mapping[str, Any], *, whole: bool) -> Value:
    """`OPEN, not assigned`; the status alone unless the `whole` is wanted, or when nothing more is known."""
    status = _enum("status", incident.get("status"))
    assignee = foreign(incident.get("assigneeUuid"), WORD_CHARACTERS)
    text = "not known" if status.text == "none" else status.text
    if not whole or ("assigneeUuid" not in incident and not incident.get("status")):
        return Value(text, foreign=status.foreign)
    if not assignee.text:
        return Value(f"{text}, not assigned", foreign=status.foreign)
    return Value(f"{text}, assigned to {assignee.text}", foreign=status.foreign or assignee.foreign)


def _outcome(kind: Kind, incident: Mapping[str, Any]) -> Value | None:
    reason = _enum("resolveReason", incident.get("resolveReason"))
    return reason if kind == "closed" and reason.text != "none" else None


def _seen_on(incident: Mapping[str, Any]) -> str:
    """`3 devices, 2 executables, 5 processes`."""
    metrics = incident.get("metrics")
    if not isinstance(metrics, dict):
        return ""
    counted = [(_whole(metrics.get(name)), noun) for name, noun in _COUNTS]
    plural = {"process": "processes"}
    return ", ".join(
        f"{number(many)} {plural[noun]}" if noun in plural and many != 1 else count(many, noun)
        for many, noun in counted
        if many
    )


def _whole(value: Any) -> int | None:
    """An integer, also one in a string, of a size that a count can have."""
    if isinstance(value, str) and len(value) <= 18 and value.isascii() and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18 else None


def _rank(severity: str) -> int:
    short = severity_name(severity)
    return SEVERITIES.index(short) if short in SEVERITIES else -1


def _ordered(severities: Mapping[str, int]) -> dict[str, int]:
    """Counts by short name, worst first; unknown ones together, at the end."""
    counts = Counter[str]()
    for severity, events in severities.items():
        short = severity_name(severity)
        counts[short if short in SEVERITIES else OTHER] += events
    return {name: counts[name] for name in (*SEVERITIES, OTHER) if counts[name]}
