"""A simulated tenant over a socket, a folder with a configuration, and the relay as a child process between them."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from relay.clock import SystemClock
from relay.journal.sqlite import SqliteJournal
from relay.simulator import Served, Simulator, Tenant, serve
from tests.support.process import PATIENCE_SECONDS, Child, Finished, child, finished

SOURCE = "acme"
USER = "api@acme.example"
PASSWORD = "the password of acme"
MONTH_SECONDS = 30 * 86_400.0
"""The past is spread so thin that hardly any of it falls into the lookback of a poll."""
LOOKBACK_SECONDS = 20
CONFIGURATION = "relay.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """`tenant` may be changed at any time; the relay sees it by its polls alone."""

    folder: Path
    simulator: Simulator
    tenant: Tenant
    served: Served

    def configure(
        self,
        sinks: Mapping[str, Mapping[str, Any]],
        *,
        source: Mapping[str, Any] | None = None,
        **top: Any,
    ) -> None:
        """Writes the configuration: polls every second, no port or path that another test could want."""
        acme = {
            "base_url": self.served.base_url,
            "token_url": self.served.token_url,
            "username": USER,
            "password": self.tenant.password,
            "poll_interval": "1s",
            "lookback": f"{LOOKBACK_SECONDS}s",
            "backoff": {"initial": "100ms", "max": "1s"},
            "proxy": "none",
        }
        document = {
            "sources": {SOURCE: acme | dict(source or {})},
            "sinks": {name: dict(sink) for name, sink in sinks.items()},
            "journal": {"path": "relay.db"},
            "http": {"host": "127.0.0.1", "port": 0},
            "log": {"level": "debug", "format": "json"},
        }
        (self.folder / CONFIGURATION).write_text(yaml.safe_dump(document | top, sort_keys=False))

    def relay(self) -> AbstractAsyncContextManager[Child]:
        """`relay run`; killed when the block is left, unless it ended."""
        return child(self.folder, "run", "--config", CONFIGURATION)

    async def command(self, *arguments: str, within: float = PATIENCE_SECONDS) -> Finished:
        """Runs a command with this configuration to its end."""
        return await finished(self.folder, *arguments, "--config", CONFIGURATION, within=within)

    async def backlog(self, sink: str) -> int:
        """How many events wait for a sink, by the journal itself; no relay may be running."""
        journal = SqliteJournal(
            self.folder / "relay.db", max_bytes=1 << 31, retention_seconds=1e9, clock=self.simulator.clock
        )
        await journal.open()
        try:
            lease = await journal.sink(sink, start="earliest", keep_seconds=1e9)
            return (await lease.backlog()).events
        finally:
            await journal.close()


@asynccontextmanager
async def stage(folder: Path, *, incidents: int, seed: int = 1, password: str = PASSWORD) -> AsyncIterator[Stage]:
    """A tenant with so many incidents of the last month."""
    simulator = Simulator(SystemClock(), seed=seed)
    tenant = simulator.add_tenant(USER, password, incidents=incidents, spread_seconds=MONTH_SECONDS)
    async with serve(simulator) as served:
        yield Stage(folder=folder, simulator=simulator, tenant=tenant, served=served)


async def until(reached: Callable[[], Awaitable[bool]], what: str, *, within: float = PATIENCE_SECONDS) -> None:
    """Looks again and again. Raises TimeoutError, which says what did not happen."""
    try:
        async with asyncio.timeout(within):
            while not await reached():
                await asyncio.sleep(0.05)
    except TimeoutError as exc:
        raise TimeoutError(f"within {within:.0f} s: {what}") from exc


def report(scenario: str, **numbers: object) -> None:
    """Prints the numbers on one line, and appends them as a line of JSON to the file of RELAY_TEST_REPORT."""
    print(f"\n{scenario}:", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in numbers.items()))  # noqa: T201
    if path := os.environ.get("RELAY_TEST_REPORT"):
        with Path(path).open("ab") as file:
            file.write(msgspec.json.encode({"scenario": scenario, **numbers}) + b"\n")
