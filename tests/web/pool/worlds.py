"""Pools of models whose engines have no weights."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from dalle_server.config import Settings
from dalle_server.engine.stats import EngineStats, Observer
from dalle_server.models.card import ModelCard
from dalle_server.web.bookkeeping import Bookkeeping
from dalle_server.web.operations.metrics import Metrics
from dalle_server.web.pool.model import Model, ServingEngine, Source
from dalle_server.web.pool.pool import Hold, Pool
from tests.web.scripted_engine import ScriptedEngine


class Busy(ScriptedEngine):
    """Pictures under way, as many as the test says."""

    live = 0
    stopped = False

    def stats(self) -> EngineStats:
        return replace(super().stats(), live_requests=self.live)

    def stop(self, drain_s: float = 0.0) -> None:
        self.stopped = True


class World:
    """A pool of models `name: megabytes`, and what became of them. Clear `gate` to hold every load."""

    def __init__(self, sizes: dict[str, int], **pool_kw: Any):
        self.engines: dict[str, list[Busy]] = {name: [] for name in sizes}
        self.faults: dict[str, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.loading: list[str] = []
        models = [self._model(name, size) for name, size in sizes.items()]
        self.pool = Pool(models, **pool_kw)
        self.thread = self.pool.start()

    def _model(self, name: str, size: int) -> Model:
        def load(observer: Observer) -> ServingEngine:
            self.loading.append(name)
            self.gate.wait(10)
            if name in self.faults:
                raise self.faults[name]
            self.engines[name].append(Busy(digest=name * 16))
            return self.engines[name][-1]

        card = ModelCard(name=name, title=name, place="on_disk", size_bytes=size, memory_bytes=size * 10**6)
        return Model(Source(load, name, lambda: card), Bookkeeping(Settings(), Metrics(), lambda: name))

    def model(self, name: str) -> Model:
        found = self.pool.find(name)
        assert found is not None
        return found

    def use(self, name: str) -> Hold:
        """Held and loaded."""
        held = self.pool.hold(self.model(name))
        assert held.wait(10)
        return held

    def states(self) -> dict[str, str]:
        return {model.name: model.state for model in self.pool.models}


def world_of(worlds: list[World], *args: Any, **kw: Any) -> World:
    worlds.append(World(*args, **kw))
    world = worlds[-1]
    assert world.pool.wait_until_first_is_over(10)
    return world
