"""The promise again, with real arithmetic: each runner's pictures in random company equal those made alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.selftest import check_determinism
from dalle_server.errors import ConfigError
from dalle_server.generation import Cancelled, Done, GeneratedImage, Generation, Preview
from dalle_server.request import FREE, GenerationRequest, SamplingParams
from tests.engine.conftest import run, same
from tests.fake_runner import FakeTokenizer

NUM_SLOTS = 4
NUM_REQUESTS = 14
ORDERS = 3


def torch_runner(dtype: str, **options: bool) -> Runner:
    pytest.importorskip("torch")
    from dalle_server.engine.runners.torch.runner import TorchRunner
    from tests.runners.golden_checkpoints import open_golden

    return TorchRunner(open_golden("tiny-mega"), dtype=dtype, num_slots=NUM_SLOTS, **options)  # type: ignore[arg-type]


def torch_janus() -> Runner:
    pytest.importorskip("torch")
    from dalle_server.engine.runners.torch.runner import TorchRunner
    from tests.families.janus_goldens import opened

    return TorchRunner(opened(max_text_length=64), num_slots=NUM_SLOTS)


def compiled_janus(dtype: str) -> Runner:
    from dalle_server.engine.runners.cpu.load import load_cpu_runner
    from tests.families.janus_goldens import opened

    return load_cpu_runner(opened(max_text_length=64), dtype=dtype, num_slots=NUM_SLOTS, num_threads=1)


def compiled_runner(dtype: str) -> Runner:
    pytest.importorskip("torch")  # reads the golden
    from dalle_server.engine.runners.cpu.load import load_cpu_runner
    from tests.runners.golden_checkpoints import open_golden

    return load_cpu_runner(open_golden("tiny-mega"), dtype=dtype, num_slots=NUM_SLOTS, num_threads=1)


RUNNERS: dict[str, Callable[[], Runner]] = {
    "torch-fp32": lambda: torch_runner("fp32"),
    "torch-bf16": lambda: torch_runner("bf16"),
    "torch-fp32-sampled-on-device": lambda: torch_runner("fp32", on_device=True),
    "torch-janus": torch_janus,
    "compiled-fp32": lambda: compiled_runner("fp32"),
    "compiled-int8": lambda: compiled_runner("int8"),
    "compiled-janus-fp32": lambda: compiled_janus("fp32"),
    "compiled-janus-int8": lambda: compiled_janus("int8"),
}


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Runner:
    """As the engine takes it: the start-up check has left the batch sizes whose bits agree on this machine."""
    try:
        made = RUNNERS[request.param]()
    except ConfigError as error:
        pytest.skip(str(error))  # bf16 on a processor without it
    check_determinism(made)
    return made


def requests(num_tokens: int) -> list[GenerationRequest]:
    rng = np.random.default_rng(11)
    prompts = ["a cat", "a red apple on a table", "two boats", "x"]
    made = [
        GenerationRequest.of(
            prompts[rng.integers(4)],
            int(rng.integers(1, 4)),
            seed=int(rng.integers(2**63)),
            sampling=SamplingParams(
                temperature=[None, 0.7, 1.5][rng.integers(3)],
                top_k=[None, 0, 8][rng.integers(3)],
                top_p=[None, 0.9][rng.integers(2)],
                condition_scale=[None, 1.0, 4.0][rng.integers(3)],
            ),
            negative_prompt=["", "", "blurry"][rng.integers(3)],
            forced_tokens=[(), tuple(5 if i < 6 else FREE for i in range(num_tokens))][rng.integers(2)],
            client=str(rng.integers(3)),
        )
        for _ in range(NUM_REQUESTS)
    ]
    near = tuple((7 * i) % 30 for i in range(num_tokens))  # every third is drawn towards given tokens
    return [replace(each, near_tokens=near, pull=2.0 + n) if n % 3 == 0 else each for n, each in enumerate(made)]


def pictures_alone(runner: Runner, request: GenerationRequest) -> tuple[GeneratedImage, ...]:
    engine = Engine(runner, FakeTokenizer())
    generation = engine.submit(request)
    run(engine)
    return generation.result()


def test_pictures_are_the_same_in_any_company(runner: Runner) -> None:
    wanted = requests(runner.config.picture.num_tokens)
    expected = [pictures_alone(runner, request) for request in wanted]
    assert len({image.tokens.tobytes() for images in expected for image in images}) > NUM_REQUESTS, "they differ at all"
    rng = np.random.default_rng(5)
    for _ in range(ORDERS):
        engine = Engine(runner, FakeTokenizer())
        generations: dict[int, Generation] = {}
        for i in rng.permutation(NUM_REQUESTS):
            generations[i] = engine.submit(wanted[i])
            doomed = engine.submit(GenerationRequest.of("a passer-by", 2, seed=int(i)))
            for _ in range(rng.integers(1, 9)):
                engine.step()
            doomed.cancel()
        run(engine)
        for i, generation in generations.items():
            assert isinstance(generation.terminal, Done)
            assert same(generation.terminal.images, expected[i]), f"request {i}"


def test_a_cancel_frees_its_slots_within_two_steps(runner: Runner) -> None:
    engine = Engine(runner, FakeTokenizer())
    doomed = engine.submit(GenerationRequest.of("a cat", NUM_SLOTS, seed=1))
    waiting = engine.submit(GenerationRequest.of("two boats", 1, seed=2))
    for _ in range(3):
        engine.step()
    doomed.cancel()
    for _ in range(2):
        engine.step()
    assert isinstance(doomed.terminal, Cancelled) and engine.stats().running == 1
    run(engine)
    assert same(waiting.result(), pictures_alone(runner, GenerationRequest.of("two boats", 1, seed=2)))


def test_previews_show_what_is_written_and_change_nothing(runner: Runner) -> None:
    asked = GenerationRequest.of("a red apple", 2, seed=3)
    engine = Engine(runner, FakeTokenizer())
    watched = engine.submit(replace(asked, preview_every=runner.config.picture.grid_width))
    run(engine)
    previews = [event for event in watched.events() if isinstance(event, Preview)]
    assert {preview.index for preview in previews} == {0, 1}
    assert all(preview.pixels.shape == watched.result()[0].pixels.shape for preview in previews)
    assert same(watched.result(), pictures_alone(runner, asked))


def test_this_machine_is_exact(runner: Runner) -> None:
    """True of every machine seen so far. Where it fails, the server says so in its log and in /v1/info."""
    assert Engine(runner, FakeTokenizer()).determinism.startswith("exact: ")
