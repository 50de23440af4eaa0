"""Reading the events of a generation for a client, and cancelling it when that client leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from flask import request

from dalle_server.generation import Event

POLL_S = 0.05


class Running(Protocol):
    """What a reader needs of a generation."""

    def events(self, poll_s: float | None = None) -> Iterator[Event | None]: ...

    def cancel(self, reason: str) -> None: ...


def client_left() -> Callable[[], bool]:
    """A function that says whether this request's client has gone; take it inside the request, call it anywhere."""
    probe: Callable[[], bool] | None = request.environ.get("waitress.client_disconnected")
    return probe or (lambda: False)


def watched_events(generation: Running, left: Callable[[], bool]) -> Iterator[Event]:
    """Every event up to the terminal one. Cancels the generation when the client leaves or the reader stops."""
    try:
        for event in generation.events(poll_s=POLL_S):
            if left():
                generation.cancel("the client left")
            if event is not None:
                yield event
    finally:
        generation.cancel("the client left")  # does nothing to one that has ended
