"""One model of this server: where it comes from, and the life of its engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.engine.stats import EngineStats, Observer
from dalle_server.engine.tracker import Place
from dalle_server.errors import DalleServerError, EngineDown, NotReady
from dalle_server.generation import Generation
from dalle_server.models.card import ModelCard
from dalle_server.models.config import ModelConfig
from dalle_server.request import GenerationRequest, Pixels, Tokens
from dalle_server.web.bookkeeping import Bookkeeping

ModelState = Literal["absent", "on_disk", "loading", "loaded", "failed"]


class ServingEngine(Protocol):
    """What the web layer needs of `engine.Engine`: so much may a test's stand-in or a cluster's proxy offer instead."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def info(self) -> RunnerInfo: ...

    @property
    def digest(self) -> str:
        """Of the weights."""
        ...

    @property
    def determinism(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def most_images(self) -> int:
        """Of a request that can ever find room."""
        ...

    def start(self) -> None: ...

    def stats(self) -> EngineStats: ...

    def hold(self) -> Place: ...

    def submit(self, request: GenerationRequest, held: Place | None = None) -> Generation: ...

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]: ...

    def detokenize(self, tokens: Tokens, *, seamless: bool = False) -> Pixels: ...

    def stop(self, drain_s: float = 0.0) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One of the processes that draw for an engine, as it last said; `running` and `waiting` are pictures."""

    replica: str
    state: str
    weights: str  # their digest
    runner: str
    device_name: str
    dtype: str
    build: str | None
    num_slots: int
    running: int
    waiting: int


@runtime_checkable
class Replicated(Protocol):
    """An engine whose pictures several processes draw."""

    @property
    def replicas(self) -> Sequence[ReplicaStatus]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """`load` returns a started engine that tells the observer. `name` "": as the engine's model calls itself.

    `card` tells of the model before it is loaded; None where nobody can.
    """

    load: Callable[[Observer], ServingEngine]
    name: str = ""
    card: Callable[[], ModelCard | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Known:
    """What an engine said of itself: still true when it is unloaded."""

    config: ModelConfig
    info: RunnerInfo
    digest: str
    determinism: str
    num_slots: int

    @classmethod
    def of(cls, engine: ServingEngine) -> Known:
        return cls(engine.config, engine.info, engine.digest, engine.determinism, engine.stats().num_slots)


@dataclass(slots=True)
class Totals:
    """Counters of engines that are gone."""

    images: int = 0
    image_tokens: int = 0
    previews: int = 0
    faults: int = 0

    def add(self, stats: EngineStats) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(stats, name))


@dataclass(slots=True, eq=False)
class Model:
    """Its fields are changed by the pool alone, under the pool's lock."""

    source: Source
    bookkeeping: Bookkeeping
    is_loading: bool = False
    engine_now: ServingEngine | None = None
    failure: DalleServerError | None = None
    failed_at: float = 0.0  # time.monotonic()
    known: Known | None = None
    uses: int = 0  # requests and jobs that hold it
    used_at: float = field(default_factory=time.monotonic)
    leaves: bool = False  # it takes no more requests, so that another model finds room
    past: Totals = field(default_factory=Totals)

    @property
    def name(self) -> str:
        return self.source.name or (self.known.config.name if self.known else "")

    @property
    def digest(self) -> str:
        """Of its weights; empty while it is not known."""
        if self.known is not None:
            return self.known.digest
        return self.card.digest if self.card else ""

    @property
    def card(self) -> ModelCard | None:
        return self.source.card()

    @property
    def memory_bytes(self) -> int:
        """That it takes when it is loaded, about; 0: not known."""
        return self.card.memory_bytes if self.card else 0

    @property
    def state(self) -> ModelState:
        if self.engine_now is not None:
            return "loaded"
        if self.is_loading:
            return "loading"
        if self.failure is not None:
            return "failed"
        return "absent" if self.known is None and self.card and self.card.place == "absent" else "on_disk"

    @property
    def engine(self) -> ServingEngine:
        """Stays, while somebody holds the model, unless it fails. Raises NotReady; EngineDown once it is given up."""
        engine, failure = self.engine_now, self.failure
        if engine is not None:
            return engine
        if failure is not None and not self.is_loading:
            raise EngineDown(f"the model {self.name!r} is not available: {failure.message}")
        raise NotReady(f"the model {self.name!r} is not loaded; try again shortly", retry_after_s=2)

    @property
    def is_idle(self) -> bool:
        """Nobody holds it, and nothing that it accepted is unfinished."""
        if self.uses:
            return False
        stats = self.engine_now.stats() if self.engine_now else None
        return stats is None or not (stats.live_requests or stats.running or stats.waiting or stats.detokenizing)
