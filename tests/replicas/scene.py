"""Tenants, a webhook, a fleet of relays between them, on one Kafka: built, started, brought to rest, and judged."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from relay.clock import SystemClock
from relay.simulator import Served, Settings, serve
from tests.e2e.stage import CONFIGURATION, MONTH_SECONDS, until
from tests.replicas.faults import HEARTBEAT_SECONDS, SESSION_TIMEOUT_SECONDS, TRANSACTION_TIMEOUT_SECONDS
from tests.replicas.fleet import Fleet, Replica
from tests.replicas.unrest import Unrest
from tests.replicas.verdict import Judgement, judged, posted, recorded
from tests.replicas.watched import LOOKBACK_SECONDS, PASSWORD, Watched
from tests.support.kafka import committed, fresh
from tests.support.receiver import Receiver, receiving

REST_WITHIN_SECONDS: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large, and of what. With the sqlite journal there is one replica: that is for trying the scene itself."""

    replicas: int = 3
    tenants: dict[str, int] = field(default_factory=lambda: tenants(40))
    """The incidents of the past of each, by label."""
    journal: Literal["kafka", "sqlite"] = "kafka"
    poll_seconds: int = 2
    keep_history: bool = True
    when: str = ""
    """The rule of the Kafka sink; nothing: everything."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`watched` may be changed at any time; the relays see it by their polls alone."""

    plan: Plan
    bootstrap: str
    topic: str
    watched: Watched
    receiver: Receiver
    fleet: Fleet

    def unrest(self, *, per_second: float) -> Unrest:
        """Changes to what the tenants have by now, all of which has been read."""
        return Unrest(self.watched, random.Random(self.plan.seed + 1), per_second=per_second)

    async def past_arrived(self, *, within: float = 120.0) -> None:
        """Waits until the topic holds the past of every tenant. Raises TimeoutError."""
        past = sum(self.plan.tenants.values())

        async def holds_it() -> bool:
            return len(await asyncio.to_thread(committed, self.bootstrap, self.topic)) >= past

        await until(holds_it, f"{past} incidents of the past arrived", within=within)

    async def come_to_rest(self, unrest: Unrest) -> None:
        """Waits until all of it was read, and is at both far sides. Raises TimeoutError, which says what is left."""

        async def was_read() -> bool:
            return unrest.all_read()

        try:
            await until(was_read, "everything was read", within=REST_WITHIN_SECONDS)
        except TimeoutError as exc:
            exc.add_note(f"not read: {unrest.unread()}")
            raise
        ids: set[str] = set()

        async def has_arrived() -> bool:
            records = await asyncio.to_thread(committed, self.bootstrap, self.topic)
            ids.update(record.headers["ce_id"] for record in records)
            return len(ids) >= sum(len(tenant.history) for tenant in self.watched.tenants.values())

        async def was_posted() -> bool:
            return ids <= {asked.headers["webhook-id"] for asked in self.receiver.asked}

        for arrived, where in ((has_arrived, "in Kafka"), (was_posted, "at the webhook")):
            try:
                await until(arrived, f"everything is {where}", within=REST_WITHIN_SECONDS / 3)
            except TimeoutError:
                return  # that is for the judge to say, who knows what is missing

    async def judgement(self) -> Judgement:
        """Of all that is at the far sides now."""
        records = await asyncio.to_thread(committed, self.bootstrap, self.topic)
        return judged(
            {label: tenant.history for label, tenant in self.watched.tenants.items()},
            [recorded(record) for record in records],
            [posted(asked) for asked in self.receiver.asked],
        )

    async def aborted_records(self) -> int:
        """What only a reader of aborted transactions sees of the topic."""
        tried = await asyncio.to_thread(committed, self.bootstrap, self.topic, isolation="read_uncommitted")
        return len(tried) - len(await asyncio.to_thread(committed, self.bootstrap, self.topic))

    def losses(self) -> dict[str, int]:
        """How often a replica found that a partition is not its any more, by reason; `fenced`: a zombie was refused."""
        return dict(Counter(line["reason"] for line in self.fleet.told("partition lost")))


def tenants(count: int, *, incidents: int = 25) -> dict[str, int]:
    """So many small ones."""
    return {f"t{number:02}": incidents for number in range(count)}


@asynccontextmanager
async def scene(folder: Path, bootstrap: str, plan: Plan) -> AsyncIterator[Scene]:
    """Everything but the relays runs when the block is entered; no process outlives it."""
    watched = Watched(SystemClock(), seed=plan.seed, settings=Settings(keep_history=plan.keep_history, memo_pages=50))
    for label, incidents in plan.tenants.items():
        watched.add_tenant(label, PASSWORD, incidents=incidents, spread_seconds=MONTH_SECONDS)
    topic, prefix = fresh("replicas"), fresh("relay")
    replicas = []
    async with serve(watched) as served, receiving() as receiver:
        for number in range(plan.replicas):
            replica = Replica(f"r{number}", folder / f"r{number}")
            replica.folder.mkdir(parents=True)
            document = _configuration(plan, replica.name, watched, served) | {
                "kafka_prefix": prefix,
                "kafka": _kafka(bootstrap),
                "sinks": _sinks(plan, topic, receiver),
            }
            (replica.folder / CONFIGURATION).write_text(yaml.safe_dump(document, sort_keys=False))
            replicas.append(replica)
        fleet = Fleet(replicas)
        spilling = asyncio.create_task(fleet.spill(), name="spill the logs")
        try:
            yield Scene(plan=plan, bootstrap=bootstrap, topic=topic, watched=watched, receiver=receiver, fleet=fleet)
        finally:
            spilling.cancel()
            await fleet.close()


def _configuration(plan: Plan, replica: str, watched: Watched, served: Served) -> dict[str, Any]:
    """Replicas differ in where they log in, which tells the simulator who asks, and in nothing else."""
    common = {
        "base_url": served.base_url,
        "token_url": served.base_url + watched.login_path(replica),
        "password": PASSWORD,
        "poll_interval": f"{plan.poll_seconds}s",
        "lookback": f"{LOOKBACK_SECONDS}s",
        "backoff": {"initial": "100ms", "max": "1s"},
        "proxy": "none",
    }
    journal: dict[str, Any] = {"kind": "sqlite", "path": "relay.db"}
    if plan.journal == "kafka":
        journal = {"kind": "kafka", "partitions": 16, "cache_dir": "cache", "retention": "7d"}
    return {
        "sources": {label: common | {"username": label} for label in plan.tenants},
        "api": {"requests_per_second": 200},
        "journal": journal,
        "http": {"host": "127.0.0.1", "port": 0},
        "admin_socket": "socket",
        "log": {"level": "info", "format": "json"},
        "shutdown_grace": "10s",
    }


def _kafka(bootstrap: str) -> dict[str, Any]:
    """librdkafka takes no socket timeout that is longer than that of a transaction."""
    return {
        "bootstrap.servers": bootstrap,
        "session.timeout.ms": round(SESSION_TIMEOUT_SECONDS * 1000),
        "heartbeat.interval.ms": round(HEARTBEAT_SECONDS * 1000),
        "transaction.timeout.ms": round(TRANSACTION_TIMEOUT_SECONDS * 1000),
        "socket.timeout.ms": round(TRANSACTION_TIMEOUT_SECONDS * 1000),
    }


def _sinks(plan: Plan, topic: str, receiver: Receiver) -> dict[str, Any]:
    rule = {"when": plan.when} if plan.when else {}
    return {
        "siem": {"type": "kafka", "topic": topic, "create_topic": {"partitions": 6}} | rule,
        "soar": {"type": "webhook", "url": receiver.url, "proxy": "none"} | rule,
    }
