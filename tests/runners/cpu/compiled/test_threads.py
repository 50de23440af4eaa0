"""How many threads compute: the smallest of cores, affinity and the quotas of control groups, and it says which."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from dalle_server.engine.runners.control_groups import cpu_quota, memory_limit
from dalle_server.engine.runners.cpu import threads
from dalle_server.engine.runners.cpu.threads import usable_threads

V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu"


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {f"{V2}/cpu.max": "150000 100000\n"}, 1.5),  # a container with a name space of its own
        ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "max 100000\n", f"{V2}/a/cpu.max": "50000 100000\n"}, 0.5),  # from outside
        ("0::/a\n", {f"{V2}/a/cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),  # the root group has no such file
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/1\n",
            {f"{V1}/cpu.cfs_quota_us": "200000\n", f"{V1}/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),  # the host's path, which is not mounted in the container
        ("1:cpu:/\n", {f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_quotas_of_both_versions(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(machine(tmp_path, cgroup, files)) == quota


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("0::/\n", {f"{V2}/memory.max": "8000000000\n"}, 8 * 10**9),
        (
            "0::/system.slice/dalle.service\n",
            {
                f"{V2}/system.slice/dalle.service/memory.max": "4000000000\n",
                f"{V2}/system.slice/memory.max": "max\n",
                f"{V2}/memory.max": "8000000000\n",
            },
            4 * 10**9,
        ),  # MemoryMax= of a unit
        ("0::/a\n", {f"{V2}/a/memory.max": "max\n"}, None),
        ("9:memory:/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("9:memory:/docker/1\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000000\n"}, 3 * 10**9),
    ],
)
def test_memory_of_both_versions(tmp_path: Path, cgroup: str, files: dict[str, str], limit: int | None) -> None:
    assert memory_limit(machine(tmp_path, cgroup, files)) == limit


def test_no_control_groups_no_limits(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None and memory_limit(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_the_smallest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    assert usable_threads() == (8, "physical cores")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_threads() == (2, "the CPUs that this process may use")
    monkeypatch.setattr(threads, "cpu_quota", lambda: 0.5)
    assert usable_threads() == (1, "a CPU quota of 0.5")
