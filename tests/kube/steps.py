"""How long each step took, printed as it ends, so that a slow one is seen in the log of a run."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
HOME: Final = ROOT / ".cache" / "kube"
"""Whatever is fetched, built or started here; `make clean` removes it."""


@contextmanager
def step(name: str) -> Iterator[None]:
    """Prints the seconds to the terminal itself, past pytest's capture."""
    began = time.monotonic()
    done = False
    try:
        yield
        done = True
    finally:
        seconds = time.monotonic() - began
        print(f"{seconds:8.1f} s  {name}{'' if done else ': failed'}", file=sys.__stderr__, flush=True)
