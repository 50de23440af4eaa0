"""A listening server on a scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response

from dalle_server.config import Settings
from dalle_server.web.routing import describe
from dalle_server.web.serving.http_server import HttpServer
from tests.web.live import serving
from tests.web.serving.raw import MANY


@pytest.fixture
def start(make_app: Callable[..., Flask], tmp_path: Any) -> Iterator[Callable[..., HttpServer]]:
    """start(**settings) → a listening server on a scripted engine."""
    running: list[Any] = []

    def begin(**settings_kw: Any) -> HttpServer:
        app = make_app(**settings_kw)

        @app.get("/flood")
        @describe("More than anyone takes", access="anyone", cost="little", owned=False)
        def flood() -> Response:
            return Response(iter([b"x" * (1 << 20)] * (MANY >> 20)))

        context = serving(app, Settings(**settings_kw))
        server = context.__enter__()
        running.append(context)
        return server

    yield begin
    for context in running:
        context.__exit__(None, None, None)
