"""The receivers in docs/sinks/webhook.md, as they stand there, against the webhook sink itself."""

import asyncio
import base64
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import pytest

from relay.clock import SECOND, Clock, SystemClock
from relay.errors import Unavailable
from relay.formats.cloudevents import STRUCTURED_TYPE, structured
from relay.signing import key_of
from relay.sinks.webhook import WebhookSink, signed
from relay.transport import http_client, tls_context
from tests.support.clock import FakeClock
from tests.support.deliveries import delivery
from tests.support.receiver import unused_port
from tests.unit.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "sinks" / "webhook.md"
OLD, NEW, OTHER = (f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2, 3))
LANGUAGES = {"python": ("python3", "receiver.py"), "js": ("node", "receiver.js"), "go": ("go", "receiver.go")}
START_SECONDS = 30.0


@pytest.fixture(scope="module", params=LANGUAGES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the page's receiver in one language."""
    language = str(request.param)
    name, file = LANGUAGES[language]
    command = shutil.which(name)
    if command is None:
        pytest.skip(f"{name} is not on this machine: the receiver in {language} of {PAGE.name} was NOT tried")
    (text,) = blocks(PAGE, language)
    path = tmp_path_factory.mktemp(language) / file
    path.write_text(text)
    if language != "go":
        return [command, str(path)]
    built = path.with_suffix("")
    subprocess.run(
        [command, "build", "-o", built, path], check=True, timeout=240, env=os.environ | {"GO111MODULE": "off"}
    )
    return [str(built)]


@contextmanager
def running(program: Sequence[str], *secrets: str) -> Iterator[str]:
    """Its URL, while it knows these secrets."""
    port = unused_port()
    environment = os.environ | {"PORT": str(port), "WEBHOOK_SECRETS": " ".join(secrets)}
    with subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(port):
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def send(url: str, *secrets: str, clock: Clock | None = None) -> None:
    """One event through the sink. Raises Unavailable for a 401."""
    sink = WebhookSink(
        "docs",
        url=lambda: url,
        secrets=lambda: secrets,
        headers=dict,
        http=http_client(proxy="none", tls=tls_context(), guarded=True),
        timeout_seconds=10,
        omit=(),
        clock=clock or SystemClock(),
    )
    try:
        await sink.send([delivery(1)], upto=1)
    finally:
        await sink.close(1)


def sent(url: str, *secrets: str, clock: Clock | None = None) -> bool:
    """Whether the receiver took it."""
    try:
        asyncio.run(send(url, *secrets, clock=clock))
    except Unavailable as error:
        if error.reason != "http_401":
            raise
        return False
    return True


def test_what_the_relay_signs_is_taken_and_what_others_sign_is_not(program: list[str]) -> None:
    with running(program, OLD) as url:
        assert sent(url, OLD)
        assert not sent(url, OTHER)
        assert not sent(url), "unsigned"


def test_while_a_secret_is_rotated_receivers_with_either_one_are_content(program: list[str]) -> None:
    with running(program, OLD) as url:
        assert sent(url, OLD, NEW)
        assert not sent(url, NEW)
    with running(program, NEW) as url:
        assert sent(url, OLD, NEW)
        assert sent(url, NEW)
        assert not sent(url, OLD)
    with running(program, OLD, NEW) as url:
        assert sent(url, OLD)
        assert sent(url, NEW)


def test_a_changed_body_id_or_time_and_an_old_request_are_refused(program: list[str]) -> None:
    event = delivery(1)
    body = structured(event, event.body)
    now = int(time.time())
    good = {**signed(event.id, now, body, [key_of(OLD)]), "content-type": STRUCTURED_TYPE}
    with running(program, OLD) as url, httpx.Client(trust_env=False) as client:

        def status(body: bytes, headers: dict[str, str]) -> int:
            return client.post(url, content=body, headers=headers).status_code

        assert status(body, good) == 204
        assert status(body.replace(b"updated", b"changed"), good) == 401
        assert status(body + b" ", good) == 401
        assert status(body, good | {"webhook-id": "another"}) == 401
        assert status(body, good | {"webhook-timestamp": str(now + 1)}) == 401
        assert status(body, good | {"webhook-timestamp": "now"}) == 401
        assert status(body, good | {"webhook-signature": "v1,"}) == 401
        assert status(body, {name: value for name, value in good.items() if name != "webhook-signature"}) == 401
        assert status(body, good) == 204
        assert not sent(url, OLD, clock=FakeClock(now=(now - 301) * SECOND))
