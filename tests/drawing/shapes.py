"""Shapes on the grid of a model without weights."""

from dalle_server.drawing.painting import Shape
from dalle_server.models.config import PictureConfig
from tests.fake_runner import fake_config

SIDE = 4
WINDOW = fake_config(SIDE).picture


def shape(width: int, height: int, window: PictureConfig = WINDOW) -> Shape:
    found = Shape.of((width, height), window)
    assert found is not None
    return found
