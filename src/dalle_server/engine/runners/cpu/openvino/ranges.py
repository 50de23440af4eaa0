"""The ranges of int8 pixels: measured at a checkpoint's first start, kept beside its packed weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from dalle_server.checkpoints.atomic import replaced_directory
from dalle_server.checkpoints.cache import converted_once
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.cpu.openvino.compile import Compiler
from dalle_server.engine.runners.cpu.openvino.vqgan import build_decoder
from dalle_server.engine.runners.cpu.openvino.vqgan_int8 import Int8Layers, ProbingLayers, Ranges
from dalle_server.errors import CheckpointError
from dalle_server.models.config import ModelConfig

FILE_NAME = "ranges.json"
FILE_VERSION = 1  # of how ranges are measured
LEAST_PSNR_DB = 35.0  # below this a difference could be seen; nano has 53
_NUM_PICTURES = 4
_MARGIN = 1.5  # over the largest input seen: clipping another picture costs more than finer steps would gain
_SEED = 20210721

Tensors = Mapping[str, Any]
Pictures = NDArray[np.float32]  # (N, H, W, 3) in 0…1

logger = logging.getLogger(__name__)


def kept_ranges(cache_dir: Path, compiler: Compiler, checkpoint: Checkpoint) -> Ranges:
    """Read from a file in `cache_dir`, or measured and written there. Empty where int8 could be seen.

    Raises CheckpointError when the file cannot be written or is damaged.
    """
    folder = cache_dir / "openvino" / f"{checkpoint.digest[:24]}-ranges-v{FILE_VERSION}"

    def write() -> None:
        ranges = usable_ranges(compiler, checkpoint.vqgan, checkpoint.config)
        with replaced_directory(folder) as partial:
            (partial / FILE_NAME).write_text(json.dumps(ranges, indent=1) + "\n", encoding="utf-8")

    file = converted_once(folder, write, FILE_NAME) / FILE_NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): float(highest) for name, highest in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged; delete it, it will be made again") from error


def usable_ranges(
    compiler: Compiler, tensors: Tensors, config: ModelConfig, least_psnr_db: float = LEAST_PSNR_DB
) -> dict[str, float]:
    """The ranges, if int8 paints with them what bf16 does; else none."""
    grids = random_grids(tensors, config)
    expected, highest = _paint(compiler, build_decoder(ProbingLayers(tensors, config)), tensors, grids)
    ranges = {name: _MARGIN * value for name, value in highest.items()}
    found, _ = _paint(compiler, build_decoder(Int8Layers(tensors, config, ranges)), tensors, grids)
    psnr_db = -10 * math.log10(max(float(np.mean((found - expected) ** 2)), 1e-12))
    if psnr_db >= least_psnr_db:
        logger.info("pixels in int8: %.1f dB from bf16", psnr_db)
        return ranges
    logger.warning("pixels stay bf16, which takes half as long again: in int8 they would be %.1f dB off", psnr_db)
    return {}


def random_grids(tensors: Tensors, config: ModelConfig) -> NDArray[np.int32]:
    """(N, I) codes, without those that training never moved: they lie close to zero, and no picture has them."""
    table = np.asarray(tensors["quantize.embedding.weight"][: config.picture.codebook_size], np.float32)
    length = np.linalg.norm(table, axis=1)
    (alive,) = np.nonzero(length > 0.1 * length.max())
    drawn = np.random.default_rng(_SEED).integers(0, len(alive), (_NUM_PICTURES, config.picture.num_tokens))
    return alive[drawn].astype(np.int32)


def _paint(
    compiler: Compiler, model: ov.Model, tensors: Tensors, grids: NDArray[np.int32]
) -> tuple[Pictures, dict[str, float]]:
    """The pictures, and the largest value of each further output."""
    request = compiler.compile(model, ov.Type.bf16).create_infer_request()
    release_pages(*tensors.values())
    names = [output.any_name for output in model.outputs[1:]]
    pictures, highest = [], dict.fromkeys(names, 0.0)
    for grid in grids:
        request.infer({"ids": grid})
        pictures.append(request.get_tensor("pixels").data.copy())
        highest = {name: max(highest[name], float(request.get_tensor(name).data)) for name in names}
    return np.stack(pictures), highest
