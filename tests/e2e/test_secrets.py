"""A password that is nowhere but in the configuration and in what is sent to log in, whatever happens."""

import asyncio
import base64
import html
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import pytest
import yaml

from tests.e2e.stage import SOURCE, Stage, stage, until
from tests.fuzz.mutations import Base, mutated
from tests.support.kafka import USERS, Kafka, committed, fresh
from tests.support.process import Child, child, finished

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


# -- a far side that mirrors ------------------------------------------------------------------------------------------

TOKENS = {"the access token": "kanarek.access-", "the refresh token": "kanarek.refresh/"}
PROXY_PASSWORD = "Proxy-Kanarek-73"
PROXY_LOGIN = base64.b64encode(f"proxy-user:{PROXY_PASSWORD}".encode()).decode()
CREATED = "2026-05-28T20:26:40Z"

Way = Callable[["Mirror"], bytes]


class Mirror:
    """A far side, and the proxy before it, that says back all it was ever sent. `listing` and `login` say how."""

    def __init__(self) -> None:
        self.port = 0
        self.listing: Way = empty
        self.login: Way | None = None
        self.said = ""
        self.tokens = 0
        self._rng = random.Random(1)

    @property
    def token(self) -> str:
        """The access token of late, if there is one."""
        return f"{TOKENS['the access token']}{self.tokens}" if self.tokens else "none"

    def mutated(self) -> bytes:
        """A page with the tokens in it, after some mutations."""
        return mutated(Base(page(self), {}), Base(page(self), {}), self._rng)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                lowered = head.lower()
                length = int(lowered.split("content-length:")[1].split()[0]) if "content-length:" in lowered else 0
                body = (await reader.readexactly(length)).decode()
                refresh = f"{TOKENS['the refresh token']}{self.tokens}" if self.tokens else "none"
                self.said = f"{head}{body} {body and CANARY} {self.token} {refresh}"
                asked_to_log_in = urlsplit(head.split()[1]).path == "/oauth/token"
                writer.write((self.login or issue)(self) if asked_to_log_in else self.listing(self))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def http_answer(body: bytes | str, *headers: str, status: str = "200 OK") -> bytes:
    raw = body.encode() if isinstance(body, str) else body
    return "\r\n".join((f"HTTP/1.1 {status}", f"content-length: {len(raw)}", *headers, "", "")).encode() + raw


def issue(mirror: Mirror) -> bytes:
    mirror.tokens += 1
    tokens = {name.split()[1] + "_token": f"{text}{mirror.tokens}" for name, text in TOKENS.items()}
    return http_answer(json.dumps(tokens | {"expires_in": 3600, "token_type": "Bearer"}))


def empty(_mirror: Mirror) -> bytes:
    return http_answer('{"incidents":[],"nextPageToken":""}')


def page(mirror: Mirror) -> bytes:
    """Incidents, and records that are none, that hold what was sent to the API: through TLS, no proxy's login is."""
    said = mirror.said.replace(PROXY_LOGIN, "")
    good: dict[str, Any] = {"uuid": "u1", "createTime": CREATED, "displayName": said, "new": [mirror.token]}
    bad = {"displayName": said}
    slashes = json.dumps({"incidents": [bad | {"n": 1}]}).replace("/", "\\/").removeprefix('{"incidents": [')
    return (json.dumps({"incidents": [good, bad]}).removesuffix("]}") + "," + slashes).encode()


def in_headers(mirror: Mirror) -> bytes:
    odd = (f"request-id: {mirror.token}", f"date: {mirror.token}", f"retry-after: {mirror.token}")
    return http_answer(
        mirror.said, *odd, f"content-encoding: {mirror.token}", f"location: {mirror.token}", status="500 No"
    )


def refusing(status: int) -> Way:
    return lambda mirror: http_answer(mirror.said, f"request-id: {mirror.token}", status=f"{status} {mirror.token}")


ODD_ANSWERS: Mapping[str, Way] = {
    "a page that holds them": lambda mirror: http_answer(page(mirror)),
    "html": lambda mirror: http_answer(f"<html>{html.escape(mirror.said)}"),
    "plain text": lambda mirror: http_answer(mirror.said),
    "cut short": lambda mirror: http_answer(page(mirror)[:-3]),
    "an error under 200": lambda mirror: http_answer(json.dumps({"error": mirror.said, "message": mirror.token})),
    "another shape": lambda mirror: http_answer(json.dumps({"incidents": {mirror.token: mirror.said}})),
    "a bad head": lambda mirror: f"HTTP/1.1 200 OK\r\nx {mirror.token}\r\n{mirror.token}\r\n\r\n".encode(),
    "no http": lambda mirror: f"220 {mirror.token} {mirror.said}\r\n\r\n".encode(),
    "in headers": in_headers,
    "400": refusing(400),
    "500": refusing(500),
    "mutated": lambda mirror: http_answer(mirror.mutated()),
}
FINAL_ANSWERS: Mapping[str, tuple[str, Way]] = {
    **{f"list {status}": ("list", refusing(status)) for status in (401, 403, 404, 407, 501)},
    **{f"login {status}": ("login", refusing(status)) for status in (400, 403, 407, 500)},
    "login html": ("login", lambda mirror: http_answer(f"<html>{mirror.said}</html>")),
    "login json": ("login", lambda mirror: http_answer(json.dumps({"access_token": mirror.said}))),
}


@asynccontextmanager
async def mirror_for(folder: Path) -> AsyncIterator[Mirror]:
    """A mirror, and a configuration in the folder that reaches it as far side and as proxy."""
    mirror = Mirror()
    server = await asyncio.start_server(mirror.serve, "127.0.0.1", 0, limit=1 << 20)
    mirror.port = server.sockets[0].getsockname()[1]
    folder.mkdir(exist_ok=True)
    acme = {
        "base_url": f"http://127.0.0.1:{mirror.port}",
        "token_url": f"http://127.0.0.1:{mirror.port}/oauth/token",
        "username": "api@acme.example",
        "password": CANARY,
        "proxy": f"http://proxy-user:{PROXY_PASSWORD}@127.0.0.1:{mirror.port}",
        "poll_interval": "1s",
        "lookback": "1m",
        "backoff": {"initial": "10ms", "max": "20ms"},
    }
    document = {
        "sources": {SOURCE: acme},
        "sinks": {"disk": {"type": "file", "path": "events.ndjson"}},
        "journal": {"path": "relay.db"},
        "http": {"host": "127.0.0.1", "port": 0},
        "log": {"level": "debug", "format": "json"},
    }
    (folder / "relay.yaml").write_text(yaml.safe_dump(document))
    try:
        yield mirror
    finally:
        server.close()


def planted() -> dict[str, str]:
    return {"the password": CANARY, "the password of the proxy": PROXY_PASSWORD, "its header": PROXY_LOGIN, **TOKENS}


async def test_no_secret_that_the_far_side_says_back_is_shown_logged_stored_or_sent_on(tmp_path: Path) -> None:
    """It mirrors headers, bodies and tokens in refusals, in pages, in records good and bad, and in broken answers."""
    places: dict[str, bytes] = {}
    async with (
        mirror_for(tmp_path) as mirror,
        child(tmp_path, "run", "--config", "relay.yaml", environment={"NO_PROXY": ""}) as relay,
    ):
        await relay.started()
        await _polled_again(relay, "at all")
        for name, way in ODD_ANSWERS.items():
            mirror.listing = way
            await _polled_again(relay, name)
            places |= {f"{path} after {name}": text for path, text in (await pages_of(relay)).items()}
        assert PROXY_LOGIN in mirror.said
        assert mirror.token in mirror.said
        assert await relay.metric("relay_polls_total", source=SOURCE, outcome="failed") > 5
        await until(lambda: _has_letters(relay), "bad records are dead letters")
        ran = await finished(tmp_path, "status", "--json", "--config", "relay.yaml")
        places["relay status"] = (ran.stdout + ran.stderr).encode()
        await relay.stop()
        places |= {"standard output": bytes(relay.stdout), "standard error": bytes(relay.stderr)}
    places |= files_in(tmp_path)
    assert leaks({"what was said": mirror.said.encode()}, planted())
    assert not leaks(places, planted())
    assert b"***" in places[str(tmp_path / "events.ndjson")]


async def test_no_refusal_shows_a_secret_that_it_was_sent(tmp_path: Path) -> None:
    """Of the list and of the login, by `run --once` and by `check`, whose words a person reads."""
    places: dict[str, bytes] = {}
    some = asyncio.Semaphore(2)

    async def refuse(number: int, name: str, on: str, way: Way) -> None:
        folder = tmp_path / f"refusal-{number}"
        async with some, mirror_for(folder) as mirror:
            if on == "list":
                mirror.listing = way
            else:
                mirror.login = way
            for command in (("run", "--once"), ("check",)):
                ran = await finished(folder, *command, "--config", "relay.yaml")
                assert ran.code == 1, (name, ran)
                places[f"{command[0]} at {name}"] = (ran.stdout + ran.stderr).encode()
            assert leaks({"what was said": mirror.said.encode()}, planted())
        places.update(files_in(folder))

    await asyncio.gather(*(refuse(n, name, *how) for n, (name, how) in enumerate(FINAL_ANSWERS.items())))
    assert not leaks(places, planted())
    assert b"request-id ***" in places["run at list 403"]


async def _polled_again(relay: Child, name: str) -> None:
    """Waits for a poll that began since, well or not."""
    before = await relay.metric("relay_polls_total", source=SOURCE)

    async def has_polled() -> bool:
        return await relay.metric("relay_polls_total", source=SOURCE) > before + 1

    await until(has_polled, f"polls after {name}")


async def _has_letters(relay: Child) -> bool:
    total: int = (await relay.status())["dead_letters"]["total"]
    return total > 1
