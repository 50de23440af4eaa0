"""POST /sdapi/v1/img2img on a scripted engine: SillyTavern's body, sizes, progress, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from dalle_server.pictures.metadata import read_metadata
from tests.web.automatic1111.test_routes import Painting
from tests.web.scripted_engine import ScriptedEngine


def encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
MASK = Image.new("L", PHOTO.size)
MASK.paste(255, (16, 12, 40, 36))


def img2img(client: FlaskClient, status: int = 200, **body: Any) -> Any:
    reply = client.post("/sdapi/v1/img2img", json={"init_images": [encoded(PHOTO)], **body})
    assert reply.status_code == status, reply.text
    return reply.json


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_guidance_by_habit_is_held_to_what_the_model_bears(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.config = replace(engine.config, max_condition_scale=1.5)
    assert json.loads(img2img(client, cfg_scale=7)["info"])["cfg_scale"] == 1.5


def test_numbers_are_coerced_as_the_web_ui_does(client: FlaskClient) -> None:
    masked: dict[str, Any] = {"prompt": 5, "negative_prompt": 1.5, "mask": encoded(MASK), "seed": 3}
    proper: dict[str, Any] = {"inpainting_mask_invert": 1, "inpainting_fill": 1, "inpaint_full_res_padding": 32}
    loose: dict[str, Any] = {"inpainting_mask_invert": True, "inpainting_fill": True, "inpaint_full_res_padding": 32.5}
    replies = [img2img(client, **masked, inpaint_full_res=True, **fields) for fields in (proper, loose)]
    assert replies[0] == replies[1]
    told = read_metadata(base64.b64decode(replies[0]["images"][0]))
    assert (told.prompt, told.negative_prompt) == ("5", "1.5")
    plain = img2img(client, **masked, inpainting_mask_invert=False)
    assert plain["images"] == img2img(client, **masked)["images"]


def test_sillytaverns_body_is_answered(client: FlaskClient, engine: ScriptedEngine) -> None:
    body: dict[str, Any] = {
        "url": "http://localhost:8000", "auth": "", "prompt": "a red apple", "negative_prompt": "lowres",
        "sampler_name": "Gumbel-max", "scheduler": "automatic", "steps": 20, "cfg_scale": 7, "width": 64, "height": 48,
        "restore_faces": False, "enable_hr": False, "denoising_strength": 0.7, "clip_skip": 1, "send_images": True,
        "override_settings": {"CLIP_stop_at_last_layers": 1}, "override_settings_restore_afterwards": True,
        "save_images": True, "do_not_save_grid": False, "do_not_save_samples": False, "seed": -1,
        "resize_mode": 0, "mask_blur": 4, "inpainting_fill": 0, "include_init_images": False,
    }  # fmt: skip
    reply = img2img(client, **body)
    image = opened(reply["images"][0])
    assert (image.format, image.size) == ("PNG", (64, 48))
    assert image.info["parameters"].startswith("a red apple\nNegative prompt: lowres\nSteps: 16, ")
    assert read_metadata(base64.b64decode(reply["images"][0])).towards
    assert "init_images" not in reply["parameters"]
    (request,) = engine.requests
    assert request.sampling.condition_scale == 7.0 and request.pull == round(-20 * np.log(0.7), 4)


def test_outside_the_mask_nothing_changes(client: FlaskClient) -> None:
    reply = img2img(client, mask=f"data:image/png;base64,{encoded(MASK)}", denoising_strength=1, seed=3)
    painted, kept = np.asarray(opened(reply["images"][0])), np.asarray(MASK) == 0
    assert np.array_equal(painted[kept], np.asarray(PHOTO)[kept])
    assert not np.array_equal(painted[~kept], np.asarray(PHOTO)[~kept])


def test_a_mask_with_holes_means_what_is_opaque(client: FlaskClient) -> None:
    """As the web UI reads it, and the other way round than OpenAI's."""
    holes = Image.new("RGBA", PHOTO.size)
    holes.putalpha(MASK)
    body: dict[str, Any] = {"denoising_strength": 1, "seed": 3}
    images = [img2img(client, mask=encoded(mask), **body)["images"][0] for mask in (MASK, holes)]
    assert opened(images[0]).tobytes() == opened(images[1]).tobytes()


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({}, (64, 48)),
        ({"width": 32, "height": 32}, (32, 32)),
        ({"width": 32, "height": 32, "resize_mode": 1}, (32, 32)),
        ({"width": 32, "height": 24, "enable_hr": True, "hr_scale": 3}, (96, 72)),
    ],
)
def test_the_asked_size_comes_back(client: FlaskClient, body: Any, size: tuple[int, int]) -> None:
    assert opened(img2img(client, mask=encoded(MASK), **body)["images"][0]).size == size


def test_only_the_cutting_mode_keeps_the_shape(client: FlaskClient) -> None:
    body: dict[str, Any] = {"width": 48, "height": 48, "denoising_strength": 0.0, "mask": encoded(MASK)}
    cut, stretched = (np.asarray(opened(img2img(client, resize_mode=mode, **body)["images"][0])) for mode in (1, 0))
    assert np.array_equal(cut[0], np.asarray(PHOTO)[0, 8:56])
    assert not np.array_equal(cut[0], stretched[0])


@pytest.mark.parametrize("whole", [True, False])
def test_a_mask_that_the_cut_takes_away_is_told(client: FlaskClient, whole: bool) -> None:
    mask = Image.new("L", PHOTO.size)
    mask.paste(255, (0, 0, 6, PHOTO.height))
    body = {"init_images": [encoded(PHOTO)], "mask": encoded(mask), "inpaint_full_res": whole}
    refused = client.post("/sdapi/v1/img2img", json={**body, "width": 48, "height": 48, "resize_mode": 1})
    assert refused.status_code == 400 and "resize_mode 1 leaves" in refused.text, refused.text
    assert client.post("/sdapi/v1/img2img", json={**body, "width": 48, "height": 48}).status_code == 200


def test_pictures_and_info_agree(client: FlaskClient) -> None:
    reply = img2img(client, prompt="x", batch_size=2, n_iter=2, seed=40, denoising_strength=0.5)
    info = json.loads(reply["info"])
    assert len(reply["images"]) == 4
    assert info["all_seeds"] == [40, 41, 42, 43]
    assert info["denoising_strength"] == 0.5
    alone = img2img(client, prompt="x", seed=42, denoising_strength=0.5)["images"][0]
    assert alone == reply["images"][2]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"init_images": []}, "init_images must"),
        ({"init_images": ["%%%"]}, "init_images must be base64"),
        ({"init_images": ["https://example.org/a.png"]}, "this server fetches none"),
        ({"init_images": ["aGVsbG8="]}, "init_images is no PNG"),
        ({"mask": "aGVsbG8="}, "mask is no PNG"),
        ({"mask": encoded(Image.new("L", (64, 48)))}, "mask frees nothing"),
        ({"mask": encoded(Image.new("L", (64, 64), 255))}, "mask must have the shape of the picture"),
        ({"denoising_strength": 1.5}, "denoising_strength must"),
        ({"width": 8}, "width must"),
        ({"batch_size": 17}, "batch_size × n_iter must lie between 1 and 16"),
    ],
)
def test_what_is_wrong_is_named(client: FlaskClient, body: Any, says: str) -> None:
    assert says in img2img(client, 400, **body)["detail"]


def test_interrupting_answers_with_how_far_it_was(app: Any, engine: ScriptedEngine) -> None:
    painting = Painting(app, engine, path="img2img", init_images=[encoded(PHOTO)])
    assert app.test_client().get("/sdapi/v1/progress").json["state"]["job_count"] == 1
    assert app.test_client().post("/sdapi/v1/interrupt").json == {}
    assert painting.wait().status_code == 200
