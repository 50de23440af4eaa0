"""The text encoder in compiled code: memory and arguments for encode_text.h."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import TextTokens
from dalle_server.engine.runners.cpu.compiled.caches import cache_arrays
from dalle_server.engine.runners.cpu.compiled.library import EncoderPointers, TextArguments, TiledProduct
from dalle_server.engine.runners.cpu.compiled.stack import Memory
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.embeddings import Embeddings
from dalle_server.engine.runners.cpu.packing import Tiles
from dalle_server.engine.runners.cpu.parts import TextCache
from dalle_server.families.dalle_bart import DalleBartConfig


class CompiledTexts:
    """Implements `Texts` with compiled code.

    `tiles` holds every product of the encoder, and the decoder's of keys and values over the text.
    """

    def __init__(
        self, library: Any, team: Team, checkpoint: Checkpoint, tiles: Tiles, embeddings: Embeddings, *, is_exact: bool
    ):
        config = self._config = checkpoint.config.sizes(DalleBartConfig)
        self._run, self._team, self._embeddings = library.encode_text, team, embeddings
        self._states, self._length = np.zeros((config.max_text_length, config.d_model), np.float32), 0
        self._cell = np.float32 if is_exact else np.float16
        self._memory = Memory()
        products = self._memory.products(tiles)
        self._phase_bytes = library.phase_bytes(config.encoder_layers, config.decoder_layers)
        stack = self._memory.stack(
            "encoder",
            checkpoint.transformer,
            products,
            heads=config.encoder_attention_heads,
            num_layers=config.encoder_layers,
            num_rows=config.max_text_length,
            num_threads=team.num_threads,
            is_exact=is_exact,
            phase_bytes=self._phase_bytes,
        )
        # One layer's keys and values at a time, in float32 whatever the products are.
        heads = config.encoder_attention_heads
        self._caches = cache_arrays((heads,), config.d_model // heads, config.max_text_length, np.float32)
        for layer in stack.layers[: config.encoder_layers]:
            layer.keys, layer.values = (cache.ctypes.data for cache in self._caches)
        cross = [products[f"decoder.layers.{index}.encoder_attn.kv"] for index in range(config.decoder_layers)]
        self._cross_kv = (TiledProduct * len(cross))(*cross)
        self._encoder = EncoderPointers(
            stack, config.max_text_length, len(cross), config.decoder_attention_heads, self._cross_kv
        )

    def encode(self, text: TextTokens) -> TextCache:
        config = self._config
        embedded = np.ascontiguousarray(self._embeddings.text(text.ids[: text.length]))
        heads = config.decoder_attention_heads
        shape = (config.decoder_layers, 2, heads, text.length, config.d_model // heads)
        keys_values: NDArray[Any] = np.empty(shape, self._cell)
        self._length = text.length
        pointers = [array.ctypes.data for array in (embedded, self._states, keys_values)]
        arguments = TextArguments(ctypes.pointer(self._encoder), text.length, *pointers)
        self._team.run(self._run, arguments, self._encoder.stack.phases, self._phase_bytes)
        return TextCache(keys_values, text.length)

    def states(self) -> NDArray[np.float32]:
        """(T, d) of the last text: for tests."""
        return self._states[: self._length].copy()

    def close(self) -> None:
        """Dropping it is enough."""
