"""Whose pixels are made at all: the queue of grids alone, decoded in the test's own thread."""

from collections.abc import Callable

import numpy as np
import pytest

from dalle_server.engine.detokenizer import Detokenizer
from dalle_server.engine.runners.base import TextTokens
from dalle_server.engine.sequence import ImageGroup, ImageSequence
from dalle_server.generation import Cancelled, Generation
from dalle_server.request import GenerationRequest

TEXT = TextTokens(np.zeros(4, np.int32), 2)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def detokenizer(told: list[str]) -> Detokenizer:
    def decode(grids: np.ndarray, wraps: bool) -> np.ndarray:
        told.append("pixels")
        return np.zeros((len(grids), 32, 32, 3), np.uint8)

    return Detokenizer(
        decode,
        grid=(4, 4),
        max_batch=1,
        on_image=lambda *_: told.append("image"),
        on_preview=lambda *_: told.append("preview"),
        on_error=lambda *_: told.append("error"),
    )


@pytest.fixture
def picture() -> ImageSequence:
    request = GenerationRequest.of("a", seed=1)
    group = ImageGroup.of(Generation(request, request.sampling), TEXT, TEXT, 16)
    group.sequences[0].write(3)
    return group.sequences[0]


def test_a_final_grid_drops_its_preview(detokenizer: Detokenizer, picture: ImageSequence, told: list[str]) -> None:
    detokenizer.add_preview(picture)
    detokenizer.add_final(picture)
    detokenizer.run_inline()
    assert told == ["pixels", "image"]


@pytest.mark.parametrize("add", [Detokenizer.add_final, Detokenizer.add_preview])
def test_no_pixels_are_made_for_who_has_left(
    detokenizer: Detokenizer, picture: ImageSequence, told: list[str], add: Callable[..., None]
) -> None:
    add(detokenizer, picture)
    picture.group.handle.emit(Cancelled("enough"))
    detokenizer.run_inline()
    assert told == []
