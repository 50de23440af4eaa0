"""What the control groups around this process allow it: a container's share of its machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

UNLIMITED = 2**60  # bytes and more: how version 1 says that there is no limit
Read = Callable[[Path], float | None]  # of a group


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that this process's control groups allow, of versions 1 and 2; None: no limit."""
    of_v1 = dict.fromkeys(("cpu", "cpu,cpuacct"), _quota_of_v1)
    return _smallest(root, "cpu", _quota_of_v2, of_v1)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process's control groups allow, of versions 1 and 2; None: no limit."""
    limit = _smallest(
        root, "memory", partial(_bytes, "memory.max"), {"memory": partial(_bytes, "memory.limit_in_bytes")}
    )
    return None if limit is None else int(limit)


def _smallest(root: Path, controller: str, of_v2: Read, of_v1: Mapping[str, Read]) -> float | None:
    """Of what is read of all groups that this process is in; `of_v1` by the folder that the controller may lie in."""
    found = []
    for line in lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += [of_v2(group) for group in _up(root / "sys/fs/cgroup", path)]
        elif controller in controllers.split(","):
            for mount, read in of_v1.items():
                found += [read(group) for group in _up(root / "sys/fs/cgroup" / mount, path)]
    return min((limit for limit in found if limit is not None), default=None)


def _up(mount: Path, path: str) -> list[Path]:
    """The group and those around it, the outermost last. In a container the inner ones may not be there."""
    group = mount / path.strip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _quota_of_v2(group: Path) -> float | None:
    for line in lines(group / "cpu.max"):
        quota, period = line.split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _quota_of_v1(group: Path) -> float | None:
    quota, period = (lines(group / f"cpu.cfs_{kind}_us") for kind in ("quota", "period"))
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _bytes(name: str, group: Path) -> float | None:
    for line in lines(group / name):
        return None if line == "max" or int(line) >= UNLIMITED else int(line)
    return None


def lines(path: Path) -> list[str]:
    """Of a small file of the system; none where there is no such file."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
