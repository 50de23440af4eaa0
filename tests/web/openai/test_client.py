"""The official `openai` client, unmodified, against a live server."""

import base64
import io
import urllib.request
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from PIL import Image

from dalle_server.pictures.metadata import read_metadata
from tests.fake_runner import FakeRunner, fake_config
from tests.web.live import Live, live
from tests.web.waits import until

SIDE_PX = 16 * 8  # a grid of 256 tokens, 8 pixels each, as the shipped models have


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("data"), FakeRunner(fake_config(grid_side=16))) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed") as client:
        yield client


def opened(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def test_three_pictures_of_another_size(client: openai.OpenAI) -> None:
    reply = client.images.generate(prompt="a red apple", n=3, size="512x512", response_format="b64_json")
    assert reply.data is not None
    assert [opened(image.b64_json).size for image in reply.data] == [(512, 512)] * 3
    assert len({image.b64_json for image in reply.data}) == 3
    assert reply.size == "512x512"
    assert reply.usage is not None
    assert reply.usage.output_tokens == 3 * 256
    assert reply.usage.input_tokens_details.text_tokens == reply.usage.input_tokens == len("a red apple") + 2


def test_a_url_shows_the_picture(client: openai.OpenAI) -> None:
    reply = client.images.generate(prompt="a red apple", response_format="url", output_format="webp")
    assert reply.data is not None
    assert reply.data[0].b64_json is None
    with urllib.request.urlopen(reply.data[0].url or "") as answer:
        assert answer.headers["Content-Type"] == "image/webp"
        assert Image.open(io.BytesIO(answer.read())).size == (SIDE_PX, SIDE_PX)


def test_the_same_seed_is_the_same_picture(client: openai.OpenAI) -> None:
    first, again, other = (
        client.images.generate(prompt="x", response_format="b64_json", extra_body={"seed": seed}).data
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_a_stream_brings_real_previews_before_the_picture(server: Live, client: openai.OpenAI) -> None:
    server.runner.step_s = 0.004  # a preview takes a moment too, and one that comes too late is left out
    try:
        stream = client.images.generate(prompt="a red apple", stream=True, partial_images=3, extra_body={"seed": 8})
        *partials, completed = stream
    finally:
        server.runner.step_s = 0.0
    assert completed.type == "image_generation.completed"
    assert 1 <= len(partials) <= 3
    final = np.asarray(opened(completed.b64_json))
    heights = []
    for number, event in enumerate(partials):
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == number
        partial = np.asarray(opened(event.b64_json))
        heights.append(int((partial == final).all(axis=(1, 2)).argmin()))  # rows before the first that differs
    # Rows of tokens are 8 px high: a quarter of the grid more in each preview, then what is not yet written.
    assert heights == sorted(set(heights))
    assert set(heights) <= {SIDE_PX // 4, SIDE_PX // 2, 3 * SIDE_PX // 4}
    assert completed.usage.total_tokens == 256 + len("a red apple") + 2
    plain = client.images.generate(prompt="a red apple", response_format="b64_json", extra_body={"seed": 8})
    assert plain.data is not None
    assert plain.data[0].b64_json == completed.b64_json


def test_a_reader_that_stops_frees_its_slot(server: Live, client: openai.OpenAI) -> None:
    server.runner.step_s = 0.01
    try:
        stream = client.images.generate(prompt="x", stream=True, partial_images=3)
        next(stream)
        assert server.engine.stats().running == 1
        stream.close()
        until(lambda: server.engine.stats().running == 0)
    finally:
        server.runner.step_s = 0.0


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "fake"
    assert {"dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-2.6-sunburst", "chatgpt-image-latest"} <= set(names)
    assert client.models.retrieve("dall-e-3").id == "dall-e-3"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="x", model="stable-diffusion")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("stable-diffusion")


def test_a_fault_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="x", n=11)
    assert caught.value.param == "n"


def test_a_picture_that_fails_in_mid_stream_is_an_error(server: Live, client: openai.OpenAI) -> None:
    def broken(grids: object) -> None:
        raise ValueError("no pixels")

    server.runner.on_detokenize = broken
    try:
        with pytest.raises(openai.APIError, match="pixels") as caught:
            list(client.images.generate(prompt="x", stream=True))
        assert caught.value.code == "generation_failed"
    finally:
        server.runner.on_detokenize = lambda grids: None


def test_a_wrong_key_is_an_authentication_error(tmp_path: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    with live(tmp_path_factory.mktemp("keys"), api_keys=("right-key-1",)) as server:
        for key in ("wrong-key-1", "none"):
            with pytest.raises(openai.AuthenticationError):
                openai.OpenAI(base_url=f"{server.url}/v1", api_key=key).images.generate(prompt="x")
        right = openai.OpenAI(base_url=f"{server.url}/v1", api_key="right-key-1")
        data = right.images.generate(prompt="x").data
        assert data is not None
        assert read_metadata(base64.b64decode(data[0].b64_json or "")).prompt == "x"


def test_overload_says_when_to_come_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    runner = FakeRunner(step_s=0.05, num_slots=1)
    with live(tmp_path_factory.mktemp("full"), runner, max_waiting_images=1) as server:
        impatient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        running = impatient.images.generate(prompt="x", n=2, stream=True)
        with pytest.raises((openai.RateLimitError, openai.InternalServerError)) as caught:
            impatient.images.generate(prompt="y")
        assert caught.value.status_code in (429, 503)
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        patient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=5)
        running.close()
        assert patient.images.generate(prompt="y").data


MODELS_OF_2026 = (
    "gpt-image-1.5", "gpt-image-2", "gpt-image-2-2026-04-21", "gpt-image-2.5-sunburst", "gpt-image-2.5-flare",
    "gpt-image-2.5-sunburst-2026-09-08", "gpt-image-2.5-flare-2026-09-08", "gpt-image-2.6-sunburst",
    "gpt-image-2.6-flare", "gpt-image-1-mini", "chatgpt-image-latest",
)  # fmt: skip


@pytest.mark.parametrize("model", MODELS_OF_2026)
def test_every_name_that_the_client_knows_means_the_loaded_model(client: openai.OpenAI, model: str) -> None:
    reply = client.images.generate(
        prompt="x",
        model=model,
        quality="high",
        background="opaque",
        moderation="low",
        size="1536x1024",
        extra_body={"complexity": "high", "safety_identifier": "u-1", "markup": [], "quality": "xhigh"},
    )
    assert reply.data is not None
    assert reply.data[0].url is None and opened(reply.data[0].b64_json).size == (1536, 1024)
    assert (reply.quality, getattr(reply, "safety_identifier", None)) == ("xhigh", "u-1")
    assert client.models.retrieve(model).id == model


def test_a_picture_of_a_seed_is_made_without_those_before_it(client: openai.OpenAI) -> None:
    extra = {"seed": 5, "negative_prompt": "fog", "guidance_scale": 4}
    both = client.images.generate(prompt="x", n=3, response_format="b64_json", extra_body=extra).data
    alone = client.images.generate(prompt="x", response_format="b64_json", extra_body={**extra, "image_index": 2}).data
    assert both is not None and alone is not None
    assert alone[0].b64_json == both[2].b64_json
