"""A CPU runner from a checkpoint: the parts it is put together from, and the packed weights that they share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.base import LOGPROBS, TOKENIZE, RunnerInfo
from dalle_server.engine.runners.cpu.compiled.draw import compiled_draw
from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.runners.cpu.compiled.pixels import CompiledPixels
from dalle_server.engine.runners.cpu.compiled.stack import tiles_of
from dalle_server.engine.runners.cpu.compiled.step import CompiledStep
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.texts import CompiledTexts
from dalle_server.engine.runners.cpu.embeddings import Embeddings
from dalle_server.engine.runners.cpu.openvino.compile import PRECISIONS, VERSION, Compiler
from dalle_server.engine.runners.cpu.openvino.decoder import OpenVINOStep
from dalle_server.engine.runners.cpu.openvino.encoder import OpenVINOTexts
from dalle_server.engine.runners.cpu.openvino.pixels import OpenVINOPixels
from dalle_server.engine.runners.cpu.openvino.weights import Weights
from dalle_server.engine.runners.cpu.packing import COMPILED, Packed, kept_packed, products
from dalle_server.engine.runners.cpu.parts import Pixels, Step, Texts
from dalle_server.engine.runners.cpu.runner import CpuRunner
from dalle_server.engine.runners.cpu.threads import usable_threads
from dalle_server.engine.sampling import Draw, gumbel_max
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
    cpu_build: str = "auto",
    cache_dir: Path | None = None,
    reason: str = "chosen by the caller",
) -> CpuRunner:
    """`runner` names what encodes texts, writes tokens and makes pixels: "compiled" or "openvino".

    dtype "fp32" is exact; "bf16" and "int8" say how weights are stored and products computed. num_threads None means
    as many as `usable_threads` finds. Raises OSError where the compiled code cannot run (`compiled.library.why_not`
    says so beforehand), ConfigError for a dtype that the runner does not have.
    """
    if dtype not in DTYPES[runner]:
        raise ConfigError(f"dtype {dtype!r} is not one of --runner {runner}: {', '.join(DTYPES[runner])}")
    threads = num_threads or usable_threads()[0]
    config, compiler = checkpoint.config, Compiler(threads)
    kept = _kept(checkpoint, (COMPILED if runner == "compiled" else "") + dtype, cache_dir)
    # A model whose weights are not worth keeping paints in no time anyway.
    ranges_dir = cache_dir if kept and dtype == "int8" else None
    pixels: Pixels
    if runner == "compiled":
        library, team = load_library(cpu_build), Team(threads)
        texts, step, draw, build = compiled_parts(library, team, checkpoint, kept, dtype, num_slots)
        pixels = CompiledPixels(library, team, checkpoint, ranges_dir=ranges_dir)
    else:
        texts, step, draw, build = _openvino_parts(checkpoint, kept, dtype, num_slots, compiler)
        pixels = OpenVINOPixels(checkpoint, compiler, dtype, ranges_dir=ranges_dir)
    _release(kept)
    info = RunnerInfo(
        runner=runner,
        device="cpu",
        device_name=compiler.device_name,
        dtype=dtype,
        reason=reason,
        versions={"openvino": VERSION, "numpy": np.__version__},
        num_threads=threads,
        build=build,
        features=(LOGPROBS, TOKENIZE) if checkpoint.has_encoder else (LOGPROBS,),
    )
    return CpuRunner(config, info, num_slots, texts, step, pixels, draw)


Parts = tuple[Texts, Step, Draw, str | None]  # and the name of the compiled code's build


def compiled_parts(
    library: Any,
    team: Team,
    checkpoint: Checkpoint,
    kept: dict[str, Packed] | None,
    dtype: str,
    num_slots: int,
) -> Parts:
    embeddings = Embeddings(checkpoint.transformer, sizes(checkpoint.config))
    wanted = products(checkpoint.config)
    of_step = {name: product for name, product in wanted.items() if product.of_step}
    of_texts = {name: product for name, product in wanted.items() if not product.of_step}
    is_exact = dtype == "fp32"
    tiles = tiles_of(checkpoint, of_texts, kept, dtype)
    texts = CompiledTexts(library, team, checkpoint, tiles, embeddings, is_exact=is_exact)
    tiles = tiles_of(checkpoint, of_step, kept, dtype)
    step = CompiledStep(library, team, checkpoint, tiles, embeddings, is_exact=is_exact, num_slots=num_slots)
    return texts, step, compiled_draw(library), library.build


def _openvino_parts(
    checkpoint: Checkpoint, kept: dict[str, Packed] | None, dtype: str, num_slots: int, compiler: Compiler
) -> Parts:
    config, weights = checkpoint.config, Weights(checkpoint, dtype, kept)
    embeddings = Embeddings(checkpoint.transformer, sizes(config))
    texts = OpenVINOTexts(weights, sizes(config), embeddings, compiler, dtype)
    _release(kept)
    return texts, OpenVINOStep(weights, config, embeddings, compiler, dtype, num_slots), gumbel_max, None


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
