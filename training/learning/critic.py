"""A small patch discriminator (Isola et al. 2017, arXiv:1611.07004): it asks whether a patch looks drawn.

Its own layers also measure how far two pictures are apart, which sees a missing outline where pixels see little.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

_WIDTHS = (3, 24, 48, 96)


class Critic(nn.Module):
    """(B, 3, H, W) → features after each layer, the last of them the verdicts (B, 1, H/8, W/8): above 0 is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1) for before, after in pairwise(_WIDTHS)
        )
        self.verdict = nn.Conv2d(_WIDTHS[-1], 1, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [2 * images - 1]
        for layer in self.layers:
            features.append(F.leaky_relu(layer(features[-1]), 0.2))
        return [*features[1:], self.verdict(features[-1])]


def critic_losses(critic: Critic, images: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
    """(the painter's loss, the critic's loss), to be added up: neither has gradients for the other's weights."""
    frozen = {name: weight.detach() for name, weight in critic.named_parameters()}
    *seen, verdict = functional_call(critic, frozen, (decoded,))
    with torch.no_grad():
        *wanted, _ = critic(images)
    likeness = torch.stack([(a - b).abs().mean() for a, b in zip(seen, wanted, strict=True)]).sum()
    right = F.relu(1 - critic(images)[-1]).mean()
    wrong = F.relu(1 + critic(decoded.detach())[-1]).mean()
    return likeness - 0.1 * verdict.mean(), right + wrong
