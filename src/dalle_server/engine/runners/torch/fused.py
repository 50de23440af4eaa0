"""The same layers with fewer, larger matrix products: on a GPU a small kernel costs as much as its weights' read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_server.models.dalle_bart import GLU, Attention, DalleBart


def _stacked(*linears: nn.Linear) -> nn.Parameter:
    return nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)


class FusedSelfAttention(Attention):
    """Queries, keys and values from one product with the stacked weights (3d, d)."""

    def __init__(self, attention: Attention):
        nn.Module.__init__(self)
        self.num_heads = attention.num_heads
        self.qkv_weight = _stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out_proj = attention.out_proj

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.split_heads(part) for part in F.linear(x, self.qkv_weight).chunk(3, dim=-1))
        return q, k, v


class FusedGLU(GLU):
    """Gate and value from one product with the stacked weights (2·ffn, d)."""

    def __init__(self, glu: GLU):
        nn.Module.__init__(self)
        self.ln0, self.ln1, self.fc2 = glu.ln0, glu.ln1, glu.fc2
        self.gate_value_weight = _stacked(glu.fc0, glu.fc1)

    def gated(self, h: Tensor) -> Tensor:
        gate, value = F.linear(h, self.gate_value_weight).chunk(2, dim=-1)
        return F.gelu(gate) * value


def fuse(model: object) -> None:
    """Replace a DalleBart's layers in place, one at a time: the extra memory is one layer's. Others stay."""
    if not isinstance(model, DalleBart):
        return
    for stack in (model.encoder, model.decoder):
        for layer in stack.layers:
            layer.self_attn = FusedSelfAttention(layer.self_attn)  # type: ignore[arg-type]
            layer.glu = FusedGLU(layer.glu)  # type: ignore[arg-type]
