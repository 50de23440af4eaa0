"""Janus in torch, converted from both published forms, against the reference's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import TextTokens
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.engine.runners.torch.weights import load_detokenizer, load_transformer
from dalle_server.families.janus import JanusConfig
from dalle_server.models.janus import Janus
from dalle_server.models.vqgan import to_pixels
from dalle_server.request import SamplingParams
from tests.families.janus_goldens import NUM_PROMPTS, converted, goldens
from tests.parity.decoding import Picture, decode

# As measured between the reference, the transformers library and other builds of the same facts.
HIDDEN, LOGITS, GUIDED, TABLE, PIXELS = 5e-5, 1e-4, 3e-4, 2e-5, 1e-4
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["deepseek-tiny", "hf-tiny"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return converted(tmp_path_factory.mktemp("janus"), request.param)


@pytest.fixture
def model(checkpoint: Checkpoint) -> Iterator[Janus]:
    with torch.inference_mode():
        yield load_transformer(checkpoint, CPU, torch.float32)


def ids(prompt: int, branch: str) -> np.ndarray:
    found: np.ndarray = goldens()[f"p{prompt}_ids_{branch}"]
    return found


def picture(prompt: int, scale: float, forced: np.ndarray | None = None) -> Picture:
    both = (ids(prompt, branch).astype(np.int32) for branch in ("cond", "uncond"))
    conditional, unconditional = (TextTokens(row, len(row)) for row in both)
    sampling = SamplingParams(temperature=1.0, top_k=1, top_p=1.0, condition_scale=scale)
    return Picture(conditional, unconditional, sampling, forced=forced)


@pytest.mark.parametrize("prompt", range(NUM_PROMPTS))
def test_the_prompts_hidden_states(model: Janus, prompt: int) -> None:
    for row, branch in enumerate(("cond", "uncond")):
        hidden, _ = model.prefill(torch.from_numpy(ids(prompt, branch).astype(np.int64)))
        np.testing.assert_allclose(hidden, goldens()[f"p{prompt}_prefill_hidden"][row], rtol=0, atol=HIDDEN)


def test_the_folded_table_of_image_tokens(model: Janus) -> None:
    np.testing.assert_allclose(model.image_embed.weight[:-1], goldens()["gen_table"], rtol=0, atol=TABLE)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_greedy_sequences_of_three_prompts_at_once(checkpoint: Checkpoint, scale: float) -> None:
    runner = TorchRunner(checkpoint, num_slots=NUM_PROMPTS)
    tokens, _ = decode(runner, [picture(prompt, scale) for prompt in range(NUM_PROMPTS)])
    for prompt in range(NUM_PROMPTS):
        np.testing.assert_array_equal(tokens[prompt], goldens()[f"p{prompt}_greedy_cfg{scale:.0f}"])


@pytest.mark.parametrize("on_device", [False, True])
def test_guided_logits_along_forced_tokens(checkpoint: Checkpoint, on_device: bool) -> None:
    batch = [picture(prompt, 5.0, goldens()[f"p{prompt}_forced"]) for prompt in range(NUM_PROMPTS)]
    _, logits = decode(TorchRunner(checkpoint, num_slots=NUM_PROMPTS, on_device=on_device), batch)
    for prompt in range(NUM_PROMPTS):
        np.testing.assert_allclose(logits[prompt], goldens()[f"p{prompt}_forced_guided_cfg5"], rtol=0, atol=GUIDED)


@torch.inference_mode()
def test_pixels(checkpoint: Checkpoint) -> None:
    vqgan = load_detokenizer(checkpoint, CPU, torch.float32)
    images = vqgan.decode(torch.from_numpy(goldens()["vq_grids"].reshape(3, -1).astype(np.int64)))
    expected = goldens()["vq_float"]  # nominally −1…1; ours has (x + 1)/2 folded into the last convolution
    np.testing.assert_allclose(images.permute(0, 2, 3, 1) * 2 - 1, expected, rtol=0, atol=PIXELS)
    apart = np.abs(to_pixels(images).numpy().astype(int) - goldens()["vq_uint8"])
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("prompt", range(NUM_PROMPTS))
def test_a_whole_picture(checkpoint: Checkpoint, prompt: int) -> None:
    pixels = TorchRunner(checkpoint, num_slots=1).detokenize(goldens()[f"p{prompt}_greedy_cfg5"][None])
    apart = np.abs(pixels[0].astype(int) - goldens()[f"p{prompt}_image_cfg5_uint8"])
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


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
