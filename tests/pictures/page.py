"""The status page in each of its states, light and dark, and once on a phone, as docs/pictures/page-*.png.

The documents are those of tests/data/status: a made-up company, one moment.
"""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

from tests.support.browser import board, launched, open_page

ROOT = Path(__file__).parents[2]
DOCUMENTS = ROOT / "tests" / "data" / "status"
PICTURES = ROOT / "docs" / "pictures"
MAX_BYTES = 120_000
EVENTS = 4
"""So many are enough to show what they look like."""
STATES = {"all-well": "flowing", "throttled-and-backfilling": "late", "sink-parked": "blocked"}
"""The document, and the verdict that the picture is named for."""


def main() -> None:
    asyncio.run(_draw_all())


async def _draw_all() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    async with launched() as browser:
        for document, name in STATES.items():
            shown = json.loads((DOCUMENTS / f"{document}.json").read_text(encoding="utf-8"))
            del shown["events"][EVENTS:]
            async with board(shown) as served:
                for theme in ("light", "dark"):
                    target = PICTURES / f"page-{name}-{theme}.png"
                    async with open_page(browser, served.url, dark=theme == "dark", size=(1280, 800)) as sight:
                        await sight.shoot(target)
                    _squeeze(target)
                if name == "late":
                    target = PICTURES / f"page-{name}-phone.png"
                    async with open_page(browser, served.url, phone=True, size=(390, 844), scale=1.2) as sight:
                        await sight.shoot(target)
                    _squeeze(target)


def _squeeze(target: Path) -> None:
    """A palette, where pngquant is here: large enough that amber and red stay apart."""
    if (pngquant := shutil.which("pngquant")) is not None:
        command = [pngquant, "--force", "--strip", "--nofs", "--speed=1", "--output", str(target), "72", str(target)]
        subprocess.run(command, check=True, timeout=60)
    size = target.stat().st_size
    print(f"{target.relative_to(ROOT)}: {size:,} bytes{' TOO LARGE' * (size > MAX_BYTES)}")  # noqa: T201


if __name__ == "__main__":
    main()
