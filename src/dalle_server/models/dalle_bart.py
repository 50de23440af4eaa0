"""DalleBart: the transformer of DALL·E Mini and Mega, which reads 64 text tokens and writes a grid of image tokens.

A pre-norm BART with three turns of its own: every attention output is normalised again before the
residual ("NormFormer"), the feed-forward is a gated linear unit with a norm inside, and the layer norms
in front of a linear layer have a bias but no scale. No linear layer has a bias.

Shapes: B rows, T text positions, I image positions, S a number of image positions, H heads, D head size,
d = H·D the model width, V the image vocabulary (the codebook, and ids that are never drawn).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle_server.families.dalle_bart import DalleBartConfig

LAYER_NORM_EPS = 1e-5
INIT_STD = 0.02  # of linear and embedding weights before training, as for the released Mini


class BiasLayerNorm(nn.Module):
    """Layer norm that adds a bias but does not scale: the linear layer behind it could absorb a scale."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.bias.shape, None, self.bias, LAYER_NORM_EPS)


class Attention(nn.Module):
    """Multi-head attention: softmax(q·kᵀ/√D)·v, in parts, so that keys and values can be kept."""

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, S, d) → (B, H, S, D)

    def queries(self, x: Tensor) -> Tensor:
        return self.split_heads(self.q_proj(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split_heads(self.k_proj(x)), self.split_heads(self.v_proj(x))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.queries(x), *self.keys_values(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """q (B, H, S, D), k and v (B, H, K, D), mask (B, 1, 1 or S, K) True where a key may be seen → (B, S, d)."""
        if mask is not None and q.shape[2] == 1 and q.device.type == "cpu":
            y = plain_attention(q, k, v, mask)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·kᵀ/√D)·v written out, (B, H, S, D), as fast for one query a row as torch's fused attention. On a CPU
    with two threads or more the fused one's last bits depend on how many rows there are: a picture would feel its
    company.
    """
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


class GLU(nn.Module):
    """Gated feed-forward: fc2(ln1(gelu(fc0 h) · fc1 h)) with h = ln0(x) and the exact (erf) GELU."""

    def __init__(self, d_model: int, ffn_dim: int):
        super().__init__()
        self.ln0 = BiasLayerNorm(d_model)
        self.fc0 = nn.Linear(d_model, ffn_dim, bias=False)
        self.fc1 = nn.Linear(d_model, ffn_dim, bias=False)
        self.ln1 = BiasLayerNorm(ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, d_model, bias=False)

    def gated(self, h: Tensor) -> Tensor:
        return F.gelu(self.fc0(h)) * self.fc1(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ln1(self.gated(self.ln0(x))))


class EncoderLayer(nn.Module):
    def __init__(self, d_model: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.pre_self_attn_layer_norm = BiasLayerNorm(d_model)
        self.self_attn = Attention(d_model, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(d_model, LAYER_NORM_EPS)
        self.glu = GLU(d_model, ffn_dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.self_attn.queries_keys_values(self.pre_self_attn_layer_norm(x))
        x = x + self.self_attn_layer_norm(self.self_attn.attend(q, k, v, mask))
        return x + self.glu(x)


class DecoderLayer(nn.Module):
    def __init__(self, d_model: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.pre_self_attn_layer_norm = BiasLayerNorm(d_model)
        self.self_attn = Attention(d_model, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(d_model, LAYER_NORM_EPS)
        self.pre_encoder_attn_layer_norm = BiasLayerNorm(d_model)
        self.encoder_attn = Attention(d_model, num_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(d_model, LAYER_NORM_EPS)
        self.glu = GLU(d_model, ffn_dim)

    def forward(self, x: Tensor, cross: KeysValues, past: Past | None = None) -> Tensor:
        """x (B, S, d): all positions at once (causal), or with `past` the newest position of each row (S = 1)."""
        q, k, v = self.self_attn.queries_keys_values(self.pre_self_attn_layer_norm(x))
        if past is None:
            y = self.self_attn.attend(q, k, v, causal=True)
        else:
            y = self.self_attn.attend(q, *past.append(k, v), past.mask)
        x = x + self.self_attn_layer_norm(y)
        q = self.encoder_attn.queries(self.pre_encoder_attn_layer_norm(x))
        x = x + self.encoder_attn_layer_norm(self.encoder_attn.attend(q, cross.keys, cross.values, cross.mask))
        return x + self.glu(x)


@dataclass(slots=True)
class KeysValues:
    """What one decoder layer's cross-attention sees: keys and values (B, H, T, D), mask (B, 1, 1, T)."""

    keys: Tensor
    values: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class TextStates:
    """One text, ready for a slot: every layer's cross-attention keys and values (L, 1, H, T, D), mask (1, T)."""

    cross_keys: Tensor
    cross_values: Tensor
    mask: Tensor


@dataclass(slots=True)
class Past:
    """One layer's self-attention cache (B, H, I, D), and where this step writes and looks in it."""

    keys: Tensor
    values: Tensor
    positions: Tensor  # (B,) where the new key goes
    mask: Tensor  # (B, 1, 1, P) True up to each row's own position; P ≤ I

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, H, 1, D) at each row's position, return the first P keys and values (B, H, P, D)."""
        rows = torch.arange(len(k), device=k.device)
        self.keys[rows, :, self.positions] = k.squeeze(2)
        self.values[rows, :, self.positions] = v.squeeze(2)
        length = self.mask.shape[-1]
        return self.keys[:, :, :length], self.values[:, :, :length]


class DecoderCache:
    """Keys and values of R decoder rows: self-attention grows step by step, cross-attention is written once.

    Static storage, so that a captured graph sees the same addresses at every step. Unused cells are zero:
    a masked cell may hold garbage but not NaN, since 0 · NaN is NaN.
    """

    def __init__(self, config: DalleBartConfig, num_rows: int, *, device: torch.device | str, dtype: torch.dtype):
        heads = config.decoder_attention_heads
        head_size = config.d_model // heads
        layers, text, image = config.decoder_layers, config.max_text_length, config.image_length
        self.keys = torch.zeros(layers, num_rows, heads, image, head_size, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.cross_keys = torch.zeros(layers, num_rows, heads, text, head_size, device=device, dtype=dtype)
        self.cross_values = torch.zeros_like(self.cross_keys)
        # Rows nobody was admitted to see one zero key: a softmax over no key at all would be NaN.
        self.text_mask = torch.zeros(num_rows, text, dtype=torch.bool, device=device)
        self.text_mask[:, 0] = True

    @property
    def num_positions(self) -> int:
        return self.keys.shape[3]

    def admit(self, slot: int, conditional: TextStates, unconditional: TextStates) -> None:
        """Give rows 2s and 2s + 1 to a new image."""
        both = (conditional, unconditional)
        self.reset(
            torch.tensor([2 * slot, 2 * slot + 1], device=self.keys.device),
            torch.cat([text.cross_keys for text in both], dim=1),
            torch.cat([text.cross_values for text in both], dim=1),
            torch.cat([text.mask for text in both]),
        )

    def reset(self, rows: Tensor, cross_keys: Tensor, cross_values: Tensor, text_mask: Tensor) -> None:
        """Give rows (R,) to new images: cross (L, R, H, T, D), text_mask (R, T); the past becomes zero."""
        self.keys[:, rows] = 0
        self.values[:, rows] = 0
        self.cross_keys[:, rows] = cross_keys
        self.cross_values[:, rows] = cross_values
        self.text_mask[rows] = text_mask

    def layer(self, index: int, positions: Tensor, mask: Tensor) -> tuple[KeysValues, Past]:
        """Views of the first B rows, for positions (B,) and mask (B, 1, 1, P)."""
        rows = len(positions)
        text = self.text_mask[:rows, None, None, :]
        cross = KeysValues(self.cross_keys[index, :rows], self.cross_values[index, :rows], text)
        return cross, Past(self.keys[index, :rows], self.values[index, :rows], positions, mask)


class _Stack(nn.Module):
    """What encoder and decoder share: token + learned position embedding (offset 0) → norm, and the final norm."""

    def __init__(self, config: DalleBartConfig, vocab_size: int, num_positions: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(num_positions, config.d_model)
        self.layernorm_embedding = nn.LayerNorm(config.d_model, LAYER_NORM_EPS)
        self.final_ln = BiasLayerNorm(config.d_model)
        self.embed_scale = config.d_model**0.5 if config.scale_embedding else 1.0

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(B, S) ids, (S,) or (B, S) positions → (B, S, d)."""
        x = self.embed_tokens(ids) * self.embed_scale + self.embed_positions(positions)
        return self.layernorm_embedding(x)


class TextEncoder(_Stack):
    def __init__(self, config: DalleBartConfig):
        super().__init__(config, config.encoder_vocab_size, config.max_text_length)
        size = config.d_model, config.encoder_attention_heads, config.encoder_ffn_dim
        self.layers = nn.ModuleList(EncoderLayer(*size) for _ in range(config.encoder_layers))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(input_ids, torch.arange(input_ids.shape[1], device=input_ids.device))
        mask = mask.bool()[:, None, None, :]  # (B, T) → (B, 1, 1, T): no row looks at padding
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_ln(x)


class TokenDecoder(_Stack):
    def __init__(self, config: DalleBartConfig):
        super().__init__(config, config.num_image_embeddings, config.image_length)
        size = config.d_model, config.decoder_attention_heads, config.decoder_ffn_dim
        self.layers = nn.ModuleList(DecoderLayer(*size) for _ in range(config.decoder_layers))

    def _layers(self) -> Iterable[DecoderLayer]:
        return cast("Iterable[DecoderLayer]", self.layers)

    def cross_keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states (B, T, d) → every layer's cross-attention keys and values, each (L, B, H, T, D)."""
        pairs = [layer.encoder_attn.keys_values(memory) for layer in self._layers()]
        return torch.stack([keys for keys, _ in pairs]), torch.stack([values for _, values in pairs])

    def forward(self, ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """All positions at once: ids (B, S) from the start token on, memory (B, T, d), mask (B, T) → (B, S, d)."""
        x = self.embed(ids, torch.arange(ids.shape[1], device=ids.device))
        mask = mask.bool()[:, None, None, :]
        for layer in self._layers():
            keys, values = layer.encoder_attn.keys_values(memory)
            x = layer(x, KeysValues(keys, values, mask))
        return self.final_ln(x)

    def step(self, ids: Tensor, positions: Tensor, cache: DecoderCache, length: int | None = None) -> Tensor:
        """One token for each of the cache's first B rows, each row at its own position: ids, positions (B,) → (B, d).

        `length`: how many cached positions attention looks at, more than the largest of `positions` (default: all).
        """
        length = cache.keys.shape[3] if length is None else length
        seen = torch.arange(length, device=ids.device) <= positions[:, None]  # (B, P)
        mask = seen[:, None, None, :]
        x = self.embed(ids[:, None], positions[:, None])
        for index, layer in enumerate(self.layers):
            x = layer(x, *cache.layer(index, positions, mask))
        return self.final_ln(x).squeeze(1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)


class DalleBart(nn.Module):
    """Text tokens to image-token logits. `state_dict` names are those of the native checkpoint."""

    def __init__(self, config: DalleBartConfig):
        super().__init__()
        self.config = config
        self.encoder = TextEncoder(config)
        self.decoder = TokenDecoder(config)
        self.lm_head = nn.Linear(config.d_model, config.num_image_embeddings, bias=False)
        self.apply(_initialise)

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T) ids and mask (1 = text, 0 = padding) → encoder states (B, T, d)."""
        return self.encoder(input_ids, mask)

    def forward(self, input_ids: Tensor, mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Teacher-forced logits (B, S, V): decoder_input_ids (B, S) begin with the start token."""
        return self.lm_head(self.decoder(decoder_input_ids, self.encode(input_ids, mask), mask))

    # -- what a runner asks of any family's module: engine/runners/torch/step.py, StepModel

    @property
    def start_token_id(self) -> int:
        return self.config.decoder_start_token_id

    @property
    def text_piece(self) -> None:
        """An encoder's tokens see those behind them: a text is read whole."""

    @property
    def fed_by_step(self) -> int:
        return 0

    def read_text(self, ids: Tensor, before: object = None) -> TextStates:
        """One text (T,), alone and without its padding: its states then depend on nothing else."""
        padding = self.config.max_text_length - len(ids)
        memory = self.encode(ids[None], torch.ones_like(ids)[None])
        keys, values = (F.pad(cross, (0, 0, 0, padding)) for cross in self.decoder.cross_keys_values(memory))
        mask = torch.arange(self.config.max_text_length, device=ids.device) < len(ids)
        return TextStates(keys, values, mask[None])

    def step(self, ids: Tensor, positions: Tensor, cache: DecoderCache, length: int | None = None) -> Tensor:
        """See Decoder.step: (R, d), what lm_head reads."""
        return self.decoder.step(ids, positions, cache, length)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """A step's attention by itself, in the first layer."""
        attention = cast(DecoderLayer, self.decoder.layers[0]).self_attn
        return attention.attend(q, k, v, mask)

    def new_cache(self, num_rows: int) -> DecoderCache:
        weight = self.decoder.embed_tokens.weight
        return DecoderCache(self.config, num_rows, device=weight.device, dtype=weight.dtype)
