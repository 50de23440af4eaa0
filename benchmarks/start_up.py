"""From the command to a server that can draw, and the most memory on the way.

Each model starts in a process of its own, as `dalle-server serve` does: imports, opening the checkpoint, the
runner, the engine's self-test; then one picture. Each is started twice: the first start packs the weights and
keeps the result, the next one finds it. Peak memory is the largest resident set, mapped files included.

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

MODELS = ("mini int8", "mini fp32", "mega int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    arguments = parser.parse_args()
    results = {}
    for model in arguments.models:
        size, dtype = model.split()
        directory = random_model(size)
        with tempfile.TemporaryDirectory() as cache:
            results[model] = {which: start(directory, dtype, cache) for which in ("first", "next")}
        for which, figures in results[model].items():
            print(f"{model:10} {which:5} {figures}", flush=True)
    print(json.dumps({"benchmark": "start_up", "results": results, **machine.describe()}))


def start(directory: Path, dtype: str, cache: str) -> dict[str, Any]:
    once = "benchmarks.measuring.start_up_once"
    command = [sys.executable, "-m", once, str(directory), dtype, cache, str(time.time())]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
