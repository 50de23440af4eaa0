"""One decode step of the CPU runner beside the time that reading its weights once takes: the limit.

True shapes, random weights, every picture at a random position, sampling included. Reads of as many bytes
as a step's weights have, by as many threads, are taken in turns with the steps, so that a busy machine slows
both; ratios of medians count, not times.

    python -m benchmarks.decode_step [--size mini|mega] [--dtype int8] [--cpu_build auto] [--images 1 4 …]

Prints ms per step and the ratio to the limit for each number of images; ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.checkpoints.prepared import WORK, random_model
from benchmarks.measuring import machine
from benchmarks.measuring.contestants import SAMPLING, padded, text_ids
from dalle_server.checkpoints import open_checkpoint
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import Runner, StepRow
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.cpu.packing import products
from dalle_server.engine.runners.cpu.quantise import group_shape
from dalle_server.engine.runners.select import choose_runner
from dalle_server.request import ImageKey

STEPS_A_ROUND = 6
BYTES = {"fp32": 4, "bf16": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("mini", "mega"), default="mini")
    parser.add_argument("--runner", choices=("auto", "compiled"), default="auto")
    parser.add_argument("--dtype", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--cpu_build", default="auto", help="a lesser build than this processor could run, e.g. avx2")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(random_model(arguments.size))
    runner = choose_runner(
        checkpoint,
        RunnerSettings(
            arguments.runner,
            arguments.dtype,
            device="cpu",
            num_slots=max(arguments.images),
            cache_dir=WORK,
            cpu_build=arguments.cpu_build,
        ),
    )
    num_threads = runner.info.num_threads or 1
    weight_bytes = step_bytes(checkpoint, arguments.dtype)
    read = reader(weight_bytes, num_threads)
    results = [measure(runner, read, num_images, arguments.rounds) for num_images in arguments.images]
    answer = {
        "benchmark": "decode_step",
        "model": arguments.size,
        "runner": runner.info.runner,
        "dtype": arguments.dtype,
        "cpu_build": arguments.cpu_build,
        "threads": num_threads,
        "weight_mb": round(weight_bytes / 1e6, 1),
        "results": results,
    }
    print(json.dumps({**answer, **machine.describe()}))


def step_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """What one step must read: the decoder's products, int8 with their scales."""
    total = 0
    for product in products(checkpoint.config).values():
        if not product.of_step:
            continue
        shapes = [checkpoint.transformer[part].shape for part in product.names]
        rows = product.rows or sum(shape[0] for shape in shapes)
        groups, group = group_shape(shapes[0][1])
        total += rows * (groups * (group + 4) if dtype == "int8" else shapes[0][1] * BYTES[dtype])
    return total


def reader(num_bytes: int, num_threads: int) -> Callable[[], float]:
    """A call that reads so many bytes with so many threads → seconds."""
    parts = np.array_split(np.ones(num_bytes // 8, np.int64), num_threads)
    pool = ThreadPoolExecutor(num_threads)

    def read() -> float:
        start = time.perf_counter()
        list(pool.map(np.max, parts))
        return time.perf_counter() - start

    return read


def measure(runner: Runner, read: Callable[[], float], num_images: int, rounds: int) -> dict[str, float]:
    generator = np.random.default_rng(num_images)
    encoded = runner.encode([padded(text_ids()), padded([0, 2])])
    for slot in range(num_images):
        runner.admit(slot, *encoded)
    steps, reads = [], []
    for _ in range(rounds):
        for _ in range(STEPS_A_ROUND):
            positions = generator.integers(0, runner.config.picture.num_tokens, num_images).tolist()
            rows = [StepRow(slot, position, ImageKey(7, slot), SAMPLING) for slot, position in enumerate(positions)]
            start = time.perf_counter()
            runner.step(rows).result()
            steps.append(time.perf_counter() - start)
        reads += [read() for _ in range(STEPS_A_ROUND)]
    step_ms, limit_ms = 1000 * statistics.median(steps), 1000 * statistics.median(reads)
    best_ms, best_limit_ms = 1000 * min(steps), 1000 * min(reads)
    print(
        f"{num_images} image(s)  {step_ms:7.2f} ms/step, limit {limit_ms:6.2f}: ×{step_ms / limit_ms:.2f}"
        f"   best {best_ms:7.2f} and {best_limit_ms:6.2f}: ×{best_ms / best_limit_ms:.2f}",
        flush=True,
    )
    return {
        "num_images": num_images,
        "step_ms": round(step_ms, 2),
        "limit_ms": round(limit_ms, 2),
        "ratio": round(step_ms / limit_ms, 2),
        "best_step_ms": round(best_ms, 2),
        "best_limit_ms": round(best_limit_ms, 2),
    }


if __name__ == "__main__":
    main()
