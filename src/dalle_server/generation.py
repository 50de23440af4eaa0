"""What the engine answers with: a generation's events, and the handle on a running one. A leaf, as request.py is."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dalle_server import checks
from dalle_server.errors import DalleServerError, DeadlineExceeded, GenerationCancelled
from dalle_server.request import (
    MAX_TOKEN_ID,
    GenerationRequest,
    ImageKey,
    LogProbs,
    Pixels,
    SamplingParams,
    Tokens,
)


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One finished picture, with all that replay needs beyond the request."""

    index: int  # position in the request, 0…N-1
    key: ImageKey
    pixels: Pixels
    tokens: Tokens
    logprobs: LogProbs | None = None  # when the request asked for them
    weights: str = ""  # digest of those that drew it, where they may be changed below the engine; "": the engine's own


# -- events: queued → started → (progress | preview | image)* → exactly one of done, failed, cancelled


@dataclass(frozen=True, slots=True)
class Queued:
    position: int  # images ahead of this request


@dataclass(frozen=True, slots=True)
class Started:
    queue_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    tokens_done: int  # summed over the request's images
    num_tokens: int
    eta_s: float | None


UNWRITTEN_GREY = 127  # what a preview shows where nothing is written yet


@dataclass(frozen=True, slots=True)
class Preview:
    index: int
    tokens_done: int  # of this image
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class ImageReady:
    image: GeneratedImage


@dataclass(frozen=True, slots=True)
class Done:
    images: tuple[GeneratedImage, ...]
    queue_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    error: DalleServerError


@dataclass(frozen=True, slots=True)
class Cancelled:
    reason: str


Event = Queued | Started | Progress | Preview | ImageReady | Done | Failed | Cancelled
TERMINAL = (Done, Failed, Cancelled)


def unwrap(end: Done | Failed | Cancelled | None) -> tuple[GeneratedImage, ...]:
    """The pictures of a generation that ended well. Raises what it failed with, or GenerationCancelled."""
    if isinstance(end, Failed):
        raise end.error
    if isinstance(end, Cancelled):
        raise GenerationCancelled(end.reason)
    assert end is not None, "a generation ends with a terminal event"
    return end.images


class Generation:
    """The handle on one accepted request: made by the engine, read by one consumer, ended exactly once.

    The engine calls `emit`; the consumer iterates `events()` or waits for `result()`. `cancel()` may come
    from any thread and takes effect within one token. Calls after the terminal event do nothing.
    """

    def __init__(self, request: GenerationRequest, sampling: SamplingParams, text_token_count: int = 0):
        self.request = request
        self.sampling = sampling  # resolved: no None left
        self.text_token_count = text_token_count
        self.preview_every = request.preview_every  # tokens between previews, as last wanted; the engine reads it
        self.previewed: int | None = None  # the only picture that previews are wanted of; None: all
        self.submitted_at = time.monotonic()
        self.cancel_reason: str | None = None
        self.terminal: Done | Failed | Cancelled | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = lambda: None
        self._on_previews: Callable[[int], None] = lambda every: None
        self._on_event: Callable[[], None] = lambda: None

    @property
    def num_drawn(self) -> int:
        return len(self.request.images)

    @property
    def grid_width(self) -> int:
        return 0

    def request_of(self, image: GeneratedImage) -> GenerationRequest:
        """What made this picture."""
        return self.request

    def want_previews(self, every: int) -> None:
        """Consumer side, any thread: `every` tokens between previews from now on, 0 for none.

        A preview costs a decode to pixels, wasted when nobody watches.
        """
        every = checks.whole_number("preview_every", every, 0, MAX_TOKEN_ID)
        if every != self.preview_every:
            self.preview_every = every
            self._on_previews(every)

    def on_want_previews(self, listener: Callable[[int], None]) -> None:
        """Engine side, for one that cannot see this object: called with every change of what is wanted."""
        self._on_previews = listener

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Engine side: called when a cancel arrives, to wake a sleeping loop."""
        self._wake = wake

    def on_event(self, wake: Callable[[], None]) -> None:
        """Consumer side, for one that cannot wait in a thread: called, in the engine's, when there is something to read
        with `events(poll_s=0)`. Must not block.
        """
        self._on_event = wake

    @property
    def deadline(self) -> float | None:
        """time.monotonic() value after which the request fails with DeadlineExceeded."""
        return None if self.request.timeout_s is None else self.submitted_at + self.request.timeout_s

    def cancel(self, reason: str = "cancelled by the client") -> None:
        if self.terminal is None and self.cancel_reason is None:
            self.cancel_reason = reason
            self._wake()

    def emit(self, event: Event) -> bool:
        """Engine side. False when the generation had already ended (the event is dropped)."""
        with self._lock:
            if self.terminal is not None:
                return False
            if isinstance(event, TERMINAL):
                self.terminal = event
            self._events.put(event)
        self._on_event()
        return True

    def events(self, poll_s: float | None = None) -> Iterator[Event | None]:
        """Every event up to the terminal one. With poll_s, yields None when that long nothing happened."""
        while not self._is_consumed():
            try:
                event = self._events.get(timeout=poll_s)
            except queue.Empty:
                yield None
                continue
            yield event
            if isinstance(event, TERMINAL):
                return

    def _is_consumed(self) -> bool:
        with self._lock:
            return self.terminal is not None and self._events.empty()

    def result(self, timeout_s: float | None = None) -> tuple[GeneratedImage, ...]:
        """The finished pictures. Raises what failed, GenerationCancelled, or DeadlineExceeded after timeout_s."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        for _ in self.events(poll_s=None if end is None else 0.05):
            if self.terminal is None and end is not None and time.monotonic() > end:
                self.cancel("the caller stopped waiting")
                raise DeadlineExceeded(f"no result within {timeout_s} s; the generation was cancelled")
        return unwrap(self.terminal)
