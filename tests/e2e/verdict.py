"""What arrived at a far side against what the simulator had to show. Shares no code with the relay, and no bug."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from relay.simulator import Version
from tests.support.kafka import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One event as a consumer finds it. `content` is the incident's JSON, `place` the partition."""

    id: str
    uuid: str
    sequence: int
    content: bytes
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How many of what went wrong.

    `doubled` are versions that came again, by id or by content; `disordered` and `gapped` are incidents.
    """

    versions: int
    arrivals: int
    missing: int
    doubled: int
    foreign: int
    disordered: int
    gapped: int

    @property
    def exactly_once_in_order(self) -> bool:
        """Nothing more, nothing less, nothing out of its turn."""
        wrong = self.missing + self.doubled + self.foreign + self.disordered + self.gapped
        return self.versions == self.arrivals and wrong == 0


def judge(history: Iterable[Version], arrivals: Sequence[Arrival]) -> Verdict:
    """Compares what is held at a far side, in its order, with every version that there was.

    Each version is owed as long as it stayed for one whole poll.
    """
    owed: defaultdict[str, list[bytes]] = defaultdict(list)
    for version in history:
        owed[version.uuid].append(version.content)
    held: defaultdict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        held[arrival.uuid].append(arrival)
    missing = foreign = by_content = disordered = gapped = 0
    for uuid in owed.keys() | held.keys():
        wanted, found = owed[uuid], [arrival.content for arrival in held[uuid]]
        once = list(dict.fromkeys(content for content in found if content in wanted))
        missing += len(wanted) - len(once)
        foreign += sum(content not in wanted for content in found)
        by_content += len(found) - len(set(found))
        in_order = [content for content in wanted if content in once]
        disordered += once != in_order or len({arrival.place for arrival in held[uuid]}) > 1
        gapped += [arrival.sequence for arrival in held[uuid]] != list(range(1, len(held[uuid]) + 1))
    by_id = len(arrivals) - len({arrival.id for arrival in arrivals})
    return Verdict(
        versions=sum(map(len, owed.values())),
        arrivals=len(arrivals),
        missing=missing,
        doubled=max(by_id, by_content),
        foreign=foreign,
        disordered=disordered,
        gapped=gapped,
    )


class _About(msgspec.Struct, frozen=True):
    id: str
    sequence: int


class _Event(msgspec.Struct, frozen=True):
    event: _About
    incident: msgspec.Raw


class _Uuid(msgspec.Struct, frozen=True):
    uuid: str


def from_line(line: bytes, place: int = 0) -> Arrival:
    """One line of a file or of standard output. Raises msgspec.MsgspecError when it is no event."""
    event = msgspec.json.decode(line, type=_Event)
    content = bytes(event.incident)
    return Arrival(
        id=event.event.id,
        uuid=msgspec.json.decode(content, type=_Uuid).uuid,
        sequence=event.event.sequence,
        content=content,
        place=place,
    )


def from_record(record: Record) -> Arrival:
    """One record of a topic, whose key and headers must say what its value says."""
    arrival = from_line(record.value or b"", record.partition)
    assert arrival.uuid == record.key == record.headers["ce_subject"]
    assert arrival.id == record.headers["ce_id"]
    assert arrival.sequence == int(record.headers["ce_sequence"])
    return arrival
