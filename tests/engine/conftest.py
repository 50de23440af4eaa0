"""Helpers of the engine's tests: engines on a fake runner, and pictures made alone to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from dalle_server.engine.engine import Engine
from dalle_server.generation import (
    TERMINAL,
    Cancelled,
    Event,
    GeneratedImage,
    Generation,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.request import GenerationRequest
from tests.fake_runner import FakeRunner, FakeTokenizer

NUM_TOKENS = 16  # of the fake model's pictures

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


def events_of(generation: Generation) -> list[Event]:
    """Every event of a generation that has ended: once, and with the last one."""
    assert generation.terminal is not None, "not ended"
    events = [event for event in generation.events() if event is not None]
    assert [isinstance(event, TERMINAL) for event in events] == [False] * (len(events) - 1) + [True]
    return events


def check_order(events: Sequence[Event]) -> None:
    """queued → started → (progress | preview | image)* → a terminal event; only a cancel comes before the start."""
    positions = [event.position for event in events if isinstance(event, Queued)]
    kinds = [type(event) for event in events[:-1]]
    assert kinds[0] is Queued and positions[-1] >= 0
    if Started in kinds:
        started = kinds.index(Started)
        assert set(kinds[:started]) == {Queued} and not {Queued, Started} & set(kinds[started + 1 :])
    else:
        assert set(kinds) == {Queued} and isinstance(events[-1], Cancelled)
    finished: set[int] = set()
    for event in events:
        if isinstance(event, Preview):
            assert event.index not in finished and 0 < event.tokens_done < NUM_TOKENS
        elif isinstance(event, ImageReady):
            assert event.image.index not in finished
            finished.add(event.image.index)
        elif isinstance(event, Progress):
            assert 0 < event.tokens_done <= event.num_tokens
