"""Models of random weights, larger than the goldens where it matters: grids of several cache blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors
from dalle_server.engine.runners.base import TextTokens
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.families.janus import JanusConfig
from dalle_server.models.config import FamilyConfig, ModelConfig, VQGANConfig

START = 96


def random_checkpoint(
    d_model: int = 96, heads: int = 3, ffn_dim: int = 130, image_length: int = 36, dtype: type = np.float32
) -> Checkpoint:
    """Widths that are no multiples of the quantisation group, two blocks of cache a row."""
    transformer = DalleBartConfig(
        d_model=d_model, encoder_layers=2, decoder_layers=2, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=ffn_dim, decoder_ffn_dim=ffn_dim, encoder_vocab_size=50,
        image_vocab_size=START, image_length=image_length, max_text_length=64, decoder_start_token_id=START,
        bos_token_id=START + 1, eos_token_id=START + 1, pad_token_id=START + 1,
    )  # fmt: skip
    return _with_random_weights(transformer, dtype)


def random_janus(
    d_model: int = 96, heads: int = 4, kv_heads: int = 2, ffn_dim: int = 130, image_length: int = 36,
    dtype: type = np.float32,
) -> Checkpoint:  # fmt: skip
    """The same in the other family: heads that share keys, and of a size that fills no vector."""
    transformer = JanusConfig(
        d_model=d_model, num_layers=2, num_heads=heads, num_kv_heads=kv_heads, ffn_dim=ffn_dim, vocab_size=50,
        image_vocab_size=START, image_length=image_length, max_text_length=64, rms_norm_eps=1e-5, rope_theta=500.0,
    )  # fmt: skip
    return _with_random_weights(transformer, dtype)


BY_FAMILY: dict[str, Callable[[], Checkpoint]] = {"dalle-bart": random_checkpoint, "janus": random_janus}


def _with_random_weights(transformer: FamilyConfig, dtype: type) -> Checkpoint:
    vqgan = VQGANConfig(
        ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(6,), z_channels=16, embed_dim=8, n_embed=START,
        resolution=12, num_groups=4,
    )  # fmt: skip
    generator = np.random.default_rng(3)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = generator.standard_normal(shape)
        if len(shape) == 1:  # a normalisation's scale or a bias
            return (name.endswith("norm.weight") + 0.1 * values).astype(dtype)
        return (values if "embed" in name else values / np.sqrt(np.prod(shape[1:]))).astype(dtype)

    pixels = {name: draw(name, shape) for name, shape in vqgan_decoder_tensors(vqgan).items()}
    pixels["decoder.conv_out.bias"] += 0.5  # or half of all pixels would be clipped to black
    return Checkpoint(
        Path("random"),
        ModelConfig(name="random", transformer=transformer, vqgan=vqgan),
        {name: draw(name, shape) for name, shape in transformer.tensors().items()},
        pixels,
        digest="random",
    )


def random_text(seed: int, length: int) -> TextTokens:
    ids = np.ones(64, np.int32)
    ids[:length] = np.random.default_rng(seed).integers(3, 50, length)
    return TextTokens(ids, length)
