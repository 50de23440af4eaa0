"""What replicas of the tests load: engines of a runner without weights, slow enough to be killed in the middle."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from dalle_server.cluster.app import Spec
from dalle_server.cluster.replica import Load
from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.errors import WeightsNotFound
from tests.fake_runner import FakeRunner, FakeTokenizer

DIGEST = "a" * 64
SPEC = Spec(settings={"num_slots": 4}, replicas="2", resources="CPU=0.5", front_lease_s=4.0)
SLOW = replace(SPEC, replicas="1", max_waiting_images=1)


def fake(settings: Settings, *, digest: str, device_file: str, step_s: float, crash_file: str) -> Engine:
    device_name = Path(device_file).read_text() if device_file else "no device"
    runner = FakeRunner(num_slots=settings.num_slots or 4)
    runner.on_detokenize = lambda grids: setattr(runner, "step_s", step_s)  # once it is warm
    runner.info = type(runner.info)(
        "fake", "cpu", device_name, "fp32", "asked for by a test", {}, features=runner.info.features
    )
    if crash_file:
        runner.on_step = lambda rows: crash(Path(crash_file))
    return Engine(
        runner,
        FakeTokenizer(),
        digest=digest,
        max_waiting_images=settings.max_waiting_images,
        make_runner=partial(restarted, Path(crash_file)) if crash_file else None,
    )


def crash(file: Path) -> None:
    if file.exists():
        raise RuntimeError("asked for by a test")


def restarted(file: Path) -> FakeRunner:
    """What loading it again takes: until the file is gone."""
    while file.exists():
        time.sleep(0.01)
    return FakeRunner(num_slots=4)


def loading(digest: str = DIGEST, device_file: str = "", step_s: float = 0.02, crash_file: str = "") -> Load:
    """Of 16 steps a picture. The digest stands for the weights alone; `device_file` says what it runs on. While
    there is a `crash_file` it crashes, and does not restart.
    """
    return partial(fake, digest=digest, device_file=device_file, step_s=step_s, crash_file=crash_file)


def unloadable(settings: Settings) -> Engine:
    raise WeightsNotFound("there are none here")
