"""The distributed journal: state in Kafka, any number of processes, no volume.

`journal`: what the relay sees. `partition`: the tasks that one process owns together. `changelog`: rows as records.
`inline`: Kafka sinks in the transaction of the poll. `bulletin`: what processes tell each other. `broker`: what is
needed of Kafka; `cluster`: a real one.
"""

from relay.journal.kafka.cluster import KafkaBroker
from relay.journal.kafka.inline import InlineSink
from relay.journal.kafka.journal import KafkaJournal

__all__ = ["InlineSink", "KafkaBroker", "KafkaJournal"]
