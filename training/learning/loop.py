"""What both training stages share: the clock, checkpoints to resume from, averaged weights, the log line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from training.learning import parallel
from training.preset import Schedule

SAVE_EVERY_S = 60.0
LOG_EVERY_S = 15.0


M = TypeVar("M", bound=nn.Module)


def placed(module: M, device: torch.device) -> M:
    """On the device, with convolutions' weights as they are fastest there: channels last, as the pictures are."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it pays: on a CPU, even one with AVX512-BF16, these narrow convolutions are faster in float32.

    One without it takes six times as long in bfloat16.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")


class AveragedWeights:
    """Exponential moving average of a module's parameters; what is evaluated and exported."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # young averages follow quickly
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:  # a counter of batches
                self.values[name].copy_(value)


def train(
    name: str,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss_of_step: Callable[[int, float], tuple[Tensor, dict[str, float]]],
    schedule: Schedule,
    checkpoint: Path,
) -> AveragedWeights:
    """Run one stage to the end of its schedule, resuming from `checkpoint` if it exists.

    `loss_of_step(draw, progress)` draws its own batch from the number it is given (a different one in every step and
    process): a resumed run sees the data it would have seen. `progress` is the done share of the run, 0…1.
    """
    average = AveragedWeights(module, schedule.ema_decay)
    step, elapsed_s = _resume(checkpoint, module, optimizers, average)
    clock = time.monotonic()
    saved_s = logged_s = elapsed_s
    window: list[dict[str, float]] = []
    compiled = False
    while schedule.progress(step, elapsed_s) < 1:
        _scale_rates(optimizers, schedule.learning_rate_scale(step, elapsed_s))
        draw = step * parallel.world_size() + parallel.rank()
        loss, measures = loss_of_step(draw, schedule.progress(step, elapsed_s))
        loss.backward()
        parallel.average_gradients(module)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        average.update(module, step)
        window.append({"loss": float(loss.detach()), **measures})
        if compiled:  # the first step of a process compiles, which is no part of the schedule
            elapsed_s = parallel.agree_on(elapsed_s + time.monotonic() - clock)
        compiled, clock = True, time.monotonic()
        if elapsed_s - logged_s > LOG_EVERY_S:
            rate = len(window) * schedule.batch * parallel.world_size() / (elapsed_s - logged_s)
            if parallel.rank() == 0:
                print(_log_line(name, step, elapsed_s, schedule, rate, window), flush=True)
            logged_s, window = elapsed_s, []
        if elapsed_s - saved_s > SAVE_EVERY_S:
            _save(checkpoint, module, optimizers, average, step, elapsed_s)
            saved_s = elapsed_s
    _save(checkpoint, module, optimizers, average, step, elapsed_s)
    parallel.barrier()
    return average


def _scale_rates(optimizers: list[torch.optim.Optimizer], scale: float) -> None:
    """Set every learning rate to `scale` × what it was at first, which its group remembers (also in a checkpoint)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * scale


def _log_line(
    name: str, step: int, elapsed_s: float, schedule: Schedule, rate: float, window: list[dict[str, float]]
) -> str:
    means = {key: sum(row[key] for row in window) / len(window) for key in window[0]}
    done = schedule.progress(step, elapsed_s)
    left_s = elapsed_s * (1 - done) / max(done, 1e-9)
    numbers = " ".join(f"{key} {value:.4f}" for key, value in means.items())
    return f"{name} step {step} {done:6.1%} {rate:.0f}/s left {left_s / 60:.0f} min | {numbers}"


def _save(
    path: Path, module: nn.Module, optimizers: list[Any], average: AveragedWeights, step: int, elapsed_s: float
) -> None:
    if parallel.rank() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "module": module.state_dict(),
        "average": average.values,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "elapsed_s": elapsed_s,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, module: nn.Module, optimizers: list[Any], average: AveragedWeights) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location="cpu")  # wherever it was written
    module.load_state_dict(state["module"])
    average.values = {name: value.to(average.values[name].device) for name, value in state["average"].items()}
    for optimizer, saved in zip(optimizers, state["optimizers"] or [], strict=bool(state["optimizers"])):
        optimizer.load_state_dict(saved)
    print(f"resuming {path.name} at step {state['step']}", flush=True)
    return state["step"], state["elapsed_s"]


def new_state(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint of a stage that starts from `weights`: step 0, fresh optimizers."""
    return {"module": weights, "average": weights, "optimizers": None, "step": 0, "elapsed_s": 0.0}


def load_average(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a stage's checkpoint, finished or not."""
    average: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")["average"]
    return average
