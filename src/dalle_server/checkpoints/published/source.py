"""Weights in someone else's form, read but not yet converted: what every reader returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from dalle_server.checkpoints.tensor_file import Array, LazyTensor
from dalle_server.errors import CheckpointError
from dalle_server.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class PublishedSource:
    """A checkpoint under native names. Tensors are read when they are written."""

    config: ModelConfig
    transformer: Mapping[str, LazyTensor]
    vqgan: Mapping[str, LazyTensor]
    tokenizer_files: Mapping[str, Path | bytes]

    def cast(self, dtype: np.dtype[Any]) -> PublishedSource:
        """The transformer in another dtype. Raises CheckpointError where precision cannot be won back."""
        stored = {tensor.dtype for tensor in self.transformer.values()}
        if any(np.dtype(dtype).itemsize > found.itemsize for found in stored):
            raise CheckpointError(
                f"{self.config.name} is wanted in {dtype}, but these weights are only {', '.join(map(str, stored))}"
            )
        return replace(self, transformer={name: _cast(name, t, dtype) for name, t in self.transformer.items()})


def count(tensors: Mapping[str, Array], prefix: str) -> int:
    """How many parts the names behind the prefix number. Raises ValueError for none."""
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix))


def lazy(array: Array) -> LazyTensor:
    return LazyTensor(array.shape, array.dtype, partial(np.asarray, array))


def check_said(said: Mapping[str, Any], sizes: Mapping[str, int], where: Path) -> None:
    """Raises CheckpointError where a config file says other sizes than the tensors have."""
    for key, value in sizes.items():
        if said.get(key, value) != value:
            raise CheckpointError(f"{where}: {key} is {said[key]!r}, but the weights say {value}")


def vqgan_sizes(tensors: Mapping[str, Array], levels: Iterable[int], grid_side: int) -> dict[str, Any]:
    """As the tensors say; `levels` are the numbers of the decoder's, from the finest on. Raises LookupError and
    ArithmeticError.
    """
    widths = [tensors[f"decoder.up.{level}.block.0.conv2.weight"].shape[0] for level in levels]
    ch = gcd(*widths)  # only the products ch · ch_mult count
    n_embed, embed_dim = tensors["quantize.embedding.weight"].shape
    return {
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": count(tensors, "decoder.up.0.block.") - 1,
        "z_channels": tensors["post_quant_conv.weight"].shape[0],
        "embed_dim": embed_dim,
        "n_embed": n_embed,
        "resolution": grid_side << (len(widths) - 1),
        "out_ch": tensors["decoder.conv_out.weight"].shape[0],
    }


def _cast(name: str, tensor: LazyTensor, dtype: np.dtype[Any]) -> LazyTensor:
    def load() -> Array:
        with np.errstate(over="ignore"):
            array = tensor.load()
            cast: Array = array.astype(dtype)
        if not np.isfinite(cast).all():
            raise CheckpointError(f"{name} holds values that {dtype} cannot (largest {np.abs(array).max():g})")
        return cast

    return tensor if tensor.dtype == dtype else LazyTensor(tensor.shape, np.dtype(dtype), load)
