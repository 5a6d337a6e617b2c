"""Builds journal, clients, sinks and tasks from the settings: the one place where configuration meets construction."""

import ssl
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from relay.clock import Clock
from relay.delivery import Courier
from relay.errors import ConfigError
from relay.eset.auth import Account
from relay.eset.budget import RateBudget
from relay.eset.client import EsetClient, Patience
from relay.journal import Journal
from relay.journal.sqlite import SqliteJournal
from relay.metrics import Metrics, SourceMetrics
from relay.poller import Poller
from relay.settings import FileSink, KafkaSink, Secret, Settings, Source, Tls
from relay.sinks import Sink, kafka, ndjson
from relay.tasks import SourceTask
from relay.transport import http_client, tls_context


def make_journal(settings: Settings, *, clock: Clock) -> Journal:
    """The journal of this relay, not yet opened."""
    return SqliteJournal(
        settings.journal.path,
        max_bytes=settings.journal.max_bytes,
        retention_seconds=settings.journal.retention.total_seconds(),
        clock=clock,
    )


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


async def make_courier(name: str, *, settings: Settings, journal: Journal, metrics: Metrics, clock: Clock) -> Courier:
    """The courier of one sink, its lease taken."""
    chosen = settings.sinks[name]
    lease = await journal.sink(name, start=chosen.start, keep_seconds=chosen.keep.total_seconds())
    return Courier(
        sink=make_sink(name, settings=settings, journal_id=journal.id),
        lease=lease,
        kind=chosen.type,
        target=_target(settings, name),
        metrics=metrics.sink(name),
        clock=clock,
    )


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
    return ndjson.StdoutSink(omit=chosen.omit)


def _target(settings: Settings, name: str) -> str:
    chosen = settings.sinks[name]
    if isinstance(chosen, KafkaSink):
        return chosen.topic
    return str(chosen.path) if isinstance(chosen, FileSink) else ""


def _patience(source: Source) -> Patience:
    """How long this source's requests wait and retry."""
    return Patience(
        backoff_initial_seconds=source.backoff.initial.total_seconds(),
        backoff_max_seconds=source.backoff.max.total_seconds(),
    )


def _client(source: Source) -> httpx.AsyncClient:
    proxy = source.proxy.reveal() if isinstance(source.proxy, Secret) else source.proxy
    return http_client(proxy=proxy, tls=_tls(source.tls))


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
