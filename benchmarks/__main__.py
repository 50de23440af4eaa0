"""Run the benchmarks one after the other and keep their result lines in benchmarks/work/results.jsonl.

python -m benchmarks                  all of them
python -m benchmarks peer_min_dalle   some of them, by name; `gpu`, `conversion`, `janus` and `cluster` only so
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "decode_step",
    "pixels",
    "peer_min_dalle",
    "continuous_batching",
    "load",
    "start_up",
    "nano",
    "neighbours",
    "drafting",
)
# Only by name: they need a GPU, room for large checkpoints, or Ray.
ON_REQUEST = ("gpu", "conversion", "janus", "cluster")
RESULTS = Path(__file__).parent / "work" / "results.jsonl"


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHMARKS + ON_REQUEST]
    if unknown:
        print(
            f"unknown benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS + ON_REQUEST)}", file=sys.stderr
        )
        return 2
    RESULTS.parent.mkdir(exist_ok=True)
    failed = [name for name in names or BENCHMARKS if not run(name)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def run(name: str) -> bool:
    """In a process of its own: thread pools and allocators of one benchmark must not touch the next."""
    print(f"== {name}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last_line = ""
    for last_line in process.stdout:
        print(last_line, end="", flush=True)
    if process.wait() != 0:
        return False
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(last_line)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
