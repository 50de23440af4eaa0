"""Where replicas say how they are, and fronts that they live and which previews they want: one small actor for all.

They do not ask each other: a replica that has as many pictures as it may have takes no further call, whatever it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

REPORT_EVERY_S = 1.0  # a replica hears at once what fronts want, and says how it is at least so often
STALE_S = 5.0  # a replica that is silent for so long is gone
KEPT_S = 60.0  # that a wish for previews is told to replicas, and a silent front is remembered


class Board:
    """A Ray Serve deployment of one replica. What it knows is said again within seconds when Serve starts another."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._replicas: dict[str, tuple[float, dict[str, Any]]] = {}  # by name: when it spoke, what it said
        self._fronts: dict[str, float] = {}
        self._previews: dict[str, tuple[float, int]] = {}  # by part: when it was wanted, how often
        self._changed = asyncio.Event()

    async def report(self, told: dict[str, Any], heard: float) -> dict[str, Any]:
        """From a replica: how it is, and the `now` of the last answer (0: none). Answers when there is news.

        {"now", "up_s", "fronts": seconds since each spoke, "previews": what was wanted since `heard`, by part}.
        """
        self._replicas[told["replica"]] = time.monotonic(), told
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), REPORT_EVERY_S)
        now = time.monotonic()
        wanted = {part: every for part, (at, every) in self._previews.items() if at >= heard or heard > now}
        fronts = {front: now - at for front, at in self._fronts.items()}
        return {"now": now, "up_s": now - self._started, "fronts": fronts, "previews": wanted}

    async def look(self, front: str, previews: Mapping[str, int]) -> list[dict[str, Any]]:
        """From a front that lives: of which parts it wants previews how often. Answers with all replicas."""
        now = time.monotonic()
        self._forget(now)
        self._fronts[front] = now
        if previews:
            self._previews |= {part: (now, every) for part, every in previews.items()}
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
        return [told for _, told in self._replicas.values()]

    def _forget(self, now: float) -> None:
        self._replicas = {name: said for name, said in self._replicas.items() if now - said[0] < STALE_S}
        self._fronts = {front: at for front, at in self._fronts.items() if now - at < KEPT_S}
        self._previews = {part: said for part, said in self._previews.items() if now - said[0] < KEPT_S}
