"""Helpers of the engine's tests: engines on a fake runner, and pictures made alone to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.fake import FakeRunner, FakeTokenizer
from dalle_server.generation import GeneratedImage, GenerationRequest

MakeEngine = Callable[..., Engine]


def new_engine(runner: FakeRunner | None = None, **options: Any) -> Engine:
    """Not started; every token is reported."""
    return Engine(runner or FakeRunner(), FakeTokenizer(), **{"progress_every_s": 0.0, **options})


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """new_engine, stopped at the end whatever happens."""
    engines: list[Engine] = []

    def make(runner: FakeRunner | None = None, **options: Any) -> Engine:
        engines.append(new_engine(runner, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.stop()


def run(engine: Engine) -> None:
    while engine.step():
        pass


def alone(request: GenerationRequest) -> tuple[GeneratedImage, ...]:
    """The request's pictures from an engine of its own, one slot, nobody else."""
    engine = new_engine(FakeRunner(num_slots=1))
    generation = engine.submit(request)
    run(engine)
    return generation.result()


def same(images: Sequence[GeneratedImage], others: Sequence[GeneratedImage]) -> bool:
    return len(images) == len(others) and all(
        a.key == b.key and np.array_equal(a.pixels, b.pixels) and np.array_equal(a.tokens, b.tokens)
        for a, b in zip(images, others, strict=True)
    )
