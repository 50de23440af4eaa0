"""The event stream: its text form, its keep-alives, its headers."""

import pytest
from flask import Flask

from dalle_server.generation import Cancelled, Event, Generation, Started
from dalle_server.request import GenerationRequest, SamplingParams
from dalle_server.web import sse


@pytest.fixture
def generation() -> Generation:
    return Generation(GenerationRequest.of("x"), SamplingParams.reference_defaults())


def test_an_event_is_one_line_of_json_whatever_it_holds() -> None:
    assert sse.format_event("image", {"prompt": "a\nb 🍎"}, id=4) == (
        'id: 4\nevent: image\ndata: {"prompt":"a\\nb \\ud83c\\udf4e"}\n\n'
    )


def test_silence_is_filled_with_comments(generation: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.0)
    with Flask("t").test_request_context("/"):
        response = sse.stream(generation, lambda event: [sse.format_event(type(event).__name__, {})])
    parts = iter(response.response)
    assert next(parts) == ": accepted\n\n"
    assert next(parts) == ": keep-alive\n\n"
    generation.emit(Started(0.0))
    generation.emit(Cancelled("over"))
    rest = "".join(map(str, parts)).replace(": keep-alive\n\n", "")
    assert rest == "event: Started\ndata: {}\n\nevent: Cancelled\ndata: {}\n\n"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize("read_first", [False, True])
def test_closing_cancels_whether_or_not_reading_began(generation: Generation, read_first: bool) -> None:
    def nothing(event: Event) -> list[str]:
        return []

    with Flask("t").test_request_context("/"):
        response = sse.stream(generation, nothing)
    if read_first:
        next(iter(response.response))
    response.close()
    assert generation.cancel_reason == "the client left"
