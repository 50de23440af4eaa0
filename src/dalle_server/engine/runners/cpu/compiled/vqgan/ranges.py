"""The ranges of int8 pixels: measured at a checkpoint's first start, kept beside its packed weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.atomic import replaced_directory
from dalle_server.checkpoints.cache import converted_once
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.vqgan.halves import CompiledDecoder
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import Ranges, VQGANWeights
from dalle_server.errors import CheckpointError
from dalle_server.models.config import ModelConfig

FILE_NAME = "ranges.json"
FILE_VERSION = 2  # of how ranges are measured
LEAST_PSNR_DB = 35.0  # below this a difference could be seen
_NUM_PICTURES = 4
_MARGIN = 1.5  # over the largest input seen: clipping another picture costs more than finer steps would gain
_SEED = 20210721

Tensors = Mapping[str, Any]

logger = logging.getLogger(__name__)


def kept_ranges(cache_dir: Path, library: Any, team: Team, checkpoint: Checkpoint) -> Ranges:
    """Read from a file in `cache_dir`, or measured and written there. Empty where int8 could be seen.

    Raises OSError or CheckpointError when the file cannot be written or is damaged.
    """
    folder = cache_dir / "compiled" / f"{checkpoint.digest[:24]}-ranges-v{FILE_VERSION}"

    def write() -> None:
        ranges = usable_ranges(library, team, checkpoint.vqgan, checkpoint.config)
        with replaced_directory(folder) as partial:
            (partial / FILE_NAME).write_text(json.dumps(ranges, indent=1) + "\n", encoding="utf-8")

    file = converted_once(folder, write, FILE_NAME) / FILE_NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): float(highest) for name, highest in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged; delete it, it will be made again") from error


def usable_ranges(
    library: Any, team: Team, tensors: Tensors, config: ModelConfig, least_psnr_db: float = LEAST_PSNR_DB
) -> dict[str, float]:
    """The ranges, if int8 paints with them what fp32 does; else none. Every build finds the same."""
    grids = random_grids(tensors, config)
    expected, highest = _paint(library, team, tensors, config, {}, grids)
    ranges = {name: _MARGIN * value for name, value in highest.items() if name.endswith((".conv1", ".conv2"))}
    found, _ = _paint(library, team, tensors, config, ranges, grids)
    psnr_db = -10 * math.log10(max(float(np.mean((found - expected) ** 2)), 1e-12))
    if psnr_db >= least_psnr_db:
        logger.info("pixels in int8: %.1f dB from fp32", psnr_db)
        return ranges
    logger.warning("pixels stay fp32, which takes two to three times as long: int8 would be %.1f dB off", psnr_db)
    return {}


def random_grids(tensors: Tensors, config: ModelConfig) -> NDArray[np.int32]:
    """(N, I) codes, without those that training never moved: they lie close to zero, and no picture has them."""
    table = np.asarray(tensors["quantize.embedding.weight"][: config.picture.codebook_size], np.float32)
    length = np.linalg.norm(table, axis=1)
    (alive,) = np.nonzero(length > 0.1 * length.max())
    drawn = np.random.default_rng(_SEED).integers(0, len(alive), (_NUM_PICTURES, config.picture.num_tokens))
    return alive[drawn].astype(np.int32)


def _paint(
    library: Any, team: Team, tensors: Tensors, config: ModelConfig, ranges: Ranges, grids: NDArray[np.int32]
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """The pictures (N, H, W, 3) in 0…1, and the largest input of each convolution behind a norm."""
    weights = VQGANWeights(tensors, config.vqgan, ranges, library.lowered())
    decoder = CompiledDecoder(library, team, weights, config.picture.grid_height, config.picture.grid_width)
    pictures, highest = [], dict.fromkeys(decoder.largest(), 0.0)
    for grid in grids:
        pictures.append(decoder.decode(grid).clip(0, 1))
        highest = {name: max(highest[name], value) for name, value in decoder.largest().items()}
    return np.stack(pictures), highest
