"""Which runner, device and number format: what the user asked for, or the fastest that is faithful here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import math
from dataclasses import dataclass
from pathlib import Path

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_names import transformer_tensors
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.cpu.compiled.library import why_not
from dalle_server.errors import ConfigError
from dalle_server.models.config import TransformerConfig

logger = logging.getLogger(__name__)

# Memory that slots may take by themselves, and how many still add speed: on a CPU 32 rows cost almost 32
# times one row's arithmetic, on a GPU the weights still dominate.
_CPU_SLOTS = (4, 16, 256 << 20)  # at least, at most, budget in bytes
_GPU_SLOTS = (1, 32, 2 << 30)
_SMALL_WEIGHTS = 20_000_000  # below, exact arithmetic is fast enough: docs/performance.md
_GPU_RESERVE_BYTES = 1 << 30  # the VQGAN, lm_head in fp32, activations, and what the driver takes


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs, and why: `reason` goes to the log and to /v1/info."""

    runner: str  # "compiled" | "openvino" | "torch"
    device: str  # "cpu" | "cuda" | "cuda:1" | "mps"
    dtype: str  # "fp32" | "bf16" | "fp16" | "int8"
    reason: str


def choose(runner: str = "auto", device: str = "auto", dtype: str = "auto", num_weights: int | None = None) -> Choice:
    """Resolve every "auto" for a transformer of `num_weights` (None: a large one).

    Raises ConfigError for a combination that does not exist, or when torch is wanted and missing.
    """
    reasons = []
    if device == "auto":
        device = "cpu" if runner in ("compiled", "openvino") else _accelerator() or "cpu"
        reasons.append(
            f"device {device}: " + ("no accelerator that torch sees" if device == "cpu" else "torch sees it")
        )
    if dtype == "auto":
        dtype, why = _default_dtype(runner, device, num_weights)
        reasons.append(f"dtype {dtype}: {why}")
    if runner == "auto":
        runner, why = _default_runner(device, dtype)
        reasons.append(f"runner {runner}: {why}")
    _check(runner, device, dtype)
    return Choice(runner, device, dtype, "; ".join(reasons) or "as asked for")


def choose_runner(
    checkpoint: Checkpoint,
    runner: str = "auto",
    dtype: str = "auto",
    *,
    device: str = "auto",
    num_slots: int | None = None,
    num_threads: int | None = None,
    cache_dir: Path | None = None,
) -> Runner:
    """Choose, say so in one log line, and load. `num_slots` None: as many as add speed and fit a modest memory.
    `cache_dir` may keep what makes the next start faster.

    Raises ConfigError for an impossible choice, and for one that does not fit in memory.
    """
    weights = transformer_tensors(checkpoint.config.transformer).values()
    choice = choose(runner, device, dtype, sum(math.prod(shape) for shape in weights))
    slots = num_slots or default_num_slots(checkpoint.config.transformer, choice)
    logger.info(
        "runner: %s on %s in %s, %d slots (%s)", choice.runner, choice.device, choice.dtype, slots, choice.reason
    )
    try:
        return _load(checkpoint, choice, slots, num_threads, cache_dir)
    except MemoryError as error:
        raise ConfigError(f"the model and {slots} pictures at a time do not fit in memory; lower num_slots") from error


def _load(
    checkpoint: Checkpoint, choice: Choice, num_slots: int, num_threads: int | None, cache_dir: Path | None
) -> Runner:
    # Imported here: neither library is touched, or need be installed, where the other one runs.
    if choice.runner != "torch":
        from dalle_server.engine.runners.cpu.load import load_cpu_runner

        return load_cpu_runner(
            checkpoint,
            choice.runner,
            dtype=choice.dtype,
            num_slots=num_slots,
            num_threads=num_threads,
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


def default_num_slots(config: TransformerConfig, choice: Choice) -> int:
    """A slot keeps two rows of keys and values for I + T positions of every layer."""
    fewest, most, budget_bytes = _CPU_SLOTS if choice.device == "cpu" else _GPU_SLOTS
    positions = config.image_length + config.max_text_length
    value_bytes = 4 if choice.dtype == "fp32" else 2
    if choice.device.startswith("cuda"):
        num_weights = sum(math.prod(shape) for shape in transformer_tensors(config).values())
        free_bytes = _free_gpu_bytes(choice.device) - num_weights * value_bytes - _GPU_RESERVE_BYTES
        budget_bytes = min(budget_bytes, max(0, free_bytes))
    slot_bytes = 2 * 2 * config.decoder_layers * positions * config.d_model * value_bytes
    return max(fewest, min(most, budget_bytes // slot_bytes))


def _free_gpu_bytes(device: str) -> int:
    import torch

    from dalle_server.engine.runners.torch.device import checked_device

    return torch.cuda.mem_get_info(checked_device(device))[0]


def _accelerator() -> str | None:
    # A CPU build of torch is not imported just to be asked: that takes seconds.
    try:
        if importlib.metadata.version("torch").endswith("+cpu"):
            return None
    except importlib.metadata.PackageNotFoundError:  # also where a folder `torch/` lies in the working directory
        return None
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def _default_dtype(runner: str, device: str, num_weights: int | None) -> tuple[str, str]:
    """The dtype and why."""
    if runner == "torch" or device != "cpu":
        return ("fp32", "the exact reference") if device == "cpu" else ("fp16", "the fastest that is faithful here")
    if num_weights is not None and num_weights < _SMALL_WEIGHTS:
        return "fp32", "exact, and fast enough for a model this small"
    return "int8", "the fastest that is faithful here"


def _default_runner(device: str, dtype: str) -> tuple[str, str]:
    """The runner and why."""
    if device != "cpu":
        return "torch", "the fastest on this device"
    if dtype not in ("int8", "fp32"):
        return "openvino", "the fastest on a CPU in this dtype"
    missing = why_not()
    return ("openvino", f"{missing}, which runner compiled needs") if missing else ("compiled", "the fastest on a CPU")


def _check(runner: str, device: str, dtype: str) -> None:
    if runner == "torch":
        if importlib.util.find_spec("torch") is None:
            raise ConfigError("--runner torch needs PyTorch: pip install 'dalle-server[torch]'")
        if dtype == "int8":
            raise ConfigError("--dtype int8 is for --runner compiled or openvino; with torch use fp32, bf16 or fp16")
        return
    if device != "cpu":
        raise ConfigError(f"--runner {runner} runs on the CPU, not on {device}; use --runner torch")
    if runner == "compiled" and dtype not in ("int8", "fp32"):
        raise ConfigError(f"--runner compiled computes in int8 or fp32, not {dtype}; use --runner openvino")
    if runner == "compiled" and (missing := why_not()):
        raise ConfigError(f"--runner compiled: {missing}; use --runner openvino")
    if dtype == "fp16":
        raise ConfigError("--dtype fp16 has no fast arithmetic on a CPU; use int8, bf16 or fp32")
