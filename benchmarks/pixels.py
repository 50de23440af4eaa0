"""From a grid of tokens to pixels: each build of the compiled runner and each dtype, in turns in one process.

True shape of Mini (256 tokens, 256×256 px), random weights. Time by the clock, and each thread's processor time,
which on a busy machine says more.

    python -m benchmarks.pixels [--builds auto avx2] [--dtypes int8 fp32] [--rounds 8]

Prints median seconds a picture; ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from benchmarks.checkpoints.prepared import WORK, random_model
from benchmarks.measuring import machine
from dalle_server.checkpoints import open_checkpoint
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.select import choose_runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", nargs="+", default=["auto", "avx2"], help="auto: the best that this processor runs")
    parser.add_argument("--dtypes", nargs="+", choices=("int8", "fp32"), default=["int8", "fp32"])
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    runners = {(build, dtype): painter(build, dtype) for build in arguments.builds for dtype in arguments.dtypes}
    generator = np.random.default_rng(0)
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in runners}
    for _ in range(arguments.rounds):
        for key, runner in runners.items():
            grid = generator.integers(0, runner.config.picture.codebook_size, (1, runner.config.picture.num_tokens))
            times[key].append(timed(runner, grid.astype(np.int32)))
    results = [summary(key, runners[key], found) for key, found in times.items()]
    print(json.dumps({"benchmark": "pixels", "model": "mini", "results": results, **machine.describe()}))


def painter(build: str, dtype: str) -> Runner:
    checkpoint = open_checkpoint(random_model("mini"))
    return choose_runner(
        checkpoint, RunnerSettings("compiled", dtype, device="cpu", num_slots=1, cache_dir=WORK, cpu_build=build)
    )


def timed(runner: Runner, grid: np.ndarray) -> tuple[float, float]:
    """→ seconds by the clock, seconds of processor time for each of the runner's threads."""
    wall, processor = time.perf_counter(), time.process_time()
    runner.detokenize(grid)
    return time.perf_counter() - wall, (time.process_time() - processor) / (runner.info.num_threads or 1)


def summary(
    key: tuple[str, str], runner: Runner, times: list[tuple[float, float]]
) -> dict[str, str | int | float | None]:
    build, dtype = key
    wall_s, processor_s = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{build:10} {dtype:5} {wall_s:6.3f} s, {processor_s:6.3f} s of each thread's processor time", flush=True)
    return {
        "build": build,
        "dtype": dtype,
        "threads": runner.info.num_threads,
        "wall_s": round(wall_s, 3),
        "least_wall_s": round(min(wall for wall, _ in times), 3),
        "processor_s": round(processor_s, 3),
    }


if __name__ == "__main__":
    main()
