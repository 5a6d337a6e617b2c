"""`python -m tests.kube tools|image|sbom FILE|up|down`: what the tests do first, for people who want to look around."""

import subprocess
import sys

from tests.kube import cluster, image, tools
from tests.kube.steps import step


def main() -> int:
    """2 for a wrong word, 1 where a node can't run."""
    match sys.argv[1:]:
        case ["down"]:
            if not cluster.end_left_over():
                print("no cluster runs")  # noqa: T201
            return 0
        case ["sbom", file]:
            tools.fetch()
            with step("list what the image is made of"):
                source = f"docker-archive:{image.build()}"
                syft = [str(tools.BIN / "syft"), "scan", source, "--quiet", "--output", f"cyclonedx-json={file}"]
                subprocess.run(syft, check=True)
            return 0
        case ["tools" | "image" | "up" as word]:
            pass
        case _:
            print(__doc__)  # noqa: T201
            return 2
    if reason := tools.missing():
        print(f"not here: {reason}")  # noqa: T201
        return 1
    try:
        tools.install()
    except LookupError as exc:
        print(f"Type, then again:\n  {exc}")  # noqa: T201
        return 1
    if word in {"image", "up"}:
        archive = image.build()
        print(archive)  # noqa: T201
    if word == "up":
        with step("cluster in all"):
            started = cluster.Cluster(images=[archive], stay=True).start()
        print(f"export KUBECONFIG={started.kubeconfig} PATH={tools.BIN}:$PATH")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
