"""The ranges of int8 pixels: measured at a checkpoint's first start, kept beside its packed weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.cache import kept_file
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.vqgan.halves import CompiledDecoder
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import Ranges, VQGANWeights
from dalle_server.errors import CheckpointError
from dalle_server.models.config import ModelConfig

FILE_NAME = "ranges.json"
FILE_VERSION = 3  # of how ranges are measured
LEAST_PSNR_DB = 35.0  # below this a difference could be seen
_NUM_PICTURES = 4
_MARGIN = 1.5  # over the largest input seen: clipping another picture costs more than finer steps would gain
_LEAST = 0.01  # inputs that reach no higher leave no steps above zero: such a convolution stays fp32
_SEED = 20210721

Tensors = Mapping[str, Any]

logger = logging.getLogger(__name__)


def kept_ranges(cache_dir: Path, checkpoint: Checkpoint, measure: Callable[[], Ranges]) -> Ranges:
    """Read from a file in `cache_dir`, or measured and written there.

    Raises OSError or CheckpointError when the file cannot be written or read.
    """
    folder = cache_dir / "compiled" / f"{checkpoint.digest[:24]}-ranges-v{FILE_VERSION}"

    def write(path: Path) -> None:
        path.write_text(json.dumps(dict(measure()), indent=1) + "\n", encoding="utf-8")

    file = kept_file(folder, FILE_NAME, write)
    found = json.loads(file.read_text(encoding="utf-8"))
    return {str(name): float(highest) for name, highest in found.items()}


def usable_ranges(
    library: Any, team: Team, tensors: Tensors, config: ModelConfig, least_psnr_db: float = LEAST_PSNR_DB
) -> dict[str, float]:
    """The ranges, if int8 paints with them what fp32 does; else none. Every build finds the same."""
    try:
        grids = random_grids(tensors, config)
        expected, highest = _paint(library, team, tensors, config, {}, grids)
    except CheckpointError as error:
        logger.warning("pixels stay fp32: %s", error)
        return {}
    of_blocks = {name: value for name, value in highest.items() if name.endswith((".conv1", ".conv2"))}
    ranges = {name: _MARGIN * value for name, value in of_blocks.items() if value > _LEAST}
    found, _ = _paint(library, team, tensors, config, ranges, grids)
    psnr_db = -10 * math.log10(max(float(np.mean((found - expected) ** 2)), 1e-12))
    if psnr_db >= least_psnr_db:
        logger.info("pixels in int8: %.1f dB from fp32", psnr_db)
        return ranges
    logger.warning("pixels stay fp32, which takes two to three times as long: int8 would be %.1f dB off", psnr_db)
    return {}


def random_grids(tensors: Tensors, config: ModelConfig) -> NDArray[np.int32]:
    """(N, I) codes, without those that training never moved: they lie close to zero, and no picture has them.

    Raises CheckpointError for codes that are no numbers.
    """
    table = np.asarray(tensors["quantize.embedding.weight"][: config.picture.codebook_size], np.float32)
    length = np.linalg.norm(table, axis=1)
    (alive,) = np.nonzero(length > 0.1 * length.max())
    if not alive.size:
        raise CheckpointError("the codes of the VQGAN are not numbers, or all zero; its weights are broken")
    drawn = np.random.default_rng(_SEED).integers(0, len(alive), (_NUM_PICTURES, config.picture.num_tokens))
    return alive[drawn].astype(np.int32)


def _paint(
    library: Any, team: Team, tensors: Tensors, config: ModelConfig, ranges: Ranges, grids: NDArray[np.int32]
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """The pictures (N, H, W, 3) in 0…1, and the largest input of each convolution behind a norm.

    Raises CheckpointError for pixels that are not finite.
    """
    weights = VQGANWeights(tensors, config.vqgan, ranges, library.lowered())
    decoder = CompiledDecoder(library, team, weights, config.picture.grid_height, config.picture.grid_width)
    pictures, highest = [], dict.fromkeys(decoder.largest(), 0.0)
    for grid in grids:
        pixels = decoder.decode(grid)
        if not np.isfinite(pixels).all():
            raise CheckpointError("the pixels of the VQGAN are not numbers; its weights are broken")
        pictures.append(pixels.clip(0, 1))
        highest = {name: max(highest[name], value) for name, value in decoder.largest().items()}
    return np.stack(pictures), highest
