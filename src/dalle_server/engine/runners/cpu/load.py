"""A CPU runner from a checkpoint: the parts it is put together from, and the packed weights that they share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.pull import CodeDistances
from dalle_server.engine.runners.base import LOGPROBS, PULL, SEAMLESS, TOKENIZE, RunnerInfo
from dalle_server.engine.runners.cpu.compiled.draw import compiled_draw
from dalle_server.engine.runners.cpu.compiled.families import compiled_texts_and_step
from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.runners.cpu.compiled.stack import Loading, Memory, tiles_of
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.vqgan.pixels import CompiledPixels
from dalle_server.engine.runners.cpu.packing import Tiles, kept_packed, products
from dalle_server.engine.runners.cpu.parts import Step, Texts
from dalle_server.engine.runners.cpu.runner import CpuRunner
from dalle_server.engine.runners.cpu.threads import processor_name, usable_threads
from dalle_server.engine.sampling import Draw
from dalle_server.errors import CheckpointError, ConfigError

DTYPES = ("int8", "fp32")
WORTH_KEEPING_BYTES = 200 << 20

logger = logging.getLogger(__name__)


def load_cpu_runner(
    checkpoint: Checkpoint,
    *,
    dtype: str = "int8",
    num_slots: int = 8,
    num_threads: int | None = None,
    cpu_build: str = "auto",
    cache_dir: Path | None = None,
    reason: str = "chosen by the caller",
) -> CpuRunner:
    """dtype "fp32" is exact; "int8" says how weights are stored and products computed. num_threads None means as many
    as `usable_threads` finds.

    Raises OSError where the compiled code cannot run (`compiled.library.why_not` says so beforehand), ConfigError for
    another dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of --runner compiled: {', '.join(DTYPES)}")
    threads = num_threads or usable_threads()[0]
    library, team = load_library(cpu_build), Team(threads)
    kept = _kept(checkpoint, dtype, cache_dir)
    texts, step, draw = compiled_parts(library, team, checkpoint, kept, dtype, num_slots)
    release_pages(*(kept or {}).values())  # each part has a copy of its own
    # A model whose weights are not worth keeping paints in no time anyway.
    ranges_dir = cache_dir if kept and dtype == "int8" else None
    pixels = CompiledPixels(library, team, checkpoint, ranges_dir=ranges_dir)
    info = RunnerInfo(
        runner="compiled",
        device="cpu",
        device_name=processor_name(),
        dtype=dtype,
        reason=reason,
        versions={"numpy": np.__version__},
        num_threads=threads,
        build=library.build,
        features=(LOGPROBS, SEAMLESS, PULL, *((TOKENIZE,) if checkpoint.has_encoder else ())),
    )
    distances = CodeDistances(checkpoint.codebook)
    return CpuRunner(checkpoint.config, info, num_slots, texts, step, pixels, draw, distances)


def compiled_parts(
    library: Any, team: Team, checkpoint: Checkpoint, kept: Tiles | None, dtype: str, num_slots: int
) -> tuple[Texts, Step, Draw]:
    tiles = tiles_of(checkpoint, products(checkpoint.config), kept, dtype)
    memory = Memory(tiles, is_exact=dtype == "fp32")
    texts, step = compiled_texts_and_step(Loading(library, team, memory, checkpoint, num_slots))
    return texts, step, compiled_draw(library)


def _kept(checkpoint: Checkpoint, dtype: str, cache_dir: Path | None) -> Tiles | None:
    """Packed weights from the cache, where packing them anew would be felt at start."""
    size_bytes = sum(tensor.nbytes for tensor in checkpoint.transformer.values())
    if cache_dir is None or size_bytes < WORTH_KEEPING_BYTES:
        return None
    try:
        return kept_packed(checkpoint, dtype, cache_dir)
    except (OSError, CheckpointError) as error:
        logger.warning("packed weights are not kept, so every start takes longer and more memory: %s", error)
        return None
