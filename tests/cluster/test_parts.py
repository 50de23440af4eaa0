"""The parts of a request told as one generation, without a cluster."""

from __future__ import annotations

import pytest

from dalle_server.cluster.parts import Assembly
from dalle_server.engine.stats import Observer
from dalle_server.errors import DeadlineExceeded
from dalle_server.generation import Failed, Generation
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
