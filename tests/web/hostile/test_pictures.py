"""Pictures, and numbers beside them, that nobody sends by accident: every route that takes them answers in words."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image, PngImagePlugin

from tests.web.scripted_engine import ScriptedEngine

FINE = (200, 202, 400, 404, 413, 415)


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def told() -> PngImagePlugin.PngInfo:
    """Ours by name, a bomb by nature."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("dalle-server", "x" * 900_000, zip=True)
    return info


NOISE = png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
FILES = {
    "a strip": png(Image.new("RGB", (100_000, 2))),
    "all hole": png(Image.new("RGBA", (64, 64), (0, 0, 0, 0))),
    "cut": NOISE[:200],
    "words that burst": png(Image.new("RGB", (64, 64)), pnginfo=told()),
    "one pixel": png(Image.new("1", (1, 1))),
    "no picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    "nothing": b"",
}
N = text(NOISE)
URL = "data:image/png;base64," + N
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/images/edits": [
        {"prompt": "x", "images": [{"image_url": URL}], "n": 10, "candidates": 16},
        {"prompt": "x", "images": [{"image_url": URL}], "image_index": 2**31 - 1},
        {"prompt": "x", "images": [{"image_url": URL}], "keep_tokens": 10**9},
        {"prompt": "x", "images": [{"image_url": "http://169.254.169.254/"}]},
        {"prompt": "x", "images": [{"image_url": "file:///etc/passwd"}]},
        {"prompt": "x", "images": [{"image_url": URL}] * 17},
    ],
    "/v1/jobs": [
        {"prompt": "x", "image": {"job": "../../etc", "index": 0}},
        {"prompt": "x", "image": {"job": "job-" + "0" * 24, "index": -1}},
        {"prompt": "x", "image": N, "keep_tokens": 2**63},
        {"prompt": "x", "image": N, "mask": N, "strength": 0.0, "candidates": 16, "num_images": 10},
    ],
    "/sdapi/v1/img2img": [
        {"init_images": [N], "mask": N, "mask_blur": "NaN"},
        {"init_images": [N], "mask": N, "mask_blur": 1e308},
        {"init_images": [N], "mask": N, "inpaint_full_res": True, "inpaint_full_res_padding": 4096},
        {"init_images": [N], "width": 64, "height": 3840, "resize_mode": 1},
        {"init_images": [N], "denoising_strength": 1e-300},
        {"init_images": ["data:image/png;base64,"], "mask": ""},
        {"init_images": [N] * 500},
        {"init_images": [N], "batch_size": 2, "seed": 2**63 - 1},
        {"init_images": [N], "enable_hr": True, "hr_scale": 1e-300},
    ],
    "/sdapi/v1/extra-single-image": [
        {"image": N, "upscaler_1": "Lanczos", "upscaling_resize": 1e-300},
        {"image": N, "upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": 3840, "upscaling_resize_h": 1},
    ],
    "/sdapi/v1/png-info": [{"image": N * 2}, {"image": "data:,"}, {"image": "😀"}],
}


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, bodies in BODIES.items() for body in bodies], ids=lambda value: ""
)
def test_odd_numbers_beside_a_picture_are_answered(client: FlaskClient, path: str, body: dict[str, Any]) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code in FINE, reply.text


@pytest.mark.parametrize("name", FILES)
def test_odd_pictures_are_answered_by_every_route(client: FlaskClient, engine: ScriptedEngine, name: str) -> None:
    data = FILES[name]
    form = {"prompt": "x", "image": (io.BytesIO(data), "a.png")}
    replies = {
        "edits": client.post("/v1/images/edits", data=form),
        "masks": client.post(
            "/v1/images/edits", data={"prompt": "x", "image": (io.BytesIO(NOISE), "a"), "mask": (io.BytesIO(data), "m")}
        ),
        "variations": client.post("/v1/images/variations", data={"image": (io.BytesIO(data), "a.png")}),
        "jobs": client.post("/v1/jobs", json={"prompt": "x", "image": text(data)}),
        "img2img": client.post("/sdapi/v1/img2img", json={"init_images": [text(data)], "mask_blur": 256}),
        "extras": client.post("/sdapi/v1/extra-single-image", json={"image": text(data), "upscaler_1": "Lanczos"}),
        "png-info": client.post("/sdapi/v1/png-info", json={"image": text(data)}),
    }
    for route, reply in replies.items():
        assert reply.status_code in FINE, (route, reply.text)
    assert engine.num_held == 0, "every place came back"
