"""`relay check` against the simulator, real files, a real journal and a real broker: every failure has its cure."""

import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from relay import check as checking
from relay.app import Relay
from relay.assembly import make_journal
from relay.check import check
from relay.clock import SystemClock
from relay.journal import EndpointStatus
from relay.settings import Settings, SlackSink, TeamsSink, load
from relay.simulator import Fault, Served, Simulator, serve
from relay.status import CheckLine
from tests.support.kafka import USERS, Kafka, create_topic, fresh
from tests.support.receiver import raw, receiving

PASSWORD = "canary p&q=r+s ž"
USER = "api@acme.example"


@pytest.fixture
def simulator() -> Simulator:
    simulator = Simulator(SystemClock())
    simulator.add_tenant(USER, PASSWORD, incidents=40, spread_seconds=86_400)
    return simulator


@pytest.fixture
async def served(simulator: Simulator) -> AsyncIterator[Served]:
    async with serve(simulator) as served:
        yield served


@pytest.fixture
def settings_of(served: Served, tmp_path: Path) -> Callable[..., Settings]:
    """Loads a configuration with one healthy source and one healthy sink; arguments change the source."""

    def loaded(*, top: dict[str, Any] | None = None, **source: Any) -> Settings:
        acme = {
            "base_url": served.base_url,
            "token_url": served.token_url,
            "username": USER,
            "password": PASSWORD,
            "proxy": "none",
            "backoff": {"initial": "1ms", "max": "10ms"},
        }
        usual = {
            "sources": {"acme": acme | source},
            "sinks": {"disk": {"type": "file", "path": "events.ndjson"}},
            "journal": {"max_bytes": "1MiB"},
            "api": {"requests_per_second": 1000},
        }
        file = tmp_path / "relay.yaml"
        file.write_text(yaml.safe_dump(usual | (top or {})))
        return load(file, {}, tmp_path)

    return loaded


def named(lines: list[CheckLine], name: str) -> CheckLine:
    (line,) = (line for line in lines if line.name == name)
    return line


async def source_line(settings: Settings) -> CheckLine:
    """The line of the source; whatever is wrong, it shows no secret."""
    lines = await check(settings, offline=False)
    assert "canary" not in str(lines)
    return named(lines, "acme")


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def a_closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- all is well ------------------------------------------------------------------------------------------------------


async def test_a_line_for_each_thing_that_was_tried(settings_of: Callable[..., Settings], tmp_path: Path) -> None:
    lines = await check(settings_of(), offline=False)
    assert [(line.outcome, line.name) for line in lines] == [
        ("ok", "configuration"),
        ("warn", "configuration"),
        ("ok", "journal"),
        ("ok", "acme"),
        ("ok", "disk"),
    ]
    assert lines[0].text == "relay.yaml: 1 source, 1 sink, no unknown key"
    assert lines[2].text == "relay.db does not exist yet and can be made"
    assert re.fullmatch(
        r"logged in to 127\.0\.0\.1:\d+ in \d\.\d s; one page of 40 in \d\.\d s; keyset on both views", lines[3].text
    )
    assert [path.name for path in entries(tmp_path)] == ["relay.yaml"]


async def test_offline_only_the_configuration_is_read(
    simulator: Simulator, settings_of: Callable[..., Settings]
) -> None:
    lines = await check(settings_of(lookback="30s"), offline=True)
    assert [(line.outcome, line.name) for line in lines[:2]] == [("ok", "configuration"), ("warn", "configuration")]
    assert any("sources.acme.lookback" in line.text for line in lines)
    assert {line.name for line in lines} == {"configuration"}
    assert not simulator.requests


async def test_an_empty_tenant_is_well(simulator: Simulator, settings_of: Callable[..., Settings]) -> None:
    simulator.add_tenant("empty", PASSWORD)
    line = await source_line(settings_of(username="empty"))
    assert line.outcome == "ok"
    assert "; an empty page in " in line.text


async def test_sources_that_share_an_account_share_its_login(
    simulator: Simulator, settings_of: Callable[..., Settings]
) -> None:
    settings = settings_of()
    both = settings.model_copy(update={"sources": {"acme": settings.sources["acme"], "too": settings.sources["acme"]}})
    lines = await check(both, offline=False)
    assert [line.outcome for line in lines if line.name in {"acme", "too"}] == ["ok", "ok"]
    assert sum(seen.operation == "login" for seen in simulator.requests) == 1


async def test_records_that_cannot_be_read_are_a_warning(
    simulator: Simulator, settings_of: Callable[..., Settings]
) -> None:
    simulator.tenants[USER].put_raw(b'{"uuid": 5}')
    line = await source_line(settings_of())
    assert line.outcome == "warn"
    assert "1 record of the page was not readable" in line.text
    assert line.cure


async def test_a_clock_that_is_off_is_a_warning(simulator: Simulator, settings_of: Callable[..., Settings]) -> None:
    simulator.settings.date_skew_seconds = 42
    lines = await check(settings_of(), offline=False)
    line = named(lines, "clock")
    assert line.outcome == "warn"
    assert line.text in {
        "the clock of this machine is 41 s behind ESET's",
        "the clock of this machine is 42 s behind ESET's",
    }
    assert named(lines, "acme").outcome == "ok"


# -- what a source may answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401])
async def test_a_wrong_password(
    simulator: Simulator, served: Served, settings_of: Callable[..., Settings], tmp_path: Path, status: Any
) -> None:
    simulator.settings.refused_login_status = status
    (tmp_path / "secret").write_text("canary-wrong\n")
    line = await source_line(settings_of(password=None, password_file="secret"))
    assert (line.outcome, line.command) == ("fail", "relay check")
    assert line.text == (
        f"127.0.0.1:{served.port} refused the login with {status}: wrong user name or password, or an account of "
        "another region"
    )
    assert line.cure.startswith("Check username, password_file, base_url and token_url of this source; ")


async def test_a_password_that_went_away(settings_of: Callable[..., Settings], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD)
    settings = settings_of(password=None, password_file="secret")
    secret.unlink()
    line = await source_line(settings)
    assert line.text == "password_file cannot be read"
    assert line.cure == "Let the relay read password_file of this source, then:"


@pytest.mark.parametrize(
    ("fault", "text", "cure"),
    [
        (Fault(effect="answer", on="login", status=403), "refused the login with 403", "Use an API user"),
        (Fault(effect="answer", on="login", status=404), "refused the login with 404", "Check base_url and token_url"),
        (Fault(effect="answer", on="login", status=503), "answered 503", "The relay tries again by itself."),
        (
            Fault(effect="answer", on="login", body="<html>"),
            "answered what cannot be used",
            "Let base_url and token_url",
        ),
        (Fault(effect="answer", on="list", status=403), "; the incidents were refused with 403", "In ESET PROTECT Hub"),
        (
            Fault(effect="answer", on="list", status=404),
            "; the incidents were refused with 404",
            "Check base_url and token_url",
        ),
        (Fault(effect="answer", on="list", status=501), "; the incidents were refused with 501", "Use a region and a"),
        (Fault(effect="answer", on="list", status=401), "; the incidents were refused with 401", "Let base_url and"),
        (Fault(effect="answer", on="list", status=500), " answered 500", "The relay tries again by itself."),
        (Fault(effect="answer", on="list", body="<html>"), " answered what cannot be used: ", "Let base_url and"),
        (Fault(effect="reset", on="list"), " cut the connection", "See whether a firewall"),
    ],
)
async def test_what_eset_refuses_names_its_cure(
    simulator: Simulator, settings_of: Callable[..., Settings], fault: Fault, text: str, cure: str
) -> None:
    simulator.settings.default_order = "update_time desc"
    simulator.faults.inject(fault)
    line = await source_line(settings_of())
    assert (line.outcome, line.command) == ("fail", "relay check")
    assert text in line.text
    assert line.cure.startswith(cure)


@pytest.mark.parametrize(
    ("fault", "text", "cost"),
    [
        (
            Fault(effect="refuse_filter"),
            "; the filter on update_time and create_time was refused with 400; reads ordered instead",
            "each poll reads more pages",
        ),
        (
            Fault(effect="ignore_filter"),
            "; the filter on update_time and create_time was ignored; reads ordered instead",
            "each poll reads more pages",
        ),
        (
            Fault(effect="ignore_order"),
            "; the order by update_time and create_time was ignored; reads scan instead",
            "each poll reads all incidents",
        ),
    ],
)
async def test_a_query_that_does_not_work_is_named_with_what_it_costs(
    simulator: Simulator, settings_of: Callable[..., Settings], fault: Fault, text: str, cost: str
) -> None:
    simulator.faults.inject(fault)
    line = await source_line(settings_of())
    assert line.outcome == "warn"
    assert text in line.text
    assert line.cure.startswith(f"Nothing is lost; {cost}")


async def test_a_throttled_account_says_until_when(simulator: Simulator, settings_of: Callable[..., Settings]) -> None:
    simulator.faults.inject(Fault(effect="answer", status=429, headers={"retry-after": "1800"}))
    line = await source_line(settings_of())
    assert line.outcome == "fail"
    assert " answered 429 and asked to wait until " in line.text


async def test_silence_ends(
    simulator: Simulator, settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "PATIENCE_SECONDS", 0.5)
    simulator.faults.inject(Fault(effect="latency", on="list", delay_seconds=5))
    line = await source_line(settings_of())
    assert line.text.endswith(" did not answer within 0.5 s")


# -- the way to ESET --------------------------------------------------------------------------------------------------


async def test_a_host_that_does_not_exist(settings_of: Callable[..., Settings]) -> None:
    line = await source_line(settings_of(base_url="https://api.invalid", token_url="https://iam.invalid/oauth/token"))
    assert line.text == "iam.invalid cannot be resolved"
    assert line.cure == "Check base_url and token_url of this source, and the DNS of this machine, then:"


async def test_a_port_that_is_closed_names_the_host_that_was_asked(
    served: Served, settings_of: Callable[..., Settings]
) -> None:
    port = a_closed_port()
    line = await source_line(settings_of(base_url=f"http://127.0.0.1:{port}", token_url=served.token_url))
    assert line.text.startswith(f"logged in to 127.0.0.1:{port} in ")
    assert line.text.endswith(f"; 127.0.0.1:{port} refused the connection")


async def test_tls_that_fails(served: Served, settings_of: Callable[..., Settings]) -> None:
    url = served.base_url.replace("http:", "https:")
    line = await source_line(settings_of(base_url=url, token_url=f"{url}/oauth/token"))
    assert line.text.startswith(f"TLS with 127.0.0.1:{served.port} failed: it does not speak TLS there")
    assert line.cure.startswith("Check base_url and token_url of this source, and tls.cert_file where ")


async def test_a_proxy_that_is_not_there(settings_of: Callable[..., Settings]) -> None:
    port = a_closed_port()
    line = await source_line(settings_of(proxy=f"http://canary:canary@127.0.0.1:{port}"))
    assert line.text.startswith(f"the proxy 127.0.0.1:{port} on the way to 127.0.0.1:")
    assert line.cure.startswith("Check proxy of this source")


async def test_an_authority_that_is_no_certificate(settings_of: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("canary")
    line = await source_line(settings_of(tls={"ca_file": "ca.pem"}))
    assert "tls.ca_file" in line.text
    assert line.cure == "Correct the configuration, then:"


# -- journal ----------------------------------------------------------------------------------------------------------


async def test_a_journal_that_opens(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of()
    journal = make_journal(settings, clock=SystemClock())
    await journal.open()
    await journal.close()
    lines = await check(settings, offline=False)
    assert re.fullmatch(r"relay\.db opens, is not locked, 0\.0\d of 1 MiB", named(lines, "journal").text)


async def test_a_journal_that_a_running_relay_holds_is_well(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of()
    journal = make_journal(settings, clock=SystemClock())
    await journal.open()
    try:
        line = named(await check(settings, offline=False), "journal")
    finally:
        await journal.close()
    assert line.outcome == "ok"
    assert line.text == f"relay.db is held by a running relay, process {os.getpid()} on {socket.gethostname()}"


async def test_a_file_that_is_no_journal(settings_of: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "relay.db").write_bytes(b"something else" * 1000)
    line = named(await check(settings_of(), offline=False), "journal")
    assert line.outcome == "fail"
    assert line.cure


async def test_a_journal_without_a_folder(settings_of: Callable[..., Settings], tmp_path: Path) -> None:
    settings = settings_of(top={"journal": {"path": "missing/relay.db"}})
    line = named(await check(settings, offline=False), "journal")
    assert (line.outcome, line.text) == ("fail", f"relay.db cannot be made in {tmp_path / 'missing'}")


async def test_a_volume_that_is_too_small_is_a_warning_with_both_numbers(
    settings_of: Callable[..., Settings],
) -> None:
    lines = await check(settings_of(top={"journal": {"max_bytes": "1000TiB"}}), offline=False)
    (line,) = (line for line in lines if line.name == "journal" and line.outcome == "warn")
    assert "for relay.db; journal.max_bytes = 1,024,000 GiB wants 2,560,000 GiB" in line.text


# -- sinks ------------------------------------------------------------------------------------------------------------


async def test_a_file_that_cannot_be_written(settings_of: Callable[..., Settings], tmp_path: Path) -> None:
    settings = settings_of(top={"sinks": {"disk": {"type": "file", "path": "missing/events.ndjson"}}})
    line = named(await check(settings, offline=False), "disk")
    assert line.outcome == "fail"
    assert str(tmp_path / "missing") in line.text
    assert line.command == "relay check"


async def test_standard_output_is_only_looked_at(
    settings_of: Callable[..., Settings], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(top={"sinks": {"out": {"type": "stdout"}}})
    assert named(await check(settings, offline=False), "out").text == "stdout: open; nothing was written"
    assert '"event"' not in capfd.readouterr().out


@pytest.mark.kafka
async def test_kafka_commits_a_transaction_and_makes_no_topic_of_the_user(
    kafka: Kafka, settings_of: Callable[..., Settings]
) -> None:
    topic = fresh()
    create_topic(kafka.bootstrap, topic, partitions=3)
    sinks = {name: {"type": "kafka", "topic": name} for name in ("there", "new")} | {
        "there": {"type": "kafka", "topic": topic}
    }
    settings = settings_of(
        top={"kafka": {"bootstrap.servers": kafka.bootstrap}, "kafka_prefix": fresh("relay"), "sinks": sinks}
    )
    lines = await check(settings, offline=False)
    assert named(lines, "there").text == (
        f"kafka: 1 broker, no TLS, topic {topic} with 3 partitions; a transaction was committed"
    )
    assert named(lines, "new").text.endswith("topic new to be made with 6 partitions; a transaction was committed")


@pytest.mark.kafka
async def test_a_topic_that_nobody_made(kafka: Kafka, settings_of: Callable[..., Settings]) -> None:
    topic = fresh()
    settings = settings_of(
        top={
            "kafka": {"bootstrap.servers": kafka.bootstrap},
            "kafka_prefix": fresh("relay"),
            "sinks": {"siem": {"type": "kafka", "topic": topic, "create_topic": False}},
        }
    )
    line = named(await check(settings, offline=False), "siem")
    assert (line.outcome, line.text) == ("fail", f"topic {topic} does not exist")
    assert line.cure == "Create it, or leave create_topic out, so that the relay makes it. To try again:"


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("user", "password", "cure"),
    [
        ("relay", "canary-wrong", "Check sasl.mechanism, sasl.username and sasl.password."),
        ("limited", USERS["limited"], "Allow "),
    ],
)
async def test_kafka_says_who_may_not_do_what(
    kafka: Kafka, settings_of: Callable[..., Settings], user: str, password: str, cure: str
) -> None:
    topic = fresh()
    create_topic(kafka.bootstrap, topic)
    options = {
        "bootstrap.servers": kafka.own.bootstrap_of("SASL"),
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": password,
    }
    settings = settings_of(
        top={
            "kafka": options,
            "kafka_prefix": fresh("relay"),
            "sinks": {"siem": {"type": "kafka", "topic": topic}},
        }
    )
    line = named(await check(settings, offline=False), "siem")
    assert line.outcome == "fail"
    assert line.cure.startswith(cure)
    assert password not in str(line)


# -- rules ------------------------------------------------------------------------------------------------------------

RULE = 'incident.severity == "HIGH"'


def sinks(**sinks: dict[str, Any]) -> dict[str, Any]:
    return {"sinks": sinks, "journal": {"max_bytes": "64MiB"}}


@pytest.mark.parametrize("offline", [True, False])
async def test_a_rule_that_cannot_be_read_fails_with_its_cure(
    settings_of: Callable[..., Settings], offline: bool
) -> None:
    settings = settings_of(top=sinks(out={"type": "stdout", "when": 'incident.sevrity == "HIGH"'}))
    lines = await check(settings, offline=offline)
    (line,) = (line for line in lines if line.outcome == "fail")
    assert line.name == "configuration"
    assert line.text == "sinks.out.when holds incident.sevrity in column 1, which does not exist"
    assert line.cure == "Did you mean incident.severity? To try again:"
    assert line.command == "relay check"


async def test_a_doubtful_rule_is_a_warning(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of(top=sinks(out={"type": "stdout", "when": 'incident.severity == "HIHG"'}))
    lines = await check(settings, offline=True)
    (line,) = (line for line in lines if "when" in line.text)
    assert (line.outcome, line.name) == ("warn", "configuration")
    assert line.text.startswith("sinks.out.when ")
    assert '"HIGH"' in line.text


async def known_incidents(settings: Settings) -> None:
    """Has the relay read its tenant once."""
    relay = Relay(settings)
    assert await relay.run_once()


def second(lines: list[CheckLine], name: str) -> CheckLine:
    """The line of a sink's rule, behind that of the sink itself."""
    _first, line = (line for line in lines if line.name == name)
    return line


async def test_a_rule_is_tried_on_the_known_incidents(
    simulator: Simulator, settings_of: Callable[..., Settings]
) -> None:
    disk = {"type": "file", "path": "events.ndjson"}
    chat = {"type": "slack", "url": f"http://127.0.0.1:{a_closed_port()}/x", "proxy": "none"}
    top = sinks(
        disk=disk | {"when": RULE}, some=disk | {"path": "b", "when": 'incident.triageDuration > duration("1s")'}
    )
    settings = settings_of(top=top)
    await known_incidents(settings)
    high = sum(
        one["severity"].endswith("HIGH") for one in map(simulator.tenants[USER].get, simulator.tenants[USER].uuids())
    )
    lines = await check(settings_of(top=sinks(**top["sinks"], soc=chat)), offline=False)
    line = second(lines, "disk")
    assert (line.outcome, line.text) == ("ok", f"rule matches {high} of the last 40 known incidents")
    assert second(lines, "some").text == (
        "rule matches 0 of the last 40 known incidents; 40 more cannot be told from what is kept of them, "
        "and would be sent"
    )
    assert second(lines, "soc").text == "no rule: matches all of the last 40 known incidents"


async def test_a_rule_without_known_incidents_says_so(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of(top=sinks(out={"type": "stdout", "when": RULE}))
    line = second(await check(settings, offline=False), "out")
    assert (line.outcome, line.text) == ("ok", "rule; no incident is known yet that it could match")


async def test_a_rule_beside_a_running_relay_says_why_it_is_not_tried(settings_of: Callable[..., Settings]) -> None:
    settings = settings_of(top=sinks(out={"type": "stdout", "when": RULE}))
    journal = make_journal(settings, clock=SystemClock())
    await journal.open()
    try:
        line = second(await check(settings, offline=False), "out")
    finally:
        await journal.close()
    assert line.outcome == "skip"
    assert line.text == "rule; no known incident can be looked at: a running relay holds the journal"


# -- webhooks and chats -----------------------------------------------------------------------------------------------


async def message_line(settings_of: Callable[..., Settings], sink: dict[str, Any]) -> CheckLine:
    lines = await check(settings_of(top=sinks(it={"proxy": "none", **sink})), offline=False)
    return next(line for line in lines if line.name == "it")


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        (None, "events are not signed"),
        ("one", "1 signing secret was read"),
        ("one, with spaces\nwhsec_Zm9v\n", "2 signing secrets were read"),
    ],
)
async def test_a_webhook_that_answers(settings_of: Callable[..., Settings], secrets: str | None, said: str) -> None:
    async with receiving() as receiver:
        more = {} if secrets is None else {"secrets": secrets}
        line = await message_line(settings_of, {"type": "webhook", "url": receiver.url, **more})
    assert line.outcome == "ok"
    assert line.text == f"127.0.0.1 resolves to a loopback address and accepts connections, without TLS; {said}"
    assert receiver.asked == []


@pytest.mark.parametrize("kind", ["slack", "teams"])
async def test_a_chat_is_sent_nothing_and_the_command_that_does_is_named(
    settings_of: Callable[..., Settings], kind: str
) -> None:
    async with receiving() as receiver:
        line = await message_line(settings_of, {"type": kind, "url": receiver.url})
    assert (line.outcome, line.command) == ("ok", "relay sinks test it")
    assert line.text.endswith("; nothing was sent; to send one:")
    assert receiver.asked == []


@pytest.mark.parametrize(
    ("sink", "url", "outcome", "text"),
    [
        (
            TeamsSink,
            "https://prod-1.westeurope.logic.azure.com:443/workflows/x/triggers/manual/paths/invoke?sig=canary",
            "ok",
            "the URL is a Workflows URL and accepts TLS; nothing was sent; to send one:",
        ),
        (
            TeamsSink,
            "https://acme.webhook.office.com/webhookb2/canary",
            "warn",
            "the URL is that of an Office 365 connector, which Microsoft retires",
        ),
        (
            SlackSink,
            "https://hooks.slack.com/services/T0/B0/canary",
            "ok",
            "the URL is that of an incoming webhook and accepts TLS; nothing was sent; to send one:",
        ),
        (
            TeamsSink,
            "https://soar.example/canary",
            "ok",
            "soar.example resolves to a public address and accepts TLS; nothing was sent; to send one:",
        ),
    ],
)
def test_the_kind_of_a_chats_url_is_told(sink: Any, url: str, outcome: str, text: str) -> None:
    kind = "teams" if sink is TeamsSink else "slack"
    found = f"{urlsplit(url).hostname} resolves to a public address and accepts TLS"
    line = checking._chat("it", sink(type=kind, url=url), found)
    assert (line.outcome, line.text) == (outcome, text)
    assert "canary" not in str(line)


@pytest.mark.parametrize("kind", ["webhook", "slack", "teams"])
@pytest.mark.parametrize(
    ("change", "text", "cure"),
    [
        (
            {"url": "https://far.invalid/canary"},
            "far.invalid cannot be resolved",
            "Check url of this sink, and the DNS",
        ),
        ({"url": "closed"}, "127.0.0.1:{port} refused the connection", "Let this machine reach that host"),
        ({"url": "https"}, "TLS with 127.0.0.1:{open} failed: it does not speak TLS there", "Check url of this sink"),
        (
            {"proxy": "http://canary:canary@127.0.0.1:{port}"},
            "the proxy 127.0.0.1:{port} on the way to 127.0.0.1:{open} cannot be reached",
            "Check proxy of this sink",
        ),
        ({"url": "https://169.254.169.254/canary"}, "169.254.169.254 is link-local", "Let url of this sink lead"),
    ],
)
async def test_a_far_side_that_cannot_be_reached_names_its_cure(
    settings_of: Callable[..., Settings], kind: str, change: dict[str, str], text: str, cure: str
) -> None:
    port = a_closed_port()
    async with receiving() as receiver:
        receiver.greet = raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # to TLS as well
        urls = {
            "closed": f"http://127.0.0.1:{port}/canary",
            "https": f"https://127.0.0.1:{receiver.port}/canary",
        }
        url = urls.get(change.get("url", ""), change.get("url", receiver.url))
        more = {"proxy": change["proxy"].format(port=port)} if "proxy" in change else {}
        line = await message_line(settings_of, {"type": kind, "url": url, **more})
        text = text.format(port=port, open=receiver.port)
    assert (line.outcome, line.command) == ("fail", "relay check")
    assert line.text.startswith(text)
    assert line.cure.startswith(cure)
    assert "canary" not in str(line)


@pytest.mark.parametrize(
    ("key", "sink"),
    [
        ("url", {"type": "slack", "url_file": "secret"}),
        ("secrets", {"type": "webhook", "url": "http://127.0.0.1/canary", "secrets_file": "secret"}),
        ("headers.x-key", {"type": "webhook", "url": "http://127.0.0.1/canary", "headers": {"X-Key_file": "secret"}}),
        ("proxy", {"type": "teams", "url": "http://127.0.0.1/canary", "proxy_file": "secret"}),
    ],
)
async def test_a_secret_that_went_away(
    settings_of: Callable[..., Settings], tmp_path: Path, key: str, sink: dict[str, Any]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"http://127.0.0.1:{a_closed_port()}")
    settings = settings_of(top=sinks(it=sink))
    secret.unlink()
    line = next(line for line in await check(settings, offline=False) if line.name == "it")
    assert line.outcome == "fail"
    assert line.text == f"{key}_file cannot be used: {secret} cannot be read: no such file or directory"
    assert line.cure == f"Let the relay read {key}_file of this sink, then:"
    assert "canary" not in str(line)


@pytest.mark.parametrize(
    ("reason", "text", "cure"),
    [
        (
            (
                "Slack answered 404 no_service: this webhook was removed; create a new incoming webhook in Slack, "
                "write its URL to the sink's url_file"
            ),
            "Slack answered 404 no_service: this webhook was removed",
            "Create a new incoming webhook in Slack, write its URL to the sink's url_file, then:",
        ),
        (
            "webhook it: soar.example answered 410 Gone: pay up; or else",
            "webhook it: soar.example answered 410 Gone: pay up; or else",
            "Correct the cause, then let it go on with the oldest waiting event:",
        ),
    ],
)
async def test_a_sink_that_was_given_up_is_not_tried_and_names_the_way_on(
    settings_of: Callable[..., Settings], reason: str, text: str, cure: str
) -> None:
    async with receiving() as receiver:
        settings = settings_of(top=sinks(it={"type": "webhook", "url": receiver.url, "proxy": "none"}))
        await left(settings, EndpointStatus(state="parked", since=1, reason=reason))
        line = named(await check(settings, offline=False), "it")
    assert (line.outcome, line.text, line.cure) == ("fail", text, cure)
    assert line.command == "relay sinks enable it"
    assert receiver.connections == 0


@pytest.mark.parametrize("sink", [{"type": "slack", "url": "http://127.0.0.1/x"}, {"type": "file", "path": "e"}])
async def test_a_sink_that_an_operator_disabled_is_skipped(
    settings_of: Callable[..., Settings], sink: dict[str, Any]
) -> None:
    settings = settings_of(top=sinks(it=sink))
    await left(settings, EndpointStatus(state="disabled", since=1))
    lines = await check(settings, offline=False)
    line = next(line for line in lines if line.name == "it")
    assert (line.outcome, line.text) == ("skip", "disabled by an operator")


async def left(settings: Settings, endpoint: EndpointStatus) -> None:
    """What an earlier relay left in the journal of its sink."""
    journal = make_journal(settings, clock=SystemClock())
    await journal.open()
    lease = await journal.sink("it", start="earliest", keep_seconds=1e6)
    await lease.settle([], endpoint)
    await journal.close()
