"""Memory that the compiled code works in: weights in one piece, and what a stack of layers needs between its phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.cpu.compiled.library import (
    LayerPointers,
    ProductInputs,
    StackPointers,
    TiledProduct,
)
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.packing import Tiles, pack
from dalle_server.engine.runners.cpu.quantise import GROUP_SIZE
from dalle_server.models.config import Product

_ALIGNMENT = 64  # bytes: a cache line


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin on a cache line."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    zeros: NDArray[Any] = raw[start : start + num_bytes].view(dtype).reshape(shape)
    return zeros


def tiles_of(checkpoint: Checkpoint, wanted: Mapping[str, Product], kept: Tiles | None, dtype: str) -> Tiles:
    """The wanted products' tiles; `kept` holds them packed already."""
    return {
        name: kept[name] if kept else pack(checkpoint.transformer, product, dtype) for name, product in wanted.items()
    }


class Memory:
    """What the structures point into, kept as long as this object is."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        array = aligned_zeros(shape, dtype)
        self._kept.append(array)
        return array

    def vector(self, tensor: Any) -> int:
        vector = np.array(tensor, np.float32)
        self._kept.append(vector)
        return vector.ctypes.data

    def products(self, tiles: Tiles) -> dict[str, TiledProduct]:
        """One allocation for all: numpy asks for large pages then, which are read a tenth faster."""
        memory = self.zeros((sum(array.nbytes for array in tiles.values()),), np.uint8)
        products, end = {}, 0
        for name, array in tiles.items():
            start, end = end, end + array.nbytes
            memory[start:end] = array.reshape(-1).view(np.uint8)
            release_pages(array)
            products[name] = TiledProduct(memory[start:].ctypes.data, *array.shape[:2])
        return products

    def stack(
        self,
        part: str,
        tensors: Mapping[str, Any],
        products: Mapping[str, TiledProduct],
        *,
        heads: int,
        num_layers: int,
        num_rows: int,
        num_threads: int,
        is_exact: bool,
        phase_bytes: int,
    ) -> StackPointers:
        """`part` is "encoder" or "decoder"; the layers' caches are left for the caller to fill in."""
        layers = (LayerPointers * num_layers)()
        for index, layer in enumerate(layers):
            prefix = f"{part}.layers.{index}."
            for name, source in LayerPointers.PRODUCTS.items():
                if prefix + source in products:
                    setattr(layer, name, products[prefix + source])
            for name, source in LayerPointers.VECTORS.items():
                if prefix + source in tensors:
                    setattr(layer, name, self.vector(tensors[prefix + source]))
        norm = f"{part}.layernorm_embedding"
        width = tensors[f"{norm}.bias"].shape[0]
        ffn_width = tensors[f"{part}.layers.0.glu.ln1.bias"].shape[0]
        widest = max(product.tiles for name, product in products.items() if name != "lm_head") * LANES
        self._kept.append(layers)
        return StackPointers(
            width=width,
            ffn_width=ffn_width,
            heads=heads,
            num_layers=num_layers,
            threads=num_threads,
            layers=layers,
            embedding_scale=self.vector(tensors[f"{norm}.weight"]),
            embedding_bias=self.vector(tensors[f"{norm}.bias"]),
            final_bias=self.vector(tensors[f"{part}.final_ln.bias"]),
            x=self.zeros((num_rows, width)).ctypes.data,
            mixed=self.zeros((num_rows, width)).ctypes.data,
            y=self.zeros((num_rows, widest)).ctypes.data,
            inputs=self._inputs(num_rows, max(product.groups for product in products.values()), is_exact),
            phases=self.zeros((phase_bytes,), np.uint8).ctypes.data,
        )

    def _inputs(self, num_rows: int, groups: int, is_exact: bool) -> ProductInputs:
        return ProductInputs(
            self.zeros((groups, num_rows, GROUP_SIZE)).ctypes.data,
            self.zeros((groups, num_rows, GROUP_SIZE), np.int8).ctypes.data,
            self.zeros((groups, num_rows)).ctypes.data,
            self.zeros((groups, num_rows), np.int32).ctypes.data,
            num_rows,
            is_exact,
        )
