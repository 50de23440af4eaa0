"""Texts in compiled code: memory and arguments for encode_text.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.base import TextTokens
from dalle_server.engine.runners.cpu.compiled.caches import KeptText, head_cells
from dalle_server.engine.runners.cpu.compiled.layers import EXACT, Layers
from dalle_server.engine.runners.cpu.compiled.library import EncoderPointers, TextArguments, TiledProduct
from dalle_server.engine.runners.cpu.compiled.stack import Loading

MOST_ROWS = 64  # of a prefix at once: more are hardly faster, and each takes room to work in

Embed = Callable[[NDArray[np.int32]], NDArray[np.float32]]  # (T,) ids → (T, d)


class CompiledTexts:
    """Implements `Texts` with compiled code: an encoder, whose states become keys and values by `cross`; or without
    any `cross` a prefix, whose layers' own keys and values are kept, of all ids but the last, which the first step
    feeds; it is read in pieces.
    """

    def __init__(
        self,
        loading: Loading,
        layers: Layers,
        embed: Embed,
        *,
        cross: Sequence[TiledProduct] = (),
        cross_heads: int = 0,
    ):
        library, team, memory, tensors = loading.library, loading.team, loading.memory, loading.checkpoint.transformer
        text_length = loading.checkpoint.config.text.max_length
        self._run, self._team, self._memory, self._embed = library.encode_text, team, memory, embed
        self._is_prefix = not cross
        self._most_rows = min(text_length, MOST_ROWS) if self._is_prefix else text_length
        self._states, self._num_rows = np.zeros((self._most_rows, layers.width), np.float32), 0
        heads = layers.kv_heads if self._is_prefix else cross_heads
        kept_heads, head_size = (len(cross) or layers.num_layers, heads), layers.width // (cross_heads or layers.heads)
        self._cells = partial(head_cells, library, kept_heads, head_size=head_size, cell=memory.cell(layers))
        self._phase_bytes = library.phase_bytes(layers.num_layers, len(cross))
        stack = memory.stack(layers, tensors, self._most_rows, text_length, team.num_threads, self._phase_bytes)
        # An encoder's layers need one layer's keys and values at a time, in float32 whatever the products are.
        kv_heads = 0 if self._is_prefix else layers.kv_heads
        self._cache = head_cells(library, (kv_heads,), text_length, layers.head_size, EXACT)
        for layer in stack.layers[: layers.num_layers]:
            layer.cache = self._cache.ctypes.data
        self._cross = (TiledProduct * len(cross))(*cross)
        self._encoder = EncoderPointers(stack, text_length, self._is_prefix, heads, head_size, len(cross), self._cross)

    def open(self, text: TextTokens) -> KeptText:
        ids = text.ids[: text.length - self._is_prefix]
        return KeptText(ids, self._cells(len(ids)))

    def read(self, text: KeptText, num_tokens: int) -> None:
        first, end = text.num_read, len(text.ids)
        if self._is_prefix:
            end = min(end, first + num_tokens, first + self._most_rows)
        if end == first:
            return
        self._num_rows = end - first
        embedded = np.ascontiguousarray(self._embed(text.ids[first:end]))
        pointers = [array.ctypes.data for array in (embedded, self._states, text.cells)]
        arguments = TextArguments(ctypes.pointer(self._encoder), len(text.ids), first, self._num_rows, *pointers)
        self._team.run(self._run, arguments, self._encoder.stack.phases, self._phase_bytes)
        text.num_read = end

    def states(self) -> NDArray[np.float32]:
        """(T, d) of the last text, or piece of one: for tests."""
        return self._states[: self._num_rows].copy()

    def close(self) -> None:
        """Dropping it is enough."""
