"""From what the user asked for to a runner, in three steps: choose, size, load."""

from __future__ import annotations

import logging
from dataclasses import replace

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.choice import Choice, RunnerSettings, choose
from dalle_server.engine.runners.cpu.threads import usable_threads
from dalle_server.engine.runners.sizing import default_num_slots, memory_bytes, weight_bytes
from dalle_server.errors import ConfigError
from dalle_server.models.config import ModelConfig

logger = logging.getLogger(__name__)


def choose_runner(checkpoint: Checkpoint, asked: RunnerSettings | None = None) -> Runner:
    """Choose, say so in one log line, and load.

    A device that was chosen here and turns out too small for the model is left for the CPU. Raises ConfigError for an
    impossible choice, and for one that does not fit in memory.
    """
    asked = asked or RunnerSettings()
    choice = _choose(checkpoint.config, asked)
    slots = asked.num_slots or default_num_slots(checkpoint.config, choice)
    threads, why = (asked.num_threads, "as asked for") if asked.num_threads else usable_threads()
    logger.info(
        "runner: %s on %s in %s, %d slots (%s), %d threads (%s)",
        choice.runner, choice.device, choice.dtype, slots, choice.reason, threads, why,
    )  # fmt: skip
    if choice.lacking:
        logger.warning("pictures may take many times as long as they could: %s", choice.lacking)
    try:
        return _load(checkpoint, choice, slots, threads, asked)
    except MemoryError as error:
        what = f"the model and {slots} pictures at a time do not fit in memory"
        if choice.device == "cpu" or asked.device != "auto" or asked.runner == "torch" or asked.dtype == "fp16":
            raise ConfigError(f"{what}; lower num_slots") from error
    # Outside the handler: a traceback holds on to what was loaded already.
    logger.warning("%s of %s; taking the CPU instead", what, choice.device)
    return choose_runner(checkpoint, replace(asked, device="cpu"))


def needed_bytes(config: ModelConfig, asked: RunnerSettings, *, has_encoder: bool) -> int:
    """The memory that `choose_runner` would take, about, before anything is loaded. Raises ConfigError as it does."""
    choice = _choose(config, asked)
    slots = asked.num_slots or default_num_slots(config, choice)
    return memory_bytes(config, choice, slots, has_encoder=has_encoder)


def estimated_bytes(num_weights: int, asked: RunnerSettings) -> int:
    """As `needed_bytes`, of a model of which no more is known yet: a gigabyte for its VQGAN in fp32 and its slots."""
    choice = choose(asked.runner, asked.device, asked.dtype, num_weights, asked.cpu_build)
    return int(weight_bytes(num_weights, choice)) + 10**9


def _choose(config: ModelConfig, asked: RunnerSettings) -> Choice:
    runners = config.transformer.cpu_runners
    return choose(asked.runner, asked.device, asked.dtype, config.num_weights, asked.cpu_build, runners)


def _load(checkpoint: Checkpoint, choice: Choice, num_slots: int, num_threads: int, asked: RunnerSettings) -> Runner:
    # Imported here: torch need not be installed where the compiled runner runs.
    if choice.runner != "torch":
        from dalle_server.engine.runners.cpu.load import load_cpu_runner

        return load_cpu_runner(
            checkpoint,
            dtype=choice.dtype,
            num_slots=num_slots,
            num_threads=num_threads,
            cpu_build=asked.cpu_build,
            cache_dir=asked.cache_dir,
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
