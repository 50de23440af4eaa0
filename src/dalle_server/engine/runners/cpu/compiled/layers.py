"""What the compiled code is told of each family's layers: sizes, tensors' names, and what a family has not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.families.janus import JanusConfig

EXACT = 4  # bytes of a number in the keys and values that are kept, in float32; of float16 2, of int8 1 (attention.h)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A stack of layers, as layers.h describes it. Products and norms are named without the layer's own prefix."""

    prefix: str  # in front of a layer's number
    num_layers: int
    width: int
    ffn_width: int
    heads: int
    kv_heads: int
    products: Mapping[str, str]  # the compiled code's name → the family's
    norms: Mapping[str, str]  # likewise
    final: str  # the norm behind the layers
    int8_cell: int  # of the keys and values that are kept, where products are int8
    embedding: str | None = None  # and the one in front of them
    rms_eps: float = 0.0  # 0: layer norms
    is_swish: bool = False
    rope_theta: float | None = None  # None: no rotary positions

    @property
    def head_size(self) -> int:
        return self.width // self.heads


def dalle_bart_layers(config: DalleBartConfig, part: str) -> Layers:
    """`part` is "encoder" or "decoder"."""
    is_decoder = part == "decoder"
    products = {
        "qkv": "self_attn.qkv", "out": "self_attn.out", "gate_up": "glu.gate_up", "down": "glu.down",
    }  # fmt: skip
    norms = {
        "pre_self": "pre_self_attn_layer_norm", "self": "self_attn_layer_norm", "glu": "glu.ln0", "gated": "glu.ln1",
    }  # fmt: skip
    if is_decoder:
        products |= {"cross_q": "encoder_attn.q", "cross_out": "encoder_attn.out"}
        norms |= {"pre_cross": "pre_encoder_attn_layer_norm", "cross": "encoder_attn_layer_norm"}
    heads = config.decoder_attention_heads if is_decoder else config.encoder_attention_heads
    return Layers(
        prefix=f"{part}.layers",
        num_layers=config.decoder_layers if is_decoder else config.encoder_layers,
        width=config.d_model,
        ffn_width=config.decoder_ffn_dim if is_decoder else config.encoder_ffn_dim,
        heads=heads,
        kv_heads=heads,
        products=products,
        norms=norms,
        final=f"{part}.final_ln",
        embedding=f"{part}.layernorm_embedding",
        int8_cell=config.int8_cache_bytes,
    )


def janus_layers(config: JanusConfig) -> Layers:
    return Layers(
        prefix="layers",
        num_layers=config.num_layers,
        width=config.d_model,
        ffn_width=config.ffn_dim,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        products={"qkv": "self_attn.qkv", "out": "self_attn.out", "gate_up": "mlp.gate_up", "down": "mlp.down"},
        norms={"pre_self": "input_layernorm", "glu": "post_attention_layernorm"},
        final="norm",
        rms_eps=config.rms_norm_eps,
        is_swish=True,
        rope_theta=config.rope_theta,
        int8_cell=config.int8_cache_bytes,
    )
