"""Every mistake is said with its place, its key and its cure; all of them at once; and never with a value."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.settings import NOT_YET, load

SOURCE = "sources: {acme: {region: eu, username: u, password: hunter2}}\n"
SINK = "sinks: {out: {type: stdout}}\n"
KAFKA = "kafka: {bootstrap.servers: k}\n"
CHATS = ("slack", "teams")
MESSAGES = ("webhook", *CHATS)
NO_URL = "is not a URL; write it in full, such as https://host.example"
NO_SECRET = "is empty; write the secret, or name its file with _file"
UNFIT = "has a value that no header can carry; use printable ASCII on one line"
WHOLE = "copy it whole, as the receiver gave it"
OPEN = "relay.yaml:2: sinks.it.url is not encrypted; use https, as the service gives it (http is only for this machine)"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A configuration that cannot be used, and all that is said of it."""

    name: str
    text: str | None
    said: list[str]
    environ: dict[str, str] = field(default_factory=dict)


def case(name: str, text: str | None, *said: str, environ: dict[str, str] | None = None) -> Case:
    """A row of the table."""
    return Case(name=name, text=text, said=list(said), environ=environ or {})


def source(**keys: str) -> str:
    """A configuration whose source has these keys as well; `-` removes one."""
    given = {"region": "eu", "username": "u", "password": "hunter2", **keys}
    inside = ", ".join(f"{key}: {value}" for key, value in given.items() if value != "-")
    return f"sources: {{acme: {{{inside}}}}}\n{SINK}"


def sink(inside: str) -> str:
    """A configuration with this sink."""
    return f"{SOURCE}sinks: {{it: {{{inside}}}}}\n{KAFKA}"


CASES = [
    # The file
    case(
        "empty file",
        "",
        "relay.yaml: sinks is empty; add where events go, such as sinks: {out: {type: stdout}}",
        "relay.yaml: sources is empty; add a tenant: sources: {acme: {region: eu, username: …, password_file: …}}",
    ),
    case(
        "no source",
        "sources: {}\n" + SINK,
        "relay.yaml:1: sources is empty; add a tenant: sources: {acme: {region: eu, username: …, password_file: …}}",
    ),
    case(
        "no sink",
        SOURCE + "sinks:\n",
        "relay.yaml:2: sinks is empty; add where events go, such as sinks: {out: {type: stdout}}",
    ),
    case("not a mapping", "- a\n", "relay.yaml:1: is not a mapping; begin with sources: and sinks:"),
    case(
        "invalid YAML",
        SOURCE + "sinks: [\n",
        "relay.yaml:3: is not valid YAML: did not find expected node content; quote values with special characters",
    ),
    case(
        "two documents",
        SOURCE + "---\n" + SINK,
        "relay.yaml:2: is not valid YAML: but found another document; quote values with special characters",
    ),
    case(
        "duplicate key",
        SOURCE + SINK + "http: {port: 1}\nhttp: {port: 2}\n",
        "relay.yaml:4: http is given twice; it was already in line 3",
    ),
    case(
        "duplicate label",
        "sources:\n  acme: {region: eu, username: u, password: hunter2}\n  acme: {}\n" + SINK,
        "relay.yaml:3: sources.acme is given twice; it was already in line 2",
    ),
    case("key that is no text", SOURCE + SINK + "[a]: b\n", "relay.yaml:3: has a key that is not text"),
    case("tag", source(link="!vault x"), "relay.yaml:1: sources.acme.link has a tag; quote a value that begins with !"),
    case(
        "anchor in itself",
        SOURCE + SINK + "http: &a {host: *a}\n",
        "relay.yaml:3: http.host contains itself; write it out",
        "relay.yaml:3: http.host is empty; write a value, or remove the key",
    ),
    case(
        "merge of itself",
        SOURCE + SINK + "http: &a {<<: *a}\n",
        "relay.yaml:3: http merges what is not a mapping, or itself",
    ),
    # Unknown keys and variables
    case(
        "unknown key",
        source(pol_interval="1m"),
        "relay.yaml:1: sources.acme.pol_interval is unknown; did you mean sources.acme.poll_interval?",
    ),
    case(
        "unknown key far from all",
        source(qqq="1"),
        "relay.yaml:1: sources.acme.qqq is unknown; did you mean sources.acme.tls?",
    ),
    case(
        "key of another group",
        SOURCE + SINK + "poll_interval: 1m\n",
        "relay.yaml:3: poll_interval is unknown; did you mean sources.acme.poll_interval?",
    ),
    case(
        "unknown key of a sink",
        sink("type: file, path: a, pth: b"),
        "relay.yaml:2: sinks.it.pth is unknown; did you mean sinks.it.path?",
    ),
    case(
        "option of the settings class",
        SOURCE + SINK + "_env_file: .env\n",
        "relay.yaml:3: _env_file is unknown; did you mean kafka_prefix?",
    ),
    case(
        "unknown key that is not printable",
        SOURCE + SINK + '"\\e[31mhttp": 1\n',
        "relay.yaml:3: '\\x1b[31mhttp' is unknown; did you mean http?",
    ),
    case(
        "unknown variable",
        SOURCE + SINK,
        "RELAY_SOURCES__ACME__PASWORD: sources.acme.pasword is unknown; did you mean RELAY_SOURCES__ACME__PASSWORD?",
        environ={"RELAY_SOURCES__ACME__PASWORD": "x"},
    ),
    case(
        "single underscore",
        SOURCE + SINK,
        "RELAY_HTTP_PORT: http_port is unknown; did you mean RELAY_HTTP__PORT?",
        environ={"RELAY_HTTP_PORT": "80"},
    ),
    case(
        "service link with two underscores",
        SOURCE + SINK,
        "RELAY__SERVICE_HOST: _service_host is unknown; did you mean RELAY_SOURCES?",
        environ={"RELAY__SERVICE_HOST": "x"},
    ),
    case(
        "variable in another case twice",
        SOURCE + SINK,
        "RELAY_HTTP__port: contradicts RELAY_HTTP__PORT; keep one of the two",
        environ={
            "RELAY_HTTP__PORT": "1",
            "RELAY_HTTP__port": "2",
        },
    ),
    case(
        "variable for a group and for its key",
        SOURCE + SINK,
        "RELAY_HTTP: http takes keys; write them below it, indented",
        "RELAY_HTTP__PORT: contradicts RELAY_HTTP; keep one of the two",
        environ={
            "RELAY_HTTP": "x",
            "RELAY_HTTP__PORT": "2",
        },
    ),
    case(
        "value below a value",
        SOURCE + SINK,
        "RELAY_HTTP__PORT__X: http.port is not a whole number",
        environ={"RELAY_HTTP__PORT__X": "2"},
    ),
    # Labels
    case(
        "label of a source",
        "sources: {Acme: {region: eu, username: u, password: hunter2}}\n" + SINK,
        "relay.yaml:1: sources.Acme is not a label; use 1 to 40 of a-z, 0-9 and _",
    ),
    case(
        "label of a sink",
        SOURCE + f"sinks: {{{'x' * 41}: {{type: stdout}}}}\n",
        f"relay.yaml:2: sinks.{'x' * 41} is not a label; use 1 to 40 of a-z, 0-9 and _",
    ),
    # Sources
    case(
        "nothing in a source",
        "sources: {acme: {}}\n" + SINK,
        "relay.yaml:1: sources.acme.password is missing; write password_file, or password",
        "relay.yaml:1: sources.acme.region is missing; write one of eu, de, us, ca, jpn, or base_url and token_url",
        "relay.yaml:1: sources.acme.username is missing; write the API user's login",
    ),
    case(
        "source that is empty",
        "sources:\n  acme:\n" + SINK,
        "relay.yaml:2: sources.acme is empty; write a value, or remove the key",
    ),
    case(
        "source that is a text",
        "sources: {acme: eu}\n" + SINK,
        "relay.yaml:1: sources.acme takes keys; write them below it, indented",
    ),
    case(
        "sources that are a list",
        "sources: [acme]\n" + SINK,
        "relay.yaml:1: sources takes keys; write them below it, indented",
    ),
    case("region", source(region="uk"), "relay.yaml:1: sources.acme.region is not one of eu, de, us, ca or jpn"),
    case(
        "region and base_url",
        source(base_url="https://a.example"),
        "relay.yaml:1: sources.acme.base_url contradicts region; keep region, or base_url and token_url",
    ),
    case(
        "base_url alone",
        source(region="-", base_url="https://a.example"),
        "relay.yaml:1: sources.acme.token_url is missing; it goes with base_url",
    ),
    case(
        "token_url alone",
        source(region="-", token_url="https://a.example"),
        "relay.yaml:1: sources.acme.base_url is missing; it goes with token_url",
    ),
    *(
        case(
            f"base_url {url}",
            source(region="-", base_url=f'"{url}"', token_url="https://a.example"),
            f"relay.yaml:1: sources.acme.base_url {text}",
        )
        for url, text in [
            (
                "http://a.example",
                "is not encrypted; use https (http is only for this machine, such as http://127.0.0.1)",
            ),
            ("a.example", "is not a URL; write it in full, such as https://host.example"),
            ("ftp://a.example", "is not a URL; write it in full, such as https://host.example"),
            ("https://[x", "is not a URL; write it in full, such as https://host.example"),
            ("https://a:99999", "is not a URL; write it in full, such as https://host.example"),
            ("https://a b", "is not a URL; write it in full, such as https://host.example"),
            ("https://u:hunter2@a.example", "holds a login; write it into username and password"),
            ("https://a.example?x=1", "has a query or a fragment; remove it"),
            ("", "is empty; write a value, or remove the key"),
        ]
    ),
    case(
        "username is empty",
        source(username='""'),
        "relay.yaml:1: sources.acme.username is empty; write a value, or remove the key",
    ),
    case("username is a list", source(username="[a]"), "relay.yaml:1: sources.acme.username takes one value"),
    case(
        "poll_interval without unit",
        source(poll_interval="60"),
        "relay.yaml:1: sources.acme.poll_interval has no unit; add one: ms, s, m, h or d, such as 30s",
    ),
    case(
        "poll_interval too short",
        source(poll_interval="999ms"),
        "relay.yaml:1: sources.acme.poll_interval is too small; at least 1s",
    ),
    case(
        "poll_interval is a list",
        source(poll_interval="[1s]"),
        "relay.yaml:1: sources.acme.poll_interval takes one value",
    ),
    case(
        "lookback",
        source(lookback="soon"),
        "relay.yaml:1: sources.acme.lookback is not a duration; write 500ms, 30s, 5m, 24h, 7d or 1h30m",
    ),
    case(
        "start_from",
        source(start_from="2026-01-01"),
        "relay.yaml:1: sources.acme.start_from is not all, now or a time with its zone, such as 2026-01-01T00:00:00Z",
    ),
    case("page_size 0", source(page_size="0"), "relay.yaml:1: sources.acme.page_size is too small; at least 1"),
    case("page_size 1001", source(page_size="1001"), "relay.yaml:1: sources.acme.page_size is too large; at most 1000"),
    case("page_size is a text", source(page_size="many"), "relay.yaml:1: sources.acme.page_size is not a whole number"),
    case(
        "reconcile_interval",
        source(reconcile_interval="1s"),
        "relay.yaml:1: sources.acme.reconcile_interval is too small; at least 1m",
    ),
    case("enrich", source(enrich="perhaps"), "relay.yaml:1: sources.acme.enrich is neither true nor false"),
    case(
        "link without uuid",
        source(link="https://a.example"),
        "relay.yaml:1: sources.acme.link must hold {uuid} once, and no other placeholder",
    ),
    case(
        "backoff",
        source(backoff="{initial: 2m, max: 1m}"),
        "relay.yaml:1: sources.acme.backoff.initial is longer than backoff.max; shorten it",
    ),
    case(
        "backoff of nothing",
        source(backoff="{initial: 0s}"),
        "relay.yaml:1: sources.acme.backoff.initial is too small; at least 1ms",
    ),
    case(
        "proxy",
        source(proxy="proxy.example:3128"),
        "relay.yaml:1: sources.acme.proxy is not none, env or the URL of a proxy, such as http://proxy.example:3128",
    ),
    case(
        "tls file",
        source(tls="{ca_file: nowhere.pem}"),
        "relay.yaml:1: sources.acme.tls.ca_file cannot be read: no such file or directory",
    ),
    case(
        "tls key alone",
        source(tls="{key_file: relay.yaml}"),
        "relay.yaml:1: sources.acme.tls.key_file needs cert_file, the certificate that goes with it",
    ),
    case(
        "tls is a text",
        source(tls="ca.pem"),
        "relay.yaml:1: sources.acme.tls takes keys; write them below it, indented",
    ),
    # Secrets
    case(
        "password and its file",
        source(password_file="relay.yaml"),
        "relay.yaml:1: sources.acme.password is given twice, in place and as a file; keep one of the two",
    ),
    case(
        "password in the file, its file in a variable",
        SOURCE + SINK,
        "relay.yaml:1: sources.acme.password is given twice, in place and as a file; keep one of the two",
        environ={
            "RELAY_SOURCES__ACME__PASSWORD_FILE": "relay.yaml",
        },
    ),
    case(
        "password is empty",
        source(password=""),
        "relay.yaml:1: sources.acme.password is empty; write the secret, or name its file with _file",
    ),
    case(
        "password is a list",
        source(password="[a]"),
        "relay.yaml:1: sources.acme.password is empty; write the secret, or name its file with _file",
    ),
    case(
        "password_file is missing",
        source(password="-", password_file="nowhere"),
        "relay.yaml:1: sources.acme.password_file cannot be read: no such file or directory",
    ),
    case(
        "password_file is a directory",
        source(password="-", password_file="/"),
        "relay.yaml:1: sources.acme.password_file cannot be read: is a directory",
    ),
    case(
        "password_file is /dev/null",
        source(password="-", password_file="/dev/null"),
        "relay.yaml:1: sources.acme.password_file is an empty file; write the secret into it",
    ),
    case(
        "password_file is endless",
        source(password="-", password_file="/dev/zero"),
        "relay.yaml:1: sources.acme.password_file is larger than 64KiB; it should hold the secret alone",
    ),
    case(
        "password_file is empty",
        source(password="-", password_file=""),
        "relay.yaml:1: sources.acme.password_file is empty; write the secret, or name its file with _file",
    ),
    # The other groups
    case(
        "requests_per_second",
        SOURCE + SINK + "api: {requests_per_second: 0}\n",
        "relay.yaml:3: api.requests_per_second is too small; more than 0",
    ),
    case(
        "requests_per_second is infinite",
        SOURCE + SINK + "api: {requests_per_second: inf}\n",
        "relay.yaml:3: api.requests_per_second is not a number",
    ),
    case(
        "max_bytes without unit",
        SOURCE + SINK + "journal: {max_bytes: 1000000}\n",
        "relay.yaml:3: journal.max_bytes has no unit; add one, such as KiB, MiB or GiB (or B)",
    ),
    case(
        "max_bytes too small",
        SOURCE + SINK + "journal: {max_bytes: 1KiB}\n",
        "relay.yaml:3: journal.max_bytes is too small; at least 1MiB",
    ),
    case(
        "journal kind",
        SOURCE + SINK + "journal: {kind: postgres, partitions: 4}\n",
        "relay.yaml:3: journal.kind is not one of sqlite or kafka",
    ),
    case(
        "keys of the other journal, on sqlite",
        SOURCE + SINK + "journal: {partitions: 16, replication_factor: 3, cache_dir: x}\n",
        "relay.yaml:3: journal.cache_dir goes with kind: kafka; remove it, or write that",
        "relay.yaml:3: journal.partitions goes with kind: kafka; remove it, or write that",
        "relay.yaml:3: journal.replication_factor goes with kind: kafka; remove it, or write that",
    ),
    case(
        "key of the other journal, on kafka",
        SOURCE + SINK + KAFKA + "journal: {kind: kafka, path: relay.db}\n",
        "relay.yaml:4: journal.path goes with kind: sqlite; remove it, or write that",
    ),
    case(
        "key of the other journal, by a variable",
        SOURCE + SINK + KAFKA + "journal: {kind: kafka}\n",
        "RELAY_JOURNAL__PATH: journal.path goes with kind: sqlite; remove it, or write that",
        environ={"RELAY_JOURNAL__PATH": "relay.db"},
    ),
    case(
        "journal on kafka without its servers",
        SOURCE + SINK + "kafka: {client.id: x}\njournal: {kind: kafka}\n",
        "relay.yaml:3: kafka.bootstrap.servers is missing; the journal needs it, such as kafka.example:9092",
    ),
    case(
        "journal on kafka, whose servers only a sink names",
        SOURCE
        + "sinks: {it: {type: kafka, topic: a, kafka: {bootstrap.servers: k}}}\n"
        + "kafka: {client.id: x}\njournal: {kind: kafka}\n",
        "relay.yaml:3: kafka.bootstrap.servers is missing; the journal needs it, such as kafka.example:9092",
    ),
    *(
        case(
            f"journal on kafka with {key} {value}",
            SOURCE + SINK + KAFKA + f"journal: {{kind: kafka, {key}: {value}}}\n",
            f"relay.yaml:4: journal.{key} {said}",
        )
        for key, value, said in [
            ("partitions", "0", "is too small; at least 1"),
            ("partitions", "65", "is too large; at most 64"),
            ("partitions", "many", "is not a whole number"),
            ("replication_factor", "-2", "is too small; at least -1"),
            ("replication_factor", "32768", "is too large; at most 32767"),
            ("cache_dir", "/", "is no folder of its own; name one, such as relay-cache"),
            ("cache_dir", '""', "is empty; write a value, or remove the key"),
            ("path", "", "is empty; write a value, or remove the key"),
            ("max_bytes", "1KiB", "is too small; at least 1MiB"),
        ]
    ),
    case(
        "NUL in a path",
        SOURCE + 'sinks: {it: {type: file, path: "a\\0b"}}\n',
        "relay.yaml:2: sinks.it.path holds a NUL; remove it",
    ),
    case(
        "kafka_prefix",
        SOURCE + SINK + "kafka_prefix: a/b\n",
        "relay.yaml:3: kafka_prefix is not a prefix of topics; use 1 to 100 of A-Z, a-z, 0-9, '.', '_' and '-'",
    ),
    case("port", SOURCE + SINK + "http: {port: 65536}\n", "relay.yaml:3: http.port is too large; at most 65535"),
    case(
        "variable with a bad value",
        SOURCE + SINK,
        "RELAY_HTTP__PORT: http.port is not a whole number",
        environ={"RELAY_HTTP__PORT": "x"},
    ),
    case(
        "variable that is empty",
        SOURCE + SINK,
        "RELAY_LOG__LEVEL: log.level is not one of debug, info, warning or error",
        environ={"RELAY_LOG__LEVEL": ""},
    ),
    case(
        "key without value",
        SOURCE + SINK + "log: {level: }\n",
        "relay.yaml:3: log.level is empty; write a value, or remove the key",
    ),
    case(
        "admin_socket",
        SOURCE + SINK + f"admin_socket: /{'x' * 107}\n",
        "relay.yaml:3: admin_socket is too long for a Unix socket; at most 107 bytes in full",
    ),
    # Sinks
    case(
        "sink without type",
        sink("path: a"),
        "relay.yaml:2: sinks.it.type is missing; write one of kafka, webhook, slack, teams, stdout, file",
    ),
    case(
        "sink of no known type",
        sink("type: syslog"),
        "relay.yaml:2: sinks.it.type is unknown; write one of kafka, webhook, slack, teams, stdout, file",
    ),
    case(
        "file without path",
        sink("type: file"),
        "relay.yaml:2: sinks.it.path is missing; name the file, such as events.ndjson",
    ),
    case(
        "kafka without topic",
        sink("type: kafka"),
        "relay.yaml:2: sinks.it.topic is missing; name the topic, such as eset.incidents",
    ),
    case(
        "topic placeholder",
        sink('type: kafka, topic: "a.{uuid}"'),
        "relay.yaml:2: sinks.it.topic holds {uuid}; a topic may hold {source} and {severity} only",
    ),
    case(
        "topic with an open brace",
        sink('type: kafka, topic: "a.{source"'),
        "relay.yaml:2: sinks.it.topic is not a topic; use A-Z, a-z, 0-9, '.', '_', '-', {source} and {severity}",
    ),
    case(
        "topic too long",
        sink(f'type: kafka, topic: "{"x" * 240}{{source}}"'),
        "relay.yaml:2: sinks.it.topic is not a topic; at most 249 characters with its placeholders filled in",
    ),
    case(
        "topic of the relay's own",
        sink("type: kafka, topic: relay.cursors"),
        "relay.yaml:2: sinks.it.topic is a topic of the relay's own; choose another, or change kafka_prefix",
    ),
    case(
        "kafka without servers",
        SOURCE + "sinks: {it: {type: kafka, topic: a}}\n",
        "relay.yaml: kafka.bootstrap.servers is missing; it needs it, such as kafka.example:9092",
    ),
    case(
        "keep longer than retention",
        sink("type: stdout, keep: 8d"),
        "relay.yaml:2: sinks.it.keep is longer than journal.retention; at most 7d, or raise that",
    ),
    case(
        "omit is a text",
        sink("type: stdout, omit: description"),
        "relay.yaml:2: sinks.it.omit is not a list; write it in brackets, such as [description, tags]",
    ),
    case(
        "omit below the top",
        sink("type: stdout, omit: [metrics.deviceCount]"),
        (
            "relay.yaml:2: sinks.it.omit holds what is not a field; "
            "name top-level fields of an incident, such as [description]"
        ),
    ),
    case(
        "omit of keys",
        sink("type: stdout, omit: {a: b}"),
        "relay.yaml:2: sinks.it.omit is not a list; write it in brackets, such as [description, tags]",
    ),
    case("omit holds a list", sink("type: stdout, omit: [[a]]"), "relay.yaml:2: sinks.it.omit takes one value"),
    case("start", sink("type: stdout, start: latest"), "relay.yaml:2: sinks.it.start is not one of earliest or now"),
    case(
        "create_topic",
        sink("type: kafka, topic: a, create_topic: {partitions: 0}"),
        "relay.yaml:2: sinks.it.create_topic.partitions is too small; at least 1",
    ),
    case(
        "one file for two sinks",
        SOURCE + "sinks:\n  a: {type: file, path: e}\n  b: {type: file, path: ./e}\n",
        "relay.yaml:4: sinks.b.path is the file of sinks.a already; choose another",
    ),
    case(
        "the journal's file for a sink",
        sink("type: file, path: relay.db"),
        "relay.yaml:2: sinks.it.path is the file of the journal already; choose another",
    ),
    case(
        "the journal's cache for a sink",
        sink("type: file, path: relay-cache") + "journal: {kind: kafka}\n",
        "relay.yaml:2: sinks.it.path is the file of the journal already; choose another",
    ),
    # Webhooks and chats
    *(
        case(
            f"{kind} without url",
            sink(f"type: {kind}"),
            "relay.yaml:2: sinks.it.url is missing; write url_file, or url",
        )
        for kind in MESSAGES
    ),
    *(
        case(f"{kind} url {url}", sink(f'type: {kind}, url: "{url}"'), f"relay.yaml:2: sinks.it.url {text}")
        for kind in MESSAGES
        for url, text in [
            ("", NO_SECRET),
            ("hunter2", NO_URL),
            ("ftp://a.example/hunter2", NO_URL),
            ("https:///hunter2", NO_URL),
            ("https://a.example/hunter2 x", NO_URL),
            ("https://a:99999/hunter2", NO_URL),
            ("https://a:0/hunter2", NO_URL),
            ("https://[hunter2", NO_URL),
            ("https://a.example/#hunter2", "has a fragment; remove it"),
        ]
    ),
    *(
        case(f"{kind} url with {login}", sink(f'type: {kind}, url: "https://{login}@a"'), f"relay.yaml:2: {text}")
        for kind, text in [
            ("webhook", "sinks.it.url holds a login; send it as a header instead, by headers"),
            ("slack", "sinks.it.url holds a login; copy the URL as the service gives it"),
            ("teams", "sinks.it.url holds a login; copy the URL as the service gives it"),
        ]
        for login in ("u:hunter2", "hunter2", ":hunter2")
    ),
    *(
        case(f"{kind} url http://{host}", sink(f"type: {kind}, url: 'http://{host}/hunter2'"), OPEN)
        for kind in CHATS
        for host in ("a.example", "10.0.0.1", "localhost.example", "[2001:db8::1]")
    ),
    case(
        "url and its file",
        sink("type: webhook, url: https://a.example/hunter2, url_file: relay.yaml"),
        "relay.yaml:2: sinks.it.url is given twice, in place and as a file; keep one of the two",
    ),
    case(
        "url in the file, its file in a variable",
        sink("type: slack, url: https://a.example/hunter2"),
        "relay.yaml:2: sinks.it.url is given twice, in place and as a file; keep one of the two",
        environ={"RELAY_SINKS__IT__URL_FILE": "relay.yaml"},
    ),
    case(
        "url_file is missing",
        sink("type: teams, url_file: nowhere"),
        "relay.yaml:2: sinks.it.url_file cannot be read: no such file or directory",
    ),
    case(
        "url_file is a directory",
        sink("type: webhook, url_file: /"),
        "relay.yaml:2: sinks.it.url_file cannot be read: is a directory",
    ),
    case(
        "url_file is empty",
        sink("type: webhook, url_file: /dev/null"),
        "relay.yaml:2: sinks.it.url_file is an empty file; write the secret into it",
    ),
    case(
        "url_file holds no URL", sink("type: slack, url_file: relay.yaml"), f"relay.yaml:2: sinks.it.url_file {NO_URL}"
    ),
    *(
        case(f"secrets {name}", sink(f"type: webhook, url: https://a, secrets: {text}"), f"relay.yaml:2: {said}")
        for name, text, said in [
            ("that are nothing", "", f"sinks.it.secrets {NO_SECRET}"),
            (
                "that are blank",
                '" \\n "',
                "sinks.it.secrets is empty; write one signing secret a line, or remove the key",
            ),
            ("that are a list", "[hunter2]", f"sinks.it.secrets {NO_SECRET}"),
            (
                "that are not base64",
                "whsec_hunter2!",
                f"sinks.it.secrets cannot be used: what follows whsec_ is not base64; {WHOLE}",
            ),
            (
                "of which one is not base64",
                '"hunter2\\nwhsec_hunter2!"',
                f"sinks.it.secrets cannot be used: secret 2: what follows whsec_ is not base64; {WHOLE}",
            ),
            (
                "of which one is empty",
                '"whsec_\\nhunter2"',
                f"sinks.it.secrets cannot be used: secret 1: one is empty, and would let anybody sign; {WHOLE}",
            ),
        ]
    ),
    case(
        "secrets and their file",
        sink("type: webhook, url: https://a, secrets: hunter2, secrets_file: relay.yaml"),
        "relay.yaml:2: sinks.it.secrets is given twice, in place and as a file; keep one of the two",
    ),
    case(
        "secrets_file is missing",
        sink("type: webhook, url: https://a, secrets_file: nowhere"),
        "relay.yaml:2: sinks.it.secrets_file cannot be read: no such file or directory",
    ),
    case(
        "secrets of a chat",
        sink("type: slack, url: https://a, secrets: hunter2"),
        "relay.yaml:2: sinks.it.secrets is unknown; did you mean sinks.it.retry?",
    ),
    *(
        case(
            f"header {name}",
            sink(f"type: webhook, url: https://a, headers: {{{name}: hunter2}}"),
            f"relay.yaml:2: sinks.it.headers.{name.lower()} is set by the relay; remove it",
        )
        for name in ("Host", "content-length", "Content-Type", "User-Agent", "webhook-id", "Webhook-Signature", "TE")
    ),
    case(
        "header that is none",
        sink('type: webhook, url: https://a, headers: {"Authorization: hunter2": x}'),
        "relay.yaml:2: sinks.it.headers holds what is no name of a header; use letters, digits and '-'",
    ),
    *(
        case(
            f"value of a header {name}",
            sink(f"type: webhook, url: https://a, headers: {{X-Key: {value}}}"),
            f"relay.yaml:2: sinks.it.headers.x-key {said}",
        )
        for name, value, said in [
            ("with a line end", '"hunter2\\r\\nx: y"', UNFIT),
            ("with a letter beyond ASCII", '"hunter2é"', UNFIT),
            ("with a tab", '"hunter2\\t"', UNFIT),
            ("that is empty", '""', NO_SECRET),
            ("that is nothing", "", NO_SECRET),
            ("that is a list", "[hunter2]", NO_SECRET),
        ]
    ),
    case(
        "header and its file",
        sink("type: webhook, url: https://a, headers: {X-Key: hunter2, X-Key_file: relay.yaml}"),
        "relay.yaml:2: sinks.it.headers.x-key is given twice, in place and as a file; keep one of the two",
    ),
    case(
        "header in the file, its file in a variable",
        sink("type: webhook, url: https://a, headers: {X-Key: hunter2}"),
        "relay.yaml:2: sinks.it.headers.x-key is given twice, in place and as a file; keep one of the two",
        environ={"RELAY_SINKS__IT__HEADERS__X_KEY_FILE": "relay.yaml"},
    ),
    case(
        "file of a header that is missing",
        sink("type: webhook, url: https://a, headers: {Authorization_file: nowhere}"),
        "relay.yaml:2: sinks.it.headers.authorization_file cannot be read: no such file or directory",
    ),
    case(
        "header twice",
        sink("type: webhook, url: https://a, headers: {X-Key: hunter2, x-key: hunter2}"),
        "relay.yaml:2: sinks.it.headers.x-key is given twice, in another case; keep one of the two",
    ),
    case(
        "header by a variable",
        sink("type: webhook, url: https://a"),
        "RELAY_SINKS__IT__HEADERS__CONTENT_TYPE: sinks.it.headers.content-type is set by the relay; remove it",
        environ={"RELAY_SINKS__IT__HEADERS__CONTENT_TYPE": "hunter2"},
    ),
    case(
        "headers that are a text",
        sink("type: webhook, url: https://a, headers: hunter2"),
        "relay.yaml:2: sinks.it.headers takes keys; write them below it, indented",
    ),
    *(
        case(
            f"retry {name}",
            sink(f"type: webhook, url: https://a, retry: {text}"),
            f"relay.yaml:2: sinks.it.retry {said}",
        )
        for name, text, said in [
            ("of nothing", "[]", "is empty; write the waits before each attempt, such as [0s, 5s, 30s]"),
            ("without value", "", "is empty; write a value, or remove the key"),
            ("that is a number", "5", "is not a list; write it in brackets, such as [0s, 5s, 30s]"),
            ("of a number", "[5]", "has no unit; add one: ms, s, m, h or d, such as 30s"),
            ("of a word", "[0s, soon]", "is not a duration; write 500ms, 30s, 5m, 24h, 7d or 1h30m"),
            ("of lists", "[[0s]]", "takes one value"),
        ]
    ),
    case(
        "timeout too small",
        sink("type: webhook, url: https://a, timeout: 99ms"),
        "relay.yaml:2: sinks.it.timeout is too small; at least 100ms",
    ),
    *(
        case(
            f"{kind} concurrency {value}",
            sink(f"type: {kind}, url: https://a, concurrency: {value}"),
            f"relay.yaml:2: sinks.it.concurrency {said}",
        )
        for kind, value, said in [
            ("webhook", "0", "is too small; at least 1"),
            ("webhook", "65", "is too large; at most 64"),
            ("webhook", "many", "is not a whole number"),
            ("slack", "2", "is too large; at most 1"),
            ("teams", "0", "is too small; at least 1"),
        ]
    ),
    *(
        case(
            f"notify {told}",
            sink(f"type: webhook, url: https://a, notify: {told}}}, siem: {{type: kafka, topic: a"),
            f"relay.yaml:2: sinks.it.notify {said}",
        )
        for told, said in [
            ("it", "names the sink itself; name one of type slack or teams, or remove it"),
            ("elsewhere", "names no sink; name one of type slack or teams, or remove it"),
            ("siem", "names a sink that nobody reads; name one of type slack or teams, or remove it"),
            ("[siem]", "is not a label; use 1 to 40 of a-z, 0-9 and _"),
            ('""', "is not a label; use 1 to 40 of a-z, 0-9 and _"),
        ]
    ),
    case(
        "notify of a chat itself",
        sink("type: slack, url: https://a, notify: it"),
        "relay.yaml:2: sinks.it.notify names the sink itself; name one of type slack or teams, or remove it",
    ),
    case(
        "notify of a kafka sink",
        sink("type: kafka, topic: a, notify: it"),
        "relay.yaml:2: sinks.it.notify is unknown; did you mean sinks.it.type?",
    ),
    case(
        "max_age too small",
        sink("type: slack, url: https://a, max_age: 999ms"),
        "relay.yaml:2: sinks.it.max_age is too small; at least 1s",
    ),
    case(
        "max_age too long",
        sink("type: teams, url: https://a, max_age: 3651d"),
        "relay.yaml:2: sinks.it.max_age is too long; at most 3650d",
    ),
    case(
        "max_age of a webhook",
        sink("type: webhook, url: https://a, max_age: 1h"),
        "relay.yaml:2: sinks.it.max_age is unknown; did you mean sinks.it.format?",
    ),
    *(
        case(
            f"digest_above {value}",
            sink(f"type: slack, url: https://a, digest_above: {value}"),
            f"relay.yaml:2: sinks.it.digest_above {said}",
        )
        for value, said in [("0", "is too small; at least 1"), ("10001", "is too large; at most 10000")]
    ),
    *(
        case(
            f"when {text or 'without value'}",
            sink(f"type: {kind}, when: {text}"),
            "relay.yaml:2: sinks.it.when is empty; write a value, or remove the key",
        )
        for kind, text in [("stdout", '""'), ("stdout", "")]
    ),
    case(
        "keep of a chat longer than retention",
        sink("type: slack, url: https://a, keep: 8d"),
        "relay.yaml:2: sinks.it.keep is longer than journal.retention; at most 7d, or raise that",
    ),
    case(
        "start of a chat",
        sink("type: teams, url: https://a, start: latest"),
        "relay.yaml:2: sinks.it.start is not one of earliest or now",
    ),
    *(
        case(
            f"proxy of a {kind}",
            sink(f"type: {kind}, url: https://a, proxy: 'u:hunter2@proxy.example'"),
            "relay.yaml:2: sinks.it.proxy is not none, env or the URL of a proxy, such as http://proxy.example:3128",
        )
        for kind in MESSAGES
    ),
    case(
        "tls key of a sink alone",
        sink("type: webhook, url: https://a, tls: {key_file: relay.yaml}"),
        "relay.yaml:2: sinks.it.tls.key_file needs cert_file, the certificate that goes with it",
    ),
    case(
        "url by a variable",
        SOURCE + SINK,
        f"RELAY_SINKS__SOC__URL: sinks.soc.url {NO_URL}",
        environ={"RELAY_SINKS__SOC__TYPE": "slack", "RELAY_SINKS__SOC__URL": "hunter2"},
    ),
    case(
        "retry and notify by variables",
        sink("type: webhook, url: https://a"),
        "RELAY_SINKS__IT__NOTIFY: sinks.it.notify names no sink; name one of type slack or teams, or remove it",
        "RELAY_SINKS__IT__RETRY: sinks.it.retry is not a list; write it in brackets, such as [0s, 5s, 30s]",
        environ={"RELAY_SINKS__IT__NOTIFY": "soc", "RELAY_SINKS__IT__RETRY": "0s, 5s"},
    ),
    # librdkafka's options
    case(
        "option in pieces",
        SOURCE + SINK + "kafka: {bootstrap: {servers: a}}\n",
        "relay.yaml:3: kafka.bootstrap takes one value; write librdkafka's own name in one piece, with its dots",
    ),
    case(
        "option without value",
        SOURCE + SINK + "kafka: {client.id: }\n",
        "relay.yaml:3: kafka.client.id is empty; write a value, or remove the key",
    ),
    case(
        "option of the relay's own",
        sink("type: kafka, topic: a, kafka: {enable.idempotence: false}"),
        "relay.yaml:2: sinks.it.kafka.enable.idempotence is set by the relay, which depends on it; remove it",
    ),
    *(
        case(
            f"{name} beside a journal on kafka",
            SOURCE + SINK + f"kafka: {{bootstrap.servers: k, {name}: x}}\njournal: {{kind: kafka}}\n",
            f"relay.yaml:3: kafka.{name} is set by the relay, which depends on it; remove it",
        )
        for name in ("group.id", "transactional.id")
    ),
    case(
        "option of the relay's own by a variable",
        SOURCE + SINK,
        "RELAY_KAFKA__ACKS: kafka.acks is set by the relay, which depends on it; remove it",
        environ={"RELAY_KAFKA__ACKS": "1"},
    ),
    case(
        "sasl.password and its file",
        SOURCE + SINK + "kafka: {sasl.password: a, sasl.password_file: b}\n",
        "relay.yaml:3: kafka.sasl.password is given twice, in place and as a file; keep one of the two",
    ),
    case(
        "sasl.password_file is missing",
        sink("type: kafka, topic: a, kafka: {sasl.password_file: x}"),
        "relay.yaml:2: sinks.it.kafka.sasl.password_file cannot be read: no such file or directory",
    ),
    # Not available yet
    *(
        case(
            f"format {name}",
            sink(f"type: stdout, format: {name}"),
            f"relay.yaml:2: sinks.it.format {name} is not available yet in this version; use native",
        )
        for name in ("ocsf", "ecs")
    ),
    case(
        "not available by a variable",
        SOURCE + SINK,
        "RELAY_SINKS__OUT__FORMAT: sinks.out.format ecs is not available yet in this version; use native",
        environ={"RELAY_SINKS__OUT__FORMAT": "ecs"},
    ),
    # The environment alone
    case(
        "environment alone, half",
        None,
        "RELAY_SINKS: sinks is empty; add where events go, such as sinks: {out: {type: stdout}}",
        "RELAY_SOURCES__ACME__PASSWORD: sources.acme.password is missing; write password_file, or password",
        "RELAY_SOURCES__ACME__USERNAME: sources.acme.username is missing; write the API user's login",
        environ={"RELAY_SOURCES__ACME__REGION": "eu"},
    ),
]


def said_of(case: Case, folder: Path) -> list[str]:
    """Loads it; the lines of the refusal."""
    if case.text is not None:
        (folder / "relay.yaml").write_text(case.text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(None, case.environ, folder)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mistake_is_said_with_place_key_and_cure(case: Case, tmp_path: Path) -> None:
    said = said_of(case, tmp_path)
    assert said == case.said
    assert "hunter2" not in "\n".join(said)


def test_names_of_the_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_everything_not_yet_available_has_a_case() -> None:
    said = "\n".join(line for case in CASES for line in case.said if "not available yet" in line)
    for pattern, values in NOT_YET.items():
        key = pattern.rsplit(".", 1)[-1]
        assert f".{key} " in said
        assert not values or all(f"{key} {value} " in said for value in values)


def test_all_mistakes_are_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """
sources:
  acme: {region: eu, username: u, pasword: hunter2, poll_interval: 60}
  globex: {base_url: https://a.example, username: u, password: x}
sinks:
  siem: {type: kafka, topic: a, keep: 30d}
  soc: {type: slack, url: hunter2}
log: {level: loud}
log: {}
"""
    environ = {"RELAY_HTTP__PRT": "x", "RELAY_KAFKA__GROUP_ID": "y"}
    said = said_of(Case(name="all", text=text, environ=environ, said=[]), tmp_path)
    assert said == [
        "RELAY_HTTP__PRT: http.prt is unknown; did you mean RELAY_HTTP__PORT?",
        "RELAY_KAFKA__GROUP_ID: kafka.group.id is set by the relay, which depends on it; remove it",
        "relay.yaml: kafka.bootstrap.servers is missing; siem needs it, such as kafka.example:9092",
        "relay.yaml:3: sources.acme.password is missing; write password_file, or password",
        "relay.yaml:3: sources.acme.pasword is unknown; did you mean sources.acme.password?",
        "relay.yaml:3: sources.acme.poll_interval has no unit; add one: ms, s, m, h or d, such as 30s",
        "relay.yaml:4: sources.globex.token_url is missing; it goes with base_url",
        "relay.yaml:6: sinks.siem.keep is longer than journal.retention; at most 7d, or raise that",
        "relay.yaml:7: sinks.soc.url is not a URL; write it in full, such as https://host.example",
        "relay.yaml:8: log.level is not one of debug, info, warning or error",
        "relay.yaml:9: log is given twice; it was already in line 8",
    ]


def test_neither_file_nor_variable_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"PATH": "/bin", "RELAY_PORT": "tcp://10.0.0.1:80"}, tmp_path)
    assert str(caught.value) == (
        f"no configuration: there is no relay.yaml in {tmp_path} and no RELAY_ variable is set; write sources: and "
        "sinks: into relay.yaml, or name the file with --config or RELAY_CONFIG"
    )


@pytest.mark.parametrize("config", [Path("other.yaml"), None])
def test_named_file_must_exist(tmp_path: Path, config: Path | None) -> None:
    (tmp_path / "relay.yaml").write_text(SOURCE + SINK)
    with pytest.raises(ConfigError) as caught:
        load(config, {"RELAY_CONFIG": "other.yaml"}, tmp_path)
    assert str(caught.value) == "other.yaml: cannot be read: no such file or directory"


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_bytes(b"sources: \xff\xfe")
    with pytest.raises(ConfigError) as caught:
        load(None, {}, tmp_path)
    assert str(caught.value) == "relay.yaml: is not UTF-8 text"


def test_file_with_control_characters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_bytes(b"sources: \x00")
    with pytest.raises(ConfigError, match=r"^relay.yaml:1: is not valid YAML: "):
        load(None, {}, tmp_path)
