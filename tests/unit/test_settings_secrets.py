"""A secret is read when it is asked for, and shown nowhere else."""

import base64
import json
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pydantic import BaseModel

from relay.errors import ConfigError
from relay.settings import (
    Backoff,
    FileSink,
    KafkaSink,
    Secret,
    Settings,
    SlackSink,
    Source,
    Tls,
    WebhookSink,
    load,
)

CANARY = "c4n4ry-Pa55"

GOOD = f"""
sources:
  acme: {{region: eu, username: u, password: {CANARY}1, proxy: "http://u:{CANARY}2@proxy.example"}}
  globex: {{region: eu, username: u, password_file: pw}}
kafka: {{bootstrap.servers: k, sasl.password: {CANARY}3, ssl.key.password_file: pw, sasl.pasword: {CANARY}5}}
sinks:
  siem: {{type: kafka, topic: a, kafka: {{sasl.oauthbearer.client.secret: {CANARY}6}}}}
  soar:
    type: webhook
    url: https://soar.example/{CANARY}7?q={CANARY}8
    secrets: "{CANARY}9\\nwhsec_Zm9v"
    headers: {{Authorization: Bearer {CANARY}10, X-Key_file: pw}}
    proxy: "http://u:{CANARY}11@proxy.example"
  soc: {{type: slack, url_file: url, proxy_file: proxy}}
  chat: {{type: teams, url: "https://teams.example/{CANARY}13"}}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a secret in every place that takes one."""
    (tmp_path / "pw").write_text(f"{CANARY}4\n")
    (tmp_path / "url").write_text(f"https://slack.example/{CANARY}12\n")
    (tmp_path / "proxy").write_text(f"http://u:{CANARY}14@proxy.example\n")
    (tmp_path / "relay.yaml").write_text(GOOD)
    return load(None, {}, tmp_path)


def test_no_representation_shows_a_secret(settings: Settings) -> None:
    shown = [repr(settings), str(settings), f"{settings.kafka}", settings.model_dump_json(), str(settings.model_dump())]
    assert CANARY not in "".join(shown)


def test_every_secret_is_listed(settings: Settings) -> None:
    assert {secret.reveal() for secret in settings.secrets()} >= {
        f"Bearer {CANARY}10",
        *(f"{CANARY}{number}" for number in (1, 3, 4, 5, 6)),
        f"{CANARY}9\nwhsec_Zm9v",
        *(f"http://u:{CANARY}{number}@proxy.example" for number in (2, 11, 14)),
        f"https://slack.example/{CANARY}12",
        f"https://soar.example/{CANARY}7?q={CANARY}8",
        f"https://teams.example/{CANARY}13",
    }


def test_what_a_far_side_may_repeat_of_a_secret_is_listed_by_itself(settings: Settings) -> None:
    """Path, query and login of a URL, in the spelling that is sent as well, and the words of a header."""
    values = {secret.reveal() for secret in settings.secrets()}
    assert values >= {f"{CANARY}{number}" for number in (2, 7, 8, 10, 11, 12, 13, 14)}
    assert base64.b64encode(f"u:{CANARY}11".encode()).decode() in values
    assert not {"Bearer", "q", "u", ""} & values


def test_options_for_librdkafka_hold_the_values(settings: Settings) -> None:
    assert settings.kafka_options("siem") == {
        "bootstrap.servers": "k",
        "sasl.oauthbearer.client.secret": f"{CANARY}6",
        "sasl.password": f"{CANARY}3",
        "sasl.pasword": f"{CANARY}5",
        "ssl.key.password": f"{CANARY}4",
    }


def test_file_is_read_again(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("rotated\r\n")
    assert settings.sources["globex"].password.reveal() == "rotated"
    assert settings.kafka_options("siem")["ssl.key.password"] == "rotated"


def test_file_that_went_away_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "pw").unlink()
    with pytest.raises(ConfigError) as caught:
        settings.sources["globex"].password.reveal()
    assert str(caught.value) == f"{tmp_path}/pw cannot be read: no such file or directory"


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"plain", "plain"),
        (b"one\n", "one"),
        (b"two\r\n\n", "two"),
        (b" spaces stay ", " spaces stay "),
        ("pä&=+ß\n".encode(), "pä&=+ß"),
        (b"\xef\xbb\xbfmarked", "marked"),
        (b"a\nb\n", "a\nb"),
    ],
)
def test_only_the_end_of_the_line_is_stripped(tmp_path: Path, content: bytes, value: str) -> None:
    file = tmp_path / "pw"
    file.write_bytes(content)
    assert Secret(file=file).reveal() == value


BROKEN = [
    f"sources: {{acme: {{region: {CANARY}, username: [{CANARY}], password: [{CANARY}]}}}}",
    f"sources: {{acme: {{region: eu, username: u, password: {CANARY}, password_file: {CANARY}}}}}",
    f"sources: {{acme: {{region: eu, username: u, password_file: {CANARY}}}}}",
    f"sources: {{acme: {{region: eu, username: u, pasword: {CANARY}}}}}",
    f"sources: {{acme: {{region: eu, username: u, password: *{CANARY}}}}}",
    f"sources: {{acme: {{region: eu, username: u, password: &{CANARY} }}}}",
    f"sources: {{acme: {{region: eu, username: u, password: !{CANARY} }}}}",
    f"sources: {{acme: {{region: eu, username: u, password: !{CANARY}!x }}}}",
    f"sources: {{acme: {{region: eu, username: u, password: %{CANARY} }}}}",
    f'sources: {{acme: {{region: eu, username: u, password: "{CANARY}\\q" }}}}',
    f'sources: {{acme: {{region: eu, username: u, password: "{CANARY}',
    f"sources:\n  acme:\n    password: {CANARY}: {CANARY}",
    f"sources:\n  acme:\n\tpassword: {CANARY}",
    f"sources: {{acme: {{base_url: 'https://u:{CANARY}@x', token_url: '{CANARY}', username: u, password: a}}}}",
    f"sources: {{acme: {{region: eu, username: u, password: a, proxy: 'u:{CANARY}@x:1'}}}}",
    f"sources: {{acme: {{region: eu, username: u, password: a, link: {CANARY}, backoff: {CANARY}, tls: {CANARY}}}}}",
    f"sources: {{acme: {{region: eu, username: u, password: a, poll_interval: {CANARY}, start_from: {CANARY}}}}}",
    f"sources: {{acme: {CANARY}}}",
    f"sources: {CANARY}",
    CANARY,
    f"kafka: {{sasl.password: [{CANARY}], acks: {CANARY}, x: [{CANARY}]}}",
    f"kafka: {CANARY}",
    f"sinks: {{a: {{type: {CANARY}}}, b: {{type: kafka, topic: '{CANARY}/'}}, c: {{type: stdout, omit: {CANARY}}}}}",
    f"sinks: {{a: {{type: slack, url: {CANARY}}}, b: {CANARY}, c: {{type: stdout, start: {CANARY}}}}}",
    f"sinks: {{a: {{type: webhook, url: 'https://u:{CANARY}@a', secrets: 'whsec_{CANARY}!', retry: {CANARY}}}}}",
    f"sinks: {{a: {{type: webhook, url: '{CANARY} x', url_file: {CANARY}, headers: {{'x: {CANARY}': x}}}}}}",
    f"sinks: {{a: {{type: webhook, url: a, headers: {{x: '{CANARY}é'}}}}, b: {{type: webhook, headers: {CANARY}}}}}",
    f"sinks: {{a: {{type: slack, url: 'http://a/{CANARY}', notify: {CANARY}, max_age: {CANARY}, timeout: {CANARY}}}}}",
    f"sinks: {{a: {{type: teams, url: 'https://a/#{CANARY}', digest_above: {CANARY}, notify: [{CANARY}]}}}}",
    f"http: {{port: {CANARY}, titles: {CANARY}}}\napi: {{requests_per_second: {CANARY}}}\nlog: {{level: {CANARY}}}",
    f"journal: {{kind: {CANARY}, max_bytes: {CANARY}, retention: {CANARY}}}\nkafka_prefix: '{CANARY}/'",
    f"shutdown_grace: {CANARY}\nhttp: {CANARY}\nunknown: {CANARY}",
]


@pytest.mark.parametrize("text", BROKEN)
def test_no_refusal_shows_a_value(tmp_path: Path, text: str) -> None:
    (tmp_path / "relay.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(None, {"RELAY_SINKS__Z__URL": CANARY, "RELAY_PASSWORD": CANARY, "RELAY_HTTP__PORT__X": CANARY}, tmp_path)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


VALUES = st.recursive(
    st.sampled_from([None, "", CANARY, "1", "1s", "-1", "true", "/", "auto", "kafka", "file", "https://a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "type", "0"]), inner, max_size=2),
    max_leaves=4,
)


def shape_of(group: type[BaseModel]) -> st.SearchStrategy[object]:
    """Some keys of a group, each with anything, or anything in its place."""
    keys = {key: VALUES for name in group.model_fields for key in (name, f"{name}_file", f"{name}x")}
    return st.fixed_dictionaries({}, optional=keys) | VALUES


def refusal(text: str) -> str:
    """What is said of a file that holds this; nothing when it loads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: text.encode())
        try:
            load(Path("relay.yaml"), {}, Path("/nowhere"))
        except ConfigError as refused:
            return str(refused)
    return ""


@settings_of_hypothesis(max_examples=150, deadline=None)
@given(
    top=shape_of(Settings),
    source=shape_of(Source) | st.fixed_dictionaries({"tls": shape_of(Tls), "backoff": shape_of(Backoff)}),
    sink=shape_of(KafkaSink) | shape_of(FileSink) | shape_of(WebhookSink) | shape_of(SlackSink),
    kind=st.sampled_from(["kafka", "file", "stdout", "webhook", "slack", "teams", CANARY]),
)
def test_whatever_a_file_holds_loads_or_is_refused(top: object, source: object, sink: object, kind: str) -> None:
    """Nothing but ConfigError comes out, and no value with it."""
    document = top | {"sources": {"a": source}} if isinstance(top, dict) else top
    if isinstance(document, dict) and isinstance(sink, dict):
        document["sinks"] = {"b": sink | {"type": kind}}
    said = refusal(json.dumps(document))
    assert all(line.startswith("relay.yaml") for line in said.splitlines())
    assert CANARY not in said
