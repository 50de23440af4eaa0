"""Kill −9 a replica every so often, under load: is anything lost, are the bytes those of a quiet run, and when are all
replicas back?

    python -m tests.cluster.chaos [--minutes 5] [--every_s 30] [--replicas 2] [--clients 4]

nano, on a Ray of its own. Exit code 1 when a request failed or a byte differs. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.ray_here import processes_of, ray_cluster  # before ray: it sets what Ray says of itself

# isort: split
from dalle_server.cluster.app import Spec
from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.dalle_model import DalleModel
from dalle_server.errors import DalleServerError
from dalle_server.generation import ImageReady
from dalle_server.request import GenerationRequest

APP = "chaos"
PICTURES = 4  # a request
SEEDS = 20
RECOVERY_S = 60.0  # what is promised


@dataclass
class Load:
    """Clients that ask for what a quiet engine has drawn before, and compare."""

    engine: ClusterEngine
    quiet: dict[int, list[bytes]]
    done: int = 0
    faults: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def ask(self, number: int) -> None:
        chosen = random.Random(number)
        while not self.over.is_set():
            seed, start = chosen.randrange(SEEDS), time.monotonic()
            told: list[int] = []
            try:
                generation = self.engine.submit(GenerationRequest.of("a red apple", PICTURES, seed=seed))
                told = [event.image.index for event in generation.events() if isinstance(event, ImageReady)]
                images = generation.result()
            except DalleServerError as error:
                self.faults.append(f"{type(error).__name__}: {error.message}")
                continue
            if [image.pixels.tobytes() for image in images] != self.quiet[seed]:
                self.faults.append(f"seed {seed}: other bytes")
            if sorted(told) != list(range(PICTURES)):
                self.faults.append(f"seed {seed}: told were {told}")
            self.done += 1
            self.latencies_s.append(time.monotonic() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--every_s", type=float, default=30.0)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with ray_cluster() as address:
        answer = chaos(Connection(address), arguments)
    print(json.dumps(answer))
    return 1 if answer["faults"] else 0


def chaos(connection: Connection, arguments: Any) -> dict[str, Any]:
    with DalleModel("nano", num_threads=1) as model:
        quiet = {
            seed: [image.tobytes() for image in model.generate_images("a red apple", PICTURES, seed=seed)]
            for seed in range(SEEDS)
        }
    settings = {"model_version": "nano", "num_threads": 1}
    spec = Spec(settings=settings, replicas=str(arguments.replicas), resources="CPU=1")
    handle = find_or_deploy(APP, spec, may_deploy=True)
    engine = ClusterEngine(connection, handle, most_slots=16 * arguments.replicas, max_waiting_images=64)
    load = Load(engine, quiet)
    clients = [threading.Thread(target=load.ask, args=(number,)) for number in range(arguments.clients)]
    for client in clients:
        client.start()
    recoveries: list[float] = []
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        time.sleep(arguments.every_s)
        recoveries.append(kill_one(engine, arguments.replicas))
        print(f"{len(recoveries)} killed, all back after {recoveries[-1]:.1f} s; {load.done} requests, {load.faults}")
    load.over.set()
    for client in clients:
        client.join()
    engine.stop()
    connection.close()
    return {
        "chaos": APP,
        "minutes": arguments.minutes,
        "kills": len(recoveries),
        "requests": load.done,
        "pictures": PICTURES * load.done,
        "faults": load.faults,
        "recovery_s": {"median": round(statistics.median(recoveries), 1), "most": round(max(recoveries), 1)},
        "recovered_in_time": max(recoveries) < RECOVERY_S,
        "slowest_request_s": round(max(load.latencies_s), 1),
    }


def kill_one(engine: ClusterEngine, count: int) -> float:
    """Seconds until as many are there again, the killed one not among them."""
    before = {each.replica for each in engine.replicas}
    random.choice(processes_of(APP)).kill()
    start = time.monotonic()
    while len(engine.replicas) < count or {each.replica for each in engine.replicas} == before:
        time.sleep(0.1)
    return time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
