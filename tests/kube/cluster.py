"""A real Kubernetes of one node, from apiserver to CoreDNS, in network, mount and process namespaces of its own.

Nothing leaves it but to this machine's side. It does not enforce NetworkPolicy.
"""

import base64
import fcntl
import ipaddress
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

from tests.kube import tools
from tests.kube.steps import HOME, step

MACHINE: Final = "10.123.0.1"
"""This machine as pods see it: what listens here on this address can be reached from them."""
NODE: Final = "10.123.0.2"
NAME: Final = "node"
PAUSE_IMAGE: Final = "kube.local/pause:1"
LINK: Final = "relay-kube"
PODS: Final = ipaddress.ip_network("10.124.0.0/24")
SERVICES: Final = "10.96.0.0/16"
DNS: Final = "10.96.0.10"
KEEPER: Final = Path(__file__).parent / "keeper.py"
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 30.0


class CommandError(Exception):
    """A command that ended with another code than 0. Its text holds the command and all that it printed."""

    def __init__(self, command: Sequence[str], finished: "subprocess.CompletedProcess[str]") -> None:
        super().__init__(f"$ {shlex.join(command)}\n{finished.stdout}{finished.stderr}(exit {finished.returncode})")
        self.stdout, self.stderr, self.code = finished.stdout, finished.stderr, finished.returncode


class Cluster:
    """`with Cluster(images=[archive]) as cluster: cluster.kubectl("get", "nodes")`. One a machine at a time.

    It ends with the test process, even when that is killed. `folder` keeps logs until the next start.
    """

    def __init__(self, folder: Path = HOME / "run", *, images: Sequence[Path] = (), stay: bool = False) -> None:
        self.folder = folder
        self.kubeconfig = folder / "admin.kubeconfig"
        self._images = tuple(images)
        self._stay = stay
        self._keeper: subprocess.Popen[str] | None = None
        self._lock: IO[str] | None = None
        self._first = 0
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    # -- life

    def start(self) -> Self:
        """Returns when the node is Ready. Raises RuntimeError with the log of what did not start."""
        HOME.mkdir(parents=True, exist_ok=True)
        self._lock = (HOME / ".running").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            self._lock = None
            raise RuntimeError("another cluster runs on this machine; `python -m tests.kube down` ends it") from None
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("pki", "log", "kubelet", "cni", "volumes"):
            (self.folder / name).mkdir(parents=True)
        with step("namespaces, keys, network"):
            self._keep()
            self._connect()
            self._make_keys()
            self._configure()
        for server in ("etcd", "apiserver", "containerd"):
            self.run(server)
        with step(f"{len(self._images) + 1} images loaded"):
            self._until("containerd", lambda: self._ctr("version").returncode == 0)
            for archive in (self._pause(), *self._images):
                self.load(archive)
        with step("apiserver ready"):
            self._until("apiserver", lambda: self._ready("get", "--raw", "/readyz"))
        with step("node Ready"):
            for server in ("controllers", "scheduler", "kubelet", "proxy", "names"):
                self.run(server)
            wait = ("wait", f"node/{NAME}", "--timeout=1s")
            self._until("kubelet", lambda: self._ready(*wait, "--for=create"))
            self._until("kubelet", lambda: self._ready(*wait, "--for=condition=Ready"))
            self._until("controllers", lambda: self._ready("get", "serviceaccount/default"))
            self.apply(*_NAMES, _STORAGE)
        return self

    def stop(self) -> None:
        """Everything within is killed; namespaces, mounts and cgroups are gone on return."""
        if self._keeper is not None:
            self._keeper.terminate()
            if self._keeper.stdin is not None:
                self._keeper.stdin.close()
            code = self._keeper.wait(STOP_SECONDS)
            self._keeper = None
            for server in self._servers.values():
                server.wait(STOP_SECONDS)
            self._servers.clear()
            (self.folder / "keeper.pid").unlink(missing_ok=True)
            for name in ("kubelet", "volumes"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            # The kernel takes the link away a moment after its last process.
            while Path(f"/sys/class/net/{LINK}").exists():
                time.sleep(0.01)
            if code != 0:
                raise RuntimeError(f"the node did not end cleanly: exit {code}")
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    # -- what a test does with it

    def kubectl(self, *arguments: str, stdin: str | None = None, within: float = 120) -> str:
        """Its standard output. Raises CommandError, and subprocess.TimeoutExpired."""
        return self._call([str(tools.BIN / "kubectl"), *arguments], stdin, within)

    def helm(self, *arguments: str, stdin: str | None = None, within: float = 300) -> str:
        """Its standard output. Raises CommandError, and subprocess.TimeoutExpired."""
        return self._call([str(tools.BIN / "helm"), *arguments], stdin, within)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get … -o json`, read."""
        document: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return document

    def apply(self, *objects: dict[str, Any]) -> None:
        """`kubectl apply` of these objects."""
        self.kubectl("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def namespace(self, name: str, *, level: str = "restricted") -> None:
        """A new one, whose pods have to obey this level of PodSecurity."""
        labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn")}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        # A pod is refused until the controllers have made this.
        self._until("controllers", lambda: self._ready("get", "--namespace", name, "serviceaccount/default"))

    def volume(self, name: str, size: str = "1Gi", *, mode: str = "ReadWriteOncePod", memory: bool = False) -> Path:
        """A local volume of class `local` for one claim; returns its folder, as the node sees it and we do not.

        `memory`: a file system of its own of just that size, so that it can be full.
        """
        folder = self.folder / "volumes" / name
        folder.mkdir()
        if memory:
            bytes_ = size.replace("Ki", "k").replace("Mi", "m").replace("Gi", "g")
            self.inside("mount", "-t", "tmpfs", "-o", f"size={bytes_},mode=755", "tmpfs", str(folder))
        terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]}]
        spec = {
            "capacity": {"storage": size},
            "accessModes": [mode],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "local",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        }
        self.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
        return folder

    def load(self, archive: Path) -> None:
        """Takes in the images of a docker-archive."""
        finished = self._ctr("--namespace=k8s.io", "images", "import", str(archive))
        if finished.returncode != 0:
            raise RuntimeError(f"{archive}: {finished.stderr}")

    def process_id(self, server: str) -> int:
        """Of a server that runs, as this machine counts."""
        entered = self._servers[server].pid
        return int(Path(f"/proc/{entered}/task/{entered}/children").read_text())

    def kill(self, server: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends etcd, apiserver, controllers, scheduler, proxy, names, containerd or kubelet. Pods go on."""
        os.kill(self.process_id(server), number)
        self._servers.pop(server).wait(STOP_SECONDS)

    def run(self, server: str) -> None:
        """Starts a server; after `kill`, with the same data."""
        with (self.folder / "log" / f"{server}.log").open("ab") as out:
            self._servers[server] = subprocess.Popen(
                [*self._enter(), *self._command(server)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, server: str) -> str:
        """The end of what a server wrote."""
        return (self.folder / "log" / f"{server}.log").read_text(errors="replace")[-4000:]

    def pod_processes(self, pod: str, namespace: str) -> list[int]:
        """The processes of a pod but for its pause, as this machine counts: for a SIGKILL or SIGSTOP from outside."""
        uid = self.get("pod", pod, "--namespace", namespace)["metadata"]["uid"]
        marks = (f"pod{uid}", f"pod{uid.replace('-', '_')}")
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                group, command = (entry / "cgroup").read_text(), (entry / "comm").read_text()
            except OSError:
                continue
            if any(mark in group for mark in marks) and command != "pause\n":
                found.append(int(entry.name))
        return sorted(found)

    def inside(self, *command: str) -> str:
        """Runs a command among the mounts, networks and processes of the node. Raises CommandError."""
        return _do(*self._enter(), *command)

    # -- within

    def _keep(self) -> None:
        command = [sys.executable, "-I", "-S", str(KEEPER), str(tools.BIN / "pause"), str(self.folder)]
        with (self.folder / "log" / "keeper.log").open("w") as errors:
            self._keeper = subprocess.Popen(
                [*command, *(["--stay"] if self._stay else [])],
                stdin=subprocess.DEVNULL if self._stay else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                # With `stay` the keeper holds the lock as long as the node lives.
                pass_fds=[self._lock.fileno()] if self._stay and self._lock is not None else [],
            )
        assert self._keeper.stdout is not None
        answer = self._keeper.stdout.readline()
        self._keeper.stdout.close()
        if not answer.strip():
            raise RuntimeError(f"the namespaces could not be made:\n{self.log('keeper')}")
        self._first = int(answer)
        (self.folder / "keeper.pid").write_text(f"{self._keeper.pid}\n")

    def _connect(self) -> None:
        """One cable to this machine and no route beyond it."""
        _do("ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", str(self._first))
        _do("ip", "address", "add", f"{MACHINE}/30", "dev", LINK)
        _do("ip", "link", "set", LINK, "up")
        self.inside("ip", "address", "add", f"{NODE}/30", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")
        self.inside("ip", "link", "set", "lo", "up")
        # For the addresses of Services, which the proxy's rules rewrite only once a packet has a way.
        self.inside("ip", "route", "add", SERVICES, "dev", "eth0")
        # So that answers find the pods: their own addresses are seen on this side.
        _do("ip", "route", "add", str(PODS), "via", NODE, "dev", LINK)
        self.inside("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def _make_keys(self) -> None:
        pki = self.folder / "pki"
        names = "IP:127.0.0.1,IP:10.123.0.2,IP:10.96.0.1,DNS:kubernetes.default.svc,DNS:kubernetes.default"
        new = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        by_ca = ["-CA", f"{pki}/ca.crt", "-CAkey", f"{pki}/ca.key"]
        for name, subject, extra in (
            ("ca", "/CN=kube-ca", ["-addext", "keyUsage=critical,keyCertSign"]),
            ("api", "/CN=kube-apiserver", [*by_ca, "-addext", f"subjectAltName={names}"]),
            ("client", "/O=system:masters/CN=client", [*by_ca, "-addext", "extendedKeyUsage=clientAuth"]),
        ):
            _do(*new, "-subj", subject, "-keyout", f"{pki}/{name}.key", "-out", f"{pki}/{name}.crt", *extra)
        _do("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{pki}/sa.key")
        tokens = {user: secrets.token_urlsafe() for user in ("admin", "node")}
        (pki / "tokens.csv").write_text(
            f'{tokens["admin"]},admin,1,"system:masters"\n{tokens["node"]},system:node:{NAME},2,"system:nodes"\n'
        )
        authority = base64.b64encode((pki / "ca.crt").read_bytes()).decode()
        for user, token in tokens.items():
            path = self.folder / f"{user}.kubeconfig"
            path.write_text(json.dumps(_kubeconfig(authority, token)))
            path.chmod(0o600)

    def _configure(self) -> None:
        at = str(self.folder)
        settings = {"AT": at, "SOCKET": f"{at}/containerd.sock", "NODE": NODE, "DNS": DNS}
        for name, text in (("containerd.toml", _CONTAINERD), ("kubelet.json", _KUBELET), ("Corefile", _COREFILE)):
            for key, value in settings.items():
                text = text.replace(f"@{key}@", value)  # noqa: PLW2901
            (self.folder / name).write_text(text)
        ipam = {"type": "host-local", "ranges": [[{"subnet": str(PODS)}]], "routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True}
        plugins = [
            bridge | {"ipam": ipam | {"dataDir": "/run/cni"}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}
        (self.folder / "cni" / "10-pods.conflist").write_text(json.dumps(network))

    def _command(self, server: str) -> list[str]:
        at, pki, program = self.folder, self.folder / "pki", str(tools.BIN)
        local = "--bind-address=127.0.0.1"
        admin = f"--kubeconfig={self.kubeconfig}"
        commands: dict[str, list[str]] = {
            "etcd": [
                *("etcd", "--data-dir=/run/etcd", "--log-level=warn", "--listen-peer-urls=http://127.0.0.1:2380"),
                *("--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"),
            ],
            "apiserver": [
                *(f"{program}/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0"),
                *(f"--advertise-address={NODE}", "--secure-port=6443", "--allow-privileged=true"),
                *(f"--tls-cert-file={pki}/api.crt", f"--tls-private-key-file={pki}/api.key"),
                *(f"--client-ca-file={pki}/ca.crt", f"--token-auth-file={pki}/tokens.csv"),
                *(f"--kubelet-client-certificate={pki}/client.crt", f"--kubelet-client-key={pki}/client.key"),
                *("--kubelet-preferred-address-types=InternalIP", f"--service-cluster-ip-range={SERVICES}"),
                *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
                *(
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={pki}/sa.key",
                ),
                f"--service-account-signing-key-file={pki}/sa.key",
            ],
            "controllers": [
                *(f"{program}/kube-controller-manager", admin, local, "--leader-elect=false"),
                *(f"--root-ca-file={pki}/ca.crt", f"--service-account-private-key-file={pki}/sa.key"),
                f"--cluster-cidr={PODS}",
            ],
            "scheduler": [f"{program}/kube-scheduler", admin, local, "--leader-elect=false"],
            "proxy": [
                *(f"{program}/kube-proxy", admin, "--proxy-mode=iptables", f"--hostname-override={NAME}"),
                *(f"--cluster-cidr={PODS}", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"),
                *("--conntrack-tcp-timeout-close-wait=0", "--metrics-bind-address=127.0.0.1:10249"),
                "--healthz-bind-address=127.0.0.1:10256",
            ],
            "names": [f"{program}/coredns", "-conf", f"{at}/Corefile"],
            "containerd": ["containerd", "--config", f"{at}/containerd.toml"],
            "kubelet": [
                *(f"{program}/kubelet", f"--config={at}/kubelet.json", f"--kubeconfig={at}/node.kubeconfig"),
                *(f"--hostname-override={NAME}", f"--node-ip={NODE}"),
                *(f"--root-dir={at}/kubelet", f"--cert-dir={at}/kubelet/pki"),
            ],
        }
        return commands[server]

    def _pause(self) -> Path:
        from tests.kube.image import write_archive  # noqa: PLC0415 - images know clusters not, nor the other way round

        archive = self.folder / "pause.tar"
        write_archive(archive, PAUSE_IMAGE, {"pause": tools.BIN / "pause"}, entrypoint=["/pause"])
        return archive

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self._first}", "--mount", "--net", "--pid", "--wdns=/", "--"]

    def _ctr(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*self._enter(), "ctr", f"--address={self.folder}/containerd.sock", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def _call(self, command: list[str], stdin: str | None, within: float) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
        environment |= {"KUBECONFIG": str(self.kubeconfig), "PATH": tools.path(), "HOME": str(self.folder)}
        finished = subprocess.run(
            command, input=stdin or "", check=False, capture_output=True, text=True, timeout=within, env=environment
        )
        if finished.returncode != 0:
            raise CommandError(command, finished)
        return finished.stdout

    def _ready(self, *arguments: str) -> bool:
        try:
            self.kubectl(*arguments, within=10)
        except (CommandError, subprocess.TimeoutExpired):
            return False
        return True

    def _until(self, server: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not done():
            if self._servers[server].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{server} did not start:\n{self.log(server)}")
            time.sleep(0.1)


def end_left_over(folder: Path = HOME / "run") -> bool:
    """Ends the cluster that `up` started. False when none runs."""
    try:
        process_id = int((folder / "keeper.pid").read_text())
        command = Path(f"/proc/{process_id}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    if str(KEEPER).encode() not in command:
        return False
    os.kill(process_id, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while Path(f"/proc/{process_id}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _do(*command: str) -> str:
    finished = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if finished.returncode != 0:
        raise CommandError(command, finished)
    return finished.stdout


def _kubeconfig(authority: str, token: str) -> dict[str, Any]:
    server = {"server": f"https://{NODE}:6443", "certificate-authority-data": authority}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kube", "cluster": server}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "kube", "context": {"cluster": "kube", "user": "user"}}],
        "current-context": "kube",
    }


_STORAGE: Final[dict[str, Any]] = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "kubernetes.io/no-provisioner",
    "volumeBindingMode": "WaitForFirstConsumer",
}

_NAMES: Final[tuple[dict[str, Any], ...]] = (
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {
            "clusterIP": DNS,
            "ports": [{"name": name.lower(), "port": 53, "protocol": name} for name in ("UDP", "TCP")],
        },
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": "IPv4",
        "ports": [{"name": name.lower(), "port": 53, "protocol": name} for name in ("UDP", "TCP")],
        "endpoints": [{"addresses": [NODE]}],
    },
)

_CONTAINERD: Final = """version = 2
root = "/run/containerd-root"
state = "/run/containerd-state"
[grpc]
  address = "@SOCKET@"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "kube.local/pause:1"
  tolerate_missing_hugetlb_controller = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "@AT@/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""

_KUBELET: Final = """{
  "apiVersion": "kubelet.config.k8s.io/v1beta1",
  "kind": "KubeletConfiguration",
  "address": "@NODE@",
  "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
                     "x509": {"clientCAFile": "@AT@/pki/ca.crt"}},
  "authorization": {"mode": "Webhook"},
  "cgroupDriver": "cgroupfs",
  "failCgroupV1": false,
  "failSwapOn": false,
  "clusterDNS": ["@DNS@"],
  "clusterDomain": "cluster.local",
  "resolvConf": "",
  "containerRuntimeEndpoint": "unix://@SOCKET@",
  "volumePluginDir": "@AT@/kubelet/plugins-flex",
  "readOnlyPort": 0,
  "nodeStatusUpdateFrequency": "2s",
  "syncFrequency": "2s",
  "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
}
"""

_COREFILE: Final = """.:53 {
    bind @NODE@
    errors
    kubernetes cluster.local in-addr.arpa {
        kubeconfig @AT@/admin.kubeconfig
        pods insecure
    }
    template ANY ANY {
        rcode NXDOMAIN
    }
}
"""
