"""A CPU runner from a checkpoint: the parts it is put together from, and the packed weights that they share."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
from dalle_server.engine.runners.cpu.compiled.vqgan.ranges import kept_ranges, usable_ranges
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import Ranges
from dalle_server.engine.runners.cpu.packing import Tiles, kept_packed, products
from dalle_server.engine.runners.cpu.parts import Step, Texts
from dalle_server.engine.runners.cpu.runner import CpuRunner
from dalle_server.engine.runners.cpu.threads import processor_name, usable_threads
from dalle_server.engine.sampling import Draw
from dalle_server.errors import CheckpointError, ConfigError

DTYPES = ("int8", "fp32")
WORTH_KEEPING_BYTES = 200 << 20

T = TypeVar("T")

logger = logging.getLogger(__name__)


class _Cache:
    """What a start keeps for the next ones. Where that cannot be written or read, a start takes longer and nothing else
    is different. It is told once: a second thing mostly fails as the first one did. `directory` None: nothing is kept.
    """

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._is_told = False

    def kept(self, keep: Callable[[Path], T]) -> T | None:
        """What `keep` finds in the directory or puts there; None where it cannot."""
        if self._directory is None:
            return None
        try:
            return keep(self._directory)
        except (OSError, CheckpointError) as error:
            if not self._is_told:
                logger.warning("what a start computes is not kept, so each takes longer and more memory: %s", error)
            self._is_told = True
            return None


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
    is_large = sum(tensor.nbytes for tensor in checkpoint.transformer.values()) >= WORTH_KEEPING_BYTES
    cache = _Cache(cache_dir if is_large else None)
    kept = cache.kept(lambda directory: kept_packed(checkpoint, dtype, directory))
    texts, step, draw = compiled_parts(library, team, checkpoint, kept, dtype, num_slots)
    release_pages(*(kept or {}).values())  # each part has a copy of its own
    # Said by the model alone: pictures must not tell whether there is a cache. A small one paints in no time anyway.
    ranges = _ranges(library, team, checkpoint, cache) if is_large and dtype == "int8" else {}
    pixels = CompiledPixels(library, team, checkpoint, ranges)
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


def _ranges(library: Any, team: Team, checkpoint: Checkpoint, cache: _Cache) -> Ranges:
    """What int8 pixels need to know, the same whether it can be kept or not."""
    measure = functools.partial(usable_ranges, library, team, checkpoint.vqgan, checkpoint.config)
    once = functools.cache(measure)  # a full disk is noticed only when they are to be written
    kept = cache.kept(lambda directory: kept_ranges(directory, checkpoint, once))
    return once() if kept is None else kept
