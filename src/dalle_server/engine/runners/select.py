"""From what the user asked for to a runner, in three steps: choose, size, load."""

from __future__ import annotations

import logging
from pathlib import Path

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.choice import Choice, choose
from dalle_server.engine.runners.cpu.threads import usable_threads
from dalle_server.engine.runners.sizing import default_num_slots, memory_bytes
from dalle_server.errors import ConfigError
from dalle_server.models.config import ModelConfig

logger = logging.getLogger(__name__)


def choose_runner(
    checkpoint: Checkpoint,
    runner: str = "auto",
    dtype: str = "auto",
    *,
    device: str = "auto",
    num_slots: int | None = None,
    num_threads: int | None = None,
    cpu_build: str = "auto",
    cache_dir: Path | None = None,
) -> Runner:
    """Choose, say so in one log line, and load. `num_slots` None: as many as add speed and fit a modest memory;
    `num_threads` None: as many as this process may use all the time. `cpu_build` names a build of the compiled code,
    and `cache_dir` may keep what makes the next start faster.

    A device that was chosen here and turns out too small for the model is left for the CPU. Raises ConfigError for an
    impossible choice, and for one that does not fit in memory.
    """
    family = checkpoint.config.transformer
    choice = choose(runner, device, dtype, checkpoint.config.num_weights, cpu_build, family.cpu_runners)
    slots = num_slots or default_num_slots(checkpoint.config, choice)
    threads, why = (num_threads, "as asked for") if num_threads else usable_threads()
    logger.info(
        "runner: %s on %s in %s, %d slots (%s), %d threads (%s)",
        choice.runner, choice.device, choice.dtype, slots, choice.reason, threads, why,
    )  # fmt: skip
    if choice.lacking:
        logger.warning("pictures take many times as long as they could, with torch on a CPU: %s", choice.lacking)
    try:
        return _load(checkpoint, choice, slots, threads, cpu_build, cache_dir)
    except MemoryError as error:
        what = f"the model and {slots} pictures at a time do not fit in memory"
        if choice.device == "cpu" or device != "auto" or runner == "torch" or dtype == "fp16":
            raise ConfigError(f"{what}; lower num_slots") from error
    # Outside the handler: a traceback holds on to what was loaded already.
    logger.warning("%s of %s; taking the CPU instead", what, choice.device)
    return choose_runner(
        checkpoint,
        runner,
        dtype,
        device="cpu",
        num_slots=num_slots,
        num_threads=num_threads,
        cpu_build=cpu_build,
        cache_dir=cache_dir,
    )


def needed_bytes(
    config: ModelConfig,
    runner: str = "auto",
    dtype: str = "auto",
    *,
    device: str = "auto",
    num_slots: int | None = None,
    cpu_build: str = "auto",
) -> int:
    """The memory that `choose_runner` would take, about, before anything is loaded. Raises ConfigError as it does."""
    choice = choose(runner, device, dtype, config.num_weights, cpu_build, config.transformer.cpu_runners)
    return memory_bytes(config, choice, num_slots or default_num_slots(config, choice))


def _load(
    checkpoint: Checkpoint,
    choice: Choice,
    num_slots: int,
    num_threads: int,
    cpu_build: str,
    cache_dir: Path | None,
) -> Runner:
    # Imported here: torch need not be installed where the compiled runner runs.
    if choice.runner != "torch":
        from dalle_server.engine.runners.cpu.load import load_cpu_runner

        return load_cpu_runner(
            checkpoint,
            dtype=choice.dtype,
            num_slots=num_slots,
            num_threads=num_threads,
            cpu_build=cpu_build,
            cache_dir=cache_dir,
            reason=choice.reason,
        )
    from dalle_server.engine.runners.torch.runner import TorchRunner

    return TorchRunner(
        checkpoint,
        device=choice.device,
        dtype=choice.dtype,
        num_slots=num_slots,
        num_threads=num_threads,
        reason=choice.reason,
    )
