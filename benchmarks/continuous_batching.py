"""Pictures a second with clients that come at random moments, beside the same pictures one at a time.

Mini's shape, int8, the engine as it serves. One at a time: a client asks, waits, asks again. Continuous batching:
8 clients, each thinking for an exponentially distributed while between its pictures (Poisson arrivals), so that
requests join and leave in the middle of each other. Every picture's bytes must equal those of its twin made alone.

    python -m benchmarks.continuous_batching [--clients 8] [--pictures 24] [--alone 4] [--think_s 1]

Prints images/s, the ratio, and latency percentiles; ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from typing import Protocol

import numpy as np

from benchmarks.checkpoints.prepared import WORK, random_model
from benchmarks.measuring import machine
from dalle_server.checkpoints import open_checkpoint
from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.select import choose_runner
from dalle_server.generation import Generation
from dalle_server.models.config import ModelConfig
from dalle_server.request import GenerationRequest
from dalle_server.text import TextTokenizer


class Drawer(Protocol):
    """An engine, of this process or of a cluster."""

    @property
    def config(self) -> ModelConfig: ...

    def submit(self, request: GenerationRequest) -> Generation: ...


class Clients:
    """Threads that draw the pictures with the seeds 0…n-1, noting when each was asked for and done."""

    def __init__(self, engine: Drawer, num_clients: int, num_pictures: int, think_s: float):
        self._engine, self._think_s = engine, think_s
        self._seeds = iter(range(num_pictures))
        self._lock = threading.Lock()
        self.pixels: dict[int, bytes] = {}
        self.latencies_s: list[float] = []
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(num_clients)]

    def run(self) -> float:
        """Seconds from the first request to the last picture."""
        start = time.perf_counter()
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        return time.perf_counter() - start

    def _client(self, number: int) -> None:
        thinking = random.Random(number)
        while True:
            with self._lock:
                seed = next(self._seeds, None)
            if seed is None:
                return
            if self._think_s:
                time.sleep(thinking.expovariate(1 / self._think_s))
            start = time.perf_counter()
            (image,) = self._engine.submit(GenerationRequest.of(f"picture {seed}", seed=seed)).result()
            with self._lock:
                self.latencies_s.append(time.perf_counter() - start)
                self.pixels[seed] = image.pixels.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--alone", type=int, default=4, help="pictures of the one-at-a-time run")
    parser.add_argument("--think_s", type=float, default=1.0, help="mean pause of a client")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(random_model("mini"))
    runner = choose_runner(
        checkpoint, RunnerSettings(device="cpu", dtype="int8", num_slots=arguments.clients, cache_dir=WORK)
    )
    engine = Engine(runner, TextTokenizer.from_checkpoint(checkpoint))
    engine.start()
    try:
        alone = Clients(engine, 1, arguments.alone, think_s=0)
        alone_s = alone.run() / arguments.alone
        together = Clients(engine, arguments.clients, arguments.pictures, arguments.think_s)
        together_s = together.run() / arguments.pictures
    finally:
        engine.stop()
    if any(together.pixels[seed] != pixels for seed, pixels in alone.pixels.items()):
        raise SystemExit("a picture made in company differs from the one made alone")
    percentiles = dict(zip(("p50", "p90", "p99"), np.percentile(together.latencies_s, [50, 90, 99]), strict=True))
    print(f"one at a time {1 / alone_s:.3f} images/s, {arguments.clients} clients {1 / together_s:.3f} images/s")
    answer = {
        "benchmark": "continuous_batching",
        "model": "mini",
        "runner": engine.info.runner,
        "dtype": "int8",
        "clients": arguments.clients,
        "alone_images_per_s": round(1 / alone_s, 3),
        "together_images_per_s": round(1 / together_s, 3),
        "ratio": round(alone_s / together_s, 2),
        "alone_latency_s": round(float(np.median(alone.latencies_s)), 2),
        "latency_s": {name: round(float(value), 2) for name, value in percentiles.items()},
        "determinism": engine.determinism,
    }
    print(json.dumps({**answer, **machine.describe()}))


if __name__ == "__main__":
    main()
