"""Packed weights kept for the next start: the same bits, whole or absent, never a reason not to start."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dalle_server.checkpoints import cache, find_checkpoint, open_checkpoint, write_native
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.cpu import load as cpu_load
from dalle_server.engine.runners.cpu import packing
from dalle_server.engine.runners.cpu.compiled.vqgan import ranges as compiled_ranges
from dalle_server.engine.runners.cpu.packing import kept_packed, pack, products
from dalle_server.errors import CheckpointError
from dalle_server.variants import ModelSize
from tests.runners.cpu.cpu_runners import FORMATS, cpu_runner, needs_compiled
from tests.runners.golden_checkpoints import GREEDY, force
from tests.runners.random_checkpoint import START, random_checkpoint, random_text

pytestmark = needs_compiled


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    made = random_checkpoint(dtype=np.float16)
    files = {"tokenizer.json": b"{}"}
    return open_checkpoint(write_native(tmp_path / "native", made.config, made.transformer, made.vqgan, files))


@pytest.fixture(autouse=True)
def every_model_is_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_load, "WORTH_KEEPING_BYTES", 0)


def logits(checkpoint: Checkpoint, cache_dir: Path | None, dtype: str = "int8") -> np.ndarray:
    runner = cpu_runner(checkpoint, dtype, num_slots=1, num_threads=1, cache_dir=cache_dir)
    runner.admit(0, *runner.encode([random_text(1, 9), random_text(0, 2)]))
    return force(runner, np.full((1, 4), START), GREEDY)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_first_the_next_and_an_uncached_start_agree(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    uncached, first = logits(checkpoint, None, dtype), logits(checkpoint, tmp_path, dtype)
    monkeypatch.setattr(packing, "pack", lambda *_: pytest.fail("packed again"))
    np.testing.assert_array_equal(first, uncached)
    np.testing.assert_array_equal(logits(checkpoint, tmp_path, dtype), uncached)


@pytest.mark.parametrize("dtype", FORMATS)
def test_without_a_cache_one_product_at_a_time_is_there_twice(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    packed: list[weakref.ref[np.ndarray]] = []

    def pack_alone(*what: Any) -> np.ndarray:
        assert not any(array() is not None for array in packed)
        array = pack(*what)
        packed.append(weakref.ref(array))
        return array

    monkeypatch.setattr(packing, "pack", pack_alone)
    cpu_runner(checkpoint, dtype, num_slots=1, num_threads=1, cache_dir=None)
    assert len(packed) == len(products(checkpoint.config))


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_kept_is_what_packing_gives(checkpoint: Checkpoint, tmp_path: Path, dtype: str) -> None:
    kept = kept_packed(checkpoint, dtype, tmp_path)
    for name, product in products(checkpoint.config).items():
        expected = pack(checkpoint.transformer, product, dtype)
        for _ in range(2):  # the second time from pages that were given back
            np.testing.assert_array_equal(kept[name], expected)
            release_pages(kept[name])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def zeroed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[: middle - 2048] + bytes(4096) + content[middle + 2048 :]


@pytest.mark.parametrize("damage", [lambda content: content[:-100], zeroed, lambda content: b"", lambda content: None])
def test_a_damaged_file_is_made_again_with_the_same_bits(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes | None]
) -> None:
    expected = logits(checkpoint, tmp_path / "cache")
    (file,) = tmp_path.glob("cache/compiled/*/*.safetensors")
    whole = file.read_bytes()
    file.unlink()
    damaged = damage(whole)
    if damaged is not None:
        file.write_bytes(damaged)
    np.testing.assert_array_equal(logits(checkpoint, tmp_path / "cache"), expected)
    told = [f"{file} is damaged; it is made again, which takes longer than to read it"]
    assert warnings(caplog) == (told if damaged is not None else []), "deleted as a remedy is no damage"
    assert file.read_bytes() == whole
    caplog.clear()
    np.testing.assert_array_equal(logits(checkpoint, tmp_path / "cache"), expected)
    assert not warnings(caplog)


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_earlier_versions_kept_goes_and_all_else_stays(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    versions = [(packing, packing.FILE_VERSION), (compiled_ranges, compiled_ranges.FILE_VERSION)]
    for older in (2, 1):
        for module, version in versions:
            monkeypatch.setattr(module, "FILE_VERSION", version - older)
        for each in FORMATS:
            logits(checkpoint, tmp_path, each)

    def folders() -> set[str]:
        return {path.name for path in tmp_path.glob("compiled/*") if path.is_dir()}

    before = folders()
    assert len(before) == 3, "a version 2 older is gone already"
    monkeypatch.undo()
    monkeypatch.setattr(cpu_load, "WORTH_KEEPING_BYTES", 0)
    packed, ranges = (f"{checkpoint.digest[:24]}-{kind}-v" for kind in (dtype, "ranges"))
    later = tmp_path / "compiled" / f"{packed}{packing.FILE_VERSION + 1}"
    strange = tmp_path / "compiled" / f"{packed}1.old"
    later.mkdir()
    strange.mkdir()
    logits(checkpoint, tmp_path, dtype)
    gone = {f"{packed}{packing.FILE_VERSION - 1}"} | (
        {f"{ranges}{compiled_ranges.FILE_VERSION - 1}"} if dtype == "int8" else set()
    )
    assert before - folders() == gone and {later.name, strange.name} <= folders()


def test_a_cache_that_cannot_be_written_costs_time_and_says_so(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with caplog.at_level(logging.WARNING):
        result = logits(checkpoint, blocked)
    assert "not kept" in caplog.text
    np.testing.assert_array_equal(result, logits(checkpoint, None))


def painted(cache_dir: Path | None, dtype: str = "int8") -> bytes:
    checkpoint = open_checkpoint(find_checkpoint(ModelSize.NANO))
    picture = checkpoint.config.picture
    grids = np.random.default_rng(1).integers(0, picture.codebook_size, (1, picture.num_tokens)).astype(np.int32)
    runner = cpu_runner(checkpoint, dtype, num_slots=1, num_threads=1, cache_dir=cache_dir)
    return runner.detokenize(grids).tobytes()


def test_pixels_are_the_same_with_any_cache_and_with_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Replicas of a cluster tell each other weights and dtype, and nothing of their caches."""
    kept, blocked = tmp_path / "cache", tmp_path / "file"
    blocked.write_text("not a directory")
    expected = painted(kept)
    assert painted(None) == expected != painted(None, "fp32")
    assert not caplog.records
    assert painted(blocked) == expected
    assert ["not kept" in record.message for record in caplog.records] == [True]
    (file,) = kept.rglob("ranges.json")
    measured = file.read_text()
    for damaged in ("damaged", measured.replace("conv1", "conv2"), measured.replace(": ", ": 1")):
        file.write_text(damaged)
        caplog.clear()
        assert painted(kept) == expected
        assert [f"{file} is damaged; it is made again" in record.message for record in caplog.records] == [True]
        assert file.read_text() == measured
    file.unlink()
    caplog.clear()
    assert painted(kept) == expected and file.read_text() == measured
    assert not caplog.records


def test_ranges_that_cannot_be_written_are_measured_once(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is noticed when they are written."""

    def full(*_: object, **__: object) -> None:
        raise CheckpointError("no space left")

    measured: list[object] = []
    monkeypatch.setattr(cpu_load, "usable_ranges", lambda *_: measured.append(1) or {})
    monkeypatch.setattr(cache, "replaced_directory", full)
    cpu_runner(checkpoint, "int8", num_slots=1, num_threads=1, cache_dir=tmp_path)
    assert len(measured) == 1 and "no space left" in caplog.text


def test_a_small_model_is_painted_exactly_and_keeps_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_load, "WORTH_KEEPING_BYTES", 1 << 40)
    monkeypatch.setattr(cpu_load, "usable_ranges", lambda *_: pytest.fail("measured"))
    cpu_runner(checkpoint, "int8", num_slots=1, num_threads=1, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_closed_runner_holds_nothing_large_and_may_be_closed_again(
    checkpoint: Checkpoint, tmp_path: Path, dtype: str
) -> None:
    runner = cpu_runner(checkpoint, dtype, num_slots=1, num_threads=1, cache_dir=tmp_path)
    held = [weakref.ref(part) for part in (runner._texts, runner._step, runner._pixels)]
    runner.close()
    assert [reference() for reference in held] == [None] * 3
    runner.close()
