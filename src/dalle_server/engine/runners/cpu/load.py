"""A CPU runner from a checkpoint: the parts it is put together from, and the packed weights that they share."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.engine.runners.cpu.compiled.draw import draw
from dalle_server.engine.runners.cpu.compiled.step import CompiledStep
from dalle_server.engine.runners.cpu.embeddings import Embeddings
from dalle_server.engine.runners.cpu.openvino.compile import PRECISIONS, VERSION, Compiler
from dalle_server.engine.runners.cpu.openvino.decoder import OpenVINOStep
from dalle_server.engine.runners.cpu.openvino.encoder import OpenVINOTexts
from dalle_server.engine.runners.cpu.openvino.pixels import OpenVINOPixels
from dalle_server.engine.runners.cpu.openvino.weights import Weights
from dalle_server.engine.runners.cpu.packing import COMPILED, Packed, kept_packed
from dalle_server.engine.runners.cpu.runner import CpuRunner
from dalle_server.engine.sampling import gumbel_max
from dalle_server.errors import CheckpointError, ConfigError
from dalle_server.families.dalle_bart import sizes

DTYPES = {"compiled": ("int8", "fp32"), "openvino": tuple(PRECISIONS)}
WORTH_KEEPING_BYTES = 200 << 20

logger = logging.getLogger(__name__)


def load_cpu_runner(
    checkpoint: Checkpoint,
    runner: str = "openvino",
    *,
    dtype: str = "int8",
    num_slots: int = 8,
    num_threads: int | None = None,
    cache_dir: Path | None = None,
    reason: str = "chosen by the caller",
) -> CpuRunner:
    """`runner` names the decode step: "compiled" or "openvino". Texts and pixels go through OpenVINO.

    dtype "fp32" is exact; "bf16" and "int8" say how weights are stored and products computed. num_threads None means
    one for each physical core. Raises OSError where the compiled step cannot run (`compiled.library.why_not` says so
    beforehand), ConfigError for a dtype that the step does not have.
    """
    if dtype not in DTYPES[runner]:
        raise ConfigError(f"dtype {dtype!r} is not one of --runner {runner}: {', '.join(DTYPES[runner])}")
    config, compiler = checkpoint.config, Compiler(num_threads)
    kept = _kept(checkpoint, (COMPILED if runner == "compiled" else "") + dtype, cache_dir)
    weights = Weights(checkpoint, dtype, kept)
    embeddings = Embeddings(checkpoint.transformer, sizes(config))
    texts = OpenVINOTexts(weights, sizes(config), embeddings, compiler, dtype)
    _release(kept)
    step: CompiledStep | OpenVINOStep
    if runner == "compiled":
        step = CompiledStep.of(checkpoint, kept, embeddings, dtype, num_slots, texts.num_threads)
    else:
        step = OpenVINOStep(weights, config, embeddings, compiler, dtype, num_slots)
    _release(kept)
    # A model whose weights are not worth keeping paints in no time anyway.
    pixels = OpenVINOPixels(checkpoint, compiler, dtype, ranges_dir=cache_dir if kept else None)
    info = RunnerInfo(
        runner=runner,
        device="cpu",
        device_name=compiler.device_name,
        dtype=dtype,
        reason=reason,
        versions={"openvino": VERSION, "numpy": np.__version__},
        num_threads=texts.num_threads,
    )
    return CpuRunner(config, info, num_slots, texts, step, pixels, draw if runner == "compiled" else gumbel_max)


def _kept(checkpoint: Checkpoint, layout: str, cache_dir: Path | None) -> dict[str, Packed] | None:
    """Packed weights from the cache, where packing them anew would be felt at start."""
    size_bytes = sum(tensor.nbytes for tensor in checkpoint.transformer.values())
    if cache_dir is None or size_bytes < WORTH_KEEPING_BYTES:
        return None
    try:
        return kept_packed(checkpoint, layout, cache_dir)
    except (OSError, CheckpointError) as error:
        logger.warning("packed weights are not kept, so every start takes longer and more memory: %s", error)
        return None


def _release(kept: dict[str, Packed] | None) -> None:
    """Each part has an arrangement of its own by now and does not read the mapped weights again."""
    for packed in (kept or {}).values():
        release_pages(*packed.values())
