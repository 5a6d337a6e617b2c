"""Chat messages as Adaptive Cards 1.4 in the envelope of a Teams workflow. What they say is `relay.formats.message`'s.

Titles, descriptions and unknown values stand in `TextRun` only, which knows no Markdown; `TextBlock` and `FactSet` hold
our own words. A card stays under 20 KiB whatever an incident holds, because each of its texts is bounded.
"""

import re
from typing import Any, Final

from relay.clock import SECOND, Instant
from relay.formats.message import (
    ROW_TITLE_CHARACTERS,
    Digest,
    Fact,
    Facts,
    Notice,
    Parked,
    Skipped,
    Value,
    cut,
    severity_counts,
    source_list,
    utc,
)
from relay.incidents import format_instant
from relay.words import count

MAX_BYTES: Final = 20 * 1024
"""Of the whole body; Teams refuses more than 28 KB, its own wrapping included."""

_COLORS: Final = {"HIGH": "Attention", "MEDIUM": "Warning"}
_MARKUP: Final = re.compile(r"([\\_*\[\]`~#])")
_EXPANDED: Final = re.compile(r"\{(?=\{)")
_DAY_SECONDS: Final = 86_400
Element = dict[str, Any]


def message(facts: Facts) -> Element:
    """One event: who, when, what, what changed, one link."""
    own = [fact for fact in facts.facts if not fact.foreign]
    severity = "Incident" if facts.severity.foreign else facts.severity.text
    return _envelope(
        f"{severity} {facts.phrase} {facts.source}",
        [
            _first_line(facts),
            _rich(_run(facts.title, size="Medium", weight="Bolder"), spacing="Small"),
            *([{"type": "FactSet", "facts": [_fact(fact.label, _changed(fact)) for fact in own]}] if own else []),
            *(_rich_fact(fact) for fact in facts.facts if fact.foreign),
            *([_rich(_run(facts.description))] if facts.description else []),
            *([_aside(facts.note)] if facts.note else []),
            *([_rich(_name(facts.uuid), spacing="Small")] if facts.uuid else []),
        ],
        actions=[_open(facts.link)] if facts.link else [],
    )


def digest(digest: Digest) -> Element:
    """Many events: counts, the worst, and why they are not all there. No columns: it has to fit a phone."""
    sources = source_list(digest, lambda source, changes: f"**{_escaped(source)}** ({changes})")
    why, key = digest.why
    named = source_list(digest, lambda source, _: source)
    return _envelope(
        f"{count(digest.total, 'change')} in {named}: {severity_counts(digest.severities)}",
        [
            _rich(_run(digest.title, size="Medium", weight="Bolder")),
            _text(f"in {sources}, {_period(digest.begin, digest.end)}. {digest.heading}", spacing="Small"),
            *(_rich(*_row(facts), spacing="Small") for facts in digest.worst),
            _aside(f"{why} ({key})."),
        ],
    )


def notice(notice: Notice, *, now: Instant) -> Element:
    """What a sink has to say of itself or of another one."""
    return _skipped(notice) if isinstance(notice, Skipped) else _parked(notice, now)


def _parked(notice: Parked, now: Instant) -> Element:
    reason = notice.what
    facts = [] if reason.foreign else [_fact("Reason", _escaped(reason.text))]
    facts += [_fact("Since", _time(notice.since)), _fact("Waiting", notice.waits(now))]
    if notice.skipped_from is not None:
        facts.append(_fact("Skipped from", f"{_time(notice.skipped_from)}, the oldest first ({_escaped('max_age')})"))
    if notice.kept_until is not None:
        facts.append(_fact("Kept until", _time(notice.kept_until)))
    return _envelope(
        f"Sink {notice.sink} is parked: {'the reason is on the card' if reason.foreign else reason.text}. "
        f"{count(notice.waiting, 'event')} wait{'s' * (notice.waiting == 1)}. {notice.run}",
        [
            _rich(_run(notice.title, size="Medium", weight="Bolder")),
            *([_rich_fact(Fact(label="Reason", after=reason))] if reason.foreign else []),
            {"type": "FactSet", "facts": facts},
            _text(_escaped(notice.way_out)),
            {
                "type": "Container",
                "style": "emphasis",
                "spacing": "Small",
                "items": [_rich(_run(notice.run, fontType="Monospace"))],
            },
            _aside(
                f"No other sink is delayed. This notice is sent once, because {notice.sink} names this sink in notify."
            ),
        ],
    )


def _skipped(notice: Skipped) -> Element:
    why, key = notice.why
    return _envelope(
        f"{notice.title} ({notice.sink})",
        [
            _rich(_run(notice.title, size="Medium", weight="Bolder")),
            _text(
                f"{_escaped(f'{why} ({key}).')} They were last updated from {_period(notice.begin, notice.end)}.",
                spacing="Small",
            ),
            _aside(notice.effect),
        ],
    )


def _envelope(fallback: str, body: list[Element], *, actions: list[Element] | None = None) -> Element:
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "fallbackText": _unexpanded(fallback),
        "msteams": {"width": "Full"},
        "body": body,
        **({"actions": actions} if actions else {}),
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def _first_line(facts: Facts) -> Element:
    """The time has a column of its own, because only a `TextBlock` is sure to expand it."""
    who = _rich(_severity(facts.severity), _run(f"  {facts.phrase} "), _run(facts.source, weight="Bolder"))
    when = _text(_time(facts.time), isSubtle=True)
    columns = [{"type": "Column", "width": "auto", "items": [item]} for item in (who, when)]
    return {"type": "ColumnSet", "spacing": "None", "columns": columns}


def _severity(severity: Value) -> Element:
    color = None if severity.foreign else _COLORS.get(severity.text)
    return _run(severity.text, weight="Bolder", **({"color": color} if color else {}))


def _row(facts: Facts) -> list[Element]:
    title = cut(facts.title, ROW_TITLE_CHARACTERS)
    return [
        _severity(facts.severity),
        _run(f"  {facts.kind}  "),
        _run(title, color="Accent", selectAction=_open(facts.link)) if facts.link else _run(title),
        _run(f"  {facts.source}", isSubtle=True),
    ]


def _changed(fact: Fact) -> str:
    if fact.before is None:
        return _escaped(fact.after.text)
    return f"{_escaped(fact.before.text)} → **{_escaped(fact.after.text)}**"


def _rich_fact(fact: Fact) -> Element:
    """A fact in which nothing may be parsed."""
    before = [] if fact.before is None else [_run(fact.before.text or "none"), _run(" → ")]
    bold = {} if fact.before is None else {"weight": "Bolder"}
    return _rich(
        _run(f"{fact.label}  ", isSubtle=True), *before, _run(fact.after.text or "none", **bold), spacing="Small"
    )


def _open(link: str) -> Element:
    return {"type": "Action.OpenUrl", "title": "Open the incident", "url": link}


def _name(uuid: str) -> Element:
    return _run(uuid, fontType="Monospace", size="Small", isSubtle=True)


def _rich(*runs: Element, **style: Any) -> Element:
    return {"type": "RichTextBlock", "inlines": list(runs), **style}


def _run(text: str, **style: Any) -> Element:
    return {"type": "TextRun", "text": _unexpanded(text), **style}


def _text(text: str, **style: Any) -> Element:
    return {"type": "TextBlock", "text": text, "wrap": True, **style}


def _aside(text: str) -> Element:
    return _text(_escaped(text), isSubtle=True, size="Small")


def _fact(title: str, value: str) -> Element:
    return {"title": title, "value": value}


def _time(instant: Instant) -> str:
    """Shown in each reader's own time zone."""
    try:
        text = format_instant(instant, digits=0)
    except ValueError:
        return utc(instant)
    return f"{{{{DATE({text}, SHORT)}}}} {{{{TIME({text})}}}}"


def _period(begin: Instant, end: Instant) -> str:
    """Both ends; the day of the second only where it is another one."""
    if begin == end:
        return _time(begin)
    days = {instant // SECOND // _DAY_SECONDS for instant in (begin, end)}
    last = _time(end)
    return f"{_time(begin)} to {last[last.find('{{TIME') :] if len(days) == 1 and '{{TIME' in last else last}"


def _escaped(text: str) -> str:
    return _unexpanded(_MARKUP.sub(r"\\\1", text))


def _unexpanded(text: str) -> str:
    """The renderer expands `{{DATE(…)}}` everywhere, so no two opening braces may meet, however many there are."""
    return _EXPANDED.sub("{ ", text)
