"""What other clients of the AUTOMATIC1111 API call and read, replayed: KoboldAI Lite, openOutpaint, sd-backend-client,
image-generation-mcp, n8n's community node, and the structs of Go bots.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image
from sd_parsers import ParserManager

from tests.web.scripted_engine import ScriptedEngine

# modules/processing.py, Processed.js(): each field with the JSON types that strict clients declare for it.
INFO_TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,), "all_prompts": (list,), "negative_prompt": (str,), "all_negative_prompts": (list,),
    "seed": (int,), "all_seeds": (list,), "subseed": (int,), "all_subseeds": (list,), "subseed_strength": (int, float),
    "width": (int,), "height": (int,), "sampler_name": (str,), "cfg_scale": (int, float), "steps": (int,),
    "batch_size": (int,), "restore_faces": (bool,), "face_restoration_model": (str, type(None)),
    "sd_model_name": (str,), "sd_model_hash": (str,), "sd_vae_name": (str, type(None)),
    "sd_vae_hash": (str, type(None)), "seed_resize_from_w": (int,), "seed_resize_from_h": (int,),
    "denoising_strength": (int, float, type(None)), "extra_generation_params": (dict,),
    "index_of_first_image": (int,), "infotexts": (list,), "styles": (list,), "job_timestamp": (str,),
    "clip_skip": (int,), "is_using_inpainting_conditioning": (bool,), "version": (str,),
}  # fmt: skip


def get(client: FlaskClient, path: str) -> Any:
    reply = client.get(f"/sdapi/v1/{path}")
    assert reply.status_code == 200, path
    return reply.json


def post(client: FlaskClient, path: str, body: Any = None) -> Any:
    reply = client.post(f"/sdapi/v1/{path}", json=body) if body is not None else client.post(f"/sdapi/v1/{path}")
    assert reply.status_code == 200, reply.text
    return reply.json


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_koboldai_lite_connects_and_paints(client: FlaskClient) -> None:
    """It takes a server for the web UI only if the options have samples_format."""
    assert get(client, "options")["samples_format"] == "png"
    assert [model["title"] for model in get(client, "sd-models")]
    body = {
        "prompt": "a red apple", "seed": -1, "sampler_name": "Euler a", "batch_size": 1, "n_iter": 1, "steps": 20,
        "cfg_scale": 7, "width": 64, "height": 64, "negative_prompt": "ugly", "do_not_save_samples": True,
        "do_not_save_grid": True, "enable_hr": False, "eta": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1,
        "override_settings": {"sd_model_checkpoint": "v1-5-pruned.safetensors"},
    }  # fmt: skip
    assert opened(post(client, "txt2img", body)["images"][0]).size == (64, 64)


def test_open_outpaint_fills_its_menus_and_polls(client: FlaskClient) -> None:
    for path in ("options", "samplers", "schedulers", "sd-models", "upscalers", "cmd-flags", "memory"):
        assert get(client, path) is not None
    for path in ("prompt-styles", "loras", "hypernetworks", "script-info", "extensions", "realesrgan-models"):
        assert get(client, path) == []
    assert get(client, "scripts") == {"txt2img": [], "img2img": []}
    assert get(client, "embeddings") == {"loaded": {}, "skipped": {}}
    assert get(client, "progress?skip_current_image=true")["state"]["stopping_generation"] is False
    assert {"free", "used", "total"} == set(get(client, "memory")["ram"])
    for path in ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings"):
        assert post(client, path, {}) is None
    for path in ("unload-checkpoint", "reload-checkpoint"):
        assert post(client, path) == {}
    assert (post(client, "interrupt"), post(client, "skip")) == ({}, None)
    options = {"sd_model_checkpoint": get(client, "options")["sd_model_checkpoint"]}
    assert post(client, "options", options) == {}
    body = {
        "prompt": "a red apple", "negative_prompt": "", "seed": -1, "cfg_scale": 7, "sampler_index": "Euler a",
        "steps": 30, "denoising_strength": 1, "mask_blur": 0, "batch_size": 2, "width": 64, "height": 64, "n_iter": 1,
        "enable_hr": True, "hr_scale": 2, "hr_resize_x": 0, "hr_resize_y": 0, "hr_upscaler": "None",
        "hr_denoising_strength": 0.7, "hr_second_pass_steps": 0, "restore_faces": False, "tiling": False,
        "alwayson_scripts": {}, "refiner_checkpoint": "None", "refiner_switch_at": 0.8,
    }  # fmt: skip
    assert [opened(image).size for image in post(client, "txt2img", body)["images"]] == [(128, 128)] * 2


@pytest.mark.parametrize(
    ("hr", "size"),
    [
        ({"hr_scale": 1.5}, (48, 96)),
        ({}, (64, 128)),
        ({"hr_resize_x": 100}, (100, 200)),
        ({"hr_resize_y": 100}, (50, 100)),
        ({"hr_resize_x": 70, "hr_resize_y": 90, "hr_scale": 9}, (70, 90)),
    ],
)
def test_the_high_resolution_pass_decides_the_size(client: FlaskClient, hr: Any, size: tuple[int, int]) -> None:
    body = {"prompt": "x", "width": 32, "height": 64, "enable_hr": True, **hr}
    reply = post(client, "txt2img", body)
    assert opened(reply["images"][0]).size == size
    assert f"Size: {size[0]}x{size[1]}" in json.loads(reply["info"])["infotexts"][0]


def test_sd_backend_client_finds_every_field_of_info_in_its_type(client: FlaskClient) -> None:
    reply = post(client, "txt2img", {"prompt": "a red apple", "batch_size": 3, "n_iter": 2})
    info = json.loads(reply["info"])
    assert list(info) == list(INFO_TYPES)
    for name, types in INFO_TYPES.items():
        assert type(info[name]) in types, name
    for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds", "infotexts"):
        assert len(info[name]) == len(reply["images"]) == 6, "a Go bot indexes these by picture"
    assert info["batch_size"] == 3


@pytest.mark.parametrize(
    "written",
    [
        {"seed": "5", "width": "64", "height": 64.0, "batch_size": "2", "cfg_scale": "7.5", "steps": "20"},
        {"seed": 5.7, "width": 64.6667, "height": 64, "batch_size": 2.9, "n_iter": True, "cfg_scale": 7.5},
        {"seed": 5.0, "width": 64.0, "height": "64.0", "batch_size": 2.0, "cfg_scale": 7.5, "send_images": "true"},
    ],
)
def test_n8n_sends_its_forms_fields_as_text(client: FlaskClient, engine: ScriptedEngine, written: Any) -> None:
    reply = post(client, "txt2img", {"prompt": "a red apple", **written})
    assert [opened(image).size for image in reply["images"]] == [(64, 64)] * 2
    (request,) = engine.requests
    assert [key.seed for key in request.images] == [5, 6]
    assert request.sampling.condition_scale == 7.5


def test_minus_one_as_text_is_random_too(client: FlaskClient) -> None:
    seeds = {json.loads(post(client, "txt2img", {"prompt": "x", "seed": "-1"})["info"])["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_sites_and_tools_read_our_pictures(client: FlaskClient) -> None:
    """sd-parsers stands for them; Civitai reads the same chunk."""
    body = {"prompt": "a red apple,\na pear: ripe", "negative_prompt": "fog, rain", "seed": 8, "cfg_scale": 6}
    file = base64.b64decode(post(client, "txt2img", body)["images"][0])
    found = ParserManager().parse(Image.open(io.BytesIO(file)))
    assert found is not None
    assert [prompt.value for prompt in found.prompts] == ["a red apple,\na pear: ripe"]
    assert [prompt.value for prompt in found.negative_prompts] == ["fog, rain"]
    assert [(model.name, model.hash) for model in found.models] == [("scripted", "0123456789")]
    (sampler,) = found.samplers
    assert (sampler.name, sampler.parameters["seed"], sampler.parameters["cfg_scale"]) == ("Gumbel-max", "8", "6.0")


def png_info(client: FlaskClient, image: Image.Image, format: str = "PNG", **options: Any) -> Any:
    file = io.BytesIO()
    image.save(file, format, **options)
    return post(client, "png-info", {"image": base64.b64encode(file.getvalue()).decode()})


FOREIGN = (
    'a cat (sitting:1.2)\nNegative prompt: dog, "bad"\n'
    'Steps: 20, Sampler: Euler a, Seed: 5, Size: 512x512, Lora hashes: "a: 1, b: 2", Version: v1.10.1'
)


def test_png_info_reads_the_texts_of_other_programs(client: FlaskClient) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", FOREIGN)
    chunks.add_text("workflow", "{}")
    told = png_info(client, Image.new("RGB", (8, 8)), pnginfo=chunks)
    assert told["info"] == FOREIGN
    assert told["items"] == {"workflow": "{}"}
    assert told["parameters"]["Prompt"] == "a cat (sitting:1.2)"
    assert told["parameters"]["Negative prompt"] == 'dog, "bad"'
    assert (told["parameters"]["Seed"], told["parameters"]["Lora hashes"]) == ("5", '"a: 1, b: 2"')


def test_png_info_reads_the_comment_of_a_jpeg(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + FOREIGN.encode("utf-16-be")
    told = png_info(client, Image.new("RGB", (8, 8)), "JPEG", exif=exif.tobytes())
    assert told["info"] == told["items"]["exif comment"] == FOREIGN


def test_a_long_line_of_another_program_costs_nothing(client: FlaskClient) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", "a" * 500_000)
    told = png_info(client, Image.new("RGB", (8, 8)), pnginfo=chunks)
    assert len(told["info"]) == 500_000
    assert set(told["parameters"]) == {"Prompt", "Negative prompt"}


# -- extras


GRADIENT = np.stack([*np.meshgrid(np.arange(40), np.arange(20)), np.full((20, 40), 90)], axis=-1).astype(np.uint8) * 5


def as_base64(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_extras_are_real_lanczos(client: FlaskClient) -> None:
    body = {"image": as_base64(GRADIENT), "upscaler_1": "Lanczos", "upscaling_resize": "3", "gfpgan_visibility": 0.5}
    reply = post(client, "extra-single-image", body)
    expected = Image.fromarray(GRADIENT).resize((120, 60), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(opened(reply["image"])), np.asarray(expected))
    assert reply["html_info"] == ""


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({}, (40, 20)),  # upscaler_1 is None unless it is named, as in the web UI
        ({"upscaler_1": "Nearest", "upscaling_resize": 2}, (80, 40)),
        ({"upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": 50, "upscaling_resize_h": 50}, (50, 50)),
        (
            {
                "upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": 50, "upscaling_resize_h": 50,
                "upscaling_crop": False,
            },
            (100, 50),
        ),
    ],
)  # fmt: skip
def test_extras_make_the_asked_size(client: FlaskClient, body: Any, size: tuple[int, int]) -> None:
    pictures = [{"data": f"data:image/png;base64,{as_base64(GRADIENT)}", "name": "a.png"}] * 2
    replies = post(client, "extra-batch-images", {"imageList": pictures, **body})["images"]
    assert [opened(image).size for image in replies] == [size] * 2
    assert opened(post(client, "extra-single-image", {"image": as_base64(GRADIENT), **body})["image"]).size == size


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"upscaler_1": "R-ESRGAN 4x+"}, "upscaler_1 must be one of None, Lanczos, Nearest"),
        ({"image": "aGVsbG8=", "upscaler_1": "Lanczos"}, "image is no PNG, JPEG, WebP or GIF file"),
        ({"image": "https://example.org/a.png"}, "image is the address of a picture"),
        ({"image": as_base64(np.zeros((600, 600, 3), np.uint8)), "upscaler_1": "Lanczos", "upscaling_resize": 10},
         "33,554,432 pixels"),
    ],
)  # fmt: skip
def test_extras_name_what_is_wrong(client: FlaskClient, body: Any, says: str) -> None:
    reply = client.post("/sdapi/v1/extra-single-image", json={"image": as_base64(GRADIENT), **body})
    assert reply.status_code == 400
    assert says in reply.json["detail"]


def test_image_generation_mcp_discovers_paints_and_polls(client: FlaskClient) -> None:
    """pvliesdonk/image-generation-mcp, `providers/sd_webui.py`: a model is known by its title, sizes by its name."""
    titles = [(model["title"], model["model_name"]) for model in get(client, "sd-models")]
    assert titles and all(title and name for title, name in titles)
    assert get(client, "options")["sd_model_checkpoint"] in [title for title, _ in titles]
    body = {
        "prompt": "a red apple", "width": 768, "height": 512, "steps": 30, "cfg_scale": 7.0, "sampler_name": "DPM++ 2M",
        "scheduler": "Karras", "negative_prompt": "", "override_settings": {"sd_model_checkpoint": titles[0][0]},
    }  # fmt: skip
    flux = {name: value for name, value in body.items() if name != "negative_prompt"} | {"distilled_cfg_scale": 3.5}
    for sent in (body, flux):
        reply = post(client, "txt2img", sent)
        assert opened(reply["images"][0]).size == (768, 512)
        info = json.loads(reply["info"])
        assert isinstance(info["seed"], int) and info["sd_model_name"] in titles[0]
    progress = get(client, "progress")
    assert progress["progress"] == 0.0 and progress["eta_relative"] == 0.0
