"""The matrix products of the two graphs: which weights each one stacks. Fewer, larger products wait less."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dalle_server.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Product:
    """x·Wᵀ, W the named (out, in) matrices one below the other.

    `scale` multiplies the first one (the 1/√D of attention, folded into the query); `rows` cuts the result.
    """

    names: tuple[str, ...]
    scale: float = 1.0
    rows: int | None = None


def products(config: ModelConfig) -> dict[str, Product]:
    """Name → product, of both graphs: see `is_of_step`."""
    sizes = config.transformer
    found: dict[str, Product] = {}
    for part, num_layers, heads in (
        ("encoder", sizes.encoder_layers, sizes.encoder_attention_heads),
        ("decoder", sizes.decoder_layers, sizes.decoder_attention_heads),
    ):
        scale = 1 / math.sqrt(sizes.d_model // heads)
        for layer in range(num_layers):
            found |= _layer(f"{part}.layers.{layer}", scale, cross_attention=part == "decoder")
    # Ids past the codebook are never drawn.
    return found | {"lm_head": Product(("lm_head.weight",), rows=config.codebook_size)}


def _layer(prefix: str, scale: float, *, cross_attention: bool) -> dict[str, Product]:
    def stack(block: str, *parts: str, scale: float = 1.0) -> Product:
        return Product(tuple(f"{prefix}.{block}.{part}.weight" for part in parts), scale)

    layer = {
        f"{prefix}.self_attn.qkv": stack("self_attn", "q_proj", "k_proj", "v_proj", scale=scale),
        f"{prefix}.self_attn.out": stack("self_attn", "out_proj"),
        f"{prefix}.glu.gate_up": stack("glu", "fc0", "fc1"),
        f"{prefix}.glu.down": stack("glu", "fc2"),
    }
    if cross_attention:
        layer |= {
            f"{prefix}.encoder_attn.q": stack("encoder_attn", "q_proj", scale=scale),
            f"{prefix}.encoder_attn.kv": stack("encoder_attn", "k_proj", "v_proj"),
            f"{prefix}.encoder_attn.out": stack("encoder_attn", "out_proj"),
        }
    return layer


def is_of_step(name: str) -> bool:
    """Whether a decode step reads this product; the text encoder's graph reads the others."""
    return not name.startswith("encoder.") and not name.endswith("encoder_attn.kv")
