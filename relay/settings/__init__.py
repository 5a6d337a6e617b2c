"""Settings: found, merged and checked. What they are is in `model`; how they are written in `layers` and `units`.

`load` is the only way in. Everything wrong is said in one go, a line each, and no line shows a value.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from relay.errors import ConfigError
from relay.settings.document import Document
from relay.settings.layers import Layer, Problem, read_environment, read_file
from relay.settings.model import (
    NOT_YET,
    REGIONS,
    Api,
    Backoff,
    CreateTopic,
    FileSink,
    Http,
    Journal,
    KafkaSink,
    Log,
    Region,
    Settings,
    Sink,
    SlackSink,
    Source,
    StdoutSink,
    TeamsSink,
    Tls,
    WebhookSink,
    folder,
)
from relay.settings.rules import broken, doubtful, not_yet, with_keep
from relay.settings.secret import Secret
from relay.settings.units import format_duration, format_size, parse_duration, parse_size

__all__ = [
    "NOT_YET",
    "REGIONS",
    "Api",
    "Backoff",
    "CreateTopic",
    "FileSink",
    "Http",
    "Journal",
    "KafkaSink",
    "Log",
    "Region",
    "Secret",
    "Settings",
    "Sink",
    "SlackSink",
    "Source",
    "StdoutSink",
    "TeamsSink",
    "Tls",
    "WebhookSink",
    "format_duration",
    "format_size",
    "load",
    "parse_duration",
    "parse_size",
]

DEFAULT_FILE = "relay.yaml"


def load(config: Path | None, environ: Mapping[str, str], cwd: Path) -> Settings:
    """The settings from `config`, else `RELAY_CONFIG`, else `relay.yaml` in `cwd`; over them the environment.

    Secret files are read once, to see that they can be. Raises ConfigError with everything that is wrong, a line each.
    """
    path, shown = _find(config, environ, cwd)
    environment = read_environment(environ)
    if path is None and not environment.values and not environment.problems:
        raise ConfigError(
            f"no configuration: there is no {DEFAULT_FILE} in {cwd} and no RELAY_ variable is set; write sources: and "
            f"sinks: into {DEFAULT_FILE}, or name the file with --config or RELAY_CONFIG"
        )
    file = read_file(path, shown) if path is not None else Layer()
    problems = [*file.problems, *environment.problems]
    if file.problems and not file.values:
        raise _refusal(problems)
    token = folder.set((path.parent if path is not None else cwd).absolute())
    try:
        settings, found = _check(Document.of(file, environment, shown=shown if path is not None else None))
    finally:
        folder.reset(token)
    if settings is None or problems or found:
        raise _refusal([*problems, *found])
    settings._path = path
    settings._warnings = tuple(doubtful(settings))
    return settings


def _find(config: Path | None, environ: Mapping[str, str], cwd: Path) -> tuple[Path | None, str]:
    """The file to read, and how it was named."""
    named = str(config) if config is not None else environ.get("RELAY_CONFIG", "")
    if named:
        return cwd / named, named
    default = cwd / DEFAULT_FILE
    return (default, DEFAULT_FILE) if default.exists() else (None, DEFAULT_FILE)


def _check(document: Document) -> tuple[Settings | None, list[Problem]]:
    problems = list(broken(document))
    refused = list(not_yet(document))
    problems += [problem for problem, _ in refused]
    # A settings class takes options of its own, which begin with `_`, among its arguments: none may come from outside.
    unknown = [(key,) for key in document.values if key not in Settings.model_fields]
    problems += [document.unknown(key) for key in unknown]
    empty = [(key,) for key in ("sources", "sinks") if document.get(key) is None]
    rest = with_keep(document.without([*(key for _, key in refused), *unknown, *empty]))
    try:
        return Settings(**rest.values), problems
    except ValidationError as exc:
        return None, [*problems, *document.translate(exc)]


def _refusal(problems: list[Problem]) -> ConfigError:
    ordered = sorted(set(problems), key=lambda problem: (problem.place is not None, problem))
    return ConfigError("\n".join(map(str, ordered)))
