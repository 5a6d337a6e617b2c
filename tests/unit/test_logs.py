"""One line an event, the same for libraries, and no secret in any."""

import html
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import quote, quote_plus

import pytest
import structlog

from relay import logs

SECRET = 'hun"ter2 &ß\\n'


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves logging as it was, and forgets what was protected."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(logs, "_masks", logs._Masks())
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    """Where the lines go, as JSON at info."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    return stream


def fail(text: str) -> NoReturn:
    """Raises one error from another; only those about the secret hold the text."""
    shown = text if text == SECRET else len(text)
    raise ValueError(f"broken, {shown}") from KeyError(shown)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """What was logged."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_begins_with_utc_time_level_and_event(stream: io.StringIO) -> None:
    structlog.get_logger().info("poll ended", source="acme", pages=3, lag_seconds=1.5, bad=None, ok=True)
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "poll ended",
        "source": "acme",
        "pages": 3,
        "lag_seconds": 1.5,
        "bad": None,
        "ok": True,
    }


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level_is_the_least_that_is_shown(level: Any, count: int) -> None:
    stream = io.StringIO()
    logs.configure(level, "json", stream)
    log = structlog.get_logger()
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("said")
    assert len(lines(stream)) == count


def test_last_configuration_counts_for_loggers_made_before(stream: io.StringIO) -> None:
    log = structlog.get_logger()
    log.info("first")
    second = io.StringIO()
    logs.configure("info", "json", second)
    log.info("second")
    assert [line["event"] for line in lines(stream)] == ["first"]
    assert [line["event"] for line in lines(second)] == ["second"]


@pytest.mark.parametrize("name", ["uvicorn.error", "apscheduler.scheduler", "aiohttp.client", "httpx", "asyncio"])
def test_libraries_are_heard_from_warning_on_in_the_same_shape(stream: io.StringIO, name: str) -> None:
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).warning("missed by %s", 3)
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("missed by 3", "warning", name)


def test_libraries_stay_at_warning_when_we_are_at_debug() -> None:
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    logging.getLogger("httpx").info("GET https://…")
    assert stream.getvalue() == ""


def test_context_is_part_of_the_line(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(source="acme"):
        structlog.get_logger().info("poll ended")
        logging.getLogger("httpx").warning("odd")
    assert [line["source"] for line in lines(stream)] == ["acme", "acme"]


@pytest.mark.parametrize("shape", ["json", "console"])
def test_exception_is_rendered_without_locals(shape: Any) -> None:
    stream = io.StringIO()
    logs.configure("info", shape, stream)
    local = "value of a local"
    for log in (structlog.get_logger(), logging.getLogger("asyncio")):
        try:
            fail(local)
        except ValueError:
            log.exception("task ended")
    assert stream.getvalue().count("ValueError: broken, 16") == 2
    assert "value of a local" not in stream.getvalue()


def test_json_escapes_what_would_break_the_line(stream: io.StringIO) -> None:
    structlog.get_logger().info("read", title="a\nb\x1b[31m\ud800")
    assert len(stream.getvalue().splitlines()) == 1
    assert stream.getvalue().isascii()


def test_auto_is_console_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        logs.configure("info", "auto", stream)
        structlog.get_logger().info("poll ended", source="acme")
    assert "\x1b[" in terminal.getvalue()
    assert [line["event"] for line in lines(pipe)] == ["poll ended"]


def test_console_has_no_colour_in_a_pipe_and_shows_what_moves_a_cursor_by_its_number() -> None:
    stream = io.StringIO()
    logs.configure("info", "console", stream)
    structlog.get_logger().info("read", title="a\x1b[31mb\u202ec", fields={"x": ["\x07"]})
    assert "\x1b" not in stream.getvalue()
    assert "aU+001B[31mbU+202Ec" in stream.getvalue()
    assert "U+0007" in stream.getvalue()


class Holder:
    """Something whose repr shows the secret."""

    def __repr__(self) -> str:
        return f"Holder({SECRET!r})"


@pytest.mark.parametrize("shape", ["json", "console"])
@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"login with {SECRET} failed",
        {"password": SECRET, SECRET: 1},
        [("deep", {"er": SECRET})],
        {SECRET},
        SECRET.encode(),
        ValueError(SECRET),
        Holder(),
        json.dumps({"password": SECRET}),
        quote(SECRET),
        quote_plus(SECRET),
        f"https://u:{quote(SECRET, safe='')}@host.example",
    ],
    ids=lambda value: type(value).__name__,
)
def test_protected_secret_is_masked_in_every_field(shape: Any, value: Any) -> None:
    stream = io.StringIO()
    logs.configure("info", shape, stream)
    logs.protect(SECRET)
    structlog.get_logger().warning(f"refused {value}", field=value)
    logging.getLogger("aiohttp").warning("refused %s", value)
    shown = stream.getvalue()
    assert shown.count("***") >= 3
    assert "ter2" not in shown


@pytest.mark.parametrize("shape", ["json", "console"])
def test_protected_secret_is_masked_in_exceptions(shape: Any) -> None:
    stream = io.StringIO()
    logs.configure("info", shape, stream)
    logs.protect(SECRET)
    for log in (structlog.get_logger(), logging.getLogger("asyncio")):
        try:
            fail(SECRET)
        except ValueError:
            log.exception("task ended")
    assert "***" in stream.getvalue()
    assert "ter2" not in stream.getvalue()


def test_longer_of_two_secrets_is_masked_whole(stream: io.StringIO) -> None:
    logs.protect("hunter2")
    logs.protect("hunter2-and-more")
    structlog.get_logger().info("read", a="hunter2-and-more", b="hunter2")
    assert [(line["a"], line["b"]) for line in lines(stream)] == [("***", "***")]


def test_lines_of_a_key_are_masked_one_by_one(stream: io.StringIO) -> None:
    logs.protect("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADAN\nBgkqhkiG9w0B\n-----END PRIVATE KEY-----\n")
    structlog.get_logger().info("read", a="at MIIEvQIBADAN", b="-----BEGIN PRIVATE KEY-----")
    (line,) = lines(stream)
    assert (line["a"], line["b"]) == ("at ***", "-----BEGIN PRIVATE KEY-----")


def test_short_secret_is_not_masked(stream: io.StringIO) -> None:
    logs.protect("a")
    logs.protect("")
    structlog.get_logger().info("read", a="banana")
    assert lines(stream)[0]["a"] == "banana"


def test_secret_that_looks_like_a_line_s_own_words_keeps_the_line_valid(stream: io.StringIO) -> None:
    for word in ("level", "info", "event", "true", "1234", "timestamp"):
        logs.protect(word)
    structlog.get_logger().info("event", ok=True, count=12345)
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["ok"], line["count"]) == ("info", "***", True, 12345)


@pytest.mark.parametrize(
    "spelled",
    [
        str,
        json.dumps,
        lambda text: json.dumps({"error": json.dumps(text)}),
        lambda text: json.dumps(text).replace("/", "\\/"),
        lambda text: json.dumps(json.dumps(text).replace("/", "\\/")),
        html.escape,
        quote,
        quote_plus,
        repr,
    ],
)
def test_what_a_far_side_repeats_is_hidden_however_it_spells_it(spelled: Callable[[str], str]) -> None:
    secret = "Kanarek/73+&<of>the=key"
    logs.protect(secret)
    assert logs.hide(f"answered 500: {spelled(secret)}, and more").count("***") == 1
    assert "Kanarek" not in logs.hide(spelled(secret))
