import gc
import weakref

import pytest
from flask import Flask, request
from flask.testing import FlaskClient

from dalle_server.errors import GenerationFailed, InvalidRequest, Overloaded
from dalle_server.web.routing import describe


@pytest.fixture
def raising(app: Flask) -> Flask:
    @app.post("/<path:anything>")
    @describe("Fails as its path says", access="anyone", cost="little", owned=False)
    def fail(anything: str) -> str:
        raise {
            "invalid": InvalidRequest("n must be …", param="n"),
            "overloaded": Overloaded("the queue is full", retry_after_s=1.2),
            "failed": GenerationFailed("not finite"),
            "crash": RuntimeError("secret"),
        }[anything.rsplit("/", 1)[-1]]

    return app


def test_openai_envelope_names_the_field(raising: Flask) -> None:
    reply = raising.test_client().post("/v1/x/invalid")
    assert reply.status_code == 400
    assert reply.json == {
        "error": {
            "message": "n must be …",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request_error",
        }
    }


def test_automatic1111_envelope(raising: Flask) -> None:
    reply = raising.test_client().post("/sdapi/v1/invalid")
    assert reply.json is not None
    assert set(reply.json) == {"error", "detail", "body", "errors"}
    assert reply.json["detail"] == "n must be …"


def test_overload_says_when_to_come_back(raising: Flask) -> None:
    reply = raising.test_client().post("/v1/x/overloaded")
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "2")
    assert "x-should-retry" not in reply.headers


def test_failures_that_would_only_cost_again_are_not_retried(raising: Flask) -> None:
    reply = raising.test_client().post("/v1/x/failed")
    assert (reply.status_code, reply.headers["x-should-retry"]) == (500, "false")


def test_a_crash_never_shows_its_insides(raising: Flask) -> None:
    reply = raising.test_client().post("/v1/x/crash")
    assert reply.status_code == 500
    assert "secret" not in reply.text and "Traceback" not in reply.text


def test_unknown_route_is_json(client) -> None:
    reply = client.get("/v1/nothing")
    assert (reply.status_code, reply.json["error"]["code"]) == (404, "not_found")


def test_wrong_method_names_the_right_ones(client) -> None:
    reply = client.get("/dalle")
    assert (reply.status_code, reply.json["code"]) == (405, "method_not_allowed")
    assert "POST" in reply.headers["Allow"]


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/nothing", 404), ("PUT", "/dalle", 405)])
def test_a_refused_request_is_freed_without_the_collector(app: Flask, method: str, path: str, status: int) -> None:
    seen = []

    def see() -> None:
        seen.append(weakref.ref(request._get_current_object()))  # type: ignore[attr-defined]

    app.before_request_funcs[None].insert(0, see)
    gc.disable()
    try:
        assert app.test_client().open(path, method=method, data=b"x" * 1000).status_code == status
        assert [freed() for freed in seen] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/images/generations", "/v1/images/generations"),
        ("/v1/v1/images/generations", "/v1/images/generations"),
        ("/sdapi/v1/sdapi/v1/txt2img", "/sdapi/v1/txt2img"),
    ],
)
def test_a_wrong_base_url_is_told(client: FlaskClient, path: str, meant: str) -> None:
    reply = client.post(path, json={"prompt": "x"})
    assert reply.status_code == 404 and f"did you mean {meant}?" in reply.text
    assert "did you mean" not in client.post("/v1/nowhere", json={}).text


def test_a_slash_at_the_end_changes_no_envelope(client: FlaskClient) -> None:
    bare, slashed = (client.post(path, json={"text": "x", "num_images": 99}) for path in ("/dalle", "/dalle/"))
    assert bare.status_code == slashed.status_code == 400
    assert bare.json == slashed.json and isinstance(bare.json["error"], str)
