"""What the engine may rely on in the torch runner, in both its forms."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from dalle_server.engine import sampling
from dalle_server.engine.runners.base import LOGPROBS, NAN_TOKEN, StepRow
from dalle_server.engine.runners.cpu.threads import processor_name
from dalle_server.engine.runners.torch import runner as torch_runner
from dalle_server.engine.runners.torch.device import checked_device
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.engine.runners.torch.weights import pixel_dtype
from dalle_server.errors import ConfigError
from dalle_server.request import ImageKey, SamplingParams
from tests.parity.decoding import Picture, admit, decode, row, texts
from tests.parity.loading import golden_checkpoint, goldens
from tests.runners.random_checkpoint import random_checkpoint, random_text
from tests.runners.torch.torch_forms import FORMS, options

SAMPLING = SamplingParams(temperature=1.1, top_k=30, top_p=0.95, condition_scale=4.0)
DTYPES = ["fp32", "bf16"]


def make_runner(form: str = "host", dtype: str = "fp32", num_slots: int = 8) -> TorchRunner:
    return TorchRunner(golden_checkpoint("tiny-mega"), dtype=dtype, num_slots=num_slots, **options(form))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def batch() -> list[Picture]:
    """Eight pictures of three prompts, each with its own seed and parameters."""
    golden = goldens("tiny-mega/goldens_fp32.npz")
    pairs = list(zip(texts(golden), texts(golden, "_uncond"), strict=True))
    return [
        Picture(*pairs[i % 3], replace(SAMPLING, condition_scale=1.0 + i, top_k=10 * i), ImageKey(100 + i, i))
        for i in range(8)
    ]


def alone(runner: TorchRunner, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    tokens, logits = decode(runner, [picture])
    return tokens[0], logits[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_picture_does_not_depend_on_its_company(batch, form, dtype):
    runner = make_runner(form, dtype)
    together, logits = decode(runner, batch)
    for i, picture in enumerate(batch):
        expected, expected_logits = alone(runner, picture)
        np.testing.assert_array_equal(together[i], expected)
        np.testing.assert_array_equal(logits[i], expected_logits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pictures_join_and_leave_at_any_token(batch, form, dtype):
    """Picture i starts at time 5i in slot 7 − i; slots are used again with leftovers of others inside."""
    runner = make_runner(form, dtype)
    length = runner.config.picture.num_tokens
    expected = [alone(runner, picture)[0] for picture in batch]
    decode(runner, batch[::-1])  # leave something behind in every slot
    found = np.zeros_like(expected)
    for time in range(5 * len(batch) + length):
        rows, images = [], []
        for i, picture in enumerate(batch):
            position = time - 5 * i
            if position == 0:
                admit(runner, 7 - i, picture)
            if 0 <= position < length:
                rows.append(row(7 - i, position, picture))
                images.append((i, position))
        if rows:
            for (i, position), token in zip(images, runner.step(rows).result().tokens, strict=True):
                found[i, position] = token
    np.testing.assert_array_equal(found, expected)


def test_a_slot_that_skips_steps_goes_on_where_it_was(batch, form):
    runner = make_runner(form)
    expected, _ = decode(runner, batch[:2])
    for slot in range(2):
        admit(runner, slot, batch[slot])
    found = np.zeros_like(expected)
    length = runner.config.picture.num_tokens
    turns = [(0, p) for p in range(length // 2)] + [(1, p) for p in range(length)]
    for slot, position in turns + [(0, p) for p in range(length // 2, length)]:
        found[slot, position] = runner.step([row(slot, position, batch[slot])]).result().tokens[0]
    np.testing.assert_array_equal(found, expected)


def test_host_and_device_forms_agree(batch):
    host, host_logits = decode(make_runner("host"), batch)
    device, device_logits = decode(make_runner("device"), batch)
    np.testing.assert_array_equal(device, host)
    np.testing.assert_allclose(device_logits, host_logits, rtol=0, atol=1e-4)


def test_forced_tokens_are_taken_and_seen(batch, form):
    runner = make_runner(form)
    free, _ = alone(runner, batch[0])
    forced = np.where(np.arange(free.size) < 7, free, -1)
    kept, _ = alone(runner, replace(batch[0], forced=forced))
    np.testing.assert_array_equal(kept, free)  # the same tokens, whether drawn or given
    forced = np.where(np.arange(free.size) == 3, (free[3] + 1) % 128, -1)
    changed, _ = alone(runner, replace(batch[0], forced=forced))
    assert changed[3] == (free[3] + 1) % 128
    np.testing.assert_array_equal(changed[:3], free[:3])
    assert (changed[4:] != free[4:]).any()


def test_nan_spoils_one_picture_and_not_the_slots_next(batch, form):
    runner = make_runner(form)
    expected, _ = decode(runner, batch[:3])
    broken = runner.encode([batch[1].conditional])[0]
    values = broken.states.cross_values.clone()
    values[:, :, :, 0] = torch.nan
    broken.states = replace(broken.states, cross_values=values)
    for slot in range(3):
        admit(runner, slot, batch[slot])
    runner.admit(1, broken, broken)
    for position in range(expected.shape[1]):
        tokens = runner.step([row(slot, position, batch[slot]) for slot in range(3)]).result().tokens
        assert tokens.tolist() == [expected[0, position], NAN_TOKEN, expected[2, position]]
    again, _ = decode(runner, batch[:3])
    np.testing.assert_array_equal(again, expected)


def test_rows_answer_in_their_own_order(batch, form):
    runner = make_runner(form)
    for slot in range(3):
        admit(runner, slot, batch[slot])
    rows = [row(slot, 0, batch[slot]) for slot in range(3)]
    forward, forward_logits = runner.step(rows).result().tokens, runner.guided_logits()
    backward, backward_logits = runner.step(rows[::-1]).result().tokens, runner.guided_logits()
    np.testing.assert_array_equal(backward[::-1], forward)
    np.testing.assert_array_equal(backward_logits[::-1], forward_logits)


def test_padding_to_a_larger_bucket_changes_no_bit(batch, form):
    expected, expected_logits = decode(make_runner(form), batch[:1])
    runner = make_runner(form)
    runner.drop_buckets_below(8)
    assert runner.row_buckets == (8,)
    tokens, logits = decode(runner, batch[:1])
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(logits, expected_logits)


@pytest.mark.parametrize("sizes", [{"d_model": 24, "image_length": 64}, {"image_length": 36}, {"image_length": 100}])
def test_a_neighbour_far_ahead_changes_no_bit(form, sizes):
    """It may change how many cached positions a step looks at, and small or odd sizes feel that."""
    runner = TorchRunner(random_checkpoint(**sizes), num_slots=2, **options(form))
    texts = [random_text(1, 9), random_text(0, 2)]

    def logits(num_ahead: int) -> list[bytes]:
        for slot in range(2):
            runner.admit(slot, *runner.encode(texts))
        for position in range(num_ahead):
            runner.step([StepRow(1, position, ImageKey(2), SAMPLING)]).result()
        found = []
        for position in range(4):
            rows = [
                StepRow(0, position, ImageKey(1), SAMPLING),
                StepRow(1, num_ahead + position, ImageKey(2), SAMPLING),
            ]
            runner.step(rows).result()
            found.append(runner.guided_logits()[0].tobytes())
        return found

    together = logits(0)
    for num_ahead in range(31, sizes["image_length"] - 3, 32):
        assert logits(num_ahead) == together


def test_texts_encode_alike_in_any_company(batch):
    runner = make_runner()
    several = runner.encode([picture.conditional for picture in batch[:3]])[2].states
    single = runner.encode([batch[2].conditional])[0].states
    assert torch.equal(several.cross_keys, single.cross_keys)
    assert torch.equal(several.cross_values, single.cross_values)
    assert single.cross_keys.shape[3] == runner.config.text.max_length


def test_pictures_decode_alike_in_any_company():
    runner = make_runner(dtype="bf16")
    grids = np.random.default_rng(0).integers(0, 128, (3, 16)).astype(np.int32)
    np.testing.assert_array_equal(runner.detokenize(grids)[1:2], runner.detokenize(grids[1:2]))


@pytest.mark.parametrize(
    ("dtype", "num_slots", "buckets"),
    [("fp32", 1, (2,)), ("fp32", 8, (2, 4, 8)), ("fp32", 6, (2, 4, 6)), ("bf16", 1, (1,)), ("bf16", 5, (1, 2, 4, 5))],
)
def test_row_buckets(dtype, num_slots, buckets):
    runner = make_runner(dtype=dtype, num_slots=num_slots)
    assert (runner.row_buckets, runner.num_slots, runner.lookahead) == (buckets, num_slots, 0)


@pytest.mark.parametrize(
    ("starving", "call"),
    [
        ("logits", lambda runner, batch: runner.step([StepRow(0, 0, batch[0].key, batch[0].sampling)])),
        ("admit", lambda runner, batch: admit(runner, 0, batch[0])),
        ("model", lambda runner, batch: runner.encode([batch[0].conditional])),
    ],
)
def test_running_out_of_memory_is_a_memory_error(batch, monkeypatch, starving, call):
    def starve(*_: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    runner = make_runner()
    admit(runner, 0, batch[0])
    holder = runner._states.model if starving == "model" else runner._states
    monkeypatch.setattr(holder, "encode" if starving == "model" else starving, starve)
    with pytest.raises(MemoryError):
        call(runner, batch)


def test_a_step_that_finds_no_memory_for_logprobs_changes_no_slot(batch, form, monkeypatch):
    """The engine tries it again with fewer rows."""

    def starve(*_: object) -> None:
        raise torch.OutOfMemoryError

    def rows(position: int, slots: tuple[int, ...]) -> list[StepRow]:
        return [replace(row(slot, position, batch[slot]), wants=frozenset({LOGPROBS})) for slot in slots]

    runner = make_runner(form)
    expected, _ = decode(runner, batch[:3])
    for slot in range(3):
        admit(runner, slot, batch[slot])
    for position in range(expected.shape[1]):
        with monkeypatch.context() as patch:
            patch.setattr(torch_runner, "log_probabilities", starve)
            patch.setattr(sampling, "log_probabilities", starve)
            with pytest.raises(MemoryError):
                runner.step(rows(position, (0, 1, 2)))
        tokens = runner.step(rows(position, (0, 1))).result().tokens
        assert tokens.tolist() == expected[:2, position].tolist()


def test_a_cpu_is_told_by_name_instructions_and_threads():
    """Each of them changes torch's last bits: replicas that draw the same say the same."""
    before = torch.get_num_threads()
    runner = TorchRunner(golden_checkpoint("tiny-mega"), num_slots=1, num_threads=1)
    torch.set_num_threads(before)
    assert runner.info.device_name == processor_name() and runner.info.num_threads == 1
    assert runner.info.versions["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert TorchRunner(golden_checkpoint("tiny-mega"), num_slots=1).info.num_threads == before


def test_a_closed_runner_holds_nothing_large_and_may_be_closed_again():
    runner = make_runner()
    model = weakref.ref(runner._states.model)
    runner.close()
    assert model() is None
    runner.close()


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [("tpu9", "fp32", "unknown"), ("cuda:99", "fp32", "sees no such device"), ("cpu", "int8", "fp32, fp16, bf16")],
)
def test_wrong_settings_say_what_to_do(device, dtype, message):
    with pytest.raises(ConfigError, match=message):
        TorchRunner(golden_checkpoint("tiny-mega"), device=device, dtype=dtype)


def test_a_gpu_beyond_the_last_one_is_not_seen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert checked_device("cuda") == torch.device("cuda") and checked_device("cuda:0").index == 0
    with pytest.raises(ConfigError, match="sees no such device"):
        TorchRunner(golden_checkpoint("tiny-mega"), device="cuda:1")


def test_bf16_pixels_are_no_brighter_than_fp32s():
    """bf16 between ½ and 1 has one step a level: truncated there, these pixels came out half a level brighter."""
    checkpoint = random_checkpoint()
    checkpoint.vqgan["decoder.conv_out.bias"][:] = 0.6  # bright, and far enough from 1 that nothing is clipped
    grids = np.random.default_rng(0).integers(0, 96, (4, 36)).astype(np.int32)
    exact, rounded = (
        TorchRunner(checkpoint, num_slots=1, dtype=dtype).detokenize(grids).astype(float) for dtype in ("fp32", "bf16")
    )
    assert exact.std() > 10
    assert abs((rounded - exact).mean()) < 0.05


def test_a_device_without_bf16_paints_in_fp32(monkeypatch):
    cpu, zeros = torch.device("cpu"), torch.zeros
    assert pixel_dtype(cpu, torch.float16) == torch.bfloat16 and pixel_dtype(cpu, torch.float32) == torch.float32

    def without_bf16(*size, **options):
        if options.get("dtype") == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")
        return zeros(*size, **options)

    monkeypatch.setattr(torch, "zeros", without_bf16)
    assert pixel_dtype(cpu, torch.float16) == torch.float32
