"""The likeliest of many pictures."""

import numpy as np

from dalle_server.drawing.best_of import BestOf
from dalle_server.drawn import result_of
from dalle_server.generation import Done, GeneratedImage, Generation
from dalle_server.request import GenerationRequest


def test_of_pictures_that_are_equally_likely_the_first_is_the_best() -> None:
    wanted = GenerationRequest.of("a red apple", 3, seed=5)
    generation = Generation(wanted, wanted.sampling)
    best = BestOf(generation, 1)
    tokens, likelihood = np.zeros(16, np.int32), np.zeros((16, 2), np.float32)
    pixels = np.zeros((8, 8, 3), np.uint8)
    images = [GeneratedImage(index, key, pixels, tokens, likelihood) for index, key in enumerate(wanted.images)]
    generation.emit(Done(tuple(images), 0.0, 0.0))
    assert result_of(best)[0].key == wanted.images[0]
