"""What a stranger's picture or mask may cost: memory of a strip, time of a deep blend."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dalle_server.pictures.canvas import LONGEST_PX, Window, paste, read_picture, to_model


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(100_000, 2), (2, 100_000), (LONGEST_PX + 1, 40)])
def test_a_strip_is_no_square_of_its_length(size: tuple[int, int]) -> None:
    """A file of 672 bytes made the server ask for 28 GB: the model sees a square, edges repeated."""
    picture = read_picture(file_of(Image.new("RGB", size, (90, 90, 90))))
    assert max(picture.size_px) == LONGEST_PX and min(picture.size_px) >= 1
    window = Window.around(None, picture.size_px)
    assert (to_model(picture.pixels, window, 16) == 90).all()


def eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the pixels beside those outside, diagonals too; the picture's edge is no border."""
    height, width = inside.shape
    padded = np.pad(inside, 1, mode="edge")
    return np.all([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("blend_px", [0, 1, 4, 50, 256])
def test_a_blend_is_as_deep_as_it_was_eroded(seed: int, blend_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 filters over a large mask took 49 s of processor time for every picture; two passes give the same."""
    monkeypatch.setattr(Image.Image, "filter", None)
    dice = np.random.default_rng(seed)
    mask = np.zeros((37, 53), np.float32)
    for _ in range(4):
        top, left, height, width = dice.integers(0, 30, 4)
        mask[top : top + height + 1, left : left + width + 1] = dice.choice([0.0, 0.4, 1.0])
    mask[30, 40] = 1.0
    inside = mask > 0
    depth = inside.astype(np.float32)
    for _ in range(blend_px):
        inside = eroded(inside)
        depth += inside
    deepest = float(depth.max())
    width_px = max(1.0, min(blend_px + 1.0, deepest / (2.0 if deepest <= blend_px else 1.0)))
    black, white = np.zeros((37, 53, 3), np.uint8), np.full((53, 53, 3), 255, np.uint8)
    got = paste(black, white, Window(0, 0, 53), mask, blend_px)
    assert np.array_equal(got[:, :, 0], np.rint(255 * np.minimum(mask, depth / np.float32(width_px))))
