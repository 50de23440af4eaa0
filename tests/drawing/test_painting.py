"""Pictures of another shape, on the real engine with a runner without weights: windows, seams, events, replay."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dalle_server.drawing.best_of import BestOf, score
from dalle_server.drawing.painting import Painting, Shape, paint
from dalle_server.drawing.repaint import INDEX_BITS
from dalle_server.drawing.replay import ReplaySource, info_text, replay
from dalle_server.drawn import result_of
from dalle_server.engine.engine import Engine
from dalle_server.errors import DeadlineExceeded, EngineDown, EngineFault, InvalidRequest, Overloaded
from dalle_server.generation import (
    Cancelled,
    Done,
    Failed,
    GeneratedImage,
    Generation,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.pictures.codec import ImageFormat, describe_image, encode_image
from dalle_server.pictures.metadata import PictureMetadata, read_metadata
from dalle_server.request import GenerationRequest, ImageKey
from tests.drawing.shapes import SIDE, shape
from tests.fake_runner import FakeRunner, FakeTokenizer, fake_config

PX = 8


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(FakeRunner(fake_config(SIDE)), FakeTokenizer(), digest="d" * 64, max_waiting_images=64)
    engine.start()
    yield engine
    engine.stop()


def runner_of(engine: Engine) -> FakeRunner:
    runner = engine._loop.runner
    assert isinstance(runner, FakeRunner)
    return runner


def request(num_images: int = 1, index: int = 0, **kwargs: Any) -> GenerationRequest:
    return GenerationRequest(
        prompt="a red apple", images=tuple(ImageKey(5, index + i) for i in range(num_images)), **kwargs
    )


def grid(image: GeneratedImage, of: Shape) -> Any:
    return image.tokens.reshape(of.rows, of.columns)


def test_the_first_window_is_the_square_picture_and_others_go_on_from_it(engine: Engine) -> None:
    (square,) = engine.submit(request()).result()
    of = shape(1536, 1024)
    (image,) = result_of(paint(engine.submit, of, request()))
    tokens = grid(image, of)
    assert image.pixels.shape == (4 * PX, 6 * PX, 3)
    assert np.array_equal(tokens[:, :4], square.tokens.reshape(4, 4))
    forced = np.full((4, 4), -1)
    forced[:, :2] = tokens[:, 2:4]
    key, given = ImageKey(5, 1 << INDEX_BITS), tuple(forced.reshape(-1).tolist())
    (again,) = engine.submit(replace(request(), images=(key,), forced_tokens=given)).result()
    assert np.array_equal(again.tokens.reshape(4, 4), tokens[:, 2:])
    # The fake's squares are the same in every window, so the crossfade must not show.
    assert np.abs(image.pixels.astype(int) - runner_pixels(engine, tokens)).max() <= 1


def runner_pixels(engine: Engine, tokens: Any) -> Any:
    windows = [runner_of(engine).detokenize(tokens[None, :, x : x + 4].reshape(1, -1))[0] for x in (0, 2)]
    return np.concatenate([windows[0][:, : 3 * PX], windows[1][:, PX:]], axis=1)


@pytest.mark.parametrize("size", [(1536, 1024), (1024, 1536), (300, 100)])
def test_a_picture_is_the_same_alone_and_among_others(engine: Engine, size: Any) -> None:
    of = shape(*size)
    together = result_of(paint(engine.submit, of, request(3)))
    for index, image in enumerate(together):
        (alone,) = result_of(paint(engine.submit, of, request(1, index)))
        assert np.array_equal(alone.pixels, image.pixels) and np.array_equal(alone.tokens, image.tokens)
    assert len({image.tokens.tobytes() for image in together}) == 3


def test_events_are_those_of_one_request(engine: Engine) -> None:
    runner_of(engine).step_s = 0.003
    of = shape(300, 100)
    painting = paint(engine.submit, of, request(2, preview_every=10))
    events = [event for event in painting.events(poll_s=0.05) if event is not None]
    assert isinstance(events[-1], Done) and sum(isinstance(event, (Started, Queued, Done)) for event in events) >= 2
    assert {event.image.index for event in events if isinstance(event, ImageReady)} == {0, 1}
    progress = [event for event in events if isinstance(event, Progress)]
    assert {event.num_tokens for event in progress} == {2 * 5 * 16}
    assert [event.tokens_done for event in progress] == sorted(event.tokens_done for event in progress)
    previews = [event for event in events if isinstance(event, Preview) and event.index == 1]
    assert previews and all(event.pixels.shape == (32, 96, 3) for event in previews)
    done = [event.tokens_done for event in previews]
    assert (np.diff([0, *done]) >= 10).all() and done[-1] > 16
    assert (previews[0].pixels[:, 64:] == 127).all()


def test_the_next_window_waits_for_a_place_instead_of_failing(engine: Engine) -> None:
    asked: list[GenerationRequest] = []

    def submit(wanted: GenerationRequest) -> Generation:
        asked.append(wanted)
        if 1 < len(asked) < 6:
            raise Overloaded("the queue is full")
        return engine.submit(wanted)

    (image,) = result_of(paint(submit, shape(1536, 1024), request()))
    (expected,) = result_of(paint(engine.submit, shape(1536, 1024), request()))
    assert np.array_equal(image.pixels, expected.pixels) and len(asked) == 6


def test_the_next_window_waits_while_the_engine_restarts() -> None:
    may_restart = threading.Event()

    def make_runner() -> FakeRunner:
        may_restart.wait(30)
        return FakeRunner(fake_config(SIDE))

    def crash(rows: object) -> None:
        raise RuntimeError("injected")

    engine = Engine(FakeRunner(fake_config(SIDE)), FakeTokenizer(), make_runner=make_runner)
    engine.start()
    asked: list[GenerationRequest] = []

    def submit(wanted: GenerationRequest) -> Generation:
        asked.append(wanted)
        if len(asked) == 2:  # between the two windows another's picture ends the loop
            runner_of(engine).on_step = crash
            for _ in engine.submit(request()).events():
                pass
        if len(asked) == 5:
            may_restart.set()
        return engine.submit(wanted)

    (image,) = result_of(paint(submit, shape(1536, 1024), request(timeout_s=60)))
    assert len(asked) >= 5
    (expected,) = result_of(paint(engine.submit, shape(1536, 1024), request()))
    assert np.array_equal(image.pixels, expected.pixels)
    engine.stop()


def test_a_picture_ends_with_an_engine_that_is_stopped_between_two_windows(engine: Engine) -> None:
    asked: list[GenerationRequest] = []

    def submit(wanted: GenerationRequest) -> Generation:
        asked.append(wanted)
        if len(asked) == 2:
            engine.stop()
        return engine.submit(wanted)

    with pytest.raises(EngineDown, match="the engine is stopped"):
        result_of(paint(submit, shape(1536, 1024), request(timeout_s=10)))  # without a limit it would wait for ever
    assert len(asked) == 2


def test_a_window_that_is_refused_for_good_ends_the_others_too(engine: Engine) -> None:
    accepted: list[Generation] = []

    def submit(wanted: GenerationRequest) -> Generation:
        if wanted.forced_tokens and wanted.images[0].index % 2**INDEX_BITS == 1:
            raise InvalidRequest("the model below has another shape now")
        accepted.append(engine.submit(wanted))
        return accepted[-1]

    runner_of(engine).step_s = 0.003
    painting = paint(submit, shape(1536, 1024), request(2))
    with pytest.raises(InvalidRequest):
        result_of(painting)
    assert len(accepted) == 3 and accepted[2].cancel_reason == "another picture of the request failed"


def test_a_next_window_that_can_never_be_drawn_ends_the_request(engine: Engine) -> None:
    asked: list[GenerationRequest] = []
    fault = EngineFault("the engine failed")

    def submit(wanted: GenerationRequest) -> Generation:
        asked.append(wanted)
        if len(asked) > 2:
            raise fault
        return engine.submit(wanted)

    painting = paint(submit, shape(300, 100), request())
    assert [event for event in painting.events() if isinstance(event, (Done, Failed, Cancelled))] == [Failed(fault)]


def test_all_are_accepted_or_none(engine: Engine) -> None:
    accepted: list[Generation] = []

    def submit(wanted: GenerationRequest) -> Generation:
        if len(accepted) == 2:
            raise Overloaded("the queue is full")
        accepted.append(engine.submit(wanted))
        return accepted[-1]

    with pytest.raises(Overloaded):
        paint(submit, shape(1536, 1024), request(3))
    assert all(each.cancel_reason == "the rest of the request was refused" or each.terminal for each in accepted)


def test_cancel_deadline_and_failure_end_it_once(engine: Engine) -> None:
    def ends(painting: Painting) -> list[Any]:
        return [event for event in painting.events(poll_s=0.05) if isinstance(event, (Done, Failed, Cancelled))]

    runner_of(engine).step_s = 0.01
    painting = paint(engine.submit, shape(300, 100), request(2))
    painting.cancel("enough")
    assert ends(painting) == [Cancelled("enough")]
    (late,) = ends(paint(engine.submit, shape(300, 100), request(timeout_s=0.3)))
    assert isinstance(late, Failed) and isinstance(late.error, DeadlineExceeded)
    assert late.error.message == "not done within its time limit of 0.3 s"  # the client's, not what a window had left
    runner_of(engine).step_s = 0.0
    runner_of(engine).nan_at[ImageKey(5, 1 << INDEX_BITS)] = 11
    (sick,) = ends(paint(engine.submit, shape(1536, 1024), request(2)))
    assert isinstance(sick, Failed)


def test_an_index_that_would_meet_the_windows_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="image_index must be below 16777216"):
        paint(engine.submit, shape(1536, 1024), request(index=2**INDEX_BITS))


def test_likelihood_is_told_of_every_token_once_and_ranks(engine: Engine) -> None:
    of = shape(1536, 1024)
    images = result_of(paint(engine.submit, of, request(4, logprobs=True)))
    assert all(image.logprobs is not None and np.isfinite(image.logprobs).all() for image in images)
    assert images[0].logprobs is not None and images[0].logprobs.shape == (24, 2)
    best = BestOf(paint(engine.submit, of, request(4, logprobs=True)), 1)
    (kept,) = result_of(best)
    assert np.array_equal(kept.pixels, max(images, key=score).pixels)
    assert (best.grid_width, best.num_drawn) == (6, 4)


@pytest.mark.parametrize("format", list(ImageFormat))
def test_the_file_makes_it_again(engine: Engine, format: ImageFormat) -> None:
    painting = paint(engine.submit, shape(1024, 1536), request())
    (image,) = result_of(painting)
    told = read_metadata(encode_image(image.pixels, format, metadata=describe_image(image, painting, engine)))
    assert (told.grid_width, told.num_tokens) == (4, 24)
    for source in ReplaySource:
        again = replay(told, engine, source)
        assert again.same_pixels and again.same_tokens and again.same_recipe
    assert "24, painted by windows over 4 columns" in info_text(told)


def test_readers_of_format_2_refuse_it(engine: Engine) -> None:
    """They would paint the model's own shape from a seed, and fail at a grid of another size."""
    painting = paint(engine.submit, shape(1024, 1536), request())
    (image,) = result_of(painting)
    raw = json.loads(describe_image(image, painting, engine).to_json())
    assert raw["format"] == 3  # what is not 1 or 2 they call a newer version's
    (square,) = engine.submit(request()).result()
    plain = describe_image(square, engine.submit(request()), engine)
    assert json.loads(plain.to_json())["format"] == 2 and "grid_width" not in plain.to_json()


@pytest.mark.parametrize("change", [{"grid_width": 5}, {"grid_width": -1}, {"grid_width": "4"}])
def test_a_damaged_width_is_refused(engine: Engine, change: Any) -> None:
    painting = paint(engine.submit, shape(1024, 1536), request())
    (image,) = result_of(painting)
    raw = json.loads(describe_image(image, painting, engine).to_json())
    with pytest.raises((ValueError, InvalidRequest)):
        PictureMetadata.from_json(json.dumps({**raw, **change}))


def test_a_grid_that_no_window_fits_is_not_replayed(engine: Engine) -> None:
    painting = paint(engine.submit, shape(1024, 1536), request())
    (image,) = result_of(painting)
    told = describe_image(image, painting, engine).model_copy(update={"grid_width": 8})
    with pytest.raises(InvalidRequest, match="load the model that made it"):
        replay(told, engine, ReplaySource.TOKENS)


def test_a_window_has_what_is_left_of_the_time(engine: Engine) -> None:
    asked: list[GenerationRequest] = []

    def submit(wanted: GenerationRequest) -> Generation:
        asked.append(wanted)
        return engine.submit(wanted)

    result_of(paint(submit, shape(1536, 1024), request(timeout_s=60)))
    assert asked[1].timeout_s < asked[0].timeout_s <= 60  # type: ignore[operator]


def test_a_cancel_that_meets_the_start_of_a_window_ends_that_window(engine: Engine) -> None:
    asked: list[Generation] = []

    def submit(wanted: GenerationRequest) -> Generation:
        if len(asked) == 1:  # another thread, while the next window is being submitted
            painting.cancel("enough")
        asked.append(engine.submit(wanted))
        return asked[-1]

    painting = paint(submit, shape(1536, 1024), request())
    for _ in painting.events():
        pass
    assert painting.terminal == Cancelled("enough")
    assert len(asked) == 2 and asked[1].cancel_reason == "enough"
