"""Other shapes and seamless pictures over HTTP, on every route that takes a size."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.engine.engine import Engine
from dalle_server.pictures.metadata import PictureMetadata, read_metadata
from dalle_server.web.jobs.current import EXTENSION
from tests.fake_runner import FakeRunner, FakeTokenizer, fake_config
from tests.web.jobs.client import Viewer, wait_for

SIDE = 4
Json = dict[str, Any]
Asked = tuple[PictureMetadata, Any]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(FakeRunner(fake_config(SIDE)), FakeTokenizer(), digest="d" * 64)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def client(make_app: Callable[..., Flask]) -> Iterator[FlaskClient]:
    app = make_app()
    yield app.test_client()
    app.extensions[EXTENSION].close()


def told(text: str) -> Asked:
    data = base64.b64decode(text)
    return read_metadata(data), np.asarray(Image.open(io.BytesIO(data)))


def post(client: FlaskClient, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json


def generated(client: FlaskClient, **body: Any) -> Asked:
    reply = post(client, "/v1/images/generations", prompt="x", seed=3, response_format="b64_json", **body)
    return told(reply["data"][0]["b64_json"])


def painted(client: FlaskClient, **body: Any) -> Asked:
    return told(post(client, "/sdapi/v1/txt2img", prompt="x", seed=3, **body)["images"][0])


def responded(client: FlaskClient, **tool: Any) -> Asked:
    reply = post(client, "/v1/responses", input="x", tools=[{"type": "image_generation", "seed": 3, **tool}])
    return told(reply["output"][0]["result"])


def job(client: FlaskClient, **fields: Any) -> Json:
    return wait_for(client, post(client, "/v1/jobs", 202, prompt="x", seed=3, **fields)["id"], "done")


def by_job(client: FlaskClient, **fields: Any) -> Asked:
    return told(base64.b64encode(client.get(job(client, **fields)["images"][0]["url"]).data).decode())


def test_every_route_paints_the_asked_shape(client: FlaskClient) -> None:
    pictures = [
        generated(client, size="1536x1024"),
        painted(client, width=1536, height=1024),
        responded(client, size="1536x1024"),
        by_job(client, size="1536x1024"),
    ]
    for recipe, pixels in pictures:
        assert (recipe.grid_width, recipe.num_tokens) == (6, 24)
        assert pixels.shape == (1024, 1536, 3)
    tokens = [recipe.token_grid() for recipe, _ in pictures]
    assert np.array_equal(tokens[0], tokens[2]) and np.array_equal(tokens[0], tokens[3])
    square, _ = generated(client)
    assert np.array_equal(tokens[0].reshape(4, 6)[:, :4].reshape(-1), square.token_grid())


def test_the_others_come_from_the_square_picture(client: FlaskClient) -> None:
    square, _ = generated(client, size="1024x1024")
    for fit in ("stretch", "crop"):
        recipe, pixels = generated(client, size="1536x1024", fit=fit)
        assert recipe == square and pixels.shape == (1024, 1536, 3)
    assert generated(client, size="1536x1024", fit="paint")[0].grid_width == 6


def test_a_shape_between_two_grids_is_cut_and_not_stretched(client: FlaskClient) -> None:
    """1000x700 is 5.7 columns of 4: six are painted, and what is too much on both sides is cut off."""
    recipe, pixels = generated(client, size="1000x700")
    assert recipe.grid_width == 6 and pixels.shape == (700, 1000, 3)
    whole, _ = generated(client, size="1050x700")
    assert whole.pixels_sha256 == recipe.pixels_sha256


def test_usage_counts_the_tokens_of_the_whole_grid(client: FlaskClient) -> None:
    reply = post(client, "/v1/images/generations", prompt="x", n=2, size="1536x1024", logprobs=True)
    assert reply["usage"]["output_tokens"] == 2 * 24
    assert [len(each["logprobs"]) for each in reply["data"]] == [24, 24]
    best = post(client, "/v1/images/generations", prompt="x", best_of=4, size="1024x1536")
    assert best["usage"]["output_tokens"] == 4 * 24
    reply = post(client, "/v1/responses", input="x", tools=[{"type": "image_generation", "size": "1024x1536"}])
    assert reply["usage"]["output_tokens"] == 24


def test_previews_of_a_stream_are_spread_over_all_windows(client: FlaskClient, engine: Engine) -> None:
    runner = engine._loop.runner
    assert isinstance(runner, FakeRunner)
    runner.step_s = 0.01
    body = {"prompt": "x", "seed": 3, "size": "1536x1024", "stream": True, "partial_images": 3}
    text = client.post("/v1/images/generations", json=body).get_data(as_text=True)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith('data: {"type"')]
    assert [event["type"].rsplit(".")[-1] for event in events] == ["partial_image"] * 3 + ["completed"]
    shapes = {np.asarray(Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))).shape for event in events}
    assert shapes == {(1024, 1536, 3)}


def test_progress_of_txt2img_counts_all_windows(client: FlaskClient) -> None:
    info = json.loads(post(client, "/sdapi/v1/txt2img", prompt="x", width=1536, height=1024)["info"])
    assert (info["width"], info["height"]) == (1536, 1024)


def test_seamless_everywhere(client: FlaskClient) -> None:
    plain, _ = generated(client)
    job = post(client, "/v1/jobs", 202, prompt="x", seed=3, seamless=True)
    assert job["seamless"]
    done = wait_for(client, job["id"], "done")
    file = client.get(done["images"][0]["url"]).data
    recipes = [
        generated(client, seamless=True)[0],
        painted(client, tiling=True)[0],
        responded(client, seamless=True)[0],
        read_metadata(file),
    ]
    for recipe in recipes:
        assert recipe.seamless and recipe.pixels_sha256 != plain.pixels_sha256
        assert np.array_equal(recipe.token_grid(), plain.token_grid())
    assert len({recipe.pixels_sha256 for recipe in recipes}) == 1


def test_seamless_is_for_the_models_own_shape(client: FlaskClient) -> None:
    recipe, pixels = painted(client, tiling=True, width=96, height=64)
    assert recipe.seamless and not recipe.grid_width and pixels.shape == (64, 96, 3)
    body: dict[str, Any] = {"prompt": "x", "seamless": True, "fit": "paint", "size": "96x64"}
    assert post(client, "/v1/images/generations", 400, **body)["error"]["param"] == "seamless"


def test_nothing_is_painted_around_a_given_picture(client: FlaskClient) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    body: dict[str, Any] = {"prompt": "x", "images": [{"image_url": url}], "size": "96x64"}
    assert post(client, "/v1/images/edits", 400, **body, fit="paint")["error"]["param"] == "fit"
    recipe, pixels = told(post(client, "/v1/images/edits", **body)["data"][0]["b64_json"])
    assert not recipe.grid_width and pixels.shape == (64, 96, 3)


def test_a_job_tells_its_size_and_counts_all_windows(client: FlaskClient, engine: Engine) -> None:
    runner = engine._loop.runner
    assert isinstance(runner, FakeRunner)
    runner.step_s = 0.01
    asked = post(client, "/v1/jobs", 202, prompt="x", seed=3, num_images=2, size="300x100", fit="paint")
    assert (asked["size"], asked["fit"]) == ("300x100", "paint")
    viewer = Viewer(client, f"/v1/jobs/{asked['id']}/events")
    viewer.read_until("done")
    shown = {
        name: [data for _, event, data in viewer.seen if event == name] for name in ("progress", "preview", "image")
    }
    assert shown["progress"][-1]["num_tokens"] == shown["progress"][-1]["tokens_done"] == 2 * 5 * 16
    assert {(each["width_px"], each["height_px"]) for each in shown["image"]} == {(300, 100)}
    pictures = [base64.b64decode(each["image"].partition(",")[2]) for each in shown["preview"]]
    assert pictures and {Image.open(io.BytesIO(each)).size for each in pictures} == {(96, 32)}
    plain = job(client)
    assert (plain["size"], plain["fit"], plain["images"][0]["width_px"]) == (None, None, SIDE * 8)


def test_a_jobs_other_ways_to_a_size_are_those_of_the_other_routes(client: FlaskClient) -> None:
    for fit in ("crop", "stretch"):
        (recipe, pixels), (same, others) = (way(client, size="96x64", fit=fit) for way in (by_job, generated))
        assert recipe == same and np.array_equal(pixels, others)
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    over = by_job(client, image=image, size="96x64")[1]
    body: Json = {
        "images": [{"image_url": f"data:image/png;base64,{image}"}],
        "size": "96x64",
        "prompt": "x",
        "seed": 3,
    }
    assert np.array_equal(over, told(post(client, "/v1/images/edits", **body)["data"][0]["b64_json"])[1])
    for fields, param in (
        ({"size": "96"}, "size"),
        ({"size": "1024x16"}, "size"),
        ({"size": "3840x2160", "num_images": 8}, "size"),
        ({"fit": "zoom"}, "fit"),
        ({"fit": "paint", "image": image}, "fit"),
        ({"fit": "paint", "seamless": True}, "seamless"),
    ):
        assert post(client, "/v1/jobs", 400, prompt="x", **fields)["error"]["param"] == param
    assert len(client.get("/v1/jobs").json["data"]) == 3


def test_features_name_seamless(client: FlaskClient) -> None:
    reply = client.get("/v1/info").json
    assert reply is not None and '"seamless"' in json.dumps(reply)
