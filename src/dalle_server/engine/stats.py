"""Counters of a running engine, for metrics, and the snapshots of them that everyone else reads."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ParamSpec

from dalle_server.generation import Cancelled, Done, Failed, Generation

SMOOTHING = 0.1  # weight of the newest measurement in a moving average

P = ParamSpec("P")
logger = logging.getLogger(__name__)


class Observer:
    """Told what happens, in the engine's own threads: be quick. Override what you need."""

    def on_step(self, num_images: int, seconds: float) -> None:
        """One token was written for each of `num_images` pictures."""

    def on_preview(self, generation: Generation) -> None:
        """A preview was delivered."""

    def on_finished(self, generation: Generation, event: Done | Failed | Cancelled) -> None:
        """An accepted request ended."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since start, as they were at one moment; `running`, `waiting` and `detokenizing` are pictures.

    A copy that never changes: an engine may live in another process than those who ask.
    """

    num_slots: int
    running: int = 0
    waiting: int = 0
    detokenizing: int = 0
    live_requests: int = 0
    steps: int = 0
    image_tokens: int = 0
    images: int = 0
    previews: int = 0
    faults: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)  # "done" | "failed" | "cancelled" → requests
    batch_images: Mapping[int, int] = field(default_factory=dict)  # pictures in a step → steps
    step_s: float | None = None  # moving average of one step, whatever it held
    detokenize_s: float | None = None  # moving average of one batch of grids to pixels


@dataclass(slots=True)
class Counters:
    """What the engine's threads count; `snapshot` is what others see of it."""

    num_slots: int
    steps: int = 0
    image_tokens: int = 0
    images: int = 0
    previews: int = 0
    faults: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    batch_images: Counter[int] = field(default_factory=Counter)
    step_s: float | None = None
    detokenize_s: float | None = None

    def snapshot(self, *, running: int, waiting: int, detokenizing: int, live_requests: int) -> EngineStats:
        # dict() of a Counter is one operation of the interpreter: no thread can count in the middle of it.
        counted = {name: getattr(self, name) for name in self.__slots__}
        counted["requests"] = MappingProxyType(dict(self.requests))
        counted["batch_images"] = MappingProxyType(dict(self.batch_images))
        return EngineStats(
            running=running, waiting=waiting, detokenizing=detokenizing, live_requests=live_requests, **counted
        )

    def count_step(self, num_images: int, seconds: float) -> None:
        self.steps += 1
        self.image_tokens += num_images
        self.batch_images[num_images] += 1
        self.step_s = _moving_average(self.step_s, seconds)

    def count_detokenize(self, seconds: float) -> None:
        self.detokenize_s = _moving_average(self.detokenize_s, seconds)


def notify(call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call an observer. Its errors are logged: what watches the engine must not stop it."""
    try:
        call(*args, **kwargs)
    except Exception:
        logger.exception("an observer of the engine failed")


def _moving_average(average: float | None, value: float) -> float:
    return value if average is None else average + SMOOTHING * (value - average)
