"""The compiled step against the same int8 arithmetic written with torch, and against the goldens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.compiled.caches import KeptText
from dalle_server.engine.runners.cpu.compiled.tiles import INT8_BYTES, LANES, tile_fp32, tile_int8, tile_shape
from dalle_server.engine.runners.cpu.packing import products, stacked
from dalle_server.engine.runners.cpu.quantise import GROUP_SIZE, quantise
from dalle_server.errors import ConfigError
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.dalle_bart import DalleBart
from tests.runners.cpu.cpu_runners import RUNNABLE, cpu_runner, needs_compiled, without_pixels
from tests.runners.golden_checkpoints import GOLDENS, GREEDY, admit_goldens, force, goldens, open_golden
from tests.runners.random_checkpoint import START, random_checkpoint, random_text

pytestmark = needs_compiled


class Int8Linear(nn.Module):
    """x·Wᵀ with both sides rounded to int8, a scale for each group of inputs; the products summed in float.

    `is_cached`: the result is rounded to float16, as a cache holds it.
    """

    def __init__(self, weight: np.ndarray, is_cached: bool = False):
        super().__init__()
        self.is_cached = is_cached
        self.weight = torch.tensor(weight)  # (out, groups·group), rounded already

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, self.weight.shape[1] - x.shape[-1])).unflatten(-1, (-1, GROUP_SIZE))
        scale = padded.abs().amax(-1, keepdim=True) / 127
        y = (torch.round(padded / scale.clamp(min=1e-30)) * scale).flatten(-2) @ self.weight.T
        return y.half().float() if self.is_cached else y


class Given(nn.Module):
    """Keys or values that the runner's own text encoder made, (H, T, D): it is not at stake here."""

    def __init__(self, cached: np.ndarray):
        super().__init__()
        self.cached = torch.tensor(cached.astype(np.float32)).transpose(0, 1).flatten(1)[None]

    def forward(self, _memory: Tensor) -> Tensor:
        return self.cached


def rounded(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """The named product's weights after int8, groups filled up with zeros."""
    quantised = quantise(stacked(checkpoint.transformer, products(checkpoint.config)[name]))
    weight = quantised.values * quantised.scales
    rows = np.zeros((len(weight), weight.shape[1], GROUP_SIZE), np.float32)
    rows[:, :, : weight.shape[2]] = weight
    return rows.reshape(len(rows), -1)


def kept(text: KeptText, layer: int, head_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values (H, T, D) in float16, as attention.h lays them out."""
    heads, length = text.cells.shape[1], len(text.ids)
    room, width = (-(-size // LANES) * LANES for size in (length, head_size))
    cells = text.cells[layer].view(np.float16)
    keys = cells[:, : room * head_size].reshape(heads, -1, head_size, LANES).swapaxes(2, 3).reshape(heads, room, -1)
    values = cells[:, room * head_size :].reshape(heads, room, width)
    return keys[:, :length], values[:, :length, :head_size]


def int8_model(checkpoint: Checkpoint, text: KeptText) -> DalleBart:
    """The torch model whose decode step computes in int8, for one text."""
    model = DalleBart(checkpoint.config.sizes(DalleBartConfig))
    model.load_state_dict({name: torch.tensor(t.astype(np.float32)) for name, t in checkpoint.transformer.items()})
    for index, layer in enumerate(model.decoder.layers):
        prefix = f"decoder.layers.{index}"
        num_heads: int = layer.self_attn.num_heads  # type: ignore[assignment]
        scale = (checkpoint.config.sizes(DalleBartConfig).d_model // num_heads) ** 0.5  # folded into the query
        query, key, value = np.split(rounded(checkpoint, f"{prefix}.self_attn.qkv"), 3)
        layer.self_attn.q_proj = Int8Linear(query * scale)
        layer.self_attn.k_proj, layer.self_attn.v_proj = Int8Linear(key, True), Int8Linear(value, True)
        layer.self_attn.out_proj = Int8Linear(rounded(checkpoint, f"{prefix}.self_attn.out"))
        layer.encoder_attn.q_proj = Int8Linear(rounded(checkpoint, f"{prefix}.encoder_attn.q") * scale)
        keys, values = kept(text, index, len(key) // num_heads)
        layer.encoder_attn.k_proj, layer.encoder_attn.v_proj = Given(keys), Given(values)
        layer.encoder_attn.out_proj = Int8Linear(rounded(checkpoint, f"{prefix}.encoder_attn.out"))
        gate, up = np.split(rounded(checkpoint, f"{prefix}.glu.gate_up"), 2)
        layer.glu.fc0, layer.glu.fc1 = Int8Linear(gate), Int8Linear(up)
        layer.glu.fc2 = Int8Linear(rounded(checkpoint, f"{prefix}.glu.down"))
    model.lm_head = Int8Linear(rounded(checkpoint, "lm_head"))  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("d_model", "heads", "ffn_dim", "image_length"),
    [(96, 3, 130, 36), (128, 2, 341, 49), (80, 4, 64, 16), (66, 3, 100, 25)],
)
def test_a_step_is_the_int8_arithmetic(d_model: int, heads: int, ffn_dim: int, image_length: int) -> None:
    checkpoint = random_checkpoint(d_model, heads, ffn_dim, image_length)
    runner = cpu_runner(checkpoint, "int8", num_slots=2)
    encoded = runner.encode([random_text(1, 40), random_text(2, 3)])
    runner.admit(0, *encoded)
    tokens = np.random.default_rng(4).integers(0, START, (1, image_length))
    tokens[:, 0] = START
    found = {scale: force(runner, tokens, replace(GREEDY, condition_scale=scale))[0] for scale in (0.0, 1.0, 5.0)}

    hidden, logits = [], []
    for text in encoded:
        model, memory = int8_model(checkpoint, text), torch.zeros(1, len(text.ids), d_model)
        with torch.no_grad():
            hidden.append(model.decoder(torch.tensor(tokens), memory, torch.ones(1, len(text.ids))))
            logits.append(model.lm_head(hidden[-1])[0, :, :START].numpy())
    assert_same_but_for_rounding(found[1.0], logits[0])
    assert_same_but_for_rounding(found[0.0], logits[1])
    with torch.no_grad():  # guidance comes before lm_head
        guided = model.lm_head(hidden[1] + 5 * (hidden[0] - hidden[1]))[0, :, :START].numpy()
    assert_same_but_for_rounding(found[5.0], guided, allowed=0.1)


def assert_same_but_for_rounding(found: np.ndarray, expected: np.ndarray, allowed: float = 0.03) -> None:
    """Equal to float32's precision until a sum's last bit moves a value to the next of the 255 steps of int8, which
    every later position then feels.
    """
    errors = np.sqrt(np.mean((found - expected) ** 2, axis=1)) / expected.std()
    assert np.quantile(errors, 0.15) < 1e-5
    assert errors.max() < allowed


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens_within_what_int8_allows(name: str) -> None:
    runner, golden = cpu_runner(open_golden(name), "int8", num_slots=4), goldens(GOLDENS[name])
    admit_goldens(runner, golden)
    for branch, scale in (("", 1.0), ("_uncond", 0.0)):
        logits = force(runner, golden["decoder_input_ids"], replace(GREEDY, condition_scale=scale))
        expected = golden[f"decoder_logits{branch}"][..., : runner.config.picture.codebook_size]
        assert rms(logits[:, golden["positions"]] - expected) / expected.std() < 0.04


def test_tiles_hold_every_weight_where_the_step_reads_it() -> None:
    weight = quantise(np.random.default_rng(0).standard_normal((37, 150)).astype(np.float32))
    tiles = tile_int8(weight)
    assert tiles.shape == (*tile_shape(37, 150), INT8_BYTES) == (3, 3, INT8_BYTES)
    for output, column in ((0, 0), (17, 70), (36, 149)):
        group, inside = divmod(column, GROUP_SIZE)
        block = tiles[output // LANES, group]
        byte = inside // 4 * 64 + output % LANES * 4 + inside % 4
        assert int(block[byte]) == weight.values[output, group, inside]
        scales = block[LANES * GROUP_SIZE :].view(np.float32)
        assert scales[output % LANES] == weight.scales[output, group, 0]


def test_exact_tiles_hold_every_weight_where_the_step_reads_it() -> None:
    weight = np.random.default_rng(0).standard_normal((37, 150)).astype(np.float32)
    tiles = tile_fp32(weight).reshape(3, 3, GROUP_SIZE, LANES)
    for output, column in ((0, 0), (17, 70), (36, 149)):
        assert (
            tiles[output // LANES, column // GROUP_SIZE, column % GROUP_SIZE, output % LANES] == weight[output, column]
        )
    assert np.count_nonzero(tiles) == weight.size


@pytest.mark.parametrize("dtype", ["int8", "fp32"])
@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(num_threads: int, dtype: str) -> None:
    checkpoint = random_checkpoint()
    tokens = np.random.default_rng(2).integers(0, START, (2, 20)).astype(np.int32)

    def logits(num_threads: int) -> bytes:
        runner = without_pixels(checkpoint, dtype, RUNNABLE[0], num_slots=3, num_threads=num_threads)
        for slot in range(2):
            runner.admit(slot, *runner.encode([random_text(slot, 11), random_text(2, 2)]))
        found = force(runner, tokens, replace(GREEDY, condition_scale=5.0))
        runner.close()
        return found.tobytes()

    assert logits(num_threads) == logits(1)


def test_a_grid_too_long_for_the_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="--runner torch"):
        cpu_runner(random_checkpoint(image_length=65 * 65), "int8", num_slots=1)
