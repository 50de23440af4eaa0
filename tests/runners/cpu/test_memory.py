"""OpenVINO tells a lack of memory in words: they become MemoryError, which costs a picture and not the engine."""

from __future__ import annotations

import numpy as np
import pytest

from dalle_server.engine.runners.base import StepRow
from dalle_server.engine.runners.cpu.openvino.compile import memory_errors
from dalle_server.generation import ImageKey, SamplingParams
from tests.runners.cpu.cpu_runners import cpu_runner
from tests.runners.random_checkpoint import random_checkpoint, random_text

WORDS = [
    "Exception from src/core/src/runtime/allocator.cpp: std::bad_alloc",
    "[CPU] Failed to allocate 123 bytes of memory",
    "oneDNN primitive: out_of_memory",
    "Out of memory",
]


@pytest.mark.parametrize("words", WORDS)
def test_a_lack_of_memory_is_a_memory_error(words: str) -> None:
    with pytest.raises(MemoryError, match=r"memory|alloc"), memory_errors():
        raise RuntimeError(words)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"), memory_errors():
        raise RuntimeError("shape mismatch: the allocated tensor has rank 2")


class Starving:
    """An infer request that finds no memory."""

    def infer(self, _: object) -> None:
        raise RuntimeError(WORDS[0])


@pytest.mark.parametrize("part", ["_texts", "_step", "_pixels"])
def test_every_part_of_a_runner_says_so(part: str) -> None:
    runner = cpu_runner(random_checkpoint(), "fp32", num_slots=1, num_threads=1)
    text = runner.encode([random_text(0, 2)])[0]
    runner.admit(0, text, text)
    holder = getattr(runner, part)
    setattr(holder, "_decoder" if part == "_pixels" else "_request", Starving())
    row = StepRow(0, 0, ImageKey(1), SamplingParams.reference_defaults())
    calls = {
        "_texts": lambda: runner.encode([random_text(0, 2)]),
        "_step": lambda: runner.step([row]),
        "_pixels": lambda: runner.detokenize(np.zeros((1, 36), np.int32)),
    }
    with pytest.raises(MemoryError):
        calls[part]()
