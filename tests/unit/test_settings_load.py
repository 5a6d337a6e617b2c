"""What is written in the file and the environment arrives in the settings, whole and typed."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel

from relay.errors import ConfigError
from relay.incidents import parse_instant
from relay.settings import (
    REGIONS,
    FileSink,
    KafkaSink,
    Settings,
    SlackSink,
    StdoutSink,
    TeamsSink,
    WebhookSink,
    load,
)
from relay.settings.layers import key_of, variable_of
from relay.signing import secrets_in

Write = Callable[..., Settings]

SMALL = """
sources:
  acme: {region: eu, username: api@acme.example, password: hunter2}
sinks:
  out: {type: stdout}
"""
ON_KAFKA = """
kafka: {bootstrap.servers: "k:9092", client.id: relay}
journal: {kind: kafka}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `relay.yaml` and loads it with these variables."""

    def write(text: str, **environ: str) -> Settings:
        (tmp_path / "relay.yaml").write_text(text, encoding="utf-8")
        return load(None, environ, tmp_path)

    return write


def test_smallest_configuration_has_the_defaults_of_the_contract(write: Write, tmp_path: Path) -> None:
    settings = write(SMALL)
    source = settings.sources["acme"]
    assert source.poll_interval == timedelta(seconds=60)
    assert source.lookback == timedelta(minutes=5)
    assert source.start_from == "all"
    assert source.page_size == 1000
    assert (source.backoff.initial, source.backoff.max) == (timedelta(seconds=1), timedelta(minutes=5))
    assert source.proxy == "env"
    assert (source.tls.ca_file, source.tls.cert_file, source.tls.key_file) == (None, None, None)
    assert source.enrich is False
    assert settings.api.requests_per_second == 8
    assert settings.journal.path == tmp_path / "relay.db"
    assert settings.journal.max_bytes == 2 * 2**30
    assert settings.journal.retention == timedelta(days=7)
    assert settings.kafka_prefix == "relay"
    assert (settings.http.host, settings.http.port, settings.http.titles) == ("0.0.0.0", 8080, True)
    assert settings.admin_socket == "auto"
    assert (settings.log.level, settings.log.format) == ("info", "auto")
    assert settings.shutdown_grace == timedelta(seconds=25)
    assert settings.path == tmp_path / "relay.yaml"
    assert settings.warnings == ()


def test_every_available_key_is_taken(write: Write, tmp_path: Path) -> None:
    for name in ("acme.pw", "ca.pem", "cert.pem", "key.pem", "sasl.pw"):
        (tmp_path / name).write_text(f"{name}-text\n")
    (tmp_path / "soc.url").write_text("https://hooks.slack.example/T0/B0/x\n")
    (tmp_path / "soar.secrets").write_text("whsec_Zm9v\na plain one\n\n")
    (tmp_path / "proxy.url").write_text("http://user:pw@proxy.example:3128\n")
    settings = write("""
sources:
  acme:
    base_url: https://gateway.example/eset/
    token_url: http://127.0.0.1:8081/oauth/token
    username: 12345
    password_file: acme.pw
    poll_interval: 1s
    lookback: 1h30m
    start_from: 2026-01-01T00:00:00Z
    page_size: 1
    enrich: false
    link: https://console.example/incidents/{uuid}
    backoff: {initial: 500ms, max: 10s}
    proxy: http://user:pw@proxy.example:3128
    tls: {ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem}
api: {requests_per_second: 2.5}
journal: {kind: sqlite, path: state/relay.db, max_bytes: 64MiB, retention: 2d}
kafka_prefix: eset-relay
kafka: {bootstrap.servers: "kafka:9092", sasl.password_file: sasl.pw, socket.timeout.ms: 6000, acks: all}
sinks:
  siem:
    type: kafka
    topic: eset.{source}.{severity}
    format: native
    omit: [description, tags]
    keep: 1d
    start: now
    transactional: false
    max_event_bytes: 100KiB
    create_topic: {partitions: 12, replication_factor: 3}
    kafka: {bootstrap.servers: "other:9092", compression.type: zstd}
  disk: {type: file, path: /var/events.ndjson}
  out: {type: stdout}
  soar:
    type: webhook
    url: https://soar.example/hooks/eset?key=1
    secrets_file: soar.secrets
    headers: {Authorization: Bearer x, X-Key_file: key.pem}
    when: incident.severity == "HIGH"
    retry: [0s, 1m]
    timeout: 5s
    concurrency: 64
    notify: soc
    proxy: none
    tls: {ca_file: ca.pem}
  soc:
    type: slack
    url_file: soc.url
    max_age: 1h
    digest_above: 5
    start: earliest
    keep: 1d
    notify: teams
  teams: {type: teams, url: "http://127.0.0.1:81/flow", proxy_file: proxy.url}
http: {host: 127.0.0.1, port: 0, titles: false}
admin_socket: run/relay.sock
log: {level: debug, format: json}
shutdown_grace: 0s
""")
    source, siem, disk = settings.sources["acme"], settings.sinks["siem"], settings.sinks["disk"]
    assert source.endpoints == ("https://gateway.example/eset", "http://127.0.0.1:8081/oauth/token")
    assert source.username == "12345"
    assert source.password.reveal() == "acme.pw-text"
    assert source.lookback.total_seconds() == 5400
    assert source.start_from == parse_instant("2026-01-01T00:00:00Z")
    assert not isinstance(source.proxy, str)
    assert source.proxy.reveal() == "http://user:pw@proxy.example:3128"
    assert source.tls.ca_file == tmp_path / "ca.pem"
    assert settings.journal.path == tmp_path / "state/relay.db"
    assert isinstance(siem, KafkaSink)
    assert siem.omit == ("description", "tags")
    assert siem.create_topic is not None
    assert siem.create_topic.partitions == 12
    assert siem.transactional is False
    assert isinstance(disk, FileSink)
    assert disk.path == Path("/var/events.ndjson")
    assert disk.keep == timedelta(days=2)
    assert isinstance(settings.sinks["out"], StdoutSink)
    soar, soc, teams = settings.sinks["soar"], settings.sinks["soc"], settings.sinks["teams"]
    assert isinstance(soar, WebhookSink)
    assert soar.url.reveal() == "https://soar.example/hooks/eset?key=1"
    assert soar.secrets is not None
    assert secrets_in(soar.secrets.reveal()) == ["whsec_Zm9v", "a plain one"]
    assert {name: value.reveal() for name, value in soar.headers.items()} == {
        "authorization": "Bearer x",
        "x-key": "key.pem-text",
    }
    assert soar.when == 'incident.severity == "HIGH"'
    assert soar.retry == (timedelta(0), timedelta(minutes=1))
    assert (soar.timeout, soar.concurrency, soar.notify) == (timedelta(seconds=5), 64, "soc")
    assert (soar.proxy, soar.tls.ca_file) == ("none", tmp_path / "ca.pem")
    assert isinstance(soc, SlackSink)
    assert soc.url.reveal() == "https://hooks.slack.example/T0/B0/x"
    assert (soc.max_age, soc.digest_above, soc.start) == (timedelta(hours=1), 5, "earliest")
    assert (soc.keep, soc.notify, soc.concurrency) == (timedelta(days=1), "teams", 1)
    assert isinstance(teams, TeamsSink)
    assert not isinstance(teams.proxy, str)
    assert teams.proxy.reveal() == "http://user:pw@proxy.example:3128"
    assert settings.admin_socket_path == tmp_path / "run/relay.sock"
    assert settings.kafka_options("siem") == {
        "acks": "all",
        "bootstrap.servers": "other:9092",
        "compression.type": "zstd",
        "sasl.password": "sasl.pw-text",
        "socket.timeout.ms": "6000",
    }
    assert settings.kafka_options("disk")["bootstrap.servers"] == "kafka:9092"


def test_sinks_of_messages_have_the_defaults_of_the_contract(write: Write) -> None:
    sinks = write(
        SMALL + "  soar: {type: webhook, url: https://a}\n  soc: {type: slack, url: https://a}\n"
        "  chat: {type: teams, url: https://a}\n"
    ).sinks
    soar, soc, chat = sinks["soar"], sinks["soc"], sinks["chat"]
    assert isinstance(soar, WebhookSink)
    assert isinstance(soc, SlackSink)
    assert isinstance(chat, TeamsSink)
    assert [wait.total_seconds() for wait in soar.retry] == [0, 5, 30, 300, 1800, 7200]
    assert (soar.start, soc.start, chat.start) == ("earliest", "now", "now")
    assert (soar.concurrency, soc.concurrency, chat.concurrency) == (8, 1, 1)
    assert {sink.timeout for sink in (soar, soc, chat)} == {timedelta(seconds=15)}
    assert {sink.keep for sink in (soar, soc, chat)} == {timedelta(days=7)}
    assert {(sink.max_age, sink.digest_above) for sink in (soc, chat)} == {(timedelta(hours=24), 20)}
    assert (soar.secrets, soar.headers, soar.notify, soar.when, soar.proxy) == (None, {}, None, None, "env")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://localhost/x", "http://[::1]/x", "https://a/x?y=z"])
@pytest.mark.parametrize("kind", ["slack", "teams"])
def test_a_chat_on_this_machine_needs_no_encryption(write: Write, kind: str, url: str) -> None:
    sink = write(SMALL + f"  it: {{type: {kind}, url: '{url}'}}\n").sinks["it"]
    assert isinstance(sink, SlackSink | TeamsSink)
    assert sink.url.reveal() == url


@pytest.mark.parametrize("region", REGIONS)
def test_every_region_names_both_hosts(write: Write, region: str) -> None:
    assert write(SMALL.replace("eu,", f"{region},")).sources["acme"].endpoints == (
        f"https://{region}.incident-management.eset.systems",
        f"https://{region}.business-account.iam.eset.systems/oauth/token",
    )


def test_settings_cannot_be_changed(write: Write) -> None:
    settings = write(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        settings.http.port = 1


def test_yaml_guesses_nothing(write: Write) -> None:
    settings = write("""
sources:
  no: {region: eu, username: yes, password: 0123}
  0: {region: us, username: 1e3, password: "  spaced  "}
  1_0: {region: de, username: on, password: ~x, start_from: "2026-01-01 00:00:00Z"}
sinks: {off: {type: stdout}}
""")
    assert list(settings.sources) == ["no", "0", "1_0"]
    assert [source.username for source in settings.sources.values()] == ["yes", "1e3", "on"]
    assert [source.password.reveal() for source in settings.sources.values()] == ["0123", "  spaced  ", "~x"]
    assert list(settings.sinks) == ["off"]


def test_yaml_anchors_and_merge_keys(write: Write) -> None:
    settings = write("""
sources:
  acme: &base {region: eu, username: a, password: hunter2, backoff: {max: 1m}}
  globex: {<<: *base, region: us, backoff: {initial: 2s}}
sinks: {out: {type: stdout}}
""")
    globex = settings.sources["globex"]
    assert (globex.region, globex.username) == ("us", "a")
    assert (globex.backoff.initial, globex.backoff.max) == (timedelta(seconds=2), timedelta(minutes=1))


def test_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load(None, {}, tmp_path).sources["acme"].region == "eu"


def test_create_topic_false_leaves_it_to_others(write: Write) -> None:
    text = SMALL + "  siem: {type: kafka, topic: a, create_topic: false}\nkafka: {bootstrap.servers: k}\n"
    siem = write(text).sinks["siem"]
    assert isinstance(siem, KafkaSink)
    assert siem.create_topic is None


def test_keep_is_no_longer_than_the_retention_unless_said(write: Write) -> None:
    assert write(SMALL + "journal: {retention: 3d}\n").sinks["out"].keep == timedelta(days=3)
    assert write(SMALL + "journal: {retention: 30d}\n").sinks["out"].keep == timedelta(days=7)


def groups() -> list[type[BaseModel]]:
    """Every group of settings."""
    found: list[type[BaseModel]] = [Settings]
    waiting = BaseModel.__subclasses__()
    while waiting:
        group = waiting.pop()
        waiting += group.__subclasses__()
        if group.__module__ == "relay.settings.model" and not group.__name__.startswith("_"):
            found.append(group)
    return found


@pytest.mark.parametrize("group", groups())
def test_every_setting_is_explained(group: type[BaseModel]) -> None:
    assert group.__doc__
    assert [name for name, field in group.model_fields.items() if not field.description] == []


# The file


def test_config_wins_over_relay_config_over_the_default(tmp_path: Path) -> None:
    for name, region in (("a.yaml", "de"), ("b.yaml", "us"), ("relay.yaml", "ca")):
        (tmp_path / name).write_text(SMALL.replace("eu,", f"{region},"))
    environ = {"RELAY_CONFIG": "b.yaml"}
    assert load(tmp_path / "a.yaml", environ, tmp_path).sources["acme"].region == "de"
    assert load(Path("a.yaml"), environ, tmp_path).sources["acme"].region == "de"
    assert load(None, environ, tmp_path).sources["acme"].region == "us"
    assert load(None, {"RELAY_CONFIG": ""}, tmp_path).sources["acme"].region == "ca"


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/relay.yaml").write_text(SMALL)
    assert load(Path("etc/relay.yaml"), {}, tmp_path).journal.path == tmp_path / "etc/relay.db"


def test_relative_paths_of_variables_start_at_the_file_as_well(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/relay.yaml").write_text(SMALL)
    settings = load(Path("etc/relay.yaml"), {"RELAY_JOURNAL__PATH": "x.db"}, tmp_path)
    assert settings.journal.path == tmp_path / "etc/x.db"


# The environment


def test_environment_alone_configures_a_relay(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2\n")
    settings = load(
        None,
        {
            "RELAY_SOURCES__ACME__REGION": "eu",
            "RELAY_SOURCES__ACME__USERNAME": "api@acme.example",
            "RELAY_SOURCES__ACME__PASSWORD_FILE": "pw",
            "RELAY_SINKS__SIEM__TYPE": "kafka",
            "RELAY_SINKS__SIEM__TOPIC": "eset.incidents",
            "RELAY_SINKS__SIEM__OMIT": '["description", tags]',
            "RELAY_SINKS__SIEM__KAFKA__COMPRESSION_TYPE": "lz4",
            "RELAY_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092",
            "RELAY_KAFKA__SASL_PASSWORD_FILE": "pw",
            "PATH": "/bin",
        },
        tmp_path,
    )
    assert settings.path is None
    assert settings.journal.path == tmp_path / "relay.db"
    assert settings.sources["acme"].password.reveal() == "hunter2"
    assert settings.sinks["siem"].omit == ("description", "tags")
    assert settings.kafka_options("siem") == {
        "bootstrap.servers": "kafka:9092",
        "compression.type": "lz4",
        "sasl.password": "hunter2",
    }


def test_environment_alone_configures_a_webhook_and_a_chat(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer x\n")
    sinks = load(
        None,
        {
            "RELAY_SOURCES__ACME__REGION": "eu",
            "RELAY_SOURCES__ACME__USERNAME": "api@acme.example",
            "RELAY_SOURCES__ACME__PASSWORD": "pw",
            "RELAY_SINKS__SOC__TYPE": "slack",
            "RELAY_SINKS__SOC__URL": "https://hooks.slack.example/x",
            "RELAY_SINKS__SOC__WHEN": 'incident.severity == "HIGH"',
            "RELAY_SINKS__SOC__MAX_AGE": "1h",
            "RELAY_SINKS__SOC__DIGEST_ABOVE": "3",
            "RELAY_SINKS__SOAR__TYPE": "webhook",
            "RELAY_SINKS__SOAR__URL": "https://soar.example/x",
            "RELAY_SINKS__SOAR__SECRETS": "one\nwhsec_Zm9v",
            "RELAY_SINKS__SOAR__HEADERS__AUTHORIZATION_FILE": "token",
            "RELAY_SINKS__SOAR__HEADERS__X_API_KEY": "key",
            "RELAY_SINKS__SOAR__RETRY": "[0s, 5s]",
            "RELAY_SINKS__SOAR__TIMEOUT": "3s",
            "RELAY_SINKS__SOAR__CONCURRENCY": "2",
            "RELAY_SINKS__SOAR__NOTIFY": "soc",
            "RELAY_SINKS__SOAR__PROXY": "http://u:pw@proxy.example:3128",
        },
        tmp_path,
    ).sinks
    soar, soc = sinks["soar"], sinks["soc"]
    assert isinstance(soc, SlackSink)
    assert isinstance(soar, WebhookSink)
    assert (soc.when, soc.max_age, soc.digest_above) == ('incident.severity == "HIGH"', timedelta(hours=1), 3)
    headers = {name: value.reveal() for name, value in soar.headers.items()}
    assert headers == {"authorization": "Bearer x", "x-api-key": "key"}
    assert soar.secrets is not None
    assert soar.secrets.reveal() == "one\nwhsec_Zm9v"
    assert (soar.retry, soar.timeout) == ((timedelta(0), timedelta(seconds=5)), timedelta(seconds=3))
    assert (soar.concurrency, soar.notify) == (2, "soc")


def test_a_header_of_a_variable_wins_over_the_file_in_any_case(write: Write) -> None:
    soar = write(
        SMALL + "  soar: {type: webhook, url: https://a, headers: {Authorization: old, X-Key: kept}}\n",
        RELAY_SINKS__SOAR__HEADERS__AUTHORIZATION="new",
    ).sinks["soar"]
    assert isinstance(soar, WebhookSink)
    assert {name: value.reveal() for name, value in soar.headers.items()} == {"authorization": "new", "x-key": "kept"}


def test_environment_wins_over_the_file_key_by_key(write: Write) -> None:
    settings = write(
        SMALL + "http: {port: 1, titles: true}\n",
        RELAY_HTTP__PORT="9090",
        RELAY_SOURCES__ACME__PASSWORD="from the environment",
        RELAY_SOURCES__Globex__REGION="us",
        RELAY_SOURCES__GLOBEX__USERNAME="g",
        RELAY_SOURCES__GLOBEX__PASSWORD="pw",
        RELAY_SHUTDOWN_GRACE="5s",
    )
    assert (settings.http.port, settings.http.titles) == (9090, True)
    assert settings.sources["acme"].username == "api@acme.example"
    assert settings.sources["acme"].password.reveal() == "from the environment"
    assert settings.sources["globex"].region == "us"
    assert settings.shutdown_grace == timedelta(seconds=5)


def test_variables_fill_an_empty_group_of_the_file(write: Write) -> None:
    settings = write(
        "sources:\nsinks: {out: {type: stdout}}\n",
        RELAY_SOURCES__ACME__REGION="eu",
        RELAY_SOURCES__ACME__USERNAME="a",
        RELAY_SOURCES__ACME__PASSWORD="b",
    )
    assert list(settings.sources) == ["acme"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RELAY_SERVICE_HOST", "10.0.0.1"),
        ("RELAY_SERVICE_PORT", "80"),
        ("RELAY_SERVICE_PORT_HTTP", "80"),
        ("RELAY_PORT", "tcp://10.0.0.1:80"),
        ("RELAY_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("RELAY_PORT_8080_TCP_PROTO", "tcp"),
        ("RELAY_HTTP_PORT", "tcp://10.0.0.1:80"),
        ("RELAY_X_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("RELAY_X_PORT_53_UDP_PORT", "53"),
        ("RELAY_X_SERVICE_HOST", "10.0.0.1"),
        ("RELAY_CONFIG", ""),
        ("RELAY_TEST_KAFKA", "localhost:9092"),
        ("RELAYS_X", "no prefix of ours"),
        ("relay_http__port", "x"),
    ],
)
def test_what_is_no_setting_is_ignored(write: Write, variable: str, value: str) -> None:
    assert write(SMALL, **{variable: value}) == write(SMALL)


def test_settings_never_read_this_process_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HTTP", '{"port": 1}')
    monkeypatch.setitem(os.environ, "RELAY_HTTP__PORT", "1")
    assert write(SMALL).http.port == 8080


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("RELAY_HTTP__PORT", ("http", "port")),
        ("RELAY_ADMIN_SOCKET", ("admin_socket",)),
        ("RELAY_SOURCES__MY_ORG__TLS__CA_FILE", ("sources", "my_org", "tls", "ca_file")),
        ("RELAY_KAFKA__BOOTSTRAP_SERVERS", ("kafka", "bootstrap.servers")),
        ("RELAY_SINKS__A__KAFKA__SASL_PASSWORD_FILE", ("sinks", "a", "kafka", "sasl.password_file")),
        ("RELAY_KAFKA_PREFIX", ("kafka_prefix",)),
        ("RELAY_SINKS__SOAR__HEADERS__AUTHORIZATION", ("sinks", "soar", "headers", "authorization")),
        ("RELAY_SINKS__SOAR__HEADERS__X_API_KEY_FILE", ("sinks", "soar", "headers", "x-api-key_file")),
        ("RELAY_SINKS__SOAR__HEADERS", ("sinks", "soar", "headers")),
    ],
)
def test_variables_and_keys_name_each_other(variable: str, key: tuple[str, ...]) -> None:
    assert key_of(variable) == key
    assert variable_of(key) == variable


# What works and is probably not meant


def test_short_lookback_is_a_warning(write: Write) -> None:
    settings = write(SMALL.replace("region: eu", "region: eu, lookback: 59s"))
    assert settings.warnings == (
        "sources.acme.lookback is under 1m: what ESET shows later than that is not read by polling; 5m is the default",
    )


def test_rate_above_the_vendors_is_a_warning(write: Write) -> None:
    assert write(SMALL + "api: {requests_per_second: 11}\n").warnings == (
        "api.requests_per_second is above 10, where ESET answers 429; 8 leaves room for retries",
    )


def test_omitting_an_unknown_field_is_a_warning(write: Write) -> None:
    settings = write(SMALL.replace("type: stdout", "type: stdout, omit: [display_name]"))
    assert settings.warnings == (
        "sinks.out.omit names display_name, which is no field of an incident that is known today",
    )


def test_a_webhook_without_encryption_is_a_warning(write: Write) -> None:
    text = SMALL + "  soar: {type: webhook, url: http://soar.example/hunter2}\n"
    assert write(text).warnings == (
        "sinks.soar.url is not encrypted: whoever is on the way can read the incidents; use https",
    )
    assert write(text.replace("soar.example", "127.0.0.1")).warnings == ()


def test_a_wait_before_the_first_attempt_is_a_warning(write: Write) -> None:
    assert write(SMALL + "  soar: {type: webhook, url: https://a, retry: [5s, 1m]}\n").warnings == (
        "sinks.soar.retry does not begin with 0s: the first attempt is made at once all the same",
    )


def test_a_file_beside_a_journal_on_kafka_is_a_warning(write: Write) -> None:
    text = SMALL + "  disk: {type: file, path: e.ndjson}\n"
    assert write(text).warnings == ()
    (warning,) = write(text + ON_KAFKA).warnings
    assert warning == (
        "sinks.disk.path is written on whichever replica owns the sink, since journal.kind is kafka: its events may "
        "lie in several files"
    )


def test_what_an_inline_sink_cannot_do_is_a_warning(write: Write) -> None:
    text = SMALL + "  siem: {type: kafka, topic: a, start: earliest, kafka: {client.id: relay, linger.ms: 5}}\n"
    inline = "the sink is written in the poll's own transaction"
    assert write(text + ON_KAFKA).warnings == (
        f"sinks.siem.start is earliest, but an inline sink starts at now: {inline}",
        f"sinks.siem.kafka.linger.ms counts for nothing: {inline}, with the options of the top-level kafka",
    )
    assert write(text.replace("start: earliest", "transactional: false") + ON_KAFKA).warnings == ()
    assert write(text + "kafka: {bootstrap.servers: k}\n").warnings == ()


# The journal on Kafka


def test_a_journal_on_kafka_has_the_defaults_of_the_contract(write: Write, tmp_path: Path) -> None:
    journal = write(SMALL + ON_KAFKA).journal
    assert (journal.kind, journal.partitions, journal.replication_factor) == ("kafka", 16, -1)
    assert journal.cache_dir == tmp_path / "relay-cache"
    assert (journal.max_bytes, journal.retention) == (2 * 2**30, timedelta(days=7))
    assert journal.path == tmp_path / "relay.db"


def test_every_key_of_a_journal_on_kafka_is_taken(write: Write, tmp_path: Path) -> None:
    keys = "kind: kafka, partitions: 64, replication_factor: 3, cache_dir: run/c, max_bytes: 1GiB, retention: 1d"
    journal = write(SMALL + f"kafka: {{bootstrap.servers: k}}\njournal: {{{keys}}}\n").journal
    assert (journal.partitions, journal.replication_factor) == (64, 3)
    assert journal.cache_dir == tmp_path / "run/c"
    assert (journal.max_bytes, journal.retention) == (2**30, timedelta(days=1))


def test_variables_alone_put_the_journal_on_kafka(write: Write) -> None:
    settings = write(
        SMALL,
        RELAY_JOURNAL__KIND="kafka",
        RELAY_JOURNAL__PARTITIONS="4",
        RELAY_JOURNAL__CACHE_DIR="/cache/relay",
        RELAY_KAFKA__BOOTSTRAP_SERVERS="k:9092",
        RELAY_KAFKA__GROUP_INSTANCE_ID="relay-0",
    )
    assert (settings.journal.partitions, settings.journal.cache_dir) == (4, Path("/cache/relay"))
    assert settings.journal_kafka_options() == {"bootstrap.servers": "k:9092", "group.instance.id": "relay-0"}


def test_options_of_the_journal_are_those_of_the_top_level_with_their_secrets(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2\n")
    settings = write(
        SMALL + "  siem: {type: kafka, topic: a, kafka: {client.id: other}}\njournal: {kind: kafka}\n"
        "kafka: {bootstrap.servers: k, sasl.password_file: pw, group.instance.id: relay-0, group.protocol: consumer, "
        "session.timeout.ms: 45000}\n"
    )
    assert settings.journal_kafka_options() == {
        "bootstrap.servers": "k",
        "group.instance.id": "relay-0",
        "group.protocol": "consumer",
        "sasl.password": "hunter2",
        "session.timeout.ms": "45000",
    }


@pytest.mark.parametrize(
    ("sink", "inline"),
    [
        ("{type: kafka, topic: a}", True),
        ('{type: kafka, topic: a, kafka: {bootstrap.servers: "k:9092", client.id: x}}', True),
        ("{type: kafka, topic: a, kafka: {bootstrap.servers: other}}", False),
        ("{type: kafka, topic: a, transactional: false}", False),
        ("{type: stdout}", False),
    ],
)
def test_transactional_sinks_of_the_journals_own_cluster_are_inline(write: Write, sink: str, inline: bool) -> None:
    text = SMALL + f"  it: {sink}\n"
    assert write(text + ON_KAFKA).is_inline("it") is inline
    assert write(text + 'kafka: {bootstrap.servers: "k:9092"}\n').is_inline("it") is False


# The admin socket


def test_admin_socket_lies_beside_the_journal(write: Write, tmp_path: Path) -> None:
    assert write(SMALL).admin_socket_path == tmp_path / "relay.db.sock"


def test_admin_socket_lies_beside_the_cache_of_a_journal_on_kafka(write: Write, tmp_path: Path) -> None:
    assert write(SMALL + ON_KAFKA).admin_socket_path == tmp_path / "relay-cache.sock"
    long = write(SMALL + ON_KAFKA, RELAY_JOURNAL__CACHE_DIR=f"/{'x' * 200}/cache").admin_socket_path
    assert long.parent == Path(tempfile.gettempdir())


def test_admin_socket_of_a_long_path_is_in_the_temporary_directory_and_its_own(write: Write) -> None:
    one = write(SMALL + f"journal: {{path: /{'x' * 200}/a.db}}\n").admin_socket_path
    two = write(SMALL + f"journal: {{path: /{'x' * 200}/b.db}}\n").admin_socket_path
    assert len(bytes(one)) <= 107
    assert one != two


def test_a_thousand_sources_load(write: Write) -> None:
    lines = [f"  t{i}: {{region: eu, username: u, password: p{i}xyz}}" for i in range(1000)]
    settings = write("\n".join(["sources:", *lines, "sinks: {out: {type: stdout}}"]))
    assert len(settings.sources) == 1000


def test_one_error_of_a_thousand_sources_is_found(write: Write) -> None:
    lines = [f"  t{i}: {{region: eu, username: u, password: p{i}xyz}}" for i in range(1000)]
    lines[500] = lines[500].replace("username", "usrname")
    with pytest.raises(ConfigError) as caught:
        write("\n".join(["sources:", *lines, "sinks: {out: {type: stdout}}"]))
    assert str(caught.value).splitlines() == [
        "relay.yaml:502: sources.t500.username is missing; write the API user's login",
        "relay.yaml:502: sources.t500.usrname is unknown; did you mean sources.t500.username?",
    ]
