"""A burst over a full queue: the first is refused by the engine, the rest of its tenth of a second without asking."""

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.engine.stats import EngineStats
from dalle_server.errors import Overloaded
from dalle_server.generation import Generation, GenerationRequest
from dalle_server.web import service
from tests.web.scripted_engine import ScriptedEngine

ROUTES = {
    "/dalle": {"text": "x", "num_images": 1},
    "/v1/images/generations": {"prompt": "x"},
    "/sdapi/v1/txt2img": {"prompt": "x"},
}


class FullEngine(ScriptedEngine):
    asked = 0
    waiting = 64

    def submit(self, request: GenerationRequest) -> Generation:
        self.asked += 1
        raise Overloaded("the queue has room for 0 more pictures, not 1; try again later", retry_after_s=3)

    def stats(self) -> EngineStats:
        return EngineStats(num_slots=4, running=4, waiting=self.waiting)


@pytest.fixture
def engine() -> ScriptedEngine:
    return FullEngine()


@pytest.fixture
def long_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(service, "FULL_S", 60.0)
    yield


@pytest.mark.usefixtures("long_memory")
@pytest.mark.parametrize("path", ROUTES)
def test_the_second_refusal_reads_like_the_first(client: FlaskClient, engine: FullEngine, path: str) -> None:
    slow, fast = (client.post(path, json=ROUTES[path], headers={"x-request-id": f"my-{n}"}) for n in (1, 2))
    assert engine.asked == 1
    for reply in (slow, fast):
        assert (reply.status_code, reply.headers["Retry-After"], reply.mimetype) == (503, "3", "application/json")
    assert fast.headers["x-request-id"] == "my-2" and "queue" in fast.text

    def shape(body: object) -> object:
        return {name: shape(value) for name, value in body.items()} if isinstance(body, dict) else type(body)

    assert shape(slow.json) == shape(fast.json)
    metrics = client.get("/metrics").text
    assert 'dalle_requests_total{outcome="refused"} 2.0' in metrics
    assert f'dalle_http_responses_total{{method="POST",route="{path}",status="503"}} 2.0' in metrics


@pytest.mark.usefixtures("long_memory")
def test_who_gets_the_long_answer(client: FlaskClient, engine: FullEngine) -> None:
    """A page needs its CORS headers; a job has a queue of its own; pages, pictures and life signs need no place."""
    client.post("/dalle", json=ROUTES["/dalle"])
    page = client.post("/dalle", json=ROUTES["/dalle"], headers={"Origin": "https://a"})
    assert engine.asked == 2 and page.headers["Access-Control-Allow-Origin"] in ("*", "https://a")
    assert client.get("/dalle").status_code == 405
    assert client.get("/health").status_code == client.get("/v1/models").status_code == 200
    client.post("/v1/jobs", json={"prompt": "x"})
    assert engine.asked == 3
    assert client.post("/v1/images/made-up").status_code == 404


def test_it_is_forgotten(make_app: Callable[..., Flask], engine: FullEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FULL_S", 0.0)
    client = make_app().test_client()
    for _ in range(3):
        client.post("/dalle", json=ROUTES["/dalle"])
    assert engine.asked == 3


@pytest.mark.usefixtures("long_memory")
def test_no_room_for_many_may_be_room_for_one(client: FlaskClient, engine: FullEngine) -> None:
    engine.waiting = 63
    for _ in range(3):
        assert client.post("/dalle", json={"text": "x", "num_images": 2}).status_code == 503
    assert engine.asked == 3
