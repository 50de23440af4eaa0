"""What a checkpoint says about itself: sizes, special ids and generation defaults. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from dalle_server.errors import CheckpointError
from dalle_server.generation import SamplingParams

T = TypeVar("T")

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
class TransformerConfig:
    """Sizes of a DalleBart (dalle-mini's `config.json`)."""

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
    def from_dict(cls, raw: Mapping[str, Any]) -> TransformerConfig:
        """Raises CheckpointError for a missing key or an architecture variant we do not implement."""
        for key, value in _ARCHITECTURE.items():
            if key in raw and raw[key] != value:
                raise CheckpointError(
                    f"config.json: {key}={raw[key]!r} is not supported; the released models use {value!r}"
                )
        # dalle-mini falls back to image_vocab_size when the start token is not written down.
        defaults = {"decoder_start_token_id": raw.get("image_vocab_size")}
        special = {key: raw.get("image_vocab_size") for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = _build(cls, {**defaults, **special, **raw}, "config.json")
        _check_heads(config)
        return config

    @property
    def num_image_embeddings(self) -> int:
        """Rows of the decoder's token table and columns of lm_head: every code, plus the start token."""
        return self.image_vocab_size + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VQGANConfig:
    """Sizes of a VQGAN (vqgan-jax's `config.json`)."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    z_channels: int
    embed_dim: int
    n_embed: int
    resolution: int
    in_channels: int = 3
    out_ch: int = 3
    num_groups: int = 32  # the published models always use 32; a small model needs fewer

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> VQGANConfig:
        """Raises CheckpointError for a missing key or a variant we do not implement."""
        if not raw.get("resamp_with_conv", True) or raw.get("double_z", False) or raw.get("give_pre_end", False):
            raise CheckpointError("VQGAN config.json: resamp_with_conv, double_z or give_pre_end is not supported")
        listed = {key: tuple(raw[key]) for key in ("ch_mult", "attn_resolutions") if key in raw}
        return _build(cls, {**raw, **listed}, "VQGAN config.json")

    @property
    def scale_factor(self) -> int:
        """Pixels per token along one side."""
        return 1 << (len(self.ch_mult) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole model: transformer, VQGAN, and the sampling defaults its authors chose."""

    name: str
    transformer: TransformerConfig
    vqgan: VQGANConfig
    sampling: SamplingParams = field(default_factory=SamplingParams.reference_defaults)

    def __post_init__(self) -> None:
        if self.grid_side**2 != self.transformer.image_length:
            raise CheckpointError(f"image_length {self.transformer.image_length} is not a square grid")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Inverse of to_dict (our native `config.json`)."""
        return cls(
            name=str(raw["name"]),
            transformer=TransformerConfig.from_dict(raw["transformer"]),
            vqgan=VQGANConfig.from_dict(raw["vqgan"]),
            sampling=SamplingParams(**raw.get("sampling", {})).with_defaults(SamplingParams.reference_defaults()),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def codebook_size(self) -> int:
        """Ids 0…codebook_size-1 are pictures; the transformer's remaining ids are never sampled."""
        return min(self.vqgan.n_embed, self.transformer.image_vocab_size)

    @property
    def grid_side(self) -> int:
        """Tokens along one side of the picture."""
        return math.isqrt(self.transformer.image_length)

    @property
    def image_px(self) -> int:
        """Pixels along one side of the picture."""
        return self.grid_side * self.vqgan.scale_factor


def _build(cls: type[T], raw: Mapping[str, Any], where: str) -> T:
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    try:
        return cls(**{key: value for key, value in raw.items() if key in names})
    except TypeError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _check_heads(config: TransformerConfig) -> None:
    for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
        if config.d_model % heads:
            raise CheckpointError(f"config.json: d_model {config.d_model} is not divisible by {heads} heads")
