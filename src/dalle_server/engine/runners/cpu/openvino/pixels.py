"""The VQGAN's graphs as a part of a CPU runner."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.base import NO_ENCODER
from dalle_server.engine.runners.cpu.openvino.compile import Compiler, memory_errors
from dalle_server.engine.runners.cpu.openvino.ranges import kept_ranges
from dalle_server.engine.runners.cpu.openvino.vqgan import build_decoder, build_encoder
from dalle_server.engine.runners.cpu.openvino.vqgan_int8 import Int8Layers, Ranges
from dalle_server.engine.runners.cpu.openvino.vqgan_layers import Layers
from dalle_server.errors import CheckpointError, NotSupported

logger = logging.getLogger(__name__)


class OpenVINOPixels:
    """Implements `Pixels`: in fp32 for dtype "fp32" and on a CPU without bf16, else in bf16.

    `ranges_dir` keeps the ranges of int8 convolutions, for dtype "int8"; None: these stay bf16.
    """

    def __init__(self, checkpoint: Checkpoint, compiler: Compiler, dtype: str, ranges_dir: Path | None = None):
        config, tensors = checkpoint.config, checkpoint.vqgan
        exact = dtype == "fp32" or not compiler.has_bf16
        layers = Layers(tensors, config)
        if not exact:
            ranges = _ranges(checkpoint, compiler, ranges_dir) if dtype == "int8" and ranges_dir else {}
            layers = Int8Layers(tensors, config, ranges)
        self._checkpoint = checkpoint  # what the graphs' constants point into
        self._compiler = compiler
        self._encoder: ov.InferRequest | None = None
        program = compiler.compile(build_decoder(layers), ov.Type.f32 if exact else ov.Type.bf16)
        self._decoder = program.create_infer_request()
        release_pages(*tensors.values())

    @memory_errors()
    def decode(self, grid: NDArray[np.int32]) -> NDArray[np.uint8]:
        self._decoder.infer({"ids": np.ascontiguousarray(grid, np.int32)})
        pixels: NDArray[np.float32] = np.clip(self._decoder.get_tensor("pixels").data, 0, 1)
        # Truncated, not rounded: the reference's own conversion.
        return (pixels * 255).astype(np.uint8)

    @memory_errors()
    def encode(self, picture: NDArray[np.uint8]) -> NDArray[np.int32]:
        """In fp32 whatever the dtype: a picture is read once, and every id that differs is a place redrawn."""
        if self._encoder is None:
            self._encoder = self._make_encoder()
        self._encoder.infer({"pixels": picture.astype(np.float32) / 255})
        features: NDArray[np.float32] = self._encoder.get_tensor("features").data
        return nearest(features, self._codebook)

    def _make_encoder(self) -> ov.InferRequest:
        """With the first picture that is read: most servers never read one."""
        if not self._checkpoint.has_encoder:
            raise NotSupported(NO_ENCODER)
        config, tensors = self._checkpoint.config, self._checkpoint.vqgan
        self._codebook = np.asarray(tensors["quantize.embedding.weight"][: config.picture.codebook_size], np.float32)
        program = self._compiler.compile(build_encoder(Layers(tensors, config)), ov.Type.f32)
        release_pages(*tensors.values())
        return program.create_infer_request()

    def close(self) -> None:
        """Dropping it is enough."""


def nearest(features: NDArray[np.float32], codebook: NDArray[np.float32]) -> NDArray[np.int32]:
    """(I, E) features, (C, E) entries → (I,) ids; among equally near ones the lowest."""
    # |z − e|² without |z|², which is the same for every e
    distance = np.square(codebook).sum(axis=1) - 2 * features @ codebook.T
    ids: NDArray[np.int32] = distance.argmin(axis=1).astype(np.int32)
    return ids


def _ranges(checkpoint: Checkpoint, compiler: Compiler, cache_dir: Path) -> Ranges:
    """For int8 pixels; empty for bf16."""
    try:
        return kept_ranges(cache_dir, compiler, checkpoint)
    except (OSError, CheckpointError) as error:
        logger.warning("pixels stay bf16, which takes half as long again: %s", error)
        return {}
