"""A Ray cluster of this machine alone, in processes of its own; what it says of itself goes nowhere."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"  # Ray takes 127.0.0.1 for its outer address
# Before ray is imported, here and in every process that a test starts.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # a token would be written to the home directory
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


@contextmanager
def ray_cluster(num_cpus: int = 8) -> Iterator[str]:
    """Its address. A short directory: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        started = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={LOOPBACK}", "--port=0", f"--num-cpus={num_cpus}", "--include-dashboard=false"),
            *(f"--temp-dir={directory}", f"--object-store-memory={200 << 20}", "--dashboard-agent-listen-port=0"),
        ]
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        log = Path(directory) / "start.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                started,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield _address(process, log)
        finally:
            _end(process)


def processes_of(app: str, deployment: str = "engine") -> list[psutil.Process]:
    """The replicas' own: ray names each after its application."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(f"ServeReplica:{app}:{deployment}" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        said = log.read_text(errors="replace")
        if "Ray runtime started" in said and (found := re.search(rf"--address='({LOOPBACK}:\d+)'", said)):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"Ray did not start: {log.read_text(errors='replace')}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its processes have sessions of their own and end with it; those that do not are killed."""
    family = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=3)
    for each in alive:
        with contextlib.suppress(psutil.Error):
            each.kill()
    process.kill()
    process.wait()
