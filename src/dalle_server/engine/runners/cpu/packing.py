"""A product's weights as a graph holds them, and the file that keeps them for the next start.

Packing costs seconds and, worse, memory that OpenVINO holds on to beside its own copy. From a mapped file the next
start reads them at once, and gives the pages back when they have been read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.atomic import replaced_directory
from dalle_server.checkpoints.cache import converted_once
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import DTYPES, LazyTensor, open_tensors, release_pages, write_tensors
from dalle_server.engine.runners.cpu.compiled.tiles import INT8_BYTES, LANES, tile_fp32, tile_int8, tile_shape
from dalle_server.engine.runners.cpu.quantise import GROUP_SIZE, Quantised, group_shape, quantise
from dalle_server.errors import CheckpointError
from dalle_server.models.config import ModelConfig, Product

FILE_NAME = "packed.safetensors"
FILE_VERSION = 2  # of what `products` stacks and how `quantise` rounds
COMPILED = "compiled "  # before a dtype: laid out for the compiled code
_FLOATS = {"fp32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}
_FILE_DTYPES: dict[str, np.dtype[Any]] = {**DTYPES, "I8": np.dtype(np.int8)}

Tensors = Mapping[str, Any]
Packed = Mapping[str, NDArray[Any]]  # "values" and, for int8, "scales": see Quantised; or "tiles": see compiled/tiles


def products(config: ModelConfig) -> dict[str, Product]:
    """Name → product, of everything that a runner on a CPU computes."""
    return config.transformer.products(config.picture.codebook_size)


def format_of(layout: str) -> str:
    """How a layout's products are packed: "fp32", "bf16", "int8", "fp32 tiles" or "int8 tiles"."""
    return f"{layout.removeprefix(COMPILED)} tiles" if layout.startswith(COMPILED) else layout


def pack(tensors: Tensors, product: Product, form: str) -> dict[str, NDArray[Any]]:
    """The named matrices stacked, scaled, cut, and packed in one of `format_of`'s forms.

    Raises CheckpointError for a weight that int8 cannot hold: NaN or infinite.
    """
    parts = [np.asarray(tensors[name]) for name in product.names]
    if product.scale != 1.0:
        parts[0] = parts[0].astype(np.float32) * np.float32(product.scale)
    if form in _FLOATS:
        packed: dict[str, NDArray[Any]] = {"values": _stacked([part.astype(_FLOATS[form]) for part in parts], product)}
    elif form == "fp32 tiles":
        packed = {"tiles": tile_fp32(_stacked(parts, product))}
    else:
        quantised = _quantised(_stacked(parts, product), product)
        if form == "int8 tiles":
            packed = {"tiles": tile_int8(quantised)}
        else:
            packed = {"values": quantised.values, "scales": quantised.scales}
    release_pages(*(tensors[name] for name in product.names))
    return packed


def _stacked(parts: list[NDArray[Any]], product: Product) -> NDArray[Any]:
    return (parts[0] if len(parts) == 1 else np.concatenate(parts))[: product.rows]


def _quantised(weight: NDArray[Any], product: Product) -> Quantised:
    try:
        return quantise(weight)
    except ValueError as error:
        raise CheckpointError(f"{', '.join(product.names)}: {error}; the weights are broken") from error


def kept_packed(checkpoint: Checkpoint, layout: str, cache_dir: Path) -> dict[str, Packed]:
    """Every product's weights, packed as `format_of` says, mapped from a file in `cache_dir`; written if not there.

    Raises CheckpointError when the file cannot be written or is damaged.
    """
    folder = cache_dir / "openvino" / f"{checkpoint.digest[:24]}-{layout.replace(' ', '-')}-v{FILE_VERSION}"
    wanted = products(checkpoint.config)

    def write() -> None:
        lazy: dict[str, LazyTensor] = {}
        for name, product in wanted.items():
            lazy |= _lazy(checkpoint.transformer, name, product, format_of(layout))
        with replaced_directory(folder, needed_bytes=sum(tensor.nbytes for tensor in lazy.values())) as partial:
            write_tensors(partial / FILE_NAME, lazy, dtypes=_FILE_DTYPES)

    file = converted_once(folder, write, FILE_NAME) / FILE_NAME
    found = open_tensors(file, _FILE_DTYPES, private=True)  # OpenVINO takes only writable memory, which it never writes
    parts = {name: tuple(_shapes(checkpoint.transformer, wanted[name], format_of(layout))) for name in wanted}
    if found.keys() != {f"{name}.{part}" for name in wanted for part in parts[name]}:
        raise CheckpointError(f"{file} does not hold this model's products; delete it, it will be made again")
    return {name: {part: found[f"{name}.{part}"] for part in parts[name]} for name in wanted}


def _lazy(tensors: Tensors, name: str, product: Product, form: str) -> dict[str, LazyTensor]:
    """File entries whose values are packed when the first of them is written."""
    made: dict[str, NDArray[Any]] = {}
    return {
        f"{name}.{part}": LazyTensor(shape, dtype, _part(tensors, product, form, part, made))
        for part, (shape, dtype) in _shapes(tensors, product, form).items()
    }


def _shapes(tensors: Tensors, product: Product, form: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of every array of a packed product."""
    shapes = [tensors[part].shape for part in product.names]
    rows, inputs = product.rows or sum(shape[0] for shape in shapes), shapes[0][1]
    if form == "int8 tiles":
        return {"tiles": ((*tile_shape(rows, inputs), INT8_BYTES), np.dtype(np.int8))}
    if form == "fp32 tiles":
        return {"tiles": ((*tile_shape(rows, inputs), LANES * GROUP_SIZE), np.dtype(np.float32))}
    if form != "int8":
        return {"values": ((rows, inputs), _FLOATS[form])}
    groups, group = group_shape(inputs)
    return {"values": ((rows, groups, group), np.dtype(np.int8)), "scales": ((rows, groups, 1), np.dtype(np.float32))}


def _part(
    tensors: Tensors, product: Product, form: str, part: str, made: dict[str, NDArray[Any]]
) -> Callable[[], NDArray[Any]]:
    def load() -> NDArray[Any]:
        if part not in made:
            made.update(pack(tensors, product, form))
        return made.pop(part)

    return load
