"""What came of the story, as far as the one who told it could see. Not what arrived."""

from dataclasses import dataclass, field

from relay.clock import Instant
from relay.demo.checker import Burial, Ordeal


@dataclass(slots=True, kw_only=True)
class Hardship:
    """Something that was done to the relay, what it did about it, and until when changes had to wait because of it.

    `sink` names the far side to which it was done; empty: all had to wait.
    """

    at_seconds: float
    fault: str
    began: Instant
    killed: bool = False
    sink: str = ""
    reaction: str = "did not recover in time"
    ended: Instant | None = None

    def covers(self, instant: Instant, sink: str) -> bool:
        """Whether a change of that time had to wait for this sink."""
        return self.sink in ("", sink) and instant >= self.began and (self.ended is None or instant < self.ended)


@dataclass(slots=True, kw_only=True)
class Told:
    """What came of the story. `past` is how many incidents there were before it."""

    past: int = 0
    live_since: Instant = 0
    hardships: list[Hardship] = field(default_factory=list)
    ordeals: list[Ordeal] = field(default_factory=list)
    burials: list[Burial] = field(default_factory=list)
    exit_code: int | None = None
    stop_seconds: float = 0.0
    stalled: str = ""

    @property
    def to_the_end(self) -> bool:
        """Whether everything was done, and the relay stopped in order when it was asked to."""
        return not self.stalled and self.exit_code == 0
