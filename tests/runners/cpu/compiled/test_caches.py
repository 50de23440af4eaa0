"""A slot of a family whose prompts are prefixes has room for the longest; memory is for what was written."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import psutil
import pytest

from dalle_server.engine.runners.cpu.compiled.stack import sparse_zeros
from tests.families.janus_goldens import opened
from tests.runners.cpu.cpu_runners import RUNNABLE, needs_compiled, without_pixels

SHAPE = (256, 1024, 64)  # 256 heads of 256 KiB: eight to a large page


@pytest.mark.skipif(sys.platform != "linux", reason="what a page takes is Linux's to say")
def test_only_what_is_written_takes_memory() -> None:
    before = psutil.Process().memory_info().rss
    zeros = sparse_zeros(SHAPE, np.float32)
    assert zeros.shape == SHAPE and zeros.dtype == np.float32 and zeros.ctypes.data % 64 == 0
    zeros[:, : SHAPE[1] // 4] = 1
    taken = psutil.Process().memory_info().rss - before
    assert zeros.nbytes // 4 <= taken + (1 << 20) and taken < zeros.nbytes // 2
    assert zeros.sum() == zeros.size // 4


@needs_compiled
def test_prefixes_have_such_caches() -> None:
    runner = without_pixels(opened(640), "int8", RUNNABLE[0], num_slots=2, num_threads=1)
    for cache in runner._step._caches.arrays.values():  # type: ignore[attr-defined]
        root = cache
        while isinstance(root, np.ndarray):
            root = root.base
        assert isinstance(root.obj if isinstance(root, memoryview) else root, mmap.mmap)
