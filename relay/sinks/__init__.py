"""The contract of a sink. A sink knows nothing of retries, order or storage."""

from collections.abc import Sequence
from typing import Literal, Protocol, Self

import msgspec

from relay.clock import Instant
from relay.formats.message import Notice
from relay.incidents import Event, Kind, Origin


class Delivery(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event on its way to one sink.

    `position` is its place in the journal (grows with time), `body` the event's `native` JSON value without white
    space, `severity` the raw enum value, `attempts` how often it was tried before.
    """

    position: int
    id: str
    kind: Kind
    source: str
    origin: Origin
    uuid: str
    sequence: int
    updated: Instant
    severity: str
    body: bytes
    attempts: int = 0

    @classmethod
    def of(cls, position: int, event: Event, body: bytes) -> Self:
        """The first delivery of an event, as a journal hands it out that has it at this position."""
        return cls(
            position=position,
            id=event.id,
            kind=event.kind,
            source=event.source,
            origin=event.origin,
            uuid=event.uuid,
            sequence=event.sequence,
            updated=event.updated,
            severity=event.severity,
            body=body,
        )


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far an atomic sink's far side has got: everything up to `position` of journal `journal_id` is there."""

    journal_id: str
    position: int


class Sink(Protocol):
    """One far side.

    `atomic` sinks store the position on the far side, in the same transaction as the events.
    """

    max_batch: int
    atomic: bool

    async def open(self) -> Position | None:
        """Connects. Atomic sinks fence every predecessor first, then return what the far side already holds.

        May be called again after it failed. Raises Unavailable or Gone; ConfigError when only a person can help.
        """
        ...

    async def send(self, batch: Sequence[Delivery], *, upto: int | None) -> None:
        """Delivers the batch in its order; returning acknowledges all of it, durably.

        `upto` is the journal position that is reached with it; an atomic sink stores it with the batch, which may be
        empty (everything in the range was skipped). None: these are out of the sequence and move nothing.
        Raises Refused (these messages are at fault; an atomic sink has kept nothing of the batch), Unavailable or
        Gone. May be cancelled: then the outcome is unknown, and the same batch will be sent again after `open`.
        """
        ...

    async def probe(self) -> str:
        """Tries what can be tried without sending an event; says in one line what was found. Raises SinkError."""
        ...

    async def close(self, timeout_seconds: float) -> None:
        """Lets go of the far side within that time. Never raises; `open` may follow."""
        ...


class MessageSink(Sink, Protocol):
    """A far side that takes one message at a time; a batch of several is one message that stands for all of them."""

    outcome: Literal["delivered", "accepted"]
    """What an acknowledgement means: it is there, or somebody took it on."""

    async def tell(self, notice: Notice) -> None:
        """Posts what is no event. Raises Refused, Unavailable or Gone; does nothing where only programs read."""
        ...
