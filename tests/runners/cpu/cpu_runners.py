"""The runners of a CPU by the form of their weights: a dtype of OpenVINO's, or "native int8", "native fp32"."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.compiled.library import LIBRARY, why_not
from dalle_server.engine.runners.cpu.compiled.runner import NativeRunner
from dalle_server.engine.runners.cpu.openvino.runner import OpenVINORunner

# Skipped where the processor cannot run it. Where it should have been compiled and was not, tests fail.
_may_lack = LIBRARY.exists() or platform.machine() not in ("x86_64", "AMD64")
needs_native = pytest.mark.skipif(why_not() is not None and _may_lack, reason=str(why_not()))
NATIVE = [pytest.param(name, marks=needs_native) for name in ("native int8", "native fp32")]
FORMATS = ["fp32", "bf16", "int8", *NATIVE]


def cpu_runner(checkpoint: Checkpoint, form: str, **options: Any) -> OpenVINORunner:
    runner = NativeRunner if form.startswith("native") else OpenVINORunner
    return runner(checkpoint, dtype=form.removeprefix("native "), **options)
