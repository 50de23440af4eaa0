"""How far each number format lies from the eager fp32 reference, and what quantisation itself does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.quantise import GROUP_SIZE, quantise
from dalle_server.errors import CheckpointError, ConfigError
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.dalle_bart import DalleBart
from dalle_server.models.vqgan import VQGAN, to_pixels
from dalle_server.request import SamplingParams
from tests.runners.cpu.cpu_runners import FORMATS, cpu_runner, needs_compiled
from tests.runners.golden_checkpoints import force
from tests.runners.random_checkpoint import START, random_checkpoint, random_text

pytestmark = needs_compiled

SCALE = 4.0
SAMPLING = SamplingParams(temperature=1.0, top_k=1, top_p=1.0, condition_scale=SCALE)
LENGTHS = (11, 40)


@pytest.fixture(scope="module", params=[np.float32, np.float16, ml_dtypes.bfloat16], ids=["f32", "f16", "bf16"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    """As stored in each of the types that a native checkpoint may have."""
    return random_checkpoint(dtype=request.param)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    ids = np.random.default_rng(5).integers(0, START, (2, 36))
    ids[:, 0] = START
    return ids


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    """(N, I, C) guided logits of the torch model."""
    model = DalleBart(checkpoint.config.sizes(DalleBartConfig))
    model.load_state_dict({name: torch.tensor(t.astype(np.float32)) for name, t in checkpoint.transformer.items()})
    texts = [random_text(n, length) for n, length in enumerate(LENGTHS)] + [random_text(9, 2)] * 2
    ids = torch.tensor(np.stack([text.ids for text in texts])).long()
    mask = torch.arange(64)[None] < torch.tensor([text.length for text in texts])[:, None]
    with torch.no_grad():
        conditional, unconditional = model(ids, mask, torch.tensor(tokens).repeat(2, 1)).chunk(2)
    guided: np.ndarray = (unconditional + SCALE * (conditional - unconditional))[..., :START].numpy()
    return guided


def run(checkpoint: Checkpoint, tokens: np.ndarray, dtype: str, num_threads: int | None = None) -> np.ndarray:
    runner = cpu_runner(checkpoint, dtype, num_slots=2, num_threads=num_threads)
    for slot, length in enumerate(LENGTHS):
        runner.admit(slot, *runner.encode([random_text(slot, length), random_text(9, 2)]))
    return force(runner, tokens, SAMPLING)


# rms error over the logits' standard deviation; guidance multiplies what each branch errs by about SCALE.
@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-5), ("int8", 0.08)])
def test_logits_against_torch(
    checkpoint: Checkpoint, tokens: np.ndarray, expected: np.ndarray, dtype: str, limit: float
) -> None:
    error = run(checkpoint, tokens, dtype) - expected
    assert np.sqrt(np.mean(error**2)) / expected.std() < limit


@pytest.mark.parametrize("dtype", FORMATS)
def test_one_thread_gives_the_bits_of_two(tokens: np.ndarray, dtype: str) -> None:
    checkpoint = random_checkpoint()
    one, two = (run(checkpoint, tokens, dtype, num_threads) for num_threads in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", FORMATS)
def test_pixels_against_torch(dtype: str) -> None:
    checkpoint = random_checkpoint()
    model = VQGAN(checkpoint.config.vqgan, with_encoder=False)
    state = {name: torch.tensor(tensor) for name, tensor in checkpoint.vqgan.items()}
    model.load_state_dict(state)
    ids = np.random.default_rng(2).integers(0, START, (1, 36)).astype(np.int32)
    with torch.no_grad():
        expected = to_pixels(model.decode(torch.tensor(ids).long()))
    pixels = cpu_runner(checkpoint, dtype, num_slots=1).detokenize(ids)
    assert expected.numpy().std() > 10, "a flat picture would prove nothing"
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1


def test_quantisation_errs_by_half_a_step_at_most() -> None:
    weight = np.random.default_rng(0).standard_normal((70, 3 * GROUP_SIZE + 5)).astype(np.float16)
    weight[3] = 0
    quantised = quantise(weight)
    restored = (quantised.values * quantised.scales).reshape(len(weight), -1)
    assert restored.shape == (70, 4 * GROUP_SIZE)
    assert not restored[:, weight.shape[1] :].any()
    step = np.repeat(quantised.scales[..., 0], GROUP_SIZE, axis=1)[:, : weight.shape[1]]
    assert (np.abs(restored[:, : weight.shape[1]] - weight) <= step * 0.5001).all()
    assert np.abs(quantised.values).max() == 127
    assert not restored[3].any()


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weight = np.ones((4, 8), np.float32)
    weight[2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        quantise(weight)


def test_broken_weights_are_named_at_start() -> None:
    checkpoint = random_checkpoint()
    checkpoint.transformer["decoder.layers.1.glu.fc2.weight"][2, 3] = np.inf
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.1\.glu\.fc2\.weight: a weight is not finite"):
        cpu_runner(checkpoint, "int8", num_slots=1, num_threads=1)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp16"):
        cpu_runner(random_checkpoint(), "fp16")
