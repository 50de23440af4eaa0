"""Scenes: what is in a picture (SceneSpec), where it goes (layout), and the pixels (Composer).

A spec is drawn at random, or written down for the evaluation. `captions.py` puts the same spec into
words, so that text and picture cannot disagree.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.artwork import Atlas
from training.concepts import Concept
from training.held_out import HeldOut
from training.palette import COLOUR_NAMES, COLOURS, SCENES, backgrounds, tint

MAX_LAYERS = 6
RELATIONS = ("left of", "right of", "above", "below", "beside")

# The whole world in one table: name → (x, y) of the centre, in units of the picture's side.
POSITIONS = {
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
SIZES = {"small": 0.375, "big": 0.9375}
GRIDS = {
    2: (0.44, ((0.25, 0.5), (0.75, 0.5))),
    3: (0.44, ((0.25, 0.25), (0.75, 0.25), (0.5, 0.75))),
    4: (0.44, ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))),
    5: (0.34, ((0.1875, 0.1875), (0.8125, 0.1875), (0.5, 0.5), (0.1875, 0.8125), (0.8125, 0.8125))),
    6: (0.32, ((0.1875, 0.25), (0.5, 0.25), (0.8125, 0.25), (0.1875, 0.75), (0.5, 0.75), (0.8125, 0.75))),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One kind of object in a scene. `colour` is a tint; None is the artwork as drawn."""

    concept: int
    colour: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSpec:
    """One thing (alone or `count` times), or two things in a relation, on a background, in a style."""

    things: tuple[Thing, ...]
    relation: str | None = None  # one of RELATIONS: things[0] is … things[1]
    count: int = 1
    position: str | None = None
    size: str | None = None
    background: str = "plain"
    style: str = "3d"


@dataclass(frozen=True, slots=True)
class Layer:
    """One sprite to paste: atlas row, tint, centre and side in units of the picture's side."""

    sprite: int
    colour: str | None
    x: float
    y: float
    side: float


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the kinds of scene, and of the details within a kind."""

    pairs: float = 0.25
    counts: float = 0.13
    colour: float = 0.4
    colour_background: float = 0.22
    scene_background: float = 0.08
    position: float = 0.1
    size: float = 0.08
    flat: float = 0.06


class SceneSampler:
    """Draws specs that contain no held-out combination. One `random.Random` decides everything."""

    def __init__(self, concepts: list[Concept], held_out: HeldOut, mixture: Mixture):
        self.concepts = concepts
        self.mixture = mixture
        self.held_out = held_out
        self.all = [i for i, concept in enumerate(concepts) for _ in range(concept.weight)]
        self.countable = [i for i in self.all if concepts[i].countable]

    def sample(self, rng: random.Random) -> SceneSpec:
        while True:
            spec = self._draw(rng)
            if not self.held_out.contains(spec):
                return spec

    def _draw(self, rng: random.Random) -> SceneSpec:
        mix = self.mixture
        kind = rng.random()
        look = {"background": self._background(rng), "style": "flat" if rng.random() < mix.flat else "3d"}
        if kind < mix.pairs:
            things = tuple(self._thing(rng, self.all, mix.colour / 2) for _ in range(2))
            return SceneSpec(things=things, relation=rng.choice(RELATIONS), **look)
        if kind < mix.pairs + mix.counts:
            thing = self._thing(rng, self.countable, mix.colour / 2)
            count = rng.choices((2, 3, 4, 5, 6), weights=(4, 4, 3, 2, 2))[0]
            return SceneSpec(things=(thing,), count=count, **look)
        thing = self._thing(rng, self.all, mix.colour)
        placed = rng.random()
        if placed < mix.position:
            return SceneSpec(things=(thing,), position=rng.choice(list(POSITIONS)), **look)
        size = rng.choice(list(SIZES)) if placed < mix.position + mix.size else None
        return SceneSpec(things=(thing,), size=size, **look)

    def _thing(self, rng: random.Random, choices: list[int], share: float) -> Thing:
        concept = rng.choice(choices)
        tinted = self.concepts[concept].tintable and rng.random() < share
        return Thing(concept, rng.choice(COLOUR_NAMES) if tinted else None)

    def _background(self, rng: random.Random) -> str:
        drawn = rng.random()
        if drawn < self.mixture.colour_background:
            return rng.choice(COLOUR_NAMES)
        if drawn < self.mixture.colour_background + self.mixture.scene_background:
            return rng.choice(list(SCENES))
        return "plain"


@dataclass(frozen=True, slots=True)
class Placement:
    """The play that a spec leaves: an offset, and the side of a thing whose size nobody asked for."""

    dx: float
    dy: float
    side: float


# Steps of a whole token (8 px of 64) and one size, not a continuum: a thing moved by a token is nearly the same tokens
# moved, so that every example teaches all placements. The middle is as likely as both sides together.
_OFFSETS = (-1 / 8, 0.0, 0.0, 1 / 8)
_SIDES = (0.75,)


def placements(spec: SceneSpec) -> list[Placement]:
    """Every placement that leaves the caption true; one of them is drawn, each listed as often as it is likely."""
    if spec.relation in ("above", "below"):
        return [Placement(dx, 0.0, 0.46) for dx in _OFFSETS]
    if spec.relation is not None:
        return [Placement(0.0, dy, 0.46) for dy in _OFFSETS]
    if spec.count > 1 or spec.position is not None:
        return [Placement(0.0, 0.0, 0.46)]
    if spec.size == "big":
        return [Placement(0.0, 0.0, SIZES["big"])]
    if spec.size == "small":
        return [Placement(dx, 0.0, SIZES["small"]) for dx in _OFFSETS]
    return [Placement(dx, dy, side) for side in _SIDES for dx in _OFFSETS for dy in _OFFSETS]


def layout(spec: SceneSpec, atlas: Atlas, placement: Placement) -> list[Layer]:
    """Where a spec's things go."""

    def layer(thing: Thing, x: float, y: float, side: float = placement.side) -> Layer:
        return Layer(atlas.index(spec.style, thing.concept), thing.colour, x, y, side)

    thing = spec.things[0]
    x, y = 0.5 + placement.dx, 0.5 + placement.dy
    if spec.relation in ("above", "below"):
        upper, lower = spec.things if spec.relation == "above" else spec.things[::-1]
        return [layer(upper, x, 0.25), layer(lower, x, 0.75)]
    if spec.relation is not None:
        left, right = spec.things[::-1] if spec.relation == "right of" else spec.things
        return [layer(left, 0.25, y), layer(right, 0.75, y)]
    if spec.count > 1:
        side, places = GRIDS[spec.count]
        return [layer(thing, *place, side) for place in places]
    if spec.position is not None:
        return [layer(thing, *POSITIONS[spec.position])]
    return [layer(thing, x, y)]


class Composer:
    """Turns batches of layers into pictures with torch, on whatever device it is moved to."""

    def __init__(self, atlas: Atlas, image_px: int, device: torch.device | str = "cpu"):
        self.atlas = atlas
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
        return self.compose_at(specs, [rng.choice(placements(spec)) for spec in specs], rng)

    def compose_at(self, specs: list[SceneSpec], where: list[Placement], rng: random.Random) -> Tensor:
        """Pictures of `specs` at given placements; `rng` only chooses among the variants of a background."""
        layouts = [layout(spec, self.atlas, placement) for spec, placement in zip(specs, where, strict=True)]
        canvas = torch.stack([rng.choice(list(self.backgrounds[spec.background])) for spec in specs])
        for depth in range(max(map(len, layouts))):
            rows = [(row, layers[depth]) for row, layers in enumerate(layouts) if depth < len(layers)]
            for level in range(len(self.levels)):
                at_level = [(row, layer) for row, layer in rows if self._level(layer.side) == level]
                if at_level:
                    index = torch.tensor([row for row, _ in at_level], device=self.device)
                    canvas[index] = self._paste(canvas[index], [layer for _, layer in at_level], level)
        return canvas

    def _level(self, side: float) -> int:
        """The smallest mip level that still has at least one texel per pixel."""
        needed_px = side * self.image_px
        return max(level for level, sprites in enumerate(self.levels) if level == 0 or sprites.shape[1] >= needed_px)

    def _paste(self, canvas: Tensor, layers: list[Layer], level: int) -> Tensor:
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
        # theta maps picture coordinates (−1…1) to sprite coordinates.
        theta = torch.tensor(
            [[[1 / at.side, 0, (1 - 2 * at.x) / at.side], [0, 1 / at.side, (1 - 2 * at.y) / at.side]] for at in layers],
            device=self.device,
        )
        grid = F.affine_grid(theta, [len(layers), 4, self.image_px, self.image_px], align_corners=False)
        placed = F.grid_sample(premultiplied, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return canvas * (1 - placed[:, 3:]) + placed[:, :3]


def _premultiplied(sprites: Tensor) -> Tensor:
    """(N,S,S,4) uint8 straight alpha → (N,4,S,S) float premultiplied."""
    image = sprites.permute(0, 3, 1, 2).float() / 255
    return torch.cat([image[:, :3] * image[:, 3:], image[:, 3:]], 1)
