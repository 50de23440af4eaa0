"""A plain reply folds the events of its generation, and cancels it when its client leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flask import request

from dalle_server.errors import GenerationCancelled
from dalle_server.generation import Cancelled, Done, Event, Failed, GeneratedImage, Generation

POLL_S = 0.05


def client_left() -> Callable[[], bool]:
    """A function that says whether this request's client has gone; take it inside the request, call it anywhere."""
    probe: Callable[[], bool] | None = request.environ.get("waitress.client_disconnected")
    return probe or (lambda: False)


def watched_events(generation: Generation, left: Callable[[], bool]) -> Iterator[Event]:
    """Every event up to the terminal one. Cancels the generation when the client leaves or the reader stops."""
    try:
        for event in generation.events(poll_s=POLL_S):
            if left():
                generation.cancel("the client left")
            if event is not None:
                yield event
    finally:
        generation.cancel("the client left")  # does nothing to one that has ended


def collect(generation: Generation) -> tuple[GeneratedImage, ...]:
    """The finished pictures. Raises what the generation failed with, or GenerationCancelled."""
    for event in watched_events(generation, client_left()):
        if isinstance(event, Done):
            return event.images
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Cancelled):
            raise GenerationCancelled(event.reason)
    raise AssertionError("unreachable: a generation ends with a terminal event")
