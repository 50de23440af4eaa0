"""Pixels to files: what each format keeps, and the asked size and quality."""

import io

import numpy as np
import pytest
from PIL import Image

from dalle_server.pictures.codec import ImageFormat, data_url, encode_image

GRADIENT = np.stack([*np.meshgrid(np.arange(64), np.arange(64)), np.full((64, 64), 90)], axis=-1).astype(np.uint8) * 2


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_png_is_lossless() -> None:
    assert np.array_equal(np.asarray(decoded(encode_image(GRADIENT, ImageFormat.PNG))), GRADIENT)


@pytest.mark.parametrize("format", list(ImageFormat))
@pytest.mark.parametrize("size_px", [None, (64, 64), (100, 30), (256, 256), (1, 1)])
def test_the_file_has_the_asked_format_and_size(format: ImageFormat, size_px: tuple[int, int] | None) -> None:
    image = decoded(encode_image(GRADIENT, format, size_px=size_px))
    assert image.format == format.name
    assert image.size == (size_px or (64, 64))


def test_resizing_is_lanczos() -> None:
    expected = np.asarray(Image.fromarray(GRADIENT).resize((150, 150), Image.Resampling.LANCZOS))
    assert np.array_equal(np.asarray(decoded(encode_image(GRADIENT, ImageFormat.PNG, size_px=(150, 150)))), expected)


@pytest.mark.parametrize("format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_quality_trades_bytes_for_fidelity(format: ImageFormat) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = [len(encode_image(noise, format, quality=quality)) for quality in (0, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] / 2
    error = np.abs(np.asarray(decoded(encode_image(GRADIENT, format))).astype(int) - GRADIENT)
    assert error.mean() < 2  # the default is meant to be looked at


def test_data_urls_name_the_media_type() -> None:
    assert data_url(b"\x00\x01", ImageFormat.WEBP) == "data:image/webp;base64,AAE="


def test_a_png_is_no_larger_than_zlibs_default_makes_it() -> None:
    """What is saved in time must not be paid in bytes: these models' pictures are smooth."""
    smooth = np.asarray(Image.fromarray(GRADIENT).resize((512, 512), Image.Resampling.LANCZOS))
    default = io.BytesIO()
    Image.fromarray(smooth).save(default, "PNG")
    assert len(encode_image(smooth, ImageFormat.PNG)) < 1.1 * len(default.getvalue())


def test_further_texts_go_into_a_png_in_any_script() -> None:
    texts = {"parameters": "a red apple\nSteps: 16", "other": "яблоко 🍎"}
    image = decoded(encode_image(GRADIENT, ImageFormat.PNG, texts=texts))
    assert {name: image.info[name] for name in texts} == texts
    assert decoded(encode_image(GRADIENT, ImageFormat.JPEG, texts=texts)).format == "JPEG"


def test_cutting_keeps_the_shapes_in_the_picture() -> None:
    """A wide picture cut to a square is its middle; stretched, it is all of it."""
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200
    cut = np.asarray(decoded(encode_image(wide, ImageFormat.PNG, size_px=(16, 16), fit="crop")))
    stretched = np.asarray(decoded(encode_image(wide, ImageFormat.PNG, size_px=(16, 16))))
    assert (cut == 200).all()
    assert (stretched[:, :3] < 50).all() and (stretched[:, 7:9] > 150).all()
