"""torch.compile, checked: a compiled loss whose gradients differ from the eager ones is refused.

Not an idle fear: in torch 2.13 on CPU the compiled backward pass of F.interpolate(mode="nearest") in bfloat16,
channels-last, returns zeros, and everything in front of it silently stops learning.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compiled_loss(loss: Callable[..., Tensor], module: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """Compile `loss`, and raise RuntimeError unless its gradients on `example` agree with the eager ones."""
    compiled = torch.compile(loss, dynamic=False)
    eager = _gradients(loss, module, example)
    fast = _gradients(compiled, module, example)
    wrong = [name for name in eager if _differ(eager[name], fast[name])]
    # Some gradients are nothing but rounding (the bias of an attention key): hence a share, not "any".
    if len(wrong) > 0.1 * len(eager):
        raise RuntimeError(
            f"torch.compile miscompiles this loss here: {len(wrong)} of {len(eager)} gradients are wrong, the first is"
            f" {wrong[0]}; set compile = false in the preset"
        )
    return compiled


def _gradients(loss: Callable[..., Tensor], module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    loss(*example).backward()
    found = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def _differ(a: Tensor, b: Tensor) -> bool:
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0)) < 0.8


class Doubled(nn.Module):
    """Nearest-neighbour upsampling ×2 by repetition, equal to F.interpolate: what the compiler gets right."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
