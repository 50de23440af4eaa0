"""Janus, the family of Janus-Pro (arXiv:2501.17811), its picture-making half: sizes, tensors and products.

A Llama decoder that reads the prompt as a prefix and goes on with image tokens. The transformer itself is
models/janus.py; text/janus.py makes the prompts tokens, and checkpoints/published/janus.py reads the published forms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dalle_server.errors import CheckpointError
from dalle_server.models.config import Product, Shapes, TextConfig, from_fields
from dalle_server.request import SamplingParams

if TYPE_CHECKING:
    from dalle_server.models.janus import Janus

# Guidance and temperature of the authors' generation_inference.py, which filters nothing.
DEFAULT_SAMPLING = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, condition_scale=5.0)

LICENCE_NOTE = (
    "Janus-Pro's weights are under the DeepSeek Model License 1.0: commercial use is allowed, and the use restrictions"
    " of its Attachment A bind you and everybody you let use them; pass them on."
    " https://github.com/deepseek-ai/Janus/blob/main/LICENSE-MODEL (the model's code is MIT)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JanusConfig:
    """Sizes of a Janus decoder and of its picture head."""

    family: ClassVar[str] = "janus"
    cpu_runners: ClassVar[tuple[str, ...]] = ("compiled",)
    int8_cache_bytes: ClassVar[int] = 1  # 576 positions of 24 layers: a slot's memory, a fifth of what a step reads
    licence_note: ClassVar[str] = LICENCE_NOTE

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_dim: int
    vocab_size: int
    image_vocab_size: int
    image_length: int
    max_text_length: int
    rms_norm_eps: float
    rope_theta: float

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> JanusConfig:
        """Raises CheckpointError for a missing key."""
        return from_fields(cls, raw, "config.json")

    @property
    def head_size(self) -> int:
        return self.d_model // self.num_heads

    @property
    def start_row(self) -> int:
        """Row of `image_embed` behind the codes: `<begin_of_image>`, the last token of every prompt."""
        return self.image_vocab_size

    @property
    def num_positions(self) -> int:
        """The prompt's tokens and every image token that is fed; the last one is not."""
        return self.max_text_length + self.image_length - 1

    @property
    def text(self) -> TextConfig:
        return TextConfig(self.max_text_length, self.vocab_size)

    def check(self) -> None:
        if self.d_model % self.num_heads or self.head_size % 2:
            raise CheckpointError(f"d_model {self.d_model} cannot be split into {self.num_heads} heads of even size")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(f"{self.num_heads} heads cannot share {self.num_kv_heads} key-value heads evenly")
        if not 1e-12 <= self.rms_norm_eps <= 0.1:  # smaller ones vanish in float32
            raise CheckpointError(f"rms_norm_eps must be from 1e-12 to 0.1, not {self.rms_norm_eps!r}")
        if not 1 < self.rope_theta < 1e12:
            raise CheckpointError(f"rope_theta must be from 1 to 1e12, not {self.rope_theta!r}")

    def tensors(self) -> Shapes:
        d, kv = self.d_model, self.num_kv_heads * self.head_size
        shapes: Shapes = {"embed_tokens.weight": (self.vocab_size, d), "image_embed.weight": (self.start_row + 1, d)}
        for i in range(self.num_layers):
            shapes |= {
                f"layers.{i}.input_layernorm.weight": (d,),
                f"layers.{i}.self_attn.q_proj.weight": (d, d),
                f"layers.{i}.self_attn.k_proj.weight": (kv, d),
                f"layers.{i}.self_attn.v_proj.weight": (kv, d),
                f"layers.{i}.self_attn.o_proj.weight": (d, d),
                f"layers.{i}.post_attention_layernorm.weight": (d,),
                f"layers.{i}.mlp.gate_proj.weight": (self.ffn_dim, d),
                f"layers.{i}.mlp.up_proj.weight": (self.ffn_dim, d),
                f"layers.{i}.mlp.down_proj.weight": (d, self.ffn_dim),
            }
        shapes |= {"norm.weight": (d,), "head_proj.weight": (d, d), "head_proj.bias": (d,)}
        return shapes | {"lm_head.weight": (self.image_vocab_size, d), "lm_head.bias": (self.image_vocab_size,)}

    def products(self, codebook_size: int) -> dict[str, Product]:
        """Of a step and of a prefix alike."""
        found: dict[str, Product] = {}
        for i in range(self.num_layers):
            attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            projections = tuple(f"{attention}.{p}_proj.weight" for p in ("q", "k", "v"))
            found |= {
                f"{attention}.qkv": Product(projections, 1 / math.sqrt(self.head_size)),
                f"{attention}.out": Product((f"{attention}.o_proj.weight",)),
                f"{mlp}.gate_up": Product((f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight")),
                f"{mlp}.down": Product((f"{mlp}.down_proj.weight",)),
            }
        found["head_proj"] = Product(("head_proj.weight",))
        return found | {"lm_head": Product(("lm_head.weight",), rows=codebook_size)}

    def slot_values(self) -> int:
        """Two rows of keys and values of every layer."""
        return 2 * 2 * self.num_layers * self.num_positions * self.num_kv_heads * self.head_size

    def torch_module(self) -> Janus:
        from dalle_server.models.janus import Janus

        return Janus(self)
