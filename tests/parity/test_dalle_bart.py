"""Our DalleBart against the reference implementation's own outputs, over every golden checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dalle_server.models.dalle_bart import DalleBart
from tests.parity.loading import goldens, load_bart, load_min_dalle

FP32_TOLERANCE = 2e-4
FP16_TOLERANCE = 3e-2

# checkpoint → its goldens. The fp16 tree is compared with the run whose parameters were cast up first:
# under dtype=float32 the reference adds fp16 embeddings in fp16, which an fp32 engine does not.
FP32_CASES = {
    "tiny-mega": "tiny-mega/goldens_fp32.npz",
    "tiny-mega-noscan": "tiny-mega/goldens_fp32.npz",
    "tiny-mega-fp16": "tiny-mega-fp16/goldens_compute_fp32_upcast.npz",
    "tiny-mini": "tiny-mini/goldens_fp32.npz",
    "vocab-true-fp16": "vocab-true-fp16/goldens_compute_fp32_upcast.npz",
}
BRANCHES = ("", "_uncond")

Arrays = dict[str, np.ndarray]


def ids(golden: Arrays, name: str) -> Tensor:
    return torch.tensor(golden[name]).long()


def assert_near(actual: Tensor, golden: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(actual.float().numpy(), golden, rtol=0, atol=tolerance)


def generate(model: DalleBart, golden: Arrays, condition_scale: float, choose=None) -> np.ndarray:
    """Cached decoding, both branches in one batch → (N, I + 1) ids from the start token on.

    `choose(step, guided logits (N, V))` picks the tokens; by default the best one.
    """
    text, mask = (
        torch.cat([ids(golden, name), ids(golden, f"{name}_uncond")]) for name in ("input_ids", "attention_mask")
    )
    num_images, rows = len(text) // 2, torch.arange(len(text))
    cache = model.new_cache(len(text))
    cache.reset(rows, *model.decoder.cross_keys_values(model.encode(text, mask)), mask.bool())
    tokens = torch.full((num_images, 1), model.config.decoder_start_token_id)
    for step in range(model.config.image_length):
        hidden = model.decoder.step(tokens[:, -1].repeat(2), torch.full_like(rows, step), cache, rows)
        conditional, unconditional = model.lm_head(hidden).chunk(2)
        logits = unconditional + condition_scale * (conditional - unconditional)
        best = logits.argmax(-1) if choose is None else choose(step, logits)
        tokens = torch.cat([tokens, best[:, None]], dim=1)
    return tokens.numpy()


@pytest.fixture(params=FP32_CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[DalleBart, Arrays]:
    return load_bart(request.param), goldens(FP32_CASES[request.param])


@pytest.mark.parametrize("branch", BRANCHES)
def test_encoder_states(case, branch):
    model, golden = case
    states = model.encode(ids(golden, f"input_ids{branch}"), ids(golden, f"attention_mask{branch}"))
    assert_near(states, golden[f"encoder_last_hidden{branch}"], FP32_TOLERANCE)


@pytest.mark.parametrize("branch", BRANCHES)
def test_teacher_forced_logits(case, branch):
    model, golden = case
    text, mask = ids(golden, f"input_ids{branch}"), ids(golden, f"attention_mask{branch}")
    logits = model(text, mask, ids(golden, "decoder_input_ids"))[:, golden["positions"]]
    assert_near(logits, golden[f"decoder_logits{branch}"], FP32_TOLERANCE)


def test_guided_logits(case):
    model, golden = case
    conditional, unconditional = (
        model(ids(golden, f"input_ids{b}"), ids(golden, f"attention_mask{b}"), ids(golden, "decoder_input_ids"))
        for b in BRANCHES
    )
    scale = float(golden["condition_scale"])
    guided = (unconditional + scale * (conditional - unconditional))[:, golden["positions"]]
    assert_near(guided, golden["supercond_logits"], 2 * scale * FP32_TOLERANCE)


@pytest.mark.parametrize("name", ["tiny-mega", "tiny-mini"])
def test_cached_decoding_equals_teacher_forcing_and_the_golden(name):
    model, golden = load_bart(name), goldens(f"{name}/goldens_fp32.npz")
    text, mask, inputs = (ids(golden, key) for key in ("input_ids", "attention_mask", "decoder_input_ids"))
    rows = torch.arange(len(text))
    cache = model.new_cache(len(text))
    memory = model.encode(text, mask)
    cache.reset(rows, *model.decoder.cross_keys_values(memory), mask.bool())
    steps = [
        model.lm_head(model.decoder.step(token, torch.full_like(rows, position), cache, rows))
        for position, token in enumerate(inputs.T)
    ]
    logits = torch.stack(steps, dim=1)
    assert_near(logits, golden["decoder_logits_cached"], FP32_TOLERANCE)
    assert_near(logits, model(text, mask, inputs).numpy(), 1e-5)


@pytest.mark.parametrize(
    ("sequence", "condition_scale"), [("seq_greedy", 1.0), ("seq_top1_cs10", 10.0), ("seq_top1_cs3", 3.0)]
)
def test_best_token_sequences(case, sequence, condition_scale):
    model, golden = case
    np.testing.assert_array_equal(generate(model, golden, condition_scale), golden[sequence])


@pytest.mark.parametrize("branch", BRANCHES)
def test_fp16_compute(branch):
    model = load_bart("tiny-mega-fp16", torch.float16)
    golden = goldens("tiny-mega-fp16/goldens_compute_fp16.npz")
    text, mask = ids(golden, f"input_ids{branch}"), ids(golden, f"attention_mask{branch}")
    assert_near(model.encode(text, mask), golden[f"encoder_last_hidden{branch}"], FP16_TOLERANCE)
    logits = model(text, mask, ids(golden, "decoder_input_ids"))
    assert_near(logits, golden[f"decoder_logits{branch}"], FP16_TOLERANCE)


def test_every_layer():
    model, golden = load_bart("tiny-mega"), goldens("tiny-mega/goldens_layers.npz")
    states: dict[str, Tensor] = {}
    for part, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for index, module in enumerate([stack.layernorm_embedding, *stack.layers]):
            module.register_forward_hook(
                lambda _module, _inputs, output, name=f"{part}_hidden_{index}": states.update({name: output})
            )
    logits = model(*(ids(golden, name) for name in ("input_ids", "attention_mask", "decoder_input_ids")))
    assert len(states) == 2 + len(model.encoder.layers) + len(model.decoder.layers)
    for name, state in states.items():
        assert_near(state, golden[name], FP32_TOLERANCE)
    assert_near(logits, golden["logits"], FP32_TOLERANCE)


def min_dalle_masks(text: Tensor) -> Tensor:
    return text != 1  # min-dalle has no mask of its own: everything but padding


def test_min_dalle_checkpoint():
    model, golden = load_min_dalle("min-dalle-tiny"), goldens("min-dalle-tiny/goldens.npz")
    inputs = ids(golden, "decoder_input_ids")
    for row, branch in enumerate(("uncond", "cond")):
        text = ids(golden, "input_ids" if branch == "cond" else "input_ids_uncond")
        states = model.encode(text, min_dalle_masks(text))
        assert_near(states, golden["encoder_state_uncond_cond"][:, row], FP32_TOLERANCE)
        logits = model(text, min_dalle_masks(text), inputs)
        assert_near(logits, golden[f"decoder_logits_{branch}"], FP32_TOLERANCE)


def test_min_dalle_sequences():
    model, golden = load_min_dalle("min-dalle-tiny"), goldens("min-dalle-tiny/goldens.npz")
    golden["attention_mask"] = golden["input_ids"] != 1
    golden["attention_mask_uncond"] = golden["input_ids_uncond"] != 1
    np.testing.assert_array_equal(generate(model, golden, 10.0), golden["seq_top1_cs10"])
