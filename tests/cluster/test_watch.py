"""What a front makes of the board's answers, without a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dalle_server.cluster.connection import Deployed
from dalle_server.cluster.watch import SILENT_S, Introduction, Watch

pytestmark = pytest.mark.cluster


class Board:
    """Answers with whatever `replicas` are just now."""

    def __init__(self) -> None:
        self.replicas: list[dict[str, Any]] = []

    @property
    def look(self) -> Any:
        return self

    async def remote(self, front: str, previews: Any) -> list[dict[str, Any]]:
        return self.replicas


def replica(may_be_none: bool) -> dict[str, Any]:
    alike = {"weights": "d", "runner": "fake", "device_name": "", "dtype": "fp32", "build": None, "state": "ready"}
    numbers = {"num_slots": 4, "running": 0, "waiting": 0, "step_s": None, "since": 0.0}
    return {"replica": "r1", "drawn_as": "d", **alike, **numbers, "may_be_none": may_be_none}


async def adopt(found: Introduction) -> None:
    raise AssertionError("the weights are the same")


@pytest.mark.parametrize("may_be_none", [False, True])
def test_a_board_without_replicas_is_silent_unless_there_may_be_none(may_be_none: bool) -> None:
    board = Board()
    watch = Watch(Deployed(board, board), adopt)  # type: ignore[arg-type]

    def silent_after(replicas: list[dict[str, Any]]) -> bool:
        board.replicas = replicas
        watch.heard_at -= SILENT_S + 1
        asyncio.run(watch.ask())
        return watch.is_silent

    assert not silent_after([replica(may_be_none)])
    assert silent_after([]) is not may_be_none
    assert watch.replicas == ()
    assert not silent_after([replica(may_be_none)])


def test_wishes_outlive_a_board_that_is_away() -> None:
    class Away(Board):
        async def remote(self, front: str, previews: Any) -> list[dict[str, Any]]:
            raise ConnectionError

    watch = Watch(Deployed(Away(), Away()), adopt)  # type: ignore[arg-type]
    watch.want_previews("part", 1)
    with pytest.raises(ConnectionError):
        asyncio.run(watch.ask())
    assert watch._previews == {"part": 1}
