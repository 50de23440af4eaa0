import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.config import Settings
from dalle_server.errors import GenerationFailed, Overloaded, WeightsNotFound
from dalle_server.web.app import create_app
from dalle_server.web.routing import routes
from dalle_server.web.service import Service
from tests.web.scripted_engine import ScriptedEngine

MakeApp = Callable[..., Flask]
BODY = {"text": "x", "num_images": 2}


def metric(client: FlaskClient, name: str) -> float:
    text = client.get("/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
    assert found, f"{name} is not in\n{text}"
    return float(found[1])


def eventually(check: Callable[[], bool]) -> bool:
    """True when check holds soon: the books are closed just after the answer."""
    end = time.monotonic() + 30
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def test_alive_but_not_ready_while_loading(engine: ScriptedEngine, tmp_path: Path) -> None:
    loaded = threading.Event()

    def load() -> ScriptedEngine:
        loaded.wait(30)
        return engine

    service = Service(Settings(data_dir=tmp_path), load=load)
    service.start_loading()
    client = create_app(service.settings, service).test_client()
    assert client.get("/health").json["model"] == "loading"
    refused = client.get("/ready")
    assert (refused.status_code, refused.json["state"], refused.headers["Retry-After"]) == (503, "loading", "2")
    assert client.get("/v1/info").status_code == 503
    assert metric(client, "dalle_ready") == 0
    loaded.set()
    assert service.wait_until_loaded(30)
    assert client.get("/ready").json == {"ready": True, "state": "ready", "reason": None}


def test_a_failed_load_says_why(tmp_path: Path) -> None:
    def load() -> ScriptedEngine:
        raise WeightsNotFound("no weights; pull them")

    service = Service(Settings(data_dir=tmp_path), load=load)
    service.start_loading().join()
    client = create_app(service.settings, service).test_client()
    assert client.get("/ready").json == {"ready": False, "state": "failed", "reason": "no weights; pull them"}
    reply = client.post("/dalle", json=BODY)
    assert reply.status_code == 503 and "no weights" in reply.json["error"]
    assert int(reply.headers["Retry-After"]) > 0


@pytest.mark.parametrize(("engine_state", "state"), [("restarting", "loading"), ("failed", "failed")])
def test_a_broken_engine_is_not_ready(
    client: FlaskClient, engine: ScriptedEngine, engine_state: str, state: str
) -> None:
    engine.state = engine_state
    reply = client.get("/ready")
    assert (reply.status_code, reply.json["state"]) == (503, state)


def test_draining_refuses_new_work_only(app: Flask) -> None:
    client = app.test_client()
    app.extensions["dalle_server"].drain()
    assert client.get("/ready").json["state"] == "draining"
    reply = client.post("/dalle", json=BODY)
    assert reply.status_code == 503 and "Retry-After" in reply.headers
    assert client.get("/health").status_code == 200


def test_info_says_what_runs_and_why(client: FlaskClient) -> None:
    info = client.get("/v1/info").json
    assert info["runner"]["build"] is None, "told also where no compiled code runs"
    assert info["model"]["name"] == "scripted" and info["model"]["image_px"] == 16
    assert info["model"]["determinism"] == "bit-exact"
    assert info["runner"]["reason"] == "the tests asked for it"
    assert info["limits"]["max_images"] == 16


def test_requests_are_counted_by_outcome(client: FlaskClient, engine: ScriptedEngine) -> None:
    client.post("/dalle", json=BODY)
    engine.fail_with = GenerationFailed("not finite")
    client.post("/dalle", json=BODY)
    engine.submit_error = Overloaded("full")
    client.post("/dalle", json=BODY)
    for outcome in ("done", "failed", "refused"):
        assert eventually(lambda: metric(client, f'dalle_requests_total{{outcome="{outcome}"}}') == 1)  # noqa: B023
    assert metric(client, "dalle_request_seconds_count") == 1
    assert metric(client, "dalle_queue_seconds_count") == 1
    assert metric(client, "dalle_slots") == 4
    assert metric(client, 'dalle_http_responses_total{method="POST",route="/dalle",status="200"}') == 1


def test_made_up_methods_and_paths_make_no_new_metrics(client: FlaskClient) -> None:
    for name in ("LOOK", "TOUCH"):
        assert client.open(f"/{name}", method=name).status_code == 404
    assert metric(client, 'dalle_http_responses_total{method="other",route="none",status="404"}') == 2
    assert "LOOK" not in client.get("/metrics").text


def test_steps_and_previews_are_measured(app: Flask, engine: ScriptedEngine) -> None:
    client = app.test_client()
    app.extensions["dalle_server"].bookkeeping.on_step(3, 0.02)
    assert metric(client, 'dalle_batch_rows_bucket{le="8.0"}') == 1
    assert metric(client, 'dalle_batch_rows_bucket{le="4.0"}') == 0
    assert metric(client, "dalle_step_seconds_sum") == 0.02


def test_generations_are_logged_with_their_request(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client.post("/dalle", json={"text": "a secret wish", "num_images": 2}, headers={"x-request-id": "abc"})
    assert eventually(lambda: "outcome=" in caplog.text)
    line = next(record.getMessage() for record in caplog.records if record.name == "dalle_server.generation")
    assert re.match(
        r"request=abc generation=gen-\w+ route=/dalle model=scripted images=2 seed=\d+ text_tokens=5 "
        r"queue_s=0\.000 steps=16 total_s=0\.010 outcome=done$",
        line,
    )
    assert "secret" not in caplog.text


def test_prompts_are_logged_when_asked(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make_app(log_prompts=True).test_client().post("/dalle", json={"text": "a\nfake=line", "num_images": 1})
    assert eventually(lambda: 'prompt="a\\nfake=line"' in caplog.text)


def test_one_client_cannot_fill_the_queue(make_app: MakeApp, engine: ScriptedEngine) -> None:
    app = make_app(queue_share=0.05, max_waiting_images=64)  # 4 pictures
    engine.gate.clear()
    client = app.test_client()
    waiting = threading.Thread(target=lambda: app.test_client().post("/dalle", json={"text": "x", "num_images": 3}))
    waiting.start()
    assert eventually(lambda: len(engine.requests) == 1)
    refused = client.post("/dalle", json=BODY)
    assert refused.status_code == 429 and "3 of your pictures" in refused.json["error"]
    engine.gate.set()
    waiting.join()
    assert eventually(lambda: client.post("/dalle", json=BODY).status_code == 200)


def test_openapi_document_is_valid_and_covers_every_api(client: FlaskClient) -> None:
    api = client.get("/openapi.json").json
    assert api["openapi"] == "3.1.0"
    for path in ("/", "/dalle", "/v1/images/generations", "/sdapi/v1/txt2img", "/v1/jobs", "/health", "/v1/info"):
        assert path in api["paths"], path
    names = set(api["components"]["schemas"])
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', client.get("/openapi.json").text))
    assert references <= names
    for schema in api["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    operations = [operation for methods in api["paths"].values() for operation in methods.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))


def test_every_route_is_described_or_a_page(app: Flask) -> None:
    hidden = {rule.rule for rule, route in routes(app) if not route.listed}
    assert {path for path in hidden if not path.startswith("/playground")} == {"/docs", "/openapi.json"}


def test_docs_page_needs_nothing_from_elsewhere(client: FlaskClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and page.mimetype == "text/html"
    assert "/v1/images/generations" in page.text and "condition_scale" in page.text
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page.text) and "<script" not in page.text


def test_the_document_tells_the_bounds_of_every_number(client: FlaskClient) -> None:
    """Also of those that a function of ours reads first, which pydantic writes down under names that nobody knows."""
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    n = schemas["ImageGenerationBody"]["properties"]["n"]["anyOf"][0]
    assert (n["minimum"], n["maximum"], n["type"]) == (1, 10, "integer")
    assert not re.findall(r'"(?:ge|gt|le|lt)":', client.get("/openapi.json").text)
