"""Named colours, how artwork is recoloured to them, and the painted backgrounds."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.89, 0.13, 0.16),
    "orange": (0.98, 0.53, 0.10),
    "yellow": (0.99, 0.83, 0.13),
    "green": (0.17, 0.66, 0.24),
    "blue": (0.13, 0.40, 0.92),
    "purple": (0.56, 0.25, 0.80),
    "pink": (0.98, 0.52, 0.74),
    "brown": (0.52, 0.31, 0.16),
    "black": (0.13, 0.13, 0.15),
    "white": (0.96, 0.96, 0.97),
    "gray": (0.58, 0.58, 0.60),
}
COLOUR_NAMES = tuple(COLOURS)
SPELLINGS = {"gray": ("gray", "grey")}

# scene → the phrases that ask for it
SCENES: dict[str, tuple[str, ...]] = {
    "space": ("in space", "in outer space", "among the stars"),
    "night": ("at night", "in the night", "in the dark"),
    "grass": ("on the grass", "on grass", "in a meadow", "in a field"),
    "beach": ("on the beach", "on a beach", "at the beach"),
    "sea": ("in the sea", "underwater", "in the ocean", "under water"),
    "snow": ("in the snow", "in winter", "on the snow"),
    "sky": ("in the sky", "in the clouds", "in the air"),
    "sunset": ("at sunset", "in the sunset", "in front of a sunset"),
    "desert": ("in the desert", "in a desert"),
}
_SCENE_VARIANTS = 2


def tint(rgb: Tensor, alpha: Tensor, target: Tensor, colourful: Tensor, mid: Tensor) -> Tensor:
    """Recolour artwork to a named colour, keeping its light and shade.

    rgb (B,3,S,S) and alpha (B,1,S,S) in [0,1]; target (B,3); colourful (B,) bool: recolour only the
    saturated pixels (a red car keeps its windows and tyres); mid (B,): the luminance that becomes
    exactly `target`. Darker pixels go towards black, lighter ones towards white.
    """
    luminance = (rgb * rgb.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    chroma = rgb.amax(1, keepdim=True) - rgb.amin(1, keepdim=True)
    mid = mid.view(-1, 1, 1, 1)
    target = target.view(-1, 3, 1, 1)
    shade = (luminance / mid).clamp(max=1)
    light = ((luminance - mid) / (1 - mid)).clamp(min=0)
    recoloured = target * (0.3 + 0.7 * shade) + (1 - target) * 0.45 * light
    saturated = ((chroma - 0.10) / 0.15).clamp(0, 1)
    weight = torch.where(colourful.view(-1, 1, 1, 1), saturated, torch.ones_like(saturated))
    return torch.lerp(rgb, recoloured, weight * (alpha > 0))


def tint_statistics(rgba: np.ndarray) -> tuple[bool, float]:
    """(colourful, mid luminance) of one sprite, rgba (S,S,4) in [0,1]: what `tint` needs to know about it."""
    rgb, opaque = rgba[..., :3], rgba[..., 3] > 0.5
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    chroma = rgb.max(-1) - rgb.min(-1)
    saturated = opaque & (chroma > 0.2)
    colourful = saturated.sum() > 0.2 * opaque.sum()
    pixels = luminance[saturated if colourful else opaque]
    return bool(colourful), float(np.clip(np.median(pixels), 0.15, 0.85))


def backgrounds(image_px: int, seed: int = 0) -> dict[str, Tensor]:
    """Every background as (V,3,image_px,image_px) in [0,1], V variants: the colours (V=1) and the scenes."""
    painted = {"plain": torch.ones(1, 3, image_px, image_px)}
    for name, rgb in COLOURS.items():
        soft = torch.tensor(rgb) * 0.9 + 0.1 * torch.tensor(rgb).clamp(min=0.5)
        painted[name] = soft.view(1, 3, 1, 1).expand(1, 3, image_px, image_px).clone()
    rng = np.random.default_rng(seed)
    for name in SCENES:
        variants = [_paint(name, image_px, rng) for _ in range(_SCENE_VARIANTS)]
        painted[name] = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in variants])
    return painted


def _paint(scene: str, image_px: int, rng: np.random.Generator) -> np.ndarray:
    """One picture of a scene, (image_px,image_px,3) in [0,1], drawn at 4× and reduced."""
    side = 256
    top, bottom, horizon, ground = {
        "space": ((8, 8, 28), (24, 14, 54), 1.0, None),
        "night": ((12, 20, 60), (40, 56, 110), 0.78, (20, 44, 40)),
        "grass": ((140, 205, 250), (205, 235, 255), 0.6, (96, 180, 70)),
        "beach": ((120, 200, 250), (60, 160, 220), 0.58, (240, 214, 150)),
        "sea": ((70, 180, 225), (10, 70, 150), 1.0, None),
        "snow": ((170, 200, 230), (215, 230, 245), 0.6, (246, 249, 253)),
        "sky": ((80, 160, 240), (170, 215, 250), 1.0, None),
        "sunset": ((96, 50, 120), (255, 150, 60), 0.75, (70, 36, 60)),
        "desert": ((250, 220, 160), (255, 236, 200), 0.6, (224, 168, 92)),
    }[scene]
    ramp = np.linspace(0, 1, side)[:, None, None]
    image = Image.fromarray(
        np.broadcast_to(np.array(top) * (1 - ramp) + np.array(bottom) * ramp, (side, side, 3)).astype(np.uint8)
    )
    draw = ImageDraw.Draw(image)
    if ground is not None:
        draw.rectangle((0, int(side * horizon), side, side), fill=ground)
    if scene in ("space", "night"):
        for x, y in rng.integers(0, int(side * min(horizon, 0.95)), (14, 2)):
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(255, 250, 220))
    if scene in ("sky", "snow"):
        for x, y in rng.integers(0, side if scene == "snow" else 200, (18 if scene == "snow" else 4, 2)):
            size = 3 if scene == "snow" else 22
            draw.ellipse(
                (x - 2 * size, y - size, x + 2 * size, y + size)
                if scene == "sky"
                else (x - size, y - size, x + size, y + size),
                fill="white",
            )
    if scene == "sunset":
        draw.ellipse((88, 120, 168, 200), fill=(255, 214, 90))
        draw.rectangle((0, int(side * horizon), side, side), fill=ground)
    if scene == "sea":
        for x, y in rng.integers(16, side - 16, (7, 2)):
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=(200, 240, 255), width=3)
    reduced = image.resize((image_px, image_px), Image.Resampling.BOX)
    return np.asarray(reduced, dtype=np.float32) / 255
