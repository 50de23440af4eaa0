"""Who decides what a generated picture shows: the nearest of all true renders.

The judge is a nearest-neighbour classifier over renders of every concept at every placement that a caption leaves
open. Unlike a trained classifier it has no weights that could have learned the generator's habits, and its ceilings
can be read off directly: the same judge on real renders and on their VQGAN reconstructions.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from training.palette import COLOUR_NAMES
from training.scenes import RELATIONS, Composer, SceneSpec, Thing, placements

_SIDE_PX = 32  # pictures are compared at this size


def _features(images: Tensor) -> Tensor:
    """(B,3,H,W) → (B, 3·32·32)"""
    return F.adaptive_avg_pool2d(images.float(), _SIDE_PX).flatten(1)


class Judge:
    def __init__(self, composer: Composer, num_concepts: int):
        self.composer = composer
        self.num_concepts = num_concepts
        self._templates: dict[object, tuple[Tensor, Tensor]] = {}

    def rank(self, images: Tensor, candidates: list[SceneSpec]) -> Tensor:
        """Candidates in order of likeness for every picture: (B, len(candidates)) indices, best first.

        The distance to a candidate is the smallest squared distance to any of its placements.
        """
        templates, owner = self._renders(candidates)
        features = _features(images)
        distance = templates.square().sum(1) - 2 * features @ templates.T  # |t|² − 2·f·t: |f|² is the same for all
        best = torch.full((len(images), len(candidates)), torch.inf).scatter_reduce(
            1, owner.expand(len(images), -1), distance, "amin"
        )
        return best.argsort(1)

    def _renders(self, candidates: list[SceneSpec]) -> tuple[Tensor, Tensor]:
        key = tuple(candidates)
        if key not in self._templates:
            placed = [
                (i, spec, where) for i, spec in enumerate(candidates) for where in dict.fromkeys(placements(spec))
            ]
            rng = random.Random(0)
            parts = [
                _features(self.composer.compose_at([spec for _, spec, _ in part], [where for _, _, where in part], rng))
                for part in (placed[start : start + 256] for start in range(0, len(placed), 256))
            ]
            if len(self._templates) > 24:
                self._templates.clear()
            self._templates[key] = torch.cat(parts), torch.tensor([i for i, _, _ in placed])
        return self._templates[key]

    def concept_rank(self, images: Tensor, spec: SceneSpec) -> Tensor:
        """For each picture asked for as `spec` (one thing): at which place its concept comes among all, 0 = first."""
        asked = spec.things[0]
        candidates = [replace(spec, things=(Thing(i, asked.colour),)) for i in range(self.num_concepts)]
        return (self.rank(images, candidates) == asked.concept).int().argmax(1)

    def colour_right(self, images: Tensor, spec: SceneSpec) -> Tensor:
        """Whether the asked tint is the nearest of all tints of the asked concept."""
        asked = spec.things[0]
        candidates = [replace(spec, things=(Thing(asked.concept, colour),)) for colour in COLOUR_NAMES]
        return self.rank(images, candidates)[:, 0] == COLOUR_NAMES.index(asked.colour or "")

    def background_right(self, images: Tensor, spec: SceneSpec) -> Tensor:
        """Whether the asked background is the nearest of all, the thing being given."""
        names = list(self.composer.backgrounds)
        candidates = [replace(spec, background=name) for name in names]
        return self.rank(images, candidates)[:, 0] == names.index(spec.background)

    def position_right(self, images: Tensor, spec: SceneSpec, positions: list[str]) -> Tensor:
        """Whether the asked position is the nearest of all, the thing being given."""
        candidates = [replace(spec, position=name) for name in positions]
        return self.rank(images, candidates)[:, 0] == positions.index(spec.position or "")

    def count_right(self, images: Tensor, spec: SceneSpec) -> Tensor:
        """Whether the asked count is the nearest of 1…6, the thing being given."""
        candidates = [replace(spec, count=count) for count in range(1, 7)]
        return self.rank(images, candidates)[:, 0] == spec.count - 1

    def pair_right(self, images: Tensor, spec: SceneSpec) -> Tensor:
        """Whether both things are first among all concepts, each in its own place (either order for "beside")."""
        first, second = spec.things
        found_first = self._replaced(images, spec, 0) == first.concept
        found_second = self._replaced(images, spec, 1) == second.concept
        right = found_first & found_second
        if spec.relation == RELATIONS[-1]:
            turned = replace(spec, things=(second, first))
            swapped = (self._replaced(images, turned, 0) == second.concept) & (
                self._replaced(images, turned, 1) == first.concept
            )
            right |= swapped
        return right

    def _replaced(self, images: Tensor, spec: SceneSpec, slot: int) -> Tensor:
        """The concept that fits best in one slot, the other slot being as asked."""
        candidates = []
        for concept in range(self.num_concepts):
            things = list(spec.things)
            things[slot] = Thing(concept, things[slot].colour)
            candidates.append(replace(spec, things=tuple(things)))
        return self.rank(images, candidates)[:, 0]
