"""A file is enough to make its picture again, and to see when it is not the same."""

from dataclasses import replace as changed

import numpy as np
import pytest

from dalle_server.drawing.replay import ReplaySource, info_text, replay
from dalle_server.errors import InvalidRequest
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.generation import GeneratedImage
from dalle_server.pictures.codec import ImageFormat, describe_image, encode_image
from dalle_server.pictures.metadata import PictureMetadata, read_metadata
from dalle_server.request import FREE, GenerationRequest
from tests.web.scripted_engine import ScriptedEngine

BOTH = pytest.mark.parametrize("source", list(ReplaySource))


def saved(engine: ScriptedEngine, **request: object) -> PictureMetadata:
    """The second picture of a request, written to a small JPEG and read back."""
    generation = engine.submit(GenerationRequest.of("a red apple", 2, seed=11, **request))  # type: ignore[arg-type]
    image: GeneratedImage = generation.result(30)[1]
    metadata = describe_image(image, generation, engine)
    return read_metadata(encode_image(image.pixels, ImageFormat.JPEG, metadata=metadata, size_px=(20, 20), quality=5))


@BOTH
def test_a_file_makes_its_picture_again_bit_for_bit(source: ReplaySource) -> None:
    engine = ScriptedEngine()
    metadata = saved(engine)
    made = replay(metadata, engine, source)
    assert (made.same_weights, made.same_tokens, made.same_pixels) == (True, True, True)
    assert made.verdict == f"from its {source}: the same picture, bit for bit"
    assert made.image.key == engine.requests[0].images[1]


def test_from_tokens_the_whole_grid_is_given_and_from_the_seed_nothing() -> None:
    engine = ScriptedEngine()
    metadata = saved(engine)
    replay(metadata, engine, ReplaySource.TOKENS)
    replay(metadata, engine, ReplaySource.SEED)
    from_tokens, from_seed = engine.requests[1:]
    assert from_tokens.forced_tokens == tuple(metadata.token_grid().tolist())
    assert from_seed.forced_tokens == ()
    assert from_seed.prompt == "a red apple"


def test_a_completed_picture_is_completed_again() -> None:
    engine = ScriptedEngine()
    forced = (5,) * 4 + (FREE,) * 12
    made = replay(saved(engine, forced_tokens=forced), engine, ReplaySource.SEED)
    assert engine.requests[1].forced_tokens == forced
    assert made.same_tokens


@BOTH
def test_other_weights_are_named(source: ReplaySource) -> None:
    metadata = saved(ScriptedEngine())
    made = replay(metadata, ScriptedEngine(digest="f" * 64), source)
    assert not made.same_weights
    assert not made.same_recipe
    assert "OTHER WEIGHTS" in made.verdict


def test_a_changed_seed_is_seen_in_the_tokens() -> None:
    engine = ScriptedEngine()
    made = replay(saved(engine).model_copy(update={"seed": 12}), engine, ReplaySource.SEED)
    assert not made.same_tokens
    assert "DIFFERENT tokens" in made.verdict


def test_pixels_that_differ_in_rounding_are_told_from_tokens_that_differ() -> None:
    engine = ScriptedEngine()
    made = replay(saved(engine).model_copy(update={"pixels_sha256": "0" * 64}), engine, ReplaySource.TOKENS)
    assert made.same_tokens
    assert "differ in rounding" in made.verdict


def test_a_model_of_another_size_is_refused_with_the_remedy() -> None:
    engine = ScriptedEngine()
    metadata = saved(engine)
    transformer = changed(engine.config.sizes(DalleBartConfig), image_length=64)
    with pytest.raises(InvalidRequest, match=r"16 tokens .* paints 64 tokens .*--model_version"):
        replay(metadata, ScriptedEngine(config=changed(engine.config, transformer=transformer)), ReplaySource.TOKENS)
    vqgan = changed(engine.config.vqgan, n_embed=4)
    with pytest.raises(InvalidRequest, match="of 4 codes"):
        replay(metadata, ScriptedEngine(config=changed(engine.config, vqgan=vqgan)), ReplaySource.TOKENS)


def test_info_tells_everything() -> None:
    metadata = saved(ScriptedEngine(), negative_prompt="fog")
    text = info_text(metadata)
    for fact in ("a red apple", "fog", "11, image index 1", "condition_scale 10", "scripted", metadata.weights_digest):
        assert fact in text
    grid = np.array([line.split() for line in text.splitlines()[-4:]], dtype=int)
    assert grid.ravel().tolist() == metadata.token_grid().tolist()


def test_info_is_one_line_a_fact_whatever_the_prompt() -> None:
    text = info_text(saved(ScriptedEngine()).model_copy(update={"prompt": "é\x1b[2J\nmodel: forged"}))
    assert r"é\x1b[2J\nmodel: forged" in text and "\x1b" not in text
    assert sum(line.startswith("model:") for line in text.splitlines()) == 1
