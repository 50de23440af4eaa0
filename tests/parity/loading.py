"""The golden checkpoints, read by the package's own readers, as in-memory checkpoints and as torch models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle_server.checkpoints import Checkpoint
from dalle_server.checkpoints.flax import read_flax
from dalle_server.engine.runners.torch_weights import load_transformer
from dalle_server.models.config import ModelConfig, TransformerConfig
from dalle_server.models.dalle_bart import DalleBart
from dalle_server.models.vqgan import VQGAN

PARITY = Path(__file__).parents[1] / "data" / "parity"
CPU = torch.device("cpu")


@lru_cache
def golden_checkpoint(name: str) -> Checkpoint:
    """A golden Flax checkpoint with the golden VQGAN, tensors as stored."""
    source = read_flax(PARITY / name, PARITY / "tiny-vqgan", name)
    return in_memory(
        source.config,
        {name: tensor.load() for name, tensor in source.transformer.items()},
        {name: tensor.load() for name, tensor in source.vqgan.items()},
    )


def in_memory(config: ModelConfig, transformer: Mapping[str, Any], vqgan: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(PARITY, config, transformer, vqgan, digest="golden")


def without_vqgan_limit(checkpoint: Checkpoint) -> Checkpoint:
    """The same transformer with a codebook as large as its image vocabulary (entries beyond the golden's are zero)."""
    vocab = checkpoint.config.transformer.image_vocab_size
    config = replace(checkpoint.config, vqgan=replace(checkpoint.config.vqgan, n_embed=vocab))
    codebook = np.zeros((vocab, config.vqgan.embed_dim), np.float32)
    return replace(checkpoint, config=config, vqgan={**checkpoint.vqgan, "quantize.embedding.weight": codebook})


def load_bart(name: str, dtype: torch.dtype = torch.float32) -> DalleBart:
    return load_transformer(golden_checkpoint(name), CPU, dtype)


def load_min_dalle(name: str) -> DalleBart:
    """min-dalle's own state dicts carry our names, but for lm_head's place."""
    directory = PARITY / name
    dims = json.loads((directory / "dims.json").read_text())
    parts = {part: torch.load(directory / f"{part}.pt", weights_only=True) for part in ("encoder", "decoder")}
    state = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    state["lm_head.weight"] = state.pop("decoder.lm_head.weight")
    model = DalleBart(TransformerConfig.from_dict(dims))
    model.load_state_dict(state, strict=True)
    return model.float().eval().requires_grad_(False)


def load_vqgan() -> VQGAN:
    """With its encoder, which serving leaves out."""
    checkpoint = golden_checkpoint("tiny-mega")
    model = VQGAN(checkpoint.config.vqgan)
    model.load_state_dict({name: torch.tensor(array) for name, array in checkpoint.vqgan.items()}, strict=True)
    return model.eval().requires_grad_(False)


def goldens(path: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / path) as file:
        return {name: file[name] for name in file.files}
