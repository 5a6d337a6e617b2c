"""What the demo is played on: a folder, the relay's configuration, and the far sides. Nothing of it is left behind."""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from relay.clock import Clock
from relay.demo.arrivals import EventFile, EventTopic, FarSide
from relay.demo.process import JOURNAL
from relay.demo.receivers import Channel, EventReceiver
from relay.demo.story import PAGE_SIZE, PASSWORD, POLL_SECONDS, USERNAMES
from relay.errors import ConfigError
from relay.simulator import Served

JOURNAL_BYTES: Final = 64 << 20
"""What the journal may take; the whole demo needs a small part of it."""
LINK: Final = "https://console.example/incidents/{uuid}"
REQUESTS_PER_SECOND: Final = 50
"""The simulator has no limit, and nobody wants to watch a backfill for long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where everything is. `kafka` are bootstrap servers, or None; `prefix` begins the names of all topics.

    `sides` are those to which every event is owed, the receiver of the webhook among them; `channel` is read by people.
    """

    folder: Path
    kafka: str | None
    prefix: str
    sides: Sequence[FarSide]
    receiver: EventReceiver
    channel: Channel

    def configuration(self, served: Served) -> dict[str, Any]:
        """`relay.yaml`, for the relay of the demo."""
        configuration: dict[str, Any] = {
            "sources": {name: _source(served, username) for name, username in USERNAMES.items()},
            "api": {"requests_per_second": REQUESTS_PER_SECOND},
            "journal": {"path": JOURNAL, "max_bytes": f"{JOURNAL_BYTES >> 20}MiB"},
            "sinks": {side.name: dict(side.sink) for side in self.sides} | {Channel.name: dict(self.channel.sink)},
            "http": {"host": "127.0.0.1", "port": 0},
            "log": {"format": "json"},
            "shutdown_grace": "5s",
        }
        if self.kafka is not None:
            configuration |= {"kafka_prefix": self.prefix, "kafka": {"bootstrap.servers": self.kafka}}
        return configuration


def _source(served: Served, username: str) -> dict[str, Any]:
    return {
        "base_url": served.base_url,
        "token_url": served.token_url,
        "username": username,
        "password": PASSWORD,
        "poll_interval": f"{POLL_SECONDS}s",
        "page_size": PAGE_SIZE,
        "link": LINK,
        "backoff": {"initial": "200ms", "max": "2s"},
        "proxy": "none",
    }


@asynccontextmanager
async def stage(kafka: str | None, keep: Path | None, clock: Clock) -> AsyncIterator[Stage]:
    """Sets it up, and clears it away: the folder and the topics too, unless `keep` is given. Raises ConfigError."""
    prefix = f"relay-demo-{secrets.token_hex(4)}"
    receiver, channel = EventReceiver(clock), Channel(clock)
    with _folder(keep) as folder:
        async with receiver.open(), channel.open(), _topic(kafka, prefix, clock, keep=keep is not None) as topics:
            sides: list[FarSide] = [EventFile(folder / "events.ndjson", clock), *topics, receiver]
            yield Stage(folder=folder, kafka=kafka, prefix=prefix, sides=sides, receiver=receiver, channel=channel)


@asynccontextmanager
async def _topic(kafka: str | None, prefix: str, clock: Clock, *, keep: bool) -> AsyncIterator[list[FarSide]]:
    if kafka is None:
        yield []
        return
    topic = f"{prefix}.incidents"
    far = EventTopic(kafka, topic, clock, delete=() if keep else (topic, f"{prefix}.cursors"))
    try:
        await far.open()
        yield [far]
    finally:
        await far.close()


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """A temporary folder, or the one to keep, which must hold nothing yet."""
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
            is_used = any(keep.iterdir())
        except OSError as exc:
            raise ConfigError(f"--keep {keep}: {exc.strerror}; name a new folder") from exc
        if is_used:
            raise ConfigError(f"--keep {keep}: it holds something already; name a new folder")
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="relay-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
