"""Seamless pictures among others: each is decoded as it was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dalle_server.errors import InvalidRequest, NotSupported
from dalle_server.generation import Preview
from dalle_server.request import GenerationRequest
from tests.engine.conftest import new_engine, run
from tests.fake_runner import FakeRunner

REQUEST = GenerationRequest.of("a", 2, seed=5)


def test_alone_and_in_company_the_same() -> None:
    runner = FakeRunner()
    engine = new_engine(runner)
    requests = [
        replace(REQUEST, seamless=seamless, id=f"{number}") for number, seamless in enumerate((True, False) * 2)
    ]
    handles = [engine.submit(request) for request in requests]
    run(engine)
    for request, handle in zip(requests, handles, strict=True):
        for image in handle.result():
            expected = runner.detokenize(image.tokens[None], wraps=request.seamless)[0]
            np.testing.assert_array_equal(image.pixels, expected)
    first, second = (handle.result()[0] for handle in handles[:2])
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert not np.array_equal(first.pixels, second.pixels)


def test_previews_are_decoded_alike() -> None:
    runner = FakeRunner()
    engine = new_engine(runner)
    handle = engine.submit(replace(REQUEST, seamless=True, preview_every=8))
    asked: list[bool] = []
    detokenize = runner.detokenize

    def watched(grids: np.ndarray, *, wraps: bool = False) -> np.ndarray:
        asked.append(wraps)
        return detokenize(grids, wraps=wraps)

    runner.detokenize = watched
    run(engine)
    assert any(isinstance(event, Preview) for event in handle.events())
    assert asked and all(asked)


def test_a_runner_that_cannot_says_so() -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, features=())
    with pytest.raises(NotSupported, match="leave seamless out") as caught:
        new_engine(runner).submit(replace(REQUEST, seamless=True))
    assert caught.value.param == "seamless"


def test_it_goes_over_the_wire() -> None:
    asked = replace(REQUEST, seamless=True)
    assert GenerationRequest.from_dict(asked.to_dict()) == asked
    assert "seamless" not in REQUEST.to_dict()
    with pytest.raises(InvalidRequest, match="seamless must be true or false"):
        replace(REQUEST, seamless=1)  # type: ignore[arg-type]
