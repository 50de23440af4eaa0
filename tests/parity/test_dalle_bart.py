"""Our DalleBart against the reference implementation's own outputs, over every golden checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dalle_server.engine import sampling as sampling_on_numpy
from dalle_server.engine.runners.torch import sampling as sampling_on_torch
from dalle_server.models.dalle_bart import DalleBart
from dalle_server.request import SamplingParams
from tests.parity.loading import goldens, load_bart, load_min_dalle

FP32_TOLERANCE = 2e-4
FP16_TOLERANCE = 3e-2
TEXT_PAD = 1

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


Chooser = Callable[[int, Tensor], Tensor]


def best(_step: int, logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def generate(
    model: DalleBart, golden: Arrays, condition_scale: float, choose: Chooser = best, start: int | None = None
) -> np.ndarray:
    """Cached decoding, both branches in one batch → (N, I + 1) ids from the start token on.

    `choose(step, guided logits (N, V))` picks the tokens (N,).
    """
    text = torch.cat([ids(golden, "input_ids"), ids(golden, "input_ids_uncond")])
    mask = text != TEXT_PAD
    rows = torch.arange(len(text))
    cache = model.new_cache(len(text))
    cache.reset(rows, *model.decoder.cross_keys_values(model.encode(text, mask)), mask)
    start = model.config.decoder_start_token_id if start is None else start
    tokens = torch.full((len(text) // 2, 1), start)
    for step in range(model.config.image_length):
        hidden = model.decoder.step(tokens[:, -1].repeat(2), torch.full_like(rows, step), cache)
        conditional, unconditional = model.lm_head(hidden).chunk(2)
        logits = unconditional + condition_scale * (conditional - unconditional)
        tokens = torch.cat([tokens, choose(step, logits)[:, None]], dim=1)
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
        model.lm_head(model.decoder.step(token, torch.full_like(rows, position), cache))
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


def numpy_filter(logits: Tensor, sampling: SamplingParams) -> Tensor:
    filtered = torch.full_like(logits, -torch.inf)
    for row, scores in enumerate(logits.numpy()):
        kept, scaled = sampling_on_numpy.filter_logits(scores, sampling)
        filtered[row, kept] = torch.from_numpy(scaled)
    return filtered


def torch_filter(logits: Tensor, sampling: SamplingParams) -> Tensor:
    settings = (sampling.temperature, sampling.top_k, sampling.top_p)
    temperature, top_k, top_p = (torch.full((len(logits),), s) for s in settings)  # type: ignore[arg-type]
    values, order, kept = sampling_on_torch.filter_logits(logits, temperature, top_k, top_p)
    return torch.full_like(logits, -torch.inf).scatter(1, order, values.masked_fill(~kept, -torch.inf))


@pytest.mark.parametrize("filter_logits", [numpy_filter, torch_filter])
@pytest.mark.parametrize("name", ["tiny-mega", "tiny-mini"])
def test_sampled_sequence_under_the_references_own_noise(name, filter_logits):
    model, golden = load_bart(name), goldens(f"{name}/goldens_fp32.npz")
    top_k, top_p, temperature, condition_scale = golden["sampled_settings"].tolist()
    sampling = SamplingParams(temperature=temperature, top_k=int(top_k), top_p=top_p)
    noise = torch.tensor(golden["sampled_gumbel"])
    tokens = generate(
        model,
        golden,
        condition_scale,
        lambda step, logits: (filter_logits(logits, sampling) + noise[:, step]).argmax(-1),
    )
    np.testing.assert_array_equal(tokens, golden["seq_sampled"])


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


def test_min_dalle_checkpoint():
    model, golden = load_min_dalle("min-dalle-tiny"), goldens("min-dalle-tiny/goldens.npz")
    inputs = ids(golden, "decoder_input_ids")
    for row, branch in enumerate(("uncond", "cond")):
        text = ids(golden, "input_ids" if branch == "cond" else "input_ids_uncond")
        states = model.encode(text, text != TEXT_PAD)
        assert_near(states, golden["encoder_state_uncond_cond"][:, row], FP32_TOLERANCE)
        logits = model(text, text != TEXT_PAD, inputs)
        assert_near(logits, golden[f"decoder_logits_{branch}"], FP32_TOLERANCE)


def test_min_dalle_sequences():
    model, golden = load_min_dalle("min-dalle-tiny"), goldens("min-dalle-tiny/goldens.npz")
    np.testing.assert_array_equal(generate(model, golden, 10.0), golden["seq_top1_cs10"])


def min_dalle_vocab_true() -> tuple[DalleBart, Arrays]:
    golden = goldens("min-dalle-vocab-true/goldens.npz")
    golden["input_ids_uncond"], golden["input_ids"] = golden["input_ids_uncond_cond"][:, None]
    return load_min_dalle("min-dalle-vocab-true"), golden


def test_min_dalle_true_vocabulary():
    model, golden = min_dalle_vocab_true()
    for branch, key in (("uncond", "input_ids_uncond"), ("cond", "input_ids")):
        text = ids(golden, key)
        row = int(branch == "cond")
        assert_near(model.encode(text, text != TEXT_PAD)[0], golden["encoder_state_uncond_cond"][row], FP32_TOLERANCE)
        logits = model(text, text != TEXT_PAD, ids(golden, "decoder_input_ids"))[0, golden["positions"]]
        assert_near(logits, golden[f"decoder_logits_{branch}"], FP32_TOLERANCE)


@pytest.mark.parametrize(("scale", "start"), [(10.0, 16384), (16.0, 16383), (10.0, 16415)])
def test_min_dalle_true_vocabulary_sequences(scale, start):
    model, golden = min_dalle_vocab_true()
    tokens = generate(model, golden, scale, lambda _, logits: logits[:, : 2**14].argmax(-1), start)
    np.testing.assert_array_equal(tokens[0], golden[f"seq_top1_cs{scale:.0f}_start{start}"])
