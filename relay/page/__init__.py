"""The status page: one HTML file, of which only the text of its data element is replaced, and the headers it goes with.

It knows nothing of the relay: what it shows is a status document, and that is drawn in the browser.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_OPENING: Final = '<script type="application/json" id="status">'


def _between(text: str, opening: str, closing: str) -> str:
    """What stands between the first `opening` and the `closing` after it."""
    return text.split(opening, 1)[1].split(closing, 1)[0]


def _source(block: str) -> str:
    """How a policy names an inline block, by its SHA-256."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"


_PAGE: Final = (Path(__file__).parent / "status.html").read_text(encoding="utf-8")
_BEFORE, _AFTER = _PAGE.split(_OPENING + "</script>")

POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        f"style-src {_source(_between(_PAGE, '<style>', '</style>'))}",
        f"script-src {_source(_between(_AFTER, '<script>', '</script>'))}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""The Content-Security-Policy of the page: these two inline blocks run, and nothing else."""
HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What goes with page and document alike."""
PAGE_HEADERS: Final[Mapping[str, str]] = {**HEADERS, "Content-Security-Policy": POLICY}


def render(document: Mapping[str, Any]) -> str:
    """The page that shows this document. Pure ASCII within the data, so that no text of it can end the element."""
    data = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f"{_BEFORE}{_OPENING}{data}</script>{_AFTER}"
