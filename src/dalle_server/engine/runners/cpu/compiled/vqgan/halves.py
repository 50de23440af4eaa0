"""The VQGAN's two halves, layer by layer as models/vqgan.py has them, for pictures of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled.operations import Framing
from dalle_server.engine.runners.cpu.compiled.program import Program
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.vqgan.feature_maps import FeatureMap, LayerWriter
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import VQGANWeights
from dalle_server.errors import CheckpointError
from dalle_server.models.broken import NO_CODES


class CompiledDecoder:
    """Grids of (height, width) codes to pixels."""

    def __init__(self, library: Any, team: Team, weights: VQGANWeights, height: int, width: int):
        layers, config = LayerWriter(library, weights), weights.config
        self._weights = weights
        self._codes = layers.new(height, width, config.embed_dim)
        x = layers.convolution(self._codes, "post_quant_conv", is_kept=True)
        x = _middle(layers, layers.convolution(x, "decoder.conv_in"), "decoder.mid")
        for level in reversed(range(len(config.ch_mult))):
            x = _blocks(layers, x, f"decoder.up.{level}", config.num_res_blocks + 1)
            x = layers.doubled(x, f"decoder.up.{level}.upsample.conv") if level else x
        self._pixels = layers.output(x, "decoder")
        self._largest = layers.largest
        self._framings = [what for what, _ in layers.operations if isinstance(what, Framing) and what.is_framed]
        self._program = Program(library, team, layers.operations, layers.kept)

    def decode(self, grid: NDArray[np.int32], *, wraps: bool = False) -> NDArray[np.float32]:
        """(height · width,) ids → (H, W, 3), not clipped, until the next call. `wraps`: what lies beyond an edge is
        the opposite one, and not zero.
        """
        codes = self._codes.array()
        codes[:] = self._weights.codes(grid).reshape(codes.shape)
        for framing in self._framings:
            framing.wraps = wraps
        self._program.run()
        return self._pixels.array()

    def largest(self) -> dict[str, float]:
        """Of the last picture: the largest input of each convolution behind a norm."""
        return {name: float(rows.max()) for name, rows in self._largest.items()}


class CompiledEncoder:
    """Pictures of (height, width) pixels to grids of codes: the first `num_codes` of the codebook."""

    def __init__(self, library: Any, team: Team, weights: VQGANWeights, height: int, width: int, num_codes: int):
        layers, config = LayerWriter(library, weights), weights.config
        self._as_read, self._pixels = config.as_read, layers.new(height, width, config.in_channels)
        x = layers.convolution(self._pixels, "encoder.conv_in", is_kept=True)
        top = len(config.ch_mult) - 1
        for level in range(top + 1):
            x = _blocks(layers, x, f"encoder.down.{level}", config.num_res_blocks)
            x = layers.halved(x, f"encoder.down.{level}.downsample.conv") if level < top else x
        x = layers.output(_middle(layers, x, "encoder.mid"), "encoder")
        self._embeddings = layers.convolution(x, "quant_conv")
        self._distances = layers.distances(self._embeddings, num_codes)
        self._program = Program(library, team, layers.operations, layers.kept)

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.int32]:
        """(H, W, 3) in 0…1 → (h · w,) ids of the closest codebook entries.

        Raises CheckpointError for distances that are not finite.
        """
        self._pixels.array()[:] = self._as_read(pixels)
        self._program.run()
        distances = self._distances.array()
        if not np.isfinite(distances).all():
            raise CheckpointError(NO_CODES)
        ids: NDArray[np.int32] = distances.argmin(-1).ravel().astype(np.int32)
        return ids

    def embeddings(self) -> NDArray[np.float32]:
        """(h, w, E) of the last picture, until the next one: for tests."""
        return self._embeddings.array()


def _middle(layers: LayerWriter, x: FeatureMap, prefix: str) -> FeatureMap:
    x = layers.residual(x, f"{prefix}.block_1")
    return layers.residual(layers.attention(x, f"{prefix}.attn_1"), f"{prefix}.block_2")


def _blocks(layers: LayerWriter, x: FeatureMap, prefix: str, count: int) -> FeatureMap:
    for block in range(count):
        x = layers.residual(x, f"{prefix}.block.{block}")
        # In the checkpoint where the level's resolution is one of attn_resolutions.
        if layers.weights.has(f"{prefix}.attn.{block}.norm"):
            x = layers.attention(x, f"{prefix}.attn.{block}")
    return x
