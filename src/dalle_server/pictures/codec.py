"""Pixels to files: PNG, JPEG or WebP bytes, resized when asked, with the metadata that replays them."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, Protocol

from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from dalle_server.drawn import Drawn
from dalle_server.generation import GeneratedImage
from dalle_server.models.config import ModelConfig
from dalle_server.pictures.metadata import DrawnOver, PictureMetadata, save_options
from dalle_server.request import Pixels

DEFAULT_QUALITY = 95  # of JPEG and WebP: Pillow's 75 shows blocks around the hard edges these models paint
Fit = Literal["stretch", "crop"]  # how another shape is reached: crop cuts off what is too much, in the middle


class PaintedBy(Protocol):
    """What a picture says of the model that painted it."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def digest(self) -> str:
        """Of the weights."""
        ...


class ImageFormat(StrEnum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"


def resized(pixels: Pixels, size_px: tuple[int, int] | None, fit: Fit = "stretch") -> Image.Image:
    """(height, width, 3) pixels as a picture of (width, height); another size is reached with Lanczos, another shape by
    `fit`.
    """
    image = Image.fromarray(pixels)
    if size_px is None or size_px == image.size:
        return image
    resize = ImageOps.fit if fit == "crop" else Image.Image.resize
    return resize(image, size_px, Image.Resampling.LANCZOS)


def encode_image(
    pixels: Pixels,
    format: ImageFormat,
    *,
    metadata: PictureMetadata | None = None,
    size_px: tuple[int, int] | None = None,
    quality: int | None = None,
    texts: Mapping[str, str] | None = None,
    fit: Fit = "stretch",
) -> bytes:
    """(height, width, 3) pixels → a whole file.

    `size_px` and `fit` as for `resized`. `quality` 0–100 is for JPEG and WebP (PNG loses nothing); None means
    DEFAULT_QUALITY. `texts` are further text chunks of a PNG.
    """
    image = resized(pixels, size_px, fit)
    options = _codec_options(format, DEFAULT_QUALITY if quality is None else quality)
    if metadata is not None:
        options |= save_options(metadata, format.name)
    if texts and format is ImageFormat.PNG:
        chunks: PngInfo = options.setdefault("pnginfo", PngInfo())
        for keyword, text in texts.items():
            chunks.add_text(keyword, text)
    file = io.BytesIO()
    image.save(file, format.name, **options)
    return file.getvalue()


def _codec_options(format: ImageFormat, quality: int) -> dict[str, Any]:
    match format:
        case ImageFormat.PNG:
            # Smooth pictures, filtered line by line, are runs of small numbers: run lengths alone make files as small
            # as level 6 does (512 px: 74 KB against 70) in two fifths of its time.
            return {"compress_level": 1, "compress_type": zlib.Z_RLE}
        case ImageFormat.JPEG:
            # Full-resolution colour: red on blue is where these small pictures suffer first.
            return {"quality": max(1, quality), "subsampling": "4:4:4" if quality >= 90 else "4:2:0"}
        case ImageFormat.WEBP:
            return {"quality": quality, "method": 4}


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def data_url(data: bytes, format: ImageFormat) -> str:
    return f"data:{format.media_type};base64,{base64_text(data)}"


def describe_image(
    image: GeneratedImage, drawn: Drawn, model: PaintedBy, over: DrawnOver | None = None
) -> PictureMetadata:
    """The recipe of a finished picture."""
    return PictureMetadata.of(
        drawn.request_of(image),
        drawn.sampling,
        image,
        model=model.config.name,
        digest=model.digest,
        over=over,
        grid_width=drawn.grid_width,
    )
