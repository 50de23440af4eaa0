"""A scene as image tokens, put together from those of its things and of its background, each seen for itself.

An encoder's tokens never speak of one thing alone: its norms look at the whole picture, so that before another
background, or beside another thing, nine of ten tokens of a thing are others, and a transformer would have to learn
every thing in every company. Stamped, a thing of one size, tint and artwork is the same tokens in every scene. The
decoder learns to paint what surrounds it into its outermost tokens and those beside them (painter.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_server.models.vqgan import VQGAN
from training.learning.vqgan import tokenize_images
from training.scenes.composer import Composer, Plan
from training.scenes.spec import AMONG_MANY, Layer, on_grid

_BATCH = 32
_TOUCHED = 0.02  # a token is a thing's where the thing covers more than this share of its pixels
_VIEWS = 16  # rounds of four pictures of a background, each with one thing near another corner
_MOST_KEPT = 100_000  # stamps, of about a kilobyte each


class _Stamp(NamedTuple):
    ids: Tensor  # (grid, grid) int16, of the whole page
    touched: Tensor  # (grid, grid) bool: where they are the thing's


class Stamps:
    """Every thing and background is encoded when first needed, and kept."""

    def __init__(self, composer: Composer, vqgan: VQGAN):
        self._composer, self._vqgan = composer, vqgan
        self._grid = composer.variety.grid
        self._things: dict[Layer, _Stamp] = {}
        self._grounds: dict[tuple[str, int], Tensor] = {}

    def tokens(self, plans: list[Plan]) -> Tensor:
        """Ids of the scenes, (B, I) on the CPU."""
        if len(self._things) > _MOST_KEPT:
            self._things.clear()
        asked = {_at_middle(layer, self._grid)[0] for plan in plans for layer in plan.layers}
        self._encode(asked - self._things.keys())
        return torch.stack([self._stamped(plan) for plan in plans]).flatten(1).long()

    def _stamped(self, plan: Plan) -> Tensor:
        """A thing alone on the plain page is all that the encoder says of it, as of a client's picture of a thing."""
        if plan.background == "plain" and len(plan.layers) == 1:
            middle, moved = _at_middle(plan.layers[0], self._grid)
            if moved == (0, 0):
                return self._things[middle].ids
        ids = self._ground(plan.background, plan.variant).clone()
        for layer in plan.layers:
            middle, moved = _at_middle(layer, self._grid)
            own, touched = (torch.roll(part, moved, (0, 1)) for part in self._things[middle])
            ids = torch.where(touched, own, ids)
        return ids

    def _encode(self, layers: Iterable[Layer]) -> None:
        """Each alone on the plain page."""
        queue = sorted(layers, key=repr)
        for start in range(0, len(queue), _BATCH):
            part = queue[start : start + _BATCH]
            ids = self._ids(self._composer.paint([Plan("plain", 0, (layer,)) for layer in part]))
            self._things.update(zip(part, map(_Stamp, ids, self._touched(part)), strict=True))

    def _ground(self, background: str, variant: int) -> Tensor:
        """What the encoder mostly says of each place of a background where nothing stands on it, or beside it.

        Not of the empty background: no picture that the VQGAN was trained on is empty.
        """
        key = background, variant
        if key not in self._grounds:
            layers = _passers_by(self._composer, background)
            seen = [
                self._ids(self._composer.paint([Plan(background, variant, (one,)) for one in part])) for part in layers
            ]
            near = [F.max_pool2d(self._touched(part).float(), 3, 1, 1) > 0 for part in layers]
            free = torch.cat(seen).masked_fill(torch.cat(near), -1).flatten(1)
            if not (free >= 0).any(0).all():
                raise ValueError(
                    f"a grid of {self._grid} × {self._grid} tokens is too small for stamps: take 10 × 10 or more"
                )
            modes = [ids[ids >= 0].mode().values for ids in free.T]
            self._grounds[key] = torch.stack(modes).view(self._grid, self._grid)
        return self._grounds[key]

    def _ids(self, images: Tensor) -> Tensor:
        return tokenize_images(self._vqgan, images).view(-1, self._grid, self._grid).to("cpu", torch.int16)

    def _touched(self, layers: list[Layer]) -> Tensor:
        """(B, grid, grid) bool: the tokens that a thing stands on."""
        cell = self._composer.image_px // self._grid
        return F.avg_pool2d(self._composer.cover(layers), cell)[:, 0].cpu() > _TOUCHED


def _at_middle(layer: Layer, grid: int) -> tuple[Layer, tuple[int, int]]:
    """The layer without its line, moved by whole tokens about to the middle; how far down and right to move back."""
    right, down = (math.floor((place - 0.5) * grid + 0.501) for place in (layer.x, layer.y))
    middle = replace(layer, x=round(layer.x - right / grid, 6), y=round(layer.y - down / grid, 6), outline=0.0)
    return middle, (down, right)


def _passers_by(composer: Composer, background: str) -> list[list[Layer]]:
    """Small things near every corner, in batches: they leave every place free."""
    rng = random.Random(f"ground {background}")
    grid, sprites = composer.variety.grid, len(composer.atlas.sprites)
    line = 0.0 if background == "plain" else composer.variety.outline
    corners = [(on_grid(x, AMONG_MANY, grid), on_grid(y, AMONG_MANY, grid)) for x in (0.2, 0.8) for y in (0.2, 0.8)]
    return [
        [Layer(rng.randrange(sprites), None, x, y, AMONG_MANY, outline=line) for x, y in corners] for _ in range(_VIEWS)
    ]
