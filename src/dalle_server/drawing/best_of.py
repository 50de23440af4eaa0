"""Likelihood as a judge: the model says how likely it thinks each token of a picture is, drawn or given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from dalle_server.drawn import Drawn
from dalle_server.generation import Cancelled, Done, Event, Failed, GeneratedImage, ImageReady, Preview
from dalle_server.request import GenerationRequest


def score(image: GeneratedImage) -> float:
    """The log-likelihood of all its tokens: over the whole codebook, at temperature 1 and guidance 1."""
    return -np.inf if image.logprobs is None else float(image.logprobs[:, 0].astype(np.float64).sum())


class BestOf:
    """A generation of many pictures, read as if it were one of the `keep` likeliest (`Generation`'s consumer side).

    They come at the end, the likeliest first; of equals the one that was asked for first.
    """

    def __init__(self, generation: Drawn, keep: int):
        self._generation, self._keep = generation, keep
        generation.want_previews(0)  # painted for nobody, see below
        self.num_drawn = generation.num_drawn
        self.request = generation.request  # of the pictures that are kept, once they are known
        self.sampling = generation.sampling
        self.text_token_count = generation.text_token_count
        self.deadline = generation.deadline
        self.terminal: Done | Failed | Cancelled | None = None

    @property
    def cancel_reason(self) -> str | None:
        return self._generation.cancel_reason

    @property
    def grid_width(self) -> int:
        return self._generation.grid_width

    def request_of(self, image: GeneratedImage) -> GenerationRequest:
        return self.request

    def want_previews(self, every: int) -> None:
        """Nobody knows yet which pictures are kept: none is shown before."""

    def cancel(self, reason: str = "cancelled by the client") -> None:
        self._generation.cancel(reason)

    def events(self, poll_s: float | None = None) -> Iterator[Event | None]:
        """Every event up to the terminal one. With poll_s, yields None when that long nothing happened."""
        for event in self._generation.events(poll_s):
            match event:
                case Preview() | ImageReady():
                    continue
                case Done(images):
                    ranked = sorted(images, key=lambda image: (-score(image), image.index))[: self._keep]
                    kept = tuple(replace(image, index=place) for place, image in enumerate(ranked))
                    self.request = replace(self.request, images=tuple(image.key for image in kept))
                    for image in kept:
                        yield ImageReady(image)
                    self.terminal = replace(event, images=kept)
                    yield self.terminal
                case Failed() | Cancelled():
                    self.terminal = event
                    yield event
                case _:
                    yield event
