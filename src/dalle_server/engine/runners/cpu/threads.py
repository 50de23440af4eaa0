"""The processor: how many threads may compute here, no more than cores that this process may use all the time."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

import psutil


def usable_threads() -> tuple[int, str]:
    """The number, and what it follows from: the smallest of physical cores, affinity and the CPU quota."""
    limits = {"physical cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):  # Linux
        limits["the CPUs that this process may use"] = len(os.sched_getaffinity(0))
    if (quota := cpu_quota()) is not None:
        limits[f"a CPU quota of {quota:g}"] = math.ceil(quota)
    reason = min(limits, key=lambda name: limits[name])
    return max(1, limits[reason]), reason


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that this process's control groups allow, of versions 1 and 2; None: no limit."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += [_of_v2(group) for group in _up(root / "sys/fs/cgroup", path)]
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                found += [_of_v1(group) for group in _up(root / "sys/fs/cgroup" / mount, path)]
    return min((quota for quota in found if quota is not None), default=None)


def _up(mount: Path, path: str) -> list[Path]:
    """The group and those around it, the outermost last. In a container the inner ones may not be there."""
    group = mount / path.strip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _of_v2(group: Path) -> float | None:
    for line in _lines(group / "cpu.max"):
        quota, period = line.split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _of_v1(group: Path) -> float | None:
    quota, period = (_lines(group / f"cpu.cfs_{kind}_us") for kind in ("quota", "period"))
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def processor_name() -> str:
    """As the processor calls itself, where the system says."""
    names = [line.split(":", 1)[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
