"""DalleBart, the family of DALL·E Mini, Mega and nano: its sizes, tensors and products.

The transformer itself is models/dalle_bart.py; the texts' tokens are made by text/tokenizer.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dalle_server.errors import CheckpointError
from dalle_server.models.config import Product, Shapes, TextConfig, from_fields

if TYPE_CHECKING:
    from dalle_server.models.dalle_bart import DalleBart

# Parts of dalle-mini's configuration that change the arithmetic, with the only values that the
# released models use. A checkpoint with another value would load and draw nonsense: refuse it.
_ARCHITECTURE = {
    "activation_function": "gelu",
    "force_ln_scale": False,
    "ln_positions": "normformer",
    "ln_type": "layernorm",
    "use_absolute_position_embeddings": True,
    "use_alibi": False,
    "use_bias": False,
    "use_cosine_attention": False,
    "use_deepnet_scaling": False,
    "use_final_ln_decoder": True,
    "use_final_ln_encoder": True,
    "use_glu": True,
    "use_head_scale": False,
    "use_subln_init": False,
    "use_swin_position_embeddings": False,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DalleBartConfig:
    """Sizes of a DalleBart (dalle-mini's `config.json`)."""

    family: ClassVar[str] = "dalle-bart"
    cpu_runners: ClassVar[tuple[str, ...]] = ("compiled",)
    int8_cache_bytes: ClassVar[int] = 2
    licence_note: ClassVar[str] = ""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    encoder_vocab_size: int
    image_vocab_size: int
    image_length: int
    max_text_length: int
    decoder_start_token_id: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    scale_embedding: bool = False
    normalize_text: bool = True

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> DalleBartConfig:
        """Raises CheckpointError for a missing key or an architecture variant we do not implement."""
        for key, value in _ARCHITECTURE.items():
            if key in raw and raw[key] != value:
                raise CheckpointError(
                    f"config.json: {key}={raw[key]!r} is not supported; the released models use {value!r}"
                )
        # dalle-mini falls back to image_vocab_size when the start token is not written down.
        defaults = {"decoder_start_token_id": raw.get("image_vocab_size")}
        special = {key: raw.get("image_vocab_size") for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = from_fields(cls, {**defaults, **special, **raw}, "config.json")
        for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
            if config.d_model % heads:
                raise CheckpointError(f"config.json: d_model {config.d_model} is not divisible by {heads} heads")
        return config

    @property
    def num_image_embeddings(self) -> int:
        """Rows of the decoder's token table and columns of lm_head: every code, plus the start token."""
        return self.image_vocab_size + 1

    @property
    def text(self) -> TextConfig:
        return TextConfig(self.max_text_length, self.encoder_vocab_size)

    def check(self) -> None:
        if self.decoder_start_token_id >= self.num_image_embeddings:
            raise CheckpointError(
                f"decoder_start_token_id {self.decoder_start_token_id} is outside the table of"
                f" {self.num_image_embeddings} image tokens"
            )

    def tensors(self) -> Shapes:
        """Layer norms without a scale have only a bias (dalle-mini drops the scale where a linear layer follows)."""
        d = self.d_model
        shapes: Shapes = {
            **_embedding("encoder", self.encoder_vocab_size, self.max_text_length, d),
            **_embedding("decoder", self.num_image_embeddings, self.image_length, d),
        }
        for i in range(self.encoder_layers):
            shapes |= _layer(f"encoder.layers.{i}", d, self.encoder_ffn_dim, cross_attention=False)
        for i in range(self.decoder_layers):
            shapes |= _layer(f"decoder.layers.{i}", d, self.decoder_ffn_dim, cross_attention=True)
        shapes |= {"encoder.final_ln.bias": (d,), "decoder.final_ln.bias": (d,)}
        return shapes | {"lm_head.weight": (self.num_image_embeddings, d)}

    def products(self, codebook_size: int) -> dict[str, Product]:
        """Of the text encoder and of the decode step; ids past the codebook are never drawn."""
        found: dict[str, Product] = {}
        for part, num_layers, heads in (
            ("encoder", self.encoder_layers, self.encoder_attention_heads),
            ("decoder", self.decoder_layers, self.decoder_attention_heads),
        ):
            scale = 1 / math.sqrt(self.d_model // heads)
            for layer in range(num_layers):
                found |= _layer_products(f"{part}.layers.{layer}", scale, is_decoder=part == "decoder")
        return found | {"lm_head": Product(("lm_head.weight",), rows=codebook_size)}

    def slot_values(self) -> int:
        """Two rows of keys and values for I + T positions of every layer."""
        return 2 * 2 * self.decoder_layers * (self.image_length + self.max_text_length) * self.d_model

    def torch_module(self) -> DalleBart:
        from dalle_server.models.dalle_bart import DalleBart

        return DalleBart(self)


def _embedding(half: str, vocab_size: int, length: int, d: int) -> Shapes:
    return {
        f"{half}.embed_tokens.weight": (vocab_size, d),
        f"{half}.embed_positions.weight": (length, d),
        **_norm(f"{half}.layernorm_embedding", d),
    }


def _layer(prefix: str, d: int, ffn_dim: int, *, cross_attention: bool) -> Shapes:
    shapes = _attention(prefix, "self_attn", "pre_self_attn_layer_norm", d)
    if cross_attention:
        shapes |= _attention(prefix, "encoder_attn", "pre_encoder_attn_layer_norm", d)
    return shapes | {
        f"{prefix}.glu.ln0.bias": (d,),
        f"{prefix}.glu.fc0.weight": (ffn_dim, d),
        f"{prefix}.glu.fc1.weight": (ffn_dim, d),
        f"{prefix}.glu.ln1.bias": (ffn_dim,),
        f"{prefix}.glu.fc2.weight": (d, ffn_dim),
    }


def _attention(prefix: str, name: str, pre_norm: str, d: int) -> Shapes:
    projections: Shapes = {f"{prefix}.{name}.{p}_proj.weight": (d, d) for p in ("q", "k", "v", "out")}
    return {f"{prefix}.{pre_norm}.bias": (d,), **projections, **_norm(f"{prefix}.{name}_layer_norm", d)}


def _norm(prefix: str, width: int) -> Shapes:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _layer_products(prefix: str, scale: float, *, is_decoder: bool) -> dict[str, Product]:
    def stack(block: str, *parts: str, scale: float = 1.0, of_step: bool = is_decoder) -> Product:
        return Product(tuple(f"{prefix}.{block}.{part}.weight" for part in parts), scale, of_step=of_step)

    layer = {
        f"{prefix}.self_attn.qkv": stack("self_attn", "q_proj", "k_proj", "v_proj", scale=scale),
        f"{prefix}.self_attn.out": stack("self_attn", "out_proj"),
        f"{prefix}.glu.gate_up": stack("glu", "fc0", "fc1"),
        f"{prefix}.glu.down": stack("glu", "fc2"),
    }
    if is_decoder:
        layer |= {
            f"{prefix}.encoder_attn.q": stack("encoder_attn", "q_proj", scale=scale),
            # A text's keys and values are computed once, with the text.
            f"{prefix}.encoder_attn.kv": stack("encoder_attn", "k_proj", "v_proj", of_step=False),
            f"{prefix}.encoder_attn.out": stack("encoder_attn", "out_proj"),
        }
    return layer
