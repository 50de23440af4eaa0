"""What torch can use here, and its various words for "out of memory"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.engine.runners.cpu.threads import processor_name
from dalle_server.engine.runners.torch.weights import DTYPES
from dalle_server.errors import ConfigError


def checked_device(name: str) -> torch.device:
    """Raises ConfigError for a device that torch does not see."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is unknown; use cpu, cuda, cuda:N or mps", param="device") from None
    seen = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= seen.get(device.type, 0):
        raise ConfigError(
            f"device {name!r}: this torch ({torch.__version__}) sees no such device; use --device cpu,"
            f" or install a torch build and driver for it",
            param="device",
        )
    return device


def checked_dtype(name: str) -> torch.dtype:
    """Raises ConfigError for a dtype that torch products cannot have."""
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r}: the torch runner has {', '.join(DTYPES)}", param="dtype")
    return DTYPES[name]


def describe(device: torch.device, dtype: str, reason: str) -> RunnerInfo:
    versions = {"torch": str(torch.__version__)}
    if device.type == "cuda":
        name, versions["cuda"] = torch.cuda.get_device_name(device), str(torch.version.cuda)
    elif device.type == "mps":
        name = "Apple GPU"
    else:  # the instructions that torch's kernels use here: others round otherwise
        name, versions["instructions"] = processor_name(), torch.backends.cpu.get_cpu_capability()
    return RunnerInfo("torch", str(device), name, dtype, reason, versions, num_threads=torch.get_num_threads())


@contextmanager
def memory_errors() -> Iterator[None]:
    """A context or a decorator: out of memory, on whichever device, is Python's MemoryError."""
    try:
        yield
    except RuntimeError as error:
        # The CPU allocator has no error class of its own.
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise MemoryError(str(error)) from error
        raise
