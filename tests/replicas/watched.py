"""The simulator, which here knows which replica asked what, and how far each tenant has been read.

Each replica logs in at a URL of its own, so that its tokens are known to be its; all else is the same for all of them.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from relay.clock import SECOND, Clock, Instant
from relay.simulator import Answer, Request, Settings, Simulator
from relay.simulator.api import INCIDENTS_PATH, TOKEN_PATH
from relay.simulator.times import parse_time

LOOKBACK_SECONDS: Final = 20
PASSWORD: Final = "the password of all"


class _Login(msgspec.Struct, frozen=True):
    access_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One list of a tenant by update time, as it was answered."""

    at: Instant
    source: str
    replica: str


class Watched(Simulator):
    """Tenants by label, which is their user name. What it says of reading it has from the requests alone."""

    def __init__(self, clock: Clock, *, seed: int = 1, settings: Settings | None = None) -> None:
        super().__init__(clock, seed=seed, settings=settings)
        self.reads: list[Read] = []
        """Of live polls, in order. A poll reads by create time as well."""
        self._replicas: dict[str, str] = {}
        self._read_up_to: dict[str, Instant] = {}
        self._last_read: dict[str, Read] = {}
        self._cues: defaultdict[str, list[asyncio.Future[None]]] = defaultdict(list)

    def login_path(self, replica: str) -> str:
        """Where this replica logs in."""
        return f"/{replica}{TOKEN_PATH}"

    def handle(self, request: Request) -> Answer:
        """Answers one request, and takes note of it."""
        if request.path.endswith(TOKEN_PATH):
            answer = super().handle(replace(request, path=TOKEN_PATH))
            if answer.status == 200:
                token = msgspec.json.decode(answer.body, type=_Login).access_token
                self._replicas[token] = request.path.removesuffix(TOKEN_PATH).strip("/")
            return answer
        answer = super().handle(request)
        if answer.status == 200 and request.path == INCIDENTS_PATH:
            self._met(request)
        return answer

    def read_up_to(self, source: str) -> Instant:
        """What this tenant showed before then is known to have been read and committed.

        A relay asks again for what is at most the lookback older than that up to which it is complete: so each poll
        says how far the last one brought it. It is held to it: what is replaced then and never arrives is lost.
        """
        return self._read_up_to.get(source, 0)

    def reader(self, source: str) -> str:
        """The replica that read this tenant last, or nothing."""
        last = self._last_read.get(source)
        return "" if last is None else last.replica

    def held_by(self, replica: str) -> list[str]:
        """The tenants that this replica was the last to read."""
        return [source for source, last in self._last_read.items() if last.replica == replica]

    def reads_since(self, instant: Instant) -> Iterator[Read]:
        """The reads after an instant, latest first."""
        for read in reversed(self.reads):
            if read.at <= instant:
                return
            yield read

    def longest_pause_seconds(self, *, since: Instant, until: Instant) -> float:
        """The longest time within which any one tenant was not read."""
        last = dict.fromkeys(self._last_read, since)
        longest = 0
        for read in self.reads:
            if since < read.at <= until:
                longest = max(longest, read.at - last[read.source])
                last[read.source] = read.at
        return max([longest, *(until - at for at in last.values())]) / SECOND

    async def page_for(self, replica: str, *, within: float) -> None:
        """Returns when this replica is about to be sent a page of changes, or after so many seconds."""
        cue = asyncio.get_running_loop().create_future()
        self._cues[replica].append(cue)
        with suppress(TimeoutError):
            await asyncio.wait_for(cue, within)

    def _met(self, request: Request) -> None:
        """Reads by create time may be the backfill's or the sweep's; those by update time are live."""
        if not request.query.get("orderBy", "").startswith("update_time") or not request.query.get("filter"):
            return
        token = request.headers["authorization"].rpartition(" ")[2]
        source, replica = self.logins.owner(token), self._replicas[token]
        self._learn(source, request)
        read = Read(at=self.clock.now(), source=source, replica=replica)
        self._last_read[source] = read
        self.reads.append(read)
        for cue in self._cues.pop(replica, ()):
            if not cue.done():
                cue.set_result(None)

    def _learn(self, source: str, request: Request) -> None:
        """From a filter such as `incident.update_time >= timestamp("…")`.

        Nobody is complete up to a time at which nobody had asked yet: such a time is that of a page further on.
        """
        claimed = parse_time(request.query["filter"].partition('"')[2].partition('"')[0]) + LOOKBACK_SECONDS * SECOND
        before = self._last_read.get(source)
        if before is not None and claimed <= before.at:
            self._read_up_to[source] = max(claimed, self.read_up_to(source))
