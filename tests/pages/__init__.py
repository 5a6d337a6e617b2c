"""Pages of the documentation that are made from the code, so that they can't be wrong. Not part of the relay.

Each module here has `PAGE`, the file, and `render()`, what it should hold. `python -m tests.pages` writes them all.
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol, cast


class Page(Protocol):
    """A module of this package that makes a page."""

    PAGE: Path
    """Where it stands."""

    def render(self) -> str:
        """The whole of it, as it should be now."""
        ...


def pages() -> list[Page]:
    """Every one, by name."""
    names = sorted(found.name for found in iter_modules(__path__) if not found.name.startswith("_"))
    return [cast("Page", import_module(f"{__name__}.{name}")) for name in names]
