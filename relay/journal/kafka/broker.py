"""What the Kafka journal needs of Kafka, and no more: logs, transactions under a fenced id, and who owns what.

`relay.journal.kafka.cluster` does it with a real one. Not the client of the Kafka sinks.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from relay.errors import JournalUnavailable, LeaseLost

Headers = tuple[tuple[str, bytes], ...]


class Record(NamedTuple):
    """What is written. `partition` None: by the key. `value` None: the key is gone, in a compacted log."""

    topic: str
    partition: int | None
    key: bytes
    value: bytes | None
    headers: Headers = ()
    name: str = ""
    """By which a refusal names it; empty for what is never refused."""


class Message(NamedTuple):
    """What is read."""

    offset: int
    key: bytes
    value: bytes | None
    headers: Headers


class Fenced(LeaseLost):
    """Somebody else has taken over this transactional id, or a transaction took too long: nothing was written."""


class Doubtful(JournalUnavailable):
    """Whether it was written is only known after the next fence."""


class RecordsRefused(Exception):
    """The brokers refused records for what they are; nothing was written. `names` maps each to its reason."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__(f"{len(names)} records were refused")
        self.names = dict(names)


class TopicPlan(NamedTuple):
    """A topic of the relay as it has to be. Of `settings`, those named in `must` are verified, the others only set."""

    name: str
    partitions: int
    settings: Mapping[str, str]
    must: Sequence[str] = ()
    key: str = ""
    """The key of the configuration that says how many partitions it has, if one does."""


class Writer(Protocol):
    """One transactional id, from its fence to its end. Blocks: for one thread."""

    def fence(self) -> None:
        """Ends whoever used this id before, with what that had not committed. Raises JournalUnavailable."""
        ...

    def commit(self, records: Sequence[Record]) -> Mapping[tuple[str, int], int]:
        """All of them in one transaction; returns the last offset by topic and partition.

        Raises Fenced or RecordsRefused (nothing was written), or Doubtful (it may have been). After Fenced and Doubtful
        this writer is of no use any more; after RecordsRefused it has to be fenced again.
        """
        ...

    def close(self) -> None:
        """Lets go at once; what is not committed never will be."""
        ...


class Reader(Protocol):
    """One partition, from an offset on; sees what is committed only."""

    async def begin(self) -> int:
        """The first offset that is still there. Raises JournalUnavailable."""
        ...

    async def end(self) -> int:
        """The offset behind the last record, of open transactions as well. Raises JournalUnavailable."""
        ...

    async def read(self, limit: int, *, wait: bool = True) -> list[Message]:
        """The next records; none when there are none within a moment. Raises JournalUnavailable."""
        ...

    def reached(self) -> int:
        """The offset of what would be read next: everything before it was read, or is nothing that can be read."""
        ...

    async def close(self) -> None:
        """Lets go."""
        ...


class Change(NamedTuple):
    """What the group says: partitions that are ours from now on, or no longer.

    `revoked` ones may still be written until `Membership.let_go` is called for them; `lost` ones are somebody else's.
    """

    kind: Literal["assigned", "revoked", "lost"]
    partitions: frozenset[int]


class Membership(Protocol):
    """One process in the group that shares the partitions of the state topic."""

    async def change(self) -> Change:
        """The next change, in order; waits for it."""
        ...

    def let_go(self, partitions: frozenset[int]) -> None:
        """These were revoked, and nothing of ours writes to them any more."""
        ...

    async def confirms(self, partition: int) -> bool:
        """Asks the group whether the partition is still ours."""
        ...

    async def leave(self) -> None:
        """Lets others have everything, now."""
        ...


class Broker(Protocol):
    """A Kafka cluster as the journal sees it. Errors hold no secrets."""

    async def connect(self) -> None:
        """Reaches the cluster. Raises JournalUnavailable, JournalMisplaced when it refuses the login or the options."""
        ...

    async def ensure(self, topics: Sequence[TopicPlan]) -> Mapping[str, int]:
        """Makes what is missing, verifies the rest, and every right that a journal needs; the partitions of each.

        Others may do the same meanwhile. Raises JournalMisplaced with the cure for a topic that is wrong or may not be
        made, and for rights that are missing, JournalUnavailable.
        """
        ...

    async def partitions(self, topic: str) -> int:
        """How many the topic has, 0 when there is none. Raises JournalUnavailable."""
        ...

    def writer(self, transactional_id: str) -> Writer:
        """A producer under this id, not fenced yet."""
        ...

    async def reader(self, topic: str, partition: int, offset: int) -> Reader:
        """Reads from this offset on; from the first that is there when it is earlier."""
        ...

    async def end(self, topic: str, partition: int) -> int:
        """The offset behind the last record, of open transactions as well. Raises JournalUnavailable."""
        ...

    async def join(self, group: str, topic: str) -> Membership:
        """Takes part in the sharing of this topic's partitions."""
        ...

    async def members(self, group: str) -> list[str]:
        """Who takes part at present, by client id and host. Raises JournalUnavailable."""
        ...

    async def post(self, topic: str, records: Sequence[Record]) -> None:
        """Writes outside any transaction; acknowledged on return. Raises JournalUnavailable."""
        ...

    async def close(self) -> None:
        """Lets go of everything, within a few seconds."""
        ...
