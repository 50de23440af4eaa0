"""What is being drawn, as its one consumer sees it: a `Generation`, or several that are read as if they were one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from dalle_server.generation import Cancelled, Done, Event, Failed, GeneratedImage, unwrap
from dalle_server.request import GenerationRequest, SamplingParams


class Drawn(Protocol):
    """See `Generation` for what each means."""

    request: GenerationRequest
    sampling: SamplingParams
    text_token_count: int
    terminal: Done | Failed | Cancelled | None

    @property
    def deadline(self) -> float | None: ...

    @property
    def cancel_reason(self) -> str | None: ...

    @property
    def num_drawn(self) -> int:
        """Pictures that are written, those that nobody gets included."""
        ...

    @property
    def grid_width(self) -> int:
        """Of pictures that several windows paint, in tokens; 0: the model's own."""
        ...

    def request_of(self, image: GeneratedImage) -> GenerationRequest:
        """What makes this picture again."""
        ...

    def want_previews(self, every: int) -> None: ...

    def cancel(self, reason: str = ...) -> None: ...

    def events(self, poll_s: float | None = None) -> Iterator[Event | None]: ...


def result_of(drawn: Drawn) -> tuple[GeneratedImage, ...]:
    """Waits for the pictures. Raises what it failed with, or GenerationCancelled."""
    for _ in drawn.events():
        pass
    return unwrap(drawn.terminal)
