"""Pictures that come in: a file becomes pixels, pixels and a mask a square for the model, and its answer goes back.

Pure functions over arrays: no model, no HTTP. What a stranger's file may cost is bounded before it is decoded.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from dalle_server.errors import InvalidRequest, PayloadTooLarge
from dalle_server.request import Pixels

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_PIXELS = 50_000_000
KEPT_PIXELS = 3840 * 2160  # what is larger is made smaller at once: no answer is larger, and memory is not free
LONGEST_PX = 5120  # of a kept side: the model sees a square, and a strip of 100,000 x 2 would be one of 30 GB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # a stranger's file meets no other of Pillow's many readers
FREE_SHARE = 1 / 64  # a token is free if more than this share of its pixels is to be repainted
MASK_RATIO_TOLERANCE = 0.02

Weights = NDArray[np.float32]  # (height, width), 0 keep … 1 repaint
Value = TypeVar("Value", bound=np.generic)

# What Pillow raises for files that are damaged.
UNREADABLE = (OSError, EOFError, ValueError, SyntaxError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_TURNED = {  # EXIF's eight orientations: what puts each upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded file, upright."""

    pixels: Pixels  # (height, width, 3); what is transparent lies on white
    alpha: NDArray[np.uint8] | None  # (height, width); None where all of it is opaque

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height)."""
        height, width = self.pixels.shape[:2]
        return width, height


def read_picture(data: bytes | Image.Image, param: str = "image") -> Picture:
    """A PNG, JPEG, WebP or GIF file, or an opened picture → pixels: the first frame, upright, 8 bits, transparency on
    white.

    Raises InvalidRequest, and PayloadTooLarge for more than MAX_FILE_BYTES or MAX_PIXELS, before decoding.
    """
    if isinstance(data, Image.Image):
        return _opened(data, param)
    if len(data) > MAX_FILE_BYTES:
        raise PayloadTooLarge(f"{param} has {len(data):,} bytes; a picture may have {MAX_FILE_BYTES:,}", param=param)
    if not data:
        raise InvalidRequest(f"{param} is empty; send a PNG, JPEG, WebP or GIF file", param=param)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.size, param)
            image.load()
            return _reduced(_decoded(_upright(image)))
    except UnidentifiedImageError:
        raise InvalidRequest(f"{param} is no PNG, JPEG, WebP or GIF file, or is damaged", param=param) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PayloadTooLarge(f"{param} has too many pixels; {MAX_PIXELS:,} are the most", param=param) from None
    except UNREADABLE as error:
        raise InvalidRequest(f"{param} cannot be read as a picture: {error}", param=param) from None


def _opened(image: Image.Image, param: str) -> Picture:
    """As the picture's file would be read. How large that was does not matter any more."""
    check_size(image.size, param)
    try:
        image.load()
        return _reduced(_decoded(_upright(image)))
    except UNREADABLE as error:
        raise InvalidRequest(f"{param} cannot be read as a picture: {error}", param=param) from None


def read_file(path: Path) -> bytes:
    """A picture's file, whole. Raises InvalidRequest when it cannot be read, PayloadTooLarge."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror or error}", param="image") from None
    if len(data) > MAX_FILE_BYTES:
        raise PayloadTooLarge(f"{path} has more than {MAX_FILE_BYTES:,} bytes; send a smaller picture", param="image")
    return data


def media_type(data: bytes) -> str:
    """`image/png` of a PNG file, and so on. Raises InvalidRequest for what `read_picture` does not take."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return f"image/{str(image.format).lower()}"
    except UNREADABLE:
        raise InvalidRequest("the file is no PNG, JPEG, WebP or GIF file, or is damaged", param="image") from None


def check_size(size: tuple[int, int], param: str) -> None:
    """Raises PayloadTooLarge for a picture of more than MAX_PIXELS, which must not be decoded."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise PayloadTooLarge(
            f"{param} has {width}x{height} pixels; {MAX_PIXELS:,} in all are the most: send a smaller one", param=param
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = _TURNED.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except UNREADABLE:  # broken EXIF says nothing, and the picture is there all the same
        turned = None
    return image if turned is None else image.transpose(turned)


def _decoded(image: Image.Image) -> Picture:
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would cut instead of scaling
        grey = (np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8)
        return Picture(np.repeat(grey[:, :, None], 3, axis=2), None)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        alpha = rgba[:, :, 3]
        if alpha.min() < 255:
            return Picture(_on_white(rgba), alpha)
        return Picture(rgba[:, :, :3].copy(), None)
    return Picture(np.array(image.convert("RGB")), None)


def _reduced(picture: Picture) -> Picture:
    width, height = picture.size_px
    scale = min((KEPT_PIXELS / (width * height)) ** 0.5, LONGEST_PX / max(width, height))
    if scale >= 1.0:
        return picture
    size = max(1, int(width * scale)), max(1, int(height * scale))
    alpha = None if picture.alpha is None else _boxed(picture.alpha, size)
    return Picture(_boxed(picture.pixels, size), alpha)


def reduced(picture: Picture, mask: Weights | None, side_px: int) -> tuple[Picture, Weights | None, float]:
    """Both no longer than `side_px`, and by which factor they were made smaller."""
    scale = side_px / max(picture.size_px)
    if scale >= 1.0:
        return picture, mask, 1.0
    width, height = picture.size_px
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Picture(_boxed(picture.pixels, size), None), None if mask is None else _boxed(mask, size), scale


def _boxed(values: NDArray[Value], size_px: tuple[int, int]) -> NDArray[Value]:
    return np.asarray(Image.fromarray(values).resize(size_px, Image.Resampling.BOX))


def _on_white(rgba: NDArray[np.uint8]) -> Pixels:
    """Rounded to the nearest, so that opaque pixels stay exactly what they are."""
    colour, alpha = rgba[:, :, :3].astype(np.uint32), rgba[:, :, 3:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def mask_from_alpha(picture: Picture) -> Weights | None:
    """What OpenAI's clients mean by a picture with holes: repaint where it is transparent. None: it has none."""
    return None if picture.alpha is None else (1.0 - picture.alpha / 255.0).astype(np.float32)


def mask_from_file(mask: Picture) -> Weights:
    """A mask with transparency means its holes; one without, its white."""
    holes = mask_from_alpha(mask)
    return holes if holes is not None else np.asarray(Image.fromarray(mask.pixels).convert("L"), np.float32) / 255.0


def fit_mask(mask: Weights, size_px: tuple[int, int], param: str = "mask") -> Weights:
    """The mask at the picture's (width, height). Raises InvalidRequest for another shape, or nothing in it."""
    height, width = mask.shape
    if (width, height) != size_px:
        if abs(width / height * size_px[1] / size_px[0] - 1.0) > MASK_RATIO_TOLERANCE:
            raise InvalidRequest(
                f"{param} must have the shape of the picture: it has {width}x{height} pixels, the picture "
                f"{size_px[0]}x{size_px[1]}",
                param=param,
            )
        resized = Image.fromarray(mask).resize(size_px, Image.Resampling.BILINEAR)
        mask = np.clip(np.asarray(resized, dtype=np.float32), 0.0, 1.0)
    if mask.max() < 0.5:
        raise InvalidRequest(
            f"{param} frees nothing: make what is to be repainted transparent, or white where nothing is transparent",
            param=param,
        )
    return mask


@dataclass(frozen=True, slots=True)
class Window:
    """The square of a picture that the model sees. It may reach beyond the edges, where they are repeated."""

    x: int
    y: int
    side: int

    @classmethod
    def around(cls, mask: Weights | None, size_px: tuple[int, int], context: float | None = None) -> Self:
        """The square to repaint a mask in.

        The largest square of the picture that holds the mask; the whole picture in a square, edges repeated, where
        none does. With `context` a tighter one: the mask's own square, grown by that share on each side.
        """
        width, height = size_px
        left, top, right, bottom = (0, 0, width, height) if mask is None else _bounds(mask)
        need = max(right - left, bottom - top)
        side = min(width, height)
        if need > side:
            side = max(width, height)
        elif context is not None:
            side = min(side, max(1, round(need * (1 + 2 * context))))
        return cls(_start(left, right, side, width), _start(top, bottom, side, height), side)

    def cut(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """The window of (height, width, …) values, edges repeated."""
        height, width = pixels.shape[:2]
        rows = np.clip(np.arange(self.y, self.y + self.side), 0, height - 1)
        columns = np.clip(np.arange(self.x, self.x + self.side), 0, width - 1)
        return pixels[rows[:, None], columns[None, :]]


def _bounds(mask: Weights) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is to be repainted; it must not be nothing."""
    rows, columns = np.flatnonzero(mask.max(axis=1)), np.flatnonzero(mask.max(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _start(low: int, high: int, side: int, length: int) -> int:
    """Where a window of `side` begins, so that it is centred on low…high and, if it can, lies within 0…length."""
    if side >= length:
        return (length - side) // 2
    return min(max((low + high - side) // 2, 0), length - side)


def to_model(pixels: Pixels, window: Window, image_px: int) -> Pixels:
    """(image_px, image_px, 3): what the model's encoder reads."""
    square = Image.fromarray(np.ascontiguousarray(window.cut(pixels)))
    return np.asarray(square.resize((image_px, image_px), Image.Resampling.LANCZOS))


def free_tokens(mask: Weights, window: Window, grid_side: int, grow: int = 0) -> NDArray[np.bool_]:
    """(I,) in reading order: which tokens are to be painted. `grow` adds so many tokens around each."""
    square = Image.fromarray(np.ascontiguousarray(window.cut(mask)))
    share = np.asarray(square.resize((grid_side, grid_side), Image.Resampling.BOX))
    free = share > FREE_SHARE
    for _ in range(grow):
        padded = np.pad(free, 1)
        free = np.any([padded[y : y + grid_side, x : x + grid_side] for y in range(3) for x in range(3)], axis=0)
    return free.reshape(-1)


def paste(original: Pixels, painted: Pixels, window: Window, mask: Weights | None, blend_px: int = 4) -> Pixels:
    """The model's square put back into the picture.

    Where the mask is 0 the original's pixels stay, exactly. Inside its border both are blended over `blend_px` pixels.
    """
    side = window.side
    resized = painted
    if painted.shape[0] != side:
        resized = np.asarray(Image.fromarray(painted).resize((side, side), Image.Resampling.LANCZOS))
    height, width = original.shape[:2]
    top, left = max(window.y, 0), max(window.x, 0)
    bottom, right = min(window.y + side, height), min(window.x + side, width)
    inside = (slice(top, bottom), slice(left, right))
    new = resized[top - window.y : bottom - window.y, left - window.x : right - window.x].astype(np.float32)
    result = original.copy()
    if mask is None:
        result[inside] = new.astype(np.uint8)
        return result
    weight = _blended(mask, blend_px)[inside][:, :, None]
    mixed = original[inside].astype(np.float32) * (1.0 - weight) + new * weight
    result[inside] = np.where(weight > 0, np.rint(mixed), original[inside]).astype(np.uint8)
    return result


def _blended(mask: Weights, blend_px: int) -> Weights:
    """The mask, rising from its border inwards over `blend_px` pixels, or half of the way to its middle. 0 stays 0."""
    depth = np.minimum(_depth(mask > 0), blend_px + 1).astype(np.float32)
    width = max(1.0, min(blend_px + 1.0, float(depth.max()) / (2.0 if depth.max() <= blend_px else 1.0)))
    blended: Weights = np.minimum(mask, depth / np.float32(width)).astype(np.float32)
    return blended


def _depth(inside: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(height, width): how many pixels from the border of `inside`, 1 beside it, 0 outside; the picture's own edge is
    no border. Diagonal steps count as one. Two passes, whatever the depth.
    """
    height, width = inside.shape
    columns = np.arange(width, dtype=np.int32)
    depth = np.where(inside, np.int32(height + width), 0).astype(np.int32)
    for rows in (range(height), range(height - 1, -1, -1)):
        above = None
        for y in rows:
            row = depth[y]
            if above is not None:
                near = above.copy()
                near[1:] = np.minimum(near[1:], above[:-1])
                near[:-1] = np.minimum(near[:-1], above[1:])
                row = np.minimum(row, near + 1)
            row = np.minimum(row, np.minimum.accumulate(row - columns) + columns)
            row = np.minimum(row, (np.minimum.accumulate((row + columns)[::-1])[::-1] - columns))
            depth[y] = above = row
    return depth
