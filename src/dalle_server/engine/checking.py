"""What a model and its runner can be asked for: checked before anything that costs, by whoever accepts a request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.base import LOGPROBS, NO_ENCODER, PULL, SEAMLESS, TOKENIZE, RunnerInfo
from dalle_server.errors import InvalidRequest, NotSupported
from dalle_server.models.config import ModelConfig
from dalle_server.request import FREE, GenerationRequest


def check_request(request: GenerationRequest, config: ModelConfig, info: RunnerInfo, most_images: int) -> None:
    """Raises InvalidRequest, or NotSupported for what this runner cannot do."""
    check_room(len(request.images), most_images)
    _check_grid("forced_tokens", request.forced_tokens, config)
    _check_grid("near_tokens", request.near_tokens, config)
    if request.logprobs and LOGPROBS not in info.features:
        raise NotSupported(f"the {info.runner} runner does not tell logprobs; leave them out", param="logprobs")
    if request.seamless and SEAMLESS not in info.features:
        raise NotSupported(f"the {info.runner} runner cannot make edges meet; leave seamless out", param="seamless")
    if request.pull and PULL not in info.features:
        message = f"the {info.runner} runner draws nothing towards given tokens; use a strength of 0 or 1"
        raise NotSupported(message, param="strength")


def check_room(num_images: int, most_images: int, counted_as: str = "num_images") -> None:
    """That so many pictures can ever be drawn together. Raises InvalidRequest, in the words of who counts them."""
    if num_images > most_images:
        message = f"{counted_as} must be at most {most_images} on this server, not {num_images}"
        raise InvalidRequest(message, param=counted_as.split()[0])


def _check_grid(name: str, tokens: tuple[int, ...], config: ModelConfig) -> None:
    size, codes = config.picture.num_tokens, config.picture.codebook_size
    if tokens and len(tokens) != size:
        raise InvalidRequest(f"{name} needs {size} ids, not {len(tokens)}", param=name)
    for token in tokens:
        if token != FREE and not 0 <= token < codes:
            ids = f"0…{codes - 1}, or {FREE} where nothing is given"
            raise InvalidRequest(f"{name}: {token} is no codebook id; use {ids}", param=name)


def check_pixels(pixels: NDArray[np.uint8], config: ModelConfig, info: RunnerInfo) -> None:
    """Before they are tokenised. Raises InvalidRequest for another shape, NotSupported without an encoder."""
    expected = (config.picture.height_px, config.picture.width_px, 3)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected:
        raise InvalidRequest(
            f"pictures for this model are N × {' × '.join(map(str, expected))} bytes, not {pixels.dtype}"
            f" {pixels.shape}; resize them first",
            param="image",
        )
    if TOKENIZE not in info.features:
        raise NotSupported(NO_ENCODER, param="image")
