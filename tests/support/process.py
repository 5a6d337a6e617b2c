"""The relay as its users run it: a child process, its log read while it is written. It never outlives the tests."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

PATIENCE_SECONDS = 60.0
"""How long anything may take that takes a second on an idle machine."""

_TETHERED = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the test process is gone")
os.execv(sys.executable, [sys.executable, "-m", "relay", *sys.argv[2:]])
"""
"""Becomes the relay, of the same process id. Code between fork and exec is not safe beside librdkafka's threads."""

_LONGEST_LINE_BYTES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What came of a command."""

    code: int
    stdout: str
    stderr: str


class Child:
    """One relay process. `log` holds its lines on standard error so far, `stdout` and `stderr` every byte."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.log: list[dict[str, Any]] = []
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.not_json: list[str] = []
        """Lines on standard error that are no line of the log."""
        self._process = process
        self._news = asyncio.Condition()
        self._ended = False
        self._http: httpx.AsyncClient | None = None

    @property
    def process_id(self) -> int:
        """Of the relay itself."""
        return self._process.pid

    async def started(self) -> None:
        """Waits until it says so; from then on `get` works."""
        line = await self.logged("relay started")
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{line['http_port']}", timeout=30, trust_env=False)

    async def logged(self, event: str, *, after: int = 0, within: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The first line with this event among those from number `after` on, waited for.

        Raises TimeoutError, and EOFError when the process ends without it.
        """
        async with asyncio.timeout(within), self._news:
            while True:
                for line in self.log[after:]:
                    if line.get("event") == event:
                        return line
                after = len(self.log)
                if self._ended:
                    raise EOFError(f"the relay ended without {event!r}")
                await self._news.wait()

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines so far with this event."""
        return [line for line in self.log if line.get("event") == event]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing if the process has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self, *, within: float = PATIENCE_SECONDS) -> int:
        """Waits for its exit code. Raises TimeoutError."""
        async with asyncio.timeout(within):
            return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL: gone at once."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def get(self, path: str) -> httpx.Response:
        """Asks its HTTP server. Raises httpx.HTTPError."""
        if self._http is None:
            raise RuntimeError("the relay has not started")
        return await self._http.get(path)

    async def status(self) -> dict[str, Any]:
        """The document of `/api/status`."""
        document: dict[str, Any] = (await self.get("/api/status")).raise_for_status().json()
        return document

    async def metric(self, name: str, /, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; 0 when there is none yet."""
        text = (await self.get("/metrics")).raise_for_status().text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def last_words(self) -> str:
        """The end of its log without the polls that found nothing, for whoever has to find out what went wrong."""
        lines = self.stderr.decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if '"events": 0,' not in line][-40:])

    async def read(self) -> None:
        """Takes in all that it writes, until it ends."""
        await asyncio.gather(self._read_stdout(), self._read_stderr())

    async def close(self) -> None:
        """Lets go of its HTTP server."""
        if self._http is not None:
            await self._http.aclose()

    async def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(1 << 16):
            self.stdout += chunk

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.stderr += line
            try:
                self.log.append(msgspec.json.decode(line, type=dict[str, Any]))
            except msgspec.MsgspecError:
                self.not_json.append(line.decode(errors="replace"))
            async with self._news:
                self._news.notify_all()
        self._ended = True
        async with self._news:
            self._news.notify_all()


@asynccontextmanager
async def child(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """`python -m relay` with these arguments in this folder; killed when the block is left, unless it ended."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _TETHERED, str(os.getpid()), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env=_without_settings() | dict(environment or {}),
        start_new_session=True,
        limit=_LONGEST_LINE_BYTES,
    )
    relay = Child(process)
    reading = asyncio.create_task(relay.read(), name="read the relay")
    try:
        yield relay
    except BaseException as exc:
        exc.add_note(f"the relay's last words:\n{relay.last_words()}")
        raise
    finally:
        await relay.close()
        await relay.kill()
        await reading


async def finished(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, within: float = PATIENCE_SECONDS
) -> Finished:
    """Runs `python -m relay` with these arguments to its end. Raises TimeoutError."""
    async with child(folder, *arguments, environment=environment) as relay:
        code = await relay.ended(within=within)
    return Finished(code=code, stdout=relay.stdout.decode(), stderr=relay.stderr.decode())


def _without_settings() -> dict[str, str]:
    """Our environment without the settings of another relay."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
