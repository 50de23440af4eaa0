"""The CPU runner by its dtype, and builds of the compiled code by name."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.engine.runners.cpu.compiled.builds import BUILDS, NAMES
from dalle_server.engine.runners.cpu.compiled.library import load_library, why_not
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.load import compiled_parts, load_cpu_runner
from dalle_server.engine.runners.cpu.runner import CpuRunner

# Skipped where nothing is compiled for the processor. Where it should have been and was not, tests fail.
_has_none = platform.machine().lower() not in (*BUILDS, "amd64", "arm64")
needs_compiled = pytest.mark.skipif(_has_none, reason="no build of the compiled code is for this processor")
RUNNABLE = [name for name in NAMES if why_not(name) is None]  # builds of the compiled code, the best first
FORMATS = ["int8", "fp32"]


def cpu_runner(checkpoint: Checkpoint, dtype: str, **options: Any) -> CpuRunner:
    return load_cpu_runner(checkpoint, dtype=dtype, **options)


def without_pixels(checkpoint: Checkpoint, dtype: str, build: str, num_slots: int, num_threads: int = 2) -> CpuRunner:
    """Texts and steps of one build of the compiled code: nothing else is loaded, so it is ready at once."""
    texts, step, draw = compiled_parts(load_library(build), Team(num_threads), checkpoint, None, dtype, num_slots)
    info = RunnerInfo("compiled", "cpu", "", dtype, "", {}, build=build)
    return CpuRunner(checkpoint.config, info, num_slots, texts, step, NoPixels(), draw)


class NoPixels:
    def decode(self, grid: NDArray[np.int32], *, wraps: bool = False) -> NDArray[np.uint8]:
        raise AssertionError("no pixels are asked for")

    def encode(self, picture: NDArray[np.uint8]) -> NDArray[np.int32]:
        raise AssertionError("no picture is given")

    def close(self) -> None: ...
