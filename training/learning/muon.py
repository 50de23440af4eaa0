"""Muon, the optimizer of matrices inside layers (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

torch.optim.Muon computes in bfloat16 on every machine. A CPU without instructions for it takes longer for that than for
all the rest of a step, so this one keeps to the gradients' own precision.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # the published coefficients of the quintic iteration
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Each step is a rotation: the momentum with its singular values made about equal, whatever the gradient's size.

    Its length is matched to AdamW's (Liu et al. 2025, arXiv:2502.16982), so that both take the same learning rate.
    """

    def __init__(
        self, matrices: Iterable[Tensor], learning_rate: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        """`matrices` have two dimensions."""
        super().__init__(matrices, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalised(matrix.grad.lerp(mean, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """(M, N) with its singular values moved to between about 0.7 and 1.2, the vectors staying, by Newton and Schulz."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    wide = wide / wide.norm().clamp(min=1e-7)  # no singular value is above 1
    for _ in range(_ROUNDS):
        square = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=_B, alpha=_C), wide, beta=_A)
    return wide.T if is_tall else wide
