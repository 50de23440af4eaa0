"""Reading the events of a generation for a client, and cancelling it when that client leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from flask import request

from dalle_server.drawn import Drawn
from dalle_server.generation import Event

POLL_S = 0.05
HALF_CLOSED = "dalle_server.half_closed"  # in environ: says whether the client has said that it will send no more


def client_left() -> Callable[[], bool]:
    """A function that says whether this request's client has gone; take it inside the request, call it anywhere."""
    probe: Callable[[], bool] | None = request.environ.get("waitress.client_disconnected")
    return probe or (lambda: False)


class Silence:
    """Of a stream: says when it has lasted too long. Made inside the request.

    That is when proxies would give up; and when the client closes its sending half: it may have left, and the network
    says so when it is told something.
    """

    def __init__(self, longest_s: float):
        self._longest_s = longest_s
        self._is_half_closed: Callable[[], bool] = request.environ.get(HALF_CLOSED, lambda: False)
        self._has_probed = False
        self.broken()

    def broken(self) -> None:
        """Something was said."""
        self._since = time.monotonic()

    def is_long(self) -> bool:
        if not self._has_probed and self._is_half_closed():
            self._has_probed = True
            return True
        return time.monotonic() - self._since > self._longest_s


def watched_events(generation: Drawn, left: Callable[[], bool]) -> Iterator[Event]:
    """Every event up to the terminal one. Cancels the generation when the client leaves or the reader stops."""
    try:
        for event in generation.events(poll_s=POLL_S):
            if left():
                generation.cancel("the client left")
            if event is not None:
                yield event
    finally:
        generation.cancel("the client left")  # does nothing to one that has ended
