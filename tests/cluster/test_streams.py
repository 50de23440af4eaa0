"""What a front asks of replicas whose engines are down, without a cluster: scripted answers in place of a handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from dalle_server.cluster import streams
from dalle_server.cluster.parts import Assembly
from dalle_server.cluster.streams import Streams
from dalle_server.engine.stats import Observer
from dalle_server.errors import DeadlineExceeded, EngineFault, NotReady
from dalle_server.generation import Done, Event, Failed, GeneratedImage, Generation, ImageReady
from dalle_server.request import GenerationRequest
from dalle_server.wire import event_to_dict

pytestmark = pytest.mark.cluster
FAULT = Failed(EngineFault("the engine failed while drawing this picture; try again"))
DOWN = Failed(NotReady("the engine is restarting; try again shortly", retry_after_s=5))


class Replicas:
    """A Serve handle; `answer(n)` are the events of the n-th call, counted from 1."""

    def __init__(self, answer: Callable[[int], list[Event]]):
        self.asked: list[dict[str, Any]] = []
        self._answer = answer

    def options(self, **options: Any) -> Any:
        return self

    @property
    def submit(self) -> Any:
        return self

    def remote(self, request: dict[str, Any], front: str) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(request)
        return self._told(self._answer(len(self.asked)))

    async def _told(self, events: list[Event]) -> AsyncIterator[dict[str, Any]]:
        yield {"replica": "r1", "weights": "d", "events": [event_to_dict(event) for event in events]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "AGAIN_S", 0.001)
    monkeypatch.setattr(streams, "DeploymentResponseGenerator", AsyncIterator)


def drawn(request: GenerationRequest, replicas: Replicas) -> Any:
    """How the request ends."""

    async def drawing() -> Any:
        generation = Generation(request, request.sampling)
        ended = asyncio.Event()
        assembly = Assembly(generation, 16, Observer(), lambda assembly: ended.set())
        Streams(replicas, "front", lambda part, every: None).begin(assembly)  # type: ignore[arg-type]
        await ended.wait()
        return generation.terminal

    return asyncio.run(drawing())


def picture(request: GenerationRequest) -> list[Event]:
    image = GeneratedImage(0, request.images[0], np.zeros((8, 8, 3), np.uint8), np.zeros(16, np.int32))
    return [ImageReady(image), Done((image,), 0.0, 0.0)]


def test_refusals_of_an_engine_that_is_down_are_no_attempts() -> None:
    request = GenerationRequest.of("a cat", seed=1)
    replicas = Replicas(lambda n: [FAULT] if n == 1 else [DOWN] if n < 9 else picture(request))
    assert isinstance(drawn(request, replicas), Done)
    assert len(replicas.asked) == 9


def test_refusals_end_with_the_time_limit() -> None:
    end = drawn(GenerationRequest.of("a cat", seed=1, timeout_s=0.3), Replicas(lambda n: [DOWN]))
    assert isinstance(end.error, DeadlineExceeded) and "its time limit of 0.3 s" in end.error.message


def test_a_picture_that_two_engines_fail_at_is_given_up() -> None:
    replicas = Replicas(lambda n: [FAULT] if n % 2 else [DOWN])
    end = drawn(GenerationRequest.of("a cat", seed=1), replicas)
    assert isinstance(end.error, EngineFault) and "lost twice" in end.error.message
    assert len(replicas.asked) == 3


def test_a_stream_that_ends_after_its_picture_is_not_asked_again() -> None:
    request = GenerationRequest.of("a cat", 2, seed=1)
    replicas = Replicas(lambda n: picture(request)[:1])
    assert isinstance(drawn(request, replicas), Done)
    assert len(replicas.asked) == 2
