"""`relay check`: tries everything that the configuration names, a line each, with the cure where it failed.

It changes nothing at the far side but an empty Kafka transaction, and may run beside a running relay.
"""

import asyncio
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from relay.assembly import Accounts, make_client, make_journal, make_sink
from relay.clock import SECOND, Clock, Instant, SystemClock
from relay.errors import (
    AccessDenied,
    BadAnswer,
    ConfigError,
    JournalError,
    JournalLocked,
    LoginRefused,
    QueryRefused,
    SinkError,
    SourceError,
)
from relay.eset.client import EsetClient
from relay.eset.wire import DecodedPage, decode_page
from relay.incidents import Observed, format_instant
from relay.journal import View
from relay.metrics import Metrics
from relay.settings import Settings, Source
from relay.status import CheckLine
from relay.words import count, moment, number, sentence

PATIENCE_SECONDS: Final = 60.0
"""How long one source or sink may take, its retries included."""
SOURCES_AT_ONCE: Final = 8
SKEW_SECONDS: Final = 5.0
ROOM_RATIO: Final = 2.5
"""The journal's volume needs so many times `max_bytes`: for the file, its log and a copy while migrating."""
SAMPLE_SIZE: Final = 100
UNKNOWN_JOURNAL: Final = "check"
"""Stands in for the journal's id, which is only known once it is open."""

AGAIN: Final = "relay check"
_GIB: Final = 1 << 30
_VIEWS: Final[Mapping[View, Callable[[Observed], Instant]]] = {
    "update_time": lambda incident: incident.updated,
    "create_time": lambda incident: incident.created,
}
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
_DENIED: Final[Mapping[int, str]] = {
    401: "Let base_url and token_url of this source name hosts of one region, then:",
    403: "Give the API user the permission to read incidents, and the account a licence for them, then:",
    404: "Check region or base_url of this source, then:",
    501: "Use a region and a licence that offer incident management, then:",
}


async def check(settings: Settings, *, offline: bool) -> list[CheckLine]:
    """Tries all of it; `offline` only reads the configuration. Never raises for what it finds."""
    lines = _configuration(settings)
    if offline:
        return lines
    clock = SystemClock()
    journal, journal_id = await _journal(settings, clock)
    sources, sinks = await asyncio.gather(
        _sources(settings, clock),
        asyncio.gather(*(_sink(name, settings, journal_id) for name in settings.sinks)),
    )
    return [*lines, *journal, *sources, *sinks]


def _configuration(settings: Settings) -> list[CheckLine]:
    where = settings.path.name if settings.path is not None else "the environment"
    counts = f"{count(len(settings.sources), 'source')}, {count(len(settings.sinks), 'sink')}"
    lines = [CheckLine(outcome="ok", name="configuration", text=f"{where}: {counts}, no unknown key")]
    return lines + [CheckLine(outcome="warn", name="configuration", text=text) for text in settings.warnings]


# -- journal ----------------------------------------------------------------------------------------------------------


async def _journal(settings: Settings, clock: Clock) -> tuple[list[CheckLine], str]:
    """Its lines, and its id if it could be opened."""
    path = settings.journal.path
    if not path.exists():
        return [_new_journal(settings), *_room(settings)], UNKNOWN_JOURNAL
    journal = make_journal(settings, clock=clock)
    try:
        await journal.open()
        used = (await journal.use()).used_bytes
    except JournalLocked as error:
        holder = re.search(r"held by (.+?);", str(error))
        text = f"{path.name} is held by a running relay, {holder[1] if holder else 'another process'}"
        return [CheckLine(outcome="ok", name="journal", text=text), *_room(settings)], UNKNOWN_JOURNAL
    except JournalError as error:
        return [_failed("journal", *_split(str(error)))], UNKNOWN_JOURNAL
    finally:
        await journal.close()
    space = f"{used / _GIB:.2f} of {settings.journal.max_bytes / _GIB:.3g} GiB"
    line = CheckLine(outcome="ok", name="journal", text=f"{path.name} opens, is not locked, {space}")
    return [line, *_room(settings)], journal.id
