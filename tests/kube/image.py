"""The relay's image, built by `make image` on a home-made base that is named like the official one.

That one can't be pulled everywhere. This proves the Dockerfile's steps, not the official base's bytes.
"""

import gzip
import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

from tests.kube import tools
from tests.kube.steps import HOME, ROOT, step

NAME: Final = "localhost/incident-relay"
REPOSITORY: Final = "python"
TAG: Final = "3.13-slim-trixie"
NEXT: Final = "next"
"""Under which an image is known that differs from `test` in this alone."""
SUITE: Final = "trixie"
AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_BASE: Final = HOME / "base.tar"
_IMAGES: Final = HOME / "images"
# As in the official image: Python and pip below /usr/local, and no bytecode anywhere.
_LIKE_THE_OFFICIAL_ONE: Final = (
    "ln -s /usr/bin/python3 /usr/local/bin/python3 && ln -s python3 /usr/local/bin/python && "
    "PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl) python3 -m pip install --quiet --no-index --no-compile "
    "--break-system-packages --root-user-action=ignore /usr/share/python-wheels/pip-*.whl && "
    "rm -rf /usr/share/python-wheels/*.whl /usr/lib/python3.*/EXTERNALLY-MANAGED && "
    "find / -xdev -name __pycache__ -prune -exec rm -rf {} +"
)
_SOURCES: Final = (
    "Dockerfile",
    ".dockerignore",
    "pyproject.toml",
    "README.md",
    "requirements.lock",
    "requirements-build.lock",
)


def build(tag: str = "test", *, revision: str = "unknown", replace: Mapping[str, str] | None = None) -> Path:
    """The image `localhost/incident-relay:TAG` as a docker-archive, built by `make image` unless nothing has changed.

    `replace`: texts to be replaced in the Dockerfile of a copy, for an image that differs.
    """
    digest = tools.digest_of(*(ROOT / name for name in _SOURCES), ROOT / "relay", Path(__file__))
    digest = hashlib.sha256(json.dumps([digest, revision, dict(replace or {})]).encode()).hexdigest()[:12]
    archive = _IMAGES / f"{tag}-{digest}.tar"
    if archive.exists():
        return archive
    _IMAGES.mkdir(parents=True, exist_ok=True)
    for old in _IMAGES.glob(f"{tag}-*.tar"):
        old.unlink()
    _make_base()
    with step(f"make image ({tag})"):
        builder = f"buildah {shlex.join(_storage())} build --isolation chroot --pull-never --network host"
        settings = {"IMAGE": f"{NAME}:{tag}", "BUILDER": builder, "BASE": TAG, "REVISION": revision}
        if AUTHORITIES.exists():
            settings["CA"] = str(AUTHORITIES)
        folder = _altered(replace) if replace else ROOT
        command = ["make", "--no-print-directory", "image", *(f"{name}={value}" for name, value in settings.items())]
        _do(*command, cwd=folder)
    with step(f"save the image ({tag})"):
        fresh = archive.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        buildah("push", "--quiet", f"{NAME}:{tag}", f"docker-archive:{fresh}:{NAME}:{tag}")
        fresh.rename(archive)
    return archive


def buildah(*arguments: str) -> str:
    """Its standard output. Raises RuntimeError with all that it printed."""
    return _do("buildah", *_storage(), *arguments)


class Archive:
    """What is in a docker-archive: its configuration, and its files as a container sees them. Runs nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.open(path)  # noqa: SIM115 - closed by `__exit__`
        [manifest] = json.loads(self._read("manifest.json"))
        self.layers: list[str] = manifest["Layers"]
        self.configuration: dict[str, Any] = json.loads(self._read(manifest["Config"]))
        self.files: dict[str, tuple[str, tarfile.TarInfo]] = {}
        """By path without a leading slash, with the layer that holds it."""
        for layer in self.layers:
            with self._layer(layer) as tar:
                for member in tar:
                    self._take(layer, member)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._tar.close()

    def compressed_bytes(self) -> int:
        """The layers by gzip, as a registry holds them."""
        return sum(len(gzip.compress(self._read(layer), 6)) for layer in self.layers)

    def content(self, path: str) -> bytes:
        """Of a file."""
        layer, member = self.files[path]
        with self._layer(layer) as tar:
            file = tar.extractfile(member)
            assert file is not None
            return file.read()

    def containing(self, *texts: bytes) -> list[str]:
        """Paths, in any layer, of files that hold one of these, and those of the history or configuration."""
        found = []
        for layer in self.layers:
            with self._layer(layer) as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isfile() else None
                    if file is not None and any(text in (content := file.read()) for text in texts):
                        found.append(f"{member.name}: {[text for text in texts if text in content]}")
        configuration = json.dumps(self.configuration).encode()
        return found + [f"configuration: {text!r}" for text in texts if text in configuration]

    def _take(self, layer: str, member: tarfile.TarInfo) -> None:
        path = Path(member.name)
        if path.name == ".wh..wh..opq":
            gone = f"{path.parent}/"
            self.files = {name: held for name, held in self.files.items() if not name.startswith(gone)}
        elif path.name.startswith(".wh."):
            gone = str(path.with_name(path.name.removeprefix(".wh.")))
            self.files = {n: held for n, held in self.files.items() if n != gone and not n.startswith(f"{gone}/")}
        else:
            self.files[str(path)] = (layer, member)

    def _read(self, name: str) -> bytes:
        file = self._tar.extractfile(name)
        assert file is not None
        return file.read()

    def _layer(self, name: str) -> tarfile.TarFile:
        return tarfile.open(fileobj=self._tar.extractfile(name))


class Container:
    """A container of the image, for commands of a moment: `with Container() as container: container.run("relay", …)`.

    Runs without a kernel's cgroups and with a writable root; what a pod forbids is tried in pods.
    """

    def __init__(self, tag: str = "test") -> None:
        self._tag = tag
        self._id = ""

    def __enter__(self) -> Self:
        self._id = buildah("from", "--pull-never", f"{NAME}:{self._tag}").strip()
        return self

    def __exit__(self, *_exc: object) -> None:
        buildah("rm", self._id)

    def command(self, *command: str, volumes: Mapping[Path, str] | None = None, user: str = "") -> list[str]:
        """The line that runs this within. `volumes`: folders, and where they appear."""
        mounts = [f"--volume={host}:{within}:rw" for host, within in (volumes or {}).items()]
        who = [f"--user={user}"] if user else []
        run = ["run", "--isolation=chroot", "--network=host", *mounts, *who, self._id, "--", *command]
        return ["buildah", *_storage(), *run]

    def run(
        self, *command: str, volumes: Mapping[Path, str] | None = None, user: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Runs it to its end."""
        line = self.command(*command, volumes=volumes, user=user)
        return subprocess.run(line, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


def write_archive(path: Path, name: str, files: Mapping[str, Path], *, entrypoint: Sequence[str]) -> None:
    """A docker-archive of one layer with these executables."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for within, source in files.items():
            member = _member(within, source.stat().st_size)
            with source.open("rb") as file:
                tar.addfile(member, file)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for entry, content in (
            ("config.json", json.dumps(configuration).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            tar.addfile(_member(entry, len(content)), io.BytesIO(content))


def retag(archive: Path, target: Path, tag: str, labels: Mapping[str, str]) -> None:
    """A copy of an image that differs in its tag and labels alone."""
    with tarfile.open(archive) as old, tarfile.open(target, "w") as new:
        [manifest] = json.load(_opened(old, "manifest.json"))
        configuration = json.load(_opened(old, manifest["Config"]))
        configuration["config"]["Labels"] |= labels
        text = json.dumps(configuration).encode()
        name = f"{hashlib.sha256(text).hexdigest()}.json"
        _put(new, name, text)
        _put(new, "manifest.json", json.dumps([manifest | {"Config": name, "RepoTags": [f"{NAME}:{tag}"]}]).encode())
        for layer in manifest["Layers"]:
            new.addfile(old.getmember(layer), _opened(old, layer))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o755
    return member


def _opened(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    assert file is not None
    return file


def _put(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _make_base() -> None:
    name = f"docker.io/library/{REPOSITORY}:{TAG}"
    if not _BASE.exists():
        with step(f"Debian {SUITE} with Python"):
            fresh = _BASE.with_name("base.new.tar")
            include = "--include=apt,python3,python3-venv,ca-certificates,netbase,tzdata"
            _do("mmdebstrap", "--quiet", "--variant=essential", include, SUITE, str(fresh))
            fresh.rename(_BASE)
    digest = hashlib.sha256(_LIKE_THE_OFFICIAL_ONE.encode()).hexdigest()
    stamp = HOME / ".base"
    if stamp.exists() and stamp.read_text() == digest:
        return
    with step(f"base like {REPOSITORY}:{TAG}"):
        container = buildah("from", "scratch").strip()
        buildah("add", "--quiet", container, str(_BASE))
        path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        buildah("config", "--env", path, "--cmd", '["python3"]', container)
        buildah("run", "--isolation=chroot", container, "--", "sh", "-ec", _LIKE_THE_OFFICIAL_ONE)
        buildah("commit", "--quiet", "--rm", container, name)
    stamp.write_text(digest)


def _altered(replace: Mapping[str, str]) -> Path:
    folder = HOME / "altered"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (*_SOURCES, "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "relay", folder / "relay", ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "Dockerfile").read_text()
    for old, new in replace.items():
        if old not in text:
            raise ValueError(f"the Dockerfile holds no {old!r}")
        text = text.replace(old, new)
    (folder / "Dockerfile").write_text(text)
    return folder


def _storage() -> list[str]:
    """All that Buildah keeps, apart from what others of this machine keep."""
    return [f"--root={HOME}/storage", f"--runroot={HOME}/storage-run"]


def _do(*command: str, cwd: Path = ROOT) -> str:
    environment = os.environ | {"BUILDAH_FORMAT": "docker"}
    finished = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=cwd, env=environment, stdin=subprocess.DEVNULL
    )
    if finished.returncode != 0:
        raise RuntimeError(f"$ {shlex.join(command)}\n{finished.stdout[-6000:]}{finished.stderr[-6000:]}")
    return finished.stdout
