"""VQGAN: a grid of codebook ids to pixels, and pixels back to ids (Esser et al. 2021, arXiv:2012.09841).

Module names follow the original implementation (taming-transformers), so that its checkpoints, vqgan-jax's and
ours name the same tensor alike. Shapes: B pictures, E embedding width, (h, w) the token grid, C channels;
a level l works at 1/2ˡ of the picture's resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_server.errors import CheckpointError
from dalle_server.models.broken import NO_CODES
from dalle_server.models.config import VQGANConfig

GROUP_NORM_EPS = 1e-6


def group_norm(channels: int, config: VQGANConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, channels, eps=GROUP_NORM_EPS)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)


class ResnetBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, config: VQGANConfig):
        super().__init__()
        self.norm1 = group_norm(channels_in, config)
        self.conv1 = conv3x3(channels_in, channels_out)
        self.norm2 = group_norm(channels_out, config)
        self.conv2 = conv3x3(channels_out, channels_out)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over all h·w places of the feature map."""

    def __init__(self, channels: int, config: VQGANConfig):
        super().__init__()
        self.norm = group_norm(channels, config)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        # (B, C, h, w) → (B, 1, h·w, C): one head of width C
        q, k, v = (project(y).flatten(2).transpose(1, 2).unsqueeze(1) for project in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(y)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only


class Middle(nn.Module):
    def __init__(self, channels: int, config: VQGANConfig):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config)
        self.attn_1 = AttnBlock(channels, config)
        self.block_2 = ResnetBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, attention after each where the config asks, then the resampling."""

    def __init__(self, channels_in: int, channels_out: int, level: int, num_blocks: int, config: VQGANConfig):
        super().__init__()
        widths = [channels_in] + [channels_out] * num_blocks
        self.block = nn.ModuleList(ResnetBlock(*pair, config) for pair in pairwise(widths))
        has_attention = config.resolution >> level in config.attn_resolutions
        self.attn = nn.ModuleList(AttnBlock(channels_out, config) for _ in range(num_blocks if has_attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        for name in ("upsample", "downsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class PixelEncoder(nn.Module):
    """Pixels (B, 3, H, W) → features (B, z_channels, h, w)."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.ch * multiplier for multiplier in (1, *config.ch_mult)]
        top = len(config.ch_mult) - 1
        self.conv_in = conv3x3(config.in_channels, config.ch)
        self.down = nn.ModuleList(
            Level(widths[level], widths[level + 1], level, config.num_res_blocks, config) for level in range(top + 1)
        )
        for level in range(top):
            self.down[level].downsample = Downsample(widths[level + 1])
        self.mid = Middle(widths[-1], config)
        self.norm_out = group_norm(widths[-1], config)
        self.conv_out = conv3x3(widths[-1], config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class PixelDecoder(nn.Module):
    """Features (B, z_channels, h, w) → pixels (B, 3, H, W), nominally in [0, 1]."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.ch * multiplier for multiplier in config.ch_mult]
        above = [*widths[1:], widths[-1]]
        top = len(widths) - 1
        self.conv_in = conv3x3(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1], config)
        # up.{l} is level l; the decoder walks from the coarsest level down to 0.
        self.up = nn.ModuleList(
            Level(above[level], widths[level], level, config.num_res_blocks + 1, config) for level in range(top + 1)
        )
        for level in range(1, top + 1):
            self.up[level].upsample = Upsample(widths[level])
        self.norm_out = group_norm(widths[0], config)
        self.conv_out = conv3x3(widths[0], config.out_ch)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        x = F.silu(self.norm_out(x))
        return self.conv_out(x.to(self.conv_out.weight.dtype))  # which may be finer than the rest's


@contextmanager
def _padded_by(mode: Literal["zeros", "circular"], decoder: PixelDecoder) -> Iterator[None]:
    """What the decoder's 3×3 convolutions see beyond the edges of their maps."""
    framed = [module for module in decoder.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    for module in framed:
        module.padding_mode = mode
    try:
        yield
    finally:
        for module in framed:
            module.padding_mode = "zeros"


class VectorQuantizer(nn.Module):
    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.n_embed, config.embed_dim)

    def nearest(self, z: Tensor, num_codes: int | None = None) -> Tensor:
        """(B, E, h, w) → (B, h·w) ids of the closest of the first `num_codes` codebook entries, row by row.

        Raises CheckpointError where a distance is not finite.
        """
        z = z.flatten(2).transpose(1, 2)  # (B, h·w, E)
        codebook = self.embedding.weight[:num_codes]  # (C, E)
        # |z − e|² without |z|², which is the same for every e
        distance = codebook.square().sum(1) - 2 * z @ codebook.T
        if not distance.isfinite().all():
            raise CheckpointError(NO_CODES)
        return distance.argmin(-1)


class VQGAN(nn.Module):
    """Ids ↔ pixels. With `with_encoder=False` only the way to pixels exists, as in a checkpoint made for serving."""

    def __init__(self, config: VQGANConfig, *, with_encoder: bool = True):
        super().__init__()
        self.config = config
        if with_encoder:
            self.encoder = PixelEncoder(config)
            self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, kernel_size=1)
        self.quantize = VectorQuantizer(config)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, kernel_size=1)
        self.decoder = PixelDecoder(config)

    def decode(self, ids: Tensor, *, wraps: bool = False) -> Tensor:
        """(B, I) ids of square grids in reading order → (B, 3, H, W) float, unclipped. `wraps`: what lies beyond an
        edge is the opposite one, and not zero, so that opposite edges meet. One thread at a time.
        """
        side = round(ids.shape[1] ** 0.5)
        z = self.quantize.embedding(ids)  # (B, I, E)
        z = z.view(len(ids), side, side, -1).permute(0, 3, 1, 2)  # (B, E, h, w)
        with _padded_by("circular" if wraps else "zeros", self.decoder):
            return self.decode_embeddings(z)

    def decode_embeddings(self, z: Tensor) -> Tensor:
        """(B, E, h, w) codebook vectors → (B, 3, H, W) float, unclipped."""
        # Convolutions on CPU and GPU are fastest when the weights' memory format leads.
        z = z.contiguous(memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(z))

    def encode_embeddings(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, E, h, w), before the nearest codebook entry is looked up."""
        return self.quant_conv(self.encoder(self.config.as_read(images)))

    def encode(self, images: Tensor, num_codes: int | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, h·w) ids in reading order, of the first `num_codes` entries."""
        return self.quantize.nearest(self.encode_embeddings(images), num_codes)


def to_pixels(images: Tensor) -> Tensor:
    """(B, 3, H, W) float → (B, H, W, 3) uint8: clipped to [0, 1] and truncated, as dalle-mini's notebook does."""
    return images.float().clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1)
