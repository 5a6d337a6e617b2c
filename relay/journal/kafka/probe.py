"""What `relay check` finds out about a journal on Kafka, beside whoever uses it: it joins nothing and makes nothing.

It commits one transaction, under an id that fences nobody, with a record that says nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from confluent_kafka import KafkaException

from relay.errors import ConfigError, Unavailable
from relay.journal.kafka.broker import Record, TopicPlan
from relay.journal.kafka.cluster import KafkaBroker, inline_plan, journal_plan, try_transaction
from relay.journal.kafka.meta import Meta, read_meta
from relay.journal.kafka.partition import Topics as Names
from relay.journal.kafka.rights import require_rights
from relay.sinks.kafka_cluster import Plan, Topics, Watch, error_of
from relay.sinks.worker import Worker

T = TypeVar("T")

PATIENCE_SECONDS: Final = 8.0
"""A person waits."""
_KEY: Final = b"-check"
"""Nobody reads it. Its record is a tombstone, which compaction removes."""
_CLOSE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is. `meta` is None in a journal that has not begun; `missing` are topics that the brokers would make.

    `committed`: a transaction was; without a topic to write to it was only begun.
    """

    cluster: str
    missing: Sequence[str]
    meta: Meta | None
    committed: bool
    members: int


class Probe:
    """One cluster, looked at once. `options` are librdkafka's own."""

    def __init__(self, options: Mapping[str, str], *, prefix: str, replication_factor: int = -1) -> None:
        plan = journal_plan(options, prefix=prefix, replication_factor=replication_factor)
        self._plan = replace(plan, patience_seconds=PATIENCE_SECONDS)
        self._names = Names(prefix=prefix)
        self._broker = KafkaBroker(options, prefix=prefix, replication_factor=replication_factor)
        self._worker = Worker("probe the journal")

    async def journal(self, plans: Sequence[TopicPlan]) -> Found:
        """Tries all that the journal needs. Raises ConfigError, SinkError or JournalError, with the cure."""
        found = await self._worker.run(partial(self._journal, plans))
        if self._names.control in found.missing:
            return found
        return replace(found, meta=await read_meta(self._broker, self._names))

    async def topic(self, topic: str, *, create: bool, partitions: int, replication_factor: int) -> str:
        """What there is of a topic that is written with the polls, or would be. Raises ConfigError, SinkError."""
        plan = inline_plan(
            self._plan, topic=topic, create=create, partitions=partitions, replication_factor=replication_factor
        )
        return await self._worker.run(lambda: _asked(plan, Topics.describe))

    async def close(self) -> None:
        """Lets go."""
        await self._broker.close()
        await self._worker.finish(lambda: None, _CLOSE_SECONDS)

    def _journal(self, plans: Sequence[TopicPlan]) -> Found:
        return _asked(self._plan, partial(self._try_all, plans))

    def _try_all(self, plans: Sequence[TopicPlan], admin: Topics) -> Found:
        cluster = self._plan.cluster(admin.brokers())
        there = _there(admin, plans)
        control = self._names.control
        records = [Record(control, 0, _KEY, None)] if any(plan.name == control for plan in there) else []
        require_rights(self._plan, admin, plans, partial(try_transaction, self._plan, "check", *records))
        for plan in plans:
            if plan in there:
                admin.verify(plan.name, plan.partitions, plan.settings, plan.must, key=plan.key)
            else:
                admin.try_to_create(plan.name, plan.partitions, plan.settings)
        return Found(
            cluster=cluster,
            missing=[plan.name for plan in plans if plan not in there],
            meta=None,
            committed=bool(records),
            members=len(admin.members(self._plan.prefix)),
        )


def _there(admin: Topics, plans: Sequence[TopicPlan]) -> list[TopicPlan]:
    try:
        return [plan for plan in plans if admin.look(plan.name)[0]]
    except Unavailable as refusal:
        if refusal.reason != "forbidden":
            raise
        return []  # what is missing is told together with all other rights


def _asked(plan: Plan, ask: Callable[[Topics], T]) -> T:
    watch = Watch(plan)
    watch.begin()
    try:
        admin = Topics(plan, watch)
    except KafkaException as exc:
        raise ConfigError(plan.say("the options cannot be used", error_of(exc))) from exc
    try:
        return ask(admin)
    except KafkaException as exc:
        raise watch.unavailable("looking at the cluster", error_of(exc)) from exc
