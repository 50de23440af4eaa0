"""Who decides what a generated picture shows.

Which thing: a classifier trained on renders (classifier.py). Its tint, background, place and number, the thing being
given: the nearest of all true renders that differ in this alone. Neither has ever seen a generated picture, and the
ceilings beside every score are the same judge on true renders and on what is left of them after the tokens.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from training.judging.classifier import Classifier
from training.scenes.composer import Composer
from training.scenes.palette import COLOUR_NAMES
from training.scenes.spec import RELATIONS, SceneSpec, Thing

_SIDE_PX = 32  # pictures are compared at this size


def _features(images: Tensor) -> Tensor:
    """(B,3,H,W) → (B, 3·32·32)"""
    return F.adaptive_avg_pool2d(images.float(), _SIDE_PX).flatten(1)


class Judge:
    def __init__(self, composer: Composer, classifier: Classifier):
        self.composer = composer
        self.classifier = classifier
        self._templates: dict[object, tuple[Tensor, Tensor]] = {}

    def rank(self, images: Tensor, candidates: list[SceneSpec]) -> Tensor:
        """Candidates in order of likeness for every picture: (B, len(candidates)) indices, best first.

        The distance to a candidate is the smallest squared distance to any of its placements.
        """
        templates, owner = self._renders(candidates)
        features = _features(images)
        distance = templates.square().sum(1) - 2 * features @ templates.T  # |t|² − 2·f·t: |f|² is the same for all
        best = torch.full((len(images), len(candidates)), torch.inf, device=features.device).scatter_reduce(
            1, owner.expand(len(images), -1), distance, "amin"
        )
        return best.argsort(1)

    def _renders(self, candidates: list[SceneSpec]) -> tuple[Tensor, Tensor]:
        key = tuple(candidates)
        if key not in self._templates:
            placed = [
                (i, spec, where) for i, spec in enumerate(candidates) for where in self.composer.variety.every(spec)
            ]
            rng = random.Random(0)
            parts = [
                _features(self.composer.compose_at([spec for _, spec, _ in part], [where for _, _, where in part], rng))
                for part in (placed[start : start + 256] for start in range(0, len(placed), 256))
            ]
            if len(self._templates) > 24:
                self._templates.clear()
            owner = torch.tensor([i for i, _, _ in placed], device=self.composer.device)
            self._templates[key] = torch.cat(parts), owner
        return self._templates[key]

    def concept_rank(self, images: Tensor, spec: SceneSpec) -> Tensor:
        """For each picture asked for as `spec` (one thing): at which place its concept comes among all, 0 = first."""
        order = self._look(images).argsort(1, descending=True)
        return (order == spec.things[0].concept).int().argmax(1)

    def colour_right(self, images: Tensor, spec: SceneSpec) -> Tensor:
        """Whether the asked tint is the nearest of all tints of the asked concept."""
        asked = spec.things[0]
        candidates = [replace(spec, things=(Thing(asked.concept, colour),)) for colour in COLOUR_NAMES]
        return self.rank(images, candidates)[:, 0] == COLOUR_NAMES.index(asked.colour or "")

    def background_right(self, images: Tensor, spec: SceneSpec) -> Tensor:
        """Whether the asked background is the nearest of all, the thing being given. The plain page is a white one."""
        names = [name for name in self.composer.backgrounds if name != "plain"]
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
        """Whether each thing is recognised in its own half of the picture (either order for "beside")."""
        first, second = (thing.concept for thing in spec.things)
        if spec.relation in ("right of", "below"):
            first, second = second, first
        sideways = spec.relation not in ("above", "below")
        near, far = (self._seen_in_half(images, end, sideways=sideways) for end in (0.25, 0.75))
        right = (near == first) & (far == second)
        if spec.relation == RELATIONS[-1]:
            right |= (near == second) & (far == first)
        return right

    def _seen_in_half(self, images: Tensor, centre: float, *, sideways: bool) -> Tensor:
        """The concept in the left (upper) or right (lower) half, (B,); it may stand at three places along that half."""
        side = images.shape[-1]
        start = round((centre - 0.25) * side)
        half = images[..., start : start + side // 2] if sideways else images[..., start : start + side // 2, :]
        votes = []
        for offset in (-1 / 8, 0.0, 1 / 8):
            begin = round((0.25 + offset) * side)
            window = half[..., begin : begin + side // 2, :] if sideways else half[..., begin : begin + side // 2]
            votes.append(self._look(window).softmax(1))
        return torch.stack(votes).mean(0).argmax(1)

    @torch.no_grad()
    def _look(self, images: Tensor) -> Tensor:
        return self.classifier(images.float())
