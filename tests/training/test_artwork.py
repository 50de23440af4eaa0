"""The atlas of all artwork is rendered once, whoever asks for it at the same time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from training.scenes import artwork


def test_processes_of_a_parallel_stage_do_not_render_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []

    def render(concepts: object, sprite_px: int, work_dir: Path, cache: Path) -> None:
        rendered.append(cache)
        time.sleep(0.05)
        np.savez(cache, sprites=np.zeros((2, 4, 4, 4), np.uint8), colourful=np.ones(2, bool), mid=np.ones(2))

    monkeypatch.setattr(artwork, "_render_atlas", render)
    with ThreadPoolExecutor(3) as pool:
        atlases = list(pool.map(lambda _: artwork.load_atlas([], sprite_px=4, work_dir=tmp_path / "work"), range(3)))
    assert len(rendered) == 1
    assert all(atlas.sprites.shape == (2, 4, 4, 4) for atlas in atlases)
