"""Run the benchmarks one after the other and keep their result lines in benchmarks/work/results.jsonl.

python -m benchmarks                            those that need a CPU and nothing else
python -m benchmarks peer_min_dalle nano        some of them, by name; those in ON_REQUEST only so
python -m benchmarks decode_step --size mega    one of them, with its own arguments
"""

from __future__ import annotations

import subprocess
import sys
from itertools import takewhile
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
# Only by name: they need a GPU, room for large checkpoints, Ray, or a training run's files (`pictures_in --work DIR`).
ON_REQUEST = ("gpu", "conversion", "janus", "cluster", "pictures_in")
RESULTS = Path(__file__).parent / "work" / "results.jsonl"


def main(given: list[str]) -> int:
    names = list(takewhile((BENCHMARKS + ON_REQUEST).__contains__, given))
    arguments = given[len(names) :]  # of the one that is named
    if arguments and len(names) != 1:
        there_are = f"there are: {', '.join(BENCHMARKS + ON_REQUEST)}; arguments belong to one of them, after its name"
        print(f"unknown benchmark {arguments[0]}; {there_are}", file=sys.stderr)
        return 2
    RESULTS.parent.mkdir(exist_ok=True)
    failed = [name for name in names or BENCHMARKS if not run(name, arguments)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def run(name: str, arguments: list[str]) -> bool:
    """In a process of its own: thread pools and allocators of one benchmark must not touch the next."""
    print("==", name, *arguments, flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    last_line = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for last_line in process.stdout or ():
            print(last_line, end="", flush=True)
    if process.returncode != 0:
        return False
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(last_line)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
