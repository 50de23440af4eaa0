"""The decode step in compiled code: memory and arguments for decode_step.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled.caches import Caches, KeptText
from dalle_server.engine.runners.cpu.compiled.layers import Layers
from dalle_server.engine.runners.cpu.compiled.library import DecoderPointers, StepArguments, TiledProduct
from dalle_server.engine.runners.cpu.compiled.stack import Loading
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.parts import StepBatch
from dalle_server.errors import ConfigError

# (N,) ids written before (N,) positions → (N, d)
Embed = Callable[[NDArray[np.int32], NDArray[np.int32]], NDArray[np.float32]]


class CompiledStep:
    """Implements `Step` with compiled code. Raises ConfigError for a model that is too large for it.

    `is_prefixed`: texts are in front of the pictures, and rotary positions count from a text's beginning.
    """

    def __init__(self, loading: Loading, layers: Layers, embed: Embed, *, is_prefixed: bool):
        library, team, memory, tensors = loading.library, loading.team, loading.memory, loading.checkpoint.transformer
        picture, text_length = loading.checkpoint.config.picture, loading.checkpoint.config.text.max_length
        places = picture.num_tokens + text_length
        if places > (most := library.max_positions()):
            raise ConfigError(f"--runner compiled holds {most} positions at most; use --runner torch")
        self._run, self._team, self._memory, self._embed = library.decode_step, team, memory, embed
        self.row_buckets = tuple(range(1, loading.num_slots + 1))
        num_slots = loading.num_slots + 1  # one for rows without a picture
        self._caches = caches = Caches(library, layers, num_slots, picture.num_tokens, memory.cell(layers))
        self._phase_bytes = library.phase_bytes(layers.num_layers, 0)
        stack = memory.stack(layers, tensors, 2 * num_slots, places, team.num_threads, self._phase_bytes)
        for index in range(layers.num_layers):
            stack.layers[index].cache = caches.cells[index].ctypes.data
        self._decoder = DecoderPointers(
            stack,
            picture.num_tokens,
            is_prefixed,
            lm_head := memory.products["lm_head"],
            memory.products.get("head_proj", TiledProduct()),
            memory.vector(tensors.get("head_proj.bias")),
            ctypes.addressof(caches.texts),
            caches.text_lengths.ctypes.data,
        )
        bias = tensors.get("lm_head.bias")
        self._codebook_size = picture.codebook_size
        self._bias = np.float32(0) if bias is None else np.array(bias[: self._codebook_size], np.float32)
        self._logits = memory.zeros((num_slots, lm_head.tiles * LANES))

    def admit(self, slot: int, conditional: KeptText, unconditional: KeptText) -> None:
        """What an earlier picture left in the slot is never read: attention stops at each row's own length."""
        self._caches.put_texts(slot, (conditional, unconditional))

    def logits(self, batch: StepBatch) -> NDArray[np.float32]:
        """At guidance 1 an image's unconditional row, which has no say in it, is left out. So the number of rows is not
        that of a bucket; a row's bits depend on no other (c/product.h).
        """
        num_images = len(batch.slots)
        order = np.argsort(batch.guidance == 1, kind="stable")  # the guided images first
        embedded = self._embed(batch.last_tokens, batch.positions)
        arrays = [np.ascontiguousarray(x[order]) for x in (batch.slots, batch.positions, batch.guidance, embedded)]
        pointers = [array.ctypes.data for array in (*arrays, self._logits)]
        num_guided = int(np.count_nonzero(batch.guidance != 1))
        arguments = StepArguments(ctypes.pointer(self._decoder), num_images, num_guided, *pointers)
        self._team.run(self._run, arguments, self._decoder.stack.phases, self._phase_bytes)
        logits: NDArray[np.float32] = self._logits[np.argsort(order), : self._codebook_size] + self._bias
        return logits

    def close(self) -> None:
        self._team.close()
