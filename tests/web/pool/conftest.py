"""Every pool that a test made is stopped at its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web.pool.worlds import World


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    made: list[World] = []
    yield made
    for world in made:
        world.gate.set()
        world.pool.stop()
        world.thread.join(10)
        assert not world.thread.is_alive()
