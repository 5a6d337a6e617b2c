"""What the Kafka sink must know of its cluster: options, topics, and what an error means. Nothing is sent here.

Everything blocks, in the sink's worker thread.
"""

import logging
import re
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AclOperation, AdminClient, ConfigResource, OffsetSpec  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

from relay.errors import ConfigError, Unavailable

KIB: Final = 1024
SLICE_SECONDS: Final = 0.25
"""No call into librdkafka blocks for longer, so that a cancelled or closed sink lets go soon."""

CONNECT_SECONDS: Final = 8.0
"""How long a person waits for the first broker to answer."""

DEFAULTS: Final[Mapping[str, str | int]] = {
    "client.id": "incident-relay",
    "compression.type": "lz4",
    "linger.ms": 1,
    # A transaction that nobody finishes hides everything behind it from readers for as long.
    "transaction.timeout.ms": 30_000,
    # A broker that is frozen, not gone, is given up after this; librdkafka's own 60 s would hold everything.
    "socket.timeout.ms": 10_000,
    # What goes wrong is raised here, once; librdkafka repeats every refused connection.
    "log_level": 2,
}
_SHARED: Final = ("bootstrap.", "broker.", "client.", "enable.s", "https.", "log", "metadata.", "reconnect.", "retry.")
_SECURITY: Final = ("sasl.", "security.", "socket.", "ssl.")
_CURSORS: Final[Mapping[str, str]] = {
    "cleanup.policy": "compact",
    # The whole topic is read at each start: keep what compaction may not touch yet short.
    "segment.bytes": str(16 * KIB * KIB),
    "segment.ms": str(3_600_000),
    "min.cleanable.dirty.ratio": "0.1",
}
_SECRET: Final = re.compile(r"password|secret|key\.pem|sasl\.oauthbearer\.config|sasl\.jaas", re.IGNORECASE)
_UNKNOWN_TOPIC: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
_LOGIN: Final = (
    "login_refused",
    "the broker refused the login",
    "check sasl.mechanism, sasl.username and sasl.password",
)
_FENCED: Final = ("fenced", "", "another relay uses this transactional id, or the transaction took too long")
_NO_TOPIC: Final = ("no_topic", "", "the topic was deleted; it is looked for again")
_NO_TRANSACTIONS: Final = (
    "unavailable",
    "the brokers know no transactions, or not this kind of group",
    "use Apache Kafka 2.5 or later, or what is compatible with it in both",
)
_SAME_INSTANCE: Final = (
    "unavailable",
    "another process uses this group.instance.id, or one that was killed did",
    "give each replica one of its own",
)
NO_COORDINATOR: Final = (
    "let transaction.state.log.replication.factor and transaction.state.log.min.isr of the brokers be no more than "
    "the brokers that run, and all of these reachable"
)
"""What a transaction waits for that is never begun, on a cluster that answers otherwise."""
_UNREACHED: Final = (
    "unavailable",
    "no broker could be used",
    "check bootstrap.servers and security.protocol, and that this machine reaches every broker by its advertised name",
)
_HINTS: Final[Mapping[int, tuple[str, str, str]]] = {
    KafkaError._AUTHENTICATION: _LOGIN,
    KafkaError.SASL_AUTHENTICATION_FAILED: _LOGIN,
    KafkaError._SSL: ("tls", "TLS failed", "check security.protocol, ssl.ca.location and the broker's certificate"),
    KafkaError._FENCED: _FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH: _FENCED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: (
        "forbidden",
        "{user} lacks a right",
        "{rights}",
    ),
    KafkaError.GROUP_AUTHORIZATION_FAILED: (
        "forbidden",
        "{user} may not take part in group {prefix}",
        "allow {user} Read on group {prefix}",
    ),
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: (
        "forbidden",
        "{user} lacks a right",
        "allow {user} IdempotentWrite on the cluster",
    ),
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: (
        "forbidden",
        "{user} may not use transactions",
        "allow {user} Describe and Write on the transactional ids that begin with {prefix}-",
    ),
    **dict.fromkeys(_UNKNOWN_TOPIC, _NO_TOPIC),
    **dict.fromkeys((KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION), _NO_TRANSACTIONS),
    **dict.fromkeys((KafkaError.FENCED_INSTANCE_ID, KafkaError.UNRELEASED_INSTANCE_ID), _SAME_INSTANCE),
}
"""By code: the reason, what it means and what to do."""
_NOISE: Final = re.compile(
    r"^\w+://|/bootstrap(?=:)|Connect to \S+ failed: |SASL authentication error: | \(after \d+ms in state .*\)"
)
"""What librdkafka adds, and nobody needs."""
MISSING: Final = "create it, or leave create_topic out, so that the relay makes it"
_ELSEWHERE: Final = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
"""A new cluster, or one that moves its work about, answers so for a moment: the next one may be asked."""
_DECISIVE: Final = (KafkaError._AUTHENTICATION, KafkaError._SSL)

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the operator asked for."""

    name: str
    options: Mapping[str, str] = field(repr=False)
    topic: str
    prefix: str
    journal_id: str
    transactional: bool
    max_event_bytes: int
    create_topic: bool
    partitions: int
    replication_factor: int
    omit: frozenset[str]
    patience_seconds: float
    title: str = ""
    """How its lines begin, where it is no sink's."""
    rights: str = "allow {user} Describe and Write on topic {topic}; on {cursors} also Create, Read and DescribeConfigs"
    """What to allow, where a topic may not be used; with places for names."""

    @property
    def cursors(self) -> str:
        """The topic of positions."""
        return f"{self.prefix}.cursors"

    @property
    def transactional_id(self) -> str:
        """Whoever uses it fences whoever used it before."""
        return f"{self.prefix}-{self.journal_id}-{self.name}"

    def named(self, text: str) -> str:
        """`text` with the names of this sink in its places."""
        user = self.options.get("sasl.username")
        return text.replace("{rights}", self.rights).format(
            user=f"User:{user}" if user else "the relay's user",
            topic=self.topic,
            cursors=self.cursors,
            prefix=self.prefix,
        )

    def connection(self) -> dict[str, Any]:
        """The options that every kind of client takes."""
        known = {**DEFAULTS, **self.options}
        return {key: value for key, value in known.items() if key.startswith((*_SHARED, *_SECURITY))}

    def cluster(self, brokers: int) -> str:
        """How `check` begins its line."""
        encrypted = self.options.get("security.protocol", "").lower() in {"ssl", "sasl_ssl"}
        return f"kafka: {count(brokers, 'broker')}, {'TLS' if encrypted else 'no TLS'}"

    def say(self, text: str, error: KafkaError | None = None) -> str:
        """One line about this sink, without secrets."""
        line = f"{self.title or f'kafka sink {self.name}'}: {text}" + (
            f": {_NOISE.sub('', error.str())}" if error is not None else ""
        )
        for key, value in self.options.items():
            if value and _SECRET.search(key):
                line = line.replace(value, "***")
        return line[:512]


class Watch:
    """Decides how long a silent cluster is waited for, and listens to what is only said aside.

    A refused login or certificate raises nothing: librdkafka tells its error callback and tries again for ever.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stop = threading.Event()
        self._refusal: KafkaError | None = None
        self._latest: KafkaError | None = None
        self._deadline = 0.0

    def begin(self) -> None:
        """A new piece of work begins, with all of the patience."""
        self._refusal = self._latest = None
        self._deadline = time.monotonic() + self._plan.patience_seconds

    def hear(self, error: KafkaError) -> None:
        """librdkafka's error callback."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._latest = error
        if error.code() in _DECISIVE:
            self._refusal = error

    def interrupt(self) -> None:
        """Lets work in hand fail at its next check."""
        self._stop.set()

    def pause(self, doing: str) -> None:
        """Waits a moment before the next look."""
        self._stop.wait(SLICE_SECONDS / 5)
        self.check(doing)

    def check(self, doing: str, error: KafkaError | None = None, *, hint: str = "") -> None:
        """Returns when waiting on makes sense; raises Unavailable otherwise, with `hint` if nothing else was heard."""
        if self._refusal is not None:
            raise self.unavailable(doing, self._refusal)
        if self._stop.is_set():
            raise Unavailable(self._plan.say(f"{doing} was interrupted"), reason="closed")
        if time.monotonic() > self._deadline:
            if hint and self._latest is None:
                raise self._told(f"{doing} took too long", None, "unavailable", hint)
            raise self.unavailable(f"{doing} took too long", self._latest or error)

    def unavailable(self, doing: str, error: KafkaError | None) -> Unavailable:
        """What this error means for the operator."""
        reason, meaning, hint = _HINTS.get(error.code(), ("unavailable", "", "")) if error else ("unavailable", "", "")
        if reason == "forbidden":  # the broker's own words say no more
            error = None
        return self._told(f"{doing}: {self._plan.named(meaning)}" if meaning else doing, error, reason, hint)

    def unreached(self, error: KafkaError) -> Unavailable:
        """Nothing was answered at all: what was heard aside says more than that it took too long."""
        reason, meaning, hint = _UNREACHED
        return self._told(meaning, self._latest or error, reason, hint)

    def _told(self, text: str, error: KafkaError | None, reason: str, hint: str) -> Unavailable:
        text = self._plan.say(text, error)
        return Unavailable(f"{text}; {self._plan.named(hint)}" if hint else text, reason=reason)


class Topics:
    """The topics of the cluster, by an admin client that lives for one piece of work."""

    def __init__(self, plan: Plan, watch: Watch) -> None:
        self._plan = plan
        self._watch = watch
        options: dict[str, Any] = {**plan.connection(), "error_cb": watch.hear, "logger": log}
        self._admin = AdminClient(options)

    def brokers(self) -> int:
        """How many nodes the cluster has. Raises Unavailable when none answers."""
        try:
            return len(self._ask("connecting", self._admin.describe_cluster(request_timeout=CONNECT_SECONDS)).nodes)
        except KafkaException as exc:
            raise self._watch.unreached(error_of(exc)) from exc

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has, 0 when there is none. Raises Unavailable when it may not be written."""
        partitions, operations = self.look(topic)
        if operations is not None and AclOperation.WRITE not in operations:
            raise Unavailable(
                self._plan.say(f"topic {topic} may not be written; {self._plan.named('allow {user} Write on it')}"),
                reason="forbidden",
            )
        return partitions

    def look(self, topic: str) -> tuple[int, Collection[AclOperation] | None]:
        """How many partitions it has, 0 when there is none; and what may be done with it, None when it can't be told.

        Raises Unavailable, `forbidden` when not even that may be known.
        """
        asked = self._admin.describe_topics(TopicCollection([topic]), include_authorized_operations=True)
        try:
            found = self._ask(f"looking at topic {topic}", asked[topic])
        except KafkaException as exc:
            if error_of(exc).code() in _UNKNOWN_TOPIC:
                return 0, None
            if error_of(exc).code() == KafkaError._TIMED_OUT:
                raise self._watch.unreached(error_of(exc)) from exc
            raise self._watch.unavailable(f"looking at topic {topic}", error_of(exc)) from exc
        return len(found.partitions), found.authorized_operations

    def describe(self) -> str:
        """What there is of the user's topic, or would be. Raises ConfigError when it has to be made by hand."""
        topic = self._plan.topic
        if "{" in topic:
            return f"topics {topic}, made when they are needed"
        if partitions := self.partitions(topic):
            return f"topic {topic} with {count(partitions, 'partition')}"
        if not self._plan.create_topic:
            raise ConfigError(self._plan.say(f"topic {topic} does not exist; {MISSING}"))
        self.try_to_create(topic, self._plan.partitions, {})
        return f"topic {topic} to be made with {count(self._plan.partitions, 'partition')}"

    def ensure(self, topic: str) -> None:
        """The user's topic exists. Raises ConfigError when it has to be made by hand."""
        if self.partitions(topic):
            return
        if not self._plan.create_topic:
            raise ConfigError(self._plan.say(f"topic {topic} does not exist; {MISSING}"))
        self._create(topic, self._plan.partitions, {})
        self.partitions(topic)

    def verify(
        self, topic: str, partitions: int, settings: Mapping[str, str], must: Sequence[str], *, key: str = ""
    ) -> int:
        """One of the relay's own topics, which is there, is as it has to be; how many partitions it has.

        Of its `settings` those in `must` count, where they differ; `key` is the one of the configuration that says how
        many partitions there are. Raises ConfigError with the cure.
        """
        found, _operations = self.look(topic)
        has = self._settings(topic)
        wrong = [f"{name}={has.get(name)}" for name in must if not _same(has.get(name, ""), settings[name])]
        if wrong:
            wants = ", ".join(f"{name}={settings[name]}" for name in must)
            cure = f"it needs {wants}: set that, or set another kafka_prefix"
            raise ConfigError(self._plan.say(f"topic {topic} has {' and '.join(wrong)}; {cure}"))
        if found != partitions:
            cure = f"write {key}: {found}, or set another kafka_prefix" if key else "set another kafka_prefix"
            text = f"topic {topic} has {count(found, 'partition')} instead of {partitions}"
            raise ConfigError(self._plan.say(f"{text}; {cure}"))
        return found

    def create(self, topic: str, partitions: int, config: Mapping[str, str]) -> None:
        """It is there when this returns, though others make it just now. Raises ConfigError with the cure."""
        self._create(topic, partitions, config)

    def try_to_create(self, topic: str, partitions: int, config: Mapping[str, str]) -> None:
        """Has the brokers say whether they would make it. Raises ConfigError with the cure."""
        self._create(topic, partitions, config, only_try=True)

    def ensure_cursors(self) -> None:
        """The topic of positions exists, is compacted and has one partition. Raises ConfigError with the cure."""
        topic = self._plan.cursors
        partitions = self.partitions(topic)
        if partitions == 0:
            self._create(topic, 1, _CURSORS)
            self.partitions(topic)
            return
        policy = self._cleanup_policy(topic)
        if policy != "compact" or partitions != 1:
            raise ConfigError(
                self._plan.say(
                    f"topic {topic} has cleanup.policy={policy} and {count(partitions, 'partition')}; to keep positions"
                    " it needs cleanup.policy=compact and 1 partition: mend it, or set another kafka_prefix"
                )
            )

    def members(self, group: str) -> list[str]:
        """Who takes part in this group at present."""
        return self.group(group)[0]

    def group(self, group: str) -> tuple[list[str], Collection[AclOperation] | None]:
        """Who takes part in it at present, and what may be done with it, None when that can't be told."""
        doing = f"looking at group {group}"
        while True:
            asked = self._admin.describe_consumer_groups(
                [group], include_authorized_operations=True, request_timeout=CONNECT_SECONDS
            )
            try:
                found = self._ask(doing, asked[group])
                break
            except KafkaException as exc:
                code = error_of(exc).code()
                if code in {KafkaError.GROUP_ID_NOT_FOUND, KafkaError.INVALID_GROUP_ID}:
                    return [], None
                if code not in _ELSEWHERE:
                    raise self._watch.unavailable(doing, error_of(exc)) from exc
                self._watch.pause(doing)
        names = sorted(f"{member.client_id} on {member.host.lstrip('/')}" for member in found.members)
        return names, found.authorized_operations

    def end_of_cursors(self) -> int:
        """The offset behind the last record, of open transactions as well."""
        doing = "looking for the end of the positions"
        partition = TopicPartition(self._plan.cursors, 0)
        while True:
            asked = self._admin.list_offsets(
                {partition: OffsetSpec.latest()},  # type: ignore[no-untyped-call]
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
            )
            try:
                return int(self._ask(doing, asked[partition]).offset)
            except KafkaException as exc:
                if error_of(exc).code() != KafkaError._NOENT:  # a new topic, of whose leader nobody has heard yet
                    raise
                self._watch.pause(doing)

    def _cleanup_policy(self, topic: str) -> str:
        return self._settings(topic)["cleanup.policy"]

    def _settings(self, topic: str) -> dict[str, str]:
        """Those of a topic that is there, though the broker that is asked may not have heard of it yet."""
        doing = f"reading the settings of topic {topic}"
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        while True:
            try:
                found = self._ask(doing, self._admin.describe_configs([resource])[resource])
            except KafkaException as exc:
                if error_of(exc).code() not in _UNKNOWN_TOPIC:
                    raise self._watch.unavailable(doing, error_of(exc)) from exc
                self._watch.pause(doing)
            else:
                return {key: entry.value for key, entry in found.items()}

    def _create(self, topic: str, partitions: int, config: Mapping[str, str], *, only_try: bool = False) -> None:
        wanted = NewTopic(topic, partitions, self._plan.replication_factor, config=dict(config))
        try:
            self._ask(f"creating topic {topic}", self._admin.create_topics([wanted], validate_only=only_try)[topic])
        except KafkaException as exc:
            error = error_of(exc)
            if error.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                told = self._plan.say(f"topic {topic} {'cannot' if only_try else 'could not'} be created", error)
                cure = self._cure(error, topic, partitions, config)
                raise ConfigError(f"{told.removesuffix('.')}; {cure}") from exc
        while not only_try and not self.look(topic)[0]:
            self._watch.pause(f"waiting for the new topic {topic}")

    def _cure(self, error: KafkaError, topic: str, partitions: int, config: Mapping[str, str]) -> str:
        """What lets a topic be there that was refused."""
        settings = "".join(f", {key}={value}" for key, value in config.items())
        by_hand = f"create it by hand ({count(partitions, 'partition')}{settings})"
        if error.code() == KafkaError.INVALID_REPLICATION_FACTOR:
            return f"let replication_factor be no more than the brokers that run, or {by_hand}"
        if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
            own = topic.startswith(f"{self._plan.prefix}.")
            where = f"the topics that begin with {self._plan.prefix}." if own else "it"
            return f"{self._plan.named('allow {user} Create')} on {where}, or {by_hand}"
        return by_hand

    def _ask(self, doing: str, future: "Future[Answer]") -> Answer:
        while True:
            try:
                return future.result(SLICE_SECONDS)
            except TimeoutError:
                self._admin.poll(0)
                self._watch.check(doing)
            except KafkaException as exc:
                if not error_of(exc).retriable() or error_of(exc).code() in _ELSEWHERE:
                    raise
                raise self._watch.unavailable(doing, error_of(exc)) from exc


def _same(one: str, other: str) -> bool:
    """Settings that are lists have no order."""
    return set(one.split(",")) == set(other.split(","))


def count(number: int, noun: str) -> str:
    """`1 broker`, `3 brokers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def error_of(exc: KafkaException) -> KafkaError:
    """The code and the flags that the exception carries."""
    error: KafkaError = exc.args[0]
    return error
