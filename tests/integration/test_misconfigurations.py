"""The ways to configure a relay wrongly, as a person meets them: what `relay check` prints, and its cure.

Each goes through the real command, with real names of hosts: a proxy that inspects TLS leads them to parts of ours.
`docs/troubleshooting.md` shows what is printed, and is held to it here.
"""

import asyncio
import json
import re
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from relay.clock import SystemClock
from relay.simulator import Fault, Served, Simulator, serve
from tests.support.broker import Cluster
from tests.support.kafka import USERS, Kafka, create_topic, fresh, require_broker
from tests.support.process import Finished, finished
from tests.support.receiver import Receiver, Told, receiving, stall, unused_port
from tests.support.tls import make_certificates

PAGE: Final = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
LONGEST_SECONDS: Final = 20.0
"""However it is broken, the check ends within that time."""
USER: Final = "api@acme.example"
PASSWORD: Final = "canary-password"
SECRETS: Final = ("canary", *USERS.values())
SLACK: Final = "https://hooks.slack.com/services/T00000000/B00000000/canary-of-the-webhook"
TEAMS: Final = (
    "https://prod-1.westeurope.logic.azure.com:443/workflows/0123456789abcdef/triggers/manual/paths/invoke"
    "?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=canary-of-the-signature"
)
LOGIN, DATA = "{}.business-account.iam.eset.systems", "{}.incident-management.eset.systems"
NAMES: Final = (
    *(name.format(region) for region in ("eu", "us") for name in (LOGIN, DATA)),
    "hooks.slack.com",
    "prod-1.westeurope.logic.azure.com",
    "soar.example",
)


# -- the proxy that leads to our parts --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """The proxy's authority, the certificate that it shows for every host, and one that has expired."""

    ca: Path
    server: Path
    expired: Path
    broker: Path


@dataclass(kw_only=True)
class Gateway:
    """A proxy that inspects TLS, as companies run them. `refusal` is its answer to every CONNECT."""

    certificate: Path
    routes: dict[str, int] = field(default_factory=dict)
    """The port of ours behind each host."""
    refusal: str = ""
    port: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """With credentials, which nothing may show."""
        return f"http://canary-user:canary-password@127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        _method, target, _ = head.split(" ", 2)
        host = target.rpartition(":")[0]
        self.asked.append(host)
        if self.refusal or host not in self.routes:
            writer.write(f"HTTP/1.1 {self.refusal or '502 Bad Gateway'}\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.drain()
        await writer.start_tls(server_side(self.certificate))
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.routes[host])
        try:
            await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
        finally:
            far_writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


def server_side(certificate: Path) -> ssl.SSLContext:
    """TLS with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    made = make_certificates(folder)
    return Papers(
        ca=made.ca,
        server=_signed(folder, "names", "-days", "2"),
        expired=_signed(folder, "expired", "-not_before", "20200101000000Z", "-not_after", "20200102000000Z"),
        broker=made.server,
    )


def _signed(folder: Path, name: str, *validity: str) -> Path:
    """A certificate for every host of these tests, of the authority in this folder."""
    key, request, path = (folder / f"{name}.{ending}" for ending in ("key", "csr", "pem"))
    alternatives = f"subjectAltName={','.join(f'DNS:{host}' for host in NAMES)}"
    command = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"]
    _run([*command, "-addext", alternatives, "-keyout", str(key), "-out", str(request)])
    (folder / f"{name}.cnf").write_text(
        f"[ca]\ndefault_ca=a\n[a]\ndatabase={folder}/{name}.db\nserial={folder}/{name}.serial\nnew_certs_dir={folder}\n"
        "default_md=sha256\npolicy=p\ncopy_extensions=copy\nunique_subject=no\n[p]\ncommonName=supplied\n"
    )
    (folder / f"{name}.db").write_text("")
    (folder / f"{name}.serial").write_text("01\n")
    dates = ["-days", validity[1]] if validity[0] == "-days" else ["-startdate", validity[1], "-enddate", validity[3]]
    sign = ["openssl", "ca", "-batch", "-notext", "-config", str(folder / f"{name}.cnf"), *dates]
    _run([*sign, "-cert", f"{folder}/ca.pem", "-keyfile", f"{folder}/ca.key", "-in", str(request), "-out", str(path)])
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


# -- a relay, and what its check prints -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What is printed of one thing: `text` and cure in a line, the command, and the block as it stands."""

    outcome: str
    text: str
    command: str
    printed: str


@dataclass(kw_only=True)
class Scene:
    """A relay's folder with a sound configuration, and the far sides that it leads to."""

    folder: Path
    papers: Papers
    gateway: Gateway
    eu: Simulator
    us: Simulator
    environment: dict[str, str] = field(default_factory=dict)
    prefix: str = "relay"
    changes: dict[str, str] = field(default_factory=dict)
    """What the page shows instead of addresses of ours."""

    def __post_init__(self) -> None:
        self.source: dict[str, Any] = {
            "region": "eu",
            "username": USER,
            "password_file": "acme.secret",
            "proxy": self.gateway.url,
            "tls": {"ca_file": str(self.papers.ca)},
        }
        self.sinks: dict[str, Any] = {"disk": {"type": "file", "path": "events.ndjson"}}
        self.kafka: dict[str, Any] = {}
        self.journal: dict[str, Any] = {}
        self.changes[f"127.0.0.1:{self.gateway.port}"] = "proxy.example:3128"
        (self.folder / "acme.secret").write_text(PASSWORD)

    def chat(self, kind: str, url: str) -> dict[str, Any]:
        """A sink of this kind whose host lies behind the proxy."""
        (self.folder / f"{kind}.secret").write_text(url)
        return {
            "type": kind,
            "url_file": f"{kind}.secret",
            "proxy": self.gateway.url,
            "tls": {"ca_file": str(self.papers.ca)},
        }

    async def check(self, *, columns: int = 120) -> Finished:
        """`relay check`, which shows no secret and takes no longer than it may."""
        document: dict[str, Any] = {
            "sources": {"acme": self.source},
            "sinks": self.sinks,
            "journal": {"max_bytes": "1MiB", **self.journal},
        }
        if self.kafka:
            document |= {"kafka": self.kafka, "kafka_prefix": self.prefix}
        (self.folder / "relay.yaml").write_text(yaml.safe_dump(document))
        environment = {"COLUMNS": str(columns), "NO_COLOR": "1", "HTTPS_PROXY": "", **self.environment}
        began = time.monotonic()
        result = await finished(self.folder, "check", environment=environment)
        assert time.monotonic() - began < LONGEST_SECONDS
        assert not [secret for secret in SECRETS if secret in result.stdout + result.stderr]
        assert max(map(len, result.stdout.splitlines())) <= columns
        return result

    async def said(self, name: str, *, code: int = 1, columns: int = 120) -> Said:
        """What it prints of this source or sink."""
        result = await self.check(columns=columns)
        assert result.code == code, result
        return self.block(result.stdout, name)

    def block(self, output: str, name: str) -> Said:
        """The first block of this name."""
        (first, *_) = re.findall(rf"^(?:ok|warn|fail|skip) +{name} .*\n(?: {{7,}}.*\n)*", output, re.MULTILINE)
        outcome, _, *words = re.split(r"\s+", first.strip(), maxsplit=2)
        lines = [line.strip() for line in words[0].splitlines()]
        command = lines.pop() if lines[-1].startswith("relay ") else ""
        printed = first
        for ours, shown in self.changes.items():
            printed = printed.replace(ours, shown)
        return Said(outcome=outcome, text=" ".join(lines), command=command, printed=printed.rstrip("\n"))


@pytest.fixture
async def scene(tmp_path: Path, papers: Papers) -> AsyncIterator[Scene]:
    """The account lives in region eu; us is there as well."""
    async with AsyncExitStack() as stack:
        simulators = {region: Simulator(SystemClock()) for region in ("eu", "us")}
        simulators["eu"].add_tenant(USER, PASSWORD, incidents=40, spread_seconds=86_400)
        served: dict[str, Served] = {
            region: await stack.enter_async_context(serve(one)) for region, one in simulators.items()
        }
        gateway = await stack.enter_async_context(proxying(papers.server))
        for region, one in served.items():
            gateway.routes |= {LOGIN.format(region): one.port, DATA.format(region): one.port}
        yield Scene(folder=tmp_path, papers=papers, gateway=gateway, eu=simulators["eu"], us=simulators["us"])


@asynccontextmanager
async def proxying(certificate: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(certificate=certificate)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(gateway.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    gateway.port = server.sockets[0].getsockname()[1]
    try:
        yield gateway
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- the source -------------------------------------------------------------------------------------------------------


async def test_the_scene_is_sound_until_it_is_broken(scene: Scene) -> None:
    assert (await scene.check()).code == 0
    assert set(scene.gateway.asked) == {LOGIN.format("eu"), DATA.format("eu")}


async def test_1_wrong_region(scene: Scene) -> None:
    scene.source["region"] = "us"
    said = await scene.said("acme")
    assert said.outcome == "fail"
    assert said.text == (
        "us refused the login with 401: wrong user name or password, or an account of another region "
        "Check username, password_file and region of this source; an account can log in to its own region only "
        "(eu, de, us, ca, jpn). Then:"
    )
    assert said.command == "relay check"
    is_on_the_page("Wrong region", said)


async def test_1_a_region_that_knows_the_account_without_its_incidents(scene: Scene) -> None:
    scene.eu.faults.inject(Fault(effect="answer", on="list", status=404))
    said = await scene.said("acme")
    assert "; the incidents were refused with 404 Check region of this source: " in said.text


async def test_2_wrong_password(scene: Scene) -> None:
    (scene.folder / "acme.secret").write_text("canary-that-is-wrong")
    said = await scene.said("acme")
    assert said.outcome == "fail"
    assert said.text.startswith("eu refused the login with 401: wrong user name or password, or an account of ")
    assert " Check username, password_file and region of this source; " in said.text
    assert said.command == "relay check"
    is_on_the_page("Wrong password", said)


async def test_3_no_api_permission(scene: Scene) -> None:
    scene.eu.faults.inject(Fault(effect="answer", on="list", tenant=USER, status=403))
    said = await scene.said("acme")
    assert said.outcome == "fail"
    assert said.text.startswith("logged in to eu in ")
    assert said.text.endswith(
        "; the incidents were refused with 403: this API user may not read them "
        "In ESET PROTECT Hub or Business Account, switch Integrations on for this user and give it access to ESET "
        "PROTECT and Inspect; see that the account has a licence for them. Then:"
    )
    assert said.command == "relay check"
    is_on_the_page("No API permission", said)


async def test_3_a_user_who_may_not_log_in_to_the_api(scene: Scene) -> None:
    scene.eu.faults.inject(Fault(effect="answer", on="login", status=403))
    said = await scene.said("acme")
    assert said.text.startswith("eu refused the login with 403 Use an API user of this region: one with Integrations ")


async def test_4_blocked_proxy(scene: Scene) -> None:
    scene.gateway.refusal = "403 Forbidden"
    said = await scene.said("acme")
    assert said.outcome == "fail"
    assert said.text == (
        f"the proxy 127.0.0.1:{scene.gateway.port} answered 403: it does not let this machine through to "
        "eu.business-account.iam.eset.systems Have eu.business-account.iam.eset.systems and "
        "eu.incident-management.eset.systems allowed on the proxy, then:"
    )
    assert said.command == "relay check"
    is_on_the_page("Blocked proxy", said)


@pytest.mark.parametrize("by", ["configuration", "environment"])
async def test_4_a_proxy_that_wants_a_login_names_where_it_is_written(scene: Scene, by: str) -> None:
    scene.gateway.refusal = "407 Proxy Authentication Required"
    if by == "environment":
        scene.source["proxy"] = "env"
        scene.environment["HTTPS_PROXY"] = scene.gateway.url
    said = await scene.said("acme")
    assert said.text.startswith(f"the proxy 127.0.0.1:{scene.gateway.port} answered 407: it wants another user name")
    assert f" Write them into {'HTTPS_PROXY' if by == 'environment' else 'proxy of this source'}, as in " in said.text


async def test_4_a_proxy_that_is_not_there(scene: Scene) -> None:
    port = unused_port()
    scene.source["proxy"] = f"http://canary:canary@127.0.0.1:{port}"
    said = await scene.said("acme")
    assert said.text == (
        f"the proxy 127.0.0.1:{port} on the way to eu.business-account.iam.eset.systems cannot be reached "
        "Check proxy of this source, and that the proxy runs, then:"
    )


async def test_4_a_proxy_that_does_not_get_there(scene: Scene) -> None:
    del scene.gateway.routes[DATA.format("eu")]
    said = await scene.said("acme")
    assert said.text.endswith(
        f"; the proxy 127.0.0.1:{scene.gateway.port} answered 502 on the way to eu.incident-management.eset.systems "
        "See on the proxy why it does not reach that host, then:"
    )


async def test_4_a_sink_behind_a_blocked_proxy(scene: Scene) -> None:
    async with proxying(scene.papers.server) as gateway:
        gateway.refusal = "403 Forbidden"
        scene.sinks["soar"] = {"type": "webhook", "url": "https://soar.example/canary", "proxy": gateway.url}
        said = await scene.said("soar")
        assert said.text == (
            f"the proxy 127.0.0.1:{gateway.port} answered 403: it does not let this machine through to soar.example "
            "Have soar.example allowed on the proxy, then:"
        )


async def test_5_bad_ca(scene: Scene) -> None:
    del scene.source["tls"]
    said = await scene.said("acme")
    assert said.outcome == "fail"
    assert said.text == (
        "TLS with eu.business-account.iam.eset.systems failed: its certificate is of an authority that this machine "
        "does not trust Name that authority (that of the proxy, where one inspects TLS) in tls.ca_file of this "
        "source, then:"
    )
    assert said.command == "relay check"
    is_on_the_page("Bad CA", said)


async def test_5_a_sink_of_an_unknown_authority(scene: Scene) -> None:
    scene.gateway.routes["soar.example"] = unused_port()
    scene.sinks["soar"] = {"type": "webhook", "url": "https://soar.example/canary", "proxy": scene.gateway.url}
    said = await scene.said("soar")
    assert said.text.startswith("TLS with soar.example failed: its certificate is of an authority that this machine ")
    assert " in tls.ca_file of this sink, then:" in said.text


@pytest.mark.parametrize(
    ("certificate", "fault"),
    [
        (
            "expired",
            "its certificate has expired Have it renewed; if it is in date, let NTP set the clock of this machine",
        ),
        ("broker", "its certificate is for another name Check region of this source, then:"),
    ],
)
async def test_5_what_else_is_wrong_with_a_certificate(scene: Scene, certificate: str, fault: str) -> None:
    scene.gateway.certificate = getattr(scene.papers, certificate)
    said = await scene.said("acme")
    assert said.text.startswith(f"TLS with eu.business-account.iam.eset.systems failed: {fault}")


async def test_6_clock_skew(scene: Scene) -> None:
    scene.eu.settings.date_skew_seconds = 720.5  # half a second, so that it is the same while a second ends
    said = await scene.said("clock")
    assert said.outcome == "fail"
    assert re.fullmatch(
        r"the clock of this machine is 1[12] min( \d+ s)? behind ESET's "
        r"Let NTP set it; in a container, that of its host\. Nothing is lost, but receivers of signed webhooks refuse "
        r"what was signed more than 5 minutes off\. Then:",
        said.text,
    )
    assert said.command == "relay check"
    is_on_the_page("Clock skew", said)


async def test_6_a_clock_that_is_a_little_off_is_a_warning(scene: Scene) -> None:
    scene.eu.settings.date_skew_seconds = -60
    said = await scene.said("clock", code=0)
    assert said.outcome == "warn"
    assert re.match(
        r"the clock of this machine is 1 min( \d s)? ahead of ESET's Let NTP set it\. Nothing is lost; ", said.text
    )


# -- Kafka ------------------------------------------------------------------------------------------------------------

TOPIC: Final = "eset.incidents"


def through_kafka(scene: Scene, bootstrap: str, **options: str) -> None:
    """A sink on this cluster."""
    scene.kafka = {"bootstrap.servers": bootstrap} | {name.replace("_", "."): value for name, value in options.items()}
    scene.sinks["siem"] = {"type": "kafka", "topic": TOPIC}
    scene.changes[bootstrap] = "kafka.example:9092"


def logged_in(scene: Scene, kafka: Kafka, user: str, password: str) -> str:
    """As this user, whose every right is what a test gives; names of its own. Returns the prefix."""
    login = {"sasl_mechanism": "PLAIN", "sasl_username": user, "sasl_password": password}
    through_kafka(scene, kafka.own.bootstrap_of("SASL"), security_protocol="sasl_plaintext", **login)
    scene.prefix = fresh("relay")
    scene.sinks["siem"]["topic"] = topic = fresh("topic")
    create_topic(kafka.bootstrap, topic)
    scene.changes |= {topic: TOPIC, scene.prefix: "relay"}
    return topic


def allow(kafka: Kafka, kind: ResourceType, name: str, *operations: AclOperation) -> None:
    """Lets `limited` do these things."""
    options: dict[str, str | int | float | bool] = {"bootstrap.servers": kafka.bootstrap, "log_level": 2}
    bindings = [
        AclBinding(kind, name, ResourcePatternType.PREFIXED, "User:limited", "*", operation, AclPermissionType.ALLOW)
        for operation in operations
    ]
    admin = AdminClient(options)
    for made in admin.create_acls(bindings).values():
        made.result(30)


async def test_7_kafka_unreachable(scene: Scene) -> None:
    through_kafka(scene, f"127.0.0.1:{unused_port()}")
    said = await scene.said("siem")
    assert said.outcome == "fail"
    assert said.text == (
        f"no broker could be used: {scene.kafka['bootstrap.servers']}: Connection refused "
        "Check bootstrap.servers and security.protocol, and that this machine reaches every broker by its "
        "advertised name. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("Kafka unreachable", said)


async def test_7_a_broker_that_says_nothing(scene: Scene) -> None:
    async with receiving() as receiver:
        receiver.greet = stall
        through_kafka(scene, f"127.0.0.1:{receiver.port}")
        said = await scene.said("siem")
    assert said.outcome == "fail"
    assert said.text.startswith("no broker could be used: ")
    assert " Check bootstrap.servers and security.protocol, " in said.text
    assert receiver.connections


@pytest.mark.kafka
async def test_8_kafka_authentication(scene: Scene, kafka: Kafka) -> None:
    logged_in(scene, kafka, "relay", "canary-that-is-wrong")
    said = await scene.said("siem")
    assert said.outcome == "fail"
    assert said.text == (
        f"connecting: the broker refused the login: {kafka.own.bootstrap_of('SASL')}: Authentication failed: Invalid "
        "username or password Check sasl.mechanism, sasl.username and sasl.password. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("Kafka authentication", said)


@pytest.mark.kafka
async def test_9_topic_missing(scene: Scene, kafka: Kafka) -> None:
    through_kafka(scene, kafka.bootstrap)
    scene.prefix, topic = fresh("relay"), fresh("topic")
    scene.sinks["siem"] |= {"topic": topic, "create_topic": False}
    scene.changes[topic] = TOPIC
    said = await scene.said("siem")
    assert said.outcome == "fail"
    assert said.text == (
        f"topic {topic} does not exist Create it, or leave create_topic out, so that the relay makes it. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("Topic missing", said)


@pytest.mark.kafka
async def test_10_no_transaction_rights(scene: Scene, kafka: Kafka) -> None:
    topic = logged_in(scene, kafka, "limited", USERS["limited"])
    allow(kafka, ResourceType.TOPIC, topic, AclOperation.WRITE, AclOperation.DESCRIBE)
    rights = [AclOperation.CREATE, AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE_CONFIGS]
    allow(kafka, ResourceType.TOPIC, f"{scene.prefix}.cursors", *rights)
    said = await scene.said("siem")
    assert said.outcome == "fail"
    assert said.text == (
        "trying a transaction: User:limited may not use transactions Allow User:limited Describe and Write on the "
        f"transactional ids that begin with {scene.prefix}-. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("No transaction rights", said)
    allow(kafka, ResourceType.TRANSACTIONAL_ID, f"{scene.prefix}-", AclOperation.WRITE, AclOperation.DESCRIBE)
    assert (await scene.said("siem", code=0)).outcome == "ok"


@pytest.mark.kafka
async def test_10_no_right_to_write_the_topic(scene: Scene, kafka: Kafka) -> None:
    topic = logged_in(scene, kafka, "limited", USERS["limited"])
    allow(kafka, ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    said = await scene.said("siem")
    assert said.text == f"topic {topic} may not be written Allow User:limited Write on it. To try again:"


@pytest.mark.kafka
async def test_10_no_right_to_the_topic_at_all(scene: Scene, kafka: Kafka) -> None:
    topic = logged_in(scene, kafka, "limited", USERS["limited"])
    said = await scene.said("siem")
    assert said.text == (
        f"looking at topic {topic}: User:limited lacks a right Allow User:limited "
        f"Describe and Write on topic {topic}; on {scene.prefix}.cursors also Create, Read and DescribeConfigs. "
        "To try again:"
    )


# -- the journal on Kafka ---------------------------------------------------------------------------------------------


def journal_on(scene: Scene, bootstrap: str, **options: str) -> None:
    """The journal on this cluster, and no Kafka sink."""
    through_kafka(scene, bootstrap, **options)
    del scene.sinks["siem"]
    scene.journal = {"kind": "kafka"}
    scene.prefix = fresh("relay")
    scene.changes[scene.prefix] = "relay"


@pytest.mark.kafka
async def test_13_the_journal_lacks_rights(scene: Scene, kafka: Kafka) -> None:
    login = {"sasl_mechanism": "PLAIN", "sasl_username": "limited", "sasl_password": USERS["limited"]}
    journal_on(scene, kafka.own.bootstrap_of("SASL"), security_protocol="sasl_plaintext", **login)
    said = await scene.said("journal")
    assert said.outcome == "fail"
    assert said.text == (
        "User:limited lacks rights Allow User:limited Create, Describe, DescribeConfigs, Read and Write on the topics "
        f"that begin with {scene.prefix}.; Read on group {scene.prefix}; Describe and Write on the transactional ids "
        f"that begin with {scene.prefix}-. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("No rights for the journal", said)


@pytest.mark.kafka
async def test_14_a_topic_of_the_journal_has_another_policy(scene: Scene, kafka: Kafka) -> None:
    journal_on(scene, kafka.bootstrap)
    create_topic(kafka.bootstrap, f"{scene.prefix}.state", partitions=16, config={"cleanup.policy": "delete"})
    said = await scene.said("journal")
    assert said.outcome == "fail"
    assert said.text == (
        f"topic {scene.prefix}.state has cleanup.policy=delete "
        "It needs cleanup.policy=compact: set that, or set another kafka_prefix. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("Topic of the journal", said)


@pytest.mark.kafka
async def test_15_the_journal_has_another_number_of_partitions(scene: Scene, kafka: Kafka) -> None:
    journal_on(scene, kafka.bootstrap)
    create_topic(kafka.bootstrap, f"{scene.prefix}.state", partitions=32, config={"cleanup.policy": "compact"})
    said = await scene.said("journal")
    assert said.outcome == "fail"
    assert said.text == (
        f"topic {scene.prefix}.state has 32 partitions instead of 16 "
        "Write journal.partitions: 32, or set another kafka_prefix. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("Partitions of the journal", said)


@pytest.mark.kafka
async def test_16_brokers_that_cannot_keep_transactions(scene: Scene, tmp_path: Path) -> None:
    require_broker()
    with Cluster(tmp_path / "kafka", properties={"transaction.state.log.replication.factor": "3"}) as cluster:
        journal_on(scene, cluster.bootstrap)
        said = await scene.said("journal")
    assert said.outcome == "fail"
    assert said.text == (
        "fencing took too long Let transaction.state.log.replication.factor and transaction.state.log.min.isr of the "
        "brokers be no more than the brokers that run, and all of these reachable. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("Brokers without transactions", said)


@pytest.mark.kafka
async def test_17_the_cache_cannot_be_made(scene: Scene, kafka: Kafka) -> None:
    journal_on(scene, kafka.bootstrap)
    (scene.folder / "taken").write_text("")
    scene.journal["cache_dir"] = "taken/relay-cache"
    scene.changes[str(scene.folder / "taken")] = "/etc/relay"
    result = await scene.check()
    assert result.code == 1
    said = scene.block(result.stdout[result.stdout.index("fail   journal") :], "journal")
    assert said.text == (
        f"the cache relay-cache cannot be made in {scene.folder / 'taken'} "
        "Name a folder on a local disk that the relay can write in journal.cache_dir. To try again:"
    )
    assert said.command == "relay check"
    is_on_the_page("Cache of the journal", said)


# -- chat -------------------------------------------------------------------------------------------------------------


def trouble(code: str, message: str) -> Told:
    """As Power Automate answers."""
    return Told(status=400, body=json.dumps({"error": {"code": code, "message": message}}).encode())


def not_enabled(state: str) -> Told:
    """Its answer for a trigger in this state."""
    return trouble(
        "WorkflowTriggerIsNotEnabled",
        f"Could not execute workflow '0123456789abcdef' trigger 'manual' with state '{state}': trigger is not enabled.",
    )


@pytest.fixture
async def chat(scene: Scene) -> AsyncIterator[Receiver]:
    """Slack and Teams behind the proxy."""
    async with receiving() as receiver:
        scene.gateway.routes["hooks.slack.com"] = receiver.port
        scene.gateway.routes["prod-1.westeurope.logic.azure.com"] = receiver.port
        yield receiver


async def test_11_slack_url_revoked(scene: Scene, chat: Receiver) -> None:
    chat.says(Told(status=404, body=b"no_service"))
    scene.sinks["soc"] = scene.chat("slack", SLACK)
    said = await scene.said("soc")
    assert said.outcome == "fail"
    assert said.text == (
        "Slack answered 404 no_service: this webhook was removed "
        "Create a new incoming webhook in Slack, write its URL to the sink's url_file, then:"
    )
    assert said.command == "relay check"
    is_on_the_page("Slack URL revoked", said)


@pytest.mark.parametrize("word", ["invalid_payload", "no_text", "missing_text_or_fallback_or_attachments"])
async def test_11_a_webhook_that_slack_knows_gets_no_message(scene: Scene, chat: Receiver, word: str) -> None:
    chat.says(Told(status=400, body=word.encode()))
    scene.sinks["soc"] = scene.chat("slack", SLACK)
    said = await scene.said("soc", code=0)
    assert (said.outcome, said.command) == ("ok", "relay sinks test soc")
    assert said.text == (
        "the URL is that of an incoming webhook and accepts TLS; Slack knows the webhook; no message was sent; "
        "to send one:"
    )
    (asked,) = chat.asked
    assert asked.method == "POST"
    with pytest.raises(ValueError, match="Expecting value"):
        asked.json()


async def test_12_teams_flow_switched_off(scene: Scene, chat: Receiver) -> None:
    chat.says(not_enabled("Disabled"))
    scene.sinks["soc"] = scene.chat("teams", TEAMS)
    said = await scene.said("soc")
    assert said.outcome == "fail"
    assert said.text == (
        "Teams answered 400 WorkflowTriggerIsNotEnabled: this flow is switched off "
        "Turn it on in the Workflows app of Teams, then:"
    )
    assert said.command == "relay check"
    is_on_the_page("Teams flow switched off", said)


async def test_12_a_flow_that_was_removed_is_told_from_one_that_is_off(scene: Scene, chat: Receiver) -> None:
    chat.says(not_enabled("Deleted"))
    scene.sinks["soc"] = scene.chat("teams", TEAMS)
    said = await scene.said("soc")
    assert said.text.startswith("Teams answered 400 WorkflowTriggerIsNotEnabled: this flow was removed Create the flow")


async def test_12_a_flow_that_is_on_is_not_started(scene: Scene, chat: Receiver) -> None:
    chat.says(trouble("TriggerRequestMethodNotValid", "Expected 'POST' and actual 'GET'."))
    scene.sinks["soc"] = scene.chat("teams", TEAMS)
    said = await scene.said("soc", code=0)
    assert (said.outcome, said.command) == ("ok", "relay sinks test soc")
    assert said.text == (
        "the URL is a Workflows URL and accepts TLS; its flow is switched on; no message was sent; to send one:"
    )
    assert [(asked.method, asked.body) for asked in chat.asked] == [("GET", b"")]


@pytest.mark.parametrize("kind", ["slack", "teams"])
async def test_an_answer_that_tells_nothing_is_no_failure(scene: Scene, chat: Receiver, kind: str) -> None:
    chat.says(Told(status=503, body=b"canary"))
    scene.sinks["soc"] = scene.chat(kind, SLACK if kind == "slack" else TEAMS)
    said = await scene.said("soc", code=0)
    assert " answered 503, which does not tell whether " in said.text


# -- the page ---------------------------------------------------------------------------------------------------------


def is_on_the_page(heading: str, said: Said) -> None:
    """The page shows the block as it is printed, with a duration of its own."""
    found = re.search(rf"^### {heading}\n+```text\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{PAGE.name} has no block under {heading}:\n{said.printed}"
    assert steady(found[1]) == steady(said.printed)


def steady(printed: str) -> str:
    """What does not change from run to run, whatever the names are long."""
    printed = re.sub(r"\b\d+\.\d s\b", "0.0 s", re.sub(r"\s+", " ", printed)).strip()
    return re.sub(r"1[12] min( \d+ s)?", "12 min", printed)


@pytest.mark.parametrize("columns", [80, 120])
async def test_what_is_printed_fits_the_terminal(scene: Scene, chat: Receiver, columns: int) -> None:
    """Each of several failures at once stands by itself, in the order verdict, cure, command."""
    chat.says(Told(status=404, body=b"no_service"))
    scene.sinks["soc"] = scene.chat("slack", SLACK)
    scene.source["region"] = "us"
    result = await scene.check(columns=columns)
    assert result.code == 1
    assert result.stdout.rstrip().endswith("2 of 6 checks failed: acme, soc. Exit code 1.")
    for name in ("acme", "soc"):
        lines = scene.block(result.stdout, name).printed.splitlines()
        assert lines[0].startswith("fail   ")
        assert {len(line) - len(line.lstrip()) for line in lines[1:-1]} == {23}
        assert lines[-1] == f"{' ' * 25}relay check"
