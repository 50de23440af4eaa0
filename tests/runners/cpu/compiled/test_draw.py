"""The compiled draw takes what numpy's takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_server.engine.runners.base import StepRow
from dalle_server.engine.runners.cpu.compiled.draw import compiled_draw
from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.sampling import Draw, gumbel_max, sample
from dalle_server.request import ImageKey, SamplingParams
from tests.runners.cpu.cpu_runners import RUNNABLE, needs_compiled

pytestmark = [
    needs_compiled,
    pytest.mark.parametrize("draw", [compiled_draw(load_library(b)) for b in RUNNABLE], ids=RUNNABLE),
]

KEEP_ALL = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, condition_scale=10.0)
KEYS = st.builds(ImageKey, st.integers(0, 2**63 - 1), st.integers(0, 2**31))


@settings(deadline=None)
@given(
    key=KEYS,
    position=st.integers(0, 1023),
    size=st.integers(1, 3000),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0, 50.0]),
    levels=st.sampled_from([2, 10**6]),
)
def test_the_draw_is_numpys(draw: Draw, key: ImageKey, position: int, size: int, spread: float, levels: int) -> None:
    generator = np.random.default_rng(size)
    ids = np.sort(generator.choice(16384, size, replace=False))
    logits = (spread * generator.integers(0, levels, size) / levels).astype(np.float32)
    row = StepRow(0, position, key, KEEP_ALL)
    assert draw([row], [(ids, logits)]) == gumbel_max([row], [(ids, logits)])


def test_whole_codebooks_of_many_rows(draw: Draw) -> None:
    logits = np.random.default_rng(0).standard_normal((8, 16384)).astype(np.float32)
    rows = [StepRow(n, 3 * n, ImageKey(2**40 + n, n), KEEP_ALL) for n in range(8)]
    drawn = sample(logits, rows, draw)
    np.testing.assert_array_equal(drawn, sample(logits, rows))
    assert len(set(drawn.tolist())) == 8
