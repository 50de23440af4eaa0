"""kill -9 in the middle of a job: the next server ends it, with the bytes that it would have had."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SERVER = """
import sys, threading
from pathlib import Path
from tests.playground.server import Server
server = Server(Path(sys.argv[1]))
server.step_s = float(sys.argv[2])
server.start()
print(server.url, flush=True)
threading.Event().wait()
"""


@contextmanager
def serving(data_dir: Path, step_s: float) -> Iterator[str]:
    """A server in a process of its own, killed at the end of the block."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(data_dir), str(step_s)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def call(url: str, body: dict[str, Any] | None = None) -> bytes:
    with urllib.request.urlopen(url, None if body is None else json.dumps(body).encode(), timeout=30) as reply:
        return bytes(reply.read())


def wait_for(url: str, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60) -> dict[str, Any]:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        job: dict[str, Any] = json.loads(call(url))
        if condition(job):
            return job
        time.sleep(0.02)
    raise AssertionError(f"it did not happen: {job}")


def is_done(job: dict[str, Any]) -> bool:
    return bool(job["status"] == "done")


def is_half_done(job: dict[str, Any]) -> bool:
    return bool(job["images"]) and job["status"] == "running"


def pictures(base: str, job: dict[str, Any]) -> list[bytes]:
    return [call(base + image["url"]) for image in job["images"]]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_a_killed_server_ends_its_jobs_with_the_same_bytes(tmp_path: Path) -> None:
    body = {"prompt": "a red apple", "num_images": 6, "seed": 9}  # on four places: two pictures come later
    check_killed(tmp_path, body)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_so_does_a_job_that_draws_over_a_picture(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 100, 3), dtype=np.uint8))
    mask = Image.new("L", photo.size)
    mask.paste(255, (20, 10, 70, 40))
    image, holes = (base64.b64encode(png(each)).decode() for each in (photo, mask))
    # On four places: all but the last two pictures are chosen before those are written.
    check_killed(
        tmp_path,
        {"prompt": "x", "num_images": 6, "candidates": 2, "strength": 0.6, "seed": 9, "image": image, "mask": holes},
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_so_does_a_job_of_another_shape(tmp_path: Path) -> None:
    """Each picture in several windows, of which the killed server had written some."""
    check_killed(tmp_path, {"prompt": "a red apple", "num_images": 6, "seed": 9, "size": "300x120"})


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_so_does_a_job_of_the_likeliest(tmp_path: Path) -> None:
    """Killed while it draws: nobody knew yet which pictures to keep."""
    body = {"prompt": "a red apple", "num_images": 2, "best_of": 7, "seed": 9}
    check_killed(tmp_path, body, cut=lambda job: job["status"] == "running" and (job["tokens_done"] or 0) > 64)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def check_killed(tmp_path: Path, body: dict[str, Any], cut: Callable[[dict[str, Any]], bool] = is_half_done) -> None:
    with serving(tmp_path / "whole", step_s=0) as base:
        job = json.loads(call(f"{base}/v1/jobs", body))
        expected = pictures(base, wait_for(f"{base}/v1/jobs/{job['id']}", is_done))
    with serving(tmp_path / "cut", step_s=0.02) as base:
        job = json.loads(call(f"{base}/v1/jobs", body))
        wait_for(f"{base}/v1/jobs/{job['id']}", cut)
    with serving(tmp_path / "cut", step_s=0) as base:
        again = wait_for(f"{base}/v1/jobs/{job['id']}", is_done)
        assert pictures(base, again) == expected
