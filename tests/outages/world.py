"""Everything that an outage is played with: a simulated ESET Connect, Kafka, Slack, Teams, Prometheus and the relay.

Real parts over real sockets; only ESET, Slack and Teams are stand-ins. What fails when is in `scenarios`.
"""

import asyncio
import random
import socket
import subprocess
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

from relay.clock import SECOND, Instant, SystemClock
from relay.demo.chat import Post, compare_posts, post_of
from relay.demo.checker import Owed, owed
from relay.simulator import Served, Simulator, Tenant, serve
from relay.simulator.samples import IN_PROGRESS
from tests.e2e.stage import CONFIGURATION, until
from tests.e2e.verdict import from_line, from_record, judge
from tests.support.broker import Cluster
from tests.support.kafka import committed
from tests.support.process import Child, Finished, child, finished
from tests.support.prometheus import JOB, Prometheus
from tests.support.receiver import Asked, Receiver, Told, receiving

SOURCES: Final = {"acme": "eu", "globex": "eu", "initech": "us"}
"""Each source's region; a region is one address, which can be shut."""
TOPIC: Final = "eset.incidents"
CURSORS: Final = "relay.cursors"
VOLUME_BYTES: Final = 8 << 20
PAGE: Final = 4096
PAST: Final = 60
"""Incidents that each source has at the start."""
CHANGES_PER_SECOND: Final = 3
ONE_IN_HIGH: Final = 15
"""One change in so many goes to Slack, which takes one message a second: that does not run faster."""
WAITING_SECONDS: Final = 3.0
"""What waits for less is on its way: a poll takes 1 s, and Slack takes one message a second."""
HIGH: Final = "INCIDENT_SEVERITY_LEVEL_HIGH"
LOWER: Final = ("INCIDENT_SEVERITY_LEVEL_LOW", "INCIDENT_SEVERITY_LEVEL_MEDIUM")
FIRST_HOOK, SECOND_HOOK = "/services/T024BE7LD/B01/aF4jW1", "/services/T024BE7LD/B02/kQ9xR3"


@dataclass(kw_only=True)
class Region:
    """An address of the simulated ESET Connect that can be shut: then connections to it are refused."""

    simulator: Simulator
    port: int
    _open: AbstractAsyncContextManager[Served] | None = None

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Listens."""
        self._open = serve(self.simulator, port=self.port)
        await self._open.__aenter__()

    async def shut(self) -> None:
        """Drops every connection, and takes no other; nothing if it is shut."""
        was, self._open = self._open, None
        if was is not None:
            await was.__aexit__(None, None, None)


@dataclass(kw_only=True)
class Room:
    """A chat channel: takes what is posted to a webhook that exists; Slack's and Teams' own words else."""

    receiver: Receiver
    hooks: set[str]
    accepted: Told
    refused: Told
    posts: list[Post] = field(default_factory=list)
    refusals: int = 0

    def __post_init__(self) -> None:
        self.receiver.answer = self.answer

    def url(self, hook: str) -> str:
        """Of one of its webhooks."""
        return f"http://127.0.0.1:{self.receiver.port}{hook}"

    def answer(self, asked: Asked) -> Told:
        """Takes the message, unless that webhook was removed."""
        if asked.target not in self.hooks:
            self.refusals += 1
            return self.refused
        self.posts.append(post_of(asked.body, at=SystemClock().now()))
        return self.accepted


@dataclass(kw_only=True)
class Changes:
    """New and changed incidents, all the time. Each version stays, so that each is owed to every sink."""

    tenants: list[Tenant]
    rng: random.Random
    made: int = 0
    _running: asyncio.Event = field(default_factory=asyncio.Event)
    _untouched: dict[str, list[str]] = field(default_factory=dict)

    def begin(self) -> None:
        """From now on; the past has been read, so that it may change."""
        self._untouched = self._untouched or {
            tenant.username: [uuid for uuid in tenant.uuids() if tenant.get(uuid)["severity"] != HIGH]
            for tenant in self.tenants
        }
        self._running.set()

    def rest(self) -> None:
        """Until `begin`."""
        self._running.clear()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._running.wait()
            self._change(self.tenants[self.made % len(self.tenants)])
            self.made += 1
            await asyncio.sleep(1 / CHANGES_PER_SECOND)

    def _change(self, tenant: Tenant) -> None:
        if self.made % ONE_IN_HIGH == 0:
            tenant.create({"severity": HIGH})
            return
        past = self._untouched[tenant.username]
        if past and self.rng.random() < 0.5:
            tenant.update(past.pop(self.rng.randrange(len(past))), {"status": IN_PROGRESS})
        else:
            tenant.create({"severity": self.rng.choice(LOWER)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the far sides hold after the recovery, against what there was."""

    versions: int
    in_kafka: int
    in_file: int
    messages: int
    changes_for_slack: int


@dataclass(kw_only=True)
class World:
    """`relay` is the process that runs now, or that ran last."""

    folder: Path
    simulator: Simulator
    tenants: dict[str, Tenant]
    regions: dict[str, Region]
    broker: Cluster
    slack: Room
    teams: Room
    http_port: int
    prometheus: Prometheus
    changes: Changes
    relay: Child
    _lives: AsyncExitStack

    @property
    def page_url(self) -> str:
        """Of the relay's status page."""
        return f"http://127.0.0.1:{self.http_port}/"

    @property
    def volume(self) -> Path:
        """Where the journal lies."""
        return self.folder / "volume"

    async def start_relay(self) -> None:
        """`relay run`; the one before has to have ended."""
        relay = await self._lives.enter_async_context(child(self.folder, "run", "--config", CONFIGURATION))
        await relay.started()
        self.relay = relay

    async def command(self, *arguments: str, columns: int = 120) -> Finished:
        """Runs a command with the relay's configuration, on a terminal of this width."""
        around = {"COLUMNS": str(columns), "LANG": "C.UTF-8"}
        return await finished(self.folder, *arguments, "--config", CONFIGURATION, environment=around)

    async def flows(self) -> bool:
        """Whether every source and sink is well, and nothing has waited for long."""
        document = await self.relay.status()
        now = datetime.fromisoformat(document["generated_time"])
        waiting = [
            datetime.fromisoformat(one["oldest_waiting_time"] or document["generated_time"])
            for one in document["sinks"]
        ]
        return (
            document["verdict"]["state"] == "flowing"
            and all(one["backfill"]["state"] == "done" for one in document["sources"])
            and (now - min(waiting)).total_seconds() < WAITING_SECONDS
        )

    async def drained(self) -> bool:
        """Whether all is well and nothing waits, which is hardly ever so while changes are made."""
        return await self.flows() and not any(one["backlog_events"] for one in (await self.relay.status())["sinks"])

    async def calm(self) -> None:
        """Nothing changes any more, and Kafka has finished what it acknowledged: it may be killed.

        A lone broker that is killed within 20 ms of a commit may forget it; see `tests.e2e.test_outage`.
        """
        self.changes.rest()
        await asyncio.sleep(1.5)
        await until(self.drained, "all of it was delivered")
        for topic in (TOPIC, CURSORS):
            await asyncio.to_thread(committed, self.broker.bootstrap, topic)

    def fill_volume(self) -> None:
        """Leaves no room beside the journal."""
        with (self.volume / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(PAGE))

    def make_room(self) -> None:
        """Undoes `fill_volume`."""
        (self.volume / "ballast").unlink()

    def file_lines(self) -> list[bytes]:
        """The whole lines that the file sink has written."""
        return [line for line in (self.folder / "events.ndjson").read_bytes().splitlines(keepends=True) if line]

    def owed_to_slack(self, *, until_instant: Instant | None = None, sources: Iterable[str] = SOURCES) -> list[Owed]:
        """The changes that Slack is to be told, up to an instant."""
        return [
            one
            for source in sources
            for one in owed(source, self.tenants[source].history)
            if one.severity == "HIGH"
            and one.since >= self._live_since
            and (until_instant is None or one.since < until_instant)
        ]

    @property
    def _live_since(self) -> Instant:
        """Chat takes nothing of the past."""
        return max(tenant.history[PAST - 1].since for tenant in self.tenants.values()) + 1

    async def slower_than(self, seconds: float, *, sources: Iterable[str], sinks: Iterable[str]) -> list[str]:
        """Which of these sinks do not hold all that these sources showed so many seconds ago, by what they hold."""
        before = self.simulator.clock.now() - int(seconds * SECOND)
        wanted = {version.content for one in sources for version in self.tenants[one].history if version.since < before}
        slow = []
        if "disk" in sinks and wanted - {from_line(line).content for line in self.file_lines()}:
            slow.append("disk")
        if "siem" in sinks:
            records = await asyncio.to_thread(committed, self.broker.bootstrap, TOPIC)
            if wanted - {from_record(record).content for record in records}:
                slow.append("siem")
        if "soc" in sinks:
            missing = compare_posts("soc", self.owed_to_slack(until_instant=before, sources=sources), self.slack.posts)
            slow += ["soc"] * bool(missing[0].missing)
        return slow

    async def held(self) -> Held:
        """What there is at every far side; asserts that it is all that was owed, once and in order."""
        history = [version for tenant in self.tenants.values() for version in tenant.history]
        records = await asyncio.to_thread(committed, self.broker.bootstrap, TOPIC)
        in_kafka = judge(history, [from_record(record) for record in records])
        in_file = judge(history, [from_line(line) for line in self.file_lines()])
        told, note = compare_posts("soc", self.owed_to_slack(), self.slack.posts)
        assert in_kafka.exactly_once_in_order, in_kafka
        assert in_file.exactly_once_in_order, in_file
        assert not [*told.missing, *told.unknown, *told.misplaced], (told, note)
        return Held(
            versions=in_kafka.versions,
            in_kafka=in_kafka.arrivals,
            in_file=in_file.arrivals,
            messages=told.arrived,
            changes_for_slack=told.owed,
        )


@asynccontextmanager
async def world(
    folder: Path, *, rules: Path, small_volume: bool = False, journal_bytes: int | None = None, seed: int = 1
) -> AsyncIterator[World]:
    """Sets it up and waits until data flows and no alert is pending. Leaves nothing behind but the folder."""
    (folder / "volume").mkdir(parents=True)
    simulator = Simulator(SystemClock(), seed=seed)
    tenants = {
        name: simulator.add_tenant(_user(name), _password(name), incidents=PAST, spread_seconds=30 * 86_400.0)
        for name in SOURCES
    }
    http_port, *ports = steady_ports(1 + len(set(SOURCES.values())))
    regions = {
        name: Region(simulator=simulator, port=port)
        for name, port in zip(dict.fromkeys(SOURCES.values()), ports, strict=True)
    }
    async with AsyncExitStack() as stack:
        if small_volume:
            mount(folder / "volume")
            stack.callback(unmount, folder / "volume")
        for region in regions.values():
            await region.open()
            stack.push_async_callback(region.shut)
        slack = Room(
            receiver=await stack.enter_async_context(receiving()),
            hooks={FIRST_HOOK},
            accepted=Told(body=b"ok"),
            refused=Told(status=404, body=b"no_service"),
        )
        teams = Room(
            receiver=await stack.enter_async_context(receiving()),
            hooks={FIRST_HOOK},
            accepted=Told(status=202),
            refused=Told(status=404),
        )
        broker = Cluster(folder / "kafka")
        stack.callback(broker.close)
        prometheus = Prometheus(folder=folder, targets={JOB: [f"127.0.0.1:{http_port}"]}, rules=[rules])
        stack.push_async_callback(prometheus.stop)
        document = configuration(regions, kafka=broker.bootstrap, http_port=http_port, journal_bytes=journal_bytes)
        (folder / CONFIGURATION).write_text(yaml.safe_dump(document, sort_keys=False))
        for name in SOURCES:
            (folder / name).write_text(_password(name))
        (folder / "slack").write_text(slack.url(FIRST_HOOK))
        (folder / "teams").write_text(teams.url(FIRST_HOOK))
        changes = Changes(tenants=list(tenants.values()), rng=random.Random(seed))
        async with asyncio.TaskGroup() as starting:
            starting.create_task(asyncio.to_thread(broker.start))
            starting.create_task(prometheus.start())
        lives = await stack.enter_async_context(AsyncExitStack())
        relay = await lives.enter_async_context(child(folder, "run", "--config", CONFIGURATION))
        await relay.started()
        played = World(
            folder=folder,
            simulator=simulator,
            tenants=tenants,
            regions=regions,
            broker=broker,
            slack=slack,
            teams=teams,
            http_port=http_port,
            prometheus=prometheus,
            changes=changes,
            relay=relay,
            _lives=lives,
        )
        await until(played.drained, "the past was delivered")
        async with running(changes.run()):
            changes.begin()
            await until(lambda: is_quiet(prometheus), "no alert is pending")
            yield played


async def is_quiet(prometheus: Prometheus) -> bool:
    """Whether no alert fires or is about to."""
    return not await prometheus.alerts()


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Does this beside the block, and ends it with the block. What it raised is raised then."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def configuration(
    regions: dict[str, Region], *, kafka: str, http_port: int, journal_bytes: int | None
) -> dict[str, Any]:
    """`relay.yaml`: intervals are a sixtieth of the defaults, and Kafka's patience is short as well."""
    limit = {} if journal_bytes is None else {"max_bytes": f"{journal_bytes}B"}
    return {
        "sources": {name: _source(name, regions[region].url) for name, region in SOURCES.items()},
        "sinks": {
            "siem": {"type": "kafka", "topic": TOPIC},
            "soc": {
                "type": "slack",
                "url_file": "slack",
                "when": 'incident.severity == "HIGH"',
                "notify": "oncall",
                "proxy": "none",
            },
            "oncall": {"type": "teams", "url_file": "teams", "when": "false", "proxy": "none"},
            "disk": {"type": "file", "path": "events.ndjson"},
        },
        "kafka": {"bootstrap.servers": kafka, "transaction.timeout.ms": 2000, "socket.timeout.ms": 2000},
        "journal": {"path": "volume/relay.db"} | limit,
        "http": {"host": "127.0.0.1", "port": http_port},
        "log": {"level": "debug", "format": "json"},
        "shutdown_grace": "5s",
    }


def mount(folder: Path) -> None:
    """A small volume in memory. Raises PermissionError where this machine does not let us."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={VOLUME_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"no right to mount a volume here: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    """Undoes `mount`."""
    subprocess.run(["umount", "-l", str(folder)], check=True)


def steady_ports(count: int) -> list[int]:
    """Free ones below the range that clients' own sockets come from, so that none takes one while nobody listens."""
    ports: set[int] = set()
    while len(ports) < count:
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            ports.add(candidate.getsockname()[1])
    return list(ports)


def _user(source: str) -> str:
    return f"api@{source}.example"


def _password(source: str) -> str:
    return f"the password of {source}"


def _source(name: str, url: str) -> dict[str, Any]:
    return {
        "base_url": url,
        "token_url": f"{url}/oauth/token",
        "username": _user(name),
        "password_file": name,
        "poll_interval": "1s",
        "lookback": "5s",
        "link": "https://console.example/incidents/{uuid}",
        "backoff": {"initial": "100ms", "max": "5s"},
        "proxy": "none",
    }
