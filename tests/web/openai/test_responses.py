"""POST /v1/responses with the tool image_generation, as the official client and others send it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.errors import GenerationFailed
from dalle_server.pictures.metadata import read_metadata
from tests.fake_runner import FakeRunner, fake_config
from tests.web.live import live
from tests.web.scripted_engine import ScriptedEngine

TOOLS: list[Any] = [{"type": "image_generation"}]
WORDS = {"type": "input_text", "text": "a red apple"}
AS_IN_CHAT = {"type": "input_image", "image_url": {"url": "data:,"}}
REMOTE = {"type": "input_image", "image_url": "https://example.org/a.png"}


def respond(client: FlaskClient, status: int = 200, **body: Any) -> Any:
    reply = client.post("/v1/responses", json={"model": "gpt-5", "input": "a red apple", "tools": TOOLS, **body})
    assert reply.status_code == status, reply.text
    return reply.json


def test_the_text_is_the_prompt_and_the_picture_the_output(client: FlaskClient, engine: ScriptedEngine) -> None:
    reply = respond(client)
    (call,) = reply["output"]
    assert (call["type"], call["status"], call["revised_prompt"]) == (
        "image_generation_call",
        "completed",
        "a red apple",
    )
    assert read_metadata(base64.b64decode(call["result"])).prompt == "a red apple"
    assert (reply["object"], reply["status"], reply["model"]) == ("response", "completed", "gpt-5")
    assert reply["usage"]["total_tokens"] == 5 + 16


@pytest.mark.parametrize(
    "words",
    [
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "two pears"}],
        [{"role": "user", "content": [{"type": "input_text", "text": "two pears"}]}],
        [
            {"role": "user", "content": "a cat"},
            {"role": "assistant", "content": "here"},
            {"role": "user", "content": "two pears"},
        ],
        [{"role": "user", "content": "two pears"}, {"type": "image_generation_call", "id": "ig_1"}],
    ],
)  # fmt: skip
def test_the_users_last_message_counts(client: FlaskClient, engine: ScriptedEngine, words: Any) -> None:
    respond(client, input=words)
    assert engine.requests[0].prompt == "two pears"


def test_the_tools_fields_count(client: FlaskClient, engine: ScriptedEngine) -> None:
    tool = {
        "type": "image_generation", "size": "64x32", "output_format": "webp", "quality": "high", "model": "gpt-image-2",
        "background": "transparent", "moderation": "low", "action": "generate", "seed": 7, "image_index": 3,
        "negative_prompt": "fog", "guidance_scale": 3,
    }  # fmt: skip
    (call,) = respond(client, tools=[{"type": "web_search"}, tool])["output"]
    image = Image.open(io.BytesIO(base64.b64decode(call["result"])))
    assert (image.size, image.format) == ((64, 32), "WEBP")
    assert (call["size"], call["quality"], call["output_format"], call["background"]) == (
        "64x32",
        "high",
        "webp",
        "opaque",
    )
    request, *_ = engine.requests  # the first window: 64x32 is painted
    assert [(key.seed, key.index) for key in request.images] == [(7, 3)]
    assert (request.negative_prompt, request.sampling.condition_scale) == ("fog", 3.0)


@pytest.mark.parametrize(
    "other",
    [
        {"type": "function", "name": "f", "parameters": {}, "model": 5, "size": "huge", "seed": "x", "stream": 3},
        {"type": "file_search", "n": 0, "best_of": [], "strength": 7, "keep_tokens": -1, "prompt": None},
        {"type": 7},
        {},
    ],
)
def test_other_tools_are_ignored_whatever_they_hold(client: FlaskClient, other: Any) -> None:
    """Their fields may be called as ours are."""
    for tools in ([other, *TOOLS], [*TOOLS, other]):
        assert respond(client, tools=tools)["output"]
    bad = {"type": "image_generation", "size": "huge"}
    assert respond(client, 400, tools=[other, bad])["error"]["param"] == "tools.1.size"


@pytest.mark.parametrize(
    "other",
    [
        {"role": "assistant", "content": 7},
        {"role": "tool", "content": {"text": "x"}},
        {"type": "mcp_call", "content": [{"kind": "x"}], "role": None},
        {"role": 7, "content": [7]},
        {},
    ],
)
def test_other_items_are_ignored_whatever_they_hold(client: FlaskClient, engine: ScriptedEngine, other: Any) -> None:
    respond(client, input=[other, {"role": "user", "content": "two pears"}, other])
    assert engine.requests[0].prompt == "two pears"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [5]}, "tools.0"),
        ({"input": [5]}, "input.0"),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [WORDS, {"type": "input_image", "file_id": "file-1"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [WORDS, {"type": "input_image"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [WORDS, REMOTE]}]}, "input.image_url"),
        ({"input": [{"role": "user", "content": [WORDS, AS_IN_CHAT]}]}, "input.0.content.1.image_url"),
        ({"input": [{"role": "user", "content": 7}]}, "input.0.content"),
        ({"input": {"role": "user"}}, "input"),
        ({"tools": [{"type": "image_generation", "input_image_mask": {"image_url": "data:,"}}]}, "input_image_mask"),
        ({"input": "x" * 32_001}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "image_generation", "size": "huge"}]}, "tools.0.size"),
    ],
)
def test_what_it_cannot_do_is_named(client: FlaskClient, body: Any, param: str) -> None:
    assert respond(client, 400, **body)["error"]["param"] == param


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_a_picture_in_the_input_is_drawn_over_as_an_edit_does(client: FlaskClient) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    mask = Image.new("L", photo.size)
    mask.paste(255, (8, 4, 24, 20))
    content = [WORDS, {"type": "input_image", "image_url": data_url(photo), "detail": "auto"}]
    tool = {"type": "image_generation", "seed": 3, "input_image_mask": {"image_url": data_url(mask)}}
    (call,) = respond(client, input=[{"role": "user", "content": content}], tools=[tool])["output"]
    body = {"prompt": "a red apple", "seed": 3, "images": [{"image_url": data_url(photo)}]}
    edit = client.post("/v1/images/edits", json={**body, "mask": {"image_url": data_url(mask)}}).json
    assert edit is not None and call["result"] == edit["data"][0]["b64_json"]
    painted = np.asarray(Image.open(io.BytesIO(base64.b64decode(call["result"]))))
    assert np.array_equal(painted[np.asarray(mask) == 0], np.asarray(photo)[np.asarray(mask) == 0])
    assert call["size"] == "32x24"


def test_two_pictures_are_too_many(client: FlaskClient) -> None:
    picture = {"type": "input_image", "image_url": data_url(Image.new("RGB", (16, 16)))}
    error = respond(client, 400, input=[{"role": "user", "content": [WORDS, picture, picture]}])["error"]
    assert "2 pictures were sent" in error["message"]


def test_another_image_model_is_not_found(client: FlaskClient) -> None:
    assert respond(client, 404, tools=[{"type": "image_generation", "model": "sdxl"}])["error"]["param"] == "model"


def events(client: FlaskClient, **tool: Any) -> list[Any]:
    body = {"input": "x", "stream": True, "tools": [{"type": "image_generation", **tool}]}
    text = client.post("/v1/responses", json=body).text
    blocks = [block for block in text.split("\n\n") if block.startswith("event: ")]
    found = [json.loads(block.split("data: ", 1)[1]) for block in blocks]
    assert [block.split("\n")[0] for block in blocks] == [f"event: {event['type']}" for event in found]
    return found


def test_a_stream_tells_the_whole_story_in_order(client: FlaskClient) -> None:
    found = events(client, partial_images=2, seed=4)
    call = "response.image_generation_call"
    assert [event["type"] for event in found] == [
        "response.created", "response.in_progress", "response.output_item.added", f"{call}.in_progress",
        f"{call}.generating", f"{call}.partial_image", f"{call}.partial_image", f"{call}.completed",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in found] == list(range(10))
    partials = [event for event in found if "partial_image_b64" in event]
    assert [event["partial_image_index"] for event in partials] == [0, 1]
    item = found[-1]["response"]["output"][0]
    assert {event.get("item_id", item["id"]) for event in found} == {item["id"]}
    assert found[-2]["item"] == item


def test_a_failure_ends_the_stream(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.fail_with = GenerationFailed("the logits were not finite")
    last = events(client)[-1]
    assert (last["type"], last["code"]) == ("error", "generation_failed")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with (
        live(tmp_path_factory.mktemp("data"), FakeRunner(fake_config(grid_side=16), step_s=0.002)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed") as client,
    ):
        yield client


def test_the_official_client_gets_its_picture(official: openai.OpenAI) -> None:
    response = official.responses.create(model="gpt-5", input="a red apple", tools=TOOLS)
    results = [item.result for item in response.output if item.type == "image_generation_call"]
    assert Image.open(io.BytesIO(base64.b64decode(results[0] or ""))).size == (128, 128)


def test_the_official_client_streams(official: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "image_generation", "partial_images": 2}]
    kinds = [event.type for event in official.responses.create(model="gpt-5", input="x", tools=tools, stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert "response.image_generation_call.partial_image" in kinds
