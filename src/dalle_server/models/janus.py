"""Janus's transformer: a Llama decoder over a prompt's tokens and then a grid of image tokens.

Pre-norm layers (RMSNorm, rotary positions, SwiGLU), no biases; image tokens have an embedding table of their own and a
head of two layers. Facts and their sources: Touvron et al. 2023 (arXiv:2302.13971), Su et al. 2021 (arXiv:2104.09864).

Shapes: R rows, T text positions, S positions computed at once, P cached positions, H heads, K key-value heads, D head
size, d = H·D the model width, C codebook.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_server.families.janus import JanusConfig
from dalle_server.models.config import WINDOW_BLOCK

INIT_STD = 0.02
TEXT_PIECE = 64  # tokens of a prompt at once


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε), computed in fp32 and rounded before it is scaled, as the reference does."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normalised.to(x.dtype)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary positions of S places: cos and sin (R, 1, S, D), each angle standing twice."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> Rotation:
        """positions (R, S)."""
        exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
        angles = positions[..., None].float() * theta**-exponents  # (R, S, D/2)
        angles = torch.cat([angles, angles], -1)[:, None]
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def turn(self, x: Tensor) -> Tensor:
        """x (R, H, S, D): number i of a head turns with number i + D/2."""
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


class RotaryAttention(nn.Module):
    def __init__(self, config: JanusConfig):
        super().__init__()
        d, kv = config.d_model, config.num_kv_heads * config.head_size
        self.head_size = config.head_size
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv, bias=False)
        self.v_proj = nn.Linear(d, kv, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def queries_keys_values(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """x (R, S, d) → (R, H, S, D) and twice (R, K, S, D), queries and keys turned."""
        q, k, v = (
            project(x).view(*x.shape[:2], -1, self.head_size).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotation.turn(q), rotation.turn(k), v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·kᵀ/√D)·v: q (R, H, S, D), k and v (R, K, P, D), mask (R or 1, 1, S, P) True where a key is seen.

    Head h reads key-value head h // (H/K). Written out: the bits of a row must not depend on how many rows there are.
    """
    shape = q.shape
    q = q.reshape(shape[0], k.shape[1], -1, shape[-1])  # heads that share keys, one below the other
    shared = q.shape[2] // shape[2]
    scores = q @ k.transpose(-1, -2) / shape[-1] ** 0.5
    scores = scores.masked_fill(~mask.repeat(1, 1, shared, 1), float("-inf"))
    return (scores.float().softmax(-1).to(q.dtype) @ v).reshape(shape)


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x))"""

    def __init__(self, d_model: int, ffn_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, ffn_dim, bias=False)
        self.up_proj = nn.Linear(d_model, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, config: JanusConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.self_attn = RotaryAttention(config)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.mlp = MLP(config.d_model, config.ffn_dim)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x (R, S, d) and what its heads saw (R, H, S, D) → the layer's output (R, S, d)."""
        x = x + self.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of a prompt without its last token, `<begin_of_image>`: (layers, K, T-1, D) each."""

    keys: Tensor
    values: Tensor


class PrefixCache:
    """Keys and values of rows that each begin with a prompt of their own length.

    Rows 2s and 2s + 1 are slot s's. Implements the step's `SlotCache`.
    """

    def __init__(self, config: JanusConfig, num_rows: int, like: Tensor):
        shape = (config.num_layers, num_rows, config.num_kv_heads, config.num_positions, config.head_size)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.offsets = torch.zeros(num_rows, dtype=torch.long, device=like.device)  # of image position 0

    @property
    def num_positions(self) -> int:
        return self.keys.shape[3]

    def window(self, length: int | None) -> int:
        """How many positions hold every prompt and the first `length` (None: all) tokens of every picture."""
        if length is None:
            return self.num_positions
        return min(self.num_positions, -(-(int(self.offsets.max()) + length) // WINDOW_BLOCK) * WINDOW_BLOCK)

    def admit(self, slot: int, conditional: Prefix, unconditional: Prefix) -> None:
        for row, prefix in ((2 * slot, conditional), (2 * slot + 1, unconditional)):
            length = prefix.keys.shape[2]
            self.keys[:, row] = 0
            self.values[:, row] = 0
            self.keys[:, row, :, :length] = prefix.keys
            self.values[:, row, :, :length] = prefix.values
            self.offsets[row] = length


class Janus(nn.Module):
    """`state_dict` names are those of the native checkpoint. Implements the step's `StepModel`."""

    def __init__(self, config: JanusConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.image_embed = nn.Embedding(config.start_row + 1, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.head_proj = nn.Linear(config.d_model, config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.image_vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)

    @property
    def start_token_id(self) -> int:
        return self.config.start_row

    def _layers(self) -> Iterable[Layer]:
        return cast("Iterable[Layer]", self.layers)

    def _rotation(self, positions: Tensor) -> Rotation:
        return Rotation.at(positions, self.config.head_size, self.config.rope_theta, self.norm.weight.dtype)

    def prefill(self, ids: Tensor, before: Prefix | None = None) -> tuple[Tensor, Prefix]:
        """A prompt (T,), or what follows `before` of it → hidden states (T, d) after the final norm, and keys and
        values (layers, K, all T, D).
        """
        start = before.keys.shape[2] if before else 0
        x = self.embed_tokens(ids[None])
        places = torch.arange(start, start + len(ids), device=ids.device)
        rotation = self._rotation(places[None])
        causal = (torch.arange(start + len(ids), device=ids.device) <= places[:, None])[None, None]
        kept = []
        for index, layer in enumerate(self._layers()):
            q, k, v = layer.self_attn.queries_keys_values(layer.input_layernorm(x), rotation)
            if before:
                k, v = (torch.cat([old[index][None], new], 2) for old, new in ((before.keys, k), (before.values, v)))
            x = layer.finish(x, attend(q, k, v, causal))
            kept.append((k[0], v[0]))
        keys, values = (torch.stack(part) for part in zip(*kept, strict=True))
        return self.norm(x)[0], Prefix(keys, values)

    @property
    def text_piece(self) -> int:
        return TEXT_PIECE

    @property
    def fed_by_step(self) -> int:
        """`<begin_of_image>`, with which every prompt ends."""
        return 1

    def read_text(self, ids: Tensor, before: Prefix | None = None) -> Prefix:
        return self.prefill(ids, before)[1]

    def step(self, ids: Tensor, positions: Tensor, cache: PrefixCache, length: int | None = None) -> Tensor:
        """Rows of `image_embed` before `positions` (R,) of the pictures → (R, d), what lm_head reads."""
        rows = torch.arange(len(ids), device=ids.device)
        places = cache.offsets[: len(ids)] + positions
        rotation = self._rotation(places[:, None])
        window = cache.window(length)
        mask = (torch.arange(window, device=ids.device) <= places[:, None])[:, None, None]
        x = self.image_embed(ids)[:, None]
        for index, layer in enumerate(self._layers()):
            q, k, v = layer.self_attn.queries_keys_values(layer.input_layernorm(x), rotation)
            keys, values = cache.keys[index, : len(ids)], cache.values[index, : len(ids)]
            keys[rows, :, places] = k[:, :, 0]
            values[rows, :, places] = v[:, :, 0]
            x = layer.finish(x, attend(q, keys[:, :, :window], values[:, :, :window], mask))
        return F.gelu(self.head_proj(self.norm(x)[:, 0]))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(q, k, v, mask)

    def new_cache(self, num_rows: int) -> PrefixCache:
        return PrefixCache(self.config, num_rows, self.lm_head.weight)
