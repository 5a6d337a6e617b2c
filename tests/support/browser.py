"""A real Chromium for tests and pictures of pages: what it drew, what it asked for, and what it complained about.

Its objects belong to one loop: tests that use the fixture `chromium` run on the session's, see `ON_ITS_LOOP`.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount

from relay import web
from relay.clock import SystemClock
from relay.metrics import Metrics
from relay.status import RelayFacts, document
from tests.support.packages import skip_without

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from playwright.async_api import Browser, ConsoleMessage, Dialog, Page

ON_ITS_LOOP: Final = pytest.mark.asyncio(loop_scope="session")
HOST: Final = "relay.test"
"""A name that Chromium takes for 127.0.0.1, yet not for a secure context: as on a network, without TLS."""
DESKTOP: Final = (1400, 900)
PHONE: Final = (360, 740)
WCAG: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """An open page. `complaints` are errors and warnings of its console, errors of scripts, and dialogs."""

    page: "Page"
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def violations(self) -> list[str]:
        """What axe-core finds against WCAG 2.2 AA, by rule, with the first elements that break it."""
        from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped] # noqa: PLC0415

        options = {"runOnly": {"type": "tag", "values": WCAG}, "resultTypes": ["violations"]}
        found = (await Axe().run(self.page, options=options)).response["violations"]
        return [f"{one['id']}: {[node['html'][:120] for node in one['nodes'][:3]]}" for one in found]

    async def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        # Not `innerWidth`: a phone zooms out until all fits, and that grows with the page.
        return int(await self.page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.documentElement)"))

    async def shoot(self, path: Path) -> None:
        """The whole page as PNG."""
        await self.page.screenshot(path=path, full_page=True, animations="disabled")


@asynccontextmanager
async def launched() -> "AsyncIterator[Browser]":
    """Debian's Chromium, headless; ended with the block."""
    from playwright.async_api import async_playwright  # noqa: PLC0415 - most tests need no browser

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[
                "--no-sandbox",
                "--hide-scrollbars",
                "--disable-lcd-text",
                f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
            ],
        )
        try:
            yield browser
        finally:
            await browser.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> "AsyncIterator[Browser]":
    """One Chromium for all tests; without it they are skipped."""
    skip_without("chromium")
    async with launched() as browser:
        yield browser


@asynccontextmanager
async def open_page(
    browser: "Browser",
    url: str,
    *,
    dark: bool = False,
    phone: bool = False,
    size: tuple[int, int] | None = None,
    scale: float = 1,
    scripts: bool = True,
    before: str = "",
    clock: bool = False,
) -> "AsyncIterator[Sight]":
    """Opens it in a fresh profile. `before` runs ahead of its scripts; `clock` makes time go by `page.clock` alone."""
    width, height = size or (PHONE if phone else DESKTOP)
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        is_mobile=phone,
        has_touch=phone,
        device_scale_factor=scale,
        java_script_enabled=scripts,
        locale="en-GB",
        timezone_id="Asia/Tokyo",  # nothing on a page may depend on it
    )
    try:
        page = await context.new_page()
        sight = Sight(page=page)
        page.on("request", lambda request: sight.requests.append(request.url))
        page.on("console", lambda message: _note(sight, message))
        page.on("pageerror", lambda error: sight.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: _dismiss(sight, dialog))
        if before:
            await page.add_init_script(before)
        if clock:
            await page.clock.install()
        await page.goto(url)
        yield sight
    finally:
        await context.close()


def _note(sight: Sight, message: "ConsoleMessage") -> None:
    if message.type in ("error", "warning"):
        sight.complaints.append(f"{message.type}: {message.text}")


async def _dismiss(sight: Sight, dialog: "Dialog") -> None:
    sight.complaints.append(f"dialog: {dialog.message}")
    await dialog.dismiss()


class Board:
    """The real HTTP application over a relay of which only this is known: facts, or the document itself."""

    def __init__(self, shown: "RelayFacts | Mapping[str, Any]", *, prefix: str = "") -> None:
        self.shown = shown
        self.prefix = prefix
        self.metrics = Metrics(SystemClock())
        self.port = 0
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The page, at an address that is no secure context."""
        return f"http://{HOST}:{self.port}/"

    @property
    def local_url(self) -> str:
        """The same for clients that don't know that name."""
        return f"http://127.0.0.1:{self.port}/"

    async def facts(self) -> RelayFacts:
        return self.shown  # type: ignore[return-value] # `_document` lets a finished one pass

    async def own_facts(self) -> RelayFacts:
        return await self.facts()

    def stuck_seconds(self) -> float:
        return 0.0

    def ended_tasks(self) -> list[str]:
        return []

    async def start(self) -> None:
        """Listens; again on the same port after `stop`."""
        listener = web.bind("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(web.serve(self._application(), listener))

    def _application(self) -> Starlette:
        app = web.application(self)
        return Starlette(routes=[Mount(self.prefix, app)]) if self.prefix else app

    async def stop(self) -> None:
        """Refuses connections from now on."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])
            self._serving = None


def _document(shown: "RelayFacts | dict[str, Any]") -> "dict[str, Any]":
    return document(shown) if isinstance(shown, RelayFacts) else shown


@asynccontextmanager
async def board(shown: "RelayFacts | Mapping[str, Any]", *, prefix: str = "") -> AsyncIterator[Board]:
    """Serves it on a free port, below `prefix`. Of the real way only the making of a finished document is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "document", _document)
        shows = Board(shown, prefix=prefix)
        await shows.start()
        try:
            yield shows
        finally:
            await shows.stop()
