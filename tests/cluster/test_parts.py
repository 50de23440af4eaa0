"""The parts of a request told as one generation, without a cluster."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dalle_server.cluster.parts import Assembly
from dalle_server.engine.stats import Observer
from dalle_server.errors import DeadlineExceeded
from dalle_server.generation import Failed, GeneratedImage, Generation, ImageReady, Started
from dalle_server.request import GenerationRequest

pytestmark = pytest.mark.cluster


def test_the_time_limit_that_is_told_is_the_whole_requests() -> None:
    request = GenerationRequest.of("a cat", 2, seed=1, timeout_s=600)
    generation = Generation(request, request.sampling)
    generation.submitted_at -= 400  # it has waited so long already
    assembly = Assembly(generation, 16, Observer(), lambda assembly: None)
    for index in range(2):
        left_s = assembly.request_of(index).timeout_s
        assert left_s is not None and left_s <= 200
        assembly.take(index, Failed(DeadlineExceeded.after(left_s)), "weights")
    end = generation.terminal
    assert isinstance(end, Failed) and isinstance(end.error, DeadlineExceeded)
    assert end.error.message == "not done within its time limit of 600 s"


def test_a_picture_that_is_drawn_twice_is_told_once() -> None:
    request = GenerationRequest.of("a cat", 2, seed=1)
    generation = Generation(request, request.sampling)
    assembly = Assembly(generation, 16, Observer(), lambda assembly: None)
    image = GeneratedImage(0, request.images[0], np.zeros((8, 8, 3), np.uint8), np.zeros(16, np.int32))
    for _ in range(2):
        assembly.take(0, ImageReady(image), "weights")
    told = [type(event) for event in itertools.takewhile(lambda event: event, generation.events(poll_s=0.001))]
    assert told == [Started, ImageReady]
