"""The decode step in compiled code: memory and arguments for decode_step.h."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.compiled.caches import Caches
from dalle_server.engine.runners.cpu.compiled.library import DecoderPointers, LayerPointers, StepArguments
from dalle_server.engine.runners.cpu.compiled.stack import Memory
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.embeddings import Embeddings
from dalle_server.engine.runners.cpu.packing import Tiles
from dalle_server.engine.runners.cpu.parts import StepBatch, TextCache
from dalle_server.errors import ConfigError
from dalle_server.families.dalle_bart import DalleBartConfig


class CompiledStep:
    """Implements `Step` with compiled code.

    `tiles` holds every product of the step, in int8, or in fp32 for `is_exact`; copied into memory of large pages.
    Raises ConfigError for a model that is too large for it.
    """

    def __init__(
        self,
        library: Any,
        team: Team,
        checkpoint: Checkpoint,
        tiles: Tiles,
        embeddings: Embeddings,
        *,
        is_exact: bool,
        num_slots: int,
    ):
        config = checkpoint.config.sizes(DalleBartConfig)
        most = library.max_positions()
        if max(config.image_length, config.max_text_length) > most:
            raise ConfigError(f"--runner compiled holds {most} positions at most; use --runner torch")
        self._run, self._team, self._embeddings = library.decode_step, team, embeddings
        self._codebook_size = checkpoint.config.picture.codebook_size
        self.row_buckets = tuple(range(1, num_slots + 1))
        num_slots += 1  # for rows without a picture
        self._caches = Caches(config, num_slots, np.float32 if is_exact else np.float16)
        self._memory = Memory()
        products = self._memory.products(tiles)
        self._phase_bytes = library.phase_bytes(config.decoder_layers, 0)
        stack = self._memory.stack(
            "decoder",
            checkpoint.transformer,
            products,
            heads=config.decoder_attention_heads,
            num_layers=config.decoder_layers,
            num_rows=2 * num_slots,
            num_threads=team.num_threads,
            is_exact=is_exact,
            phase_bytes=self._phase_bytes,
        )
        for index in range(config.decoder_layers):
            for name in LayerPointers.CACHES:
                setattr(stack.layers[index], name, getattr(self._caches, name)[index].ctypes.data)
        self._decoder = DecoderPointers(
            stack,
            config.image_length,
            config.max_text_length,
            products["lm_head"],
            self._caches.text_lengths.ctypes.data,
        )
        self._logits = self._memory.zeros((num_slots, products["lm_head"].tiles * LANES))

    def admit(self, slot: int, conditional: TextCache, unconditional: TextCache) -> None:
        """What an earlier picture left in the slot is never read: attention stops at each row's own length."""
        self._caches.write_texts(slot, (conditional, unconditional))

    def logits(self, batch: StepBatch) -> NDArray[np.float32]:
        num_images = len(batch.slots)
        embedded = self._embeddings.codes(batch.last_tokens, batch.positions)
        arrays = [np.ascontiguousarray(x) for x in (batch.slots, batch.positions, batch.guidance, embedded)]
        pointers = [array.ctypes.data for array in (*arrays, self._logits)]
        arguments = StepArguments(ctypes.pointer(self._decoder), num_images, *pointers)
        self._team.run(self._run, arguments, self._decoder.stack.phases, self._phase_bytes)
        return self._logits[:num_images, : self._codebook_size].copy()

    def close(self) -> None:
        self._team.close()
