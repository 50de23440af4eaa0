"""Several servers on one PostgreSQL, each test with a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dalle_server.web.jobs.storage.store import Store
from tests.web.jobs.postgres import Postgres, postgres
from tests.web.jobs.storage.fronts import Fronts


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def database(server: Postgres, tmp_path: Path) -> str:
    """A fresh one."""
    name = f"jobs_{abs(hash(str(tmp_path)))}"
    engine = sa.create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.url.replace("+psycopg", "").rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture
def stores(database: str, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Nobody beats for them: their leases outlast a busy machine, and a test that waits for the end shortens one."""
    two = [Store(tmp_path, database, lease_s=600.0) for _ in range(2)]
    for each in two:
        each.take_up()
    yield two[0], two[1]
    for each in two:
        each.close()


@pytest.fixture
def fronts(database: str, tmp_path: Path) -> Fronts:
    return Fronts(tmp_path, database, step_s=0.05)
