"""Server-sent events: the events of a generation as a text stream that notices when its reader leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Response

from dalle_server.drawn import Drawn
from dalle_server.generation import Event
from dalle_server.web.waiting import POLL_S, Silence, client_left

KEEP_ALIVE_S = 10.0  # silence after which proxies and clients begin to give up is 30 s and more
DONE = "data: [DONE]\n\n"
_KEEP_ALIVE = ": keep-alive\n\n"
_OPENED = ": accepted\n\n"  # the headers leave with the first bytes: let the client know that it is in


def format_event(name: str, data: Any, id: int | None = None) -> str:
    """One event as text (WHATWG HTML, section 9.2). `data` is sent as one line of JSON."""
    head = "" if id is None else f"id: {id}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def stream(generation: Drawn, translate: Callable[[Event], Iterable[str]]) -> Response:
    """A text/event-stream answer: what `translate` makes of each event, up to the terminal one.

    The generation is cancelled when the client leaves, noticed between events too.
    """
    left, silence = client_left(), Silence(KEEP_ALIVE_S)

    def cancel() -> None:
        generation.cancel("the client left")  # does nothing to one that has ended

    def parts() -> Iterator[str]:
        try:
            yield _OPENED
            silence.broken()
            for event in generation.events(poll_s=POLL_S):
                if left():
                    cancel()
                for part in translate(event) if event is not None else (_KEEP_ALIVE,) if silence.is_long() else ():
                    silence.broken()
                    yield part
        finally:
            cancel()

    response = event_stream(parts())
    response.call_on_close(cancel)  # also when the client left before the first part was asked for
    return response


def event_stream(parts: Iterator[str]) -> Response:
    """The answer's headers: no cache may keep it, no proxy may hold it back."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(parts, mimetype="text/event-stream", headers=headers)
