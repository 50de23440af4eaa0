"""What replicas of the tests load: engines of a runner without weights, slow enough to be killed in the middle."""

from __future__ import annotations

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


def fake(settings: Settings, *, digest: str, device_file: str, step_s: float) -> Engine:
    device_name = Path(device_file).read_text() if device_file else "no device"
    runner = FakeRunner(num_slots=settings.num_slots or 4)
    runner.on_detokenize = lambda grids: setattr(runner, "step_s", step_s)  # once it is warm
    runner.info = type(runner.info)(
        "fake", "cpu", device_name, "fp32", "asked for by a test", {}, features=runner.info.features
    )
    return Engine(runner, FakeTokenizer(), digest=digest, max_waiting_images=settings.max_waiting_images)


def loading(digest: str = DIGEST, device_file: str = "", step_s: float = 0.02) -> Load:
    """Of 16 steps a picture. The digest stands for the weights alone; `device_file` says what it runs on."""
    return partial(fake, digest=digest, device_file=device_file, step_s=step_s)


def unloadable(settings: Settings) -> Engine:
    raise WeightsNotFound("there are none here")
