"""Holds the namespaces of a node: network, mounts and processes. Run as a script; not imported.

When it is told to stop, by the end of its standard input or by SIGTERM, it kills the first process within, and the
kernel ends everything else.

`keeper.py PAUSE FOLDER [--stay]`: prints the id of that first process. `--stay`: only SIGTERM ends it.
"""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

# The kubelet insists on these; the machine's own stay as they are.
SYSCTLS = {"vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1}
CGROUPS = Path("/sys/fs/cgroup")


def main() -> None:
    pause, folder = sys.argv[1], Path(sys.argv[2])
    stay = "--stay" in sys.argv[3:]
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    unshare = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"),
            *("sh", "-ec", _preparations(folder, pause)),
        ],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(_first(unshare), flush=True)  # noqa: T201 - its answer
    watched = [awake] if stay else [awake, sys.stdin.fileno()]
    select.select(watched, [], [])
    unshare.kill()
    unshare.wait()
    _remove_cgroups()


def _preparations(folder: Path, pause: str) -> str:
    """Sockets, logs of pods and names of network namespaces go to memory, and so vanish with it."""
    lines = ["mount -t proc proc /proc", "mount -t tmpfs -o mode=755 tmpfs /run", "mount -t tmpfs tmpfs /var/log"]
    lines += ["mkdir -p /run/etcd /run/netns", "mount --bind /run/netns /run/netns", "mount --make-rshared /run/netns"]
    for name, value in SYSCTLS.items():
        file = f"/run/{name.replace('/', '.')}"
        lines += [f"echo {value} > {file}", f"mount --bind {file} /proc/sys/{name}"]
    here = shlex.quote(str(folder))
    lines += [f"mount --bind {here} {here}", f"mount --make-rshared {here}"]
    return "\n".join([*lines, f"exec {shlex.quote(pause)}"])


def _first(unshare: "subprocess.Popen[bytes]") -> int:
    """The id of the first process within, once it is the pause program and so all is prepared."""
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    while unshare.poll() is None:
        with suppress(OSError, ValueError):
            process_id = int(children.read_text())
            if Path(f"/proc/{process_id}/comm").read_text() == "pause\n":
                return process_id
        time.sleep(0.01)
    raise SystemExit("the namespaces could not be made")


def _remove_cgroups() -> None:
    """Those of the pods; they are empty once the last process has gone, which takes the kernel a moment."""
    deadline = time.monotonic() + 10
    while left := [top for pattern in ("kubepods", "*/kubepods") for top in CGROUPS.glob(pattern)]:
        for top in left:
            for group in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                with suppress(OSError):
                    group.rmdir()
            with suppress(OSError):
                top.rmdir()
        if time.monotonic() > deadline:
            raise SystemExit(f"these cgroups could not be removed: {left}")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
