"""Pictures that come in: what a file is, what a mask means, what the model sees, and what stays exactly as it was."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle_server.errors import InvalidRequest, PayloadTooLarge
from dalle_server.pictures import canvas
from dalle_server.pictures.canvas import (
    Picture,
    Window,
    fit_mask,
    free_tokens,
    mask_from_alpha,
    mask_from_file,
    paste,
    read_picture,
    to_model,
)

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)  # 40 wide, 24 high


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def gif(*frames: Image.Image) -> bytes:
    return file_of(frames[0], "GIF", save_all=True, append_images=list(frames[1:]))


# -- files


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_pixels_come_as_they_are(format: str) -> None:
    picture = read_picture(file_of(Image.fromarray(NOISE), format, **({"lossless": True} if format == "WEBP" else {})))
    assert np.array_equal(picture.pixels, NOISE)
    assert picture.alpha is None
    assert picture.size_px == (40, 24)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_upright(orientation: int) -> None:
    """A picture whose corners differ, stored as a camera held that way would store it."""
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste((255, 0, 0), (0, 0, 32, 16))
    upright.paste((0, 0, 255), (32, 16, 64, 32))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Pillow's transposes, inverted
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(file_of(stored, "JPEG", exif=exif, quality=100, subsampling=0))
    assert picture.size_px == (64, 32)
    assert np.abs(picture.pixels.astype(int) - np.asarray(upright)).max() < 40


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_costs_nothing() -> None:
    exif = b"Exif\0\0MM\0\x2a" + b"\xff" * 40
    assert read_picture(file_of(Image.fromarray(NOISE), "JPEG", exif=exif)).size_px == (40, 24)


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)])
    picture = read_picture(file_of(image))
    assert picture.pixels.tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    assert picture.alpha is not None and picture.alpha.tolist() == [[255, 0, 128]]


def test_an_alpha_channel_without_a_hole_is_none() -> None:
    assert read_picture(file_of(Image.fromarray(NOISE).convert("RGBA"))).alpha is None


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("P", (2, 2), 3), None),
        (Image.fromarray(np.full((2, 2), 257 * 99, np.uint16)), (99, 99, 99)),
    ],
    ids=["CMYK", "grey", "two colours", "palette", "16 bits"],
)
def test_every_kind_of_colour_becomes_rgb(image: Image.Image, expected: tuple[int, int, int] | None) -> None:
    if image.mode == "P":
        image.putpalette([i % 256 for i in range(768)])
        expected = (9, 10, 11)
    format = "JPEG" if image.mode == "CMYK" else "PNG"
    pixels = read_picture(file_of(image, format, **({"quality": 100} if format == "JPEG" else {}))).pixels
    assert pixels.shape == (2, 2, 3)
    assert np.abs(pixels[0, 0].astype(int) - expected).max() <= 3


def test_a_palette_may_be_transparent() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putdata([0, 1])
    picture = read_picture(file_of(image, transparency=0))
    assert picture.pixels.tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    assert read_picture(gif(*frames)).pixels[0, 0].tolist() == [255, 0, 0]
    assert read_picture(file_of(frames[0], "PNG", save_all=True, append_images=frames[1:])).pixels[0, 0].tolist() == [
        255,
        0,
        0,
    ]


@pytest.mark.parametrize("size", [(1, 1), (5_000, 5), (1, 500)])
def test_the_smallest_and_the_thinnest_are_pictures_too(size: tuple[int, int]) -> None:
    picture = read_picture(file_of(Image.new("RGB", size, "teal")))
    assert picture.size_px == size
    window = Window.around(None, size)
    assert to_model(picture.pixels, window, 32).shape == (32, 32, 3)


def test_what_is_larger_than_any_answer_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "KEPT_PIXELS", 20 * 12)
    picture = read_picture(file_of(Image.fromarray(NOISE).convert("RGBA")))
    assert picture.size_px == (20, 12)
    holes = Image.new("RGBA", (40, 24))
    smaller = read_picture(file_of(holes))
    assert smaller.alpha is not None and smaller.alpha.shape == (12, 20)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 5_001), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(PayloadTooLarge, match=r"image has .* pixels"):
        read_picture(bomb(*size))


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(PayloadTooLarge, match="16,777,217 bytes; a picture may have 16,777,216") as caught:
        read_picture(bytes(canvas.MAX_FILE_BYTES + 1), "image[]")
    assert caught.value.param == "image[]"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        file_of(Image.fromarray(NOISE))[:-30],
        file_of(Image.fromarray(NOISE))[:200],
        file_of(Image.fromarray(NOISE), "JPEG")[:300],
        file_of(Image.fromarray(NOISE), "WEBP")[:60],
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        file_of(Image.fromarray(NOISE), "BMP"),
        bomb(5, 0),
        bomb(0, 5),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^mask (is|cannot)") as caught:
        read_picture(data, "mask")
    assert caught.value.param == "mask"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_damaged_files_are_errors_of_the_request(format: str) -> None:
    whole = file_of(Image.fromarray(NOISE), format)
    for seed in range(60):
        damage = np.random.default_rng(seed)
        data = bytearray(whole)
        for at in damage.integers(0, len(data), 4):
            data[at] = damage.integers(0, 256)
        try:
            picture = read_picture(bytes(data))
        except InvalidRequest:
            continue
        assert picture.pixels.dtype == np.uint8 and picture.pixels.ndim == 3


# -- masks


def test_holes_are_to_be_repainted_and_so_is_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putdata([(0, 0, 0, 0), (255, 255, 255, 255)])
    holes = mask_from_file(read_picture(file_of(image)))
    assert holes.tolist() == [[1.0, 0.0]]
    black_and_white = Image.new("L", (2, 1))
    black_and_white.putdata([255, 0])
    assert mask_from_file(read_picture(file_of(black_and_white))).tolist() == [[1.0, 0.0]]
    assert mask_from_alpha(Picture(NOISE, None)) is None


def test_a_mask_of_the_same_shape_is_resized_and_of_another_is_refused() -> None:
    mask = np.zeros((10, 20), np.float32)
    mask[:, 10:] = 1
    fitted = fit_mask(mask, (40, 20))
    assert fitted.shape == (20, 40)
    assert fitted[:, :15].max() < 0.1 and fitted[:, 25:].min() > 0.9
    with pytest.raises(InvalidRequest, match=r"20x10 pixels, the picture 40x40"):
        fit_mask(mask, (40, 40))


def test_a_mask_that_frees_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="mask frees nothing"):
        fit_mask(np.zeros((8, 8), np.float32), (8, 8))


# -- the square


def mask_of(size_px: tuple[int, int], box: tuple[int, int, int, int]) -> Any:
    mask = np.zeros((size_px[1], size_px[0]), np.float32)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(
    ("size", "box", "window"),
    [
        ((40, 24), (30, 4, 38, 12), Window(16, 0, 24)),  # at the right end of the picture
        ((40, 24), (16, 4, 24, 12), Window(8, 0, 24)),  # around the mask
        ((40, 24), (0, 0, 40, 5), Window(0, -8, 40)),  # no square of the picture holds it
        ((24, 24), (3, 3, 9, 9), Window(0, 0, 24)),
    ],
)
def test_the_model_sees_a_square_around_the_mask(size: Any, box: Any, window: Window) -> None:
    assert Window.around(mask_of(size, box), size) == window


def test_a_tighter_square_shows_more_of_a_small_mask() -> None:
    mask = mask_of((400, 240), (100, 100, 120, 120))
    window = Window.around(mask, (400, 240), context=1.0)
    assert window == Window(80, 80, 60)


def test_beyond_the_edge_the_edge_is_repeated() -> None:
    cut = Window(-2, -1, 44).cut(NOISE)
    assert cut.shape == (44, 44, 3)
    assert np.array_equal(cut[0, 2:42], NOISE[0])
    assert np.array_equal(cut[1:25, 0], NOISE[:, 0])
    assert np.array_equal(cut[-1, -1], NOISE[-1, -1])


def test_a_token_is_free_when_more_than_a_little_of_it_is() -> None:
    mask = mask_of((64, 64), (16, 16, 32, 33))
    window = Window(0, 0, 64)
    free = free_tokens(mask, window, 4).reshape(4, 4)
    assert np.argwhere(free).tolist() == [[1, 1], [2, 1]], "one row of sixteen is more than a 64th"
    mask[32, 20:32] = 0  # four pixels of 256 are left: not more than a 64th
    assert np.argwhere(free_tokens(mask, window, 4).reshape(4, 4)).tolist() == [[1, 1]]


def test_growing_frees_the_neighbours() -> None:
    mask = mask_of((64, 64), (16, 16, 32, 32))
    assert free_tokens(mask, Window(0, 0, 64), 4, grow=1).sum() == 9
    assert free_tokens(mask, Window(0, 0, 64), 4, grow=9).all()


# -- back into the picture


@pytest.mark.parametrize("blend_px", [0, 1, 4, 50])
@pytest.mark.parametrize("context", [None, 0.2])
def test_outside_the_mask_every_pixel_is_the_originals(blend_px: int, context: float | None) -> None:
    mask = mask_of((40, 24), (10, 5, 31, 19))
    window = Window.around(mask, (40, 24), context)
    painted = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    result = paste(NOISE, painted, window, mask, blend_px)
    assert np.array_equal(result[mask == 0], NOISE[mask == 0])
    assert not np.array_equal(result[mask > 0], NOISE[mask > 0])


def test_the_middle_of_the_mask_is_the_models_and_its_border_between_both() -> None:
    original = np.zeros((64, 64, 3), np.uint8)
    painted = np.full((64, 64, 3), 200, np.uint8)
    result = paste(original, painted, Window(0, 0, 64), mask_of((64, 64), (16, 16, 48, 48)), blend_px=4)[32, :, 0]
    assert result[15] == 0
    assert result[16:21].tolist() == [40, 80, 120, 160, 200]
    assert (result[20:44] == 200).all()


def test_a_thin_mask_is_painted_too() -> None:
    original = np.zeros((64, 64, 3), np.uint8)
    painted = np.full((64, 64, 3), 200, np.uint8)
    result = paste(original, painted, Window(0, 0, 64), mask_of((64, 64), (30, 0, 34, 64)), blend_px=8)
    assert result[:, 31:33].min() == 200


def test_the_edge_of_the_picture_is_no_border() -> None:
    painted = np.full((32, 32, 3), 200, np.uint8)
    result = paste(np.zeros((32, 32, 3), np.uint8), painted, Window(0, 0, 32), mask_of((32, 32), (0, 0, 32, 16)))
    assert (result[0] == 200).all() and (result[:11, 0] == 200).all()


def test_half_a_mask_mixes() -> None:
    mask = np.full((8, 8), 0.5, np.float32)
    result = paste(np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8), Window(0, 0, 8), mask)
    assert (result == 100).all()


def test_without_a_mask_the_whole_square_is_the_models() -> None:
    painted = np.full((16, 16, 3), 9, np.uint8)
    assert (paste(NOISE, painted, Window.around(None, (40, 24)), None) == 9).all()
