"""The `webuiapi` package, unmodified, against a live server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import webuiapi

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
