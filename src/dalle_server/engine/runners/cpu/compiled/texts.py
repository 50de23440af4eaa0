"""Texts in compiled code: memory and arguments for encode_text.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.base import TextTokens
from dalle_server.engine.runners.cpu.compiled.caches import cache_arrays
from dalle_server.engine.runners.cpu.compiled.layers import Layers
from dalle_server.engine.runners.cpu.compiled.library import EncoderPointers, TextArguments, TiledProduct
from dalle_server.engine.runners.cpu.compiled.stack import Memory
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.parts import TextCache

Embed = Callable[[NDArray[np.int32]], NDArray[np.float32]]  # (T,) ids → (T, d)


class CompiledTexts:
    """Implements `Texts` with compiled code: an encoder, whose states become keys and values by `cross`; or without
    any `cross` a prefix, whose layers' own keys and values are kept, of all ids but the last, which the first step
    feeds.
    """

    def __init__(
        self,
        library: Any,
        team: Team,
        memory: Memory,
        tensors: Any,
        layers: Layers,
        embed: Embed,
        *,
        text_length: int,
        cross: Sequence[TiledProduct] = (),
        cross_heads: int = 0,
    ):
        self._run, self._team, self._memory, self._embed = library.encode_text, team, memory, embed
        self._is_prefix = not cross
        self._states, self._length = np.zeros((text_length, layers.width), np.float32), 0
        heads = layers.kv_heads if self._is_prefix else cross_heads
        self._kept_shape = (len(cross) or layers.num_layers, 2, heads, layers.width // (cross_heads or layers.heads))
        self._phase_bytes = library.phase_bytes(layers.num_layers, len(cross))
        stack = memory.stack(layers, tensors, text_length, text_length, team.num_threads, self._phase_bytes)
        # One layer's keys and values at a time, in float32 whatever the products are.
        self._caches = cache_arrays((layers.kv_heads,), layers.head_size, text_length, np.float32)
        for layer in stack.layers[: layers.num_layers]:
            layer.keys, layer.values = (cache.ctypes.data for cache in self._caches)
        self._cross = (TiledProduct * len(cross))(*cross)
        self._encoder = EncoderPointers(
            stack, text_length, self._is_prefix, *self._kept_shape[2:], len(cross), self._cross
        )

    def encode(self, text: TextTokens) -> TextCache:
        length = self._length = text.length - self._is_prefix
        embedded = np.ascontiguousarray(self._embed(text.ids[:length]))
        layers, both, heads, size = self._kept_shape
        keys_values: NDArray[Any] = np.empty((layers, both, heads, length, size), self._memory.cell)
        pointers = [array.ctypes.data for array in (embedded, self._states, keys_values)]
        arguments = TextArguments(ctypes.pointer(self._encoder), length, *pointers)
        self._team.run(self._run, arguments, self._encoder.stack.phases, self._phase_bytes)
        return TextCache(keys_values, length)

    def states(self) -> NDArray[np.float32]:
        """(T, d) of the last text: for tests."""
        return self._states[: self._length].copy()

    def close(self) -> None:
        """Dropping it is enough."""
