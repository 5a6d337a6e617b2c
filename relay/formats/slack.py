"""Chat messages as Slack's Block Kit, for incoming webhooks. What they say is `relay.formats.message`'s business.

Titles, descriptions and unknown values stand in `plain_text` and `rich_text` only, where Slack parses nothing; `mrkdwn`
holds our own words. Limits: https://docs.slack.dev/reference/block-kit/blocks
"""

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
    cut,
    severity_counts,
    source_list,
    utc,
)
from relay.words import count

HEADER_CHARACTERS: Final = 150
FIELDS: Final = 10

_DATE_FORMAT: Final = "{date_short_pretty} {time_secs}"
Block = dict[str, Any]


def message(facts: Facts) -> Block:
    """One event: who, when, what, what changed, one link."""
    outcome = f" as {facts.outcome.text}" if facts.outcome else ""
    own = [fact for fact in facts.facts if not fact.foreign]
    return _payload(
        f"{facts.severity.text} in {facts.source}, {facts.kind}{outcome}: {cut(facts.title, HEADER_CHARACTERS)}",
        _first_line(facts),
        _title(facts.title),
        *([{"type": "section", "fields": [_field(fact) for fact in own[:FIELDS]]}] if own else []),
        *_rich_facts([fact for fact in facts.facts if fact.foreign]),
        *([{"type": "section", "text": _plain(facts.description)}] if facts.description else []),
        *([_context(_escaped(facts.note))] if facts.note else []),
        *_last_line(facts),
    )


def digest(digest: Digest) -> Block:
    """Many events: counts, the worst, and why they are not all there."""
    sources = source_list(digest, lambda source, changes: f"*{_escaped(source)}* ({changes})")
    times = _time(digest.begin) if digest.begin == digest.end else f"{_time(digest.begin)} to {_time(digest.end)}"
    why, key = digest.why
    rows = [{"type": "rich_text_section", "elements": _row(facts)} for facts in digest.worst]
    return _payload(
        f"{count(digest.total, 'change')} in {source_list(digest, lambda source, _: source)}: "
        f"{severity_counts(digest.severities)}",
        _header(digest.title),
        _section(f"in {sources}, {times}. {digest.heading}"),
        {
            "type": "rich_text",
            "elements": [{"type": "rich_text_list", "style": "ordered", "indent": 0, "elements": rows}],
        },
        _context(f"{_escaped(why)} (`{key}`)."),
    )


def notice(notice: Notice, *, now: Instant) -> Block:
    """What a sink has to say of itself or of another one."""
    return _skipped(notice) if isinstance(notice, Skipped) else _parked(notice, now)


def _parked(notice: Parked, now: Instant) -> Block:
    reason = notice.what
    fields = [] if reason.foreign else [_mrkdwn(f"*Reason*\n{_escaped(reason.text)}")]
    fields += [_mrkdwn(f"*Since*\n{_time(notice.since)}"), _mrkdwn(f"*Waiting*\n{notice.waits(now)}")]
    if notice.skipped_from is not None:
        fields.append(_mrkdwn(f"*Skipped from*\n{_time(notice.skipped_from)}, the oldest first (`max_age`)"))
    if notice.kept_until is not None:
        fields.append(_mrkdwn(f"*Kept until*\n{_time(notice.kept_until)}"))
    return _payload(
        f"Sink {notice.sink} is parked since {utc(notice.since).partition(' ')[2]}: {reason.text}. "
        f"{count(notice.waiting, 'event')} wait{'s' * (notice.waiting == 1)}. {notice.run}",
        _header(notice.title),
        *(_rich_facts([Fact(label="Reason", after=reason)]) if reason.foreign else []),
        {"type": "section", "fields": fields},
        _section(f"{_escaped(notice.way_out)}\n```{_escaped(notice.run)}```"),
        _context(
            "No other sink is delayed. This notice is sent once, because "
            f"`{_escaped(notice.sink)}` names this sink in `notify`."
        ),
    )


def _skipped(notice: Skipped) -> Block:
    why, key = notice.why
    return _payload(
        f"{notice.title} ({notice.sink})",
        _header(notice.title),
        _section(
            f"{_escaped(why)} (`{key}`). They were last updated from {_time(notice.begin)} to {_time(notice.end)}."
        ),
        _context(_escaped(notice.effect)),
    )


def _payload(text: str, *blocks: Block) -> Block:
    return {"text": _escaped(text), "blocks": list(blocks), "unfurl_links": False, "unfurl_media": False}


def _first_line(facts: Facts) -> Block:
    severity, source = facts.severity.text, facts.source
    if not facts.severity.foreign:
        return _section(f"*{severity}* {facts.phrase} *{_escaped(source)}*, {_time(facts.time)}")
    return _rich_text(
        _run(severity, bold=True), _run(f" {facts.phrase} "), _run(source, bold=True), _run(f", {utc(facts.time)}")
    )


def _title(title: str) -> Block:
    """A header where it fits, else bold text: the end of a title may name the machine."""
    return (
        _header(title)
        if len(title.encode("utf-16-le")) <= 2 * HEADER_CHARACTERS
        else _rich_text(_run(title, bold=True))
    )


def _field(fact: Fact) -> Block:
    if fact.before is None:
        return _mrkdwn(f"*{fact.label}*\n{_escaped(fact.after.text)}")
    return _mrkdwn(f"*{fact.label}*\n{_escaped(fact.before.text)} → *{_escaped(fact.after.text)}*")


def _rich_facts(facts: list[Fact]) -> list[Block]:
    """Facts in which nothing may be parsed, a line each."""
    runs: list[Block] = []
    for fact in facts:
        runs += [_run("\n")] if runs else []
        runs.append(_run(f"{fact.label}  ", bold=True))
        if fact.before is not None:
            runs += [_run(fact.before.text or "none"), _run(" → ")]
        runs.append(_run(fact.after.text or "none", bold=fact.before is not None))
    return [_rich_text(*runs)] if runs else []


def _row(facts: Facts) -> list[Block]:
    title = cut(facts.title, ROW_TITLE_CHARACTERS)
    return [
        _run(facts.severity.text, bold=True),
        _run(f" {facts.kind}  "),
        {"type": "link", "url": facts.link, "text": title} if facts.link else _run(title),
        _run(f"  {facts.source}"),
    ]


def _last_line(facts: Facts) -> list[Block]:
    """The link and the name of the incident, which people paste into a search."""
    elements: list[Block] = []
    if facts.link:
        # Percent-encoded, so that none of Slack's own characters is in it; an ampersand may be in the template.
        elements.append(_mrkdwn(f"<{_escaped(facts.link)}|Open the incident>"))
    if facts.uuid:
        harmless = facts.uuid.isascii() and facts.uuid.replace("-", "").isalnum()
        elements.append(_mrkdwn(f"`{facts.uuid}`") if harmless else _plain(facts.uuid))
    return [{"type": "context", "elements": elements}] if elements else []


def _header(text: str) -> Block:
    return {"type": "header", "text": _plain(cut(text, HEADER_CHARACTERS))}


def _section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn(text)}


def _context(text: str) -> Block:
    return {"type": "context", "elements": [_mrkdwn(text)]}


def _plain(text: str) -> Block:
    return {"type": "plain_text", "text": text, "emoji": False}


def _mrkdwn(text: str) -> Block:
    """Our own words; `verbatim` keeps Slack from making links and mentions of what only looks like some."""
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _rich_text(*runs: Block) -> Block:
    return {"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": list(runs)}]}


def _run(text: str, *, bold: bool = False) -> Block:
    return {"type": "text", "text": text, **({"style": {"bold": True}} if bold else {})}


def _time(instant: Instant) -> str:
    """Shown in each reader's own time zone."""
    return f"<!date^{instant // SECOND}^{_DATE_FORMAT}|{utc(instant)}>"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
