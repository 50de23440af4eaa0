"""What one generation is: its request, its events, and the handle on a running one. A leaf: no torch, no Flask.

Shape legend, used everywhere: B rows, T = 64 text positions, I = image positions (256 for Mini and
Mega, a grid of 16×16), H heads, D head size, C codebook entries, N images.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.errors import DalleServerError, DeadlineExceeded, GenerationCancelled, InvalidRequest

MAX_SEED = 2**63 - 1
FREE = -1  # in forced_tokens: this position is sampled

Pixels = NDArray[np.uint8]  # (height, width, 3)
Tokens = NDArray[np.int32]  # (I,) codebook ids in reading order


def _check(name: str, value: Any, low: float, high: float) -> None:
    """A number as the bounds are: whole where they are whole. What gets past this reaches the engine's loop."""
    if value is None:
        return
    kind, called = (Integral, "a whole number") if isinstance(low, int) else (Real, "a number")
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits:
        raise InvalidRequest(f"{name} must be {called}, not {value!r}", param=name)
    # `not low <= value <= high` also catches NaN.
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must lie between {low} and {high}, not {value!r}", param=name)


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} must be text of whole characters, not {text[:60]!r}: {error.reason}", param=name
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a token is drawn. None means the checkpoint's own default.

    temperature > 0 divides the guided logits; top_k ≥ 0 keeps the k best (0 = all);
    0 < top_p ≤ 1 keeps the smallest set that holds this much probability;
    condition_scale s guides: u + s·(c − u) (1 = no guidance).
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    condition_scale: float | None = None

    @classmethod
    def reference_defaults(cls) -> SamplingParams:
        """dalle-mini's: config.json's top_k 50 and the condition_scale of its inference notebook."""
        return cls(temperature=1.0, top_k=50, top_p=1.0, condition_scale=10.0)

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.01, 100.0)
        _check("top_k", self.top_k, 0, 2**31 - 1)
        _check("top_p", self.top_p, 1e-6, 1.0)
        _check("condition_scale", self.condition_scale, 0.0, 100.0)

    def with_defaults(self, defaults: SamplingParams) -> SamplingParams:
        """Fill every None from `defaults`."""
        return SamplingParams(
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            condition_scale=defaults.condition_scale if self.condition_scale is None else self.condition_scale,
        )


@dataclass(frozen=True, slots=True)
class ImageKey:
    """Names the noise of one picture: same key, prompt, parameters and weights → same bytes."""

    seed: int
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt, N pictures. Build it with `GenerationRequest.of`, which draws a seed when none is given."""

    prompt: str
    images: tuple[ImageKey, ...]
    sampling: SamplingParams = SamplingParams()
    negative_prompt: str = ""  # the unconditional row's text; empty = the reference's [<s>, </s>]
    forced_tokens: tuple[int, ...] = ()  # empty, or I ids with FREE where the model chooses
    preview_every: int = 0  # tokens between previews; 0 = none
    timeout_s: float | None = None
    client: str = ""  # whom fairness counts against: a key or an address
    id: str = field(default_factory=lambda: f"gen-{secrets.token_hex(8)}")

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InvalidRequest("prompt must not be empty; describe the picture you want", param="prompt")
        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        if not self.images:
            raise InvalidRequest("num_images must be at least 1", param="num_images")
        for key in self.images:
            _check("seed", key.seed, 0, MAX_SEED)
        if self.timeout_s is not None and not self.timeout_s > 0:  # `not >` also catches NaN
            raise InvalidRequest(f"timeout_s must be positive, not {self.timeout_s}", param="timeout_s")

    @classmethod
    def of(
        cls,
        prompt: str,
        num_images: int = 1,
        seed: int | None = None,
        *,
        sampling: SamplingParams | None = None,
        negative_prompt: str = "",
        forced_tokens: tuple[int, ...] = (),
        preview_every: int = 0,
        timeout_s: float | None = None,
        client: str = "",
    ) -> GenerationRequest:
        """N pictures of one seed: image i has the key (seed, i). Raises InvalidRequest, naming the field."""
        seed = secrets.randbelow(2**32) if seed is None else seed
        return cls(
            prompt=prompt,
            images=tuple(ImageKey(seed, index) for index in range(num_images)),
            sampling=sampling or SamplingParams(),
            negative_prompt=negative_prompt,
            forced_tokens=forced_tokens,
            preview_every=preview_every,
            timeout_s=timeout_s,
            client=client,
        )


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One finished picture, with all that replay needs beyond the request."""

    index: int  # position in the request, 0…N-1
    key: ImageKey
    pixels: Pixels
    tokens: Tokens


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


@dataclass(frozen=True, slots=True)
class Preview:
    index: int
    tokens_done: int  # of this image
    pixels: Pixels  # unwritten part painted neutral


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


class Generation:
    """The handle on one accepted request: made by the engine, read by one consumer, ended exactly once.

    The engine calls `emit`; the consumer iterates `events()` or waits for `result()`. `cancel()` may come
    from any thread and takes effect within one token. Calls after the terminal event do nothing.
    """

    def __init__(self, request: GenerationRequest, sampling: SamplingParams, text_token_count: int = 0):
        self.request = request
        self.sampling = sampling  # resolved: no None left
        self.text_token_count = text_token_count
        # Tokens between previews, read by the engine at every step. The consumer may change it while the
        # generation runs: a preview costs a decode to pixels, wasted when nobody watches.
        self.preview_every = request.preview_every
        self.submitted_at = time.monotonic()
        self.cancel_reason: str | None = None
        self.terminal: Done | Failed | Cancelled | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = lambda: None

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Engine side: called when a cancel arrives, to wake a sleeping loop."""
        self._wake = wake

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
        if isinstance(self.terminal, Failed):
            raise self.terminal.error
        if isinstance(self.terminal, Cancelled):
            raise GenerationCancelled(self.terminal.reason)
        assert self.terminal is not None
        return self.terminal.images
