"""What all processes of one Kafka journal agree on: one record of its control topic, written under a fence."""

import asyncio
import secrets
import zlib
from collections.abc import Callable
from typing import Final

import msgspec

from relay.clock import Clock
from relay.errors import JournalIncompatible, JournalMisplaced, LeaseLost
from relay.journal import Component
from relay.journal.kafka.broker import Broker, Doubtful, Message, Record
from relay.journal.kafka.partition import Topics

META_KEY: Final = b"meta"
META_VERSION: Final = 1
RETRY_SECONDS: Final = 0.1
DOUBT_SECONDS: Final = 10.0
"""For so long a commit in doubt is settled by another fence: brokers fail those of two that fence each other."""


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed at the first start, and where tasks stay that were renamed since.

    `made` tells it from every other journal that has the same id, of which it may be a copy. `whole`: false while a
    copy is being made of it, and for ever when that was interrupted.
    """

    version: int = META_VERSION
    id: str
    partitions: int
    places: dict[str, int] = {}
    made: str = ""
    whole: bool = True

    def place(self, component: str, name: str) -> int:
        """The partition of a task."""
        task = f"{component}\0{name}"
        kept = self.places.get(task)
        return kept if kept is not None else zlib.crc32(task.encode()) % self.partitions

    def placed(self, component: Component, name: str, partition: int) -> "Meta":
        """The same, with this task in that partition from now on."""
        return msgspec.structs.replace(self, places=self.places | {f"{component}\0{name}": partition})

    def require_usable(self, topics: Topics) -> None:
        """Raises JournalIncompatible, JournalMisplaced."""
        if self.version > META_VERSION + 1:
            raise JournalIncompatible(
                f"the journal {topics.prefix} on Kafka was written by a newer relay (version {self.version}); run that "
                "version"
            )
        if not self.whole:
            raise JournalMisplaced(
                f"the journal {topics.prefix} on Kafka is half a copy: `relay journal copy` is at work, or was "
                f"interrupted; then {topics.cure}, and run that again"
            )

    def require_partitions(self, wanted: int, topics: Topics) -> None:
        """Raises JournalMisplaced unless the journal was begun with so many."""
        if self.partitions != wanted:
            raise JournalMisplaced(
                f"journal.partitions is {wanted}, but the journal {topics.prefix} was begun with {self.partitions}, "
                f"which is fixed for ever; write partitions: {self.partitions}, or move to another kafka_prefix with "
                "`relay journal copy`"
            )


def new_meta(partitions: int, *, ident: str = "", whole: bool = True) -> Meta:
    """That of a journal which begins, under a new id unless it is a copy."""
    return Meta(id=ident or secrets.token_hex(8), partitions=partitions, made=secrets.token_hex(8), whole=whole)


async def read_meta(broker: Broker, topics: Topics) -> Meta | None:
    """The last that was written; None in a journal that has not begun. Raises JournalError."""
    reader = await broker.reader(topics.control, 0, 0)
    found: Meta | None = None
    try:
        end = await reader.end()
        while reader.reached() < end:
            for message in await reader.read(500):
                if message.key == META_KEY and message.value is not None:
                    found = _decoded(message, topics.control)
    finally:
        await reader.close()
    return found


async def write_meta(broker: Broker, topics: Topics, change: Callable[[Meta | None], Meta], *, clock: Clock) -> Meta:
    """Of several that change it at once, the last to fence sees what the others have written. Raises JournalError."""
    began = clock.monotonic()
    while True:
        writer = broker.writer(f"{topics.prefix}-meta")
        try:
            await asyncio.to_thread(writer.fence)
            meta = change(await read_meta(broker, topics))
            record = Record(topics.control, 0, META_KEY, msgspec.json.encode(meta))
            await asyncio.to_thread(writer.commit, [record])
        except (LeaseLost, Doubtful) as error:
            if isinstance(error, Doubtful) and clock.monotonic() - began > DOUBT_SECONDS:
                raise
        else:
            return meta
        finally:
            await asyncio.to_thread(writer.close)
        await asyncio.sleep(RETRY_SECONDS)


def _decoded(message: Message, topic: str) -> Meta:
    try:
        return msgspec.json.decode(message.value or b"", type=Meta)
    except msgspec.MsgspecError as exc:
        raise JournalMisplaced(
            f"topic {topic} holds something that is no description of a journal; set another kafka_prefix"
        ) from exc
