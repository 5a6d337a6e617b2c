"""The outages: what fails, how it ends, which alerts fire and what the relay says. How one is played is in `play`."""

import asyncio
from typing import Final

from relay.app import TEND_SECONDS
from relay.demo.chat import Notice
from relay.simulator import Fault
from tests.e2e.stage import until
from tests.outages.play import Scenario
from tests.outages.world import HIGH, SECOND_HOOK, SOURCES, World

RETRY_AFTER_SECONDS: Final = 3
FILLED_RATIO: Final = 0.82
INCIDENTS_AT_ONCE: Final = 20
"""Of each source; what waits grows by some 4 % of the journal."""
NEW_PASSWORD: Final = "the next password of acme"


async def _throttle(world: World) -> None:
    for source in ("acme", "globex"):
        world.simulator.faults.inject(
            Fault(
                effect="answer",
                tenant=world.tenants[source].username,
                status=429,
                headers={"retry-after": str(RETRY_AFTER_SECONDS)},
                body='{"code":8,"message":"too many requests"}',
            )
        )


async def _heed(world: World) -> None:
    world.simulator.faults.clear()


async def _shut_region(world: World) -> None:
    await world.regions["eu"].shut()


async def _open_region(world: World) -> None:
    await world.regions["eu"].open()


async def _change_password(world: World) -> None:
    tenant = world.tenants["acme"]
    tenant.password = NEW_PASSWORD
    world.simulator.logins.revoke(tenant.username, refresh_too=True)


async def _write_password(world: World) -> None:
    (world.folder / "acme").write_text(NEW_PASSWORD)


async def _kill_kafka(world: World) -> None:
    await world.calm()
    await asyncio.to_thread(world.broker.kill)
    world.changes.begin()


async def _fill_journal(world: World) -> None:
    await _kill_kafka(world)
    world.changes.rest()

    async def is_filled() -> bool:
        return bool((await world.relay.status())["journal"]["fill_ratio"] > FILLED_RATIO)

    async def is_filling() -> bool:
        if await is_filled():
            await asyncio.sleep(TEND_SECONDS + 1)  # what was delivered before goes then, and makes room
            if await is_filled():
                return True
        for tenant in world.tenants.values():
            tenant.create_many(INCIDENTS_AT_ONCE, {"severity": "INCIDENT_SEVERITY_LEVEL_LOW"})
        await asyncio.sleep(2)
        return False

    await until(is_filling, "the journal fills up", within=120)


async def _restart_kafka(world: World) -> None:
    await asyncio.to_thread(world.broker.restart)


async def _drain_journal(world: World) -> None:
    """Nothing changes before that, or polling would stop at 90 % while the relay looks for the broker."""
    await _restart_kafka(world)
    await until(world.drained, "what waited was delivered")


async def _revoke_webhook(world: World) -> None:
    world.slack.hooks.clear()
    world.tenants["acme"].create({"severity": HIGH})


async def _enable_new_webhook(world: World) -> None:
    world.slack.hooks.add(SECOND_HOOK)
    (world.folder / "slack").write_text(world.slack.url(SECOND_HOOK))
    enabled = await world.command("sinks", "enable", "soc")
    assert enabled.code == 0, enabled


def _notify_was_told_once(world: World) -> None:
    notices = [post for post in world.teams.posts if isinstance(post, Notice)]
    assert len(notices) == len(world.teams.posts) == 1, world.teams.posts
    assert world.slack.refusals == 1, "a parked sink was asked again"


async def _fill_volume(world: World) -> None:
    world.fill_volume()


async def _make_room(world: World) -> None:
    world.make_room()


async def _kill_relay(world: World) -> None:
    await world.relay.kill()


async def _start_relay(world: World) -> None:
    await world.start_relay()
    await until(world.flows, "the relay has caught up")


SCENARIOS: Final = (
    Scenario(
        name="api-429",
        title="ESET throttles",
        done="ESET Connect answered every request for acme and globex with 429 and `Retry-After: 3`. Ten minutes of "
        "that fire no alert, for it cures itself; so it went on until one fired.",
        ended="ESET answered again. Nobody did anything.",
        begin=_throttle,
        end=_heed,
        alerts=frozenset({"IncidentRelaySourceThrottled{source=acme}", "IncidentRelaySourceThrottled{source=globex}"}),
        quiet_seconds=10,
        verdict="late",
        says=("Data flows late: ESET throttles", "Nothing to do: polling goes on at"),
        late_sources=frozenset({"acme", "globex"}),
    ),
    Scenario(
        name="api-down",
        title="ESET Connect is down",
        done="The address of region eu, which serves acme and globex, refused every connection. Region us, which "
        "serves initech, was well.",
        ended="The address took connections again. Nobody did anything.",
        begin=_shut_region,
        end=_open_region,
        alerts=frozenset({"IncidentRelayPollStale{source=acme}", "IncidentRelayPollStale{source=globex}"}),
        verdict="late",
        says=("Data flows late: polls of", "(no connection)", "polling goes on every 1 s by itself", "relay check"),
        late_sources=frozenset({"acme", "globex"}),
    ),
    Scenario(
        name="wrong-password",
        title="The password has changed",
        done="Somebody changed the password of acme's API user at ESET, and nobody told the relay.",
        ended="The new password was written to the source's `password_file`. The relay read it at the next poll and "
        "logged in; it was not restarted.",
        begin=_change_password,
        end=_write_password,
        alerts=frozenset({"IncidentRelayPollStale{source=acme}"}),
        verdict="blocked",
        says=(
            "Nothing of acme has been read since",
            "ESET refused the login",
            "A new password_file is read at the next poll",
            "relay check",
        ),
        late_sources=frozenset({"acme"}),
    ),
    Scenario(
        name="kafka-down",
        title="Kafka is down",
        done="The only broker was killed by SIGKILL.",
        ended="The broker was started again. What had waited arrived by itself, once and in order. The relay looks "
        "for a broker that is gone at least every 30 s, in operation as in the run.",
        begin=_kill_kafka,
        end=_restart_kafka,
        alerts=frozenset({"IncidentRelaySinkFailing{sink=siem}"}),
        verdict="late",
        says=("nothing has reached siem since", "no broker could be used", "No other sink is delayed."),
        late_sinks=frozenset({"siem"}),
    ),
    Scenario(
        name="slack-revoked",
        title="The Slack webhook was removed",
        done="Somebody removed the incoming webhook of soc in Slack, which answered `404 no_service` from then on. The "
        "relay parked the sink after the first refusal and told the sink named in its `notify`.",
        ended="A new webhook was made, its URL written to the sink's `url_file`, and `relay sinks enable soc` run.",
        begin=_revoke_webhook,
        end=_enable_new_webhook,
        alerts=frozenset({"IncidentRelaySinkParked{sink=soc}"}),
        verdict="blocked",
        says=(
            "Nothing has reached Slack (soc) since",
            "404 no_service: this webhook was removed.",
            "relay sinks enable soc",
            "No other sink is delayed; oncall was told.",
        ),
        late_sinks=frozenset({"soc"}),
        after=_notify_was_told_once,
    ),
    Scenario(
        name="disk-full",
        title="The disk is full",
        done="Another file took all the room on the volume where the journal lies.",
        ended="That file was removed. Polling and sending went on by themselves.",
        begin=_fill_volume,
        end=_make_room,
        alerts=frozenset({"IncidentRelayPollingStopped{reason=journal_disk_full}"}),
        verdict="blocked",
        says=("the volume of the journal is full", "Nothing is lost."),
        late_sources=frozenset(SOURCES),
        late_sinks=frozenset({"siem", "soc", "disk"}),
        small_volume=True,
    ),
    Scenario(
        name="journal-filling",
        title="The journal fills up",
        done="Kafka was gone for so long that what waited for it took more than 80 % of `journal.max_bytes`, which was "
        "2 MiB here.",
        ended="Kafka was started again. What had been delivered was deleted, and room returned by itself.",
        begin=_fill_journal,
        end=_drain_journal,
        alerts=frozenset({"IncidentRelayJournalFilling", "IncidentRelaySinkFailing{sink=siem}"}),
        verdict="late",
        says=("At 90 % polling stops until there is room.", "wait for siem. Nothing to do while that shrinks"),
        late_sinks=frozenset({"siem"}),
        journal_bytes=2 << 20,
    ),
    Scenario(
        name="relay-killed",
        title="The relay is gone",
        done="The relay's process was ended by SIGKILL.",
        ended="The relay was started again, and went on where it had stopped.",
        begin=_kill_relay,
        end=_start_relay,
        alerts=frozenset({"IncidentRelayAbsent"}),
        verdict="",
        says=("no relay answers on", "start one with `relay run`"),
        late_sources=frozenset(SOURCES),
        late_sinks=frozenset({"siem", "soc", "disk"}),
        kills=True,
    ),
)
BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}
