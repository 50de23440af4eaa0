"""The VQGAN in compiled code as a part of a CPU runner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import NO_ENCODER
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.vqgan.halves import CompiledDecoder, CompiledEncoder
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import Ranges, VQGANWeights
from dalle_server.errors import CheckpointError, NotSupported
from dalle_server.models.broken import NO_PIXELS

NO_RANGES: Ranges = {}


class CompiledPixels:
    """Implements `Pixels`: exact, or with the convolutions of residual blocks in int8.

    `ranges` are what int8 needs to know of a checkpoint; without any, all is exact.
    """

    def __init__(self, library: Any, team: Team, checkpoint: Checkpoint, ranges: Ranges = NO_RANGES):
        self._library, self._team, self._checkpoint = library, team, checkpoint
        self._weights = VQGANWeights(checkpoint.vqgan, checkpoint.config.vqgan, ranges, library.lowered())
        picture = checkpoint.config.picture
        self._decoder = CompiledDecoder(library, team, self._weights, picture.grid_height, picture.grid_width)
        self._encoder: CompiledEncoder | None = None

    def decode(self, grid: NDArray[np.int32], *, wraps: bool = False) -> NDArray[np.uint8]:
        """Raises CheckpointError for pixels that are not finite."""
        pixels = self._decoder.decode(grid, wraps=wraps)
        if not np.isfinite(pixels).all():
            raise CheckpointError(NO_PIXELS)
        # Truncated, not rounded: the reference's own conversion.
        return (np.clip(pixels, 0, 1) * 255).astype(np.uint8)

    def encode(self, picture: NDArray[np.uint8]) -> NDArray[np.int32]:
        """In fp32 whatever the dtype: a picture is read once, and every id that differs is a place redrawn.

        Raises CheckpointError for weights that give no numbers.
        """
        if self._encoder is None:
            self._encoder = self._make_encoder()
        return self._encoder.encode(np.asarray(picture, np.float32) / np.float32(255))

    def _make_encoder(self) -> CompiledEncoder:
        """With the first picture that is read: most servers never read one."""
        if not self._checkpoint.has_encoder:
            raise NotSupported(NO_ENCODER)
        picture = self._checkpoint.config.picture
        size = picture.height_px, picture.width_px
        return CompiledEncoder(self._library, self._team, self._weights, *size, num_codes=picture.codebook_size)

    def close(self) -> None:
        """Dropping it is enough."""
