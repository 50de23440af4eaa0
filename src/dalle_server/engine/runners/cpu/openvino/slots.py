"""The decoder's caches: each slot owns the same blocks of every layer's paged memory for its whole life.

Slot s has two rows, 2s conditional and 2s + 1 unconditional. One slot more than asked for is kept as scratch:
rows that only fill up a step write there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.openvino.ops import BLOCK
from dalle_server.engine.runners.cpu.parts import TextCache
from dalle_server.families.dalle_bart import DalleBartConfig

Ints = NDArray[np.int32]


class SlotCaches:
    """Allocates the caches that `request` (of the decode step) wants, binds them, and addresses them.

    Raises RuntimeError when the plugin's cache layout is not (blocks, H, 32, D).
    """

    def __init__(self, compiled: ov.CompiledModel, request: ov.InferRequest, config: DalleBartConfig, num_slots: int):
        self.scratch = num_slots
        self._own_blocks = -(-config.image_length // BLOCK)  # a row
        self._text_blocks = -(-config.max_text_length // BLOCK)
        num_rows = 2 * (num_slots + 1)
        self._text_lengths = np.ones(num_rows, np.int32)
        views: dict[str, NDArray[Any]] = {}
        for port in compiled.inputs:
            name = port.get_any_name()
            if "_keys_" not in name and "_values_" not in name:
                continue
            blocks = num_rows * (self._own_blocks if name.startswith("self") else self._text_blocks)
            tensor = ov.Tensor(port.get_element_type(), ov.Shape([blocks, *_layout(port, config)]))
            request.set_tensor(name, tensor)
            views[name] = _words(tensor.data)
        for view in views.values():
            view[self._blocks(self.scratch, view)] = 0
        self._own = [view for name, view in views.items() if name.startswith("self")]
        self._cross = [(views[f"cross_keys_{i}"], views[f"cross_values_{i}"]) for i in range(config.decoder_layers)]

    def _blocks(self, slot: int, view: NDArray[Any]) -> slice:
        per_slot = len(view) // (self.scratch + 1)
        return slice(slot * per_slot, (slot + 1) * per_slot)

    def admit(self, slot: int, texts: Sequence[TextCache]) -> None:
        """Write the cross-attention keys and values of a conditional and an unconditional text.

        What an earlier picture left is zeroed: a finite leftover is masked away, but a NaN would survive the mask's
        product with zero.
        """
        for view in self._own:
            view[self._blocks(slot, view)] = 0
        for row, text in enumerate(texts, start=2 * slot):
            self._text_lengths[row] = text.length
            first = row * self._text_blocks
            for kv, caches in zip(_words(text.keys_values), self._cross, strict=True):
                for values, cache in zip(kv, caches, strict=True):
                    _write_text(cache[first : first + self._text_blocks], values[:, : text.length])

    def pages(self, slots: Ints, positions: Ints) -> Mapping[str, Ints]:
        """The graph's addressing inputs for one query per row: N conditional rows, then N unconditional."""
        rows = np.concatenate([2 * slots, 2 * slots + 1])
        own_past = np.concatenate([positions, positions])
        text_past = self._text_lengths[rows] - 1
        return {
            "begins": np.arange(len(rows) + 1, dtype=np.int32),
            **_addresses("self", rows * self._own_blocks, own_past),
            **_addresses("cross", rows * self._text_blocks, text_past),
        }


def _write_text(blocks: NDArray[Any], values: NDArray[Any]) -> None:
    """values (H, T, D) into one row's blocks (n, H, 32, D), zeros behind them."""
    blocks[:] = 0
    for block, start in zip(blocks, range(0, values.shape[1], BLOCK), strict=False):
        part = values[:, start : start + BLOCK]
        block[:, : part.shape[1]] = part


def _layout(port: Any, config: DalleBartConfig) -> list[int]:
    """(H, 32, D) of a cache input; the number of blocks before it is ours to choose."""
    heads = config.decoder_attention_heads
    expected = [heads, BLOCK, config.d_model // heads]
    shape = port.get_partial_shape()
    found = [dimension.get_length() for dimension in list(shape)[1:]] if len(shape) == 4 else None
    if found != expected:
        raise RuntimeError(
            f"this OpenVINO lays paged caches out as {shape}; expected [?,{expected}]: use --runner torch"
        )
    return expected


def _words(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory; bfloat16, which numpy lacks, as the 16-bit words it consists of."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def _addresses(prefix: str, first_blocks: Ints, past_lens: Ints) -> dict[str, Ints]:
    counts = past_lens // BLOCK + 1
    begins = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=begins[1:])
    # Block j of a row is its first block + j: count up from each row's begin.
    offsets = np.arange(begins[-1], dtype=np.int32) - np.repeat(begins[:-1], counts)
    return {
        f"{prefix}_past_lens": past_lens.astype(np.int32),
        f"{prefix}_block_indices": np.repeat(first_blocks, counts).astype(np.int32) + offsets,
        f"{prefix}_block_begins": begins,
        f"{prefix}_max_len": np.array(past_lens.max() + 1, np.int32),
    }
