"""The decode step in compiled code: memory, threads and arguments for native/decode_step.c."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.cpu.compiled import library as native
from dalle_server.engine.runners.cpu.compiled.caches import Caches, aligned_zeros
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.openvino.step import StepInputs, TextCache
from dalle_server.engine.runners.cpu.quantise import GROUP_SIZE
from dalle_server.errors import ConfigError
from dalle_server.models.config import ModelConfig


class NativeDecoder:
    """Implements `Decoder` with the compiled step.

    `tiles`: name → (tiles, groups, …) of every product of the step, laid out by tiles.py in int8, or in fp32 for
    `is_exact`; copied into memory of large pages.
    Raises OSError where the compiled step cannot run, ConfigError for a model that is too large for it.
    """

    def __init__(
        self,
        config: ModelConfig,
        tiles: Mapping[str, NDArray[Any]],
        tensors: Mapping[str, Any],
        *,
        is_exact: bool,
        num_slots: int,
        num_threads: int,
    ):
        self._library = native.load_library()
        most = self._library.max_positions()
        if max(config.transformer.image_length, config.transformer.max_text_length) > most:
            raise ConfigError(f"--runner native holds {most} positions at most; use --runner openvino")
        self.config = config
        self.is_exact = is_exact
        self.num_threads = num_threads
        self._kept: list[NDArray[Any]] = []  # what the structures point into
        self.row_buckets = tuple(range(1, num_slots + 1))
        num_slots += 1  # for rows without a picture
        self._caches = Caches(config, num_slots, np.float32 if is_exact else np.float16)
        self._decoder = self._describe(tiles, tensors, 2 * num_slots)
        self._logits = self._zeros((num_slots, self._decoder.lm_head.tiles * LANES))
        self._helpers = ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="decode-step")

    def admit(self, slot: int, texts: list[TextCache]) -> None:
        """What an earlier picture left in the slot is never read: attention stops at each row's own length."""
        self._caches.write_texts(slot, [(cross_kv.data, length) for cross_kv, length in texts])

    def logits(self, inputs: StepInputs) -> NDArray[np.float32]:
        num_images = len(inputs.slots)
        arrays = (inputs.slots, inputs.positions, inputs.guidance, inputs.embeddings)
        arguments = [np.ascontiguousarray(array) for array in arrays]
        step = native.Step(num_images, *(array.ctypes.data for array in arguments), self._logits.ctypes.data)
        call = (ctypes.byref(self._decoder), ctypes.byref(step))
        self._library.begin_step(call[0])
        others = [self._helpers.submit(self._library.decode_step, *call) for _ in range(self.num_threads - 1)]
        self._library.decode_step(*call)
        for other in others:
            other.result()  # until it has looked at the last phase, it reads these structures
        return self._logits[:num_images, : self.config.codebook_size].copy()

    def close(self) -> None:
        self._helpers.shutdown()

    def _describe(self, tiles: Mapping[str, NDArray[Any]], tensors: Mapping[str, Any], num_rows: int) -> native.Decoder:
        sizes = self.config.transformer
        products = self._products(tiles)
        layers = (native.Layer * sizes.decoder_layers)()
        for index, layer in enumerate(layers):
            prefix = f"decoder.layers.{index}."
            for name, source in native.Layer.PRODUCTS.items():
                setattr(layer, name, products[prefix + source])
            for name, source in native.Layer.VECTORS.items():
                setattr(layer, name, self._vector(tensors[prefix + source]))
            for name in native.Layer.CACHES:
                setattr(layer, name, getattr(self._caches, name)[index].ctypes.data)
        widest = max(product.tiles for name, product in products.items() if name != "lm_head") * LANES
        groups = max(product.groups for product in products.values())
        self._layers = layers
        return native.Decoder(
            width=sizes.d_model,
            ffn_width=sizes.decoder_ffn_dim,
            heads=sizes.decoder_attention_heads,
            num_layers=sizes.decoder_layers,
            image_length=sizes.image_length,
            text_length=sizes.max_text_length,
            threads=self.num_threads,
            layers=layers,
            embedding_scale=self._vector(tensors["decoder.layernorm_embedding.weight"]),
            embedding_bias=self._vector(tensors["decoder.layernorm_embedding.bias"]),
            final_bias=self._vector(tensors["decoder.final_ln.bias"]),
            lm_head=products["lm_head"],
            text_lengths=self._caches.text_lengths.ctypes.data,
            x=self._zeros((num_rows, sizes.d_model)).ctypes.data,
            mixed=self._zeros((num_rows, sizes.d_model)).ctypes.data,
            y=self._zeros((num_rows, widest)).ctypes.data,
            inputs=native.Inputs(
                self._zeros((num_rows, groups * GROUP_SIZE)).ctypes.data,
                self._zeros((num_rows, groups * GROUP_SIZE), np.int8).ctypes.data,
                self._zeros((num_rows, groups)).ctypes.data,
                self._zeros((num_rows, groups), np.int32).ctypes.data,
                self.is_exact,
            ),
            phases=self._zeros((self._library.phase_bytes(sizes.decoder_layers),), np.uint8).ctypes.data,
        )

    def _products(self, tiles: Mapping[str, NDArray[Any]]) -> dict[str, native.Product]:
        """One allocation for all: numpy asks for large pages then, which are read a tenth faster."""
        memory = self._zeros((sum(array.nbytes for array in tiles.values()),), np.uint8)
        products, end = {}, 0
        for name, array in tiles.items():
            start, end = end, end + array.nbytes
            memory[start:end] = array.reshape(-1).view(np.uint8)
            release_pages(array)
            products[name] = native.Product(memory[start:].ctypes.data, *array.shape[:2])
        return products

    def _vector(self, tensor: Any) -> int:
        vector = np.array(tensor, np.float32)
        self._kept.append(vector)
        return vector.ctypes.data

    def _zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        array = aligned_zeros(shape, dtype)
        self._kept.append(array)
        return array
