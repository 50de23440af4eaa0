"""int8 weights with one scale for each 64 inputs, and the file that keeps them for the next start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.atomic import replaced_directory
from dalle_server.checkpoints.cache import converted_once
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import LazyTensor, open_tensors, release_pages, write_tensors
from dalle_server.engine.runners.openvino_layers import Product, products
from dalle_server.errors import CheckpointError

GROUP_SIZE = 64  # inputs that share a scale; finer costs reading, coarser costs accuracy
FILE_NAME = "quantised.safetensors"
FILE_VERSION = 1  # of what `products` stacks and how `quantise` rounds
_CHUNK_BYTES = 1 << 20  # quantise this much float32 at a time: it stays in the cache
_DTYPES: dict[str, np.dtype[Any]] = {"I8": np.dtype(np.int8), "F32": np.dtype(np.float32)}

Tensors = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Quantised:
    """w[o, i] ≈ values[o, g, j]·scales[o, g], i = g·group + j. Inputs are padded with zeros to whole groups."""

    values: NDArray[np.int8]  # (out, groups, group)
    scales: NDArray[np.float32]  # (out, groups, 1)

    @property
    def num_inputs(self) -> int:
        """Inputs of the product, padding included."""
        return int(self.values.shape[1] * self.values.shape[2])

    def dequantise(self) -> NDArray[np.float32]:
        """(out, padded in)."""
        return (self.values * self.scales).reshape(len(self.values), -1)


def quantise(weight: NDArray[Any]) -> Quantised:
    """Symmetric round-to-nearest int8 of an (out, in) matrix of any float type, a few rows at a time.

    Raises ValueError for a weight that is not finite.
    """
    rows, inputs = weight.shape
    groups, group = group_shape(inputs)
    values = np.empty((rows, groups, group), np.int8)
    scales = np.empty((rows, groups, 1), np.float32)
    step = max(1, _CHUNK_BYTES // (4 * inputs))
    for start in range(0, rows, step):
        part = np.zeros((min(step, rows - start), groups * group), np.float32)
        part[:, :inputs] = weight[start : start + step]
        part = part.reshape(len(part), groups, group)
        scale = np.maximum(part.max(axis=2, keepdims=True), -part.min(axis=2, keepdims=True))
        scale /= 127
        if not np.isfinite(scale).all():
            raise ValueError("a weight is not finite")
        scales[start : start + step] = scale
        # An all-zero group has the scale 0; dividing by 1 instead keeps its zeros.
        part *= 1 / np.where(scale == 0, 1, scale)
        np.rint(part, out=part)
        values[start : start + step] = part
    return Quantised(values, scales)


def stacked(tensors: Tensors, product: Product) -> NDArray[Any]:
    """The product's (out, in) matrix in the checkpoint's own type, or float32 where it is scaled."""
    parts = [np.asarray(tensors[name]) for name in product.names]
    if product.scale != 1.0:
        parts = [part.astype(np.float32) for part in parts]
        parts[0] *= np.float32(product.scale)
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole[: product.rows]


def quantise_product(tensors: Tensors, product: Product) -> Quantised:
    """`quantise` of what a product stacks, without keeping the checkpoint's pages in memory."""
    quantised = quantise(stacked(tensors, product))
    release_pages(*(tensors[name] for name in product.names))
    return quantised


def kept_quantised(checkpoint: Checkpoint, cache_dir: Path) -> dict[str, Quantised]:
    """Every product's weights, mapped from a file in `cache_dir` that is written if it is not there.

    Raises CheckpointError when the file cannot be written or is damaged.
    """
    folder = cache_dir / "quantised" / f"{checkpoint.digest[:24]}-int8-g{GROUP_SIZE}-v{FILE_VERSION}"
    wanted = products(checkpoint.config)
    file = converted_once(folder, lambda: _write(checkpoint.transformer, wanted, folder), FILE_NAME) / FILE_NAME
    found = open_tensors(file, _DTYPES, private=True)  # OpenVINO takes writable memory only, though it never writes
    if found.keys() != {f"{name}.{part}" for name in wanted for part in ("values", "scales")}:
        raise CheckpointError(f"{file} does not hold this model's products; delete it, it will be made again")
    return {name: Quantised(found[f"{name}.values"], found[f"{name}.scales"]) for name in wanted}


def _write(tensors: Tensors, wanted: Mapping[str, Product], folder: Path) -> None:
    lazy: dict[str, LazyTensor] = {}
    for name, product in wanted.items():
        lazy |= _lazy(tensors, name, product)
    with replaced_directory(folder, needed_bytes=sum(tensor.nbytes for tensor in lazy.values())) as partial:
        write_tensors(partial / FILE_NAME, lazy, dtypes=_DTYPES)


def _lazy(tensors: Tensors, name: str, product: Product) -> dict[str, LazyTensor]:
    made: list[Quantised] = []

    def values() -> NDArray[np.int8]:
        made.append(quantise_product(tensors, product))
        return made[0].values

    rows = product.rows or sum(tensors[part].shape[0] for part in product.names)
    groups, group = group_shape(tensors[product.names[0]].shape[1])
    return {
        f"{name}.values": LazyTensor((rows, groups, group), _DTYPES["I8"], values),
        f"{name}.scales": LazyTensor((rows, groups, 1), _DTYPES["F32"], lambda: made.pop().scales),
    }


def group_shape(num_inputs: int) -> tuple[int, int]:
    """(groups, inputs in a group): a layer of fewer inputs than a group has one of its own size."""
    group = min(GROUP_SIZE, num_inputs)
    return -(-num_inputs // group), group
