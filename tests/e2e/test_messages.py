"""Webhooks, Slack and Teams as the relay's users run them: kills, dead far sides, 410s, an old tenant, and secrets."""

import asyncio
import html
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from standardwebhooks import Webhook

from tests.e2e.stage import SOURCE, Stage, report, stage, until
from tests.e2e.test_kills import REQUESTS_PER_SECOND, kill_story
from tests.e2e.test_secrets import files_in, leaks, pages_of
from tests.e2e.unrest import Polls, Unrest
from tests.e2e.verdict import Arrival, from_line, judge
from tests.support.process import Child
from tests.support.receiver import FINE, Asked, Receiver, Script, Told, receiving, stall, unused_port

SECRET = "whsec_Q2FuYXJ5OiBhIGtleSBvZiB0d2VudHktZm91ciBieXRlcw=="
OK = Told(body=b"ok")
ACCEPTED = Told(status=202)
NO_WAY_ROUND = {"proxy": "none"}
HIGH = {"severity": "INCIDENT_SEVERITY_LEVEL_HIGH"}
LOW = {"severity": "INCIDENT_SEVERITY_LEVEL_LOW"}


def webhook(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"type": "webhook", "url": receiver.url, **NO_WAY_ROUND, **more}


def arrivals_in(asked: Sequence[Asked]) -> list[Arrival]:
    """Each request as an event; envelope and headers must say what its data says."""
    arrivals = []
    for one in asked:
        envelope = one.json()
        start = one.body.index(b'"data":') + len(b'"data":')
        arrival = from_line(one.body[start:-1])
        assert arrival.id == envelope["id"] == one.headers["webhook-id"]
        assert arrival.uuid == envelope["subject"]
        assert arrival.sequence == int(envelope["sequence"])
        arrivals.append(arrival)
    return arrivals


async def delivered_all(relay: Child, *sinks: str) -> bool:
    rows = {sink["name"]: sink for sink in (await relay.status())["sinks"]}
    return all((rows[name]["state"], rows[name]["backlog_events"]) == ("ok", 0) for name in sinks)


async def polled(relay: Child, times: int = 2) -> None:
    """Waits for whole polls that began since; the last of them read all that there was."""
    before = await relay.metric("relay_polls_total", source=SOURCE, outcome="complete")

    async def has_polled() -> bool:
        return await relay.metric("relay_polls_total", source=SOURCE, outcome="complete") >= before + times

    await until(has_polled, "polls are complete")


async def backfilled(relay: Child) -> None:
    async def is_done() -> bool:
        (source,) = (await relay.status())["sources"]
        return bool(source["backfill"]["state"] == "done")

    await until(is_done, "the backfill is done")
    await polled(relay)


# -- (a) killed -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Unsteady:
    """A receiver that takes its time, and one in so many requests not at all."""

    rng: random.Random
    refused: int = 0

    def answer(self, _asked: Asked) -> Told | Script:
        if self.rng.random() < 0.01:
            self.refused += 1
            return Told(status=self.rng.choice((500, 503, 422)))
        delay = self.rng.uniform(0, 0.03)

        async def late(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(delay)
            writer.write(FINE.bytes())

        return late


async def webhook_story(folder: Path, *, incidents: int, changes: int, kills: int, page_size: int, seed: int) -> None:
    async with stage(folder, incidents=incidents, seed=seed) as set_up, receiving() as receiver:
        unsteady = Unsteady(rng=random.Random(seed))
        receiver.answer = unsteady.answer
        set_up.configure(
            {"soar": webhook(receiver, secrets=SECRET, retry=f"[0s{', 200ms' * 9}]")},
            source={"page_size": page_size},
            api={"requests_per_second": REQUESTS_PER_SECOND},
        )
        story = await kill_story(set_up, changes=changes, kills=kills, seed=seed)
        async with set_up.relay() as relay:
            await relay.started()
            await until(lambda: delivered_all(relay, "soar"), "the rest was delivered")
            assert await relay.stop() == 0
        history = set_up.tenant.history
    every = arrivals_in(receiver.asked)
    for asked in receiver.asked:
        Webhook(SECRET).verify(asked.body, dict(asked.headers))
    first = list({arrival.id: arrival for arrival in reversed(every)}.values())[::-1]
    verdict = judge(history, first)
    # Stronger than the order of first arrivals: no older version comes after a newer one, not even again.
    sequences: defaultdict[str, list[int]] = defaultdict(list)
    for arrival in every:
        sequences[arrival.uuid].append(arrival.sequence)
    regressed = sum(found != sorted(found) for found in sequences.values())
    contents: defaultdict[str, set[bytes]] = defaultdict(set)
    for arrival in every:
        contents[arrival.id].add(arrival.content)
    report(
        "SIGKILL, webhook",
        incidents=incidents,
        changes=changes,
        sigkills=story.kills,
        sigkills_in_the_backfill=story.in_backfill,
        sigkills_right_after_a_line_or_page=story.on_cue,
        versions=verdict.versions,
        requests=len(every),
        answered_with_an_error=unsteady.refused,
        repeats=len(every) - len(first),
        missing=verdict.missing,
        gaps=verdict.gapped,
        out_of_order=verdict.disordered,
        regressed=regressed,
        foreign=verdict.foreign,
        seconds=round(story.seconds, 1),
    )
    assert verdict.versions == incidents + changes
    assert verdict.exactly_once_in_order, verdict
    assert regressed == 0
    assert all(len(found) == 1 for found in contents.values())
    assert story.kills == kills
    assert story.exit_code == 0


async def test_a_webhook_gets_every_version_in_order_and_repeats_under_one_id_through_5_kills(tmp_path: Path) -> None:
    await webhook_story(tmp_path, incidents=800, changes=80, kills=5, page_size=25, seed=3)


@pytest.mark.prove
@pytest.mark.timeout(1800)
async def test_a_webhook_gets_every_version_in_order_and_repeats_under_one_id_through_50_kills(tmp_path: Path) -> None:
    await webhook_story(tmp_path, incidents=8000, changes=2000, kills=50, page_size=20, seed=6)


# -- (b) dead for good ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a relay did beside its webhooks."""

    polls: int
    failed_polls: int
    lag_seconds: float
    versions: int


async def pace_of(folder: Path, urls: Sequence[str], *, changes: int, seconds: float) -> Pace:
    folder.mkdir()
    async with stage(folder, incidents=300) as set_up:
        set_up.configure(
            {
                "disk": {"type": "file", "path": "events.ndjson"},
                **{
                    f"soar{number}": {"type": "webhook", "url": url, "timeout": "2s", **NO_WAY_ROUND}
                    for number, url in enumerate(urls)
                },
            }
        )
        async with set_up.relay() as relay:
            await relay.started()
            await backfilled(relay)
            unrest = Unrest(set_up, Polls(set_up.simulator), random.Random(1))
            unrest.stir_the_past()
            count = "relay_lag_seconds_count"
            before = await relay.metric("relay_polls_total", source=SOURCE, outcome="complete")
            await unrest.spread(changes, over_seconds=seconds)
            await polled(relay)
            await until(lambda: delivered_all(relay, "disk"), "the file has all")
            pace = Pace(
                polls=round(await relay.metric("relay_polls_total", source=SOURCE, outcome="complete") - before),
                failed_polls=round(await relay.metric("relay_polls_total", source=SOURCE, outcome="failed")),
                lag_seconds=await relay.metric("relay_lag_seconds_sum", sink="disk")
                / max(1.0, await relay.metric(count, sink="disk")),
                versions=(folder / "events.ndjson").read_bytes().count(b"\n"),
            )
            assert await relay.stop() == 0
    return pace


async def test_dead_webhooks_delay_neither_the_file_nor_a_poll(tmp_path: Path) -> None:
    async with receiving() as receiver, receiving() as silent:
        silent.greet = stall
        healthy, beside = await asyncio.gather(
            pace_of(tmp_path / "healthy", [receiver.url, receiver.url], changes=60, seconds=8),
            pace_of(tmp_path / "dead", [f"http://127.0.0.1:{unused_port()}/x", silent.url], changes=60, seconds=8),
        )
    report(
        "dead webhooks",
        polls_beside_healthy_ones=healthy.polls,
        polls_beside_dead_ones=beside.polls,
        lag_of_the_file_beside_healthy_ones=round(healthy.lag_seconds, 3),
        lag_of_the_file_beside_dead_ones=round(beside.lag_seconds, 3),
    )
    assert (healthy.failed_polls, beside.failed_polls) == (0, 0)
    assert healthy.versions == beside.versions == 360
    assert abs(healthy.polls - beside.polls) <= 2
    assert beside.lag_seconds <= healthy.lag_seconds * 1.25 + 0.1


# -- (c) gone ---------------------------------------------------------------------------------------------------------


async def test_a_410_parks_the_webhook_tells_notify_once_and_names_the_cure_which_works(tmp_path: Path) -> None:
    async with stage(tmp_path, incidents=40) as set_up, receiving() as soar, receiving() as soc:
        soc.says(OK)
        soar.says(Told(status=410, body=b"this hook was removed"))
        set_up.configure(
            {
                "soar": webhook(soar, notify="soc"),
                "soc": {"type": "slack", "url": soc.url, "when": "false", **NO_WAY_ROUND},
            }
        )
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("sink parked")
            await until(lambda: _was_asked(soc), "soc was told")
            assert await relay.stop() == 0
        tried = len(soar.asked)
        async with set_up.relay() as relay:
            await relay.started()
            await backfilled(relay)
            (row,) = [sink for sink in (await relay.status())["sinks"] if sink["name"] == "soar"]
            assert (row["state"], row["backlog_events"]) == ("parked", 40)
            said = await set_up.command("status")
            assert "relay sinks enable soar" in said.stdout, said
            assert "410" in said.stdout
            checked = await set_up.command("check")
            assert checked.code == 1
            assert "relay sinks enable soar" in checked.stdout
            assert len(soar.asked) == tried
            soar.says(FINE)
            enabled = await set_up.command("sinks", "enable", "soar")
            assert enabled.code == 0, enabled
            await until(lambda: delivered_all(relay, "soar"), "all was delivered after all")
            assert await relay.stop() == 0
    assert {arrival.uuid for arrival in arrivals_in(soar.asked[tried:])} == set(set_up.tenant.uuids())
    (notice,) = soc.asked
    assert "relay sinks enable soar" in notice.body.decode()
    assert (
        "40 events wait" in notice.json()["text"] or "waits" in notice.json()["text"] or "wait" in notice.json()["text"]
    )


async def _was_asked(receiver: Receiver) -> bool:
    return bool(receiver.asked)


# -- (d) people -------------------------------------------------------------------------------------------------------


async def test_a_first_start_on_10_000_old_incidents_tells_nobody_and_changes_go_where_their_severity_belongs(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path, incidents=10_000) as set_up, receiving() as slack, receiving() as teams:
        slack.says(OK)
        teams.says(ACCEPTED)
        set_up.configure(
            {
                "soc": {
                    "type": "slack",
                    "url": slack.url,
                    "when": 'incident.severity == "HIGH" || previous.severity == "HIGH"',
                    "start": "earliest",
                    **NO_WAY_ROUND,
                },
                "chat": {
                    "type": "teams",
                    "url": teams.url,
                    "when": 'incident.severity != "HIGH"',
                    "start": "earliest",
                    **NO_WAY_ROUND,
                },
            },
            api={"requests_per_second": REQUESTS_PER_SECOND},
        )
        async with set_up.relay() as relay:
            began = time.monotonic()
            await relay.started()
            await backfilled(relay)
            await until(lambda: delivered_all(relay, "soc", "chat"), "nothing waits")
            took = time.monotonic() - began
            assert (slack.asked, teams.asked) == ([], [])
            skipped = await relay.metric("relay_deliveries_total", outcome="skipped", reason="backfill")
            assert skipped == 20_000

            high = set_up.tenant.create({**HIGH, "displayName": "canary: a high one"})
            low = set_up.tenant.create({**LOW, "displayName": "canary: a low one"})
            await polled(relay)
            await until(lambda: delivered_all(relay, "soc", "chat"), "both were told")
            assert [len(slack.asked), len(teams.asked)] == [1, 1]
            assert "canary: a high one" in slack.asked[0].body.decode()
            assert "canary: a low one" in teams.asked[0].body.decode()

            set_up.tenant.update(high, LOW)
            set_up.tenant.update(low, {"displayName": "canary: the low one again"})
            await polled(relay)
            await until(lambda: delivered_all(relay, "soc", "chat"), "both were told again")
            assert await relay.stop() == 0
    assert len(slack.asked) == 2
    assert len(teams.asked) == 3
    report("first start", incidents=10_000, messages=0, seconds_until_all_was_skipped=round(took, 1))


# -- (e) secrets ------------------------------------------------------------------------------------------------------

SECRETS = {
    "the path of the webhook": "Kanarek-73-of-the-path",
    "the query of the webhook": "Kanarek/73+in&the=query?",
    "the signing secret": "Kanarek-73 signs this, and nobody else",
    "the header": "Bearer Kanarek-73-of-the-header",
    "the other header": "Kanarek/73+&<of>the\"other'header",
    "the login of the proxy": "Kanarek-73-of-the-proxy",
    "the path of Slack": "Kanarek73OfSlack",
    "the signature of Teams": "Kanarek73-of_Teams",
}
STATUSES = (400, 422, 500, 418, 200, 413, 401, 409, 302, 406, 503, 404, 405)
"""Never so many of the endpoint's kind in a row that the far side is left alone for a while."""
SPELLINGS: Sequence[Callable[[str], str]] = (
    str,
    unquote,
    lambda text: html.escape(unquote(text)),
    lambda text: json.dumps(unquote(text)),
    lambda text: json.dumps(unquote(text)).replace("/", "\\/"),
    lambda text: quote(unquote(text)),
    lambda text: quote(unquote(text), safe=""),
    lambda text: repr(unquote(text)),
)
"""In which error pages repeat what they were sent."""


class Mirror:
    """Answers with all that it was sent, under one status and in one spelling after another."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def answer(self, asked: Asked) -> Told:
        turn = len(self.said)
        status = STATUSES[turn % len(STATUSES)]
        return self.told(asked, status, SPELLINGS[turn % len(SPELLINGS)])

    def told(self, asked: Asked, status: int, spelled: Callable[[str], str] = str) -> Told:
        path, _, query = asked.target.partition("?")
        shown = [asked.headers.get(name, "") for name in ("proxy-authorization", "authorization", "x-key")]
        shown += [path.rpartition("/")[2], query]
        turn = len(self.said) % len(shown)  # an error shows no more than the start of a body
        self.said.append(" ".join(spelled(part) for part in shown[turn:] + shown[:turn]))
        plain = self.said[-1]
        body = json.dumps({"error": {"code": "X", "message": plain}}) if turn % 2 else plain
        headers = {"location": quote(asked.target), "x-request": quote(plain), "retry-after": quote(plain)}
        return Told(status=status, reason=quote(plain), headers=headers, body=body.encode())


def all_spellings(secrets: Mapping[str, str]) -> dict[str, str]:
    """Each secret in every spelling that it was said back in."""
    return {
        f"{name} ({turn})": spelled(text) for name, text in secrets.items() for turn, spelled in enumerate(SPELLINGS)
    }


def secretive(set_up: Stage, receiver: Receiver, proxy: Receiver) -> None:
    base = f"http://127.0.0.1:{receiver.port}"
    query = quote(SECRETS["the query of the webhook"], safe="")
    login = SECRETS["the login of the proxy"]
    often = {"retry": f"[0s{', 50ms' * 40}]", "timeout": "5s"}
    set_up.configure(
        {
            "soar": {
                "type": "webhook",
                "url": f"{base}/hooks/{SECRETS['the path of the webhook']}?token={query}",
                "secrets": SECRETS["the signing secret"],
                "headers": {"Authorization": SECRETS["the header"], "X-Key": SECRETS["the other header"]},
                "proxy": f"http://relay:{login}@127.0.0.1:{proxy.port}",
                "notify": "soc",
                **often,
            },
            "soc": {
                "type": "slack",
                "url": f"{base}/services/T0/B0/{SECRETS['the path of Slack']}",
                **often,
                **NO_WAY_ROUND,
            },
            "chat": {
                "type": "teams",
                "url": f"{base}/workflows/x?api-version=1&sig={SECRETS['the signature of Teams']}",
                **often,
                **NO_WAY_ROUND,
            },
        }
    )


async def test_no_secret_of_a_sink_that_the_far_side_says_back_is_shown_logged_or_stored(tmp_path: Path) -> None:
    places: dict[str, bytes] = {}
    async with stage(tmp_path, incidents=6) as set_up, receiving() as receiver, receiving() as proxy:
        mirror = Mirror()
        receiver.answer = proxy.answer = mirror.answer
        secretive(set_up, receiver, proxy)
        places |= await said_by(set_up, "check --offline")
        async with set_up.relay() as relay:
            await relay.started()
            for _ in range(8):
                set_up.tenant.create(HIGH)
            await until(lambda: _many(mirror, 5 * len(SPELLINGS)), "the far sides were asked often")
            places |= await pages_of(relay)
            places |= await said_by(
                set_up, "status", "status --json", "check", "sinks test soar", "dead-letters list", as_="when it works"
            )
            receiver.answer = proxy.answer = lambda asked: mirror.told(asked, 410, SPELLINGS[len(mirror.said) % 8])
            set_up.tenant.create(HIGH)
            await polled(relay)
            # One that is left alone for a while is tried now.
            await said_by(set_up, *(f"sinks enable {sink}" for sink in ("soar", "soc", "chat")))
            await until(lambda: _all_parked(relay), "all are parked")
            places |= {f"{path} when parked": text for path, text in (await pages_of(relay)).items()}
            parked = await said_by(set_up, "status", "check", as_="when parked")
            assert all(b"relay sinks enable soar" in said for said in parked.values())
            places |= parked
            # What Slack is told of the webhook's end is the far side's own text.
            receiver.says(OK)
            seen = len(receiver.asked)
            await set_up.command("sinks", "enable", "soc")
            await until(lambda: _told(receiver, seen), "Slack was told")
            places["what Slack was told"] = b"\n".join(asked.body for asked in receiver.asked[seen:])
            await relay.stop()
            places |= {"standard output": bytes(relay.stdout), "standard error": bytes(relay.stderr)}
    places |= files_in(tmp_path)
    shown = {name: secret for name, secret in SECRETS.items() if name != "the signing secret"}
    said = "\n".join(mirror.said)
    assert all(any(spelled(text) in said for spelled in SPELLINGS) for text in shown.values() if "proxy" not in text)
    assert not leaks(places, all_spellings(SECRETS))
    assert any(name.endswith("relay.db") for name in places)
    assert b"***" in places["standard error"]


async def said_by(set_up: Stage, *commands: str, as_: str = "") -> dict[str, bytes]:
    """What these commands say, all at once."""
    ran = await asyncio.gather(*(set_up.command(*command.split()) for command in commands))
    return {
        f"relay {command} {as_}": (one.stdout + one.stderr).encode() for command, one in zip(commands, ran, strict=True)
    }


async def _many(mirror: Mirror, times: int) -> bool:
    return len(mirror.said) >= times


async def _told(receiver: Receiver, seen: int) -> bool:
    return any(b"parked" in asked.body for asked in receiver.asked[seen:])


async def _all_parked(relay: Child) -> bool:
    return {sink["state"] for sink in (await relay.status())["sinks"]} == {"parked"}
