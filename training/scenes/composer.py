"""Pixels of scenes: artwork pasted on backgrounds, in batches."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.scenes.artwork import Atlas
from training.scenes.palette import COLOURS, backgrounds, tint
from training.scenes.spec import Layer, Placement, SceneSpec, Variety, layout


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a picture shows: things on one of the variants of a background."""

    background: str
    variant: int
    layers: tuple[Layer, ...]


class Composer:
    """Turns batches of layers into pictures with torch, on whatever device it is moved to."""

    def __init__(self, atlas: Atlas, image_px: int, variety: Variety, device: torch.device | str = "cpu"):
        self.atlas = atlas
        self.variety = variety
        self.image_px = image_px
        self.device = torch.device(device)
        # Mip levels: each is reduced at most 2× further by the bilinear sampler, so nothing aliases.
        self.levels = [atlas.sprites.to(self.device)]
        while self.levels[-1].shape[1] > image_px // 4:
            smaller = F.avg_pool2d(_premultiplied(self.levels[-1]), 2)
            straight = torch.cat([smaller[:, :3] / smaller[:, 3:].clamp(min=1 / 255), smaller[:, 3:]], 1)
            self.levels.append((straight.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1))
        self.backgrounds = {name: image.to(self.device) for name, image in backgrounds(image_px).items()}

    def compose(self, specs: list[SceneSpec], rng: random.Random) -> Tensor:
        """Pictures of `specs`, with placements drawn at random: (B,3,image_px,image_px) in [0,1]."""
        return self.paint(self.plan(specs, rng))

    def compose_at(self, specs: list[SceneSpec], where: list[Placement], rng: random.Random) -> Tensor:
        """Pictures of `specs` at given placements; `rng` only chooses among the variants of a background."""
        return self.paint(self._plan_at(specs, where, rng))

    def plan(self, specs: list[SceneSpec], rng: random.Random) -> list[Plan]:
        """What pictures of `specs` would show, placements and variants drawn at random."""
        return self._plan_at(specs, [self.variety.draw(spec, rng) for spec in specs], rng)

    def _plan_at(self, specs: list[SceneSpec], where: list[Placement], rng: random.Random) -> list[Plan]:
        grid = self.variety.grid
        layouts = [layout(spec, self.atlas, placement, grid) for spec, placement in zip(specs, where, strict=True)]
        variants = [rng.randrange(len(self.backgrounds[spec.background])) for spec in specs]
        return [
            Plan(spec.background, variant, tuple(layers))
            for spec, variant, layers in zip(specs, variants, layouts, strict=True)
        ]

    def paint(self, plans: list[Plan]) -> Tensor:
        """(B,3,image_px,image_px) in [0,1]."""
        canvas = torch.stack([self.backgrounds[plan.background][plan.variant] for plan in plans])
        for depth in range(max(len(plan.layers) for plan in plans)):
            rows = [(row, plan.layers[depth]) for row, plan in enumerate(plans) if depth < len(plan.layers)]
            for level in range(len(self.levels)):
                at_level = [(row, layer) for row, layer in rows if self._level(layer.side) == level]
                if at_level:
                    index = torch.tensor([row for row, _ in at_level], device=self.device)
                    canvas[index] = self._paste(canvas[index], [layer for _, layer in at_level], level)
        return canvas

    def cover(self, layers: list[Layer]) -> Tensor:
        """How much of every pixel each layer covers, its white line left out: (B,1,image_px,image_px) in [0,1]."""
        return torch.cat([self._placed([layer], self._level(layer.side))[:, 3:] for layer in layers])

    def _level(self, side: float) -> int:
        """The smallest mip level that still has at least one texel per pixel."""
        needed_px = side * self.image_px
        return max(level for level, sprites in enumerate(self.levels) if level == 0 or sprites.shape[1] >= needed_px)

    def _paste(self, canvas: Tensor, layers: list[Layer], level: int) -> Tensor:
        placed = self._placed(layers, level)
        sticker = self._outlined(placed[:, 3:], [layer.outline for layer in layers])
        return canvas * (1 - sticker) + (sticker - placed[:, 3:]) + placed[:, :3]

    def _placed(self, layers: list[Layer], level: int) -> Tensor:
        """Each layer alone, premultiplied: (B,4,image_px,image_px)."""
        sprite = torch.tensor([layer.sprite for layer in layers], device=self.device)
        straight = self.levels[level][sprite].permute(0, 3, 1, 2).float() / 255
        rgb, alpha = straight[:, :3], straight[:, 3:]
        tinted = [row for row, layer in enumerate(layers) if layer.colour is not None]
        if tinted:
            row = torch.tensor(tinted, device=self.device)
            target = torch.tensor([COLOURS[layers[i].colour or ""] for i in tinted], device=self.device)
            which = sprite[row]
            mid, colourful = self.atlas.mid.to(self.device)[which], self.atlas.colourful.to(self.device)[which]
            rgb = rgb.index_copy(0, row, tint(rgb[row], alpha[row], target, colourful, mid))
        premultiplied = torch.cat([rgb * alpha, alpha], 1)
        theta = torch.tensor([_to_sprite(layer) for layer in layers], device=self.device)
        grid = F.affine_grid(theta, [len(layers), 4, self.image_px, self.image_px], align_corners=False)
        return F.grid_sample(premultiplied, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _outlined(self, alpha: Tensor, widths: list[float]) -> Tensor:
        """The alpha (B,1,H,W) of things with their white lines: all that is within a width of them."""
        outlined = alpha.clone()
        for width in set(widths) - {0.0}:
            rows = [row for row, own in enumerate(widths) if own == width]
            outlined[rows] = F.conv2d(alpha[rows], self._disc(width), padding="same").clamp(max=1)
        return outlined

    def _disc(self, radius: float) -> Tensor:
        """Ones within `radius` of the middle, falling to zero over a pixel: (1,1,K,K)."""
        reach = math.ceil(radius * self.image_px)
        steps = torch.arange(-reach, reach + 1.0, device=self.device)
        distance = torch.hypot(*torch.meshgrid(steps, steps, indexing="ij"))
        return (radius * self.image_px + 0.5 - distance).clamp(0, 1)[None, None]


def _premultiplied(sprites: Tensor) -> Tensor:
    """(N,S,S,4) uint8 straight alpha → (N,4,S,S) float premultiplied."""
    image = sprites.permute(0, 3, 1, 2).float() / 255
    return torch.cat([image[:, :3] * image[:, 3:], image[:, 3:]], 1)


def _to_sprite(layer: Layer) -> list[list[float]]:
    """The affine map (2, 3) from picture coordinates (−1…1) to the layer's sprite coordinates."""
    turn = math.radians(layer.turn_degrees)
    flip = -1.0 if layer.mirrored else 1.0
    cos, sin = math.cos(turn) / layer.side, math.sin(turn) / layer.side
    dx, dy = 1 - 2 * layer.x, 1 - 2 * layer.y
    return [[flip * cos, flip * sin, flip * (cos * dx + sin * dy)], [-sin, cos, cos * dy - sin * dx]]
