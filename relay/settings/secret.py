"""A secret: written in place, or named by a file that is read anew each time. Never shown by repr, str or a message."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from relay.errors import ConfigError

LARGEST_BYTES = 65_536


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """`reveal()` is the only way to the value. `file` is None when the value was written in place."""

    text: str | None = None
    file: Path | None = None

    def __repr__(self) -> str:
        return f"Secret({self.file or '***'})"

    def reveal(self) -> str:
        """The value, without trailing line ends; a file is read again. Raises ConfigError when it cannot be."""
        if self.file is None:
            return self.text or ""
        try:
            return _read(self.file)
        except ValueError as exc:
            raise ConfigError(f"{self.file} {exc}") from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            check_secret, serialization=core_schema.plain_serializer_function_ser_schema(repr)
        )


@dataclass(frozen=True, slots=True)
class Given:
    """What the configuration says of one secret before it is checked: `key`, `key_file`, or by mistake both."""

    text: Any = field(repr=False)
    file: Path | None


def check_secret(value: Any) -> Secret:
    """The secret of what is given, its file read once. Raises ValueError, which shows neither value nor path."""
    if isinstance(value, Secret):
        return value
    given = value if isinstance(value, Given) else Given(text=value, file=None)
    if given.file is not None:
        if given.text is not None:
            raise ValueError("is given twice, in place and as a file; keep one of the two")
        _read(given.file)
        return Secret(file=given.file)
    if not isinstance(given.text, str) or not given.text:
        raise ValueError("is empty; write the secret, or name its file with _file")
    return Secret(text=given.text)


def reason(exc: OSError) -> str:
    """Why the system refused, in its own few words."""
    return (exc.strerror or type(exc).__name__).lower()


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(LARGEST_BYTES + 1)
    except OSError as exc:
        raise ValueError(f"cannot be read: {reason(exc)}") from None
    if len(raw) > LARGEST_BYTES:
        raise ValueError("is larger than 64KiB; it should hold the secret alone")
    try:
        text = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    if not text:
        raise ValueError("is an empty file; write the secret into it")
    return text
