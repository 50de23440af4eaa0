"""Pictures of another shape than the model's: painted by a window that slides over a larger grid of tokens.

What a window shares with the one before is forced, so each goes on where the last one ended. The first window is the
square picture of the same seed. Of pixels that two windows show, those far from either's border count more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dalle_server.drawing.joined import Joined, all_or_none, said_by_now
from dalle_server.drawing.repaint import INDEX_BITS
from dalle_server.drawing.sizes import MAX_RATIO
from dalle_server.errors import (
    DalleServerError,
    DeadlineExceeded,
    EngineDown,
    InvalidRequest,
    Overloaded,
    RateLimited,
)
from dalle_server.generation import (
    UNWRITTEN_GREY,
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
from dalle_server.models.config import PictureConfig
from dalle_server.request import FREE, GenerationRequest, ImageKey, Pixels, Tokens

Value = TypeVar("Value", bound=np.generic)
Submit = Callable[[GenerationRequest], Generation]


@dataclass(frozen=True, slots=True)
class Shape:
    """A grid that is longer than the model's in one direction."""

    rows: int
    columns: int
    window: PictureConfig  # what the model paints at a time

    @classmethod
    def of(cls, size_px: tuple[int, int], window: PictureConfig) -> Self | None:
        """The grid nearest to the shape of (width, height); None where the model's own is, or beyond MAX_RATIO."""
        width, height = size_px[0] / window.width_px, size_px[1] / window.height_px
        if max(width, height) > MAX_RATIO * min(width, height):
            return None
        rows, columns = window.grid_height, window.grid_width
        shape = cls(max(rows, round(rows * height / width)), max(columns, round(columns * width / height)), window)
        return None if (shape.rows, shape.columns) == (rows, columns) else shape

    @property
    def is_sound(self) -> bool:
        """Whether the model's window fits into it, longer in one direction and not too long."""
        shorter, longer = sorted((self.rows / self.window.grid_height, self.columns / self.window.grid_width))
        return shorter == 1 < longer <= MAX_RATIO

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, column) of each window's first token: half a window further every time, the last one at the end."""
        downwards = _starts(self.rows, self.window.grid_height)
        return [(row, column) for row in downwards for column in _starts(self.columns, self.window.grid_width)]

    def part(self, grid: NDArray[Value], number: int) -> NDArray[Value]:
        """The window's part of (rows, columns, …) values, not copied."""
        row, column = self.places[number]
        return grid[row : row + self.window.grid_height, column : column + self.window.grid_width]

    def blank(self) -> Pixels:
        px = self.window.px_per_token
        return np.full((self.rows * px, self.columns * px, 3), UNWRITTEN_GREY, np.uint8)

    def put(self, canvas: Pixels, painted: Pixels, number: int) -> None:
        """Adds a window's pixels, crossfaded around the middle of what the one before has painted already."""
        px, (row, column) = self.window.px_per_token, self.places[number]
        height, width = painted.shape[:2]
        part = canvas[row * px : row * px + height, column * px : column * px + width]
        weight = np.ones((height, width), np.float32)
        if number:
            earlier_row, earlier_column = self.places[number - 1]
            if row > earlier_row:
                weight *= _ramp(height, height - (row - earlier_row) * px)[:, None]
            if column > earlier_column:
                weight *= _ramp(width, width - (column - earlier_column) * px)[None, :]
        part[:] = np.rint(part * (1 - weight[:, :, None]) + painted * weight[:, :, None]).astype(np.uint8)


def _starts(length: int, window: int) -> list[int]:
    return [*range(0, length - window, max(1, window // 2)), length - window]


def _ramp(length: int, shared: int) -> NDArray[np.float32]:
    """(length,) 0 before, 1 behind, rising in the middle half of the first `shared` places."""
    rise = (np.arange(length, dtype=np.float32) + 0.5 - shared / 4) / max(1.0, shared / 2)
    ramp: NDArray[np.float32] = np.clip(rise, 0, 1).astype(np.float32)
    return ramp


@dataclass(slots=True)
class _Picture:
    """One picture as it grows."""

    index: int  # position in the request
    key: ImageKey
    grid: NDArray[np.int32]  # (rows, columns), FREE where nothing is written yet
    canvas: Pixels
    logprobs: NDArray[np.float32] | None  # (rows, columns, 2)
    window: int = 0
    tokens_done: int = 0  # of the present window
    shown_at: int = 0  # tokens of all windows at its last preview
    generation: Generation | None = None  # None: it waits for a place in the queue, or is done
    reader: Iterator[Event | None] = field(default_factory=lambda: iter(()))


class Painting(Joined):
    """Pictures of a larger shape, read as if they were one generation (`Generation`'s consumer side)."""

    def __init__(self, submit: Submit, shape: Shape, request: GenerationRequest, given: Tokens | None):
        """`given` are the tokens of the whole grid. Raises what `submit` raises."""
        super().__init__()
        self.request, self.shape = request, shape
        self.cancel_reason: str | None = None
        self._submit, self._given = submit, None if given is None else given.reshape(shape.rows, shape.columns)
        self._every = request.preview_every
        self._pictures = [self._blank(index, key) for index, key in enumerate(request.images)]
        self._begun = time.monotonic()
        self._queue_s = 0.0
        self._finished: dict[int, GeneratedImage] = {}
        started = all_or_none(self._start(picture) for picture in self._pictures)
        self.sampling, self.text_token_count = started[0].sampling, started[0].text_token_count

    def _blank(self, index: int, key: ImageKey) -> _Picture:
        if key.index >= 2**INDEX_BITS:
            message = f"image_index must be below {2**INDEX_BITS} here, not {key.index}"
            raise InvalidRequest(message, param="image_index")
        grid = np.full((self.shape.rows, self.shape.columns), FREE, np.int32)
        logprobs = np.full((*grid.shape, 2), np.nan, np.float32) if self.request.logprobs else None
        return _Picture(index, key, grid, self.shape.blank(), logprobs)

    def _start(self, picture: _Picture) -> Generation:
        """Its present window. Raises what `submit` raises."""
        source = picture.grid if self._given is None else self._given
        forced = self.shape.part(source, picture.window).reshape(-1)
        number = picture.window << INDEX_BITS
        request = replace(
            self.request,
            images=(ImageKey(picture.key.seed, picture.key.index | number),),
            forced_tokens=tuple(forced.tolist()) if (forced != FREE).any() else (),
            preview_every=self._window_every,
            timeout_s=None if self.deadline is None else max(1e-3, self.deadline - time.monotonic()),
            id=f"{self.request.id}-{picture.index}-{picture.window}",
        )
        generation = self._submit(request)
        picture.generation, picture.reader, picture.tokens_done = generation, generation.events(poll_s=0), 0
        generation.on_event(self._spoke.set)
        if self.cancel_reason is not None:  # before anyone could see this window
            generation.cancel(self.cancel_reason)
        return generation

    @property
    def deadline(self) -> float | None:
        return None if self.request.timeout_s is None else self._begun + self.request.timeout_s

    @property
    def num_drawn(self) -> int:
        return len(self.request.images)

    @property
    def _window_every(self) -> int:
        """Previews inside a window; the end of one is a preview in any case, while some are wanted."""
        return self._every if self._every < self.shape.window.num_tokens else 0

    @property
    def grid_width(self) -> int:
        return self.shape.columns

    def request_of(self, image: GeneratedImage) -> GenerationRequest:
        return self.request

    def want_previews(self, every: int) -> None:
        self._every = every
        for generation in self._generations():
            generation.want_previews(self._window_every)

    @property
    def _waits_for_a_place(self) -> bool:
        return any(each.generation is None and each.index not in self._finished for each in self._pictures)

    def cancel(self, reason: str = "cancelled by the client") -> None:
        if self.terminal is None and self.cancel_reason is None:
            self.cancel_reason = reason
            self._spoke.set()
        for generation in self._generations():
            generation.cancel(reason)

    def _generations(self) -> list[Generation]:
        """Those of the present windows; the thread that reads may go on to the next ones meanwhile."""
        return [generation for picture in self._pictures if (generation := picture.generation) is not None]

    def _news(self) -> list[Event]:
        return [event for picture in self._pictures for event in self._advance(picture)]

    def _advance(self, picture: _Picture) -> list[Event]:
        """What there is to tell of one picture by now."""
        if picture.index in self._finished:
            return []
        if picture.generation is None and (end := self._resume(picture)) is not None:
            return [end]
        return [told for event in said_by_now(picture.reader) for told in self._translated(picture, event)]

    def _resume(self, picture: _Picture) -> Failed | Cancelled | None:
        """The next window of a picture that was accepted must not fail because others came, or because the engine
        restarts: it waits for a place, where there will be one.
        """
        if self.cancel_reason is not None:
            return Cancelled(self.cancel_reason)
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return Failed(DeadlineExceeded.after(self.request.timeout_s))
        try:
            self._start(picture)
        except DalleServerError as error:
            will_pass = isinstance(error, Overloaded | RateLimited) and not isinstance(error, EngineDown)
            return None if will_pass else Failed(error)
        return None

    def _translated(self, picture: _Picture, event: Event) -> Iterator[Event]:
        is_first = picture.index == 0 and picture.window == 0
        match event:
            case Queued() if is_first:
                yield event
            case Started(queue_s) if is_first:
                self._queue_s = queue_s
                yield event
            case Progress(tokens_done):
                picture.tokens_done = tokens_done
                yield self._progress()
            case Preview(_, tokens_done, pixels):
                yield from self._preview(picture, tokens_done, pixels)
            case ImageReady(image):
                yield from self._put(picture, image)
            case Failed(DeadlineExceeded()):  # a window names what was left of the limit
                yield Failed(DeadlineExceeded.after(self.request.timeout_s))
            case Failed() | Cancelled():
                yield event

    def _preview(self, picture: _Picture, tokens_done: int, pixels: Pixels | None = None) -> Iterator[Event]:
        """`pixels` of the present window, where there are some."""
        done = picture.window * self.shape.window.num_tokens + tokens_done
        if self._every and done - picture.shown_at >= self._every:
            picture.shown_at = done
            canvas = picture.canvas.copy()
            if pixels is not None:
                self.shape.put(canvas, pixels, picture.window)
            yield Preview(picture.index, done, canvas)

    def _put(self, picture: _Picture, image: GeneratedImage) -> Iterator[Event]:
        """A window is there: the next one begins, or the picture is finished."""
        part = self.shape.part(picture.grid, picture.window)
        if picture.logprobs is not None and image.logprobs is not None:
            told = self.shape.part(picture.logprobs, picture.window)
            told[part == FREE] = image.logprobs.reshape(told.shape)[part == FREE]
        part[:] = image.tokens.reshape(part.shape)
        self.shape.put(picture.canvas, image.pixels, picture.window)
        picture.generation, picture.reader = None, iter(())
        picture.window, picture.tokens_done = picture.window + 1, 0
        if picture.window < len(self.shape.places):
            yield from self._preview(picture, 0)
            return
        logprobs = None if picture.logprobs is None else picture.logprobs.reshape(-1, 2)
        finished = GeneratedImage(picture.index, picture.key, picture.canvas, picture.grid.reshape(-1), logprobs)
        self._finished[picture.index] = finished
        yield ImageReady(finished)
        if len(self._finished) == len(self._pictures):
            images = tuple(self._finished[index] for index in range(len(self._pictures)))
            yield Done(images, self._queue_s, time.monotonic() - self._begun)

    def _progress(self) -> Progress:
        each = self.shape.window.num_tokens
        total = each * len(self.shape.places) * len(self._pictures)
        done = sum(picture.window * each + picture.tokens_done for picture in self._pictures)
        passed = time.monotonic() - self._begun - self._queue_s
        return Progress(done, total, passed / done * (total - done) if done else None)


def paint(submit: Submit, shape: Shape, request: GenerationRequest, given: Tokens | None = None) -> Painting:
    """The pictures of `request` in another shape; all are accepted or none. With `given`, (rows · columns,) ids, they
    are those tokens' pixels. Raises what `submit` raises.
    """
    return Painting(submit, shape, request, given)
