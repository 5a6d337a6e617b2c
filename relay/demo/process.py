"""The relay of the demo: a real process, killed and started again. It never outlives the demo, however that ends."""

import asyncio
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml

PR_SET_PDEATHSIG: Final = 1
STOP_SECONDS: Final = 6.0
JOURNAL: Final = "relay.db"


class RelayProcess:
    """`relay run` with a configuration of the demo's; its log goes to `relay.log` in the folder."""

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self._config = folder / "relay.yaml"
        self._log = folder / "relay.log"
        self._config.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def ended(self) -> int | None:
        """The exit code of the last process; None while it runs, and before the first one."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Starts a process; returns before it is ready."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "relay", "run", "--config", str(self._config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                env=_environment(),
                # Ctrl-C is for the demo, which then ends the relay itself.
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )

    async def kill(self) -> None:
        """SIGKILL: gone at once. Does nothing when there is no process."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, and the exit code; after some seconds SIGKILL, and what comes of that."""
        if self._process is None:
            return 0
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            await self.kill()
            return await self._process.wait()

    async def command(self, *arguments: str) -> str:
        """What `relay …` answers to an operator, for the relay of this folder; what it complains of, if it fails."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "relay", *arguments, "--config", str(self._config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        try:
            answer, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return answer.decode(errors="replace").strip()

    def journal_bytes(self) -> int:
        """The size of the journal's file: it never shrinks."""
        path = self._config.with_name(JOURNAL)
        return path.stat().st_size if path.exists() else 0

    def last_words(self) -> str:
        """The last line of its log, for whoever has to find out why it ended."""
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        return text.strip().rpartition("\n")[2]


def peak_memory_bytes() -> int:
    """The most that one of our processes has taken, of those that have ended."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _environment() -> dict[str, str]:
    """Ours, without the settings of another relay."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}


def _die_with_parent() -> Callable[[], None] | None:
    """What lets the kernel end the child when the demo is killed; only Linux has it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
