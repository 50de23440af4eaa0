"""What a request may ask for beyond its pictures, and what may be asked of an engine beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.base import LOGPROBS
from dalle_server.errors import EngineDown, InvalidRequest, NotReady, NotSupported, Overloaded
from dalle_server.request import FREE, GenerationRequest
from tests.engine.conftest import new_engine, run
from tests.fake_runner import FakeRunner

REQUEST = GenerationRequest.of("a", 3, seed=5)


def drawn(request: GenerationRequest, **options: Any) -> list:
    engine = new_engine(FakeRunner(**options))
    generation = engine.submit(request)
    run(engine)
    return list(generation.result())


def test_logprobs_come_with_the_picture_and_change_nothing_of_it() -> None:
    plain, told = drawn(REQUEST), drawn(replace(REQUEST, logprobs=True))
    for without, image in zip(plain, told, strict=True):
        np.testing.assert_array_equal(without.tokens, image.tokens)
        assert without.logprobs is None
        assert image.logprobs is not None and image.logprobs.shape == (image.tokens.size, 2)
        assert np.isfinite(image.logprobs).all() and (image.logprobs <= 0).all()


def test_they_are_a_function_of_the_request_alone() -> None:
    request = replace(REQUEST, logprobs=True)
    many, one = drawn(request, num_slots=8), drawn(request, num_slots=1, lookahead=0)
    for a, b in zip(many, one, strict=True):
        np.testing.assert_array_equal(a.logprobs, b.logprobs)


def test_a_whole_given_picture_is_scored_as_it_was_drawn() -> None:
    (image, *_) = drawn(replace(REQUEST, logprobs=True))
    given = replace(REQUEST, images=REQUEST.images[:1], forced_tokens=tuple(image.tokens.tolist()), logprobs=True)
    (scored,) = drawn(given)
    np.testing.assert_array_equal(scored.logprobs, image.logprobs)


def test_given_and_drawn_tokens_are_scored_alike() -> None:
    (image, *_) = drawn(replace(REQUEST, logprobs=True))
    half = [int(token) if n < 8 else FREE for n, token in enumerate(image.tokens)]
    (completed,) = drawn(replace(REQUEST, images=REQUEST.images[:1], forced_tokens=tuple(half), logprobs=True))
    np.testing.assert_array_equal(completed.logprobs, image.logprobs)


def test_a_runner_that_cannot_tell_refuses() -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, features=())
    engine = new_engine(runner)
    with pytest.raises(NotSupported, match="fake runner"):
        engine.submit(replace(REQUEST, logprobs=True))
    engine.submit(REQUEST)


def test_logprobs_go_over_the_wire() -> None:
    request = replace(REQUEST, logprobs=True)
    assert GenerationRequest.from_dict(request.to_dict()) == request
    assert "logprobs" not in REQUEST.to_dict()
    with pytest.raises(InvalidRequest, match="logprobs must be true or false, not 1"):
        GenerationRequest.of("a", logprobs=1)  # type: ignore[arg-type]


def test_an_engine_reads_the_pictures_that_it_paints() -> None:
    (image, *_) = drawn(REQUEST)
    engine = new_engine(FakeRunner())
    np.testing.assert_array_equal(engine.tokenize(image.pixels[None])[0], image.tokens)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((32, 32, 3), np.uint8), ((1, 32, 31, 3), np.uint8), ((1, 32, 32, 3), float)]
)
def test_pictures_of_another_shape_are_refused_with_both(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(InvalidRequest, match="N × 32 × 32 × 3 bytes, not"):
        new_engine(FakeRunner()).tokenize(np.zeros(shape, dtype))


def test_an_engine_that_cannot_read_says_so() -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, features=(LOGPROBS,))
    with pytest.raises(NotSupported, match="no encoder") as caught:
        new_engine(runner).tokenize(np.zeros((1, 32, 32, 3), np.uint8))
    assert caught.value.status == 501 and caught.value.param == "image"


def test_pictures_are_read_one_at_a_time() -> None:
    runner, reading, is_alone = FakeRunner(), threading.Semaphore(1), list[bool]()

    def read(_: np.ndarray) -> None:
        is_alone.append(reading.acquire(blocking=False))
        time.sleep(0.02)  # the others come meanwhile
        reading.release()

    runner.on_tokenize = read
    engine = new_engine(runner)
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    threads = [threading.Thread(target=engine.tokenize, args=(picture,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_alone == [True] * 4


def test_reading_that_finds_no_memory_is_an_overload_and_a_stopped_engine_reads_nothing() -> None:
    runner, picture = FakeRunner(), np.zeros((1, 32, 32, 3), np.uint8)

    def starve(_: np.ndarray) -> None:
        raise MemoryError

    runner.on_tokenize = starve
    engine = new_engine(runner)
    with pytest.raises(Overloaded):
        engine.tokenize(picture)
    engine.stop()
    with pytest.raises(NotReady):
        engine.tokenize(picture)


def test_a_runner_that_is_closed_while_it_reads_is_a_refusal() -> None:
    """By a stop, or by a fault in a step beside it."""
    picture = np.zeros((1, 32, 32, 3), np.uint8)

    def failing_after(what: Callable[[Engine, FakeRunner], object]) -> NotReady:
        runner = FakeRunner()
        engine = new_engine(runner, make_runner=FakeRunner)

        def closed(_: np.ndarray) -> None:
            what(engine, runner)
            raise RuntimeError("cannot schedule new futures after shutdown")

        runner.on_tokenize = closed
        with pytest.raises(NotReady, match="try again shortly") as refused:
            engine.tokenize(picture)
        return refused.value

    def crash(engine: Engine, runner: FakeRunner) -> None:
        def fail(rows: object) -> None:
            raise RuntimeError("asked for by a test")

        runner.on_step = fail
        engine.submit(REQUEST)
        engine.step()
        assert engine.state == "ready"

    assert isinstance(failing_after(lambda engine, _: engine.stop()), EngineDown)
    assert not isinstance(failing_after(crash), EngineDown)
    with pytest.raises(RuntimeError, match="shutdown"):
        failing_after(lambda *_: None)


def test_a_change_of_what_previews_are_wanted_is_told_to_who_listens() -> None:
    engine = new_engine(FakeRunner())
    generation, heard = engine.submit(REQUEST), []
    generation.on_want_previews(heard.append)
    for every in (4, 4, 0, 2):
        generation.want_previews(every)
    assert heard == [4, 0, 2] and generation.preview_every == 2
    with pytest.raises(InvalidRequest, match="preview_every"):
        generation.want_previews(-1)


def test_stats_are_a_copy_of_their_moment() -> None:
    engine = new_engine(FakeRunner())
    before = engine.stats()
    engine.submit(REQUEST)
    run(engine)
    after = engine.stats()
    assert (before.images, dict(before.requests)) == (0, {})
    assert (after.images, dict(after.requests)) == (3, {"done": 1})
    with pytest.raises(FrozenInstanceError):
        after.images = 7  # type: ignore[misc]
    with pytest.raises(TypeError):
        after.requests["done"] = 7


def test_an_engine_shows_what_tokens_look_like_beside_what_it_draws() -> None:
    (image, *_) = drawn(REQUEST)
    runner, decoding, is_alone = FakeRunner(), threading.Semaphore(1), list[bool]()

    def decode(_: np.ndarray) -> None:
        is_alone.append(decoding.acquire(blocking=False))
        time.sleep(0.02)
        decoding.release()

    runner.on_detokenize = decode
    engine = new_engine(runner)
    engine.start()
    shown = list[np.ndarray]()
    threads = [threading.Thread(target=lambda: shown.append(engine.detokenize(image.tokens))) for _ in range(3)]
    generation = engine.submit(REQUEST)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    generation.result()
    assert len(shown) == 3 and all(np.array_equal(pixels, image.pixels) for pixels in shown)
    assert len(is_alone) > 3 and all(is_alone)
    engine.stop()
    with pytest.raises(NotReady):
        engine.detokenize(image.tokens)
