"""The long faults, with full figures, against `dalle-server serve` with nano: too slow for every run of the tests.

    python -m tests.web.serving.soak [load] [overload] [slow_clients] [kills]      (`make soak`; about four minutes)

load          64 clients for 2 minutes, a tenth of whose requests leave: no answer but 200 and 503, every request
              ended once, and descriptors, threads and memory come back
overload      ten times four times as many requests at once as slots and queue hold: how soon the refused are told, and
              /health until the last of them is
slow_clients  500 connections that drip headers and 70 that never read: /health meanwhile
kills         200 times kill -9 while pictures are saved: files are whole or absent

Prints what it measured, one JSON line each; a broken promise is an assertion. Linux: reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dalle_server.pictures.codec import ImageFormat, encode_image
from dalle_server.pictures.saving import save_pictures
from tests.web.server_process import ServerProcess, post_bytes
from tests.web.serving import burst
from tests.web.serving.test_load import outcomes, status_of

CLIENTS, LOAD_S, LEAVING = 64, 120.0, 0.1
WARM_UP_S = 20.0  # until each of some 160 threads has worked: the allocator keeps a cache for every one
DRIPPING, DEAF = 500, 70
KILLS = 200
BURSTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", help=f"default: all of {' '.join(FAULTS)}")
    for name in parser.parse_args().faults or FAULTS:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps({"fault": name, **FAULTS[name](Path(directory))}), flush=True)


def load(directory: Path) -> dict[str, Any]:
    with ServerProcess(directory, "--model_version", "nano", real=True) as server:
        server.ready()
        _play(server, seconds=WARM_UP_S)
        _settle(server)
        before = _footprint(server)
        seen, healths = _play(server, seconds=LOAD_S)
        _settle(server)
        after = _footprint(server)
        ended = outcomes(server)
    assert set(seen) <= {200, 503, "left"} and ended["failed"] == 0
    assert after["files"] <= before["files"] + 2 and after["threads"] <= before["threads"] + 2
    assert after["rss_mb"] < 1.05 * before["rss_mb"], (before, after)
    counts = {str(status): count for status, count in seen.items()}
    return {"requests": counts, "before": before, "after": after, "health_ms": _milliseconds(healths)}


def overload(directory: Path) -> dict[str, Any]:
    """Half of the bursts find an idle server, half of them one that has just begun the pictures of the one before."""
    told: list[burst.Told] = []
    healths: list[float] = []
    with ServerProcess(directory, "--model_version", "nano", real=True) as server:
        server.ready()
        info = server.get("/v1/info")[1]
        at_once = 4 * (info["limits"]["num_slots"] + info["limits"]["max_waiting_images"])
        for _ in range(BURSTS // 2):
            bursts = [burst.Burst(server.port, at_once) for _ in range(2)]
            seen: list[tuple[float, float]] = []
            pulse = threading.Thread(target=_pulse, args=(server, bursts[0], seen))
            pulse.start()
            for clients in bursts:
                clients.start()
                time.sleep(0.5)
            for clients in bursts:
                told += (now := clients.told())
                begun, last = min(begun for _, begun, _ in now), max(at for status, _, at in now if status == 503)
                healths += [seconds for start, seconds in seen if start < last and begun < start + seconds]
            pulse.join()
            _settle(server)
    assert len(told) == at_once * BURSTS and {status for status, _, _ in told} == {200, 503}
    refused = [at - begun for status, begun, at in told if status == 503]
    return {
        "bursts": BURSTS,
        "at_once": at_once,
        "refused": len(refused),
        "refused_ms": _milliseconds(refused),
        "healths": len(healths),
        "health_ms": _milliseconds(healths),
    }


def _pulse(server: ServerProcess, clients: burst.Burst, seen: list[tuple[float, float]]) -> None:
    """(begun, seconds) of each /health while the clients are there."""
    while not clients.is_over:
        start = time.monotonic()
        assert server.get("/health")[0] == 200
        seen.append((start, time.monotonic() - start))
        time.sleep(0.005)


def slow_clients(directory: Path) -> dict[str, Any]:
    with ServerProcess(directory, "--model_version", "nano", real=True) as server:
        server.ready()
        dripping = [server.raw(b"POST /dalle HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(DRIPPING)]
        deaf = [server.raw(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 5) for _ in range(DEAF)]
        end = time.monotonic() + 10

        def over() -> bool:
            for connection in dripping[:: DRIPPING // 25]:
                with contextlib.suppress(OSError):  # the server let it go, for others of its address
                    connection.sendall(b"a")
            return time.monotonic() > end

        healths = _health_until(server, over)
        for connection in dripping + deaf:
            connection.close()
    return {"dripping": DRIPPING, "deaf": DEAF, "health_ms": _milliseconds(healths)}


def kills(directory: Path) -> dict[str, Any]:
    """Children that do nothing but save, killed at random moments: forked, so that each costs milliseconds."""
    picture = encode_image(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8), ImageFormat.PNG)
    dice = random.Random(0)
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            while True:
                save_pictures(directory, "a red apple", [picture] * 4, "png")
        time.sleep(dice.uniform(0.001, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    saved = [path for path in directory.rglob("*.png") if not path.name.startswith(".")]
    partial = sum(path.read_bytes() != picture for path in saved)
    assert partial == 0
    temporaries = sum(path.name.endswith(".tmp") for path in directory.rglob(".*"))
    return {"kills": KILLS, "files": len(saved), "partial": partial, "temporaries_left": temporaries}


FAULTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "load": load,
    "overload": overload,
    "slow_clients": slow_clients,
    "kills": kills,
}


def _play(server: ServerProcess, *, seconds: float) -> tuple[Counter[int | str], list[float]]:
    """CLIENTS clients for so long; what they were answered, and the seconds that /health took meanwhile."""
    seen: Counter[int | str] = Counter()
    end = time.monotonic() + seconds

    def play(client: int) -> None:
        dice = random.Random(client)
        while time.monotonic() < end:
            body = {"text": f"client {client}", "num_images": dice.randint(1, 3)}
            if dice.random() < LEAVING:
                server.raw(post_bytes("/dalle", body)).close()
                seen["left"] += 1
                continue
            status = status_of(server, body)
            seen[status] += 1
            if status == 503:
                time.sleep(1)  # as Retry-After asks

    players = [threading.Thread(target=play, args=(client,)) for client in range(CLIENTS)]
    for player in players:
        player.start()
    healths = _health_until(server, lambda: not any(player.is_alive() for player in players))
    return seen, healths


def _health_until(server: ServerProcess, over: Callable[[], bool]) -> list[float]:
    seconds = []
    while not over():
        start = time.perf_counter()
        assert server.get("/health")[0] == 200
        seconds.append(time.perf_counter() - start)
        time.sleep(0.05)
    return seconds


def _settle(server: ServerProcess) -> None:
    server.wait_for(lambda: server.metric("dalle_running_images") == 0 == server.metric("dalle_waiting_images"))
    time.sleep(2)  # connections of those who left are found and closed


def _footprint(server: ServerProcess) -> dict[str, int]:
    process = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    return {
        "files": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "rss_mb": int(status["VmRSS"].split()[0]) // 1024,
    }


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    values = 1000 * np.percentile(seconds, [50, 99]) if seconds else []
    return {name: round(float(value), 1) for name, value in zip(("p50", "p99"), values, strict=bool(seconds))}


if __name__ == "__main__":
    main()
