"""The runners of a CPU by the form of their weights: a dtype of OpenVINO's, or "compiled int8", "compiled fp32"."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.compiled.library import LIBRARY, why_not
from dalle_server.engine.runners.cpu.load import load_cpu_runner
from dalle_server.engine.runners.cpu.runner import CpuRunner

# Skipped where the processor cannot run it. Where it should have been compiled and was not, tests fail.
_may_lack = LIBRARY.exists() or platform.machine() not in ("x86_64", "AMD64")
needs_compiled = pytest.mark.skipif(why_not() is not None and _may_lack, reason=str(why_not()))
COMPILED = [pytest.param(name, marks=needs_compiled) for name in ("compiled int8", "compiled fp32")]
FORMATS = ["fp32", "bf16", "int8", *COMPILED]


def cpu_runner(checkpoint: Checkpoint, form: str, **options: Any) -> CpuRunner:
    runner = "compiled" if form.startswith("compiled") else "openvino"
    return load_cpu_runner(checkpoint, runner, dtype=form.removeprefix("compiled "), **options)
