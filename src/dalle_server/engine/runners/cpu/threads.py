"""The processor: how many threads may compute here, no more than cores that this process may use all the time."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

import psutil

from dalle_server.engine.runners.control_groups import cpu_quota, lines


def usable_threads() -> tuple[int, str]:
    """The number, and what it follows from: the smallest of physical cores, affinity and the CPU quota."""
    limits = {"physical cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):  # Linux
        limits["the CPUs that this process may use"] = len(os.sched_getaffinity(0))
    if (quota := cpu_quota()) is not None:
        limits[f"a CPU quota of {quota:g}"] = math.ceil(quota)
    reason = min(limits, key=lambda name: limits[name])
    return max(1, limits[reason]), reason


def processor_name() -> str:
    """As the processor calls itself, where the system says."""
    names = [line.split(":", 1)[1].strip() for line in lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
