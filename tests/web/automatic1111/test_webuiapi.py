"""The `webuiapi` package, unmodified, against a live server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import webuiapi
from PIL import Image

from tests.fake_runner import FakeRunner, fake_config
from tests.web.live import live


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webuiapi.WebUIApi]:
    with live(tmp_path_factory.mktemp("data"), FakeRunner(fake_config(grid_side=16))) as server:
        yield webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", sampler="Gumbel-max")


def test_it_paints(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(prompt="a red apple", negative_prompt="ugly", seed=1003, cfg_scale=7, batch_size=2, steps=20)
    assert [image.size for image in result.images] == [(512, 512)] * 2
    assert result.info["all_seeds"] == [1003, 1004]
    again = api.txt2img(prompt="a red apple", negative_prompt="ugly", seed=1004, cfg_scale=7)
    assert again.image.tobytes() == result.images[1].tobytes()


def test_it_reads_and_enlarges_pictures(api: webuiapi.WebUIApi) -> None:
    image = api.txt2img(prompt="a red apple", seed=7, width=128, height=128).image
    assert api.extra_single_image(image, upscaler_1="Lanczos", upscaling_resize=1.5).image.size == (192, 192)
    batch = api.extra_batch_images([image, image], upscaler_1="Lanczos", upscaling_resize=2)
    assert [each.size for each in batch.images] == [(256, 256)] * 2
    assert api.png_info(image).info.startswith("a red apple\nSteps: 256, ")


def test_everything_that_it_can_ask_is_answered(api: webuiapi.WebUIApi) -> None:
    for name in (
        "get_options", "get_cmd_flags", "get_progress", "get_samplers", "get_sd_vae", "get_upscalers",
        "get_latent_upscale_modes", "get_loras", "get_sd_models", "get_hypernetworks", "get_face_restorers",
        "get_realesrgan_models", "get_prompt_styles", "refresh_checkpoints", "get_scripts", "get_embeddings",
        "get_memory", "get_schedulers", "interrupt", "skip", "util_get_model_names", "util_get_sampler_names",
        "util_get_current_model",
    ):  # fmt: skip
        answer = getattr(api, name)()
        assert not isinstance(answer, dict) or "error" not in answer, name
    api.util_set_model("fake")
    api.util_wait_for_ready()


def test_it_draws_over_a_picture(api: webuiapi.WebUIApi) -> None:
    image = api.txt2img(prompt="a red apple", seed=7, width=128, height=128).image
    near, far = (
        api.img2img(images=[image], prompt="a pear", seed=5, width=128, height=128, denoising_strength=strength).image
        for strength in (0.2, 1.0)
    )
    base = np.asarray(image.convert("RGB")).astype(int)
    assert 0 < np.abs(np.asarray(near) - base).mean() < np.abs(np.asarray(far) - base).mean()
    pair = api.img2img(
        images=[image], prompt="a pear", seed=4, width=128, height=128, batch_size=2, denoising_strength=0.2
    )
    assert pair.info["all_seeds"] == [4, 5] and pair.info["denoising_strength"] == 0.2
    assert pair.images[1].tobytes() == near.tobytes(), "each picture's seed makes it alone"


@pytest.mark.parametrize("full_res", [True, False])
def test_it_inpaints_what_is_white_and_nothing_else(api: webuiapi.WebUIApi, full_res: bool) -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((320, 240))
    mask = Image.new("RGB", photo.size, "black")
    mask.paste("white", (90, 60, 200, 180))
    result = api.img2img(
        images=[photo], mask_image=mask, prompt="a pear", seed=5, width=320, height=240, mask_blur=8,
        inpainting_fill=1, inpaint_full_res=full_res, inpaint_full_res_padding=32, denoising_strength=1.0,
    )  # fmt: skip
    painted, original = np.asarray(result.image).astype(int), np.asarray(photo).astype(int)
    inside = np.asarray(mask.convert("L")) > 127
    assert np.array_equal(painted[~inside], original[~inside])
    assert np.abs(painted[inside] - original[inside]).mean() > 10
    assert result.info["extra_generation_params"] == {"Ignored": "inpainting_fill"}
    turned = api.img2img(
        images=[photo], mask_image=mask, prompt="a pear", seed=5, width=320, height=240, inpainting_mask_invert=1,
        denoising_strength=1.0,
    )  # fmt: skip
    assert np.array_equal(np.asarray(turned.image)[inside], original[inside])
