"""Every setting, in small groups, each with the reason for its default. Not how they are found: see `layers`.

Durations are `timedelta`, sizes are bytes, paths are absolute, instants are nanoseconds since the epoch.
"""

import base64
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from relay.clock import Instant
from relay.settings.layers import parse_list
from relay.settings.secret import Given, Secret, check_secret, reason
from relay.settings.units import format_duration, format_size, parse_duration, parse_size, parse_start
from relay.signing import is_header, is_reserved, key_of, secrets_in

Region = Literal["eu", "de", "us", "ca", "jpn"]
REGIONS: Final[tuple[Region, ...]] = get_args(Region)

LONGEST_TOPIC = 249
SERVERS: Final = "bootstrap.servers"
SHORTEST_PART = 12
"""Parts of a secret that are shorter are words such as `services` and `Bearer`, which stay readable."""
LONGEST_LABEL = 40
LONGEST_SOCKET_PATH = 107
EMPTY = "is empty; write a value, or remove the key"
FIELDS: Final = "[description, tags]"
RETRIES: Final = "[0s, 5s, 30s]"

# What the contract promises and this version cannot do yet: refused by name, instead of ignored. A key alone is refused
# whatever its value; one with values is refused when it has one of them. Whoever builds a thing deletes its line.
NOT_YET: Final[Mapping[str, tuple[str, ...]]] = {
    "sinks.*.format": ("ocsf", "ecs"),
}

folder: ContextVar[Path] = ContextVar("folder", default=Path())
"""Where relative paths start; set by `load`, because a settings class takes no validation context."""

_SECRET_OPTION = re.compile(r"pas|pwd|secret|\.pem$|^sasl\.oauthbearer\.config$")
_LABEL = re.compile(r"[a-z0-9_]{1,40}", re.ASCII)
_TOPIC_TEXT = re.compile(r"[A-Za-z0-9._-]*", re.ASCII)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)

_T = TypeVar("_T")


def is_secret_option(name: str) -> bool:
    """Whether a librdkafka option holds something to hide; told by its name, so that unknown ones are hidden too."""
    return _SECRET_OPTION.search(name) is not None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("takes one value" if value else EMPTY)
    if "\0" in value:
        raise ValueError("holds a NUL; remove it")
    return value


def _written(value: Any) -> Any:
    """Who writes a key and no value means something else than the default."""
    if value is None:
        raise ValueError(EMPTY)
    return value


def _parsed(parse: Callable[[str], _T]) -> BeforeValidator:
    return BeforeValidator(lambda value: value if isinstance(value, timedelta | int) else parse(_text(value)))


def _listed(example: str) -> BeforeValidator:
    """A list, or its text as a variable holds it."""

    def check(value: Any) -> Any:
        listed = parse_list(value)
        if isinstance(listed, list | tuple):
            return listed
        raise ValueError(f"is not a list; write it in brackets, such as {example}" if listed else EMPTY)

    return BeforeValidator(check)


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The smallest value that a key takes, and how it is written."""

    least: Any
    shown: str

    def __call__(self, value: Any) -> Any:
        """The value. Raises ValueError when it is smaller."""
        if value < self.least:
            raise ValueError(f"is too small; at least {self.shown}")
        return value


def _duration(least: timedelta) -> AfterValidator:
    return AfterValidator(AtLeast(least, format_duration(least)))


def _size(least: int) -> AfterValidator:
    return AfterValidator(AtLeast(least, format_size(least)))


def _label(value: Any) -> str:
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise ValueError("is not a label; use 1 to 40 of a-z, 0-9 and _")
    return value


def _path(value: Any) -> Path:
    return folder.get() / (value if isinstance(value, Path) else _text(value))


def _named(value: Path) -> Path:
    if not value.name:
        raise ValueError("is no folder of its own; name one, such as relay-cache")
    return value


def _readable(value: Path) -> Path:
    try:
        with value.open("rb") as stream:
            stream.read(1)
    except OSError as exc:
        raise ValueError(f"cannot be read: {reason(exc)}") from None
    return value


def _url(value: Any) -> str:
    """An absolute http(s) URL without a login. Raises ValueError, which never shows it."""
    text = _text(value)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or parts.scheme not in ("http", "https") or re.search(r"[\s\x00-\x1f]", text):
        raise ValueError("is not a URL; write it in full, such as https://host.example")
    return text


def _endpoint(value: Any) -> str:
    text = _url(value)
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a login; write it into username and password")
    if parts.query or parts.fragment:
        raise ValueError("has a query or a fragment; remove it")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ValueError("is not encrypted; use https (http is only for this machine, such as http://127.0.0.1)")
    return text.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _proxy(value: Any) -> Literal["none", "env"] | Secret:
    if value == "none":
        return "none"
    if value == "env":
        return "env"
    secret = check_secret(value)
    try:
        _url(secret.reveal())
    except ValueError:
        raise ValueError("is not none, env or the URL of a proxy, such as http://proxy.example:3128") from None
    return secret


def _link(value: Any) -> str:
    text = _url(value)
    if _PLACEHOLDER.findall(text) != ["uuid"]:
        raise ValueError("must hold {uuid} once, and no other placeholder")
    return text


def _topic(value: Any) -> str:
    text = _text(value)
    unknown = [name for name in _PLACEHOLDER.findall(text) if name not in ("source", "severity")]
    if unknown:
        raise ValueError(f"holds {{{unknown[0]}}}; a topic may hold {{source}} and {{severity}} only")
    plain = _PLACEHOLDER.sub("", text)
    if not _TOPIC_TEXT.fullmatch(plain):
        raise ValueError("is not a topic; use A-Z, a-z, 0-9, '.', '_', '-', {source} and {severity}")
    if len(_PLACEHOLDER.sub("x" * LONGEST_LABEL, text)) > LONGEST_TOPIC or text in (".", ".."):
        raise ValueError(f"is not a topic; at most {LONGEST_TOPIC} characters with its placeholders filled in")
    return text


def _prefix(value: Any) -> str:
    text = _text(value)
    if not _TOPIC_TEXT.fullmatch(text) or len(text) > 100:
        raise ValueError("is not a prefix of topics; use 1 to 100 of A-Z, a-z, 0-9, '.', '_' and '-'")
    return text


def _fields(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not _FIELD.fullmatch(name):
            raise ValueError("holds what is not a field; name top-level fields of an incident, such as [description]")
    return value


def _sink_url(value: Any, *, login: str = "send it as a header instead, by headers") -> Secret:
    """The URL of a sink: hidden, because it may hold a token, and so may its query. `login`: what to do with one."""
    secret = check_secret(value)
    parts = urlsplit(_url(secret.reveal()))
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"holds a login; {login}")
    if parts.fragment:
        raise ValueError("has a fragment; remove it")
    return secret


def _chat_url(value: Any) -> Secret:
    secret = _sink_url(value, login="copy the URL as the service gives it")
    parts = urlsplit(secret.reveal())
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ValueError("is not encrypted; use https, as the service gives it (http is only for this machine)")
    return secret


def _signing_secrets(value: Any) -> Secret:
    """One secret a line: several while they are rotated."""
    secret = check_secret(value)
    secrets = secrets_in(secret.reveal())
    if not secrets:
        raise ValueError("is empty; write one signing secret a line, or remove the key")
    for number, one in enumerate(secrets, start=1):
        try:
            key_of(one)
        except ValueError as exc:
            which = f"secret {number}: " if len(secrets) > 1 else ""
            raise ValueError(f"cannot be used: {which}{exc}; copy it whole, as the receiver gave it") from None
    return secret


def _retry(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError(f"is empty; write the waits before each attempt, such as {RETRIES}")
    return value


def _header(value: str) -> str:
    if is_reserved(value):
        raise ValueError("is set by the relay; remove it")
    return value


def _header_value(value: Any) -> Secret:
    secret = check_secret(value)
    if not all(" " <= character <= "~" for character in secret.reveal()):
        raise ValueError("has a value that no header can carry; use printable ASCII on one line")
    return secret


def _fold_headers(value: Any) -> Any:
    """Takes `<name>_file` as the file that holds the value of `<name>`."""
    if not isinstance(value, dict):
        return value
    names = dict.fromkeys(name.removesuffix("_file") for name in value)
    if not all(map(is_header, names)):  # not shown: a whole header may have been written in place of its name
        raise ValueError("holds what is no name of a header; use letters, digits and '-'")
    return {
        name: _given(value.get(name), value[f"{name}_file"]) if f"{name}_file" in value else value[name]
        for name in names
    }


def _socket(value: Any) -> Literal["auto"] | Path:
    if value == "auto":
        return "auto"
    path = _path(value)
    if len(bytes(path)) > LONGEST_SOCKET_PATH:
        raise ValueError(f"is too long for a Unix socket; at most {LONGEST_SOCKET_PATH} bytes in full")
    return path


def _creation(value: Any) -> Any:
    if value is False or (isinstance(value, str) and value.lower() in ("false", "no", "off")):
        return None
    return value


def _option(value: Any) -> str | Secret:
    if isinstance(value, Given):
        return check_secret(value)
    if isinstance(value, str | Secret):
        return value
    raise ValueError("takes one value; write librdkafka's own name in one piece, with its dots" if value else EMPTY)


def _fold_options(value: Any) -> Any:
    """Takes `sasl.password_file` as the file of `sasl.password`, and marks what is to be hidden."""
    if not isinstance(value, dict):
        return value
    files = {name.removesuffix("_file"): file for name, file in value.items() if name.endswith("_file")}
    secrets = {name: file for name, file in files.items() if is_secret_option(name)}
    plain = {name: text for name, text in value.items() if name.removesuffix("_file") not in secrets}
    hidden = {name: Given(text=text, file=None) for name, text in plain.items() if is_secret_option(name)}
    paired = {name: _given(value.get(name), file) for name, file in secrets.items()}
    return plain | hidden | paired


def _given(text: Any, file: Any) -> Given:
    return Given(text=text, file=_path(file) if isinstance(file, str) and file else None)


def secret_keys(group: type[BaseModel]) -> list[str]:
    """The keys of a group that may also be given as `<key>_file`."""
    fields = group.model_fields.items()
    return [key for key, field in fields if Secret in (field.annotation, *get_args(field.annotation))]


# What is written is text that we read ourselves: `WithJsonSchema` tells editors what they can't see from the type.
Label = Annotated[str, BeforeValidator(_label), WithJsonSchema({"type": "string", "pattern": f"^{_LABEL.pattern}$"})]
Duration = Annotated[
    timedelta,
    _parsed(parse_duration),
    WithJsonSchema(
        {"type": "string", "$comment": "duration", "pattern": r"^(?=.)(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"}
    ),
]
Positive = Annotated[Duration, _duration(timedelta(milliseconds=1))]
Size = Annotated[
    int,
    _parsed(parse_size),
    WithJsonSchema({"type": "string", "$comment": "size", "pattern": r"^\d+ ?(B|[kK]B|[MGT]B|[KMGT]iB)$"}),
]
StartFrom = Annotated[
    Literal["all", "now"] | Instant,
    _parsed(parse_start),
    WithJsonSchema({"anyOf": [{"enum": ["all", "now"]}, {"type": "string", "format": "date-time"}]}),
]
AnyPath = Annotated[Path, BeforeValidator(_path)]
ReadableFile = Annotated[Path, BeforeValidator(_path), AfterValidator(_readable)]
Endpoint = Annotated[str, BeforeValidator(_endpoint)]
Text = Annotated[str, Field(min_length=1)]
KafkaOption = Annotated[
    str | Secret, BeforeValidator(_option), WithJsonSchema({"type": ["string", "number", "boolean"]})
]
KafkaOptions = Annotated[dict[str, KafkaOption], BeforeValidator(_fold_options)]
Proxy = Annotated[Literal["none", "env"] | Secret, BeforeValidator(_proxy)]
Headers = Annotated[
    dict[Annotated[str, BeforeValidator(_header)], Annotated[Secret, BeforeValidator(_header_value)]],
    BeforeValidator(_fold_headers),
]


class _Group(BaseModel):
    """Settings that belong together. Unknown keys are errors; `<key>_file` stands for the secret `<key>`."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _fold_secrets(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        folded = dict(data)
        for key in secret_keys(cls):
            if f"{key}_file" in folded:
                folded[key] = _given(folded.get(key), folded.pop(f"{key}_file"))
        return folded


class Backoff(_Group):
    """How long a source waits after a failure: a random time that doubles its limit from `initial` to `max`."""

    initial: Positive = timedelta(seconds=1)
    """The first limit. One second lets a hiccup cost little."""
    max: Positive = timedelta(minutes=5)
    """The last limit. Five minutes keep a recovered vendor from being met by a late relay."""


class Tls(_Group):
    """Certificates beside the system's own."""

    ca_file: ReadableFile | None = None
    """Authorities to trust in addition to the system's, PEM. For proxies that inspect TLS."""
    cert_file: ReadableFile | None = None
    """The client's certificate, PEM."""
    key_file: ReadableFile | None = None
    """The client's private key, PEM; only needed when it is not in `cert_file`."""


class Source(_Group):
    """One ESET tenant. Its label is its identity for ever."""

    region: Region | None = None
    """Where the tenant lives; names both hosts. Alternatively give `base_url` and `token_url`."""
    base_url: Endpoint | None = None
    """The Incident Management host, without `/v2/incidents`. For gateways and the simulator."""
    token_url: Endpoint | None = None
    """The token endpoint in full. Goes with `base_url`."""
    username: Text
    """The login of an API user; ESET allows no other grant than a password."""
    password: Secret
    """The API user's password. As `password_file` it is read again when ESET refuses it, so it can be rotated."""
    poll_interval: Annotated[Duration, _duration(timedelta(seconds=1))] = timedelta(seconds=60)
    """How often changes are asked for. A minute costs two requests a minute and source when nothing happens."""
    lookback: Duration = timedelta(minutes=5)
    """How far each poll reaches back before what is complete, for incidents that ESET shows late.

    Five minutes cost little, because what is known is recognised; what comes later still is found by the sweep.
    """
    reconcile_interval: Annotated[Duration, _duration(timedelta(minutes=1))] = timedelta(hours=24)
    """How often everything is compared with what is known: late arrivals, silent edits, disappearances of any age.

    Once a day, because that reads every incident; it takes a quarter of the rate at most.
    """
    start_from: StartFrom = "all"
    """What is read on the first start: everything, nothing old, or what changed at or after a time.

    Everything, because a pipeline without the past is rarely wanted; chat leaves the past out by itself.
    """
    page_size: Annotated[int, Field(ge=1, le=1000)] = 1000
    """Incidents a request. The API's own limit, because requests are what it counts."""
    enrich: bool = False
    """Whether each changed incident is fetched for its device and detection ids. Off, for it costs a request each."""
    link: Annotated[str, BeforeValidator(_link)] | None = None
    """Leads from a message to its incident, such as `https://console.example/{uuid}`; the API itself has no URL."""
    backoff: Backoff = Backoff()
    """How long failures are waited out."""
    proxy: Proxy = "env"
    """Which proxy to use: none, that of the environment (HTTPS_PROXY, NO_PROXY), or this one. May hold a login."""
    tls: Tls = Tls()
    """Certificates for this tenant's hosts."""

    @property
    def endpoints(self) -> tuple[str, str]:
        """The base URL of the data and the URL of the token endpoint."""
        if self.region is None:
            return self.base_url or "", self.token_url or ""
        return (
            f"https://{self.region}.incident-management.eset.systems",
            f"https://{self.region}.business-account.iam.eset.systems/oauth/token",
        )


class Api(_Group):
    """What all sources together may ask of ESET."""

    requests_per_second: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 8
    """The budget of this egress address. ESET refuses above 10, and a retry must fit in as well."""


class Journal(_Group):
    """Where changes, ledger and progress become durable."""

    kind: Literal["sqlite", "kafka"] = "sqlite"
    """One file and one process, or topics of the relay's own for any number of replicas, without a volume.

    `sqlite` needs nothing else, and goes on to poll and to alert while Kafka is away. With `kafka`, an outage of its
    brokers stops polling and every sink, chat included.
    """
    path: AnyPath = Field(default=Path("relay.db"), validate_default=True)
    """With `kind: sqlite`: the file. Its folder must keep files across restarts, and must not be a network share."""
    max_bytes: Annotated[Size, _size(2**20)] = 2 * 2**30
    """How much it may hold before polling waits; nothing is ever dropped. 2 GiB hold about a million events.

    With `kind: sqlite` it is the size of the file, with `kind: kafka` the bytes of the events that wait in the topic of
    changes for the slowest sink.
    """
    retention: Annotated[Duration, _duration(timedelta(seconds=1))] = timedelta(days=7)
    """How long events are kept for sinks that are behind, and for replays. A week outlasts a long weekend."""
    partitions: Annotated[int, Field(ge=1, le=64)] = 16
    """With `kind: kafka`: partitions of the topic of the state, fixed for ever at the first start.

    Sources and sinks are spread over them, so more replicas than partitions are idle. Sixteen leave room to grow, and
    one replica can still own them all: each takes a producer of its own.
    """
    replication_factor: Annotated[int, Field(ge=-1, le=32_767)] = -1
    """With `kind: kafka`: of the relay's own topics.

    -1 leaves it to the broker's own default, which knows how many brokers there are.
    """
    cache_dir: Annotated[AnyPath, AfterValidator(_named)] = Field(default=Path("relay-cache"), validate_default=True)
    """With `kind: kafka`: a folder on local disk for what is known of incidents, one for each process.

    It is disposable: what is lost is read from the topic again. On Kubernetes a folder in an `emptyDir` will do.
    """


class CreateTopic(_Group):
    """How a missing topic is made."""

    partitions: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Fixed for ever in effect: keys move when it changes."""
    replication_factor: Annotated[int, Field(ge=-1, le=32_767)] = -1
    """-1 leaves it to the broker's own default, which knows how many brokers there are."""


class _Sink(_Group):
    """What every kind of sink takes."""

    format: Literal["native"] = "native"
    """The shape of an event. `native` is ESET's own JSON, untouched, beside what the relay knows."""
    omit: Annotated[tuple[str, ...], _listed(FIELDS), AfterValidator(_fields)] = ()
    """Top-level fields of an incident that this sink must not see."""
    keep: Annotated[Duration, _duration(timedelta(seconds=1))] = timedelta(days=7)
    """How long an event waits for this sink; then it expires, and is counted. At most `journal.retention`.

    Without it, a week, or the journal's retention when that is shorter.
    """
    start: Literal["earliest", "now"] = "earliest"
    """Where a new sink begins: with all that the journal still holds, which pipelines want, or with what comes next."""

    when: Annotated[Text | None, BeforeValidator(_written)] = None
    """A rule in CEL: only events that it matches are sent. Without it, all are."""


class _MessageSink(_Sink):
    """What sinks take that post one message at a time."""

    retry: Annotated[tuple[Duration, ...], _listed(RETRIES), AfterValidator(_retry)] = tuple(
        timedelta(seconds=seconds) for seconds in (0, 5, 30, 300, 1800, 7200)
    )
    """The wait before each attempt at a message that is at fault itself; after the last it is a dead letter."""
    timeout: Annotated[Duration, _duration(timedelta(milliseconds=100))] = timedelta(seconds=15)
    """One request and its whole answer. Slack and Teams give up after 10 to 30 s themselves."""
    notify: Annotated[Label | None, BeforeValidator(_written)] = None
    """Another sink, Slack or Teams, that is told when this one is given up."""
    proxy: Proxy = "env"
    """Which proxy to use: none, that of the environment (HTTPS_PROXY, NO_PROXY), or this one. May hold a login."""
    tls: Tls = Tls()
    """Certificates for this sink's host."""


class WebhookSink(_MessageSink):
    """A generic webhook: CloudEvents, one a request, signed after Standard Webhooks."""

    type: Literal["webhook"]
    """Which kind of sink this is."""
    url: Annotated[Secret, BeforeValidator(_sink_url)]
    """Where events are posted. Hidden, because it may hold a token."""
    secrets: Annotated[Secret | None, BeforeValidator(_signing_secrets)] = None
    """Signing secrets, one a line; with several, each request carries a signature by each. None: unsigned."""
    headers: Headers = {}
    """More headers, such as Authorization. A value may come from a file, as `<name>_file`."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """How many requests at once, each about another incident. Eight serve a receiver that takes a second an event."""


class _ChatSink(_MessageSink):
    """What sinks take that people read."""

    url: Annotated[Secret, BeforeValidator(_chat_url)]
    """The URL that the service gave; who knows it can post."""
    start: Literal["earliest", "now"] = "now"
    """Where a new sink begins: with what comes next, which people want, or with all that the journal still holds."""
    max_age: Annotated[Duration, _duration(timedelta(seconds=1))] = timedelta(hours=24)
    """What was updated longer ago is skipped, and counted: after an outage nobody reads old alerts."""
    digest_above: Annotated[int, Field(ge=1, le=10_000)] = 20
    """With more waiting than that, one message stands for up to 50: a channel with more is not read any more."""
    concurrency: Annotated[int, Field(ge=1, le=1)] = 1
    """One message at a time, so that a channel reads in order."""


class SlackSink(_ChatSink):
    """A Slack channel, by an incoming webhook."""

    type: Literal["slack"]
    """Which kind of sink this is."""


class TeamsSink(_ChatSink):
    """A Teams channel, by a Workflows URL."""

    type: Literal["teams"]
    """Which kind of sink this is."""


class KafkaSink(_Sink):
    """A Kafka topic; each batch and its position in one transaction, so that no event is repeated."""

    type: Literal["kafka"]
    """Which kind of sink this is."""
    topic: Annotated[str, BeforeValidator(_topic)]
    """May hold `{source}` and `{severity}`; with `{severity}` order holds per topic."""
    transactional: bool = True
    """Only with transactions are there no repeats. False for brokers without them; a repeat then has the same id.

    On the Kafka journal, a sink of the journal's own cluster is then written in the poll's own transaction: it can't be
    parked or disabled, starts at `now`, and has the options of the top-level `kafka` alone.
    """
    max_event_bytes: Annotated[Size, _size(1024)] = 900 * 1024
    """Above it, lists are cut. Brokers refuse messages above 1 MB unless told otherwise; headers need room as well."""
    create_topic: Annotated[CreateTopic | None, BeforeValidator(_creation)] = CreateTopic()
    """How the topic is made when it is missing; `false` leaves that to others."""
    kafka: KafkaOptions = {}
    """librdkafka options of this sink, over those of the top-level `kafka`."""


class StdoutSink(_Sink):
    """One event a line on standard output; logs go to standard error."""

    type: Literal["stdout"]
    """Which kind of sink this is."""


class FileSink(_Sink):
    """One event a line at the end of a file, on the disk before it counts as delivered."""

    type: Literal["file"]
    """Which kind of sink this is."""
    path: AnyPath
    """The file. One sink a file."""


Sink = Annotated[KafkaSink | WebhookSink | SlackSink | TeamsSink | StdoutSink | FileSink, Field(discriminator="type")]


class Http(_Group):
    """The read-only HTTP server: probes, metrics, status."""

    host: Text = "0.0.0.0"  # noqa: S104 - probes and Prometheus come from outside the container
    """The address to listen on. All, because probes and Prometheus come from outside the container."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """The port; 0 takes a free one."""
    titles: bool = True
    """Whether incident titles are shown on the page and in `/api/status`. They may name people and machines."""


class Log(_Group):
    """What is logged, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """At `info`, polls that found something and every trouble; at `debug`, each poll and each batch."""
    format: Literal["auto", "console", "json"] = "auto"
    """`auto` is `console` on a terminal and `json` elsewhere."""


class Settings(BaseSettings):
    """All settings of one relay. Made by `load`; reads neither files nor the environment by itself."""

    model_config = SettingsConfigDict(
        use_attribute_docstrings=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    sources: dict[Label, Source] = {}
    """The ESET tenants by label; at least one."""
    api: Api = Api()
    """The rate that all sources share."""
    journal: Journal = Field(default_factory=Journal)
    """Where changes become durable."""
    kafka_prefix: Annotated[str, BeforeValidator(_prefix)] = "relay"
    """Begins the relay's own topics and transactional ids, names its group; tells relays on one cluster apart."""
    kafka: KafkaOptions = {}
    """librdkafka options under their own names, for everything that talks to Kafka."""
    sinks: dict[Label, Sink] = {}
    """Where events go, by label; at least one."""
    http: Http = Http()
    """Probes, metrics and the status page."""
    admin_socket: Annotated[Literal["auto"] | Path, BeforeValidator(_socket)] = "auto"
    """The Unix socket of the commands.

    `auto` puts it beside the journal's file, or beside the cache of a journal on Kafka, so that it is found without
    being told.
    """
    log: Log = Log()
    """What is logged, and how."""
    shutdown_grace: Duration = timedelta(seconds=25)
    """How long deliveries may finish after SIGTERM. Kubernetes kills after 30 s."""

    _path: Path | None = None
    _warnings: tuple[str, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` has merged: pydantic-settings lets unknown variables pass and cannot say where a key is."""
        return (init_settings,)

    @property
    def path(self) -> Path | None:
        """The configuration file, or None when the environment alone was used."""
        return self._path

    @property
    def warnings(self) -> tuple[str, ...]:
        """What works but is probably not meant, a sentence each."""
        return self._warnings

    @property
    def admin_socket_path(self) -> Path:
        """Where the commands find a running relay. Depends on nothing but the settings, so that both ends agree."""
        if self.admin_socket != "auto":
            return self.admin_socket
        own = self.journal.cache_dir if self.journal.kind == "kafka" else self.journal.path
        beside = own.with_name(f"{own.name}.sock")
        if len(bytes(beside)) <= LONGEST_SOCKET_PATH:
            return beside
        return Path(tempfile.gettempdir()) / f"relay-{hashlib.sha256(bytes(beside)).hexdigest()[:16]}.sock"

    def kafka_options(self, sink: str) -> dict[str, str]:
        """What librdkafka is given for a Kafka sink, secrets included: never log it. Secret files are read again.

        Raises ConfigError when one cannot be read any more.
        """
        chosen = self.sinks[sink]
        return _revealed(self.kafka | (chosen.kafka if isinstance(chosen, KafkaSink) else {}))

    def journal_kafka_options(self) -> dict[str, str]:
        """What librdkafka is given for the Kafka journal and its inline sinks; else as `kafka_options`."""
        return _revealed(self.kafka)

    def is_inline(self, sink: str) -> bool:
        """Whether a sink is written in the poll's own transaction: on the Kafka journal, those of its own cluster."""
        chosen = self.sinks[sink]
        return (
            self.journal.kind == "kafka"
            and isinstance(chosen, KafkaSink)
            and chosen.transactional
            and (self.kafka | chosen.kafka).get(SERVERS) == self.kafka.get(SERVERS)
        )

    def secrets(self) -> Iterator[Secret]:
        """Every secret, for whoever keeps them out of the logs."""
        for source in self.sources.values():
            yield source.password
            yield from _hidden_in(source.proxy)
        for sink in self.sinks.values():
            if isinstance(sink, WebhookSink | SlackSink | TeamsSink):
                yield from _hidden_in(sink.url)
                yield from _hidden_in(sink.proxy)
            if isinstance(sink, WebhookSink):
                for value in sink.headers.values():
                    yield from _with_parts(value, value.reveal().split())
                if sink.secrets is not None:
                    yield sink.secrets
        blocks = [self.kafka, *(sink.kafka for sink in self.sinks.values() if isinstance(sink, KafkaSink))]
        for block in blocks:
            yield from (value for value in block.values() if isinstance(value, Secret))


def _revealed(options: Mapping[str, str | Secret]) -> dict[str, str]:
    return {name: value.reveal() if isinstance(value, Secret) else value for name, value in options.items()}


def _hidden_in(url: str | Secret) -> Iterator[Secret]:
    """A URL that is a secret, and what of it may be met by itself: a far side repeats what it was sent."""
    if not isinstance(url, Secret):
        return
    parts = urlsplit(url.reveal())
    login = parts.netloc.rpartition("@")[0]
    found = [parts.path, parts.query, *re.split(r"[/?&=;]", f"{parts.path}?{parts.query}"), login]
    if login:
        found += [login.partition(":")[2], base64.b64encode(unquote(login).encode()).decode()]
    yield from _with_parts(url, [spelling for part in found for spelling in (part, unquote(part))])


def _with_parts(secret: Secret, parts: Iterable[str]) -> Iterator[Secret]:
    yield secret
    yield from (Secret(text=part) for part in dict.fromkeys(parts) if len(part) >= SHORTEST_PART)
