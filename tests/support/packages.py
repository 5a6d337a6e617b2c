"""Programs of the system that tests need, by the Debian package that holds them; installed where apt-get is allowed.

`python -m tests.support.packages` installs what is missing, or prints the line to type. Nothing here starts a service.
"""

import os
import shutil
import subprocess
import sys
from typing import Final

import pytest

PACKAGES: Final = {
    "java": "openjdk-17-jre-headless",
    "mvn": "maven",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "chromium": "chromium",
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "host-local": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "openssl": "openssl",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "make": "make",
}
ELSEWHERE: Final = "/usr/sbin:/usr/lib/cni"
"""Where Debian puts what only root or another program calls."""
TESTS: Final = ("prometheus", "promtool", "chromium")
"""What `make test` wants beside Kafka."""


def missing(*programs: str) -> list[str]:
    """Packages that have to be installed before these programs are there."""
    path = f"{os.environ.get('PATH', os.defpath)}:{ELSEWHERE}"
    return sorted({PACKAGES[program] for program in programs if shutil.which(program, path=path) is None})


def require(*programs: str) -> None:
    """Installs what is missing, if it may. Raises LookupError, whose text is the line to type."""
    packages = missing(*programs)
    if not packages:
        return
    command = line(packages)
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        print(f"$ {command}", flush=True)  # noqa: T201 - a command for people
        if _run(command) or (_run("apt-get update") and _run(command)):
            return
    raise LookupError(command)


def skip_without(*programs: str) -> None:
    """Skips the test, with the line to type, where one of these programs is not here."""
    if packages := missing(*programs):
        pytest.skip(f"not installed: {line(packages)}")


def line(packages: list[str]) -> str:
    """The line that installs these packages."""
    return f"apt-get install --yes --no-install-recommends {' '.join(packages)}"


def _run(line: str) -> bool:
    return subprocess.run(line.split(), check=False).returncode == 0


def main() -> int:
    try:
        require(*TESTS)
    except LookupError as exc:
        print(f"Prometheus and Chromium are needed for some tests. Type, then again:\n  {exc}")  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
