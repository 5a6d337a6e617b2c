"""What arrived in Kafka and at the webhook against what all tenants had to show, and what is wrong with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from relay.simulator import Version
from tests.e2e.verdict import Arrival, Verdict, from_line, from_record, judge
from tests.support.kafka import Record
from tests.support.receiver import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event as a far side was told it, and the `source` attribute that it bore."""

    arrival: Arrival
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """`repeats` at the webhook are allowed. `strayed` are events that bear the label of another tenant."""

    kafka: Verdict
    webhook: Verdict
    repeats: int
    strayed: int
    only_in_kafka: int
    only_at_the_webhook: int

    @property
    def right(self) -> bool:
        """Kafka: exactly once, in order, no gap. Webhook: the same ids, each at least once, in order when first met."""
        wrong = self.strayed + self.only_in_kafka + self.only_at_the_webhook
        return self.kafka.exactly_once_in_order and self.webhook.exactly_once_in_order and wrong == 0


class _Envelope(msgspec.Struct, frozen=True):
    id: str
    source: str
    subject: str
    sequence: str
    data: msgspec.Raw


def judged(histories: Mapping[str, Iterable[Version]], kafka: Sequence[Told], webhook: Sequence[Told]) -> Judgement:
    """`histories` by label; what was told in the order in which a reader of it finds it."""
    owners = {version.uuid: f"/eset-connect/{label}" for label, history in histories.items() for version in history}
    history = [version for versions in histories.values() for version in versions]
    first_met: dict[str, Arrival] = {}
    for told in webhook:
        first_met.setdefault(told.arrival.id, told.arrival)
    in_kafka = {told.arrival.id for told in kafka}
    return Judgement(
        kafka=judge(history, [told.arrival for told in kafka]),
        webhook=judge(history, list(first_met.values())),
        repeats=len(webhook) - len(first_met),
        strayed=sum(told.source != owners.get(told.arrival.uuid) for told in (*kafka, *webhook)),
        only_in_kafka=len(in_kafka - first_met.keys()),
        only_at_the_webhook=len(first_met.keys() - in_kafka),
    )


def recorded(record: Record) -> Told:
    """One record of a topic."""
    return Told(arrival=from_record(record), source=record.headers["ce_source"])


def posted(asked: Asked) -> Told:
    """One request to the webhook, whose envelope and headers must say what its data says."""
    envelope = msgspec.json.decode(asked.body, type=_Envelope)
    arrival = from_line(bytes(envelope.data))
    assert arrival.id == envelope.id == asked.headers["webhook-id"]
    assert arrival.uuid == envelope.subject
    assert arrival.sequence == int(envelope.sequence)
    return Told(arrival=arrival, source=envelope.source)
