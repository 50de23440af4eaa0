"""The runners of a CPU by the form of their weights: a dtype of OpenVINO's, or "compiled int8", "compiled fp32"."""

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
from dalle_server.engine.runners.cpu.openvino.compile import Compiler
from dalle_server.engine.runners.cpu.runner import CpuRunner

# Skipped where nothing is compiled for the processor. Where it should have been and was not, tests fail.
_has_none = platform.machine().lower() not in (*BUILDS, "amd64", "arm64")
needs_compiled = pytest.mark.skipif(_has_none, reason="no build of the compiled code is for this processor")
RUNNABLE = [name for name in NAMES if why_not(name) is None]  # builds of the compiled code, the best first
COMPILED = [pytest.param(name, marks=needs_compiled) for name in ("compiled int8", "compiled fp32")]
needs_bf16 = pytest.mark.skipif(not Compiler(1).has_bf16, reason="needs a CPU with bf16 instructions")
FORMATS = ["fp32", pytest.param("bf16", marks=needs_bf16), "int8", *COMPILED]


def cpu_runner(checkpoint: Checkpoint, form: str, **options: Any) -> CpuRunner:
    runner = "compiled" if form.startswith("compiled") else "openvino"
    return load_cpu_runner(checkpoint, runner, dtype=form.removeprefix("compiled "), **options)


def without_pixels(checkpoint: Checkpoint, dtype: str, build: str, num_slots: int, num_threads: int = 2) -> CpuRunner:
    """Texts and steps of one build of the compiled code: nothing else is loaded, so it is ready at once."""
    texts, step, draw, name = compiled_parts(load_library(build), Team(num_threads), checkpoint, None, dtype, num_slots)
    assert name == build
    info = RunnerInfo("compiled", "cpu", "", dtype, "", {}, build=name)
    return CpuRunner(checkpoint.config, info, num_slots, texts, step, NoPixels(), draw)


class NoPixels:
    def decode(self, grid: NDArray[np.int32]) -> NDArray[np.uint8]:
        raise AssertionError("no pixels are asked for")

    def encode(self, picture: NDArray[np.uint8]) -> NDArray[np.int32]:
        raise AssertionError("no picture is given")

    def close(self) -> None: ...
