"""Scenes: what is in a picture (SceneSpec) and where it goes (Variety, layout).

A spec is drawn at random, or written down for the evaluation. `composer.py` paints it and `captions.py` puts the
same spec into words, so that text and picture cannot disagree.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace
from functools import partial

from training.scenes.artwork import STYLES, Atlas
from training.scenes.concepts import Concept
from training.scenes.held_out import HeldOut
from training.scenes.palette import COLOUR_NAMES, SCENES

RELATIONS = ("left of", "right of", "above", "below", "beside")

# The whole world in one table: name → (x, y) of the centre, in units of the picture's side. `layout` moves a
# thing onto the grid of tokens: there a thing of one size is much the same tokens wherever it stands.
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
# Few sides, for the same reason: of one thing among few, and among many.
AMONG_FEW, AMONG_MANY = 0.5, 0.3
SIZES = {"small": AMONG_FEW, "big": 1.0}
GRIDS = {
    2: (AMONG_FEW, ((0.25, 0.5), (0.75, 0.5))),
    3: (AMONG_FEW, ((0.25, 0.25), (0.75, 0.25), (0.5, 0.75))),
    4: (AMONG_FEW, ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))),
    5: (AMONG_MANY, ((0.2, 0.2), (0.8, 0.2), (0.5, 0.5), (0.2, 0.8), (0.8, 0.8))),
    6: (AMONG_MANY, ((0.2, 0.3), (0.5, 0.3), (0.8, 0.3), (0.2, 0.7), (0.5, 0.7), (0.8, 0.7))),
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
    style: str | None = None  # named by the caption; None leaves it to the seed


@dataclass(frozen=True, slots=True)
class Layer:
    """One sprite to paste: atlas row, tint, centre and side in units of the picture's side."""

    sprite: int
    colour: str | None
    x: float
    y: float
    side: float
    mirrored: bool = False
    turn_degrees: float = 0.0
    outline: float = 0.0  # a white line around it, as a sticker has; its width in units of the picture's side


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the kinds of scene, and of the details within a kind.

    `favour` is how many times as often as others a concept may be shown at most, whatever its weight. `everyday` is the
    share of composed scenes (all but one thing alone, as it is drawn, on the plain page) of everyday things alone; the
    others are of any.
    """

    pairs: float = 0.25
    counts: float = 0.13
    colour: float = 0.4
    colour_background: float = 0.22
    scene_background: float = 0.08
    position: float = 0.1
    size: float = 0.08
    named_style: float = 0.06
    favour: int = 4
    everyday: float = 0.0


class SceneSampler:
    """Draws specs that contain no held-out combination. One `random.Random` decides everything."""

    def __init__(self, concepts: list[Concept], held_out: HeldOut, mixture: Mixture):
        self.concepts = concepts
        self.mixture = mixture
        self.held_out = held_out
        self.all = [i for i, concept in enumerate(concepts) for _ in range(min(concept.weight, mixture.favour))]
        self.countable = [i for i in self.all if concepts[i].countable]
        self.everyday = [i for i in self.all if not concepts[i].extra]
        self.everyday_countable = [i for i in self.everyday if concepts[i].countable]

    def sample(self, rng: random.Random) -> SceneSpec:
        while True:
            spec = self._draw(rng)
            if not self.held_out.contains(spec):
                return spec

    def _draw(self, rng: random.Random) -> SceneSpec:
        mix = self.mixture
        kind = rng.random()
        spec = partial(SceneSpec, background=self._background(rng), style=self._style(rng))
        everyday = rng.random() < mix.everyday
        if kind < mix.pairs:
            choices = self.everyday if everyday else self.all
            things = tuple(self._thing(rng, choices, mix.colour / 2) for _ in range(2))
            return spec(things=things, relation=rng.choice(RELATIONS))
        if kind < mix.pairs + mix.counts:
            choices = self.everyday_countable if everyday else self.countable
            count = rng.choices((2, 3, 4, 5, 6), weights=(4, 4, 3, 2, 2))[0]
            return spec(things=(self._thing(rng, choices, mix.colour / 2),), count=count)
        placed = rng.random()
        position = rng.choice(list(POSITIONS)) if placed < mix.position else None
        size = rng.choice(list(SIZES)) if mix.position <= placed < mix.position + mix.size else None
        tint = rng.random() < mix.colour
        composed = tint or spec(things=(), position=position, size=size, style=None) != SceneSpec(things=())
        thing = self._thing(rng, self.everyday if everyday and composed else self.all, float(tint))
        return spec(things=(thing,), position=position, size=size)

    def _thing(self, rng: random.Random, choices: list[int], share: float) -> Thing:
        concept = rng.choice(choices)
        tinted = self.concepts[concept].tintable and rng.random() < share
        return Thing(concept, rng.choice(COLOUR_NAMES) if tinted else None)

    def _style(self, rng: random.Random) -> str | None:
        return rng.choice(STYLES) if rng.random() < self.mixture.named_style else None

    def _background(self, rng: random.Random) -> str:
        drawn = rng.random()
        if drawn < self.mixture.colour_background:
            return rng.choice(COLOUR_NAMES)
        if drawn < self.mixture.colour_background + self.mixture.scene_background:
            return rng.choice(list(SCENES))
        return "plain"


@dataclass(frozen=True, slots=True)
class Placement:
    """The play that a spec leaves: an offset, the side of a thing whose size nobody asked for, the artwork, a turn."""

    dx: float
    dy: float
    side: float
    style: str = "3d"
    mirrored: bool = False
    turn_degrees: float = 0.0
    outline: float = 0.0  # before a background, see Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Variety:
    """What a seed may change beside places: the styles of scenes that name none, a share mirrored, a slight turn.

    `grid` is the number of tokens along a side, to which places keep. `play` is by how many tokens a thing may stand
    to a side of where its caption puts it: a thing that always stands in one place is learned several times sooner.
    `composed_styles` are those of every scene but one thing alone, as it is drawn, on the plain page, where they shall
    be fewer: an artwork is other tokens in every colour, before every background and at every size. An `outline` makes
    stickers of things before a background, so that a few tokens can tell one from the other.
    """

    styles: tuple[str, ...] = ("3d",)
    composed_styles: tuple[str, ...] = ()
    mirrored: float = 0.0
    turn_degrees: float = 0.0
    outline: float = 0.0
    grid: int = 8
    play: int = 1

    @property
    def alone(self) -> float:
        """The side of a thing that has the picture to itself: a token of space all round."""
        return 1 - 2 / self.grid

    def draw(self, spec: SceneSpec, rng: random.Random) -> Placement:
        """One placement, as likely as a training example has it."""
        return replace(
            rng.choice(self._places(spec)),
            style=rng.choice(self._styles(spec)),
            mirrored=rng.random() < self.mirrored,
            turn_degrees=rng.uniform(-self.turn_degrees, self.turn_degrees),
            outline=self.outline,
        )

    def every(self, spec: SceneSpec) -> list[Placement]:
        """Every different placement, upright."""
        sides = (False, True) if self.mirrored else (False,)
        places = dict.fromkeys(self._places(spec))
        return [
            replace(at, style=style, mirrored=side, outline=self.outline)
            for at, style, side in itertools.product(places, self._styles(spec), sides)
        ]

    def _styles(self, spec: SceneSpec) -> tuple[str, ...]:
        if spec.style:
            return (spec.style,)
        alone = spec == SceneSpec(things=(Thing(spec.things[0].concept),))
        return self.styles if alone else self.composed_styles or self.styles

    def _places(self, spec: SceneSpec) -> list[Placement]:
        """Every offset that leaves the caption true, each listed as often as it is likely.

        Steps of whole tokens, not a continuum: every example teaches all placements. The middle is as likely as
        both sides together.
        """
        offsets = (-self.play / self.grid, 0.0, 0.0, self.play / self.grid)
        if spec.relation in ("above", "below"):
            return [Placement(dx, 0.0, AMONG_FEW) for dx in offsets]
        if spec.relation is not None:
            return [Placement(0.0, dy, AMONG_FEW) for dy in offsets]
        if spec.count > 1 or spec.position is not None:
            return [Placement(0.0, 0.0, AMONG_FEW)]
        if spec.size == "big":
            return [Placement(0.0, 0.0, SIZES["big"])]
        if spec.size == "small":
            return [Placement(dx, 0.0, SIZES["small"]) for dx in offsets]
        return [Placement(dx, dy, self.alone) for dx in offsets for dy in offsets]


def on_grid(place: float, side: float, grid: int) -> float:
    """The corner of the grid nearest to a centre, or the middle of a token: where a thing covers whole tokens."""
    width = side * grid
    odd = round(width) % 2 == 1 and abs(width - round(width)) < 0.01
    return (math.floor(place * grid + 0.001) + 0.5) / grid if odd else round(place * grid) / grid


def layout(spec: SceneSpec, atlas: Atlas, placement: Placement, grid: int) -> list[Layer]:
    """Where a spec's things go, on a grid of so many tokens a side."""

    def layer(thing: Thing, x: float, y: float, side: float = placement.side) -> Layer:
        mirrored = placement.mirrored and bool(atlas.mirrorable[thing.concept])
        sprite = atlas.index(placement.style, thing.concept)
        x, y = (on_grid(place, side, grid) for place in (x, y))
        outline = 0.0 if spec.background == "plain" else placement.outline
        return Layer(sprite, thing.colour, x, y, side, mirrored, placement.turn_degrees, outline)

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
