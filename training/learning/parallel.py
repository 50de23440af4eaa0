"""Data parallelism over processes, which `python -m training` starts through torchrun if the preset asks for several.

On a shared CPU two processes of one thread each waste less than one process of two threads, which wait for each other
at every operator instead of once a step. With one process everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


def is_started() -> bool:
    """Whether this is one of torchrun's processes."""
    return "WORLD_SIZE" in os.environ


def start() -> None:
    """Join the other processes, if torchrun started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo", timeout=timedelta(hours=2))  # the others wait while the first one evaluates


@contextmanager
def threads(*, of_many: bool) -> Iterator[None]:
    """One thread for each of several processes, or every core for one that works while the others wait."""
    before = torch.get_num_threads()
    if dist.is_initialized():
        torch.set_num_threads(1 if of_many else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def agree_on(value: float) -> float:
    """The first process's value, in every process: clocks differ, and all must stop at the same step."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)
