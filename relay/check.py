"""`relay check`: tries everything that the configuration names, a line each, with the cure where it failed.

It sends no event, and may run beside a running relay. A Kafka sink's topic of positions is made if it is missing.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from relay import control
from relay.assembly import Accounts, make_client, make_journal, make_sink
from relay.clock import Clock, Instant, SystemClock
from relay.errors import (
    AccessDenied,
    BadAnswer,
    ConfigError,
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
from relay.journal import View, Way
from relay.metrics import Metrics
from relay.passes import VIEWS, sound
from relay.settings import Settings, SlackSink, Source, TeamsSink, WebhookSink
from relay.signing import secrets_in
from relay.status import FULL_RATIO, CheckLine
from relay.words import count, inert, moment, number, sentence, span

if TYPE_CHECKING:
    from relay.rules import Rule

PATIENCE_SECONDS: Final = 60.0
"""How long one source or sink may take, its retries included."""
PATIENCE: Final = Patience(total_seconds=30.0, tries=2)
"""A person waits: one more try tells a hiccup from a failure."""
SOURCES_AT_ONCE: Final = 8
SKEW_SECONDS: Final = 5.0
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
# Why there was no answer: what is said of the host, and the cure.
_UNREACHED: Final[Mapping[str, tuple[str, str]]] = {
    "dns": (
        "{host} cannot be resolved",
        "Check region, or base_url and token_url, of this source, and the DNS of this machine, then:",
    ),
    "connect": ("{host} refused the connection", "Let this machine reach that host, directly or by a proxy, then:"),
    "timeout": ("{host} did not answer", "Let this machine reach that host, directly or by a proxy, then:"),
    "reset": ("{host} cut the connection", "See whether a firewall or a proxy stands in between, then:"),
    "proxy": (
        "the proxy on the way to {host} cannot be used",
        "Check proxy of this source, or HTTPS_PROXY where it is env, then:",
    ),
    "tls": (
        "TLS with {host} failed: its certificate is not trusted, or ours is not accepted",
        "Where a proxy inspects TLS, name its authority in tls.ca_file of this source, then:",
    ),
}
_HOSTS: Final = (
    "Let base_url and token_url of this source lead to ESET Connect, with nothing that answers in its place, then:"
)
# The same for a sink that posts messages, by the reason of its error; the text is that of a source but for one.
_SINK_UNREACHED: Final[Mapping[str, str]] = {
    "address": "Let url of this sink lead elsewhere, then:",
    "dns": "Check url of this sink, and the DNS of this machine, then:",
    "connect": "Let this machine reach that host, directly or by a proxy, then:",
    "timeout": "Let this machine reach that host, directly or by a proxy, then:",
    "reset": "See whether a firewall or a proxy stands in between, then:",
    "truncated": "See whether a firewall or a proxy stands in between, then:",
    "protocol": "See whether url of this sink, and its proxy, speak HTTP, then:",
    "proxy": "Check proxy of this sink, or HTTPS_PROXY where it is env, then:",
    "tls": "Where a proxy inspects TLS, name its authority in tls.ca_file of this sink, then:",
}
_FORBIDDEN: Final = "{host} is link-local or a metadata service, which no sink is let reach"
_GIVEN_UP: Final = "Correct the cause, then let it go on with the oldest waiting event:"
_CONNECTOR_HOSTS: Final = (".webhook.office.com", ".outlook.office.com")
_WORKFLOW_HOSTS: Final = (".logic.azure.com", ".api.powerplatform.com", ".logic.azure.us", ".api.powerplatform.us")
_DENIED: Final[Mapping[int, str]] = {
    401: "Let base_url and token_url of this source name hosts of one region, then:",
    403: "Give the API user the permission to read incidents, and the account a licence for them, then:",
    404: "Check region or base_url of this source, then:",
    501: "Use a region and a licence that offer incident management, then:",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What the journal holds, as far as it could be looked at: an incident is there with its source.

    `incidents` is None when they cannot be had, and `why` then says it. `stopped` are the sinks that a person has to
    set going, each with its state and the reason.
    """

    journal_id: str = UNKNOWN_JOURNAL
    incidents: Sequence[tuple[str, Known]] | None = ()
    why: str = ""
    stopped: Mapping[str, tuple[str, str]] = field(default_factory=dict)


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
    free = shutil.disk_usage(path.parent).free
    if free < NO_ROOM_BYTES:
        text = f"no room is left on the volume of {path.name}, {_amount(free)} are free"
        return [_failed("journal", text, "Make room there; a relay that waits for it goes on by itself. Then:")]
    room = free + (path.stat().st_size if path.exists() else 0)
    if room >= ROOM_RATIO * max_bytes:
        return []
    text = (
        f"{_amount(room)} are there for {path.name}; journal.max_bytes = {_amount(max_bytes)} wants "
        f"{_amount(int(ROOM_RATIO * max_bytes))}"
    )
    cure = (
        "Give the journal a larger volume, or lower journal.max_bytes. On a full disk polling stops; nothing is lost."
    )
    return [CheckLine(outcome="warn", name="journal", text=text, cure=cure)]


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
    def host(self) -> str:
        """The host that is being asked: that of the login first."""
        return urlsplit(self.source.endpoints[0 if self.done else 1]).netloc

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
        problem, cure = _diagnosis(visit, error)
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


def _diagnosis(visit: _Visit, error: SourceError | TimeoutError) -> tuple[str, str]:
    """What went wrong with a source, and the cure."""
    until = visit.account.paused_until
    if until is not None or (isinstance(error, SourceError) and error.reason == "throttled"):
        return _throttled(visit, until)
    if isinstance(error, TimeoutError):
        return f"{visit.host} did not answer within {PATIENCE_SECONDS:g} s", _UNREACHED["timeout"][1]
    if error.reason in _UNREACHED:
        text, cure = _UNREACHED[error.reason]
        return text.format(host=visit.host), cure
    if isinstance(error, LoginRefused):
        return _login_refused(visit, error)
    if isinstance(error, AccessDenied):
        return f"the incidents were refused with {error.status}", _DENIED.get(error.status or 0, _HOSTS)
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
    if error.status in (400, 401):
        cure = f"Check username and {password} of this source, then:"
    elif error.status == 403:
        cure = "Use an API user of ESET Connect that has rights in this region, then:"
    else:
        cure = "Check region or token_url of this source, then:"
    return f"{visit.place} refused the login with {error.status}", cure


def _clock_lines(skew_seconds: float) -> list[CheckLine]:
    """A warning when this machine's clock and ESET's differ."""
    if abs(skew_seconds) <= SKEW_SECONDS:
        return []
    order = "behind" if skew_seconds > 0 else "ahead of"
    text = f"the clock of this machine is {span(abs(skew_seconds))} {order} ESET's"
    cure = "Set it by NTP. Nothing is lost; until then times of this machine are wrong by as much."
    return [CheckLine(outcome="warn", name="clock", text=text, cure=cure)]


# -- sinks ------------------------------------------------------------------------------------------------------------


async def _sink(name: str, settings: Settings, held: _Held) -> CheckLine:
    chosen = settings.sinks[name]
    state, why = held.stopped.get(name, ("", ""))
    if state == "disabled":
        return CheckLine(outcome="skip", name=name, text="disabled by an operator")
    message = chosen if isinstance(chosen, WebhookSink | SlackSink | TeamsSink) else None
    if state == "parked" and (
        message is not None or held.incidents is None
    ):  # others get a new chance at the next start
        return _given_up(name, why)
    try:
        sink = make_sink(name, settings=settings, journal_id=held.journal_id)
    except ConfigError as error:
        unusable = (str(error), "Correct the configuration, then:") if message is None else _unusable(message, error)
        return _failed(name, *unusable)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            found = await sink.probe()
    except TimeoutError:
        cure = "See whether its far side answers at all, then:"
        return _failed(name, f"no answer within {PATIENCE_SECONDS:g} s", cure)
    except (SinkError, ConfigError) as error:
        if message is not None:
            return _failed(name, *_unusable(message, error))
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


def _given_up(name: str, why: str) -> CheckLine:
    """Only where the reason is our own does its end say what to do; all else of it may be the far side's text."""
    text, _, hint = why.partition("; ") if why.startswith(("Slack answered ", "Teams answered ")) else (why, "", "")
    cure = f"{hint[:1].upper()}{hint[1:]}, then:" if hint else _GIVEN_UP
    command = f"relay sinks enable {name}"
    return CheckLine(outcome="fail", name=name, text=inert(text) or "it was given up", cure=cure, command=command)


def _unusable(chosen: WebhookSink | SlackSink | TeamsSink, error: SinkError | ConfigError) -> tuple[str, str]:
    """Why a sink of messages cannot be used, and the cure."""
    host = ""
    try:
        key = "url"
        host = urlsplit(chosen.url.reveal()).netloc
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
        return f"{key}_file cannot be used: {unreadable}", f"Let the relay read {key}_file of this sink, then:"
    if error.reason in _SINK_UNREACHED:
        text = _UNREACHED[error.reason][0] if error.reason in _UNREACHED else str(error)
        text = _FORBIDDEN if error.reason == "address" else text
        return text.format(host=host), _SINK_UNREACHED[error.reason]
    return str(error), "Correct the configuration, then:"


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
    text = f"{what} and {found.partition(' and ')[2]}" if what else found
    return CheckLine(
        outcome="ok", name=name, text=f"{text}; nothing was sent; to send one:", command=f"relay sinks test {name}"
    )


def _with_hint(message: str) -> tuple[str, str]:
    """Our messages are `what was found; hint`: the hint is the cure."""
    text, _, hint = message.partition("; ")
    if not hint:
        return message, ""
    return text, f"{sentence(hint[:1].upper() + hint[1:])} To try again:"


def _failed(name: str, text: str, cure: str) -> CheckLine:
    return CheckLine(outcome="fail", name=name, text=text, cure=cure or "To try again:", command=AGAIN)
