"""The sizes in which pictures are handed out."""

from __future__ import annotations

import re

MIN_SIDE_PX, MAX_SIDE_PX = 16, 3840
MAX_PICTURE_PIXELS = 3840 * 2160
MAX_RATIO = 3
_SIZE = re.compile(r"([0-9]{2,4})x([0-9]{2,4})")


def parse_size(size: str | None) -> tuple[int, int] | None:
    """(width, height) of `WIDTHxHEIGHT`; None, the model's own size, for `auto` and nothing. Raises ValueError."""
    if size in (None, "", "auto"):
        return None
    match = _SIZE.fullmatch(size)
    if not match:
        raise ValueError(f"auto or WIDTHxHEIGHT with sides of {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels")
    width, height = int(match[1]), int(match[2])
    check_sides(width, height)
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"no longer than {MAX_RATIO} times its other side")
    return width, height


def check_sides(width: int, height: int) -> None:
    """Raises ValueError, in words that follow "must be"."""
    if not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in (width, height)):
        raise ValueError(f"auto or WIDTHxHEIGHT with sides of {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels")
    if width * height > MAX_PICTURE_PIXELS:
        raise ValueError(f"no larger than 3840x2160: {MAX_PICTURE_PIXELS:,} pixels")
