"""Towards a given picture: distances that are the same on every machine, and what they do to a draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dalle_server.engine.pull import LONGEST, CodeDistances
from dalle_server.engine.runners.base import StepRow
from dalle_server.errors import InvalidRequest, NotSupported
from dalle_server.request import FREE, GenerationRequest, ImageKey, SamplingParams
from tests.engine.conftest import alone, new_engine, run, same
from tests.fake_runner import FakeRunner

KEEP_ALL = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, condition_scale=1.0)
NEAR = tuple(range(3, 19))
PLAIN = GenerationRequest.of("a cat", 3, seed=4, sampling=KEEP_ALL)


def codebook(codes: int = 50, width: int = 8) -> np.ndarray:
    return np.random.default_rng(7).normal(0, 0.3, (codes, width)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 3, 8, 256])
def test_distances_are_whole_numbers_and_those_of_the_codebook(width: int) -> None:
    table = codebook(width=width)
    distances = CodeDistances(table)
    ids = np.arange(len(table))
    found = distances.to(ids)
    assert (found == np.rint(found)).all() and found.max() <= 2**24 and np.abs(distances.codes).max() <= LONGEST
    exact = np.square(table[:, None].astype(np.float64) - table[None]).sum(-1)
    assert np.allclose(found * distances.unit, exact / exact.mean(), atol=0.01, rtol=0.02)
    assert (np.diag(found) == 0).all() and np.isclose((found * distances.unit).mean(), 1)


def test_no_order_of_adding_changes_a_bit() -> None:
    """What makes a picture the same on every CPU and GPU: sums of floats alone would not be."""
    distances = CodeDistances(codebook(300, 256))
    shuffled = CodeDistances(codebook(300, 256))
    order = np.random.default_rng(1).permutation(256)
    shuffled.codes = np.ascontiguousarray(distances.codes[:, order])
    ids = np.arange(0, 300, 7)
    expected = distances.to(ids)
    assert shuffled.to(ids).tobytes() == expected.tobytes()
    wide = distances.codes.astype(np.float64)
    assert (expected == np.square(wide[ids][:, None] - wide[None]).sum(-1)).all()
    assert all(distances.to(ids[n : n + 1])[0].tobytes() == expected[n].tobytes() for n in range(0, len(ids), 5))


@pytest.mark.parametrize("table", [np.zeros((4, 3), np.float32), np.ones((4, 3), np.float16)])
def test_codes_that_are_all_alike_are_nowhere_far(table: np.ndarray) -> None:
    rows = [StepRow(0, 0, ImageKey(1), KEEP_ALL, near=2, pull=1e6)]
    logits = np.arange(4, dtype=np.float32)[None]
    assert (CodeDistances(table).lowered(logits, rows) == logits).all()


def test_only_rows_that_ask_are_lowered_and_each_by_its_own() -> None:
    distances, logits = CodeDistances(codebook()), np.random.default_rng(2).normal(0, 3, (4, 50)).astype(np.float32)
    asked = [(5, 2.0), (FREE, 0.0), (5, 0.5), (9, 2.0)]
    rows = [StepRow(n, 0, ImageKey(1, n), KEEP_ALL, near=near, pull=pull) for n, (near, pull) in enumerate(asked)]
    before = logits.copy()
    together = distances.lowered(logits, rows)
    assert (logits == before).all()
    for n, (near, pull) in enumerate(asked):
        assert distances.lowered(logits[n : n + 1], rows[n : n + 1])[0].tobytes() == together[n].tobytes()
        fall = 0 if near == FREE else pull * distances.to(np.array([near]))[0] * distances.unit
        assert np.allclose(logits[n] - together[n], fall, atol=1e-4)
    assert distances.lowered(logits, rows[1:2]) is logits


def pulled(pull: float, near: Sequence[int] = NEAR) -> GenerationRequest:
    return replace(PLAIN, near_tokens=tuple(near), pull=pull)


def test_the_stronger_the_nearer_and_without_end_the_given_tokens() -> None:
    runner = FakeRunner()
    distances = CodeDistances(runner._distances.codes)
    far = []
    for request in (PLAIN, pulled(1.0), pulled(4.0), pulled(16.0)):
        tokens = np.concatenate([image.tokens for image in alone(request)])
        far.append(float(distances.to(np.array(NEAR * 3))[np.arange(48), tokens].mean()))
    assert far == sorted(far, reverse=True) and len(set(far)) == 4
    assert all(image.tokens.tolist() == list(NEAR) for image in alone(pulled(1e5)))


def test_alone_and_in_company_the_same() -> None:
    wanted = [replace(request, id=f"{n}") for n, request in enumerate([pulled(2.0), PLAIN, pulled(5.0), pulled(2.0)])]
    expected = [alone(request) for request in wanted]
    engine = new_engine(FakeRunner(num_slots=3))
    handles = [engine.submit(request) for request in wanted]
    run(engine)
    for handle, images in zip(handles, expected, strict=True):
        assert same(handle.result(), images)
    assert not same(expected[0], expected[1]) and same(expected[0], expected[3])


def test_places_that_nothing_draws_are_as_without() -> None:
    near = (*([FREE] * 8), *NEAR[8:])
    (free, *_), (half, *_) = alone(PLAIN), alone(pulled(1e5, near))
    assert free.tokens[:8].tolist() == half.tokens[:8].tolist() != list(NEAR[:8])
    assert half.tokens[8:].tolist() == list(NEAR[8:])


def test_what_is_told_of_likelihood_is_under_the_pull() -> None:
    """Where every code but one is far away, that one was certain; over the whole codebook it was not."""
    (image, *_) = alone(replace(pulled(1e5), logprobs=True))
    assert image.logprobs is not None
    assert (image.logprobs[:, 1] > -1e-6).all() and (image.logprobs[:, 0] < -1).all()


def test_a_runner_that_cannot_says_so_and_grids_are_checked() -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, features=())
    with pytest.raises(NotSupported, match="use a strength of 0 or 1") as caught:
        new_engine(runner).submit(pulled(2.0))
    assert caught.value.param == "strength"
    engine = new_engine()
    senseless = {NEAR[1:]: "near_tokens needs 16 ids, not 15", (64, *NEAR[1:]): "near_tokens: 64 is no codebook"}
    for near, says in senseless.items():
        with pytest.raises(InvalidRequest, match=says) as refused:
            engine.submit(pulled(2.0, near))
        assert refused.value.param == "near_tokens"


def test_it_goes_over_the_wire_and_half_of_it_does_not() -> None:
    asked = pulled(2.5)
    assert GenerationRequest.from_dict(asked.to_dict()) == asked
    assert not {"pull", "near_tokens"} & set(PLAIN.to_dict())
    for change in ({"pull": 0.0}, {"near_tokens": ()}, {"pull": -1.0}, {"pull": "2"}, {"near_tokens": [1.5]}):
        with pytest.raises(InvalidRequest) as caught:
            GenerationRequest.from_dict({**asked.to_dict(), **change})
        assert caught.value.param in change | {"pull": None}
