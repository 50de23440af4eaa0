"""The torch runner against the goldens, in both its forms: host sampling, and the fused step that a GPU captures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dalle_server.checkpoints import Checkpoint
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.request import SamplingParams
from tests.parity.decoding import Picture, decode, pictures
from tests.parity.loading import golden_checkpoint, goldens, without_vqgan_limit
from tests.runners.torch.torch_forms import FORMS, options

GREEDY = SamplingParams(temperature=1.0, top_k=1, top_p=1.0, condition_scale=1.0)
CASES = {
    "tiny-mega": "tiny-mega/goldens_fp32.npz",
    "tiny-mega-noscan": "tiny-mega/goldens_fp32.npz",
    "tiny-mega-fp16": "tiny-mega-fp16/goldens_compute_fp32_upcast.npz",
    "tiny-mini": "tiny-mini/goldens_fp32.npz",
    "vocab-true-fp16": "vocab-true-fp16/goldens_compute_fp32_upcast.npz",
}


def runner_for(checkpoint: Checkpoint, form: str, dtype: str = "fp32") -> TorchRunner:
    return TorchRunner(checkpoint, dtype=dtype, num_slots=3, **options(form))


@pytest.fixture(params=FORMS, scope="module")
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("sequence", "scale"), [("seq_greedy", 1.0), ("seq_top1_cs10", 10.0), ("seq_top1_cs3", 3.0)])
def test_best_token_sequences(name, sequence, scale, form):
    golden = goldens(CASES[name])
    runner = runner_for(without_vqgan_limit(golden_checkpoint(name)), form)
    tokens, _ = decode(runner, pictures(golden, replace(GREEDY, condition_scale=scale)))
    np.testing.assert_array_equal(tokens, golden[sequence][:, 1:])


def forced_pictures(golden: dict[str, np.ndarray]) -> list[Picture]:
    """Pictures that follow the golden's decoder inputs, whose first id is the start token."""
    sampling = replace(GREEDY, condition_scale=float(golden["condition_scale"]))
    following = np.pad(golden["decoder_input_ids"][:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    return [
        replace(picture, forced=forced) for picture, forced in zip(pictures(golden, sampling), following, strict=True)
    ]


@pytest.mark.parametrize("name", CASES)
def test_guided_logits_along_forced_tokens(name, form):
    golden = goldens(CASES[name])
    batch = forced_pictures(golden)
    tokens, logits = decode(runner_for(golden_checkpoint(name), form), batch)
    np.testing.assert_array_equal(tokens[:, :-1], golden["decoder_input_ids"][:, 1:])
    expected = golden["supercond_logits"][..., : logits.shape[-1]]
    tolerance = 2e-4 * 2 * float(golden["condition_scale"])
    np.testing.assert_allclose(logits[:, golden["positions"]], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_stays_near(dtype, form):
    golden = goldens("tiny-mega-fp16/goldens_compute_fp16.npz")
    _, logits = decode(runner_for(golden_checkpoint("tiny-mega-fp16"), form, dtype), forced_pictures(golden))
    error = logits - golden["supercond_logits"][..., : logits.shape[-1]]
    relative = np.sqrt(np.square(error).mean()) / golden["supercond_logits"].std()
    # fp16 is what the golden itself computed in; bf16 keeps three bits fewer.
    assert relative < {"fp16": 0.01, "bf16": 0.05}[dtype]


def test_pixels():
    golden = goldens("tiny-vqgan/goldens.npz")
    runner = runner_for(golden_checkpoint("tiny-mega"), "host")
    pixels = runner.detokenize(golden["indices"])
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - golden["pixels_uint8"]).max() <= 1
