"""One Ray for all tests of a process, and what runs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dalle_server.cluster.app import Spec
from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from tests.cluster.engines import SLOW, SPEC
from tests.cluster.helping import PATIENCE_S, deployed
from tests.cluster.ray_here import ray_cluster
from tests.web.waits import until


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


@pytest.fixture(scope="session")
def connection(address: str) -> Iterator[Connection]:
    connection = Connection(address)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def quick(connection: Connection) -> str:
    """An application of two replicas, 0.3 s a picture."""
    return deployed("quick", SPEC)


@pytest.fixture(scope="session")
def slow(connection: Connection) -> str:
    """Of one, 16 s a picture: each is cancelled before it is done."""
    return deployed("slow", SLOW, step_s=1.0)


@pytest.fixture
def front(connection: Connection) -> Iterator[Callable[..., ClusterEngine]]:
    """front(app) → an engine that draws on the application's replicas."""
    engines: list[ClusterEngine] = []

    def make(app: str, spec: Spec = SPEC, max_waiting_images: int = 64) -> ClusterEngine:
        handle = find_or_deploy(app, spec, may_deploy=False)
        engine = ClusterEngine(connection, handle, most_slots=8, max_waiting_images=max_waiting_images)
        engines.append(engine)
        until(lambda: len(engine.replicas) == int(spec.replicas), PATIENCE_S)
        return engine

    yield make
    for engine in engines:
        engine.stop()
