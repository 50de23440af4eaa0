"""Drawing over a given picture: its tokens, which of them are painted anew, several candidates, the likeliest of them.

While a token model fills a hole it sees what is kept before it in reading order, and not what is kept behind. So a hole
is filled several times, and the one counts that makes the kept tokens behind it likeliest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.rng import uniform
from dalle_server.errors import DalleServerError, InvalidRequest
from dalle_server.generation import (
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    Generation,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.models.config import ModelConfig
from dalle_server.pictures.canvas import Picture, Weights, Window, free_tokens, paste, to_model
from dalle_server.request import FREE, GenerationRequest, ImageKey, Pixels, Tokens

MAX_CANDIDATES = 16
MAX_DRAWN = 64  # pictures that one request draws, candidates included
INDEX_BITS = 24  # of a key's index: the rest numbers the candidates, 0 being the picture's own noise
IDLE_S = 0.01


class Engine(Protocol):
    """What drawing over needs of an engine."""

    config: ModelConfig

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaint:
    """What is asked for."""

    picture: Picture
    mask: Weights | None = None  # (height, width), 1 = repaint; None: all of it, as far as `strength` says
    strength: float = 1.0  # share of the free tokens that are painted anew: 0 gives the picture's own back
    candidates: int = 1
    grow: int = 0  # tokens around the mask that are painted too
    blend_px: int = 4  # over which the border inside the mask is blended
    context: float | None = None  # see the mask's surroundings only, so much of its side on each side; None: all


@dataclass(frozen=True, slots=True)
class Plan:
    """A picture as the model sees it, and the way back."""

    wanted: Repaint
    window: Window
    given: Tokens  # (I,) of the window
    free: NDArray[np.bool_]  # (I,) may be painted anew

    @classmethod
    def of(cls, wanted: Repaint, engine: Engine) -> Plan:
        """Reads the picture's tokens. Raises InvalidRequest for a mask that frees none, NotSupported."""
        config = engine.config.picture
        window = Window.around(wanted.mask, wanted.picture.size_px, wanted.context)
        if wanted.mask is None:
            free = np.ones(config.num_tokens, bool)
        else:
            free = free_tokens(wanted.mask, window, config.grid_width, wanted.grow)
        if not free.any():
            raise InvalidRequest(
                f"mask is too small: none of the {config.num_tokens} tokens of {config.px_per_token}x"
                f"{config.px_per_token} pixels has enough in it; make it larger",
                param="mask",
            )
        pixels = to_model(wanted.picture.pixels, window, config.width_px)
        return cls(wanted, window, engine.tokenize(pixels[None])[0], free)

    def forced(self, key: ImageKey) -> Tokens:
        """(I,) for GenerationRequest.forced_tokens. Which free tokens `strength` keeps is a matter of the key alone."""
        lots = uniform(np.arange(self.given.size), key.index & (2**INDEX_BITS - 1), key.seed)
        return np.where(self.free & (lots < self.wanted.strength), np.int32(FREE), self.given).astype(np.int32)

    def finished(self, painted: Pixels) -> Pixels:
        """The whole picture, with the model's square in its place."""
        return paste(self.wanted.picture.pixels, painted, self.window, self.wanted.mask, self.wanted.blend_px)

    def requests(self, request: GenerationRequest) -> list[GenerationRequest]:
        """One for each picture of `request`, its candidates as images. Raises InvalidRequest when they are too many."""
        drawn = len(request.images) * self.wanted.candidates
        if drawn > MAX_DRAWN:
            raise InvalidRequest(
                f"candidates × n must be at most {MAX_DRAWN}, not {drawn}: one request draws no more",
                param="candidates",
            )
        return [self._request(request, key) for key in request.images]

    def _request(self, request: GenerationRequest, key: ImageKey) -> GenerationRequest:
        if key.index >= 2**INDEX_BITS:
            raise InvalidRequest(
                f"image_index must be below {2**INDEX_BITS} here, not {key.index}", param="image_index"
            )
        forced = self.forced(key)
        candidates = self.wanted.candidates if kept_behind(forced).any() else 1
        return replace(
            request,
            images=tuple(ImageKey(key.seed, key.index | (number << INDEX_BITS)) for number in range(candidates)),
            forced_tokens=tuple(forced.tolist()),
            logprobs=request.logprobs or candidates > 1,
            id=f"{request.id}-{key.index}-{key.seed}",
        )


def kept_behind(forced: Tokens) -> NDArray[np.bool_]:
    """(I,) the kept tokens behind the first free one: what says how well a hole was filled."""
    free = forced == FREE
    behind: NDArray[np.bool_] = np.logical_or.accumulate(free) & ~free
    return behind


def likeliest(images: Sequence[GeneratedImage], forced: Tokens) -> GeneratedImage:
    """The candidate under which the kept tokens behind the hole are likeliest; of equals the first."""
    if len(images) == 1:
        return images[0]
    behind = kept_behind(forced)
    scores = [-np.inf if image.logprobs is None else float(image.logprobs[behind, 0].sum()) for image in images]
    return images[int(np.argmax(scores))]


class Repainting:
    """Several generations, one for each picture, read as if they were one (`Generation`'s consumer side): of each
    picture's candidates only the chosen one comes out.
    """

    def __init__(self, request: GenerationRequest, generations: Sequence[Generation]):
        self.request = request
        self.sampling = generations[0].sampling
        self.text_token_count = generations[0].text_token_count
        self.deadline = generations[0].deadline
        self.terminal: Done | Failed | Cancelled | None = None
        self._generations = generations
        self._done: dict[int, tuple[GeneratedImage, Done]] = {}
        self._tokens_done = [0] * len(generations)

    def request_of(self, image: GeneratedImage) -> GenerationRequest:
        """What made this picture: its given tokens are its own."""
        return replace(self._generations[image.index].request, images=(image.key,))

    @property
    def num_drawn(self) -> int:
        return sum(len(generation.request.images) for generation in self._generations)

    @property
    def cancel_reason(self) -> str | None:
        return self._generations[0].cancel_reason

    @property
    def preview_every(self) -> int:
        return self._generations[0].preview_every

    def want_previews(self, every: int) -> None:
        for generation in self._generations:
            generation.want_previews(every)

    def cancel(self, reason: str = "cancelled by the client") -> None:
        for generation in self._generations:
            generation.cancel(reason)

    def events(self, poll_s: float | None = None) -> Iterator[Event | None]:
        """Every event up to the terminal one. With poll_s, yields None when that long nothing happened."""
        readers = [generation.events(poll_s=0) for generation in self._generations]
        spoke_at = time.monotonic()
        while self.terminal is None:
            told = [event for index, reader in enumerate(readers) for event in self._read(index, reader)]
            for event in told:
                if isinstance(event, (Done, Failed, Cancelled)):
                    self.terminal = event
                    self.cancel("another picture of the request failed")  # does nothing to those that have ended
                yield event
                if self.terminal is not None:
                    return
            if told:
                spoke_at = time.monotonic()
            elif poll_s is not None and time.monotonic() - spoke_at >= poll_s:
                spoke_at = time.monotonic()
                yield None
            else:
                time.sleep(IDLE_S)

    def _read(self, index: int, reader: Iterator[Event | None]) -> list[Event]:
        """What one generation has said by now, in the whole request's words."""
        told: list[Event] = []
        for event in reader:
            if event is None:
                break
            told += self._translated(index, event)
        return told

    def _translated(self, index: int, event: Event) -> Iterator[Event]:
        match event:
            case Preview(0, tokens_done, pixels):
                yield Preview(index, tokens_done, pixels)
            case Progress(tokens_done, num_tokens, eta_s):
                share = len(self._generations[index].request.images)
                self._tokens_done[index] = tokens_done // share
                yield Progress(sum(self._tokens_done), num_tokens // share * len(self._generations), eta_s)
            case Done(images):
                request = self._generations[index].request
                chosen = likeliest(images, np.array(request.forced_tokens, np.int32))
                yield ImageReady(replace(chosen, index=index))
                self._done[index] = replace(chosen, index=index), event
                if len(self._done) == len(self._generations):
                    ends = [done for _, done in self._done.values()]
                    pictures = tuple(self._done[i][0] for i in range(len(ends)))
                    yield Done(pictures, max(done.queue_s for done in ends), max(done.total_s for done in ends))
            case Failed() | Cancelled():
                yield event
            case Queued() | Started() if index == 0:
                yield event


def repaint(submit: Callable[[GenerationRequest], Generation], plan: Plan, request: GenerationRequest) -> Repainting:
    """Submit the pictures of `request`, drawn over `plan`'s; all of them or none. Raises what `submit` raises."""
    generations: list[Generation] = []
    try:
        for each in plan.requests(request):
            generations.append(submit(each))
    except DalleServerError:
        for generation in generations:
            generation.cancel("the rest of the request was refused")
        raise
    return Repainting(request, generations)
