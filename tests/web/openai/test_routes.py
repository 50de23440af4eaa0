"""The OpenAI Images API on a scripted engine: fields, forms of results, streams, errors."""

import base64
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.errors import GenerationFailed, Overloaded
from dalle_server.pictures.metadata import read_metadata
from dalle_server.request import ImageKey, SamplingParams
from dalle_server.web.openai.names import ALIASES
from tests.web.scripted_engine import ScriptedEngine


def generate(client: FlaskClient, status: int = 200, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/images/generations", json={"prompt": "a red apple", **body})
    assert reply.status_code == status, reply.text
    return dict(reply.json)  # type: ignore[arg-type]


def picture(data: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data["b64_json"])))


def events(client: FlaskClient, **body: Any) -> list[tuple[str, Any]]:
    reply = client.post("/v1/images/generations", json={"prompt": "x", "stream": True, **body})
    assert reply.status_code == 200
    assert reply.mimetype == "text/event-stream"
    found = []
    for block in reply.text.removeprefix(": accepted\n\n").strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def test_a_plain_request_gets_pictures_seeds_and_real_token_counts(client: FlaskClient) -> None:
    reply = generate(client, n=2, seed=7)
    assert [(data["seed"], data["image_index"]) for data in reply["data"]] == [(7, 0), (7, 1)]
    assert reply["output_format"] == "png"
    assert reply["size"] == "16x16"
    assert reply["usage"] == {
        "input_tokens": 5,
        "output_tokens": 32,
        "total_tokens": 37,
        "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 32},
    }
    assert reply["created"] > 1_700_000_000


def test_our_extra_fields_reach_the_engine(client: FlaskClient, engine: ScriptedEngine) -> None:
    generate(client, seed=3, n=2, top_k=5, top_p=0.5, temperature=2, condition_scale=4.0)
    (request,) = engine.requests
    assert request.sampling == SamplingParams(top_k=5, top_p=0.5, temperature=2.0, condition_scale=4.0)
    assert request.images == (ImageKey(3, 0), ImageKey(3, 1))
    assert request.timeout_s == 600
    assert request.client


def test_every_field_of_the_official_client_is_accepted(client: FlaskClient) -> None:
    generate(
        client, model="dall-e-3", quality="hd", style="vivid", background="transparent", moderation="low",
        user="u", safety_identifier="s", something_new=1,
    )  # fmt: skip
    nothing = dict.fromkeys(
        ("model", "n", "size", "quality", "response_format", "output_compression", "stream", "seed")
    )
    generate(client, **nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "forms"),
    [
        ({}, {"b64_json", "url"}),
        ({"model": "dall-e-2"}, {"b64_json", "url"}),
        ({"model": "gpt-image-1"}, {"b64_json"}),
        ({"response_format": "url", "model": "gpt-image-1"}, {"url"}),
        ({"response_format": "b64_json"}, {"b64_json"}),
    ],
)
def test_response_format_decides_the_form(client: FlaskClient, fields: dict[str, str], forms: set[str]) -> None:
    (data,) = generate(client, **fields)["data"]  # type: ignore[arg-type]
    assert set(data) - {"seed", "image_index"} == forms


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_size_format_and_metadata_of_the_file(client: FlaskClient, output_format: str) -> None:
    (data,) = generate(client, output_format=output_format, size="64x32", seed=9)["data"]
    image = picture(data)
    assert (image.format or "").lower() == output_format
    assert image.size == (64, 32)
    metadata = read_metadata(base64.b64decode(data["b64_json"]))
    assert (metadata.prompt, metadata.seed, metadata.model) == ("a red apple", 9, "scripted")


def test_compression_trades_size(client: FlaskClient) -> None:
    small, large = (
        len(generate(client, output_format="jpeg", size="256x256", seed=1, output_compression=q)["data"][0]["b64_json"])
        for q in (5, 100)
    )
    assert small < large


def test_urls_show_the_picture_until_their_time_is_over(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    client = make_app(url_ttl_s=60, data_dir=tmp_path).test_client()
    (data,) = generate(client, output_format="webp", seed=1)["data"]
    reply = client.get(data["url"], buffered=True)
    assert reply.status_code == 200
    assert reply.mimetype == "image/webp" and reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.data == base64.b64decode(data["b64_json"])
    (file,) = (tmp_path / "pictures").iterdir()
    os.utime(file, (time.time() - 61,) * 2)
    assert client.get(data["url"]).status_code == 404


@pytest.mark.parametrize("name", ["x", "..%2f..%2fetc%2fpasswd", "a" * 32 + ".png", "a" * 32 + ".svg", "%00"])
def test_guessed_picture_names_find_nothing(client: FlaskClient, name: str) -> None:
    assert client.get(f"/pictures/{name}").status_code == 404


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": " \n"}, "prompt", "prompt must"),
        ({"prompt": "x" * 32_001}, "prompt", "32000"),
        ({"prompt": 3}, "prompt", "string, not 3"),
        ({"n": 0}, "n", "greater than or equal to 1, not 0"),
        ({"n": 11}, "n", "less than or equal to 10, not 11"),
        ({"n": "3"}, "n", "integer, not '3'"),
        ({"n": True}, "n", "integer, not True"),
        ({"size": "huge"}, "size", "size must"),
        ({"size": "10x10"}, "size", "16 to 3840 pixels, not '10x10'"),
        ({"size": "4096x4096"}, "size", "16 to 3840 pixels"),
        ({"size": "3840x3840"}, "size", "no larger than 3840x2160"),
        ({"size": "64x256"}, "size", "no longer than 3 times its other side, not '64x256'"),
        ({"size": "3840x2160", "n": 5}, "size", "5 of 3840x2160 are 41,472,000 pixels, and one request may have"),
        ({"prompt": "\u200b"}, "prompt", "prompt must not be empty"),
        ({"image_index": -1}, "image_index", "greater than or equal to 0"),
        ({"response_format": "file", "n": 2}, "response_format", "for one picture"),
        ({"response_format": "file", "stream": True}, "response_format", "for one picture"),
        ({"output_format": "svg"}, "output_format", "'png', 'jpeg' or 'webp', not 'svg'"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**64}, "seed", "seed must"),
        ({"top_p": 0}, "top_p", "top_p must"),
        ({"response_format": "png"}, "response_format", "'url', 'b64_json' or 'file', not 'png'"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp', not 'gif'"),
        ({"output_compression": 101}, "output_compression", "100, not 101"),
        ({"partial_images": 4}, "partial_images", "3, not 4"),
    ],
)
def test_faults_name_the_field_and_the_value(client: FlaskClient, body: dict[str, Any], param: str, says: str) -> None:
    error = generate(client, 400, **body)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]


def test_an_unknown_model_is_not_found(client: FlaskClient) -> None:
    error = generate(client, 404, model="sdxl")["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'scripted'" in error["message"]
    assert client.get("/v1/models/sdxl").json["error"]["code"] == "model_not_found"


def test_models_lists_the_loaded_one_and_its_aliases(client: FlaskClient) -> None:
    listed = client.get("/v1/models").json
    assert [model["id"] for model in listed["data"]] == ["scripted", *ALIASES]
    for name in ("scripted", *ALIASES):
        assert client.get(f"/v1/models/{name}").json["id"] == name


def test_overload_says_when_to_come_back(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.submit_error = Overloaded("the queue is full", retry_after_s=7)
    reply = client.post("/v1/images/generations", json={"prompt": "x", "stream": True})
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "7")
    assert "x-should-retry" not in reply.headers


def test_a_failed_generation_is_not_worth_a_retry(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.fail_with = GenerationFailed("the logits were not finite")
    reply = client.post("/v1/images/generations", json={"prompt": "x"})
    assert (reply.status_code, reply.headers["x-should-retry"]) == (500, "false")


@pytest.mark.parametrize(("partial_images", "at"), [(0, []), (1, [8]), (2, [6, 12]), (3, [4, 8, 12])])
def test_partial_images_spread_evenly(
    client: FlaskClient, engine: ScriptedEngine, partial_images: int, at: list[int]
) -> None:
    found = events(client, partial_images=partial_images, size="32x32")
    names = [name for name, _ in found]
    assert names == ["image_generation.partial_image"] * partial_images + ["image_generation.completed", ""]
    every = engine.requests[0].preview_every
    assert (list(range(every, 16, every)) if every else []) == at


def test_a_stream_carries_every_picture_with_its_previews(client: FlaskClient) -> None:
    found = events(client, n=2, partial_images=2, seed=4, output_format="webp")
    assert found[-1] == ("", "[DONE]")
    for name, data in found[:-1]:
        assert data["type"] == name
        assert {"b64_json", "created_at", "size", "quality", "background", "output_format", "image_index"} <= set(data)
        assert picture(data).format == "WEBP"
    partial = [
        (data["image_index"], data["partial_image_index"])
        for name, data in found[:-1]
        if name.endswith("partial_image")
    ]
    assert partial == [(0, 0), (0, 1), (1, 0), (1, 1)]
    completed = [data for name, data in found[:-1] if name.endswith("completed")]
    assert [data["image_index"] for data in completed] == [0, 1]
    assert sum(data["usage"]["total_tokens"] for data in completed) == 3 + 32
    assert read_metadata(base64.b64decode(completed[1]["b64_json"])).image_index == 1


def test_a_stream_that_fails_says_so_as_an_event(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.fail_with = GenerationFailed("the logits were not finite")
    ((name, data),) = events(client, partial_images=1)
    assert (name, data["error"]["code"]) == ("error", "generation_failed")


def test_a_reader_that_leaves_cancels_the_generation(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    reply = client.post("/v1/images/generations", json={"prompt": "x", "stream": True}, buffered=False)
    (generation,) = engine.generations
    assert generation.cancel_reason is None
    reply.close()
    assert generation.cancel_reason == "the client left"


def test_a_leaving_client_is_noticed_between_events(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    environ = {"waitress.client_disconnected": lambda: True}
    reply = client.post("/v1/images/generations", json={"prompt": "x", "stream": True}, environ_overrides=environ)
    assert "cancelled" in reply.text
    reply = client.post("/v1/images/generations", json={"prompt": "x"}, environ_overrides=environ)
    assert reply.status_code == 499
    assert [generation.cancel_reason for generation in engine.generations] == ["the client left"] * 2


@pytest.mark.parametrize(
    ("headers", "body", "kind"),
    [
        ({}, {"response_format": "file"}, "image/png"),
        ({}, {"response_format": "file", "output_format": "jpeg"}, "image/jpeg"),
        ({"Accept": "image/*"}, {}, "image/png"),
        ({"Accept": "image/webp"}, {}, "image/webp"),
        ({"Accept": "image/webp"}, {"output_format": "jpeg"}, "image/jpeg"),
        ({"Accept": "*/*"}, {}, "application/json"),
        ({"Accept": "image/png"}, {"n": 2}, "application/json"),
        ({"Accept": "image/png"}, {"response_format": "b64_json"}, "application/json"),
        ({"Accept": "application/json, image/png"}, {}, "application/json"),
    ],
)
def test_a_bare_picture_is_the_answer_where_it_is_asked_for(
    client: FlaskClient, headers: dict[str, str], body: dict[str, Any], kind: str
) -> None:
    reply = client.post("/v1/images/generations", json={"prompt": "a red apple", "seed": 3, **body}, headers=headers)
    assert (reply.status_code, reply.mimetype) == (200, kind)
    if kind != "application/json":
        assert read_metadata(reply.data).seed == 3
        assert Image.open(io.BytesIO(reply.data)).get_format_mimetype() == kind


@pytest.mark.parametrize("model", ["", None, "SCRIPTED", "gpt-image-7-turbo", "dall-e-4"])
def test_other_ways_to_say_the_loaded_model(client: FlaskClient, model: str | None) -> None:
    generate(client, model=model)


@pytest.mark.parametrize("name", ["gpt-image", "gpt-image-", "gpt-4o", "xgpt-image-1", "dall-e-3 "])
def test_names_that_are_near_are_not_found(client: FlaskClient, name: str) -> None:
    generate(client, 404, model=name)


def test_an_empty_size_and_whole_floats_are_taken(client: FlaskClient, engine: ScriptedEngine) -> None:
    generate(client, size="", n=2.0, seed=7.0, top_k=5.0, output_compression=50.0)
    assert engine.requests[0].images == (ImageKey(7, 0), ImageKey(7, 1))
    assert "integer, not 2.5" in generate(client, 400, n=2.5)["error"]["message"]


def test_a_stream_tells_the_index_under_which_a_picture_is_found_again(client: FlaskClient) -> None:
    found = events(client, seed=4, image_index=5, partial_images=1)
    assert {data["image_index"] for _, data in found if data != "[DONE]"} == {5}


def test_another_shape_is_painted_stretched_or_cut(client: FlaskClient) -> None:
    painted, stretched, cut = (
        np.asarray(picture(generate(client, seed=3, size="64x32", fit=fit)["data"][0]).convert("RGB"))
        for fit in (None, "stretch", "crop")
    )
    assert stretched.shape == painted.shape == cut.shape == (32, 64, 3)
    assert "'paint', 'crop' or 'stretch', not 'contain'" in generate(client, 400, fit="contain")["error"]["message"]
