"""Products' weights laid out for the compiled code, and the file that keeps them for the next start.

Packing costs seconds and memory. From a mapped file the next start reads them at once, and gives the pages back when
they have been read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.cache import kept_file
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import (
    DTYPES,
    LazyTensor,
    check_tensors,
    open_tensors,
    release_pages,
    write_tensors,
)
from dalle_server.engine.runners.cpu.compiled.tiles import INT8_BYTES, LANES, tile_fp32, tile_int8, tile_shape
from dalle_server.engine.runners.cpu.quantise import GROUP_SIZE, quantise
from dalle_server.errors import CheckpointError
from dalle_server.models.config import ModelConfig, Product

FILE_NAME = "packed.safetensors"
FILE_VERSION = 4  # of what `products` stacks, how `quantise` rounds and how tiles lie
_FILE_DTYPES: dict[str, np.dtype[Any]] = {**DTYPES, "I8": np.dtype(np.int8)}

Tensors = Mapping[str, Any]
Tiles = Mapping[str, NDArray[Any]]  # product's name → (tiles, groups, …): compiled/tiles.py
TilesToPut = Mapping[str, NDArray[Any] | LazyTensor]  # likewise, packed or to be packed


def products(config: ModelConfig) -> dict[str, Product]:
    """Name → product, of everything that a runner on a CPU computes."""
    return config.transformer.products(config.picture.codebook_size)


def stacked(tensors: Tensors, product: Product) -> NDArray[Any]:
    """The named matrices, one above the other, scaled and cut: (out, in)."""
    parts = [np.asarray(tensors[name]) for name in product.names]
    if product.scale != 1.0:
        parts[0] = parts[0].astype(np.float32) * np.float32(product.scale)
    return (parts[0] if len(parts) == 1 else np.concatenate(parts))[: product.rows]


def pack(tensors: Tensors, product: Product, dtype: str) -> NDArray[Any]:
    """Laid out in "int8" or "fp32". Raises CheckpointError for a weight that int8 cannot hold: NaN or infinite."""
    weight = stacked(tensors, product)
    try:
        tiles = tile_fp32(weight) if dtype == "fp32" else tile_int8(quantise(weight))
    except ValueError as error:
        raise CheckpointError(f"{', '.join(product.names)}: {error}; the weights are broken") from error
    release_pages(*(tensors[name] for name in product.names))
    return tiles


def kept_packed(checkpoint: Checkpoint, dtype: str, cache_dir: Path) -> Tiles:
    """Every product's tiles, mapped from a file in `cache_dir`; written if not there or damaged.

    Raises CheckpointError when the file cannot be written.
    """
    folder = cache_dir / "compiled" / f"{checkpoint.digest[:24]}-{dtype}-v{FILE_VERSION}"
    tensors, wanted = checkpoint.transformer, products(checkpoint.config)
    lazy = {name: packed_later(tensors, product, dtype) for name, product in wanted.items()}

    def write(path: Path) -> None:
        write_tensors(path, lazy, dtypes=_FILE_DTYPES)

    file = kept_file(folder, FILE_NAME, write, sum(tensor.nbytes for tensor in lazy.values()))
    found = open_tensors(file, _FILE_DTYPES)
    shapes = {name: tensor.shape for name, tensor in lazy.items()}
    check_tensors(f"{file} (delete it: it is made again)", found, shapes)
    return found


def packed_later(tensors: Tensors, product: Product, dtype: str) -> LazyTensor:
    """Packed when it is asked for, so that of all products one at a time is there twice."""
    shapes = [tensors[part].shape for part in product.names]
    tiles = tile_shape(product.rows or sum(shape[0] for shape in shapes), shapes[0][1])
    width, stored = (LANES * GROUP_SIZE, np.float32) if dtype == "fp32" else (INT8_BYTES, np.int8)
    return LazyTensor((*tiles, width), np.dtype(stored), lambda: pack(tensors, product, dtype))
