"""What arrived in the channel, and which changes it stands for. Pure: reads Block Kit as people do, by what it shows.

A message shows no event id: it is known by incident, kind and second. A digest names the ten worst and counts the rest,
so that which of the others it stands for is worked out from their severities and times.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from relay.clock import SECOND, Instant
from relay.demo.checker import Arrival, Comparison, Owed
from relay.words import count, number

_KINDS: Final = "created|updated|closed|reopened|missing|restored"
_ONE: Final = re.compile(rf"(?P<severity>\S+) in (?P<source>[a-z0-9_]+), (?P<kind>{_KINDS})(?: as \S+)?: ")
_MANY: Final = re.compile(r"(?P<total>[\d,]+) changes? in .*: (?P<counts>\d[^:]*)")
_COUNT: Final = re.compile(r"([\d,]+) (\S+?)(?:,|$)")
_TIME: Final = re.compile(r"<!date\^(\d+)\^[^>]*>|(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC")
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_COUNTED: Final = frozenset({"HIGH", "MEDIUM", "LOW", "UNSPECIFIED"})
Shown = tuple[str, str, str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One version, by what is shown of it. `second` is its update time, in Unix seconds."""

    source: str
    uuid: str
    kind: str
    severity: str
    second: int
    at: Instant

    @property
    def shown(self) -> Shown:
        """What it can be told from others by."""
        return self.source, self.uuid, self.kind, self.severity, self.second


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """One message for many: counts by severity, the incidents and kinds that are listed, first and last second."""

    total: int
    severities: Mapping[str, int]
    listed: Sequence[tuple[str, str, str]]
    begin: int
    end: int
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What is said of a sink."""

    text: str
    at: Instant


Post = Message | Digest | Notice


def post_of(body: bytes, *, at: Instant) -> Post:
    """What a body shows; what is neither message nor digest is a notice."""
    try:
        payload = msgspec.json.decode(body, type=dict[str, Any])
        text, blocks = str(payload["text"]), payload["blocks"]
    except (msgspec.MsgspecError, KeyError):
        return Notice(text="", at=at)
    shown = list(_texts(blocks))
    seconds = [second for piece in shown for second in _seconds(piece)]
    one, many = _ONE.match(text), _MANY.fullmatch(text)
    uuids = [match[0] for piece in shown[-2:] for match in _UUID.finditer(piece)]
    if many is not None and seconds:
        return Digest(
            total=int(many["total"].replace(",", "")),
            severities={name: int(events.replace(",", "")) for events, name in _COUNT.findall(many["counts"])},
            listed=list(_rows(blocks)),
            begin=seconds[0],
            end=seconds[-1],
            at=at,
        )
    if one is not None and seconds and uuids:
        return Message(
            source=one["source"], uuid=uuids[-1], kind=one["kind"], severity=one["severity"], second=seconds[0], at=at
        )
    return Notice(text=text, at=at)


def compare_posts(sink: str, owing: Sequence[Owed], posts: Sequence[Post]) -> tuple[Comparison, str]:
    """The channel against the changes that it was owed, and how it was counted.

    A version may be superseded by a newer one of its incident; the newest of each has to be stood for.
    """
    stood: dict[str, Arrival] = {}
    repeats, unknown, misplaced = [], [], []
    reached: dict[tuple[str, str], int] = {}
    for post, version in _told_apart(owing, [post for post in posts if isinstance(post, Message)]):
        arrival = _arrival(post, version)
        if version is None:
            unknown.append(arrival)
        elif arrival.id in stood:
            repeats.append(arrival)
        else:
            stood[arrival.id] = arrival
            incident = (post.source, post.uuid)
            if arrival.sequence < reached.get(incident, 0):
                misplaced.append(arrival)
            reached[incident] = max(arrival.sequence, reached.get(incident, 0))
    digests = [post for post in posts if isinstance(post, Digest)]
    singles = len(stood)
    total = sum(digest.total for digest in digests)
    newest = {(one.source, one.uuid): one for one in owing}
    left = _not_listed([one for one in newest.values() if one.id not in stood], digests)
    messages = sum(not isinstance(post, Notice) for post in posts)
    missing = _not_counted(left, digests)
    superseded = len(owing) - singles - total - len(missing)
    rest = (
        f"{number(superseded)} superseded" if superseded >= 0 else f"{number(-superseded)} counted again after a kill"
    )
    stand = f"{count(messages, 'message')} {'stands' if messages == 1 else 'stand'} for {count(len(owing), 'change')}"
    note = f"{stand}: {count(len(digests), 'digest')}, {rest}"
    comparison = Comparison(
        sink=sink,
        owed=len(owing),
        arrived=messages,
        missing=missing,
        repeats=repeats,
        unknown=unknown,
        altered=[],
        misplaced=misplaced,
        delayed=[],
        may_repeat=True,
        lags=[],
    )
    return comparison, note


def _told_apart(owing: Sequence[Owed], messages: Sequence[Message]) -> Iterator[tuple[Message, Owed | None]]:
    """Each message with its version. Of versions that look the same, fewer messages stand for the newer ones."""
    versions: dict[Shown, list[Owed]] = {}
    for one in owing:
        shown = (one.source, one.uuid, one.kind, one.severity, one.updated // SECOND)
        versions.setdefault(shown, []).append(one)
    left = Counter(message.shown for message in messages)
    for message in messages:
        there = [one for one in versions.get(message.shown, []) if one.since <= message.at]
        yield message, there[max(0, len(there) - left[message.shown])] if there else None
        left[message.shown] -= 1


def _not_listed(newest: Sequence[Owed], digests: Sequence[Digest]) -> list[Owed]:
    """Those that no digest names."""
    return [
        one
        for one in newest
        if not any((one.uuid, one.kind) in [row[:2] for row in d.listed] and _fits(one, d) for d in digests)
    ]


def _not_counted(left: Sequence[Owed], digests: Sequence[Digest]) -> list[Owed]:
    """Those for which no digest has room among what it counts and does not list.

    By time, each into the digest that ends first: no other choice finds room for more.
    """
    room = [Counter(digest.severities) for digest in digests]
    for rest, digest in zip(room, digests, strict=True):
        rest.subtract(_counted(severity) for _, _, severity in digest.listed)
    missing = []
    for one in sorted(left, key=lambda version: version.updated):
        name = _counted(one.severity)
        fitting = [at for at, digest in enumerate(digests) if room[at][name] > 0 and _fits(one, digest)]
        if fitting:
            room[min(fitting, key=lambda at: digests[at].end)][name] -= 1
        else:
            missing.append(one)
    return missing


def _fits(one: Owed, digest: Digest) -> bool:
    """Whether it may stand for this version: by time, and it was there already."""
    return digest.begin <= one.updated // SECOND <= digest.end and one.since <= digest.at


def _counted(severity: str) -> str:
    return severity if severity in _COUNTED else "other"


def _arrival(post: Message, version: Owed | None) -> Arrival:
    return Arrival(
        id=version.id if version else "",
        source=post.source,
        uuid=post.uuid,
        sequence=version.sequence if version else 0,
        kind=post.kind,
        content=b"",
        at=post.at,
    )


def _rows(blocks: Any) -> Iterator[tuple[str, str, str]]:
    """Incident, kind and severity of each row of a digest's list; the incident stands in the link."""
    for block in blocks:
        for part in block.get("elements", []):
            for row in part.get("elements", []) if part.get("type") == "rich_text_list" else []:
                severity, kind, title = row["elements"][:3]
                uuid = _UUID.search(str(title.get("url", "")))
                yield uuid[0] if uuid else "", str(kind["text"]).strip(), str(severity["text"])


def _texts(block: Any) -> Iterator[str]:
    """Every text, in the order in which it is read."""
    if isinstance(block, str):
        yield block
    elif isinstance(block, list):
        for one in block:
            yield from _texts(one)
    elif isinstance(block, dict):
        for name in ("text", "fields", "elements"):
            yield from _texts(block.get(name))


def _seconds(text: str) -> Iterator[int]:
    for match in _TIME.finditer(text):
        if match[1]:
            yield int(match[1])
        else:
            yield int(datetime.strptime(match[2], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp())
