"""The story that the demo tells: what is done to the simulated ESET Connect and to the relay, one thing after another.

It waits for the relay only by what the far sides see of it, so that every version stays current for one whole poll.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, pairwise
from typing import Final, Protocol

import msgspec

from relay.clock import SECOND, Clock, Instant
from relay.demo.arrivals import FarSide
from relay.demo.chat import compare_posts
from relay.demo.checker import Burial, Ordeal, Owed, owed
from relay.demo.process import RelayProcess
from relay.demo.receivers import RETRY, Channel, EventReceiver
from relay.demo.screen import Screen
from relay.demo.told import Hardship, Told
from relay.simulator import Fault, Scenario, SeenRequest, Simulator, Tenant, TenantSpec, set_up
from relay.words import count, number

USERNAMES: Final = {"acme": "api@acme.example", "globex": "api@globex.example"}
PASSWORD: Final = "demo"  # noqa: S105 - of the simulator alone
INCIDENTS_PER_TENANT: Final = 500
INCIDENTS: Final = INCIDENTS_PER_TENANT * len(USERNAMES)
PAGE_SIZE: Final = 100
POLL_SECONDS: Final = 1
FEW: Final = 10
PART: Final = 150
"""So many incidents of the past have arrived when the relay is killed for the first time."""
BULK: Final = 300
"""Several pages at one instant: no cursor by time alone gets past that."""
AMID: Final = 20
"""So many of a bulk close have reached the webhook when the relay is killed."""
RETRY_AFTER_SECONDS: Final = 8
LEAST_SECONDS: Final = 3.0
"""A far side is down for so long at least."""
DOWN_SECONDS: Final = 0.5
LATE_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 15.0
TIME_LIMIT_SECONDS: Final = 55.0
"""Whatever is not done by then makes the demo fail; stopping and counting fit into what is left of the minute."""
LOOK_SECONDS: Final = 0.02
GLANCE_SECONDS: Final = 0.2
"""Where looking takes long."""

_NEW: Final[Sequence[Mapping[str, str]]] = (
    {"severity": "INCIDENT_SEVERITY_LEVEL_HIGH"},
    # Nothing in an incident is trusted: neither text that turns itself around, nor a severity that nobody knows yet.
    {"severity": "INCIDENT_SEVERITY_LEVEL_CRITICAL", "displayName": "Invoice_\u202efdp.exe was opened on VIE-LT-040"},
    *[{}] * (FEW - 2),
)


class Stalled(Exception):
    """The relay did not do what the story waits for; the message says what."""


class Scene(Protocol):
    """Where the story is told."""

    @property
    def sides(self) -> Sequence[FarSide]:
        """The far sides to which every event is owed."""
        ...

    @property
    def receiver(self) -> EventReceiver:
        """One of them: the webhook's."""
        ...

    @property
    def channel(self) -> Channel:
        """The one that people read."""
        ...


class Story:
    """One telling. `told` is filled while it goes on."""

    def __init__(self, simulator: Simulator, relay: RelayProcess, scene: Scene, screen: Screen, clock: Clock) -> None:
        self.told = Told(past=INCIDENTS)
        self._simulator = simulator
        self._relay = relay
        self._sides = scene.sides
        self._receiver = scene.receiver
        self._channel = scene.channel
        self._screen = screen
        self._clock = clock
        self._deadline = clock.monotonic() + TIME_LIMIT_SECONDS
        self._tenants = {name: simulator.tenants[username] for name, username in USERNAMES.items()}
        self._untouched = {name: iter(tenant.uuids()) for name, tenant in self._tenants.items()}

    async def tell(self) -> None:
        """From the first start of the relay to its stop."""
        try:
            await self._backfill()
            await self._everyday()
            await self._throttle()
            await self._falter()
            await self._silence_slack()
            await self._remove_webhook()
            await self._close_many()
            await self._settle()
        except Stalled as stalled:
            self.told.stalled = str(stalled)
        if self._relay.ended is None:
            await self._stop()

    def owing(self) -> list[Owed]:
        """Every version that there was."""
        return [version for name, tenant in self._tenants.items() for version in owed(name, tenant.history)]

    def changes(self) -> list[Owed]:
        """Those that came while the relay ran: chat takes nothing of the past."""
        since = self.told.live_since
        return [version for version in self.owing() if version.since >= since] if since else []

    # -- chapters -------------------------------------------------------------------------------------------------

    async def _backfill(self) -> None:
        self._screen.say(
            f"{' and '.join(USERNAMES)} held {number(INCIDENTS)} incidents. The relay was started; it read the past "
            f"in pages of {PAGE_SIZE}, and looked for changes every second.",
            events=3,
        )
        await self._relay.start()
        await self._until(lambda: self._arrived() >= PART, "the first incidents")
        await self._kill(
            "KILL while it read the past",
            lambda: f"{number(self._arrived())} of {number(INCIDENTS)}",
            self._clock.now(),
        )
        await self._start_again()
        await self._until(lambda: all(len(side.arrivals) >= INCIDENTS for side in self._sides), "the backfill")
        self._screen.say(f"All {number(INCIDENTS)} had arrived.")

    async def _everyday(self) -> None:
        self.told.live_since = self._clock.now()
        self._screen.say(f"{2 * FEW} incidents were created, two with a severity that is in no document.", events=4)
        new = {name: [tenant.create(fields) for fields in _NEW] for name, tenant in self._tenants.items()}
        await self._whole_poll()
        self._screen.say("They changed, all of a tenant at one instant.", events=3)
        self._each(lambda name, tenant: tenant.update(new[name]))
        await self._whole_poll()
        self._screen.say("They were closed.", events=3)
        self._each(lambda name, tenant: tenant.close(new[name]))
        await self._whole_poll()
        self._screen.say(
            "Of each tenant one was reopened, one edited without a new update time, and one appeared "
            f"{LATE_SECONDS:.0f} s late.",
            events=6,
        )
        self._each(lambda name, tenant: tenant.reopen(new[name][0]))
        self._each(lambda name, tenant: tenant.edit_silently(new[name][1]))
        self._each(lambda _name, tenant: tenant.arrive_late(age_seconds=LATE_SECONDS))
        await self._whole_poll()

    async def _throttle(self) -> None:
        hardship = self._hardship(f"ESET answered 429 for {RETRY_AFTER_SECONDS} s")
        self._simulator.faults.inject(
            Fault(
                effect="answer",
                status=429,
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
                tenant=USERNAMES["acme"],
                on="data",
                # Over before the relay may ask again, long enough to catch it if it asks too early.
                duration_seconds=RETRY_AFTER_SECONDS - 0.5,
            )
        )
        await self._until(lambda: bool(self._lists("acme", hardship.began, status=429)), "a request to refuse")
        self._screen.say(
            f"ESET answered acme with 429, Retry-After {RETRY_AFTER_SECONDS}. Both tenants went on changing.", events=6
        )
        self._each(lambda name, tenant: tenant.update(self._take(name, FEW // 2)))
        await self._whole_poll()
        refused = self._lists("acme", hardship.began, status=429)
        asked = self._lists("acme", refused[-1].at)[0].at
        polls = len(self._polls("globex", since=refused[0].at, until=asked))
        if len(refused) == 1:
            waited = f"{(asked - refused[0].at) / SECOND:.1f} s"
            self._recovered(hardship, f"asked nothing for {waited}, read on; polled globex {polls} times meanwhile")
        else:
            self._recovered(hardship, f"asked too early: {count(len(refused), 'request')} refused")

    async def _falter(self) -> None:
        hardship = self._hardship("503s, a reset, tokens revoked")
        globex = USERNAMES["globex"]
        self._simulator.logins.revoke()
        self._simulator.faults.inject(Fault(effect="answer", status=503, tenant=globex, on="list", count=2))
        self._simulator.faults.inject(Fault(effect="reset", tenant=globex, on="list", count=1))
        self._screen.say("ESET forgot every access token, answered globex with 503 twice, then hung up.", events=3)
        self._each(lambda name, tenant: tenant.update(self._take(name, FEW)))
        await self._whole_poll()
        failed = [one for status in (0, 503) for one in self._lists("globex", hardship.began, status=status)]
        through = self._lists("globex", max(one.at for one in failed))[0].at
        seconds = (through - hardship.began) / SECOND
        renewed = "renewed its tokens, " if self._logged_in(hardship.began) else ""
        self._recovered(hardship, f"{renewed}asked {len(failed)} times more, was through after {seconds:.1f} s")

    async def _silence_slack(self) -> None:
        slack, began = self._channel, self._clock.now()
        hardship = self._hardship("Slack answered 503", sink=slack.name)
        slack.fail()
        self._screen.say(f"Slack answered 503. {2 * FEW} incidents changed meanwhile, each of them twice.", events=2)
        some = {name: self._take(name, FEW) for name in self._tenants}
        self._each(lambda name, tenant: tenant.update(some[name]))
        await self._until(lambda: slack.turned_away > 0, "a message to Slack")
        await self._all_but(slack.name)  # each version was read, so it may be overtaken
        self._each(lambda name, tenant: tenant.update(some[name]))
        await self._others_have_all(slack.name, began)
        slack.recover()
        lifted = self.told.ordeals[-1].lifted
        kept = [version for version in self.changes() if began <= version.since < lifted]
        hardship.fault = f"Slack answered 503 for {(lifted - began) / SECOND:.0f} s"
        self._screen.say(f"Slack was well again; {_waited_for_nobody(self._sides)} for it.")
        await self._bury()
        await self._until(lambda: slack.posted_since(lifted), "a message to Slack, which is well again")
        self._recovered(hardship, f"kept {count(len(kept), 'event')}; {_waited_for_nobody(self._sides)}")

    async def _bury(self) -> None:
        """Slack is not asked again for some seconds: time for what has nothing to do with it."""
        webhook = self._receiver
        hardship = self._hardship("the webhook refused one event (422)", sink=webhook.name)
        uuid = self._tenants["globex"].create({"displayName": "An incident that the webhook refuses"})
        webhook.refuse(uuid)
        self._screen.say("The webhook refused one event with 422.")
        await self._until(lambda: len(webhook.refused) >= len(RETRY), "the last attempt at it")
        letter = await self._dead_letter()
        webhook.refuse("")
        redriven = self._clock.now()
        said = await self._relay.command("dead-letters", "redrive", letter)
        self._screen.say(f"It became a dead letter. `relay dead-letters redrive`: {said}.")
        await self._until(lambda: bool(self._taken(uuid)), "the event that was sent again")
        (refused_id,) = {arrival.id for arrival in webhook.refused}
        self.told.burials.append(
            Burial(
                id=refused_id,
                attempts=len(RETRY),
                refused=[arrival.at for arrival in webhook.refused],
                redriven=redriven,
                arrived=self._taken(uuid)[0],
            )
        )
        self._recovered(hardship, "tried twice, kept it as a dead letter until `redrive`")

    async def _dead_letter(self) -> str:
        """The id of the webhook's dead letter, as an operator looks it up. Raises Stalled."""
        limit = self._clock.monotonic() + PATIENCE_SECONDS
        while self._clock.monotonic() < min(limit, self._deadline):
            answer = await self._relay.command("dead-letters", "list", "--sink", self._receiver.name, "--json")
            for letter in _letters(answer):
                return letter["id"]
        raise Stalled("a dead letter did not come in time")

    def _taken(self, uuid: str) -> list[Instant]:
        """When the webhook took events of this incident."""
        return [arrival.at for arrival in self._receiver.arrivals if arrival.uuid == uuid]

    async def _remove_webhook(self) -> None:
        webhook, slack, began = self._receiver, self._channel, self._clock.now()
        hardship = self._hardship("the webhook was removed (410)", sink=webhook.name)
        webhook.remove()
        self._screen.say(f"The webhook was removed: it answered 410. {2 * FEW} incidents changed meanwhile.")
        self._each(lambda name, tenant: tenant.update(self._take(name, FEW)))
        await self._until(lambda: bool(slack.told_of(webhook.name)), "the notice to Slack")
        self._screen.say(f"Slack was told: {slack.told_of(webhook.name)}")
        asked = webhook.turned_away
        await self._others_have_all(webhook.name, began)
        webhook.restore()
        said = await self._relay.command("sinks", "enable", webhook.name)
        self._screen.say(f"It was made again. `relay sinks enable {webhook.name}`: {said}.")
        ids = {version.id for version in self.owing()}
        await self._until(lambda: ids <= _ids(webhook), "what had waited for the webhook")
        alone = "parked it" if webhook.turned_away == asked else "asked again too early"
        self._recovered(hardship, f"{alone}, told Slack, waited for `relay sinks enable`")

    async def _others_have_all(self, sink: str, began: Instant) -> None:
        """Waits until all that was changed since is everywhere but in this sink, then notes that its ordeal ends."""
        await self._all_but(sink)
        left = LEAST_SECONDS - (self._clock.now() - began) / SECOND
        await asyncio.sleep(max(0.0, left))
        self.told.ordeals.append(Ordeal(sink=sink, began=began, lifted=self._clock.now()))

    async def _all_but(self, sink: str) -> None:
        """Waits until the other far sides hold every version that there was."""
        ids = {version.id for version in self.owing()}
        others = [side for side in self._sides if side.name != sink]
        await self._until(lambda: all(ids <= _ids(side) for side in others), f"the other sinks, beside {sink},")

    async def _close_many(self) -> None:
        bulk = self._take("acme", BULK)
        before = self._arrived()
        began = self._clock.now()
        self._tenants["acme"].close(bulk)
        self._screen.say(f"{BULK} incidents of acme were closed at one instant.", events=2)
        taken = len(self._receiver.arrivals) + AMID
        await self._until(lambda: len(self._receiver.arrivals) >= taken, "the first of them")
        await self._kill("KILL amid a bulk close", lambda: f"{self._arrived() - before} of {BULK}", began)
        self._screen.say("More changed while it was down.")
        self._each(lambda name, tenant: tenant.update(self._take(name, FEW)))
        self._each(lambda _name, tenant: tenant.create())
        await self._start_again()
        await self._whole_poll()
        self._screen.say("Three of those that were closed before the kill were reopened.", events=3)
        self._tenants["acme"].reopen(bulk[:3])
        await self._whole_poll()

    async def _settle(self) -> None:
        changes, ids = self.changes(), {version.id for version in self.owing()}
        await self._until(lambda: all(ids <= _ids(side) for side in self._sides), "the last events")
        self._screen.say("All had arrived but for what Slack takes at one message a second.")
        await self._until(
            lambda: not compare_posts(self._channel.name, changes, self._channel.posts)[0].missing,
            "the last messages to Slack",
            look_seconds=GLANCE_SECONDS,
        )

    async def _stop(self) -> None:
        began = self._clock.monotonic()
        self.told.exit_code = await self._relay.stop()
        self.told.stop_seconds = self._clock.monotonic() - began

    # -- hardships ------------------------------------------------------------------------------------------------

    def _hardship(self, fault: str, *, killed: bool = False, sink: str = "") -> Hardship:
        now = self._clock.now()
        hardship = Hardship(at_seconds=self._screen.seconds, fault=fault, began=now, killed=killed, sink=sink)
        self.told.hardships.append(hardship)
        return hardship

    def _recovered(self, hardship: Hardship, reaction: str) -> None:
        hardship.reaction = reaction
        hardship.ended = self._clock.now()

    async def _kill(self, fault: str, arrived: Callable[[], str], began: Instant) -> None:
        """What changed after `began` may have to wait for the restart."""
        hardship = self._hardship(fault, killed=True)
        hardship.began = began
        await self._relay.kill()
        await asyncio.sleep(DOWN_SECONDS)  # by then the last of what it sent is counted
        self._screen.say(f"The relay was killed (SIGKILL) when {arrived()} had arrived.")

    async def _start_again(self) -> None:
        """After a kill; until each tenant was asked."""
        began = self._clock.now()
        await self._relay.start()
        await self._until(lambda: all(self._lists(name, began) for name in USERNAMES), "the first poll after the kill")
        asked = max(self._lists(name, began)[0].at for name in USERNAMES)
        seconds = f"{(asked - began) / SECOND:.1f} s"
        self._screen.say(f"It was started again, and asked both tenants within {seconds}.", events=3)
        self._recovered(self.told.hardships[-1], f"started again in {seconds}")

    # -- what the far sides see of the relay ----------------------------------------------------------------------

    def _arrived(self) -> int:
        """How many events one of the far sides holds, the one that is ahead."""
        return max(len(side.arrivals) for side in self._sides)

    async def _whole_poll(self) -> None:
        """Waits until each tenant was polled from beginning to end, all of it after now."""
        now = self._clock.now()
        await self._until(lambda: all(len(self._polls(name, since=now)) >= 2 for name in USERNAMES), "a whole poll")

    def _polls(self, name: str, *, since: Instant, until: Instant | None = None) -> list[Instant]:
        """When polls began: each reads by update time, then by create time, and the next one begins after its end."""
        views = [(seen.at, seen.query.get("orderBy", "").partition(",")[0]) for seen in self._lists(name)]
        return [
            at
            for (_, before), (at, view) in pairwise(views)
            if (before, view) == ("create_time", "update_time") and at > since and (until is None or at < until)
        ]

    def _lists(self, name: str, since: Instant = 0, *, status: int = 200) -> list[SeenRequest]:
        """The requests for a page that were answered with this status; 0 stands for no answer."""
        return [
            seen
            for seen in self._simulator.requests
            if seen.operation == "list"
            and seen.username == USERNAMES[name]
            and seen.status == status
            and seen.at >= since
        ]

    def _logged_in(self, since: Instant) -> bool:
        """Whether each tenant's user got tokens since then."""
        users = {
            seen.username
            for seen in self._simulator.requests
            if seen.operation in {"login", "refresh"} and seen.status == 200 and seen.at >= since
        }
        return users == set(USERNAMES.values())

    async def _until(self, reached: Callable[[], bool], what: str, *, look_seconds: float = LOOK_SECONDS) -> None:
        """Raises Stalled when that takes too long, or when the relay has ended."""
        limit = min(self._clock.monotonic() + PATIENCE_SECONDS, self._deadline)
        while not reached():
            if self._relay.ended is not None:
                raise Stalled(f"the relay ended with exit code {self._relay.ended}: {self._relay.last_words()}")
            if self._clock.monotonic() > limit:
                raise Stalled(f"{what} did not come in time")
            await asyncio.sleep(look_seconds)

    # -- tenants --------------------------------------------------------------------------------------------------

    def _each(self, change: Callable[[str, Tenant], object]) -> None:
        for name, tenant in self._tenants.items():
            change(name, tenant)

    def _take(self, name: str, incidents: int) -> list[str]:
        """Incidents that nothing was done to yet."""
        return list(islice(self._untouched[name], incidents))


def set_the_scene(simulator: Simulator) -> None:
    """Two tenants with a month behind them."""
    usernames = USERNAMES.values()
    specs = [TenantSpec(username=user, password=PASSWORD, incidents=INCIDENTS_PER_TENANT) for user in usernames]
    set_up(simulator, Scenario(tenants=specs))


def _ids(side: FarSide) -> set[str]:
    return {arrival.id for arrival in side.arrivals}


def _waited_for_nobody(sides: Sequence[FarSide]) -> str:
    """Which sinks went on, in words."""
    names = [side.name for side in sides]
    return f"{', '.join(names[:-1])} and {names[-1]} did not wait"


def _letters(answer: str) -> list[dict[str, str]]:
    """Dead letters as the command lists them; none when it failed."""
    try:
        return list(msgspec.json.decode(answer)["dead_letters"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return []
