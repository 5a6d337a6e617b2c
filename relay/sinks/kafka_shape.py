"""What a Kafka sink writes for an event: into which topic, and which value. Knows no cluster."""

import re
from collections.abc import Collection
from typing import Final

from relay.formats import native
from relay.incidents import severity_name
from relay.sinks import Delivery

_ILLEGAL_IN_TOPIC: Final = re.compile(r"[^a-zA-Z0-9._-]")
_LONGEST_TOPIC: Final = 249


class Shape:
    """The topic, which may hold `{source}` and `{severity}`, and what is left out or cut of a value."""

    def __init__(self, *, topic: str, omit: Collection[str], max_event_bytes: int) -> None:
        self._topic = topic
        self._omit = frozenset(omit)
        self._max_event_bytes = max_event_bytes
        self._templated = "{" in topic
        self._names: dict[tuple[str, str], str] = {}

    def topic(self, delivery: Delivery) -> str:
        """Where this event goes."""
        if not self._templated:
            return self._topic
        key = (delivery.source, delivery.severity)
        name = self._names.get(key)
        if name is None:
            severity = severity_name(delivery.severity).lower()
            name = self._topic.replace("{source}", delivery.source).replace("{severity}", severity)
            name = self._names[key] = _ILLEGAL_IN_TOPIC.sub("_", name)[:_LONGEST_TOPIC]
        return name

    def value(self, delivery: Delivery) -> bytes:
        """What is produced. Raises ValueError when it stays too large, however much is cut."""
        body = native.omit(delivery.body, self._omit)
        return native.truncate(body, self._max_event_bytes) if len(body) > self._max_event_bytes else body
