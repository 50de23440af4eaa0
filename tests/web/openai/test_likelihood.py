"""best_of, logprobs and /v1/images/score, on the real engine with a runner without weights."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dalle_server.pictures.codec import ImageFormat, encode_image
from dalle_server.request import GenerationRequest
from tests.fake_runner import FakeRunner, fake_config
from tests.web.live import Live, live


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("data"), FakeRunner(fake_config(grid_side=4)), max_images=8) as server:
        yield server


def post(server: Live, path: str, **body: Any) -> Any:
    asked = urllib.request.Request(f"{server.url}{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


def generate(server: Live, **body: Any) -> Any:
    return post(server, "/v1/images/generations", prompt="a red apple", response_format="b64_json", seed=3, **body)


def stream(server: Live, **body: Any) -> list[Any]:
    """The data of the events that complete a picture."""
    wanted = {"prompt": "a red apple", "seed": 3, "stream": True, **body}
    asked = urllib.request.Request(f"{server.url}/v1/images/generations", json.dumps(wanted).encode())
    with urllib.request.urlopen(asked, timeout=30) as reply:
        lines = [line.removeprefix(b"data: ") for line in reply if line.startswith(b"data: {")]
    return [event for event in map(json.loads, lines) if event["type"].endswith(".completed")]


def test_the_likeliest_of_those_drawn_come_best_first(server: Live) -> None:
    every = generate(server, n=6, logprobs=True)
    scores = [data["score"] for data in every["data"]]
    assert len(set(scores)) == 6
    best = generate(server, n=2, best_of=6)
    order = sorted(range(6), key=lambda i: -scores[i])[:2]
    assert [data["image_index"] for data in best["data"]] == order
    assert [data["b64_json"] for data in best["data"]] == [every["data"][i]["b64_json"] for i in order]
    assert [data["score"] for data in best["data"]] == [scores[i] for i in order]
    assert all("logprobs" not in data for data in best["data"])
    assert best["usage"]["output_tokens"] == 6 * 16, "what was drawn in vain was drawn"
    events = stream(server, n=2, best_of=6)
    assert [event["b64_json"] for event in events] == [data["b64_json"] for data in best["data"]]
    told = [event["usage"] for event in events]
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert sum(usage[name] for usage in told) == best["usage"][name], "also one by one"


def test_logprobs_are_a_map_of_the_picture(server: Live) -> None:
    (data,) = generate(server, logprobs=True)["data"]
    assert len(data["logprobs"]) == 16 and max(data["logprobs"]) < 0
    assert abs(sum(data["logprobs"]) - data["score"]) < 0.01
    (plain,) = generate(server)["data"]
    assert plain["b64_json"] == data["b64_json"] and "score" not in plain


def test_a_stream_tells_of_the_chosen_ones_at_the_end(server: Live) -> None:
    body = {"prompt": "x", "seed": 3, "n": 2, "best_of": 4, "stream": True, "partial_images": 2}
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.url}/v1/images/generations", json.dumps(body).encode()), timeout=30
    ) as reply:
        text = reply.read().decode()
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [event["type"] for event in events] == ["image_generation.completed"] * 2
    plain = post(server, "/v1/images/generations", **{**body, "stream": False, "response_format": "b64_json"})
    assert [event["image_index"] for event in events] == [data["image_index"] for data in plain["data"]]


def test_the_web_uis_clients_have_it_too(server: Live) -> None:
    reply = post(server, "/sdapi/v1/txt2img", prompt="a red apple", seed=40, best_of=5)
    (seed,) = json.loads(reply["info"])["all_seeds"]
    assert len(reply["images"]) == 1 and 40 <= seed < 45
    alone = post(server, "/sdapi/v1/txt2img", prompt="a red apple", seed=seed)
    assert alone["images"] == reply["images"]


def test_a_response_has_the_likeliest_too(server: Live) -> None:
    best = generate(server, best_of=4)["data"][0]
    tool = {"type": "image_generation", "seed": best["seed"], "best_of": 4}
    reply = post(server, "/v1/responses", input="a red apple", tools=[tool])
    assert reply["output"][0]["result"] == best["b64_json"] and best["image_index"] != 0
    assert reply["usage"]["output_tokens"] == 4 * 16


def test_a_score_is_what_the_model_said_while_it_drew(server: Live) -> None:
    (drawn,) = generate(server, logprobs=True)["data"]
    told = post(server, "/v1/images/score", prompt="a red apple", image=drawn["b64_json"])
    assert (told["grid_width"], told["grid_height"]) == (4, 4)
    assert np.allclose(told["logprobs"], drawn["logprobs"], atol=1e-3)
    assert abs(told["total"] - drawn["score"]) < 0.01
    other = post(server, "/v1/images/score", prompt="a pear", image=f"data:image/png;base64,{drawn['b64_json']}")
    assert other["logprobs"] != told["logprobs"]


def test_what_could_not_have_been_drawn_is_null(server: Live) -> None:
    image = server.engine.submit(GenerationRequest.of("a red apple", seed=1)).result()[0]
    text = base64.b64encode(encode_image(image.pixels, ImageFormat.PNG)).decode()
    told = post(server, "/v1/images/score", prompt="a pear", image=text, top_k=1)
    assert None in told["sampled_logprobs"] and all(value is not None for value in told["logprobs"])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/images/generations", {"prompt": "x", "n": 3, "best_of": 2}, "best_of"),
        ("/v1/images/generations", {"prompt": "x", "best_of": 9}, "best_of"),
        ("/v1/images/score", {"prompt": "x", "image": "aGVsbG8="}, "image"),
        ("/v1/images/score", {"prompt": " ", "image": "aGVsbG8="}, "image"),
        ("/v1/images/score", {"image": "aGVsbG8="}, "prompt"),
        ("/v1/images/score", {"prompt": "x", "image": "http://127.0.0.1/"}, "image"),
    ],
)
def test_what_is_wrong_is_named(server: Live, path: str, body: Any, param: str) -> None:
    reply = post(server, path, **body)
    assert (reply["status"], reply["error"]["param"]) == (400, param)
