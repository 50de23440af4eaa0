from collections.abc import Iterator

import pytest
from flask import Flask, Response
from werkzeug.test import Client

from dalle_server.web import admission, errors
from dalle_server.web.routing import describe


@pytest.fixture
def app() -> Flask:
    app = Flask("t", static_folder=None)

    @app.get("/stream")
    @describe("A long answer", access="anyone", cost="little", owned=False)
    def stream() -> Response:
        def body() -> Iterator[bytes]:
            yield b"a"
            yield b"b"

        return Response(body())

    @app.get("/health")
    @describe("Life", access="anyone", cost="little", owned=False, vital=True)
    def health() -> str:
        return "ok"

    errors.install(app)
    admission.install(app, limit=2)
    return app


def test_requests_over_the_limit_are_refused_at_once_and_life_signs_are_not(app: Flask) -> None:
    client = Client(app)
    counted: admission.Admission = app.extensions[admission.EXTENSION]
    streams = [client.get("/stream") for _ in range(2)]
    assert counted.in_flight == 2
    refused = client.get("/stream")
    assert refused.status_code == 503 and "Retry-After" in refused.headers
    refused.close()
    assert client.get("/health").status_code == 200
    assert not counted.wait_until_idle(0.01)
    for stream in streams:
        stream.close()
    assert counted.in_flight == 0 and counted.wait_until_idle(0.01)
    assert client.get("/stream").status_code == 200
