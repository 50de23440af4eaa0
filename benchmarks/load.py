"""What clients see as the server fills up: images/s over concurrency, latency over the load of random arrivals.

Mini's shape, int8, the engine as it serves. First 1, 2, 4 and 8 clients that ask again as soon as they have their
picture. Then Poisson arrivals, which do not wait for each other, at shares of the most images/s that the first part
reached: the latency of a picture from its arrival to its pixels.

    python -m benchmarks.load [--clients 1 2 4 8] [--rounds 3] [--shares 0.3 0.6 0.9] [--pictures 24]

Ends in one JSON line; `python -m benchmarks.plots` draws it.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time

import numpy as np

from benchmarks.checkpoints.prepared import WORK, random_model
from benchmarks.continuous_batching import Clients
from benchmarks.measuring import machine
from dalle_server.checkpoints import open_checkpoint
from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.select import choose_runner
from dalle_server.request import GenerationRequest
from dalle_server.text import TextTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3, help="pictures of each client")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    parser.add_argument("--pictures", type=int, default=24, help="arrivals at each share")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(random_model("mini"))
    runner = choose_runner(
        checkpoint, RunnerSettings(device="cpu", dtype="int8", num_slots=max(arguments.clients), cache_dir=WORK)
    )
    engine = Engine(runner, TextTokenizer.from_checkpoint(checkpoint))
    engine.start()
    try:
        closed = [at_once(engine, clients, arguments.rounds) for clients in arguments.clients]
        most = max(row["images_per_s"] for row in closed)
        opened = [arriving(engine, share, share * most, arguments.pictures) for share in arguments.shares]
    finally:
        engine.stop()
    answer = {
        "benchmark": "load",
        "model": "mini",
        "runner": engine.info.runner,
        "dtype": "int8",
        "closed": closed,
        "poisson": opened,
    }
    print(json.dumps({**answer, **machine.describe()}))


def at_once(engine: Engine, num_clients: int, rounds: int) -> dict[str, float]:
    """So many clients, each with one picture under way at all times."""
    num_pictures = num_clients * rounds
    clients = Clients(engine, num_clients, num_pictures, think_s=0)
    rate = num_pictures / clients.run()
    print(f"{num_clients} client(s)   {rate:.3f} images/s, {_spoken(clients.latencies_s)}", flush=True)
    return {"clients": num_clients, "images_per_s": round(rate, 3), **percentiles(clients.latencies_s)}


def arriving(engine: Engine, share: float, rate: float, num_pictures: int) -> dict[str, float]:
    """Requests at exponentially distributed intervals, `rate` a second on average, whoever is still waiting."""
    latencies_s: list[float] = []
    draw = random.Random(f"arrivals {share}")

    def ask(seed: int) -> None:
        arrived = time.perf_counter()
        engine.submit(GenerationRequest.of(f"picture {seed}", seed=seed)).result()
        latencies_s.append(time.perf_counter() - arrived)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(num_pictures)]
    for thread in threads:
        time.sleep(draw.expovariate(rate))
        thread.start()
    for thread in threads:
        thread.join()
    print(f"load {share:.0%}   {rate:.3f} arrivals/s, {_spoken(latencies_s)}", flush=True)
    return {"share": share, "arrivals_per_s": round(rate, 3), "pictures": num_pictures, **percentiles(latencies_s)}


def percentiles(latencies_s: list[float]) -> dict[str, float]:
    values = np.percentile(latencies_s, [50, 90, 99])
    return {name: round(float(value), 2) for name, value in zip(("p50_s", "p90_s", "p99_s"), values, strict=True)}


def _spoken(latencies_s: list[float]) -> str:
    return ", ".join(f"{name[:3]} {value:.1f} s" for name, value in percentiles(latencies_s).items())


if __name__ == "__main__":
    main()
