"""The decode step in compiled code: memory, threads and arguments for decode_step.c."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.cpu.compiled import library
from dalle_server.engine.runners.cpu.compiled.caches import Caches, aligned_zeros
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.embeddings import Embeddings
from dalle_server.engine.runners.cpu.packing import COMPILED, Packed, format_of, pack, products
from dalle_server.engine.runners.cpu.parts import StepBatch, TextCache
from dalle_server.engine.runners.cpu.quantise import GROUP_SIZE
from dalle_server.errors import ConfigError
from dalle_server.families.dalle_bart import sizes
from dalle_server.models.config import ModelConfig


class CompiledStep:
    """Implements `Step` with compiled code.

    `tiles`: name → (tiles, groups, …) of every product of the step, laid out by tiles.py in int8, or in fp32 for
    `is_exact`; copied into memory of large pages.
    Raises OSError where the compiled step cannot run, ConfigError for a model that is too large for it.
    """

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        kept: Mapping[str, Packed] | None,
        embeddings: Embeddings,
        dtype: str,
        num_slots: int,
        num_threads: int,
    ) -> CompiledStep:
        """`kept` holds the products packed already, as `packing.COMPILED` lays them out."""
        tiles = {
            name: kept[name] if kept else pack(checkpoint.transformer, product, format_of(product, COMPILED + dtype))
            for name, product in products(checkpoint.config).items()
            if product.of_step
        }
        return cls(
            checkpoint.config,
            {name: packed["tiles"] for name, packed in tiles.items()},
            checkpoint.transformer,
            embeddings,
            is_exact=dtype == "fp32",
            num_slots=num_slots,
            num_threads=num_threads,
        )

    def __init__(
        self,
        config: ModelConfig,
        tiles: Mapping[str, NDArray[Any]],
        tensors: Mapping[str, Any],
        embeddings: Embeddings,
        *,
        is_exact: bool,
        num_slots: int,
        num_threads: int,
    ):
        self._library = library.load_library()
        most = self._library.max_positions()
        if max(config.picture.num_tokens, config.text.max_length) > most:
            raise ConfigError(f"--runner compiled holds {most} positions at most; use --runner openvino")
        self.config = config
        self.is_exact = is_exact
        self._embeddings = embeddings
        self.num_threads = num_threads
        self._kept: list[NDArray[Any]] = []  # what the structures point into
        self.row_buckets = tuple(range(1, num_slots + 1))
        num_slots += 1  # for rows without a picture
        self._caches = Caches(config, num_slots, np.float32 if is_exact else np.float16)
        self._decoder = self._describe(tiles, tensors, 2 * num_slots)
        self._logits = self._zeros((num_slots, self._decoder.lm_head.tiles * LANES))
        self._helpers = ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="decode-step")

    def admit(self, slot: int, conditional: TextCache, unconditional: TextCache) -> None:
        """What an earlier picture left in the slot is never read: attention stops at each row's own length."""
        self._caches.write_texts(slot, (conditional, unconditional))

    def logits(self, batch: StepBatch) -> NDArray[np.float32]:
        num_images = len(batch.slots)
        embedded = self._embeddings.codes(batch.last_tokens, batch.positions)
        arrays = (batch.slots, batch.positions, batch.guidance, embedded)
        arguments = [np.ascontiguousarray(array) for array in arrays]
        step = library.StepArguments(num_images, *(array.ctypes.data for array in arguments), self._logits.ctypes.data)
        call = (ctypes.byref(self._decoder), ctypes.byref(step))
        self._library.begin_step(call[0])
        others = [self._helpers.submit(self._library.decode_step, *call) for _ in range(self.num_threads - 1)]
        self._library.decode_step(*call)
        for other in others:
            other.result()  # until it has looked at the last phase, it reads these structures
        return self._logits[:num_images, : self.config.picture.codebook_size].copy()

    def close(self) -> None:
        self._helpers.shutdown()

    def _describe(
        self, tiles: Mapping[str, NDArray[Any]], tensors: Mapping[str, Any], num_rows: int
    ) -> library.DecoderPointers:
        bart = sizes(self.config)
        products = self._products(tiles)
        layers = (library.LayerPointers * bart.decoder_layers)()
        for index, layer in enumerate(layers):
            prefix = f"decoder.layers.{index}."
            for name, source in library.LayerPointers.PRODUCTS.items():
                setattr(layer, name, products[prefix + source])
            for name, source in library.LayerPointers.VECTORS.items():
                setattr(layer, name, self._vector(tensors[prefix + source]))
            for name in library.LayerPointers.CACHES:
                setattr(layer, name, getattr(self._caches, name)[index].ctypes.data)
        widest = max(product.tiles for name, product in products.items() if name != "lm_head") * LANES
        groups = max(product.groups for product in products.values())
        self._layers = layers
        return library.DecoderPointers(
            width=bart.d_model,
            ffn_width=bart.decoder_ffn_dim,
            heads=bart.decoder_attention_heads,
            num_layers=bart.decoder_layers,
            image_length=bart.image_length,
            text_length=bart.max_text_length,
            threads=self.num_threads,
            layers=layers,
            embedding_scale=self._vector(tensors["decoder.layernorm_embedding.weight"]),
            embedding_bias=self._vector(tensors["decoder.layernorm_embedding.bias"]),
            final_bias=self._vector(tensors["decoder.final_ln.bias"]),
            lm_head=products["lm_head"],
            text_lengths=self._caches.text_lengths.ctypes.data,
            x=self._zeros((num_rows, bart.d_model)).ctypes.data,
            mixed=self._zeros((num_rows, bart.d_model)).ctypes.data,
            y=self._zeros((num_rows, widest)).ctypes.data,
            inputs=library.ProductInputs(
                self._zeros((num_rows, groups * GROUP_SIZE)).ctypes.data,
                self._zeros((num_rows, groups * GROUP_SIZE), np.int8).ctypes.data,
                self._zeros((num_rows, groups)).ctypes.data,
                self._zeros((num_rows, groups), np.int32).ctypes.data,
                self.is_exact,
            ),
            phases=self._zeros((self._library.phase_bytes(bart.decoder_layers),), np.uint8).ctypes.data,
        )

    def _products(self, tiles: Mapping[str, NDArray[Any]]) -> dict[str, library.TiledProduct]:
        """One allocation for all: numpy asks for large pages then, which are read a tenth faster."""
        memory = self._zeros((sum(array.nbytes for array in tiles.values()),), np.uint8)
        products, end = {}, 0
        for name, array in tiles.items():
            start, end = end, end + array.nbytes
            memory[start:end] = array.reshape(-1).view(np.uint8)
            release_pages(array)
            products[name] = library.TiledProduct(memory[start:].ctypes.data, *array.shape[:2])
        return products

    def _vector(self, tensor: Any) -> int:
        vector = np.array(tensor, np.float32)
        self._kept.append(vector)
        return vector.ctypes.data

    def _zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        array = aligned_zeros(shape, dtype)
        self._kept.append(array)
        return array
