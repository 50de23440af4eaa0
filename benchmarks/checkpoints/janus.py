"""Janus-Pro-1B's true shape with random weights, in the transformers library's published form: the half that draws.

Written tensor by tensor, in bfloat16 as published. What a conversion skips is left out.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.checkpoints.dalle_bart import byte_tokenizer, draw
from dalle_server.checkpoints.published import janus_tokens
from dalle_server.checkpoints.tensor_file import LazyTensor, write_tensors
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors, vqgan_encoder_tensors
from dalle_server.families.janus import JanusConfig
from dalle_server.models.config import Shapes, VQGANConfig

CODE_WIDTH = 8  # of the codebook, and of the image tokens' own table in front of its two layers
SIZES = JanusConfig(
    d_model=2048, num_layers=24, num_heads=16, num_kv_heads=16, ffn_dim=5632, vocab_size=102400,
    image_vocab_size=16384, image_length=576, max_text_length=640, rms_norm_eps=1e-6, rope_theta=1e4,
)  # fmt: skip
SIZES_7B = replace(SIZES, d_model=4096, num_layers=30, num_heads=32, num_kv_heads=32, ffn_dim=11008)
VQGAN = VQGANConfig(
    ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=(24,), z_channels=256,
    embed_dim=CODE_WIDTH, n_embed=16384, resolution=384,
)  # fmt: skip

# Ours → the library's, in front of a tensor's name.
_THEIRS = (
    (r"head_proj\.", "model.generation_head.proj_out."),
    (r"lm_head\.", "model.generation_head.vision_head."),
    (r"(?=embed_tokens|layers|norm)", "model.language_model."),
)


def published_tensors(sizes: JanusConfig = SIZES, vqgan: VQGANConfig = VQGAN) -> Shapes:
    d = sizes.d_model
    shapes: Shapes = {
        "model.generation_embeddings.weight": (sizes.image_vocab_size, CODE_WIDTH),
        "model.generation_aligner.fc1.weight": (d, CODE_WIDTH),
        "model.generation_aligner.fc1.bias": (d,),
        "model.generation_aligner.hidden_layers.0.weight": (d, d),
        "model.generation_aligner.hidden_layers.0.bias": (d,),
    }
    for name, shape in sizes.tensors().items():
        if name == "image_embed.weight":  # what the five above are folded into
            continue
        for ours, theirs in _THEIRS:
            renamed = re.sub(f"^{ours}", theirs, name)
            if renamed != name:
                shapes[renamed] = shape
                break
    top = len(vqgan.ch_mult) - 1
    for name, shape in (vqgan_decoder_tensors(vqgan) | vqgan_encoder_tensors(vqgan)).items():
        reversed_ = re.sub(r"^decoder\.up\.(\d+)", lambda level: f"decoder.up.{top - int(level[1])}", name)
        shapes[f"model.vqmodel.{reversed_}"] = shape
    return shapes


def write_published(directory: Path, sizes: JanusConfig = SIZES, vqgan: VQGANConfig = VQGAN) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(ml_dtypes.bfloat16)
    tensors = {
        name: LazyTensor(shape, dtype, functools.partial(_draw, name, shape))
        for name, shape in published_tensors(sizes, vqgan).items()
    }
    write_tensors(directory / "model.safetensors", tensors)
    tokenizer = Tokenizer.from_str(byte_tokenizer().decode())
    tokenizer.add_special_tokens(
        [
            janus_tokens.BEGIN_OF_SENTENCE,
            janus_tokens.PADDING,
            janus_tokens.BEGIN_OF_IMAGE,
            janus_tokens.USER,
            janus_tokens.ASSISTANT,
        ]
    )
    (directory / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    language = {
        "hidden_size": sizes.d_model,
        "intermediate_size": sizes.ffn_dim,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "vocab_size": sizes.vocab_size,
        "rms_norm_eps": sizes.rms_norm_eps,
        "rope_theta": sizes.rope_theta,
    }
    described = {
        "model_type": "janus",
        "text_config": language,
        "vision_config": {"num_image_tokens": sizes.image_length},
    }
    # Last: a folder that has it is whole.
    (directory / "config.json").write_text(json.dumps(described, indent=1) + "\n", "utf-8")
    return directory


def _draw(name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    drawn: NDArray[np.float32] = draw(name, shape, np.float32).astype(np.float32, copy=False)
    if name.endswith("embed_tokens.weight"):  # as large as a norm would make it: no layer drowns in it
        drawn = drawn * np.float32(0.02)
    return drawn.astype(ml_dtypes.bfloat16)
