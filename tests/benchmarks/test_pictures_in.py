"""Pictures of the embedded model are judged by the world that it was trained in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.pictures_in import __main__ as pictures_in
from benchmarks.pictures_in.fills import Filler
from training.recipe import Recipe


def test_the_preset_is_that_of_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Recipe] = []

    class Asked(Exception):
        pass

    def bench(recipe: Recipe, judge: str, num_prompts: int) -> None:
        asked.append(recipe)
        raise Asked

    monkeypatch.setattr(pictures_in, "Bench", bench)
    monkeypatch.setattr(sys, "argv", ["pictures_in", "--work", str(tmp_path)])
    with pytest.raises(Asked):
        pictures_in.main()
    grid = Filler().config.picture
    assert asked[0].preset.variety.grid == grid.grid_width
    assert asked[0].preset.picture_vqgan.resolution == grid.width_px


def test_a_preset_of_another_grid_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures_in", "--work", str(tmp_path), "--preset", "cpu", "--only", "cost"])
    with pytest.raises(SystemExit, match="a grid of 10, the preset cpu one of 8"):
        pictures_in.main()
