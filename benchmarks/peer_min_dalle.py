"""Our runners beside the PyPI package min-dalle 0.4.11: a picture of true Mini shape on the CPU, same run.

All draw from random weights (speed does not depend on them) and the same 12 text tokens, guided, top-k 256:
text ids → 256 tokens → 256×256 pixels, weights already loaded. min-dalle computes the cross-attention's
keys and values anew in every step and attends over all 256 positions; that is the peer's own code, unchanged.
Contestants take turns, each in a process of its own, so that a busy machine disturbs all alike.

    python -m benchmarks.peer_min_dalle [--images 1 4] [--rounds 1] [--steps 256] [--clock wall] […]

`--steps N` measures only N of the 256 steps, spread over the picture, and scales: for a machine in a hurry.
`--clock processor` counts processor time with one thread instead: for a machine that others are using.
Prints per contestant the median ms per step and seconds per picture, the ratio of min-dalle's to it
("times faster"), and ends in one JSON line with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.dalle_bart import write_random_native
from benchmarks.checkpoints.sizes import SIZES
from benchmarks.measuring import machine
from benchmarks.measuring.contestants import CLOCKS, CONTESTANTS, NUM_STEPS

WORK = Path(__file__).parent / "work"
PEER = "min-dalle fp32"
MINI_DIR = WORK / "random-mini"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4], help="pictures per call; squares for the peer")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each contestant")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="steps measured of each picture")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    if not (MINI_DIR / "config.json").exists():
        print("writing a random checkpoint of Mini's shape …", flush=True)
        write_random_native(MINI_DIR, SIZES["mini"])
    names = sorted({PEER, *arguments.contestants}, key=list(CONTESTANTS).index)
    how = (arguments.rounds, arguments.steps, arguments.clock)
    results = [race(names, num_images, *how) for num_images in arguments.images]
    answer = {"benchmark": "peer_min_dalle", "model": "mini", "clock": arguments.clock}
    answer |= {"steps_measured": arguments.steps, "results": results}
    print(json.dumps({**answer, **machine.describe()}))


def race(names: list[str], num_images: int, rounds: int, num_steps: int, clock: str) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            runs[name].append(turn(name, num_images, num_steps, clock))
    cannot = {name: found[0]["cannot"] for name, found in runs.items() if "cannot" in found[0]}
    for name, reason in cannot.items():
        print(f"{num_images} image(s)  {name:18} cannot run here: {reason}", flush=True)
    figures = {name: summary(found, num_images) for name, found in runs.items() if name not in cannot}
    for name, figure in figures.items():
        for key in ("ms_per_step", "s_per_picture"):
            figure[f"{key}_ratio"] = round(figures[PEER][key] / figure[key], 2)
        print(
            f"{num_images} image(s)  {name:18} {figure['ms_per_step']:7.1f} ms/step  {figure['s_per_picture']:6.2f}"
            f" s/picture  ×{figure['s_per_picture_ratio']:.2f}  peak {figure['peak_gb']:.2f} GB",
            flush=True,
        )
    return {"num_images": num_images, "contestants": figures, "cannot": cannot}


def turn(name: str, num_images: int, num_steps: int, clock: str) -> dict[str, Any]:
    """One process, nothing warmed up: a call to warm up would cost the peer a minute, and medians forgive it."""
    how = (name, str(MINI_DIR), str(num_images), str(num_steps), clock)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.measuring.contestants", *how]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


def summary(runs: list[dict[str, Any]], num_images: int) -> dict[str, float]:
    """`runs`: what benchmarks.measuring.contestants printed, one for each turn."""

    def call_s(run: dict[str, Any]) -> float:
        steps_s: list[float] = run["steps_s"]
        # The first steps also fetch the weights from disk: of a few steps only the median can be scaled.
        decoding_s = sum(steps_s) if len(steps_s) == NUM_STEPS else NUM_STEPS * statistics.median(steps_s)
        return float(run["text_s"] + decoding_s + run["pixels_s"])

    return {
        "ms_per_step": round(1000 * statistics.median(step_s for run in runs for step_s in run["steps_s"]), 2),
        "s_per_picture": round(statistics.median(map(call_s, runs)) / num_images, 3),
        "text_s": round(statistics.median(run["text_s"] for run in runs), 3),
        "pixels_s": round(statistics.median(run["pixels_s"] for run in runs), 3),
        "load_s": round(statistics.median(run["load_s"] for run in runs), 2),
        "peak_gb": round(max(run["peak_bytes"] for run in runs) / 1e9, 2),
    }


if __name__ == "__main__":
    main()
