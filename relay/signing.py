"""What settings and the webhook sink both have to know: the keys of signing secrets, and the headers that are not free.

Pure. Raises ValueError, which reads on from the name of the setting and never shows its value.
"""

import base64
import binascii
import re
from typing import Final

WRITTEN_AS_BASE64: Final = "whsec_"
RESERVED_HEADERS: Final = frozenset(
    {
        *("content-type", "webhook-id", "webhook-timestamp", "webhook-signature"),
        *("connection", "content-encoding", "content-length", "expect", "host", "te", "trailer", "transfer-encoding"),
        *("accept-encoding", "keep-alive", "proxy-authorization", "proxy-connection", "upgrade", "user-agent"),
    }
)
"""What the sink or HTTP itself says; `headers` cannot."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)


def secrets_in(text: str) -> list[str]:
    """The signing secrets, one a line; lines without one are passed over."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def key_of(secret: str) -> bytes:
    """The key of a secret: `whsec_` and base64, as Standard Webhooks writes them, or any other text as it is."""
    text = secret.strip()
    key = text.encode(errors="surrogatepass")
    if text.startswith(WRITTEN_AS_BASE64):
        encoded = text.removeprefix(WRITTEN_AS_BASE64)
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"what follows {WRITTEN_AS_BASE64} is not base64") from None
    if not key:
        raise ValueError("one is empty, and would let anybody sign")
    return key


def is_reserved(header: str) -> bool:
    """Whether the relay or HTTP itself sets this header."""
    return header.strip().lower() in RESERVED_HEADERS


def is_header(name: str) -> bool:
    """Whether a request can carry a header of this name."""
    return _NAME.fullmatch(name) is not None
