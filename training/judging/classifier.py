"""The judge's eyes: a small convolutional network that names the one thing in a picture.

It is trained on renders alone, at every size, place, tint and background, blurred and noisy, and never sees a
generated picture or a reconstruction: what it says of those is evidence.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.learning.loop import half_precision, placed, train
from training.preset import Schedule
from training.scenes.artwork import STYLES
from training.scenes.composer import Composer
from training.scenes.concepts import Concept
from training.scenes.palette import COLOUR_NAMES
from training.scenes.spec import Placement, SceneSpec, Thing

SIDE_PX = 64  # what it looks at; other pictures are resized
_CHANNELS = (32, 64, 128, 256)


class Classifier(nn.Module):
    """(B, 3, H, W) in [0, 1] → logits (B, concepts)."""

    def __init__(self, num_concepts: int):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in _CHANNELS:
            layers += [*_convolution(before, channels, stride=2), *_convolution(channels, channels, stride=1)]
            before = channels
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_concepts)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != SIDE_PX or images.shape[-2] != SIDE_PX:
            images = F.interpolate(images, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        logits: Tensor = self.head(self.features(2 * images - 1).amax((2, 3)))
        return logits


def _convolution(before: int, after: int, *, stride: int) -> list[nn.Module]:
    """Batch norm: with group norm, which suits the VQGAN, this network did not leave chance level in 450 steps."""
    return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def train_classifier(
    concepts: list[Concept], composer: Composer, schedule: Schedule, *, seed: int, checkpoint: Path
) -> None:
    """Train (or resume), every concept as often as any other; leaves `checkpoint`."""
    torch.manual_seed(seed)
    model = placed(Classifier(len(concepts)), composer.device)
    optimizer = torch.optim.AdamW(model.parameters(), schedule.learning_rate, weight_decay=1e-2)

    def loss_of_step(draw: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"{seed} classifier {draw}")
        shown = [rng.randrange(len(concepts)) for _ in range(schedule.batch)]
        labels = torch.tensor(shown, device=composer.device)
        images = _views(shown, concepts, composer, rng).contiguous(memory_format=torch.channels_last)
        with half_precision(composer.device):
            logits = model(images)
        right = float((logits.argmax(1) == labels).float().mean())
        return F.cross_entropy(logits.float(), labels, label_smoothing=0.05), {"right": right}

    train("classifier", model, [optimizer], loss_of_step, schedule, checkpoint)


def _views(shown: list[int], concepts: list[Concept], composer: Composer, rng: random.Random) -> Tensor:
    """Renders of the concepts as they might turn up: anywhere, any size, soft, noisy, (B, 3, 64, 64)."""
    specs, places = [], []
    for concept in shown:
        tinted = concepts[concept].tintable and rng.random() < 0.4
        plain = rng.random() < 0.6
        specs.append(
            SceneSpec(
                things=(Thing(concept, rng.choice(COLOUR_NAMES) if tinted else None),),
                background="plain" if plain else rng.choice(list(composer.backgrounds)),
            )
        )
        side = rng.uniform(0.4, 1.0)
        play = (1 - side) / 2 + 0.05
        dx, dy = rng.uniform(-play, play), rng.uniform(-play, play)
        line = rng.choice((0.0, composer.variety.outline))
        places.append(Placement(dx, dy, side, rng.choice(STYLES), rng.random() < 0.3, rng.uniform(-8, 8), line))
    images = composer.compose_at(specs, places, rng)
    images = F.interpolate(images, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
    soft = F.interpolate(images, scale_factor=rng.uniform(0.35, 1.0), mode="bilinear", antialias=True)
    images = F.interpolate(soft, (SIDE_PX, SIDE_PX), mode="bilinear")
    noise = torch.Generator().manual_seed(rng.getrandbits(60))
    grain = torch.randn(images.shape, generator=noise).to(images.device) * rng.uniform(0, 0.08)
    return (images * rng.uniform(0.85, 1.15) + grain).clamp(0, 1)
