"""Pictures of another shape than the model's own, cut into windows and put together again."""

from typing import Any

import numpy as np
import pytest

from dalle_server.drawing.painting import Shape
from tests.drawing.shapes import WINDOW, shape


@pytest.mark.parametrize(
    ("size", "rows", "columns", "places"),
    [
        ((1536, 1024), 4, 6, [(0, 0), (0, 2)]),
        ((1024, 1536), 6, 4, [(0, 0), (2, 0)]),
        ((1024, 1792), 7, 4, [(0, 0), (2, 0), (3, 0)]),
        ((300, 100), 4, 12, [(0, 0), (0, 2), (0, 4), (0, 6), (0, 8)]),
    ],
)
def test_windows_slide_by_half(size: Any, rows: int, columns: int, places: Any) -> None:
    found = shape(*size)
    assert (found.rows, found.columns, found.places) == (rows, columns, places)
    assert found.is_sound


@pytest.mark.parametrize("size", [(512, 512), (1000, 1024), (512, 500), (3001, 1000), (16, 256)])
def test_what_is_nearly_the_models_own_shape_or_too_long_is_not_painted(size: Any) -> None:
    assert Shape.of(size, WINDOW) is None


def test_the_crossfade_is_around_the_middle_of_what_both_have() -> None:
    of = shape(1536, 1024)
    canvas = of.blank()
    of.put(canvas, np.zeros((32, 32, 3), np.uint8), 0)
    of.put(canvas, np.full((32, 32, 3), 200, np.uint8), 1)
    row = canvas[3, :, 0].astype(int)
    assert (row[:20] == 0).all() and (row[28:] == 200).all()
    assert (np.diff(row[19:29]) > 0).all() and row[23] + row[24] == 200
