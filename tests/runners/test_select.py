"""What "auto" resolves to, and which wishes are refused."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.checkpoints.sizes import SIZES
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners import choice as choosing
from dalle_server.engine.runners import select, sizing
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.choice import Choice, RunnerSettings, choose
from dalle_server.engine.runners.select import choose_runner
from dalle_server.engine.runners.sizing import default_num_slots
from dalle_server.errors import ConfigError
from dalle_server.families.dalle_bart import DalleBartConfig
from tests.runners.cpu.cpu_runners import needs_compiled
from tests.runners.random_checkpoint import random_checkpoint


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))


def with_accelerator(monkeypatch: pytest.MonkeyPatch, device: str | None) -> None:
    monkeypatch.setattr(choosing, "_accelerator", lambda: (device, None))


def with_compiled(monkeypatch: pytest.MonkeyPatch, missing: str | None = None) -> None:
    """As if the compiled step could run here, or could not because of `missing`."""
    monkeypatch.setattr(choosing, "why_not", lambda build: missing)
    monkeypatch.setattr(choosing, "load_library", lambda build: SimpleNamespace(build="avx2"))


def test_a_cpu_takes_the_compiled_step_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerator(monkeypatch, None)
    with_compiled(monkeypatch)
    choice = choose()
    assert (choice.runner, choice.device, choice.dtype) == ("compiled", "cpu", "int8")
    for word in ("device cpu", "runner compiled", "dtype int8"):
        assert word in choice.reason
    assert choose(dtype="bf16").runner == "torch"
    assert choose(dtype="fp32").runner == "compiled"
    assert choose(runner="compiled", num_weights=4_000_000).dtype == "fp32"


def test_a_cpu_that_cannot_run_the_compiled_code_takes_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerator(monkeypatch, None)
    with_compiled(monkeypatch, "this CPU has no AVX-512 VNNI instructions")
    choice = choose()
    assert (choice.runner, choice.device, choice.dtype) == ("torch", "cpu", "fp32")
    assert "runner torch: this CPU has no AVX-512 VNNI instructions, which runner compiled needs" in choice.reason
    assert choice.lacking == "this CPU has no AVX-512 VNNI instructions"
    for wish in (("compiled", "auto", "auto"), ("auto", "cpu", "int8")):
        with pytest.raises(ConfigError, match="VNNI instructions; or use --runner torch"):
            choose(*wish)
    without(monkeypatch, "torch")
    with pytest.raises(ConfigError, match=r"VNNI instructions; or use --runner torch.*dalle-server\[torch\]"):
        choose()


def test_a_slower_runner_than_there_could_be_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose_runner(random_checkpoint(), RunnerSettings(device="cpu", num_slots=1)).close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with_compiled(monkeypatch, "compiled-avx2.so is not there")
    choose_runner(random_checkpoint(), RunnerSettings(device="cpu", num_slots=1)).close()
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "many times as long" in warning and "compiled-avx2.so is not there" in warning


def test_a_small_model_stays_exact_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerator(monkeypatch, None)
    assert choose(num_weights=4_000_000).dtype == "fp32"
    assert choose(num_weights=430_000_000).dtype == "int8"
    assert choose(dtype="int8", num_weights=4_000_000).dtype == "int8"


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_accelerator_takes_torch_in_fp16(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    with_accelerator(monkeypatch, device)
    choice = choose()
    assert (choice.runner, choice.device, choice.dtype) == ("torch", device, "fp16")


def test_the_cpus_runners_stay_there_beside_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerator(monkeypatch, "cuda")
    with_compiled(monkeypatch)
    assert choose(runner="compiled").device == "cpu"
    assert choose(device="cpu", dtype="bf16").runner == "torch"


def test_torch_on_a_cpu_is_the_exact_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerator(monkeypatch, None)
    assert choose(runner="torch").dtype == "fp32"


def test_what_was_asked_for_is_taken() -> None:
    assert choose("torch", "cpu", "bf16") == Choice("torch", "cpu", "bf16", "as asked for")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (("compiled", "cpu", "fp16"), "use int8 or fp32"),
        (("torch", "cpu", "int8"), "for --runner compiled"),
        (("compiled", "cuda", "auto"), "runs on the CPU"),
        (("compiled", "cpu", "bf16"), "computes in int8 or fp32"),
    ],
)
def test_impossible_wishes_are_refused(wish: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(*wish)


def test_torch_that_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    assert choose().runner == "compiled"
    with pytest.raises(ConfigError, match=r"dalle-server\[torch\]"):
        choose(runner="torch")


def test_a_cpu_build_of_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would raise
    assert choose().device == "cpu"


BROKEN = "libcudart.so.12: cannot open shared object file"


@pytest.fixture
def broken_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A CUDA build whose libraries are not there."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise OSError({BROKEN!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cu130")
    choosing._fault_of_torch.cache_clear()
    yield
    choosing._fault_of_torch.cache_clear()


def test_a_torch_that_cannot_be_imported_stops_no_start_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken_torch: None
) -> None:
    with_compiled(monkeypatch)
    choice = choose()
    assert (choice.runner, choice.device) == ("compiled", "cpu")
    assert choice.lacking and BROKEN in choice.lacking and "no GPU" in choice.lacking
    monkeypatch.setattr(select, "_load", lambda *_: None)
    choose_runner(random_checkpoint(), RunnerSettings(num_slots=1, num_threads=1))
    assert [BROKEN in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [True]


@pytest.mark.parametrize("wish", [("torch", "cpu"), ("auto", "cuda")])
def test_a_torch_that_is_needed_and_cannot_be_imported_says_so(wish: tuple[str, str], broken_torch: None) -> None:
    with pytest.raises(ConfigError, match=f"--runner torch: .*{BROKEN}.*install it again"):
        choose(*wish)


def test_a_torch_that_cannot_be_imported_does_not_stand_in(monkeypatch: pytest.MonkeyPatch, broken_torch: None) -> None:
    with_compiled(monkeypatch, "there is no build")
    with pytest.raises(ConfigError, match="--runner compiled: there is no build"):
        choose()


@pytest.mark.parametrize(("runner", "mib"), [("compiled", 272), ("torch", 112 + 178 + 16 + 128)])
def test_the_encoder_counts_where_there_is_one(runner: str, mib: int) -> None:
    """272 MiB as measured: compiled code, Mini's shape, before and after the first picture that was read."""
    choice = Choice(runner, "cpu", "fp32", "")
    without, beside = (sizing.memory_bytes(SIZES["mini"], choice, 4, has_encoder=has) for has in (False, True))
    assert (beside - without) / 2**20 == pytest.approx(mib, rel=0.02)


def test_slots_shrink_with_the_size_of_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_free_gpu_bytes", lambda device: 80 << 30)
    config = random_checkpoint().config
    sizes = replace(config.sizes(DalleBartConfig), d_model=2048, decoder_layers=24, image_length=256)
    mega = replace(config, transformer=sizes)
    assert default_num_slots(config, Choice("compiled", "cpu", "int8", "")) == 16
    assert default_num_slots(config, Choice("torch", "cuda", "fp16", "")) == 32
    assert default_num_slots(mega, Choice("compiled", "cpu", "int8", "")) == 4


@pytest.mark.parametrize(("free_gb", "slots"), [(80, 17), (7.7, 11), (6.6, 2), (4, 1)])
def test_slots_leave_room_for_the_weights_on_a_small_gpu(monkeypatch, free_gb: float, slots: int) -> None:
    monkeypatch.setattr(sizing, "_free_gpu_bytes", lambda device: int(free_gb * 1e9))
    assert default_num_slots(SIZES["mega"], Choice("torch", "cuda:0", "fp16", "")) == slots


@pytest.mark.parametrize("device", ["cuda:99", "tpu9"])
def test_a_device_that_is_not_there_is_refused_before_its_memory_is_asked_for(device: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match=device):
        choose_runner(random_checkpoint(), RunnerSettings("torch", device=device))


def test_a_model_that_does_not_fit_in_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from dalle_server.engine.runners.torch import runner as torch_runner

    monkeypatch.setattr(torch_runner, "SlotStates", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="6 pictures at a time do not fit in memory; lower num_slots"):
        choose_runner(random_checkpoint(), RunnerSettings("torch", device="cpu", num_slots=6))


def test_one_log_line_says_what_runs_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dalle_server"):
        runner = choose_runner(random_checkpoint(), RunnerSettings("compiled", num_slots=3, num_threads=1))
    assert runner.info.runner == "compiled" and runner.info.dtype == "fp32" and runner.num_slots == 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert "compiled on cpu in fp32, 3 slots" in line and runner.info.reason in line
    assert "1 threads (as asked for)" in line


@needs_compiled
def test_the_compiled_step_is_loaded_when_chosen() -> None:
    runner = choose_runner(random_checkpoint(), RunnerSettings(dtype="int8", device="cpu", num_slots=2, num_threads=1))
    assert runner.info.runner == "compiled" and runner.info.dtype == "int8" and runner.row_buckets == (1, 2)


def test_a_folder_called_torch_is_no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert choosing._accelerator() == (None, None)


def test_a_build_may_be_named_and_one_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--runner compiled: this installation has no build sse9 of the compiled code"
    ):
        choose("compiled", "cpu", "int8", cpu_build="sse9")
    with pytest.raises(ConfigError, match="sse9"):
        choose(device="cpu", cpu_build="sse9")


def too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU on which nothing fits."""
    with_accelerator(monkeypatch, "cuda")
    monkeypatch.setattr(sizing, "_free_gpu_bytes", lambda device: 1 << 30)
    load = select._load

    def load_on_cpu_only(checkpoint: Checkpoint, choice: Choice, *rest: Any) -> Runner:
        if choice.device != "cpu":
            raise MemoryError
        return load(checkpoint, choice, *rest)

    monkeypatch.setattr(select, "_load", load_on_cpu_only)


def test_a_gpu_that_is_too_small_is_left_for_the_cpu_with_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    too_small(monkeypatch)
    runner = choose_runner(random_checkpoint(), RunnerSettings(num_slots=2, num_threads=1))
    assert runner.info.device == "cpu" and runner.num_slots == 2
    assert "do not fit in memory of cuda; taking the CPU instead" in caplog.text


@pytest.mark.parametrize("asked", [{"device": "cuda"}, {"runner": "torch"}, {"dtype": "fp16"}])
def test_what_was_asked_for_is_never_replaced(monkeypatch: pytest.MonkeyPatch, asked: dict[str, str]) -> None:
    too_small(monkeypatch)
    with pytest.raises(ConfigError, match="lower num_slots"):
        choose_runner(random_checkpoint(), RunnerSettings(num_slots=2, num_threads=1, **asked))  # type: ignore[arg-type]
