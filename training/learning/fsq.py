"""Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505), as an ordinary codebook.

Each of the E embedding dimensions is rounded to one of a few levels evenly spaced in [−1, 1]. The product of the
levels is the codebook, and rounding each dimension is looking up the nearest entry: so a VQGAN trained with FSQ is
exported as a plain one, which needs no commitment loss, has no dead codes, and serves like any other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def codebook(levels: tuple[int, ...]) -> Tensor:
    """(C, E): every combination of the levels, C = ∏ levels; the last dimension varies fastest."""
    return torch.cartesian_prod(*(torch.linspace(-1, 1, count) for count in levels))


def quantize(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Round (B, E, h, w) to the grid; the gradient passes as if nothing had happened (straight through)."""
    steps = (torch.tensor(levels, device=z.device, dtype=z.dtype) - 1).view(1, -1, 1, 1)
    rounded = ((z.clamp(-1, 1) + 1) / 2 * steps).round() / steps * 2 - 1
    return z + (rounded - z).detach()


def overflow(z: Tensor) -> Tensor:
    """Penalty that keeps the encoder within the grid, where a change of z still changes the code."""
    return (z.abs() - 1).clamp(min=0).square().mean()
