"""The builds for ARM, emulated, compute the bits that this processor's builds compute."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dalle_server.engine.runners.cpu.compiled.builds import BUILDS
from dalle_server.engine.runners.cpu.compiled.step import CompiledStep
from dalle_server.engine.runners.cpu.compiled.texts import CompiledTexts
from tests.runners.cpu.cpu_runners import RUNNABLE, needs_compiled, without_pixels
from tests.runners.cpu.emulation import Recorder, compile_emulate
from tests.runners.golden_checkpoints import GOLDENS, GREEDY, admit_goldens, force, goldens, open_golden

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
@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(emulator: list[str], name: str, dtype: str, tmp_path: Path) -> None:
    runner, golden = without_pixels(open_golden(name), dtype, RUNNABLE[0], 4, num_threads=1), goldens(GOLDENS[name])
    assert isinstance(runner._texts, CompiledTexts) and isinstance(runner._step, CompiledStep)
    texts = Recorder(runner._texts)
    admit_goldens(runner, golden)
    steps = Recorder(runner._step)
    force(runner, golden["decoder_input_ids"][:, :24], replace(GREEDY, condition_scale=10.0))
    texts.repeat(emulator, tmp_path / "texts")
    steps.repeat(emulator, tmp_path / "steps")
