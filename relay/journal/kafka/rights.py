"""What the Kafka journal has to be allowed, and which of it is missing, all at once. Not who may do what else."""

from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]

from relay.errors import Unavailable
from relay.journal.kafka.broker import TopicPlan
from relay.sinks.kafka_cluster import Plan, Topics

_OF_TOPICS: Final = {
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
}
TOPIC_RIGHTS: Final = ("Create", *_OF_TOPICS)
"""Those on the relay's own topics; Create goes without where they are made by hand."""


def require_rights(
    plan: Plan, admin: Topics, topics: Sequence[TopicPlan], try_transaction: Callable[[], None] | None = None
) -> None:
    """Raises Unavailable, `forbidden`, that names everything which is missing.

    Of topics that are not there yet nothing is known but whether that may be known. Rights on transactional ids show
    when one is used, by `try_transaction`; what else that raises comes out here.
    """
    lacking = []
    if rights := _on_topics(admin, topics):
        lacking.append(f"{listed(rights)} on the topics that begin with {plan.prefix}.")
    if rights := _on_group(admin, plan.prefix):
        lacking.append(f"{listed(rights)} on group {plan.prefix}")
    try:
        if try_transaction is not None:
            try_transaction()
    except Unavailable as refusal:
        if refusal.reason == "forbidden":
            lacking.append(f"Describe and Write on the transactional ids that begin with {plan.prefix}-")
        elif not lacking:
            raise
    if lacking:
        text = plan.named("{user} lacks rights; allow {user} ")
        raise Unavailable(plan.say(text + "; ".join(lacking)), reason="forbidden")


def _on_topics(admin: Topics, topics: Sequence[TopicPlan]) -> list[str]:
    lacking: set[str] = set()
    for topic in topics:
        try:
            _partitions, allowed = admin.look(topic.name)
        except Unavailable as refusal:
            if refusal.reason != "forbidden":
                raise
            return list(TOPIC_RIGHTS)  # not even whether it is there may be known
        if allowed is not None:
            lacking |= {name for name, operation in _OF_TOPICS.items() if operation not in allowed}
    return sorted(lacking)


def _on_group(admin: Topics, group: str) -> list[str]:
    try:
        _members, allowed = admin.group(group)
    except Unavailable as refusal:
        if refusal.reason != "forbidden":
            raise
        return ["Read"]
    return ["Read"] if allowed is not None and AclOperation.READ not in allowed else []


def listed(words: Sequence[str]) -> str:
    """`Describe, Read and Write`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
