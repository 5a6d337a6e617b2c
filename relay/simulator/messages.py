"""A request and its answer without a socket. `relay.simulator.server` carries them over HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

Wire = Literal["whole", "truncated", "closed", "reset"]
"""What becomes of the connection: all is sent; it ends within the body; it ends or is reset with nothing sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; header names are lower case, `path` and `query` are decoded."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def to(cls, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"") -> "Request":
        """A request to a URL, or to a path with a query, as it would stand on the wire."""
        parts = urlsplit(url)
        return cls(
            method=method,
            path=unquote(parts.path),
            query=decoded_query(parts.query),
            headers={name.lower(): value for name, value in (headers or {}).items()},
            body=body,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is answered, `delay_seconds` after the request came; it shows the state as it was when the request came.

    For `wire="truncated"`, `body` is the part that is sent, and the Content-Length header promises more.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay_seconds: float = 0
    wire: Wire = "whole"

    def json(self) -> Any:
        """The decoded body."""
        return msgspec.json.decode(self.body)


def decoded_query(text: str) -> dict[str, str]:
    """A query string by name; the last of repeated ones counts."""
    return dict(parse_qsl(text, keep_blank_values=True))


def json_answer(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with a JSON body."""
    return Answer(
        status=status,
        headers={"content-type": "application/json", **(headers or {})},
        body=msgspec.json.encode(value),
    )


def error_answer(status: int, message: str, *, code: int = 3) -> Answer:
    """An error with the body that Google's API style suggests; the real one is undocumented."""
    return json_answer(status, {"code": code, "message": message, "details": []})
