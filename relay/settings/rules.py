"""What must hold between settings, and what is not available yet. Looks at the text, so that all is found at once."""

import os.path
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from relay.settings.document import SINK_TYPES, Document
from relay.settings.layers import Key, Problem
from relay.settings.model import (
    NOT_YET,
    SERVERS,
    FileSink,
    Journal,
    KafkaSink,
    Settings,
    SlackSink,
    TeamsSink,
    WebhookSink,
    folder,
)
from relay.settings.units import format_duration, parse_duration

# What exactly-once delivery depends on: the relay sets these itself, and takes no other value.
OURS: Final[Mapping[str, tuple[str, ...]]] = {
    "acks": ("all", "-1"),
    "request.required.acks": ("all", "-1"),
    "enable.idempotence": ("true",),
    "isolation.level": ("read_committed",),
    "partitioner": ("murmur2_random",),
    "transactional.id": (),
    "group.id": (),
    "enable.auto.commit": ("false",),
    "enable.auto.offset.store": ("false",),
}
JOURNAL_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "sqlite": ("path",),
    "kafka": ("partitions", "replication_factor", "cache_dir"),
}
"""What only one kind of journal takes."""
OWN_TOPICS = ("state", "changes", "dead-letters", "control", "cursors")
INCIDENT_FIELDS = (
    "assigneeUuid",
    "createTime",
    "description",
    "detectionUuids",
    "deviceUuids",
    "displayName",
    "metrics",
    "resolveReason",
    "responseDuration",
    "severity",
    "status",
    "tags",
    "triageDuration",
    "updateTime",
    "uuid",
)
MESSAGE_SINKS = ("webhook", "slack", "teams")
CHAT_SINKS = ("slack", "teams")
SHORT_LOOKBACK = timedelta(minutes=1)
CEILING_PER_SECOND = 10

_T = TypeVar("_T")


def broken(document: Document) -> Iterator[Problem]:
    """Every rule between settings that does not hold."""
    yield from _empty(document)
    yield from _journal(document)
    for label in document.group("sources"):
        yield from _source(document, ("sources", label))
    for label in document.group("sinks"):
        yield from _sink(document, ("sinks", label))
    yield from _options(document, ("kafka",))
    yield from _shared_files(document)


def not_yet(document: Document) -> Iterator[tuple[Problem, Key]]:
    """What the contract knows and this version does not, with the key to leave out so that the rest can be checked."""
    for pattern, values in NOT_YET.items():
        for key in _matching(document, tuple(pattern.split("."))):
            value = document.get(*key)
            if values and not (isinstance(value, str) and value.lower() in values):
                continue
            what = f"{value.lower()} is" if values else "is"
            problem = document.problem(key, f"{what} not available yet in this version; {_instead(key)}")
            yield problem, key[:-1] if key[-1] == "type" else key


def with_keep(document: Document) -> Document:
    """A sink without `keep` keeps no longer than the journal does."""
    retention = document.get("journal", "retention")
    kept = _read(parse_duration, retention)
    if kept is None or kept >= KafkaSink.model_fields["keep"].default:
        return document
    sinks = {
        label: {"keep": retention, **sink} if isinstance(sink, dict) else sink
        for label, sink in document.group("sinks").items()
    }
    return replace(document, values={**document.values, "sinks": sinks}) if sinks else document


def doubtful(settings: Settings) -> Iterator[str]:
    """What works and is probably not meant."""
    for label, source in settings.sources.items():
        if source.lookback < SHORT_LOOKBACK:
            yield (
                f"sources.{label}.lookback is under 1m: what ESET shows later than that is not read by polling; "
                "5m is the default"
            )
    if settings.api.requests_per_second > CEILING_PER_SECOND:
        yield "api.requests_per_second is above 10, where ESET answers 429; 8 leaves room for retries"
    for label, sink in settings.sinks.items():
        if isinstance(sink, WebhookSink) and _is_open(sink.url.reveal()):
            yield f"sinks.{label}.url is not encrypted: whoever is on the way can read the incidents; use https"
        if isinstance(sink, WebhookSink | SlackSink | TeamsSink) and sink.retry[0]:
            yield f"sinks.{label}.retry does not begin with 0s: the first attempt is made at once all the same"
        if isinstance(sink, FileSink) and settings.journal.kind == "kafka":
            yield (
                f"sinks.{label}.path is written on whichever replica owns the sink, since journal.kind is kafka: "
                "its events may lie in several files"
            )
        if isinstance(sink, KafkaSink) and settings.is_inline(label):
            yield from _doubtful_inline(settings, label, sink)
        for name in sink.omit:
            if name not in INCIDENT_FIELDS:
                yield f"sinks.{label}.omit names {name}, which is no field of an incident that is known today"


def _doubtful_inline(settings: Settings, label: str, sink: KafkaSink) -> Iterator[str]:
    why = "the sink is written in the poll's own transaction"
    if sink.start == "earliest" and "start" in sink.model_fields_set:
        yield f"sinks.{label}.start is earliest, but an inline sink starts at now: {why}"
    for name, value in sink.kafka.items():
        if settings.kafka.get(name) != value:
            yield f"sinks.{label}.kafka.{name} counts for nothing: {why}, with the options of the top-level kafka"


def _is_open(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def _empty(document: Document) -> Iterator[Problem]:
    if document.get("sources") in (None, {}):
        yield document.problem(
            ("sources",), "is empty; add a tenant: sources: {acme: {region: eu, username: …, password_file: …}}"
        )
    if document.get("sinks") in (None, {}):
        yield document.problem(("sinks",), "is empty; add where events go, such as sinks: {out: {type: stdout}}")


def _journal(document: Document) -> Iterator[Problem]:
    kind = _journal_kind(document)
    for other, names in JOURNAL_KEYS.items():
        for name in names:
            if kind in JOURNAL_KEYS and kind != other and document.get("journal", name) is not None:
                yield document.problem(("journal", name), f"goes with kind: {other}; remove it, or write that")
    if kind == "kafka" and document.get("kafka", SERVERS) is None:
        yield document.problem(("kafka", SERVERS), "is missing; the journal needs it, such as kafka.example:9092")


def _journal_kind(document: Document) -> str:
    kind = document.get("journal", "kind")
    return kind if isinstance(kind, str) else Journal.model_fields["kind"].default


def _source(document: Document, at: Key) -> Iterator[Problem]:
    source = document.group(*at)
    urls = [name for name in ("base_url", "token_url") if source.get(name) is not None]
    if source.get("region") is not None and urls:
        yield document.problem((*at, urls[0]), "contradicts region; keep region, or base_url and token_url")
    elif len(urls) == 1:
        missing = "token_url" if urls == ["base_url"] else "base_url"
        yield document.problem((*at, missing), f"is missing; it goes with {urls[0]}")
    elif source.get("region") is None and not urls and isinstance(document.get(*at), dict):
        yield document.problem(
            (*at, "region"), "is missing; write one of eu, de, us, ca, jpn, or base_url and token_url"
        )
    initial, longest = (_read(parse_duration, document.get(*at, "backoff", name)) for name in ("initial", "max"))
    if (initial or timedelta(seconds=1)) > (longest or timedelta(minutes=5)):
        yield document.problem((*at, "backoff", "initial"), "is longer than backoff.max; shorten it")
    tls = document.group(*at, "tls")
    if tls.get("key_file") is not None and tls.get("cert_file") is None:
        yield document.problem((*at, "tls", "key_file"), "needs cert_file, the certificate that goes with it")


def _sink(document: Document, at: Key) -> Iterator[Problem]:
    retention = _read(parse_duration, document.get("journal", "retention")) or Journal.model_fields["retention"].default
    keep = _read(parse_duration, document.get(*at, "keep"))
    if keep is not None and keep > retention:
        longest = format_duration(retention)
        yield document.problem((*at, "keep"), f"is longer than journal.retention; at most {longest}, or raise that")
    kind = document.get(*at, "type")
    if kind == "kafka":
        yield from _kafka_sink(document, at)
    if kind in MESSAGE_SINKS:
        yield from _message_sink(document, at)


def _message_sink(document: Document, at: Key) -> Iterator[Problem]:
    told = document.get(*at, "notify")
    if isinstance(told, str) and told:
        wrong = _wrong_notify(document, told, own=at[1])
        if wrong:
            yield document.problem((*at, "notify"), f"{wrong}; name one of type slack or teams, or remove it")
    tls = document.group(*at, "tls")
    if tls.get("key_file") is not None and tls.get("cert_file") is None:
        yield document.problem((*at, "tls", "key_file"), "needs cert_file, the certificate that goes with it")


def _wrong_notify(document: Document, told: str, *, own: str) -> str:
    if told == own:
        return "names the sink itself"
    if told not in document.group("sinks"):
        return "names no sink"
    kind = document.get("sinks", told, "type")
    return (
        ""
        if kind in CHAT_SINKS or not isinstance(kind, str) or kind not in SINK_TYPES
        else "names a sink that nobody reads"
    )


def _kafka_sink(document: Document, at: Key) -> Iterator[Problem]:
    if document.get("kafka", SERVERS) is None and document.get(*at, "kafka", SERVERS) is None:
        yield document.problem(("kafka", SERVERS), f"is missing; {at[1]} needs it, such as kafka.example:9092")
    prefix = document.get("kafka_prefix") or Settings.model_fields["kafka_prefix"].default
    if document.get(*at, "topic") in [f"{prefix}.{name}" for name in OWN_TOPICS]:
        yield document.problem((*at, "topic"), "is a topic of the relay's own; choose another, or change kafka_prefix")
    yield from _options(document, (*at, "kafka"))


def _options(document: Document, at: Key) -> Iterator[Problem]:
    for name, values in OURS.items():
        given = document.get(*at, name)
        if given is not None and given not in values:
            yield document.problem((*at, name), "is set by the relay, which depends on it; remove it")


def _shared_files(document: Document) -> Iterator[Problem]:
    name, default = ("cache_dir", "relay-cache") if _journal_kind(document) == "kafka" else ("path", "relay.db")
    journal = document.get("journal", name)
    owners = {_real(journal if isinstance(journal, str) else default): "the journal"}
    for label, sink in document.group("sinks").items():
        path = sink.get("path") if isinstance(sink, dict) and sink.get("type") == "file" else None
        if isinstance(path, str) and path:
            owner = owners.setdefault(_real(path), f"sinks.{label}")
            if owner != f"sinks.{label}":
                yield document.problem(("sinks", label, "path"), f"is the file of {owner} already; choose another")


def _real(path: str) -> str:
    try:
        return os.path.realpath(folder.get() / path)
    except ValueError:  # a NUL in it, which the check of the path itself finds
        return path


def _matching(document: Document, pattern: Key, at: Key = ()) -> Iterator[Key]:
    """The keys of the document that fit a pattern, in which `*` is any label."""
    if not pattern:
        yield at
        return
    group = document.group(*at)
    for name in list(group) if pattern[0] == "*" else [pattern[0]]:
        if name in group:
            yield from _matching(document, pattern[1:], (*at, name))


def _instead(key: Key) -> str:
    return "use native" if key[-1] == "format" else "remove it"


def _read(parse: Callable[[str], _T], value: Any) -> _T | None:
    """The parsed value, or None when it is absent or wrong; that is another check's business."""
    try:
        return parse(value) if isinstance(value, str) else None
    except ValueError:
        return None
