"""What the control groups around this process allow it: a container's share of its machine."""

from __future__ import annotations

from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that this process's control groups allow, of versions 1 and 2; None: no limit."""
    found = []
    for line in lines(root / "proc/self/cgroup"):
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
    for line in lines(group / "cpu.max"):
        quota, period = line.split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _of_v1(group: Path) -> float | None:
    quota, period = (lines(group / f"cpu.cfs_{kind}_us") for kind in ("quota", "period"))
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def lines(path: Path) -> list[str]:
    """Of a small file of the system; none where there is no such file."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
