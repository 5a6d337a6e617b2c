"""The image and the node, once for the whole run; skips with the reason where this machine can't have them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube import image as images
from tests.kube import tools
from tests.kube.cluster import Cluster
from tests.kube.image import Archive, Container


@pytest.fixture(scope="session")
def programs() -> None:
    """Everything that is fetched or built beforehand."""
    if reason := tools.missing():
        pytest.skip(reason)
    try:
        tools.install()
    except LookupError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def image(programs: None) -> Path:
    """The relay's image as a docker-archive."""
    return images.build(revision="0123456789abcdef0123456789abcdef01234567")


@pytest.fixture(scope="session")
def next_image(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same layers under another tag and with another label: a new image to the node."""
    archive = tmp_path_factory.mktemp("image") / "next.tar"
    images.retag(image, archive, images.NEXT, {"org.opencontainers.image.version": images.NEXT})
    return archive


@pytest.fixture(scope="session")
def archive(image: Path) -> Iterator[Archive]:
    """What is in the image."""
    with Archive(image) as archive:
        yield archive


@pytest.fixture(scope="session")
def container(image: Path) -> Iterator[Container]:
    """For commands within the image, without a node."""
    with Container() as container:
        yield container


@pytest.fixture(scope="session")
def cluster(image: Path) -> Iterator[Cluster]:
    """One node that knows the image; tests take a namespace of their own each."""
    with Cluster(images=[image]) as cluster:
        yield cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh one that enforces PodSecurity `restricted`, removed with all that is in it."""
    name = f"t{abs(hash(request.node.nodeid)) % 10**8}-{os.getpid()}"
    cluster.namespace(name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "pods", "--all", "--namespace", name, "--grace-period=1")
