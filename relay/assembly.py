"""Builds journal, clients, sinks and tasks from the settings: the one place where configuration meets construction."""

import os
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httpx

from relay.clock import Clock, SystemClock
from relay.delivery import Carrier, Courier
from relay.errors import ConfigError, RelayError
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import EsetClient, Patience
from relay.journal import Journal
from relay.journal.sqlite import SqliteJournal
from relay.messenger import Manners, Messenger
from relay.metrics import Metrics, SourceMetrics
from relay.poller import Poller
from relay.settings import (
    FileSink,
    KafkaSink,
    Secret,
    Settings,
    SlackSink,
    Source,
    StdoutSink,
    TeamsSink,
    Tls,
    WebhookSink,
)
from relay.signing import secrets_in
from relay.sinks import MessageSink, Sink, kafka, ndjson, slack, teams, webhook
from relay.sinks.kafka_shape import Shape
from relay.tasks import SourceTask
from relay.transport import http_client, tls_context

if TYPE_CHECKING:
    from relay.journal.kafka import InlineSink, KafkaBroker
    from relay.rules import Rule


def make_journal(settings: Settings, *, clock: Clock, metrics: Metrics | None = None) -> Journal:
    """The journal of this relay, not yet opened. `metrics` count what is written with the polls."""
    if settings.journal.kind == "kafka":
        return _kafka_journal(settings, metrics=metrics or Metrics(clock), clock=clock)
    return SqliteJournal(
        settings.journal.path,
        max_bytes=settings.journal.max_bytes,
        retention_seconds=settings.journal.retention.total_seconds(),
        clock=clock,
    )


def _kafka_journal(settings: Settings, *, metrics: Metrics, clock: Clock) -> Journal:
    from relay.journal.kafka import KafkaBroker, KafkaJournal  # noqa: PLC0415  # a file needs nothing of it

    chosen = settings.journal
    broker = KafkaBroker(
        settings.journal_kafka_options(),
        prefix=settings.kafka_prefix,
        replication_factor=chosen.replication_factor,
        member=process_name(),
    )
    return KafkaJournal(
        broker,
        prefix=settings.kafka_prefix,
        partitions=chosen.partitions,
        cache_dir=chosen.cache_dir,
        max_bytes=chosen.max_bytes,
        retention_seconds=chosen.retention.total_seconds(),
        inline=[
            _inline_sink(name, settings, broker, metrics, clock) for name in settings.sinks if settings.is_inline(name)
        ],
        process=process_name(),
        clock=clock,
    )


async def require_alone(settings: Settings) -> None:
    """A journal on Kafka that has begun, and that nobody works on. Raises RelayError with what to do."""
    from relay.journal.kafka import KafkaBroker  # noqa: PLC0415
    from relay.journal.kafka.meta import read_meta  # noqa: PLC0415
    from relay.journal.kafka.partition import Topics  # noqa: PLC0415

    broker = KafkaBroker(settings.journal_kafka_options(), prefix=settings.kafka_prefix)
    try:
        await broker.connect()
        members = await broker.members(settings.kafka_prefix)
        if members:
            raise RelayError(
                f"no relay answers here, but {', '.join(members)} work on the journal {settings.kafka_prefix} on "
                "Kafka: run this command beside one of them, such as with kubectl exec, or stop them first"
            )
        topics = Topics(prefix=settings.kafka_prefix)
        if not await broker.partitions(topics.control) or await read_meta(broker, topics) is None:
            raise RelayError(
                f"no relay runs at present, and there is no journal {settings.kafka_prefix} on Kafka yet: start one "
                "with `relay run`, with the same configuration"
            )
    finally:
        await broker.close()


def _inline_sink(name: str, settings: Settings, broker: "KafkaBroker", metrics: Metrics, clock: Clock) -> "InlineSink":
    from relay.journal.kafka import InlineSink  # noqa: PLC0415

    chosen = settings.sinks[name]
    assert isinstance(chosen, KafkaSink)  # noqa: S101  # no other sink is written with the poll
    creation = chosen.create_topic
    return InlineSink(
        name,
        shape=Shape(topic=chosen.topic, omit=chosen.omit, max_event_bytes=chosen.max_event_bytes),
        rule=make_rules(settings).get(name),
        ensure=lambda topic: broker.ensure_topic(
            topic,
            create=creation is not None,
            partitions=creation.partitions if creation else 1,
            replication_factor=creation.replication_factor if creation else -1,
        ),
        metrics=metrics.sink(name, owned=False),
        clock=clock,
    )


def process_name() -> str:
    """How this process is told from others: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Accounts:
    """The API users of this process and the budget that they share. Sources with one login share one account."""

    def __init__(self, settings: Settings, *, metrics: Metrics, clock: Clock, patience: Patience | None = None) -> None:
        """`patience` stands in for what the sources' backoff says: a person who waits has less."""
        self.patience = patience
        self.budget = RateBudget(settings.api.requests_per_second)
        self._metrics = metrics
        self._clock = clock
        self._accounts: dict[tuple[str, str], Account] = {}

    def of(self, name: str, source: Source) -> Account:
        """The account of this source; it is made for the first source that uses it."""
        _base_url, token_url = source.endpoints
        key = (token_url, source.username)
        if key not in self._accounts:
            self._accounts[key] = Account(
                token_url=token_url,
                username=source.username,
                secret=_current(source.password),
                http=_client(source),
                budget=self.budget,
                clock=self._clock,
                patience=self.patience or _patience(source),
                observer=self._metrics.source(name),
            )
        return self._accounts[key]

    async def close(self) -> None:
        """Closes the connections of the logins."""
        for account in self._accounts.values():
            await account.close()


def make_client(name: str, source: Source, *, accounts: Accounts, metrics: SourceMetrics, clock: Clock) -> EsetClient:
    """The client of one source."""
    base_url, _token_url = source.endpoints
    return EsetClient(
        source=name,
        base_url=base_url,
        account=accounts.of(name, source),
        http=_client(source),
        budget=accounts.budget,
        clock=clock,
        patience=accounts.patience or _patience(source),
        observer=metrics,
    )


async def make_source(
    name: str, *, settings: Settings, journal: Journal, accounts: Accounts, metrics: Metrics, clock: Clock
) -> SourceTask:
    """The task of one source, its lease taken."""
    source = settings.sources[name]
    counts = metrics.source(name)
    client = make_client(name, source, accounts=accounts, metrics=counts, clock=clock)
    lease = await journal.source(name)
    poller = Poller(
        identity=f"{source.endpoints[0]} {source.username}",
        api=client,
        lease=lease,
        start_from=source.start_from,
        lookback_seconds=source.lookback.total_seconds(),
        page_size=source.page_size,
        enrich=source.enrich,
        clock=clock,
        observer=counts,
    )
    return SourceTask(
        poller=poller,
        client=client,
        lease=lease,
        account=accounts.of(name, source),
        place=source.region or urlsplit(source.endpoints[0]).hostname or "",
        reconcile_seconds=source.reconcile_interval.total_seconds(),
        budget=accounts.budget,
        metrics=metrics,
        counts=counts,
        clock=clock,
    )


async def make_courier(
    name: str,
    *,
    settings: Settings,
    journal: Journal,
    rules: Mapping[str, "Rule"],
    metrics: Metrics,
    clock: Clock,
) -> Carrier:
    """Whoever delivers to this sink, its lease taken."""
    chosen = settings.sinks[name]
    lease = await journal.sink(name, start=chosen.start, keep_seconds=chosen.keep.total_seconds())
    sink = make_sink(name, settings=settings, journal_id=journal.id)
    if isinstance(chosen, WebhookSink | SlackSink | TeamsSink):
        return Messenger(
            sink=cast(MessageSink, sink),
            lease=lease,
            kind=chosen.type,
            target=_target(settings, name),
            rule=rules.get(name),
            manners=_manners(chosen),
            retry_seconds=[wait.total_seconds() for wait in chosen.retry],
            concurrency=chosen.concurrency,
            keep_seconds=chosen.keep.total_seconds(),
            metrics=metrics.sink(name),
            clock=clock,
        )
    return Courier(
        sink=sink,
        lease=lease,
        kind=chosen.type,
        target=_target(settings, name),
        rule=rules.get(name),
        keep_seconds=chosen.keep.total_seconds(),
        metrics=metrics.sink(name, shared=settings.is_inline(name)),
        clock=clock,
    )


def make_links(settings: Settings) -> dict[str, str]:
    """Where a person looks at an incident, by source: a template with `{uuid}`."""
    return {label: source.link for label, source in settings.sources.items() if source.link is not None}


def introduce_to_each_other(couriers: Sequence[Carrier], settings: Settings) -> None:
    """Who is told when a sink is parked."""
    by_name = {courier.name: courier for courier in couriers}
    for courier in couriers:
        told = getattr(settings.sinks[courier.name], "notify", None)
        if isinstance(courier, Messenger) and told is not None:
            courier.notify = cast(Messenger, by_name[told])


def make_rules(settings: Settings) -> dict[str, "Rule"]:
    """The rules of the sinks that have one. Raises ConfigError with everything that is wrong, a line each."""
    wanted = {name: sink.when for name, sink in settings.sinks.items() if sink.when is not None}
    if not wanted:
        return {}
    from relay.rules import Rule, RuleError  # noqa: PLC0415  # its library is large, and most sinks have no rule

    rules: dict[str, Rule] = {}
    problems = []
    where = f"{settings.path.name}: " if settings.path is not None else ""
    for name, text in wanted.items():
        try:
            rules[name] = Rule(text)
        except RuleError as error:
            problems.append(f"{where}sinks.{name}.when {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return rules


def _manners(chosen: WebhookSink | SlackSink | TeamsSink) -> Manners | None:
    """Services take everything; people read the rest."""
    if isinstance(chosen, WebhookSink):
        return None
    return Manners(max_age_seconds=chosen.max_age.total_seconds(), digest_above=chosen.digest_above)


def make_sink(name: str, *, settings: Settings, journal_id: str) -> Sink:
    """The sink of this name. A new type is one more line here."""
    chosen = settings.sinks[name]
    if isinstance(chosen, KafkaSink):
        return kafka.KafkaSink(
            name,
            options=settings.kafka_options(name),
            topic=chosen.topic,
            transactional=chosen.transactional,
            kafka_prefix=settings.kafka_prefix,
            journal_id=journal_id,
            max_event_bytes=chosen.max_event_bytes,
            create_topic=chosen.create_topic is not None,
            partitions=chosen.create_topic.partitions if chosen.create_topic else 1,
            replication_factor=chosen.create_topic.replication_factor if chosen.create_topic else -1,
            omit=chosen.omit,
        )
    if isinstance(chosen, FileSink):
        return ndjson.FileSink(chosen.path, omit=chosen.omit)
    if isinstance(chosen, StdoutSink):
        return ndjson.StdoutSink(omit=chosen.omit)
    http = http_client(proxy=_proxy(chosen.proxy), tls=_tls(chosen.tls), guarded=True)
    timeout_seconds = chosen.timeout.total_seconds()
    if isinstance(chosen, WebhookSink):
        secrets = chosen.secrets
        return webhook.WebhookSink(
            name,
            url=chosen.url.reveal,
            secrets=lambda: secrets_in(secrets.reveal()) if secrets is not None else (),
            headers=lambda: {header: value.reveal() for header, value in chosen.headers.items()},
            http=http,
            timeout_seconds=timeout_seconds,
            omit=chosen.omit,
            clock=SystemClock(),
        )
    kind = slack.SlackSink if isinstance(chosen, SlackSink) else teams.TeamsSink
    return kind(
        name,
        url=chosen.url.reveal,
        http=http,
        timeout_seconds=timeout_seconds,
        omit=chosen.omit,
        links=make_links(settings),
        digest_above=chosen.digest_above,
        clock=SystemClock(),
    )


def _target(settings: Settings, name: str) -> str:
    chosen = settings.sinks[name]
    if isinstance(chosen, KafkaSink):
        return chosen.topic
    if isinstance(chosen, FileSink):
        return str(chosen.path)
    return "" if isinstance(chosen, StdoutSink) else urlsplit(chosen.url.reveal()).hostname or ""


def _patience(source: Source) -> Patience:
    """How long this source's requests wait and retry."""
    return Patience(
        backoff_initial_seconds=source.backoff.initial.total_seconds(),
        backoff_max_seconds=source.backoff.max.total_seconds(),
    )


def _client(source: Source) -> httpx.AsyncClient:
    return http_client(proxy=_proxy(source.proxy), tls=_tls(source.tls))


def _proxy(proxy: str | Secret) -> str:
    return proxy.reveal() if isinstance(proxy, Secret) else proxy


def _tls(tls: Tls) -> ssl.SSLContext:
    return _tls_context(tls.ca_file, tls.cert_file, tls.key_file)


@lru_cache(maxsize=64)
def _tls_context(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """One for all that share the options: each costs 18 ms and some memory."""
    return tls_context(ca_file=ca_file, cert_file=cert_file, key_file=key_file)


def _current(password: Secret) -> Callable[[], str]:
    """Reads the password as it is now; the account takes a failure for a file that is being replaced."""

    def read() -> str:
        try:
            return password.reveal()
        except ConfigError as exc:
            raise OSError(str(exc)) from exc

    return read
