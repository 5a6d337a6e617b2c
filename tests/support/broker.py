"""A real Apache Kafka (KRaft, broker and controller in one JVM, 1 or 3 nodes), installed from Maven Central.

`python -m tests.support.broker` installs it into `.cache/kafka`; `Cluster` starts one. Not the fixtures: see `kafka`.
"""

import base64
import fcntl
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support import packages

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".cache" / "kafka"
LIBS = HOME / "libs"
CLASS_DATA = HOME / "kafka.jsa"
BLANK = HOME / "blank"
"""A formatted data folder; between nodes only `meta.properties` differs."""

POM = Path(__file__).parent / "kafka_broker" / "pom.xml"
GUARD = Path(__file__).parent / "guard.py"
CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"
START_SECONDS = 60.0
STOP_SECONDS = 30.0

JVM = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xms64m",
    "-Xmx256m",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)

PROPERTIES = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": "8388608",
    "broker.heartbeat.interval.ms": "200",
    # With the default a broker that was killed is let in again only after 9 s.
    "broker.session.timeout.ms": "1500",
    "num.network.threads": "1",
    "num.io.threads": "2",
    "background.threads": "2",
    "controlled.shutdown.enable": "false",
}


def missing() -> str:
    """Why no broker can be started here, in one line; empty when one can."""
    if absent := packages.missing("java"):
        return f"no java: apt-get install {' '.join(absent)}"
    if not (LIBS.exists() and BLANK.exists()):
        return "Apache Kafka is not installed: make kafka"
    return ""


def install() -> None:
    """Fetches the jars, formats a data folder and makes the class-data archive, each once.

    Raises LookupError, whose text is the line to type, when Java or Maven is neither here nor can be installed.
    """
    HOME.mkdir(parents=True, exist_ok=True)
    with _locked(HOME / ".lock"):
        if not LIBS.exists():
            packages.require("java", "mvn")
            _fetch_jars()
        packages.require("java")
        if not BLANK.exists():
            _format_blank()
        if not CLASS_DATA.exists():
            _make_class_data()


class Cluster:
    """1 or 3 nodes on free ports of `host`; `with Cluster(folder) as cluster: cluster.bootstrap`.

    `listeners` are further ones by name and protocol (`{"SASL": "SASL_PLAINTEXT"}`), `properties` further settings.
    The nodes end with the test process, even when that is killed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        listeners: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        jvm: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self._folder = folder
        self._host = host
        self._nodes = range(nodes)
        self._protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **(listeners or {})}
        ports = iter(_free_ports(nodes * len(self._protocols)))
        self._ports = {name: [next(ports) for _ in self._nodes] for name in self._protocols}
        self._properties = dict(properties or {})
        self._jvm = tuple(jvm)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[str] | None = None

    @property
    def bootstrap(self) -> str:
        """Addresses of the listener without login."""
        return self.bootstrap_of("PLAINTEXT")

    def bootstrap_of(self, listener: str) -> str:
        """Addresses of a listener."""
        return ",".join(f"{self._host}:{port}" for port in self._ports[listener])

    @property
    def process_ids(self) -> list[int]:
        """Of the nodes that run."""
        return [process.pid for process in self._processes.values()]

    def start(self) -> Self:
        """Starts every node and waits until all answer."""
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD)], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        for node in self._nodes:
            self._prepare(node)
        for node in self._nodes:
            self._launch(node)
        for node in self._nodes:
            self._wait(node)
        return self

    def kill(self, node: int = 0) -> None:
        """SIGKILL: the node is gone at once."""
        self._processes[node].kill()
        self._reap(node)

    def stop(self, node: int = 0) -> None:
        """SIGTERM: the node shuts down."""
        self._processes[node].terminate()
        self._reap(node)

    def pause(self, node: int = 0) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        self._processes[node].send_signal(signal.SIGSTOP)

    def resume(self, node: int = 0) -> None:
        """SIGCONT, after `pause`."""
        self._processes[node].send_signal(signal.SIGCONT)

    def restart(self, node: int = 0) -> None:
        """Starts a node that was killed or stopped, on the same ports and data, and waits until it answers."""
        self._launch(node)
        self._wait(node)

    def close(self) -> None:
        """Kills what still runs and removes the data."""
        for node, process in list(self._processes.items()):
            process.kill()
            self._reap(node)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(STOP_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _home(self, node: int) -> Path:
        return self._folder / f"node{node}"

    def _prepare(self, node: int) -> None:
        home = self._home(node)
        shutil.copytree(BLANK, home / "data")
        directory = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        _write_properties(
            home / "data" / "meta.properties",
            {"version": "1", "cluster.id": CLUSTER_ID, "node.id": str(node + 1), "directory.id": directory},
        )
        _write_properties(home / "server.properties", self._settings(node))

    def _settings(self, node: int) -> dict[str, str]:
        replicas, in_sync = str(len(self._nodes)), str(min(len(self._nodes), 2))
        addresses = {name: f"{name}://{self._host}:{ports[node]}" for name, ports in self._ports.items()}
        return {
            **PROPERTIES,
            "node.id": str(node + 1),
            "log.dirs": str(self._home(node) / "data"),
            "controller.quorum.voters": ",".join(
                f"{other + 1}@{self._host}:{port}" for other, port in enumerate(self._ports["CONTROLLER"])
            ),
            "listeners": ",".join(addresses.values()),
            "advertised.listeners": ",".join(text for name, text in addresses.items() if name != "CONTROLLER"),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in self._protocols.items()),
            "default.replication.factor": replicas,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "share.coordinator.state.topic.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.min.isr": in_sync,
            **self._properties,
        }

    def _launch(self, node: int) -> None:
        home = self._home(node)
        with (home / "out.log").open("ab") as out:
            process = subprocess.Popen(
                _java("kafka.Kafka", str(home / "server.properties"), jvm=self._jvm),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=home,
                start_new_session=True,
            )
        self._processes[node] = process
        self._tell_guard(process.pid)

    def _wait(self, node: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((self._host, self._ports["PLAINTEXT"][node]), timeout=1).close()
            except OSError:
                if self._processes[node].poll() is not None or time.monotonic() > deadline:
                    text = (self._home(node) / "out.log").read_text()[-3000:]
                    raise RuntimeError(f"node {node} did not start:\n{text}") from None
                time.sleep(0.02)
            else:
                return

    def _reap(self, node: int) -> None:
        process = self._processes.pop(node)
        process.wait(STOP_SECONDS)
        self._tell_guard(-process.pid)

    def _tell_guard(self, process_id: int) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.write(f"{process_id}\n")
            self._guard.stdin.flush()


def _free_ports(count: int) -> list[int]:
    """Below the range that clients' own sockets come from, so that none takes one while a node is down."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            candidate = held.enter_context(socket.socket())
            try:
                candidate.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            except OSError:
                continue
            ports.append(candidate.getsockname()[1])
        return ports


def _write_properties(path: Path, properties: Mapping[str, str]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))


def _java(*arguments: str, jvm: Sequence[str] = ()) -> list[str]:
    """The class path must be the same string when the archive is made and when it is used."""
    archive = [f"-XX:SharedArchiveFile={CLASS_DATA}", "-Xshare:auto"] if CLASS_DATA.exists() else []
    return ["java", *JVM, *archive, *jvm, "-cp", f"{LIBS}/*", *arguments]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_jars() -> None:
    fresh = HOME / "libs.new"
    shutil.rmtree(fresh, ignore_errors=True)
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={fresh}"]
    subprocess.run(["mvn", "--batch-mode", "--quiet", "--file", str(POM), *goal], check=True)
    fresh.rename(LIBS)


def _format_blank() -> None:
    work = HOME / "format"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": "1@127.0.0.1:20000",
        "controller.listener.names": "CONTROLLER",
        "listeners": "PLAINTEXT://127.0.0.1:20001,CONTROLLER://127.0.0.1:20000",
        "log.dirs": str(work / "data"),
    }
    _write_properties(work / "server.properties", settings)
    tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(work / "server.properties")]
    subprocess.run(_java(*tool), check=True, stdout=subprocess.DEVNULL)
    (work / "data").rename(BLANK)
    shutil.rmtree(work)


def _make_class_data() -> None:
    """What a broker loads while it serves an ordinary client; halves its start."""
    fresh = HOME / "kafka.jsa.new"
    with Cluster(HOME / "archive-run", jvm=[f"-XX:ArchiveClassesAtExit={fresh}"]) as cluster:
        _exercise(cluster.bootstrap)
        cluster.stop()
    fresh.rename(CLASS_DATA)


def _exercise(bootstrap: str) -> None:
    servers: dict[str, str | int | float | bool] = {"bootstrap.servers": bootstrap}
    admin = AdminClient(servers)
    admin.create_topics([NewTopic("exercise", 1, 1)])["exercise"].result(START_SECONDS)
    producer = Producer({**servers, "transactional.id": "exercise"})
    producer.init_transactions(START_SECONDS)
    producer.begin_transaction()
    producer.produce("exercise", b"value", b"key")
    producer.commit_transaction(START_SECONDS)
    consumer = Consumer({**servers, "group.id": "exercise", "auto.offset.reset": "earliest"})
    consumer.subscribe(["exercise"])
    consumer.poll(START_SECONDS)
    consumer.close()


def main() -> int:
    try:
        install()
    except LookupError as exc:
        print(f"Java and Maven are needed for a real Kafka. Type, then again:\n  {exc}")  # noqa: T201
        return 1
    print(f"Apache Kafka is installed in {HOME.relative_to(ROOT)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
