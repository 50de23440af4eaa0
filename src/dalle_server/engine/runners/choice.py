"""Which runner, device and number format: what the user asked for, or the fastest that is faithful here."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from dalle_server.engine.runners.cpu.compiled.library import load_library, why_not
from dalle_server.errors import ConfigError, first_line

CPU_RUNNERS = ("compiled",)
_SMALL_WEIGHTS = 20_000_000  # below, exact arithmetic is fast enough: docs/performance.md


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What was asked for. `num_slots` None: as many as add speed and fit a modest memory; `num_threads` None: as many
    as this process may use all the time. `cpu_build` names a build of the compiled code, and `cache_dir` may keep what
    makes the next start faster.
    """

    runner: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    num_slots: int | None = None
    num_threads: int | None = None
    cpu_build: str = "auto"
    cache_dir: Path | None = None

    @classmethod
    def of(cls, settings: object) -> Self:
        """From whatever has these fields: the server's settings."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs, and why: `reason` goes to the log and to /v1/info, `lacking` into a warning: what was not at hand for
    the runner that would have been taken.
    """

    runner: str  # "compiled" | "torch"
    device: str  # "cpu" | "cuda" | "cuda:1" | "mps"
    dtype: str  # "fp32" | "bf16" | "fp16" | "int8"
    reason: str
    lacking: str | None = None


def choose(
    runner: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    num_weights: int | None = None,
    cpu_build: str = "auto",
    cpu_runners: tuple[str, ...] = CPU_RUNNERS,
) -> Choice:
    """Resolve every "auto" for a transformer of `num_weights` (None: a large one), of a family for which there are
    these runners on a CPU, beside torch.

    Raises ConfigError for a combination that does not exist, or when torch is wanted and missing.
    """
    reasons, lacking = [], None
    if runner == "auto" and not cpu_runners:
        runner = "torch"
        reasons.append("runner torch: the only one for this family of models")
    elif runner in CPU_RUNNERS and runner not in cpu_runners:
        raise ConfigError(f"--runner {runner} does not draw this family of models; use --runner torch")
    if device == "auto":
        accelerator, lacking = (None, None) if runner in CPU_RUNNERS else _accelerator()
        device = accelerator or "cpu"
        reasons.append(
            f"device {device}: " + ("no accelerator that torch sees" if device == "cpu" else "torch sees it")
        )
    if runner == "auto":
        runner, why, missing = _default_runner(device, dtype, cpu_build)
        lacking = missing or lacking
        reasons.append(f"runner {runner}: {why}")
    if dtype == "auto":
        dtype, why = _default_dtype(runner, device, num_weights)
        reasons.append(f"dtype {dtype}: {why}")
    _check(runner, device, dtype, cpu_build)
    return Choice(runner, device, dtype, "; ".join(reasons) or "as asked for", lacking)


def _accelerator() -> tuple[str | None, str | None]:
    """What torch sees, and why it cannot be asked where that is so."""
    # A CPU build of torch is not imported just to be asked: that takes seconds.
    try:
        if importlib.metadata.version("torch").endswith("+cpu"):
            return None, None
    except importlib.metadata.PackageNotFoundError:  # also where a folder `torch/` lies in the working directory
        return None, None
    if fault := _fault_of_torch():
        return None, f"{fault}, so no GPU was looked for"
    import torch

    if torch.cuda.is_available():
        return "cuda", None
    return "mps" if torch.backends.mps.is_available() else None, None


@functools.cache  # a second attempt in the same process fails for other reasons than the first
def _fault_of_torch() -> str | None:
    """Why it cannot be imported: its own libraries, or a driver's, may be missing or of another version."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        return f"torch is installed and cannot be imported ({first_line(error)})"
    return None


def _default_dtype(runner: str, device: str, num_weights: int | None) -> tuple[str, str]:
    """The dtype and why."""
    if runner == "torch" or device != "cpu":
        return ("fp32", "the exact reference") if device == "cpu" else ("fp16", "the fastest that is faithful here")
    if num_weights is not None and num_weights < _SMALL_WEIGHTS:
        return "fp32", "exact, and fast enough for a model this small"
    return "int8", "the fastest that is faithful here"


def _default_runner(device: str, dtype: str, cpu_build: str) -> tuple[str, str, str | None]:
    """The runner, why, and what is lacking for a better one."""
    if device != "cpu":
        return "torch", "the fastest on this device", None
    if dtype == "bf16":
        return "torch", "the only one on a CPU in this dtype", None
    if missing := why_not(cpu_build):
        has_torch = importlib.util.find_spec("torch") is not None and _fault_of_torch() is None
        if cpu_build == "auto" and dtype != "int8" and has_torch:
            return "torch", f"{missing}, which runner compiled needs", missing
        return "compiled", "nothing else will do", None  # to be refused, with the reason
    return "compiled", f"the fastest on a CPU, build {load_library(cpu_build).build}", None


def _check(runner: str, device: str, dtype: str, cpu_build: str) -> None:
    if runner == "torch":
        if importlib.util.find_spec("torch") is None:
            raise ConfigError("--runner torch needs PyTorch: pip install 'dalle-server[torch]'")
        if fault := _fault_of_torch():
            raise ConfigError(f"--runner torch: {fault}; install it again, or use --device cpu with --runner compiled")
        if dtype == "int8":
            raise ConfigError("--dtype int8 is for --runner compiled; with torch use fp32, bf16 or fp16")
        return
    if device != "cpu":
        raise ConfigError(f"--runner {runner} runs on the CPU, not on {device}; use --runner torch")
    if dtype == "fp16":
        raise ConfigError("--dtype fp16 has no fast arithmetic on a CPU; use int8 or fp32")
    if dtype not in ("int8", "fp32"):
        raise ConfigError(f"--runner compiled computes in int8 or fp32, not {dtype}; use --runner torch")
    if missing := why_not(cpu_build):
        extra = " and needs pip install 'dalle-server[torch]'" if importlib.util.find_spec("torch") is None else ""
        raise ConfigError(f"--runner compiled: {missing}; or use --runner torch, which is slower{extra}")
