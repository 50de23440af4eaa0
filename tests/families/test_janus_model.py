"""Janus's torch module, converted from both published forms, against the reference's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.torch.weights import load_detokenizer, load_tokenizer, load_transformer
from dalle_server.families.janus import JanusConfig
from dalle_server.models.janus import Janus
from dalle_server.models.vqgan import to_pixels
from tests.families.janus_goldens import NUM_PROMPTS, converted, goldens, ids

# As measured between the reference, the transformers library and other builds of the same facts.
HIDDEN, TABLE, PIXELS, LATENT = 5e-5, 2e-5, 1e-4, 1e-4
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["deepseek-tiny", "hf-tiny"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return converted(tmp_path_factory.mktemp("janus"), request.param)


@pytest.fixture
def model(checkpoint: Checkpoint) -> Iterator[Janus]:
    with torch.inference_mode():
        yield load_transformer(checkpoint, CPU, torch.float32)


@pytest.mark.parametrize("prompt", range(NUM_PROMPTS))
def test_the_prompts_hidden_states(model: Janus, prompt: int) -> None:
    for row, branch in enumerate(("cond", "uncond")):
        hidden, _ = model.prefill(torch.from_numpy(ids(prompt, branch).astype(np.int64)))
        np.testing.assert_allclose(hidden, goldens()[f"p{prompt}_prefill_hidden"][row], rtol=0, atol=HIDDEN)


def test_the_folded_table_of_image_tokens(model: Janus) -> None:
    np.testing.assert_allclose(model.image_embed.weight[:-1], goldens()["gen_table"], rtol=0, atol=TABLE)


@torch.inference_mode()
def test_pixels(checkpoint: Checkpoint) -> None:
    vqgan = load_detokenizer(checkpoint, CPU, torch.float32)
    images = vqgan.decode(torch.from_numpy(goldens()["vq_grids"].reshape(3, -1).astype(np.int64)))
    expected = goldens()["vq_float"]  # nominally −1…1; ours has (x + 1)/2 folded into the last convolution
    np.testing.assert_allclose(images.permute(0, 2, 3, 1) * 2 - 1, expected, rtol=0, atol=PIXELS)
    apart = np.abs(to_pixels(images).numpy().astype(int) - goldens()["vq_uint8"])
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


@torch.inference_mode()
def test_tokens_of_a_picture(checkpoint: Checkpoint) -> None:
    vqgan = load_tokenizer(checkpoint, CPU)
    image = torch.from_numpy(goldens()["enc_image_uint8"]).permute(2, 0, 1)[None].float() / 255
    np.testing.assert_allclose(vqgan.encode_embeddings(image)[0], goldens()["enc_latent"], rtol=0, atol=LATENT)
    np.testing.assert_array_equal(vqgan.encode(image)[0], goldens()["enc_ids"])


@torch.inference_mode()
def test_grouped_heads_are_whole_heads_that_share_keys(checkpoint: Checkpoint) -> None:
    torch.manual_seed(3)
    sizes = replace(cast("JanusConfig", checkpoint.config.transformer), num_kv_heads=2)
    grouped, whole = sizes.torch_module(), replace(sizes, num_kv_heads=4).torch_module()
    state = grouped.state_dict()
    for name in state:
        if name.endswith(("k_proj.weight", "v_proj.weight")):  # heads 0 and 1 read the first, 2 and 3 the second
            state[name] = state[name].view(2, 1, 16, 64).expand(2, 2, 16, 64).reshape(64, 64)
    whole.load_state_dict(state)
    prompt = torch.from_numpy(ids(1, "cond").astype(np.int64))
    torch.testing.assert_close(grouped.prefill(prompt)[0], whole.prefill(prompt)[0])
