from collections.abc import Iterator

import pytest
from flask import Flask, Response
from werkzeug.test import Client

from dalle_server.web import errors
from dalle_server.web.routing import describe
from dalle_server.web.serving import admission


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


def test_few_enter_at_a_time_and_all_are_counted(app: Flask) -> None:
    """Those that want a place in the queue; the next enters when one has asked for its place, or is answered."""
    counted: admission.Admission = app.extensions[admission.EXTENSION]
    seen: list[int] = []

    @app.before_request
    def look() -> None:
        seen.append(counted.num_entering)
        admission.asked()
        seen.append(counted.num_entering)
        admission.entered()

    client = Client(app)
    for _ in range(admission.ENTERING + 1):  # each leaves what it held
        client.get("/stream", environ_overrides={admission.ENTERS: True}).close()
    client.get("/stream").close()
    assert seen == [1, 0] * (admission.ENTERING + 1) + [0, 0]
    assert counted.num_entering == counted.in_flight == 0
    assert all(counted._entrance.acquire(blocking=False) for _ in range(admission.ENTERING)), "each place is free again"


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
