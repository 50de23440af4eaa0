"""The golden checkpoints, read by the package's own readers, as in-memory checkpoints and as torch models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from dalle_server.checkpoints import Checkpoint
from dalle_server.checkpoints.published.flax import read_flax
from dalle_server.checkpoints.published.min_dalle import read_min_dalle
from dalle_server.engine.runners.torch.weights import load_transformer
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import ModelConfig
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
    vocab = checkpoint.config.sizes(DalleBartConfig).image_vocab_size
    config = replace(checkpoint.config, vqgan=replace(checkpoint.config.vqgan, n_embed=vocab))
    codebook = np.zeros((vocab, config.vqgan.embed_dim), np.float32)
    return replace(checkpoint, config=config, vqgan={**checkpoint.vqgan, "quantize.embedding.weight": codebook})


def load_bart(name: str, dtype: torch.dtype = torch.float32) -> DalleBart:
    return load_transformer(golden_checkpoint(name), CPU, dtype)


@lru_cache
def min_dalle_checkpoint(name: str) -> Checkpoint:
    """A golden min-dalle folder with the golden detokenizer."""
    with (
        TemporaryDirectory() as scratch,
        read_min_dalle(PARITY / name, PARITY / "min-dalle-tiny", name, Path(scratch) / "made of it") as source,
    ):
        return in_memory(
            source.config,
            {name: np.array(tensor.load()) for name, tensor in source.transformer.items()},
            {name: np.array(tensor.load()) for name, tensor in source.vqgan.items()},
        )


def load_min_dalle(name: str) -> DalleBart:
    return load_transformer(min_dalle_checkpoint(name), CPU, torch.float32)


def load_vqgan() -> VQGAN:
    """With its encoder, which serving leaves out."""
    checkpoint = golden_checkpoint("tiny-mega")
    model = VQGAN(checkpoint.config.vqgan)
    model.load_state_dict({name: torch.tensor(array) for name, array in checkpoint.vqgan.items()}, strict=True)
    return model.eval().requires_grad_(False)


def goldens(path: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / path) as file:
        return {name: file[name] for name in file.files}
