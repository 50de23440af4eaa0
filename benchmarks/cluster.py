"""What a Ray cluster costs and gives: the hop to a replica, two replicas beside one, and what a front pays.

One after the other, on a Ray that is started for it (or runs here already), with nano and with Mini's shape in int8:
- the hop: a picture alone, with four previews, from an engine of this process and from a replica with as many threads;
- throughput: eight clients that ask again as soon as they have their picture, of one replica and of two;
- the front: its processor time for each picture, and how long all replicas take to say how they are.

    python -m benchmarks.cluster [--models nano mini] [--alone 40] [--pictures 60]

Needs the extra `cluster`. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from typing import Any

from benchmarks.checkpoints.prepared import random_model
from benchmarks.continuous_batching import Clients, Drawer
from benchmarks.measuring import machine
from dalle_server.cluster.app import Spec
from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.config import Settings
from dalle_server.dalle_model import load_engine
from dalle_server.generation import Preview
from dalle_server.request import GenerationRequest

CLIENTS = 8
PREVIEWS = 4  # of a picture
POLLS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nano", "mini"], choices=["nano", "mini"])
    parser.add_argument("--alone", type=int, default=40, help="nano's pictures one at a time; Mini draws an eighth")
    parser.add_argument("--pictures", type=int, default=60, help="nano's pictures of all clients; Mini draws half")
    arguments = parser.parse_args()
    connection = Connection("auto")
    try:
        counts = {
            "nano": (arguments.alone, arguments.pictures),
            "mini": (arguments.alone // 8, arguments.pictures // 2),
        }
        models = {model: measured(connection, model, *counts[model]) for model in arguments.models}
    finally:
        connection.close()
    print(json.dumps({"benchmark": "cluster", "models": models, **machine.describe()}))


def measured(connection: Connection, model: str, alone: int, pictures: int) -> dict[str, Any]:
    chosen = {"model_version": "nano"} if model == "nano" else {"model_dir": str(random_model("mini")), "dtype": "int8"}
    spec = Spec(settings={**chosen, "num_threads": 1, "num_slots": CLIENTS}, resources="CPU=1")
    local = load_engine(Settings.model_validate(spec.settings))
    local.start()
    here = alone_s(local, alone)
    local.stop()
    one = on_replicas(connection, model, spec, 1, alone, pictures)
    two = on_replicas(connection, model, spec, 2, 0, pictures)
    added_ms = 1000 * (one["picture_s"] - here["picture_s"])
    first_ms = 1000 * (one["first_preview_s"] - here["first_preview_s"])
    print(f"{model:5} the hop adds {added_ms:.1f} ms a picture (median), {first_ms:.1f} ms to its first preview")
    gain = two["images_per_s"] / one["images_per_s"]
    print(f"{model:5} {one['images_per_s']:.2f} images/s of one replica, {two['images_per_s']:.2f} of two: {gain:.2f}×")
    return {"local": here, "one": one, "two": two, "added_ms": added_ms, "first_preview_added_ms": first_ms}


def on_replicas(
    connection: Connection, model: str, spec: Spec, count: int, alone: int, pictures: int
) -> dict[str, float]:
    spec = replace(spec, replicas=str(count))
    handle = find_or_deploy(f"benchmark-{model}-{os.getpid()}", spec, may_deploy=True)
    engine = ClusterEngine(connection, handle, most_slots=count * CLIENTS, max_waiting_images=64)
    while len(engine.replicas) < count:
        time.sleep(0.1)
    figures = alone_s(engine, alone) if alone else {}
    cpu_s, clients = time.process_time(), Clients(engine, CLIENTS, pictures, think_s=0)
    figures["images_per_s"] = pictures / clients.run()
    figures["front_cpu_ms_per_image"] = 1000 * (time.process_time() - cpu_s) / pictures
    figures["all_replicas_told_ms"] = 1000 * polled_s(connection, engine)
    engine.stop()
    return {name: round(value, 4) for name, value in figures.items()}


def polled_s(connection: Connection, engine: ClusterEngine) -> float:
    """Until all replicas have said how they are."""
    start = time.perf_counter()
    for _ in range(POLLS):
        connection.submit(engine._watch.ask()).result()
    return (time.perf_counter() - start) / POLLS


def alone_s(engine: Drawer, count: int) -> dict[str, float]:
    """Medians of a picture by itself, with previews: until its first one, and until it is done."""
    every = engine.config.picture.num_tokens // (PREVIEWS + 1)
    first_s, picture_s = [], []
    for seed in range(count + 1):
        start = time.perf_counter()
        generation = engine.submit(GenerationRequest.of("a red apple", seed=seed, preview_every=every))
        previewed = [time.perf_counter() - start for event in generation.events() if isinstance(event, Preview)]
        first_s += previewed[:1]
        picture_s.append(time.perf_counter() - start)
    # The first warms up.
    return {"picture_s": statistics.median(picture_s[1:]), "first_preview_s": statistics.median(first_s[1:])}


if __name__ == "__main__":
    main()
