"""The AUTOMATIC1111 API on a scripted engine, asked as Open WebUI and SillyTavern ask."""

import base64
import io
import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.errors import GenerationFailed, Overloaded
from dalle_server.generation import GeneratedImage, ImageReady, Preview
from dalle_server.pictures.metadata import read_metadata
from dalle_server.request import ImageKey
from dalle_server.web.automatic1111.progress import InFlight
from dalle_server.web.automatic1111.schemas import ProgressReply
from dalle_server.web.service import ENCODERS
from tests.web.scripted_engine import ScriptedEngine
from tests.web.waits import until

TITLE = "scripted [0123456789]"


def txt2img(client: FlaskClient, status: int = 200, **body: Any) -> dict[str, Any]:
    reply = client.post("/sdapi/v1/txt2img", json={"prompt": "a red apple", **body})
    assert reply.status_code == status, reply.text
    return dict(reply.json)  # type: ignore[arg-type]


def test_open_webui_lists_chooses_and_paints(client: FlaskClient, engine: ScriptedEngine) -> None:
    """backend/open_webui/routers/images.py: verify, list, read and write back the options, then txt2img."""
    headers = {"authorization": ""}  # what it sends when no credentials are set
    options = client.get("/sdapi/v1/options", headers=headers).json
    models = client.get("/sdapi/v1/sd-models", headers=headers).json
    assert [(model["title"], model["model_name"]) for model in models] == [(TITLE, "scripted")]
    assert options["sd_model_checkpoint"] == TITLE
    assert client.post("/sdapi/v1/options", json=options, headers=headers).status_code == 200
    body = {"prompt": "a red apple", "batch_size": 2, "width": 512, "height": 512, "steps": 50}
    reply = client.post("/sdapi/v1/txt2img", json=body | {"negative_prompt": "blurry"}, headers=headers).json
    for image in reply["images"]:
        assert Image.open(io.BytesIO(base64.b64decode(image))).size == (512, 512)
    assert len(reply["images"]) == 2
    assert isinstance(reply["info"], str)
    assert engine.requests[0].negative_prompt == "blurry"


def test_sillytavern_pings_fills_its_menus_and_paints(client: FlaskClient, engine: ScriptedEngine) -> None:
    """src/endpoints/stable-diffusion.js, and the body of its extension's generateAutoImage."""

    def get(path: str) -> Any:
        reply = client.get(f"/sdapi/v1/{path}", headers={"Authorization": "Basic Og=="})  # base64 of ":"
        assert reply.status_code == 200
        return reply.json

    get("options")  # ping
    upscalers = [item["name"] for item in get("upscalers")]
    assert upscalers[0] == "None"
    assert all(item["name"] for path in ("latent-upscale-modes", "samplers", "schedulers") for item in get(path))
    assert all(item["model_name"] for item in get("sd-vae"))
    (model,) = (item["title"] for item in get("sd-models"))
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": model}).status_code == 200
    idle = get("progress")  # set-model polls until both are 0
    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
    body = {
        "url": "http://localhost:8000", "auth": "", "prompt": "a red apple", "negative_prompt": "lowres",
        "sampler_name": "Gumbel-max", "scheduler": "automatic", "steps": 20, "cfg_scale": 7, "width": 64,
        "height": 96, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1.5,
        "denoising_strength": 0.7, "hr_second_pass_steps": 0, "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
    }  # fmt: skip
    reply = client.post("/sdapi/v1/txt2img", json=body).json
    image = Image.open(io.BytesIO(base64.b64decode(reply["images"][0])))
    assert (image.format, image.size) == ("PNG", (64, 96))
    request, next_window = engine.requests  # 64x96 is painted
    assert request.sampling.condition_scale == 7.0 and next_window.forced_tokens
    assert request.negative_prompt == "lowres"


def test_each_picture_has_a_seed_that_makes_it_alone(client: FlaskClient, engine: ScriptedEngine) -> None:
    reply = txt2img(client, seed=40, batch_size=2, n_iter=2)
    info = json.loads(reply["info"])
    assert info["seed"] == 40
    assert info["all_seeds"] == [40, 41, 42, 43]
    assert [image.seed for image in engine.requests[0].images] == [40, 41, 42, 43]
    alone = txt2img(client, seed=info["all_seeds"][2])
    assert alone["images"][0] == reply["images"][2]


def test_info_tells_how_the_picture_was_made(client: FlaskClient) -> None:
    info = json.loads(txt2img(client, seed=3, negative_prompt="fog", width=32, height=16, cfg_scale=4)["info"])
    assert (info["width"], info["height"], info["prompt"], info["cfg_scale"]) == (32, 16, "a red apple", 4)
    assert info["infotexts"][0].split("\n") == [
        "a red apple",
        "Negative prompt: fog",
        "Steps: 16, Sampler: Gumbel-max, Top K: 50, Top P: 1.0, Temperature: 1.0, CFG scale: 4.0, Seed: 3, "
        "Size: 32x16, Model hash: 0123456789, Model: scripted, Version: dalle-server 0.1.0",
    ]


@pytest.mark.parametrize(("most", "asked", "taken"), [(1.5, 7, 1.5), (1.5, 1, 1.0), (1.5, None, 10.0), (None, 7, 7.0)])
def test_guidance_by_habit_is_held_to_what_the_model_bears(
    client: FlaskClient, engine: ScriptedEngine, most: float | None, asked: float | None, taken: float
) -> None:
    """Only what a client sends: a checkpoint's own default is its makers' choice."""
    engine.config = replace(engine.config, max_condition_scale=most)
    info = json.loads(txt2img(client, cfg_scale=asked)["info"])
    assert info["cfg_scale"] == taken and f"CFG scale: {taken}" in info["infotexts"][0]


def test_the_last_seeds_have_no_next_one(client: FlaskClient) -> None:
    last = 2**63 - 1
    reply = client.post("/sdapi/v1/txt2img", json={"prompt": "a", "seed": last, "batch_size": 3})
    assert reply.status_code == 400 or reply.status_code == 422
    assert f"seed must be at most {last - 2}, not {last}" in reply.get_data(as_text=True)
    assert json.loads(txt2img(client, seed=last)["info"])["seed"] == last


def test_a_random_seed_is_told(client: FlaskClient) -> None:
    asked = (-1, -1, None, -2, -(10**4000))
    seeds = {json.loads(txt2img(client, seed=seed)["info"])["seed"] for seed in asked}
    assert len(seeds) == len(asked)
    assert min(seeds) >= 0


def test_size_left_out_is_the_models_own(client: FlaskClient) -> None:
    image = base64.b64decode(txt2img(client)["images"][0])
    assert Image.open(io.BytesIO(image)).size == (16, 16)
    assert read_metadata(image).prompt == "a red apple"


def test_send_images_false_sends_none(client: FlaskClient) -> None:
    assert txt2img(client, send_images=False)["images"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5, "n_iter": 4}, "batch_size"),
        ({"batch_size": 10**4000, "n_iter": 10**4000}, "batch_size"),
        ({"width": 4}, "width"),
        ({"height": 1e9}, "height"),
        ({"seed": 1e300}, "seed"),
        ({"seed": math.nan}, "seed"),
        ({"width": math.inf}, "width"),
        ({"cfg_scale": math.nan}, "cfg_scale"),
        ({"prompt": math.inf}, "prompt"),
        ({"prompt": True}, "prompt"),
        ({"cfg_scale": 1000}, "cfg_scale"),
        ({"enable_hr": True, "width": 2000, "height": 2000}, "the size"),
        ({"width": "wide"}, "width"),
    ],
)
def test_faults_name_the_field(client: FlaskClient, body: dict[str, Any], param: str) -> None:
    reply = txt2img(client, 400, **body)
    assert set(reply) == {"error", "detail", "body", "errors"}
    assert reply["detail"].startswith(param)


@pytest.mark.parametrize("name", [TITLE, "scripted", "0123456789", "", None])
def test_the_loaded_checkpoint_may_be_asked_for_by_any_of_its_names(client: FlaskClient, name: str | None) -> None:
    txt2img(client, override_settings={"sd_model_checkpoint": name})


def test_another_checkpoint_is_refused_as_an_option_and_ignored_in_a_request(client: FlaskClient) -> None:
    other = {"sd_model_checkpoint": "v1-5-pruned"}
    txt2img(client, override_settings=other)
    assert client.post("/sdapi/v1/options", json=other).status_code == 404


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("full", retry_after_s=3), 503), (GenerationFailed("x"), 500)]
)
def test_errors_have_this_familys_envelope(
    client: FlaskClient, engine: ScriptedEngine, error: Any, status: int
) -> None:
    engine.submit_error = error
    assert txt2img(client, error.status)["error"] == error.code
    engine.submit_error, engine.fail_with = None, error
    assert txt2img(client, error.status)["detail"] == error.message


class Painting:
    """A txt2img request that is held half-way, in a thread of its own."""

    def __init__(self, app: Flask, engine: ScriptedEngine, path: str = "txt2img", **body: Any):
        engine.gate.clear()
        self.reply: Any = None
        self._app, self._path, self._body = app, path, {"prompt": "x", "seed": 2, **body}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(lambda: app.test_client().get("/sdapi/v1/progress").json["state"]["job_count"] > 0)
        (self.generation,) = engine.generations

    def _run(self) -> None:
        self.reply = self._app.test_client().post(f"/sdapi/v1/{self._path}", json=self._body)

    def wait(self) -> Any:
        self._thread.join(10)
        assert self.reply is not None
        return self.reply


def test_progress_counts_tokens_and_shows_the_picture_so_far(app: Flask, engine: ScriptedEngine) -> None:
    client, painting = app.test_client(), Painting(app, engine, batch_size=2)
    assert painting.generation.preview_every == 2  # asking for progress switched previews on: 16 tokens, 8 previews
    preview = engine.paint(ImageKey(2), 16)[1] // 2
    painting.generation.emit(Preview(0, 6, preview))
    until(lambda: client.get("/sdapi/v1/progress").json["current_image"] is not None)
    now = client.get("/sdapi/v1/progress").json
    assert (now["state"]["job_count"], now["state"]["sampling_steps"]) == (2, 16)
    shown = Image.open(io.BytesIO(base64.b64decode(now["current_image"])))
    assert shown.getpixel((0, 0)) == tuple(preview[0, 0])
    assert client.get("/sdapi/v1/progress?skip_current_image=true").json["current_image"] is None
    engine.gate.set()
    assert painting.wait().status_code == 200
    assert client.get("/sdapi/v1/progress").json["state"]["job_count"] == 0


def test_interrupt_ends_the_request_with_what_is_finished(app: Flask, engine: ScriptedEngine) -> None:
    painting = Painting(app, engine, batch_size=2)
    tokens, pixels = engine.paint(ImageKey(2), 16)
    painting.generation.emit(ImageReady(GeneratedImage(0, ImageKey(2), pixels, tokens)))
    assert app.test_client().post("/sdapi/v1/interrupt").json == {}
    reply = painting.wait()
    assert reply.status_code == 200
    assert len(reply.json["images"]) == 1
    assert json.loads(reply.json["info"])["all_seeds"] == [2]


@pytest.mark.parametrize("previewed", [True, False])
@pytest.mark.parametrize(("path", "answer"), [("interrupt", {}), ("skip", None)])
def test_interrupt_before_any_picture_answers_with_how_far_it_was(
    app: Flask, engine: ScriptedEngine, previewed: bool, path: str, answer: Any
) -> None:
    painting = Painting(app, engine)
    pixels = np.full((16, 16, 3), 77, np.uint8)
    if previewed:
        painting.generation.emit(Preview(0, 4, pixels))
    assert app.test_client().post(f"/sdapi/v1/{path}").json == answer
    reply = painting.wait()
    assert reply.status_code == 200
    images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in reply.json["images"]]
    assert [np.array_equal(np.asarray(image), pixels) for image in images] == [True] * previewed
    assert len(json.loads(reply.json["info"])["all_seeds"]) == 1


def test_a_client_that_left_is_not_answered_as_if_it_had_interrupted(
    client: FlaskClient, engine: ScriptedEngine
) -> None:
    engine.gate.clear()
    environ = {"waitress.client_disconnected": lambda: True}
    reply = client.post("/sdapi/v1/txt2img", json={"prompt": "x"}, environ_overrides=environ)
    assert reply.status_code == 499


def test_one_client_neither_sees_nor_stops_anothers_request(app: Flask, engine: ScriptedEngine) -> None:
    painting = Painting(app, engine)
    stranger = {"REMOTE_ADDR": "192.0.2.7"}
    client = app.test_client()
    assert client.get("/sdapi/v1/progress", environ_base=stranger).json["state"]["job_count"] == 0
    client.post("/sdapi/v1/interrupt", environ_base=stranger)
    engine.gate.set()
    assert painting.wait().status_code == 200


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_png_info_reads_our_pictures(client: FlaskClient, prefix: str) -> None:
    image = txt2img(client, seed=5, negative_prompt="fog")["images"][0]
    reply = client.post("/sdapi/v1/png-info", json={"image": prefix + image}).json
    assert reply["info"].startswith("a red apple\nNegative prompt: fog\nSteps: 16, ")
    assert reply["parameters"]["Seed"] == 5
    assert json.loads(reply["items"]["dalle-server"])["request"]["images"] == [[5, 0]]


def test_png_info_reads_base64_in_lines(client: FlaskClient) -> None:
    """As `base64 FILE` and MIME write it, and as the web UI reads it."""
    image = base64.b64decode(txt2img(client, seed=5)["images"][0])
    reply = client.post("/sdapi/v1/png-info", json={"image": base64.encodebytes(image).decode()}).json
    assert reply["parameters"]["Seed"] == 5


def test_png_info_of_another_programs_picture_is_empty(client: FlaskClient) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    reply = client.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file.getvalue()).decode()})
    assert reply.json == {"info": "", "items": {}, "parameters": {}}


@pytest.mark.parametrize("image", ["", "%%%", "aGVsbG8=", "data:image/png;base64,", "é"])
def test_png_info_of_no_picture_is_a_clear_error(client: FlaskClient, image: str) -> None:
    reply = client.post("/sdapi/v1/png-info", json={"image": image})
    assert (reply.status_code, "image" in reply.json["detail"]) == (400, True)


def test_a_large_picture_may_be_asked_about(make_app: Callable[..., Flask]) -> None:
    file = io.BytesIO()
    Image.effect_noise((600, 600), 90).save(file, "PNG")
    assert len(file.getvalue()) > 200_000
    client = make_app().test_client()
    reply = client.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file.getvalue()).decode()})
    assert reply.status_code == 200


def test_a_wrong_query_is_a_clear_error(client: FlaskClient) -> None:
    reply = client.get("/sdapi/v1/progress?skip_current_image=perhaps")
    assert (reply.status_code, "skip_current_image" in reply.json["detail"]) == (400, True)


@pytest.mark.parametrize("prompt", ["", " \n", None, "\u200b"])
def test_without_a_prompt_the_model_paints_what_it_likes(
    client: FlaskClient, engine: ScriptedEngine, prompt: str | None
) -> None:
    assert client.post("/sdapi/v1/txt2img", json={"prompt": prompt}).status_code == 200
    assert client.post("/sdapi/v1/txt2img", json={"steps": 1}).status_code == 200
    assert [request.prompt for request in engine.requests] == ["", ""]


def test_previews_for_progress_are_encoded_in_the_few_places(
    app: Flask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many clients ask twice a second."""
    painting, free = Painting(app, engine), list[int]()

    def describe(self: InFlight, with_image: bool) -> ProgressReply:
        free.append(app.extensions["dalle_server"].encoders._value)
        return ProgressReply()

    monkeypatch.setattr(InFlight, "describe", describe)
    assert app.test_client().get("/sdapi/v1/progress").status_code == 200
    engine.gate.set()
    painting.wait()
    assert free == [ENCODERS - 1]
