"""A VQGAN with further levels below the same tokens: twice the pixels from each doubling, and nothing unlearned.

The middle and the coarse levels are where a picture is understood, and they are cheap to train at low resolution. The
fine levels turn what these say into sharp edges, and are few small convolutions.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from dalle_server.models.config import VQGANConfig
from dalle_server.models.vqgan import VQGAN, PixelEncoder


def grown(config: VQGANConfig, doublings: int) -> VQGANConfig:
    """Further levels in front of those of `config`, as wide as its first: fewer channels cannot hold a sharp edge."""
    return replace(
        config,
        resolution=config.resolution << doublings,
        ch_mult=(*(1 for _ in range(doublings)), *config.ch_mult),
    )


@torch.no_grad()
def graft(trunk: VQGAN, model: VQGAN, doublings: int) -> None:
    """Give `model`, of the grown configuration, every weight of `trunk` that has a place there."""
    weights = model.state_dict()
    for name, value in trunk.state_dict().items():
        place = re.sub(r"\b(up|down)\.(\d+)\.", lambda found: f"{found[1]}.{int(found[2]) + doublings}.", name)
        if weights[place].shape == value.shape:
            weights[place].copy_(value)
    for level in range(1, doublings + 1):  # where the trunk painted, its features now pass on as they are
        nn.init.dirac_(model.get_parameter(f"decoder.up.{level}.upsample.conv.weight"))


def first_levels(encoder: PixelEncoder, images: Tensor, count: int) -> Tensor:
    """What the encoder has made of (B, 3, H, W) after `count` levels."""
    features = encoder.conv_in(images)
    for level in encoder.down[:count]:
        features = level(features)
    return features


def first_parameters(encoder: PixelEncoder, count: int) -> list[nn.Parameter]:
    return [*encoder.conv_in.parameters(), *encoder.down[:count].parameters()] if count else []
