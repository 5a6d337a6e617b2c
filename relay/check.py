"""`relay check`: tries everything that the configuration names, a line each, with the cure where it failed.

It sends no event, and may run beside a running relay. A Kafka sink's topic of positions is made if it is missing,
those of a journal on Kafka are not.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import msgspec

from relay import control
from relay.assembly import Accounts, make_client, make_journal, make_sink
from relay.clock import Clock, Instant, SystemClock
from relay.errors import (
    AccessDenied,
    BadAnswer,
    ConfigError,
    Gone,
    JournalError,
    JournalLocked,
    LoginRefused,
    RelayError,
    SinkError,
    SourceError,
)
from relay.eset.auth import Account
from relay.eset.client import EsetClient, Patience
from relay.eset.wire import DecodedPage, decode_page
from relay.incidents import Known
from relay.journal import Way
from relay.metrics import Metrics
from relay.passes import sound
from relay.settings import REGIONS, KafkaSink, Secret, Settings, SlackSink, Source, TeamsSink, Tls, WebhookSink
from relay.signing import secrets_in
from relay.states import VIEWS, View
from relay.status import FULL_RATIO, CheckLine, own_words
from relay.transport import (
    NETWORK_ERRORS,
    certificate_fault,
    connect,
    http_client,
    proxy_for,
    proxy_status,
    tls_context,
)
from relay.words import count, inert, moment, number, sentence, span

if TYPE_CHECKING:
    from relay.rules import Rule

PATIENCE_SECONDS: Final = 60.0
"""How long one source or sink may take, its retries included."""
PATIENCE: Final = Patience(total_seconds=30.0, tries=2)
"""A person waits: one more try tells a hiccup from a failure."""
SOURCES_AT_ONCE: Final = 8
SKEW_SECONDS: Final = 5.0
REFUSED_SKEW_SECONDS: Final = 300.0
"""Receivers by Standard Webhooks refuse a signature whose time is further off."""
ROOM_RATIO: Final = 2.5
"""The journal's volume needs so many times `max_bytes`: for the file, its log and a copy while migrating."""
NO_ROOM_BYTES: Final = 1 << 20
"""A page of incidents takes about as much."""
UNKNOWN_JOURNAL: Final = "check"
"""Stands in for the journal's id, which is only known once it is open."""
STOPPED: Final = ("parked", "disabled")
"""The states of a sink that last until a person ends them."""

KNOWN_INCIDENTS: Final = 1000
"""Rules are tried on so many incidents of the ledger."""
CLOSE_SECONDS: Final = 2.0
AGAIN: Final = "relay check"
# Why there was no answer: what is said of the host, and the cure; `{what}` is `source` or `sink`.
_UNREACHED: Final[Mapping[str, tuple[str, str]]] = {
    "address": (
        "{host} is link-local or a metadata service, which no sink is let reach",
        "Let url of this sink lead elsewhere, then:",
    ),
    "dns": ("{host} cannot be resolved", "Check {urls} of this {what}, and the DNS of this machine, then:"),
    "connect": ("{host} refused the connection", "Let this machine reach that host, directly or by a proxy, then:"),
    "timeout": ("{host} did not answer", "Let this machine reach that host, directly or by a proxy, then:"),
    "reset": ("{host} cut the connection", "See whether a firewall or a proxy stands in between, then:"),
    "proxy": (
        "the proxy {proxy} on the way to {host} cannot be reached",
        "Check {key}, and that the proxy runs, then:",
    ),
    "tls": (
        "TLS with {host} failed: it does not speak TLS there, or demands a certificate of ours",
        "Check {urls} of this {what}, and tls.cert_file where the far side demands one, then:",
    ),
}
# The same for what only a sink is told; the text is that of its error.
_SINK_UNREACHED: Final[Mapping[str, str]] = {
    "truncated": "See whether a firewall or a proxy stands in between, then:",
    "protocol": "See whether url of this sink, and its proxy, speak HTTP, then:",
}
_PROXY_REFUSED: Final[Mapping[int, tuple[str, str]]] = {
    403: (
        "the proxy {proxy} answered 403: it does not let this machine through to {host}",
        "Have {hosts} allowed on the proxy, then:",
    ),
    407: (
        "the proxy {proxy} answered 407: it wants another user name and password",
        "Write them into {key}, as in http://user:password@proxy:3128, then:",
    ),
}
_PROXY_FAILED: Final = (
    "the proxy {proxy} answered {status} on the way to {host}",
    "See on the proxy why it does not reach that host, then:",
)
# By OpenSSL's code of what is wrong with a certificate.
_CERTIFICATES: Final[Mapping[int, tuple[str, str]]] = {
    9: (
        "TLS with {host} failed: its certificate is not valid yet",
        "Let NTP set the clock of this machine; if it is right, have the certificate corrected. Then:",
    ),
    10: (
        "TLS with {host} failed: its certificate has expired",
        "Have it renewed; if it is in date, let NTP set the clock of this machine. Then:",
    ),
    62: ("TLS with {host} failed: its certificate is for another name", "Check {urls} of this {what}, then:"),
    64: ("TLS with {host} failed: its certificate is for another address", "Check {urls} of this {what}, then:"),
}
_UNTRUSTED: Final = (
    "TLS with {host} failed: its certificate is of an authority that this machine does not trust",
    "Name that authority (that of the proxy, where one inspects TLS) in tls.ca_file of this {what}, then:",
)
_WHY_SECONDS: Final = 10.0
"""For a second connection, which only tells why there was none."""
_HOSTS: Final = (
    "Let base_url and token_url of this source lead to ESET Connect, with nothing that answers in its place, then:"
)
_GIVEN_UP: Final = "Correct the cause, then let it go on with the oldest waiting event:"
_CONNECTOR_HOSTS: Final = (".webhook.office.com", ".outlook.office.com")
_WORKFLOW_HOSTS: Final = (".logic.azure.com", ".api.powerplatform.com", ".logic.azure.us", ".api.powerplatform.us")
_DENIED: Final[Mapping[int, str]] = {
    401: "Let base_url and token_url of this source name hosts of one region, then:",
    403: (
        "In ESET PROTECT Hub or Business Account, switch Integrations on for this user and give it access to "
        "ESET PROTECT and Inspect; see that the account has a licence for them. Then:"
    ),
    404: "Check {where} of this source: an account lives in one region only ({regions}). Then:",
    501: "Use a region and a licence that offer incident management, then:",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What the journal holds, as far as it could be looked at: an incident is there with its source.

    `incidents` is None when they cannot be had, and `why` then says it. `stopped` are the sinks that a person has to
    set going, each with its state and the reason. `usable`: it was not found to be wrong.
    """

    journal_id: str = UNKNOWN_JOURNAL
    incidents: Sequence[tuple[str, Known]] | None = ()
    why: str = ""
    stopped: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    usable: bool = True


async def check(settings: Settings, *, offline: bool) -> list[CheckLine]:
    """Tries all of it; `offline` only reads the configuration. Never raises for what it finds."""
    rules, refused = _rules(settings)
    lines = [*_configuration(settings), *refused]
    if offline:
        return lines
    clock = SystemClock()
    journal, held = await _journal(settings, clock)
    sources, sinks = await asyncio.gather(
        _sources(settings, clock),
        asyncio.gather(*(_sink(name, settings, held) for name in settings.sinks)),
    )
    tried = {name: list(_rule_tried(name, settings, rules, held)) for name in settings.sinks}
    return [*lines, *journal, *sources, *(line for one in sinks for line in (one, *tried[one.name]))]


def _configuration(settings: Settings) -> list[CheckLine]:
    where = settings.path.name if settings.path is not None else "the environment"
    counts = f"{count(len(settings.sources), 'source')}, {count(len(settings.sinks), 'sink')}"
    lines = [CheckLine(outcome="ok", name="configuration", text=f"{where}: {counts}, no unknown key")]
    return lines + [CheckLine(outcome="warn", name="configuration", text=text) for text in settings.warnings]


# -- rules ------------------------------------------------------------------------------------------------------------


def _rules(settings: Settings) -> tuple[dict[str, "Rule"], list[CheckLine]]:
    """The rules that can be read, and a line for everything that is wrong or doubtful."""
    wanted = {name: sink.when for name, sink in settings.sinks.items() if sink.when is not None}
    if not wanted:
        return {}, []
    from relay.rules import Rule, RuleError  # noqa: PLC0415  # its library is large, and most sinks have no rule

    rules: dict[str, Rule] = {}
    lines = []
    for name, text in wanted.items():
        where = f"sinks.{name}.when"
        try:
            rules[name] = Rule(text)
        except RuleError as error:
            lines.append(_failed("configuration", *_with_hint(f"{where} {error}")))
            continue
        lines += [
            CheckLine(outcome="warn", name="configuration", text=f"{where} {warning}")
            for warning in rules[name].warnings
        ]
    return rules, lines


def _rule_tried(name: str, settings: Settings, rules: Mapping[str, "Rule"], held: _Held) -> Iterator[CheckLine]:
    """How many of the known incidents the sink would get: one with a rule, or one that people read."""
    sink = settings.sinks[name]
    rule = rules.get(name)
    if (rule is None and not isinstance(sink, SlackSink | TeamsSink)) or (rule is None and sink.when is not None):
        return
    subject = "rule" if rule is not None else "no rule"
    if held.incidents is None:
        yield CheckLine(outcome="skip", name=name, text=f"{subject}; no known incident can be looked at: {held.why}")
        return
    total = len(held.incidents)
    if not total:
        yield CheckLine(outcome="ok", name=name, text=f"{subject}; no incident is known yet that it could match")
        return
    matches = [rule.matches_known(known, source=source) for source, known in held.incidents] if rule else []
    untold = sum(bool(match.error) for match in matches)
    matched = sum(match.matched and not match.error for match in matches) if rule else total
    known = "the 1 known incident" if total == 1 else f"the last {count(total, 'known incident')}"
    text = f"{subject} matches {'all' if matched == total else number(matched)} of {known}"
    if untold:
        text = f"{text}; {number(untold)} more cannot be told from what is kept of them, and would be sent"
    yield CheckLine(outcome="ok", name=name, text=text if rule else f"no rule: {text.removeprefix('no rule ')}")


# -- journal ----------------------------------------------------------------------------------------------------------


async def _journal(settings: Settings, clock: Clock) -> tuple[list[CheckLine], _Held]:
    """Its lines, and what it holds if it could be opened, or if the relay that holds it told."""
    if settings.journal.kind == "kafka":
        return await _kafka_journal(settings)
    path = settings.journal.path
    if not _exists(path) and not _exists(path.with_name(f"{path.name}-wal")):
        return _new_journal(path, settings.journal.max_bytes), _Held()
    journal = make_journal(settings, clock=clock)
    try:
        await journal.open()
        used = (await journal.use()).used_bytes
        held = _Held(
            journal_id=journal.id,
            incidents=await journal.latest_incidents(KNOWN_INCIDENTS),
            stopped={
                sink.name: (sink.endpoint.state, sink.endpoint.reason)
                for sink in await journal.sinks()
                if sink.endpoint.state in STOPPED
            },
        )
    except JournalLocked as error:
        holder = re.search(r"held by (.+?);", str(error))
        unread = _Held(incidents=None, why="a running relay holds the journal", stopped=await _told_stopped(settings))
        if holder is None:
            return [_failed("journal", *_with_hint(str(error)))], unread
        text = f"{path.name} is held by a running relay, {holder[1]}"
        return [CheckLine(outcome="ok", name="journal", text=text)], unread
    except JournalError as error:
        return [_failed("journal", *_with_hint(str(error)))], _Held(incidents=None, why="the journal cannot be read")
    finally:
        await journal.close()
    text = f"{path.name} opens, is not locked, {_amount(used, of=settings.journal.max_bytes)}"
    line = CheckLine(outcome="ok", name="journal", text=text)
    if used >= FULL_RATIO * settings.journal.max_bytes:
        text = f"{path.name} is full, {_amount(used, of=settings.journal.max_bytes)}"
        line = _failed("journal", text, "Bring back the sink that events wait for, or raise journal.max_bytes, then:")
    return [line, *_room(path, settings.journal.max_bytes)], held


async def _told_stopped(settings: Settings) -> dict[str, tuple[str, str]]:
    """The sinks that a running relay has stopped sending to, as it tells; none when it does not."""
    if not settings.admin_socket_path.exists():
        return {}
    content = msgspec.json.encode(control.ListSinks())
    try:
        answer = await asyncio.to_thread(
            control.ask_running, settings.admin_socket_path, "POST", "/api/commands", content=content
        )
    except RelayError:
        return {}
    rows = answer["sinks"] if answer is not None else []
    return {
        row["name"]: (row["state"], (row["last_error"] or {}).get("text", ""))
        for row in rows
        if row["state"] in STOPPED and row["configured"]
    }


def _exists(path: Path) -> bool:
    """False as well where this user may not look."""
    try:
        return path.exists()
    except OSError:
        return False


def _new_journal(path: Path, max_bytes: int) -> list[CheckLine]:
    """Looks, and leaves nothing behind."""
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
        cure = "Give the relay a folder that it can write, or name another journal.path. To try again:"
        return [_failed("journal", f"{path.name} cannot be made in {path.parent}", cure)]
    line = CheckLine(outcome="ok", name="journal", text=f"{path.name} does not exist yet and can be made")
    return [line, *_room(path, max_bytes)]


def _room(path: Path, max_bytes: int) -> list[CheckLine]:
    """A failure when nothing more fits on the volume, a warning when it is too small for the journal at its largest."""
    held = path.stat().st_size if path.exists() else 0
    return _room_on(path.parent, "journal", path.name, held=held, max_bytes=max_bytes)


def _room_on(folder: Path, what: str, name: str, *, held: int, max_bytes: int) -> list[CheckLine]:
    free = shutil.disk_usage(folder).free
    if free < NO_ROOM_BYTES:
        text = f"no room is left on the volume of {name}, {_amount(free)} are free"
        return [_failed("journal", text, "Make room there; a relay that waits for it goes on by itself. Then:")]
    room = free + held
    if room >= ROOM_RATIO * max_bytes:
        return []
    text = (
        f"{_amount(room)} are there for {name}; journal.max_bytes = {_amount(max_bytes)} wants "
        f"{_amount(int(ROOM_RATIO * max_bytes))}"
    )
    cure = (
        f"Give the {what} a larger volume, or lower journal.max_bytes. On a full disk polling stops; nothing is lost."
    )
    return [CheckLine(outcome="warn", name="journal", text=text, cure=cure)]


# -- journal on Kafka -------------------------------------------------------------------------------------------------


async def _kafka_journal(settings: Settings) -> tuple[list[CheckLine], _Held]:
    """Its lines, and what can be told of it without taking part."""
    from relay.journal.kafka.journal import topic_plans  # noqa: PLC0415  # a file needs nothing of it
    from relay.journal.kafka.partition import Topics  # noqa: PLC0415
    from relay.journal.kafka.probe import Probe  # noqa: PLC0415

    chosen, prefix = settings.journal, settings.kafka_prefix
    topics = Topics(prefix=prefix)
    cache = _cache(settings)
    unusable = _Held(incidents=None, why="the journal cannot be read", usable=False)
    try:
        probe = Probe(settings.journal_kafka_options(), prefix=prefix, replication_factor=chosen.replication_factor)
    except ConfigError as error:
        return [_failed("journal", str(error), "Correct the configuration, then:"), *cache], unusable
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            found = await probe.journal(topic_plans(topics, chosen.partitions, chosen.retention.total_seconds()))
        if found.meta is not None:
            found.meta.require_usable(topics)
            found.meta.require_partitions(chosen.partitions, topics)
    except TimeoutError:
        text = f"no answer within {PATIENCE_SECONDS:g} s"
        return [_failed("journal", text, "See whether the brokers answer at all, then:"), *cache], unusable
    except (ConfigError, SinkError, JournalError) as error:
        return [_failed("journal", *_with_hint(str(error).removeprefix("the journal on Kafka: "))), *cache], unusable
    finally:
        await probe.close()
    begun = found.meta is not None
    held = _Held(
        journal_id=found.meta.id if found.meta is not None else UNKNOWN_JOURNAL,
        incidents=None if begun else (),
        why="what is known of them is in Kafka",
        stopped=await _told_stopped(settings) if found.members else {},
    )
    text = "; ".join(
        [
            found.cluster,
            f"journal {prefix} with {count(chosen.partitions, 'partition')}" + ("" if begun else ", not begun yet"),
            *([f"the first start makes the topics {_listed(found.missing)}"] if found.missing else []),
            f"a transaction was {'committed' if found.committed else 'begun'}",
            f"{count(found.members, 'replica')} run" if found.members > 1 else f"{found.members or 'no'} replica runs",
        ]
    )
    return [CheckLine(outcome="ok", name="journal", text=text), *cache], held


def _cache(settings: Settings) -> list[CheckLine]:
    """Whether the cache can be written, beside a relay that holds it, and has the room for all that may wait in it."""
    path = settings.journal.cache_dir
    folder = next(one for one in (path, *path.parents) if _exists(one))
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        text = f"the cache {path.name} cannot be {'written' if folder == path else f'made in {folder}'}"
        cure = "Name a folder on a local disk that the relay can write in journal.cache_dir. To try again:"
        return [_failed("journal", text, cure)]
    held = sum(file.stat().st_size for file in path.glob("*.db*")) if folder == path else 0
    waits = any(not settings.is_inline(name) for name in settings.sinks)
    return _room_on(folder, "cache", path.name, held=held, max_bytes=settings.journal.max_bytes if waits else 0)


async def _inline(name: str, chosen: KafkaSink, settings: Settings, held: _Held) -> CheckLine:
    """A sink that is written with the polls: all but its topic is the journal's."""
    from relay.journal.kafka.probe import Probe  # noqa: PLC0415

    if not held.usable:
        return CheckLine(outcome="skip", name=name, text="written with the polls, which need the journal first")
    creation = chosen.create_topic
    try:
        probe = Probe(settings.journal_kafka_options(), prefix=settings.kafka_prefix)
        try:
            found = await probe.topic(
                chosen.topic,
                create=creation is not None,
                partitions=creation.partitions if creation else 1,
                replication_factor=creation.replication_factor if creation else -1,
            )
        finally:
            await probe.close()
    except (ConfigError, SinkError) as error:
        text, cure = _with_hint(str(error).removeprefix("the journal on Kafka: "))
        return _failed(name, text, cure or "Polling waits for it. To try again:")
    return CheckLine(outcome="ok", name=name, text=f"written with the polls; {found}")


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _amount(size: int, of: int | None = None) -> str:
    """`3.94 GiB`; with `of`, both in its unit: `3.94 of 5 GiB`."""
    unit, name = (1 << 30, "GiB") if (of or size) >= 1 << 30 else (1 << 20, "MiB")
    shown = [f"{amount / unit:,.2f}".rstrip("0").rstrip(".") for amount in (size, of) if amount is not None]
    return f"{' of '.join(shown)} {name}"


# -- sources ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Visit:
    """One source on its way through login, a page and both views: what went well, and what was noticed."""

    name: str
    source: Source
    account: Account
    client: EsetClient
    clock: Clock
    done: list[str] = field(default_factory=list)
    bad_records: int = 0
    skew_seconds: float = 0.0
    ways: dict[View, Way] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The region, or the host of an explicit base_url."""
        return self.source.region or urlsplit(self.source.endpoints[0]).netloc

    @property
    def where(self) -> str:
        """The keys that say which region is asked."""
        return "region" if self.source.region else "base_url and token_url"

    @property
    def host(self) -> str:
        """The host that is being asked: that of the login first."""
        return self.way.host

    @property
    def way(self) -> "_Way":
        """To the host that is being asked."""
        source = self.source
        return _Way(
            what="source",
            urls="region" if source.region else "base_url and token_url",
            url=source.endpoints[0 if self.done else 1],
            hosts=tuple(dict.fromkeys(urlsplit(url).hostname or "" for url in source.endpoints[::-1])),
            proxy=source.proxy,
            tls=source.tls,
        )

    async def make(self) -> None:
        """Tries all of it. Raises SourceError, ConfigError."""
        began = self.clock.monotonic()
        await self.account.token()
        self.done.append(f"logged in to {self.place} in {self._seconds_since(began)}")
        began = self.clock.monotonic()
        page = await self._page(size=self.source.page_size)
        self.bad_records = len(page.bad)
        rows = len(page.observed) + len(page.bad)
        size = f"one page of {number(rows)}" if rows else "an empty page"
        self.done.append(f"{size} in {self._seconds_since(began)}")
        for view in VIEWS:
            self.ways[view] = await sound(self.client, view)
        if all(way.mode == "keyset" for way in self.ways.values()):
            self.done.append("keyset on both views")

    async def _page(self, *, size: int) -> DecodedPage:
        answer = await self.client.list_incidents(filter="", order_by="", page_size=size, decode=decode_page)
        self.skew_seconds = answer.skew_seconds or 0.0
        return answer.content

    def _seconds_since(self, began: float) -> str:
        return f"{self.clock.monotonic() - began:.1f} s"


async def _sources(settings: Settings, clock: Clock) -> list[CheckLine]:
    metrics = Metrics(clock)
    accounts = Accounts(settings, metrics=metrics, clock=clock, patience=PATIENCE)
    turns = asyncio.Semaphore(SOURCES_AT_ONCE)

    async def visit(name: str, source: Source) -> tuple[CheckLine, float]:
        async with turns:
            return await _source(name, source, accounts=accounts, metrics=metrics, clock=clock)

    try:
        visits = await asyncio.gather(*(visit(name, source) for name, source in settings.sources.items()))
    finally:
        await accounts.close()
    skew = max((skew for _, skew in visits), key=abs, default=0.0)
    return [line for line, _ in visits] + _clock_lines(skew)


async def _source(
    name: str, source: Source, *, accounts: Accounts, metrics: Metrics, clock: Clock
) -> tuple[CheckLine, float]:
    """The line of one source, and how far ESET's clock is ahead of ours."""
    try:
        account = accounts.of(name, source)
        client = make_client(name, source, accounts=accounts, metrics=metrics.source(name), clock=clock)
    except ConfigError as error:
        return _failed(name, str(error), "Correct the configuration, then:"), 0.0
    visit = _Visit(name=name, source=source, account=account, client=client, clock=clock)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await visit.make()
    except (SourceError, TimeoutError) as error:
        problem, cure = await _diagnosis(visit, error)
        return _failed(name, "; ".join([*visit.done, problem]), cure), visit.skew_seconds
    finally:
        await client.close()
    return _visited(visit), visit.skew_seconds


def _visited(visit: _Visit) -> CheckLine:
    lesser = [(view, way) for view, way in visit.ways.items() if way.mode != "keyset"]
    if lesser:
        return _read_in_a_lesser_way(visit, lesser)
    text = "; ".join(visit.done)
    if not visit.bad_records:
        return CheckLine(outcome="ok", name=visit.name, text=text)
    verb = "was" if visit.bad_records == 1 else "were"
    return CheckLine(
        outcome="warn",
        name=visit.name,
        text=f"{text}; {count(visit.bad_records, 'record')} of the page {verb} not readable",
        cure="All other records are read; such a one is kept as a dead letter.",
    )


def _read_in_a_lesser_way(visit: _Visit, lesser: Sequence[tuple[View, Way]]) -> CheckLine:
    """A warning: it works, at a cost."""
    worst = next((way for _, way in lesser if way.mode == "scan"), lesser[0][1])
    views = " and ".join(view for view, way in lesser if way.mode == worst.mode)
    problem = (
        f"{worst.reason.replace('the filter', f'the filter on {views}').replace('the order', f'the order by {views}')}"
    )
    cost = (
        "each poll reads all incidents, and comes less often" if worst.mode == "scan" else "each poll reads more pages"
    )
    return CheckLine(
        outcome="warn",
        name=visit.name,
        text="; ".join([*visit.done, f"{problem}; reads {worst.mode} instead"]),
        cure=f"Nothing is lost; {cost}. The better way is tried again hourly.",
    )


async def _diagnosis(visit: _Visit, error: SourceError | TimeoutError) -> tuple[str, str]:
    """What went wrong with a source, and the cure."""
    until = visit.account.paused_until
    if until is not None or (isinstance(error, SourceError) and error.reason == "throttled"):
        return _throttled(visit, until)
    if isinstance(error, TimeoutError):
        return f"{visit.host} did not answer within {PATIENCE_SECONDS:g} s", _UNREACHED["timeout"][1]
    if error.reason in _UNREACHED:
        return await _unreached(visit.way, error.reason)
    if isinstance(error, LoginRefused):
        return _login_refused(visit, error)
    if isinstance(error, AccessDenied):
        cure = _DENIED.get(error.status or 0, _HOSTS).format(where=visit.where, regions=", ".join(REGIONS))
        meaning = ": this API user may not read them" if error.status == 403 else ""
        return f"the incidents were refused with {error.status}{meaning}", cure
    if isinstance(error, BadAnswer):
        return f"{visit.host} answered what cannot be used: {error}", _HOSTS
    answered = f"answered {error.status}" if error.status else "did not answer"
    return f"{visit.host} {answered}", "The relay tries again by itself. To try now:"


def _throttled(visit: _Visit, until: Instant | None) -> tuple[str, str]:
    asked = f" and asked to wait until {moment(until, visit.clock.now())}" if until is not None else ""
    cure = "See whether another program uses the same API user. To try again after that time:"
    return f"{visit.place} answered 429{asked}", cure


def _login_refused(visit: _Visit, error: LoginRefused) -> tuple[str, str]:
    password = "password_file" if visit.source.password.file else "password"
    if error.status is None:
        return f"{password} cannot be read", f"Let the relay read {password} of this source, then:"
    meaning = ""
    if error.status in (400, 401):
        meaning = ": wrong user name or password, or an account of another region"
        cure = (
            f"Check username, {password}{',' if ' and ' in visit.where else ' and'} {visit.where} of this source; an "
            f"account can log in to its own region only ({', '.join(REGIONS)}). Then:"
        )
    elif error.status == 403:
        cure = (
            "Use an API user of this region: one with Integrations switched on in ESET PROTECT Hub or Business "
            "Account, who has logged in there once. Then:"
        )
    else:
        cure = f"Check {visit.where} of this source, then:"
    return f"{visit.place} refused the login with {error.status}{meaning}", cure


def _clock_lines(skew_seconds: float) -> list[CheckLine]:
    """A warning when this machine's clock and ESET's differ, a failure when signed events would be refused for it."""
    if abs(skew_seconds) <= SKEW_SECONDS:
        return []
    order = "behind" if skew_seconds > 0 else "ahead of"
    text = f"the clock of this machine is {span(abs(skew_seconds))} {order} ESET's"
    if abs(skew_seconds) < REFUSED_SKEW_SECONDS:
        cure = "Let NTP set it. Nothing is lost; until then times of this machine are wrong by as much."
        return [CheckLine(outcome="warn", name="clock", text=text, cure=cure)]
    cure = (
        "Let NTP set it; in a container, that of its host. Nothing is lost, but receivers of signed webhooks refuse "
        "what was signed more than 5 minutes off. Then:"
    )
    return [_failed("clock", text, cure)]


# -- the way to a far side --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How a far side is reached: enough to find out why it is not, and to name the keys."""

    what: Literal["source", "sink"]
    urls: str
    url: str = field(repr=False)
    hosts: Sequence[str]
    proxy: str | Secret = field(repr=False)
    tls: Tls

    @property
    def host(self) -> str:
        """With its port, where the URL names one."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def key(self) -> str:
        """What names the proxy."""
        if self.proxy == "env":
            return "HTTPS_PROXY"
        return f"proxy{'_file' if isinstance(self.proxy, Secret) and self.proxy.file else ''} of this {self.what}"

    def proxy_address(self) -> str:
        """Host and port of the proxy, without its password."""
        proxy = proxy_for(self.url, os.environ) if self.proxy == "env" else _plain(self.proxy)
        return urlsplit(proxy or "").netloc.rpartition("@")[2]


async def _tried_again(way: _Way) -> BaseException | None:
    """What another connection fails with; nothing is sent over it."""
    scheme, _, _ = way.url.partition("://")
    tls = way.tls
    try:
        context = tls_context(ca_file=tls.ca_file, cert_file=tls.cert_file, key_file=tls.key_file)
        http = http_client(proxy=_plain(way.proxy), tls=context, guarded=way.what == "sink")
    except ConfigError:  # its files were there a moment ago
        return None
    try:
        async with asyncio.timeout(_WHY_SECONDS):
            await connect(http, f"{scheme}://{way.host}/")
    except NETWORK_ERRORS as exc:
        return exc
    finally:
        await http.aclose()
    return None


async def _unreached(way: _Way, reason: str) -> tuple[str, str]:
    """What is said of a host that gave no answer, and the cure; of a proxy or a certificate, what is wrong with it."""
    found, status = _UNREACHED[reason], None
    if reason in ("proxy", "tls"):
        failure = await _tried_again(way)
        status = proxy_status(failure) if failure else None
        fault = certificate_fault(failure) if failure else None
        if status is not None:
            found = _PROXY_REFUSED.get(status, _PROXY_FAILED)
        elif fault is not None:
            found = _CERTIFICATES.get(fault, _UNTRUSTED)
    words = {
        "what": way.what,
        "host": way.host,
        "hosts": " and ".join(way.hosts),
        "urls": way.urls,
        "key": way.key,
        "proxy": way.proxy_address(),
        "status": status,
    }
    text, cure = found
    return text.format_map(words), cure.format_map(words)


def _plain(proxy: str | Secret) -> str:
    return proxy.reveal() if isinstance(proxy, Secret) else proxy


# -- sinks ------------------------------------------------------------------------------------------------------------


async def _sink(name: str, settings: Settings, held: _Held) -> CheckLine:
    chosen = settings.sinks[name]
    if isinstance(chosen, KafkaSink) and settings.is_inline(name):
        return await _inline(name, chosen, settings, held)
    state, why = held.stopped.get(name, ("", ""))
    if state == "disabled":
        return CheckLine(outcome="skip", name=name, text="disabled by an operator")
    message = chosen if isinstance(chosen, WebhookSink | SlackSink | TeamsSink) else None
    if state == "parked" and (
        message is not None or held.incidents is None
    ):  # others get a new chance at the next start
        return _given_up(name, why, f"relay sinks enable {name}")
    try:
        sink = make_sink(name, settings=settings, journal_id=held.journal_id)
    except ConfigError as error:
        if message is not None:
            return await _unusable(name, message, error)
        return _failed(name, str(error), "Correct the configuration, then:")
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            found = await sink.probe()
    except TimeoutError:
        cure = "See whether its far side answers at all, then:"
        return _failed(name, f"no answer within {PATIENCE_SECONDS:g} s", cure)
    except (SinkError, ConfigError) as error:
        if message is not None:
            return await _unusable(name, message, error)
        text, cure = _with_hint(str(error).removeprefix(f"kafka sink {name}: "))
        if not cure and chosen.type == "kafka":
            cure = "Check bootstrap.servers, and that this machine reaches the brokers. To try again:"
        return _failed(name, text, cure)
    finally:
        await sink.close(CLOSE_SECONDS)
    if isinstance(chosen, WebhookSink):
        return CheckLine(outcome="ok", name=name, text=_signed(chosen, found))
    if isinstance(chosen, SlackSink | TeamsSink):
        return _chat(name, chosen, found)
    return CheckLine(outcome="ok", name=name, text=found)


def _given_up(name: str, why: str, command: str) -> CheckLine:
    text, hint = own_words(why)
    cure = f"{hint[:1].upper()}{hint[1:]}, then:" if hint else _GIVEN_UP
    return CheckLine(outcome="fail", name=name, text=inert(text) or "it was given up", cure=cure, command=command)


async def _unusable(
    name: str, chosen: WebhookSink | SlackSink | TeamsSink, error: SinkError | ConfigError
) -> CheckLine:
    """Why a sink of messages cannot be used, and the cure."""
    try:
        key = "url"
        url = chosen.url.reveal()
        if isinstance(chosen, WebhookSink):
            key = "secrets"
            if chosen.secrets is not None:
                chosen.secrets.reveal()
            for header, value in chosen.headers.items():
                key = f"headers.{header}"
                value.reveal()
        if not isinstance(chosen.proxy, str):
            key = "proxy"
            chosen.proxy.reveal()
    except ConfigError as unreadable:
        text, cure = f"{key}_file cannot be used: {unreadable}", f"Let the relay read {key}_file of this sink, then:"
        return _failed(name, text, cure)
    if isinstance(error, Gone):
        return _given_up(name, str(error), AGAIN)
    if error.reason in _UNREACHED:
        where = "url_file" if chosen.url.file else "url"
        hosts = (urlsplit(url).hostname or "",)
        way = _Way(what="sink", urls=where, url=url, hosts=hosts, proxy=chosen.proxy, tls=chosen.tls)
        return _failed(name, *await _unreached(way, error.reason))
    return _failed(name, str(error), _SINK_UNREACHED.get(error.reason, "Correct the configuration, then:"))


def _signed(chosen: WebhookSink, found: str) -> str:
    keys = len(secrets_in(chosen.secrets.reveal())) if chosen.secrets is not None else 0
    how = f"{count(keys, 'signing secret')} {'was' if keys == 1 else 'were'} read" if keys else "events are not signed"
    return f"{found.rpartition('; ')[0]}; {how}"


def _chat(name: str, chosen: SlackSink | TeamsSink, found: str) -> CheckLine:
    """What can be told without posting, and how to post one."""
    url = urlsplit(chosen.url.reveal())
    host = url.hostname or ""
    if isinstance(chosen, TeamsSink) and host.endswith(_CONNECTOR_HOSTS):
        text = "the URL is that of an Office 365 connector, which Microsoft retires"
        cure = "Create a flow in the Workflows app of Teams, write its URL to the sink's url_file, then:"
        return CheckLine(outcome="warn", name=name, text=text, cure=cure, command=AGAIN)
    what = ""
    if isinstance(chosen, TeamsSink) and host.endswith(_WORKFLOW_HOSTS) and "/workflows/" in url.path:
        what = "the URL is a Workflows URL"
    elif isinstance(chosen, SlackSink) and host.startswith("hooks.slack") and url.path.startswith("/services/"):
        what = "the URL is that of an incoming webhook"
    reached, _, said = found.partition("; ")
    text = f"{what} and {reached.partition(' and ')[2]}" if what else reached
    text = f"{text}; {said}; no message was sent" if said else f"{text}; nothing was sent"
    return CheckLine(outcome="ok", name=name, text=f"{text}; to send one:", command=f"relay sinks test {name}")


def _with_hint(message: str) -> tuple[str, str]:
    """Our messages are `what was found; hint`: the hint is the cure."""
    text, _, hint = message.partition("; ")
    if not hint:
        return message, ""
    return text, f"{sentence(hint[:1].upper() + hint[1:])} To try again:"


def _failed(name: str, text: str, cure: str) -> CheckLine:
    return CheckLine(outcome="fail", name=name, text=text, cure=cure or "To try again:", command=AGAIN)
