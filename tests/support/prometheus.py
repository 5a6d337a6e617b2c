"""A real Prometheus (Debian's) on a free loopback port, which scrapes what a test names. It never outlives the tests.

Knows nothing of the relay's rules or dashboard; where it isn't installed, `packages.skip_without("prometheus")`.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx

from tests.support.receiver import unused_port

JOB = "incident-relay"
START_SECONDS = 30.0
STOP_SECONDS = 15.0
PATIENCE_SECONDS = 60.0

_TETHERED = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the test process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes Prometheus, of the same process id, and dies with the test process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A series at one instant. `labels` holds `__name__` too, where there is one."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series over a range: seconds since the epoch and the value, by time."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One that is pending or firing; `labels` holds `alertname` and what the rule adds."""

    name: str
    state: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    active_at: datetime


@dataclass(kw_only=True)
class Prometheus:
    """`async with Prometheus(folder=…, targets={JOB: ["127.0.0.1:9464"]}) as prometheus: await prometheus.query("up")`.

    It has scraped every target once when it has started; that takes 5 to 10 s, since it looks for targets every 5 s.
    A stopped one may be started again: it keeps its data.
    """

    folder: Path
    targets: Mapping[str, Sequence[str]]
    """Addresses by job."""
    rules: Sequence[Path] = ()
    scrape_seconds: int = 1
    evaluation_seconds: int = 1
    """Of the groups of rules that don't set an interval of their own."""
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _http: httpx.AsyncClient | None = field(default=None, init=False, repr=False)

    @property
    def url(self) -> str:
        """Of its page and its API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def process_id(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has said."""
        path = self._home / "out.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def start(self) -> Self:
        """Waits until it answers and has scraped every target. Raises RuntimeError, which holds the end of its log."""
        program = shutil.which("prometheus")
        assert program is not None, "prometheus is not installed"
        self._home.mkdir(parents=True, exist_ok=True)
        self.port = unused_port()
        self._write_targets()
        (self._home / "prometheus.yml").write_text(json.dumps(self._settings(), indent=2))
        with (self._home / "out.log").open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TETHERED, str(os.getpid()), program, *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self._home,
                start_new_session=True,
            )
        self._http = httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False)
        await self._wait_ready()
        await self._wait_scraped()
        return self

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough; nothing if it does not run."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            await self.stop()
            raise

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def set_targets(self, targets: Mapping[str, Sequence[str]]) -> None:
        """Scrapes these from now on: of the jobs that it was started with. Waits until each has been scraped."""
        assert targets.keys() <= self.targets.keys(), "a job that it doesn't know"
        self.targets = dict.fromkeys(self.targets, ()) | dict(targets)
        self._write_targets()
        await self._wait_scraped()

    async def query(self, expression: str, *, at: float | None = None) -> list[Sample]:
        """The value now, or at this instant in seconds since the epoch. Raises ValueError for a bad expression."""
        found = await self.ask("query", query=expression, **({} if at is None else {"time": at}))
        if found["resultType"] == "scalar":
            return [Sample(labels={}, value=float(found["result"][1]))]
        return [Sample(labels=one["metric"], value=float(one["value"][1])) for one in found["result"]]

    async def query_range(
        self, expression: str, *, start: float, end: float | None = None, step_seconds: float = 1
    ) -> list[Series]:
        """The values between two instants in seconds since the epoch, the second one now. Raises ValueError."""
        end = time.time() if end is None else end
        found = await self.ask("query_range", query=expression, start=start, end=end, step=step_seconds)
        return [
            Series(labels=one["metric"], points=[(at, float(value)) for at, value in one["values"]])
            for one in found["result"]
        ]

    async def alerts(self) -> list[Alert]:
        """Those that are pending or firing."""
        return [
            Alert(
                name=one["labels"]["alertname"],
                state=one["state"],
                labels=one["labels"],
                annotations=one["annotations"],
                active_at=datetime.fromisoformat(one["activeAt"][:19] + "+00:00"),
            )
            for one in (await self.ask("alerts"))["alerts"]
        ]

    async def wait(
        self, expression: str, holds: Callable[[list[Sample]], bool] = bool, *, within: float = PATIENCE_SECONDS
    ) -> list[Sample]:
        """Asks again and again until this holds of the answer: until there is any. Raises TimeoutError."""
        deadline = time.monotonic() + within
        while not holds(found := await self.query(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"within {within:.0f} s: {expression}, which was {found}")
            await asyncio.sleep(0.1)
        return found

    async def ask(self, what: str, **parameters: Any) -> Any:
        """The data of an answer of `/api/v1/…`. Raises ValueError with what it says against the request."""
        assert self._http is not None, "Prometheus does not run"
        answer = await self._http.get(f"/api/v1/{what}", params=parameters)
        document = answer.json()
        if document["status"] != "success":
            raise ValueError(f"{document['errorType']}: {document['error']}")
        return document["data"]

    @property
    def _home(self) -> Path:
        return self.folder / "prometheus"

    def _arguments(self) -> list[str]:
        return [
            f"--config.file={self._home / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._home / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=info",
        ]

    def _settings(self) -> dict[str, Any]:
        return {
            "global": {
                "scrape_interval": f"{self.scrape_seconds}s",
                "scrape_timeout": f"{self.scrape_seconds}s",
                "evaluation_interval": f"{self.evaluation_seconds}s",
            },
            "rule_files": [str(path.resolve()) for path in self.rules],
            "scrape_configs": [
                {"job_name": job, "file_sd_configs": [{"files": [f"{job}.json"], "refresh_interval": "1s"}]}
                for job in self.targets
            ],
        }

    def _write_targets(self) -> None:
        for job, addresses in self.targets.items():
            fresh = self._home / f"{job}.new"
            fresh.write_text(json.dumps([{"targets": list(addresses)}]))
            fresh.rename(self._home / f"{job}.json")

    async def _wait_ready(self) -> None:
        assert self._http is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(httpx.TransportError):
                if (await self._http.get("/-/ready")).is_success:
                    return
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prometheus did not start:\n{self.log[-3000:]}")
            await asyncio.sleep(0.05)

    async def _wait_scraped(self) -> None:
        wanted = {(job, address) for job, addresses in self.targets.items() for address in addresses}
        deadline = time.monotonic() + START_SECONDS
        while True:
            active = (await self.ask("targets", state="active"))["activeTargets"]
            scraped = {
                (one["labels"]["job"], one["labels"]["instance"]) for one in active if one["health"] != "unknown"
            }
            if scraped == wanted and len(active) == len(wanted):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"Prometheus scraped {scraped} and not {wanted}:\n{self.log[-3000:]}")
            await asyncio.sleep(0.1)
