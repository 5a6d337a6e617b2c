"""What the demo says while it runs: what was done, and a few of the events that arrived. Not the summary."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.text import Text

from relay.clock import Clock
from relay.demo.checker import Arrival
from relay.incidents import severity_name
from relay.words import inert, moment

LOOK_SECONDS: Final = 0.05
_INDENT: Final = 8
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Screen:
    """Writes to a terminal or a pipe, line by line. Seconds count from its making."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._began = clock.monotonic()
        self._wanted = 0

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return self._clock.monotonic() - self._began

    def headline(self, text: str) -> None:
        """What this is, above everything."""
        self._write(Text(text, style="bold"))

    def say(self, text: str, *, events: int = 0) -> None:
        """What was done, with its time; so many of the events that come of it are shown."""
        self.blank()
        lead = Text(f"{int(self.seconds):>4} s", style="dim")
        room = max(20, self._console.width - _INDENT)
        for line in Text(text).wrap(self._console, room):
            self._write(Text.assemble(lead, "  ", line))
            lead = Text(" " * (_INDENT - 2))
        self._wanted = events

    def blank(self) -> None:
        """An empty line."""
        self._write(Text())

    async def show(self, arrivals: Sequence[Arrival]) -> None:
        """Shows as many of the new ones as are wanted, for ever; `arrivals` grows."""
        seen = 0
        while True:
            new = arrivals[seen:]
            seen += len(new)
            for arrival in new[: self._wanted]:
                self._write(self._event(arrival))
            self._wanted = max(0, self._wanted - len(new))
            await asyncio.sleep(LOOK_SECONDS)

    def _event(self, arrival: Arrival) -> Text:
        """Time, source, kind, severity, title; what stands in an incident comes from outside and is made inert."""
        fields = _fields(arrival.content)
        severity = inert(severity_name(str(fields.get("severity") or "")))
        line = Text.assemble(
            " " * _INDENT,
            (moment(arrival.at, self._clock.now()), "dim"),
            f"  {arrival.source:<7} {arrival.kind:<9} {severity:<8} ",
            inert(str(fields.get("displayName") or "")),
        )
        line.truncate(self._console.width, overflow="ellipsis")
        return line

    def _write(self, text: Text) -> None:
        text.rstrip()
        encoding = self._console.encoding
        text.plain = text.plain.encode(encoding, "replace").decode(encoding)
        self._console.print(text, soft_wrap=True, highlight=False)


def _fields(content: bytes) -> dict[str, Any]:
    try:
        return _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
