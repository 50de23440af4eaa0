"""From the command to something that can draw, to its first picture, and the most memory on the way.

server   `dalle-server serve` itself, until /ready says so; then POST /dalle
engine   the engine alone, which a peer without a server is compared with: imports, opening the checkpoint, the
         runner, the engine's self-test; then one picture

Each in a process of its own, and twice: the first start packs the weights and keeps the result, the next one finds
it. Peak memory is the largest resident set, mapped files included.

    python -m benchmarks.start_up [--models "mini int8" "mini fp32" "mega int8"]

Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.prepared import random_model
from benchmarks.measuring import machine
from benchmarks.measuring.served_once import served_once

MODELS = ("mini int8", "mini fp32", "mega int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    arguments = parser.parse_args()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for model in arguments.models:
        size, dtype = model.split()
        results[model] = started(random_model(size), dtype)
        for how, figures in results[model].items():
            print(f"{model:10} {how:12} {figures}", flush=True)
    print(json.dumps({"benchmark": "start_up", "results": results, **machine.describe()}))


def started(directory: Path, dtype: str) -> dict[str, dict[str, Any]]:
    """Both ways, each with a cache of its own that is empty at first."""
    found = {}
    for what, start in (("server", served_once), ("engine", engine_alone)):
        with tempfile.TemporaryDirectory() as cache:
            for which in ("first", "next"):
                found[f"{what}, {which}"] = start(directory, dtype, Path(cache))
    return found


def engine_alone(directory: Path, dtype: str, cache: Path) -> dict[str, Any]:
    once = "benchmarks.measuring.start_up_once"
    command = [sys.executable, "-m", once, str(directory), dtype, str(cache), str(time.time())]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
