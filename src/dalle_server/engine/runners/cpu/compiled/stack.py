"""Memory that the compiled code works in: weights in one piece, and what a stack of layers needs between its phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import LazyTensor, release_pages
from dalle_server.engine.runners.cpu.compiled.layers import EXACT, Layers
from dalle_server.engine.runners.cpu.compiled.library import (
    LayerPointers,
    NormPointers,
    ProductInputs,
    StackPointers,
    TiledProduct,
)
from dalle_server.engine.runners.cpu.compiled.rotary import rotary_table
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.packing import Tiles, TilesToPut, packed_later
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


def tiles_of(checkpoint: Checkpoint, wanted: Mapping[str, Product], kept: Tiles | None, dtype: str) -> TilesToPut:
    """The wanted products' tiles; `kept` holds them packed already."""
    return {
        name: kept[name] if kept else packed_later(checkpoint.transformer, product, dtype)
        for name, product in wanted.items()
    }


def _put(place: NDArray[np.uint8], tile: NDArray[Any] | LazyTensor) -> None:
    array = tile.load() if isinstance(tile, LazyTensor) else tile
    place[:] = array.reshape(-1).view(np.uint8)
    release_pages(array)


class Memory:
    """What the structures point into, kept as long as this object is, and the products in it.

    `tiles` are copied: one allocation for all, because numpy asks for large pages then, which are read a tenth faster.
    """

    def __init__(self, tiles: TilesToPut, *, is_exact: bool) -> None:
        self._kept: list[Any] = []
        self._is_exact = is_exact
        self.products = self._products(tiles)

    def zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        array = aligned_zeros(shape, dtype)
        self._kept.append(array)
        return array

    def cell(self, layers: Layers) -> int:
        """Of the keys and values that are kept."""
        return EXACT if self._is_exact else layers.int8_cell

    def vector(self, tensor: Any | None) -> int | None:
        """As float32; None where there is no tensor."""
        if tensor is None:
            return None
        vector = np.array(tensor, np.float32)
        self._kept.append(vector)
        return vector.ctypes.data

    def _products(self, tiles: TilesToPut) -> dict[str, TiledProduct]:
        memory = self.zeros((sum(array.nbytes for array in tiles.values()),), np.uint8)
        products, end = {}, 0
        for name, tile in tiles.items():
            start, end = end, end + tile.nbytes
            _put(memory[start:end], tile)
            products[name] = TiledProduct(memory[start:].ctypes.data, *tile.shape[:2])
        return products

    def stack(
        self,
        layers: Layers,
        tensors: Mapping[str, Any],
        num_rows: int,
        num_positions: int,
        num_threads: int,
        phase_bytes: int,
    ) -> StackPointers:
        """The layers' caches are left for the caller to fill in."""

        def norm(name: str | None) -> NormPointers:
            return NormPointers(*(self.vector(tensors.get(f"{name}.{part}")) for part in ("weight", "bias")))

        pointers = (LayerPointers * layers.num_layers)()
        self._kept.append(pointers)
        for index, layer in enumerate(pointers):
            for name, source in layers.products.items():
                setattr(layer, name, self.products[f"{layers.prefix}.{index}.{source}"])
            for name, source in layers.norms.items():
                setattr(layer, name, norm(f"{layers.prefix}.{index}.{source}"))
        # lm_head has a place of its own for what it gives.
        of_rows = [product for name, product in self.products.items() if name != "lm_head"]
        return StackPointers(
            width=layers.width,
            ffn_width=layers.ffn_width,
            num_layers=layers.num_layers,
            threads=num_threads,
            heads=layers.heads,
            kv_heads=layers.kv_heads,
            is_swish=layers.is_swish,
            cell=self.cell(layers),
            rms_eps=layers.rms_eps,
            layers=pointers,
            embedding=norm(layers.embedding),
            final=norm(layers.final),
            turns=self._turns(layers, num_positions),
            x=self.zeros((num_rows, layers.width)).ctypes.data,
            mixed=self.zeros((num_rows, layers.width)).ctypes.data,
            y=self.zeros((num_rows, max(product.tiles for product in of_rows) * LANES)).ctypes.data,
            inputs=self._inputs(num_rows, max(product.groups for product in self.products.values())),
            phases=self.zeros((phase_bytes,), np.uint8).ctypes.data,
        )

    def _turns(self, layers: Layers, num_positions: int) -> int | None:
        if layers.rope_theta is None:
            return None
        return self.vector(rotary_table(num_positions, layers.head_size, layers.rope_theta))

    def _inputs(self, num_rows: int, groups: int) -> ProductInputs:
        return ProductInputs(
            self.zeros((groups, num_rows, GROUP_SIZE)).ctypes.data,
            self.zeros((groups, num_rows, GROUP_SIZE), np.int8).ctypes.data,
            self.zeros((groups, num_rows)).ctypes.data,
            self.zeros((groups, num_rows), np.int32).ctypes.data,
            num_rows,
            self._is_exact,
        )


@dataclass(frozen=True, slots=True)
class Loading:
    """What texts and step of any family are made with."""

    library: Any
    team: Team
    memory: Memory
    checkpoint: Checkpoint
    num_slots: int
