"""The builds for ARM, emulated, compute the bits that this processor's builds compute."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dalle_server.engine.runners.cpu.compiled.builds import BUILDS
from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.runners.cpu.compiled.step import CompiledStep
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.texts import CompiledTexts
from dalle_server.engine.runners.cpu.compiled.vqgan.halves import CompiledDecoder
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import Ranges, VQGANWeights
from tests.parity.decoding import admit, row
from tests.parity.loading import golden_checkpoint
from tests.runners.cpu.compiled.emulation import PixelsRecorder, Recorder, compile_emulate
from tests.runners.cpu.cpu_runners import RUNNABLE, needs_compiled, without_pixels
from tests.runners.cpu.golden_cases import CASES, case

QEMU = shutil.which("qemu-aarch64")
pytestmark = [
    needs_compiled,
    pytest.mark.skipif(QEMU is None, reason="no qemu-aarch64; `python -m tests.setup_system` installs qemu-user"),
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="no ziglang, the compiler of the build"),
    pytest.mark.timeout(600),  # the first run compiles a C library for ARM, too
]


@pytest.fixture(scope="module", params=BUILDS["aarch64"])
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    program = tmp_path_factory.mktemp("emulate") / "emulate"
    compile_emulate(request.param, "aarch64-linux-musl", program)
    return [str(QEMU), str(program)]


@pytest.mark.parametrize("dtype", ["int8", "fp32"])
@pytest.mark.parametrize("name", CASES)
def test_goldens(emulator: list[str], name: str, dtype: str, tmp_path: Path) -> None:
    checkpoint, batch = case(name)
    runner = without_pixels(checkpoint, dtype, RUNNABLE[0], 4, num_threads=1)
    assert isinstance(runner._texts, CompiledTexts) and isinstance(runner._step, CompiledStep)
    texts = Recorder(runner._texts)
    for slot, picture in enumerate(batch):
        admit(runner, slot, picture)
    steps = Recorder(runner._step)
    for position in range(min(24, checkpoint.config.picture.num_tokens)):
        runner.step([row(slot, position, picture) for slot, picture in enumerate(batch)]).result()
    texts.repeat(emulator, tmp_path / "texts")
    steps.repeat(emulator, tmp_path / "steps")


@pytest.mark.parametrize("dtype", ["int8", "fp32"])
def test_pixels(emulator: list[str], dtype: str, tmp_path: Path) -> None:
    # The last one shares work out as the builds for ARM do: TILES of c/target.h.
    checkpoint, library = golden_checkpoint("tiny-mega"), load_library(RUNNABLE[-1])
    ids = np.random.default_rng(9).integers(0, checkpoint.config.picture.codebook_size, 16).astype(np.int32)

    def decoder(team: Team, ranges: Ranges, lowered: int) -> CompiledDecoder:
        weights = VQGANWeights(checkpoint.vqgan, checkpoint.config.vqgan, ranges, lowered)
        return CompiledDecoder(library, team, weights, 4, 4)

    exact = decoder(Team(1), {}, library.lowered())
    exact.decode(ids)
    ranges = {name: top for name, top in exact.largest().items() if name.endswith(("conv1", "conv2"))}
    ranges = ranges if dtype == "int8" else {}
    expected = decoder(Team(1), ranges, library.lowered()).decode(ids)
    recorder = PixelsRecorder()
    emulated = decoder(recorder, ranges, subprocess.run(emulator, check=False).returncode)
    recorder.program = emulated._program
    emulated.decode(ids)
    np.testing.assert_array_equal(recorder.repeat(emulator, tmp_path / "pixels", emulated._pixels), expected)
    assert expected.std() > 0.01
