"""Weights in someone else's form, read but not yet converted: what every reader returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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


def _cast(name: str, tensor: LazyTensor, dtype: np.dtype[Any]) -> LazyTensor:
    def load() -> Array:
        with np.errstate(over="ignore"):
            array = tensor.load()
            cast: Array = array.astype(dtype)
        if not np.isfinite(cast).all():
            raise CheckpointError(f"{name} holds values that {dtype} cannot (largest {np.abs(array).max():g})")
        return cast

    return tensor if tensor.dtype == dtype else LazyTensor(tensor.shape, np.dtype(dtype), load)
