"""A password that is nowhere but in the configuration and in what is sent to log in, whatever happens."""

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from tests.e2e.stage import SOURCE, Stage, stage, until
from tests.support.kafka import USERS, Kafka, committed, fresh
from tests.support.process import Child

CANARY = "Kanárek/73+in&the=mine?"
KAFKA_USER = "relay"


def spellings(secret: str) -> Iterator[bytes]:
    """The forms in which it might slip out."""
    for text in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]):
        yield text.encode()
    yield base64.b64encode(secret.encode()).rstrip(b"=")


def leaks(places: Mapping[str, bytes], secrets: Mapping[str, str]) -> list[str]:
    return [
        f"{name} in {place}"
        for place, text in places.items()
        for name, secret in secrets.items()
        if any(spelling in text for spelling in spellings(secret))
    ]


async def pages_of(relay: Child) -> dict[str, bytes]:
    paths = ("/metrics", "/api/status", "/readyz", "/livez")
    return {path: (await relay.get(path)).content for path in paths}


def files_in(folder: Path) -> dict[str, bytes]:
    """All that the relay wrote; the configuration is ours."""
    return {str(path): path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".yaml"}


@pytest.mark.kafka
async def test_no_secret_is_shown_logged_stored_or_sent_on(kafka: Kafka, tmp_path: Path) -> None:
    """Of the tenant, of Kafka, and the tokens; through a working life, refused logins and a refused broker."""
    topic = fresh("secrets")
    secrets = {"the password": CANARY, "the password of Kafka": USERS[KAFKA_USER]}
    places: dict[str, bytes] = {}

    def configure(set_up: Stage, *, password: str = CANARY, kafka_password: str = USERS[KAFKA_USER]) -> None:
        set_up.configure(
            {"siem": {"type": "kafka", "topic": topic}, "disk": {"type": "file", "path": "events.ndjson"}},
            source={"password": password},
            kafka={
                "bootstrap.servers": kafka.own.bootstrap_of("SASL"),
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "PLAIN",
                "sasl.username": KAFKA_USER,
                "sasl.password": kafka_password,
            },
            kafka_prefix=fresh("relay"),
        )

    async with stage(tmp_path, incidents=50, password=CANARY) as set_up:
        configure(set_up)
        for command in (("check",), ("check", "--offline"), ("incidents", "list", "--json")):
            ran = await set_up.command(*command)
            assert ran.code == 0, ran
            places[f"relay {' '.join(command)}"] = (ran.stdout + ran.stderr).encode()

        async with set_up.relay() as relay:
            await relay.started()
            await until(lambda: _has_delivered(relay), "all was delivered")
            places |= await pages_of(relay)
            ran = await set_up.command("status", "--json")
            places["relay status"] = (ran.stdout + ran.stderr).encode()
            tokens = dict(_tokens(set_up))
            set_up.simulator.tenants[set_up.tenant.username].password = "changed by somebody"
            set_up.simulator.logins.revoke(refresh_too=True)
            await relay.logged("poll failed")
            places |= {f"{path} when refused": text for path, text in (await pages_of(relay)).items()}
            assert await relay.stop() == 0
            places |= {"standard output": bytes(relay.stdout), "standard error": bytes(relay.stderr)}
        ran = await set_up.command("check")
        assert ran.code == 1
        places["relay check when refused"] = (ran.stdout + ran.stderr).encode()
        set_up.tenant.password = CANARY

        wrong = {"the wrong password of Kafka": "Wrong&Kanárek"}
        configure(set_up, kafka_password=wrong["the wrong password of Kafka"])
        async with set_up.relay() as relay:
            await relay.started()
            await relay.logged("sink failed")
            places |= {f"{path} when Kafka refuses": text for path, text in (await pages_of(relay)).items()}
            await relay.stop()
            places["standard error when Kafka refuses"] = bytes(relay.stderr)

    places |= files_in(tmp_path)
    records = await asyncio.to_thread(committed, kafka.bootstrap, topic)
    places["records"] = b"\n".join(
        (record.value or b"") + record.key.encode() + str(dict(record.headers)).encode() for record in records
    )
    assert len(records) == 50
    assert len(tokens) == 2
    assert leaks({"the configuration": quote_plus(CANARY).encode()}, secrets)
    assert not leaks(places, secrets | tokens | wrong)
    assert all(places[name] for name in ("/metrics", "/api/status", "standard error", "records"))
    assert any(name.endswith("relay.db") for name in places)


async def _has_delivered(relay: Child) -> bool:
    sinks = (await relay.status())["sinks"]
    delivered = [await relay.metric("relay_deliveries_total", sink=sink["name"], outcome="delivered") for sink in sinks]
    return delivered == [50, 50] and await relay.metric("relay_polls_total", source=SOURCE, outcome="complete") > 0


def _tokens(set_up: Stage) -> Iterator[tuple[str, str]]:
    """The live pair of tokens."""
    logins = set_up.simulator.logins
    yield "the access token", next(reversed(logins._access))
    yield "the refresh token", next(reversed(logins._refresh))
