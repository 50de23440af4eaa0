"""Our own pictures, drawn over: their file tells their tokens, which count as long as it still shows them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from dalle_server import DalleModel
from dalle_server.drawing.repaint import Plan, Repaint
from dalle_server.engine.engine import Engine
from dalle_server.generation import GeneratedImage
from dalle_server.pictures.codec import ImageFormat, describe_image, encode_image
from dalle_server.pictures.metadata import PictureMetadata, save_options
from dalle_server.request import GenerationRequest, Pixels, Tokens

JPEG, PNG, WEBP = ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.WEBP


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with DalleModel("nano", cache_dir=tmp_path_factory.mktemp("cache"), num_threads=1) as model:
        yield model.engine


@pytest.fixture(
    scope="module",
    params=[("a red apple", False), ("a red apple", True), ("a ghost", False)],
    ids=lambda asked: asked[0],
)
def ours(engine: Engine, request: pytest.FixtureRequest) -> tuple[GeneratedImage, PictureMetadata]:
    """Strong colours, and one that is pale and almost its own mirror image."""
    prompt, seamless = request.param
    generation = engine.submit(GenerationRequest.of(prompt, seed=7, seamless=seamless))
    (image,) = generation.result()
    return image, describe_image(image, generation, engine)


def given(engine: Engine, file: bytes) -> Tokens:
    return Plan.of(Repaint.variation(file), engine).holes.given


@pytest.mark.parametrize(
    ("format", "scale", "quality"),
    [(PNG, 1, None), (JPEG, 1, None), (JPEG, 1, 30), (WEBP, 1, 30), (PNG, 0.5, None), (JPEG, 0.5, 75), (PNG, 3, None)],
)
def test_tokens_are_taken_from_the_file_in_any_format_and_size(
    engine: Engine,
    ours: tuple[GeneratedImage, PictureMetadata],
    format: ImageFormat,
    scale: float,
    quality: int | None,
) -> None:
    image, told = ours
    size_px = (round(image.pixels.shape[1] * scale), round(image.pixels.shape[0] * scale))
    file = encode_image(image.pixels, format, metadata=told, size_px=size_px, quality=quality)
    assert np.array_equal(given(engine, file), image.tokens)


def test_a_part_that_was_rubbed_out_is_a_mask_and_the_rest_keeps_its_tokens(
    engine: Engine, ours: tuple[GeneratedImage, PictureMetadata]
) -> None:
    image, told = ours
    side = len(image.pixels)
    with_holes = Image.fromarray(image.pixels).convert("RGBA")
    with_holes.paste((0, 0, 0, 0), (side // 4, side // 4, side // 2, side // 2))
    file = io.BytesIO()
    with_holes.save(file, "PNG", **save_options(told, "PNG"))
    plan = Plan.of(Repaint.read(file.getvalue()), engine)
    assert 0 < plan.holes.free.sum() < plan.holes.free.size
    assert np.array_equal(plan.holes.given, image.tokens)


def painted(pixels: Pixels) -> Pixels:
    pixels = pixels.copy()
    side = len(pixels) // 10
    pixels[4 * side : 5 * side, 4 * side : 5 * side] = (0, 80, 255)
    return pixels


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: np.rot90(pixels),
        lambda pixels: pixels[:, ::-1],
        lambda pixels: pixels[::-1],
        lambda pixels: pixels[8:-8, 8:-8],
        lambda pixels: 255 - pixels,
        painted,
    ],
    ids=["turned", "mirrored", "upside down", "cropped", "inverted", "painted"],
)
def test_what_another_program_changed_is_read_anew(
    engine: Engine, ours: tuple[GeneratedImage, PictureMetadata], change: Callable[[Pixels], Pixels]
) -> None:
    """Such programs keep what the file says of itself."""
    image, told = ours
    pixels = np.ascontiguousarray(change(image.pixels))
    tokens = given(engine, encode_image(pixels, PNG, metadata=told))
    assert np.array_equal(tokens, given(engine, encode_image(pixels, PNG)))
    assert not np.array_equal(tokens, image.tokens)


def test_tokens_of_other_weights_are_not_taken(engine: Engine, ours: tuple[GeneratedImage, PictureMetadata]) -> None:
    image, told = ours
    told = told.model_copy(update={"weights_digest": "f" * 64})
    tokens = given(engine, encode_image(image.pixels, PNG, metadata=told))
    assert np.array_equal(tokens, given(engine, encode_image(image.pixels, PNG)))
    assert not np.array_equal(tokens, image.tokens)
