"""Drawing over a picture, on the real engine with a runner without weights: what is kept, chosen, and told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dalle_server.drawing.repaint import INDEX_BITS, Plan, Repaint, kept_behind
from dalle_server.drawing.repainting import Repainting, likeliest, repaint
from dalle_server.drawing.replay import ReplaySource, info_text, replay
from dalle_server.engine.engine import Engine
from dalle_server.engine.pull import CodeDistances
from dalle_server.errors import InvalidRequest, Overloaded
from dalle_server.generation import (
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    Generation,
    ImageReady,
    Preview,
    Progress,
)
from dalle_server.pictures.canvas import Picture
from dalle_server.pictures.codec import ImageFormat, describe_image, encode_image
from dalle_server.pictures.metadata import read_metadata
from dalle_server.request import FREE, GenerationRequest, ImageKey, Pixels, SamplingParams
from tests.fake_runner import FakeRunner, FakeTokenizer, colours, fake_config

SIDE_PX = 4 * 8  # a grid of 16 tokens, 8 pixels each


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(FakeRunner(fake_config(grid_side=4), num_slots=8), FakeTokenizer(), max_waiting_images=64)
    engine.start()
    yield engine
    engine.stop()


def draw(engine: Engine, seed: int = 1) -> GeneratedImage:
    return engine.submit(GenerationRequest.of("a red apple", seed=seed)).result()[0]


def request(num_images: int = 1, seed: int = 5, index: int = 0, **kwargs: Any) -> GenerationRequest:
    keys = tuple(ImageKey(seed, index + i) for i in range(num_images))
    return GenerationRequest(prompt="a pear", images=keys, **kwargs)


def over(pixels: Pixels, box: tuple[int, int, int, int] | None = None, **kwargs: Any) -> Repaint:
    mask = None
    if box is not None:
        mask = np.zeros(pixels.shape[:2], np.float32)
        left, top, right, bottom = box
        mask[top:bottom, left:right] = 1
    return Repaint(picture=Picture(pixels, None), mask=mask, **kwargs)


def finished(repainting: Repainting) -> tuple[GeneratedImage, ...]:
    for _ in repainting.events(poll_s=0.05):
        pass
    assert isinstance(repainting.terminal, Done)
    return repainting.terminal.images


def test_a_pictures_tokens_are_read_and_those_of_the_mask_are_free(engine: Engine) -> None:
    image = draw(engine)
    plan = Plan.of(over(image.pixels, (8, 8, 24, 16)), engine)
    assert np.array_equal(plan.holes.given, image.tokens)
    assert np.flatnonzero(plan.holes.free).tolist() == [5, 6]
    (wanted,) = plan.holes.requests(request())
    forced = np.array(wanted.forced_tokens)
    assert (forced[plan.holes.free] == FREE).all() and np.array_equal(
        forced[~plan.holes.free], image.tokens[~plan.holes.free]
    )


@pytest.mark.parametrize("candidates", [1, 4])
def test_outside_the_mask_tokens_and_pixels_stay(engine: Engine, candidates: int) -> None:
    image = draw(engine)
    plan = Plan.of(over(image.pixels, (8, 8, 24, 16), candidates=candidates), engine)
    for picture in finished(repaint(engine.submit, plan.holes, request(2))):
        assert np.array_equal(picture.tokens[~plan.holes.free], image.tokens[~plan.holes.free])
        result, mask = plan.frame.finished(picture.pixels), plan.frame.mask
        assert mask is not None
        assert np.array_equal(result[mask == 0], image.pixels[mask == 0])
        assert not np.array_equal(result[mask > 0], image.pixels[mask > 0])


def test_the_likeliest_of_the_candidates_is_chosen(engine: Engine) -> None:
    image = draw(engine)
    plan = Plan.of(over(image.pixels, (0, 0, 32, 16), candidates=6), engine)
    (wanted,) = plan.holes.requests(request(seed=9, index=3))
    assert [key.index for key in wanted.images] == [3 + (number << INDEX_BITS) for number in range(6)]
    drawn = engine.submit(wanted).result()
    behind = kept_behind(np.array(wanted.forced_tokens, np.int32))
    assert behind.tolist() == [False] * 8 + [True] * 8
    scores = [float(each.logprobs[behind, 0].sum()) for each in drawn if each.logprobs is not None]
    assert len(set(scores)) > 1
    (chosen,) = finished(repaint(engine.submit, plan.holes, request(seed=9, index=3)))
    assert np.array_equal(chosen.tokens, drawn[int(np.argmax(scores))].tokens)
    assert chosen.index == 0


def test_equals_are_decided_by_order_and_one_needs_no_score() -> None:
    images = [GeneratedImage(i, ImageKey(1, i), np.zeros((1, 1, 3), np.uint8), np.zeros(4, np.int32), logprobs)
              for i, logprobs in enumerate([np.full((4, 2), -1, np.float32)] * 2)]  # fmt: skip
    forced = np.array([3, FREE, 3, 3], np.int32)
    assert likeliest(images, forced) is images[0]
    assert likeliest(images[1:], forced) is images[1]


def test_where_nothing_is_kept_behind_the_hole_one_candidate_is_drawn(engine: Engine) -> None:
    plan = Plan.of(over(draw(engine).pixels, (0, 16, 32, 32), candidates=4), engine)
    (wanted,) = plan.holes.requests(request())
    assert len(wanted.images) == 1 and not wanted.logprobs


def test_a_picture_is_the_same_alone_and_among_others(engine: Engine) -> None:
    plan = Plan.of(over(draw(engine).pixels, (8, 8, 24, 16), candidates=3, strength=0.7), engine)
    together = finished(repaint(engine.submit, plan.holes, request(3)))
    for index, picture in enumerate(together):
        (alone,) = finished(repaint(engine.submit, plan.holes, request(1, index=index)))
        assert np.array_equal(alone.pixels, picture.pixels)
    assert len({picture.pixels.tobytes() for picture in together}) > 1


def test_what_is_told_makes_the_picture_again(engine: Engine) -> None:
    plan = Plan.of(over(draw(engine).pixels, (8, 8, 24, 16), candidates=4), engine)
    repainting = repaint(engine.submit, plan.holes, request(2))
    for picture in finished(repainting):
        (again,) = engine.submit(repainting.request_of(picture)).result()
        assert np.array_equal(again.pixels, picture.pixels)


def test_strength_says_how_far_from_the_given_tokens(engine: Engine) -> None:
    """0 gives them back, 1 ignores them; between, every free token is drawn, the nearer the less."""
    image = draw(engine)
    free = engine.submit(request(8)).result()
    distances, far = CodeDistances(colours(64)), []
    for strength in (0.0, 0.4, 0.8, 0.95, 1.0):
        plan = Plan.of(over(image.pixels, strength=strength, candidates=4), engine)
        pictures = finished(repaint(engine.submit, plan.holes, request(8)))
        apart = [distances.to(image.tokens)[np.arange(16), picture.tokens] for picture in pictures]
        far.append(float(np.mean(apart)))
        if strength in (0.0, 1.0):
            for picture, expected in zip(pictures, free, strict=True):
                same = image.tokens if strength == 0 else expected.tokens
                assert np.array_equal(picture.tokens, same)
        elif strength > 0.4:
            assert len({picture.tokens.tobytes() for picture in pictures}) == 8
    assert far == sorted(far) and len(set(far)) == 5


def test_strength_in_a_mask_draws_towards_what_was_there_and_keeps_the_rest(engine: Engine) -> None:
    image = draw(engine)
    plan = Plan.of(over(image.pixels, (8, 8, 24, 16), strength=0.5), engine)
    (wanted,) = plan.holes.requests(request())
    forced, near = (np.array(tokens) for tokens in (wanted.forced_tokens, wanted.near_tokens))
    free = plan.holes.free
    assert (forced[free] == FREE).all() and (near[~free] == FREE).all()
    assert np.array_equal(np.where(free, near, forced), image.tokens)
    assert wanted.pull == round(20 * np.log(2), 4)
    for strength in (0.0, 1.0):
        (wanted,) = Plan.of(over(image.pixels, strength=strength), engine).holes.requests(request())
        assert (wanted.pull, wanted.near_tokens) == (0.0, ())


@pytest.mark.parametrize("box", [None, (8, 8, 24, 16)])
def test_what_a_file_tells_of_strength_makes_it_again(engine: Engine, box: Any) -> None:
    plan = Plan.of(over(draw(engine).pixels, box, candidates=2, strength=0.6), engine)
    repainting = repaint(engine.submit, plan.holes, request(2))
    for picture in finished(repainting):
        told = describe_image(picture, repainting, engine, plan.told)
        read = read_metadata(encode_image(picture.pixels, ImageFormat.JPEG, metadata=told))
        assert read == told and read.request().pull > 0
        for source in ReplaySource:
            again = replay(read, engine, source)
            assert again.same_tokens and again.same_pixels
        assert "drawn towards given ones" in info_text(read)


@pytest.mark.parametrize(
    ("wanted", "images", "param"),
    [({"candidates": 16}, 5, "candidates"), ({}, 65, "candidates")],
)
def test_one_request_draws_no_more_than_so_many(engine: Engine, wanted: Any, images: int, param: str) -> None:
    plan = Plan.of(over(draw(engine).pixels, (8, 8, 24, 16), **wanted), engine)
    with pytest.raises(InvalidRequest, match="at most 64") as caught:
        plan.holes.requests(request(images))
    assert caught.value.param == param


def test_an_index_that_would_meet_the_candidates_is_refused(engine: Engine) -> None:
    plan = Plan.of(over(draw(engine).pixels), engine)
    with pytest.raises(InvalidRequest, match="image_index must be below 16777216"):
        plan.holes.requests(request(index=2**INDEX_BITS))


def test_a_mask_too_small_for_a_token_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="mask is too small: none of the 16 tokens of 8x8 pixels"):
        Plan.of(over(draw(engine).pixels, (0, 0, 1, 1)), engine)


def test_all_pictures_are_accepted_or_none(engine: Engine) -> None:
    plan = Plan.of(over(draw(engine).pixels, (8, 8, 24, 16)), engine)
    accepted: list[Generation] = []

    def submit(wanted: GenerationRequest) -> Generation:
        if len(accepted) == 2:
            raise Overloaded("the queue is full")
        accepted.append(engine.submit(wanted))
        return accepted[-1]

    with pytest.raises(Overloaded):
        repaint(submit, plan.holes, request(3))
    assert all(each.cancel_reason == "the rest of the request was refused" or each.terminal for each in accepted)


def test_events_are_those_of_one_request(engine: Engine) -> None:
    plan = Plan.of(over(draw(engine).pixels, (8, 8, 24, 16), candidates=3), engine)
    repainting = repaint(engine.submit, plan.holes, request(2, preview_every=4))
    events = [event for event in repainting.events(poll_s=0.05) if event is not None]
    assert [event.image.index for event in events if isinstance(event, ImageReady)] in ([0, 1], [1, 0])
    assert {event.index for event in events if isinstance(event, Preview)} <= {0, 1}
    progress = [event for event in events if isinstance(event, Progress)]
    assert {event.num_tokens for event in progress} == {32}
    assert [event.tokens_done for event in progress] == sorted(event.tokens_done for event in progress)
    assert isinstance(events[-1], Done) and sum(isinstance(event, Done) for event in events) == 1


def test_one_candidate_is_previewed() -> None:
    runner = FakeRunner(fake_config(grid_side=4), num_slots=8)
    engine = Engine(runner, FakeTokenizer(), max_waiting_images=64)
    plan = Plan.of(over(np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8), (8, 8, 24, 16), candidates=3), engine)
    decoded: list[int] = []
    runner.on_detokenize = lambda grids: decoded.append(len(grids))
    repainting = repaint(engine.submit, plan.holes, request(preview_every=4))
    while engine.step():
        pass
    assert decoded == [1] * (3 + 3)  # three previews of one, and all three at the end
    assert sum(isinstance(event, Preview) for event in repainting.events(poll_s=0.05)) == 3


def test_one_failure_ends_all(engine: Engine) -> None:
    plan = Plan.of(over(draw(engine).pixels, (8, 8, 24, 16)), engine)
    runner = engine._loop.runner
    assert isinstance(runner, FakeRunner)
    runner.nan_at[ImageKey(5, 1)] = 5
    repainting = repaint(engine.submit, plan.holes, request(3))
    events = list(repainting.events(poll_s=0.05))
    assert isinstance(events[-1], Failed) and isinstance(repainting.terminal, Failed)


def test_cancelling_ends_all(engine: Engine) -> None:
    runner = engine._loop.runner
    assert isinstance(runner, FakeRunner)
    pixels = draw(engine).pixels
    runner.step_s = 0.02
    repainting = repaint(engine.submit, Plan.of(over(pixels, candidates=2), engine).holes, request(3))
    repainting.cancel("enough")
    events = list(repainting.events(poll_s=0.05))
    assert events[-1] == Cancelled("enough")


def test_news_are_waited_for_and_not_looked_for_again_and_again() -> None:
    generation = Generation(request(forced_tokens=(FREE,) * 16), SamplingParams.reference_defaults())
    still_to_come: list[Event] = [Progress(8, 16, None), Failed(InvalidRequest("no"))]
    waits: list[float | None] = []
    repainting = Repainting(request(), [generation])

    class Spoke(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            generation.emit(still_to_come.pop(0))
            return super().wait(timeout)

    repainting._spoke = Spoke()
    generation.on_event(repainting._spoke.set)
    told = [type(event) for event in repainting.events()]
    assert (told, waits) == ([Progress, Failed], [None, None])
