"""Every build of the compiled code that this CPU runs computes the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.random import _bounded_integers

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.config import Settings
from dalle_server.engine.runners.base import StepRow
from dalle_server.engine.runners.cpu.compiled import library
from dalle_server.engine.runners.cpu.compiled.builds import NAMES, library_of
from dalle_server.engine.runners.cpu.compiled.texts import CompiledTexts
from dalle_server.engine.selftest import check_determinism
from dalle_server.request import ImageKey, SamplingParams
from tests.parity.decoding import decode
from tests.runners.cpu.cpu_runners import RUNNABLE, needs_compiled, without_pixels
from tests.runners.cpu.golden_cases import CASES, case
from tests.runners.golden_checkpoints import GREEDY, force
from tests.runners.random_checkpoint import random_checkpoint, random_janus, random_text

pytestmark = needs_compiled

DTYPES = ("int8", "fp32")
SAMPLING = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, condition_scale=10.0)
OTHERS = RUNNABLE[1:]


def test_every_build_may_be_asked_for() -> None:
    assert get_args(Settings.model_fields["cpu_build"].annotation) == ("auto", *NAMES)


def test_there_are_builds_to_compare() -> None:
    """Those that this CPU cannot run, the end of the run names."""
    assert RUNNABLE


@cache
def golden_logits(name: str, dtype: str, build: str) -> bytes:
    """Of the last text, and of every position of every golden picture."""
    checkpoint, batch = case(name)
    runner = without_pixels(checkpoint, dtype, build, num_slots=4)
    _, logits = decode(runner, batch)
    assert isinstance(runner._texts, CompiledTexts)
    states = runner._texts.states()
    runner.close()
    assert np.isfinite(logits).all()
    return states.tobytes() + logits.tobytes()


@pytest.mark.parametrize("build", OTHERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_goldens(name: str, dtype: str, build: str) -> None:
    assert golden_logits(name, dtype, build) == golden_logits(name, dtype, RUNNABLE[0])


# Sizes that fill no vector.
ODD: dict[str, Callable[[], Checkpoint]] = {
    "dalle-bart": lambda: random_checkpoint(66, 3, 100, 25),
    "janus": lambda: random_janus(66, 3, 1, 100, 25),
}


@cache
def drawn(family: str, dtype: str, build: str, num_images: int) -> bytes:
    """Logits and tokens of pictures at positions of their own, every third unguided, sampled from all codes."""
    # Texts of one token and of many.
    runner = without_pixels(ODD[family](), dtype, build, num_slots=16)
    for slot in range(num_images):
        runner.admit(slot, *runner.encode([random_text(slot, 1 + 3 * slot), random_text(99, 2)]))
    found = []
    for step in range(25 + num_images):
        rows = [
            StepRow(n, step - n, ImageKey(7, n), replace(SAMPLING, condition_scale=1.0) if n % 3 == 2 else SAMPLING)
            for n in range(num_images) if 0 <= step - n < 25
        ]  # fmt: skip
        if rows:
            found += [runner.step(rows).result().tokens, runner.guided_logits()]
    runner.close()
    return b"".join(part.tobytes() for part in found)


@pytest.mark.parametrize("build", OTHERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ODD)
@pytest.mark.parametrize("num_images", range(1, 17))
def test_any_number_of_pictures(num_images: int, family: str, dtype: str, build: str) -> None:
    assert drawn(family, dtype, build, num_images) == drawn(family, dtype, RUNNABLE[0], num_images)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-42, 3e38])
def test_numbers_at_the_edge(value: float, dtype: str) -> None:
    """What is no number stays none, and the rest is the same: numbers below the normal ones, sums that overflow."""

    def logits(build: str) -> np.ndarray:
        checkpoint = random_checkpoint()
        table = np.array(checkpoint.transformer["decoder.embed_tokens.weight"], np.float32)
        table[3, ::5] = value
        checkpoint.transformer["decoder.embed_tokens.weight"] = table
        runner = without_pixels(checkpoint, dtype, build, num_slots=1)
        runner.admit(0, *runner.encode([random_text(1, 9), random_text(2, 2)]))
        return force(runner, np.array([[0, 3, 1, 3]]), GREEDY)

    found = {build: logits(build) for build in RUNNABLE}
    assert np.isfinite(found[RUNNABLE[0]]).all() == (abs(value) < 1)
    for build in OTHERS:
        np.testing.assert_array_equal(found[build], found[RUNNABLE[0]])


def test_a_build_of_other_sources_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "sources_digest", lambda: "of other sources")
    library.load_library.cache_clear()
    reason = library.why_not(RUNNABLE[0])
    library.load_library.cache_clear()
    assert reason is not None and f"compiled-{RUNNABLE[0]}.so was not made from this package's sources" in reason
    assert "python hatch_build.py" in reason


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of an installation with the best build that runs here, and no other."""
    monkeypatch.setattr(library, "library_of", lambda build: tmp_path / f"compiled-{build}.so")
    best = library_of(RUNNABLE[0])
    (tmp_path / best.name).write_bytes(best.read_bytes())
    library.load_library.cache_clear()
    yield tmp_path
    library.load_library.cache_clear()


@pytest.mark.parametrize("content", [b"", b"\x7fELF, cut off", b"<html>"])
def test_a_build_that_cannot_be_read_is_passed_over(
    installed: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "NAMES", ("better", RUNNABLE[0]))
    (installed / "compiled-better.so").write_bytes(content)
    assert library.load_library().build == RUNNABLE[0]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "compiled-better.so cannot be read" in told and f"build {RUNNABLE[0]} runs instead" in told
    (installed / f"compiled-{RUNNABLE[0]}.so").unlink()
    library.load_library.cache_clear()
    reason = library.why_not()
    assert reason and "compiled-better.so cannot be read" in reason and "install the package again" in reason


def test_a_library_of_somebody_else_is_one_that_cannot_be_read(installed: Path) -> None:
    (installed / "compiled-strange.so").write_bytes(Path(_bounded_integers.__file__).read_bytes())
    reason = library.why_not("strange")
    assert reason and "compiled-strange.so cannot be read" in reason


@pytest.mark.parametrize(
    ("machine", "build", "says"),
    [
        ("AMD64", "auto", r"no compiled code; install the package again, without DALLE_BUILD=0"),
        ("arm64", "dotprod", r"no build dotprod .*install the package again"),
        ("riscv64", "auto", r"^the compiled code has no build for this processor \(riscv64\)$"),
        ("x86_64", "dotprod", r"no build dotprod of the compiled code for x86_64; use --cpu_build auto"),
    ],
)
def test_why_there_is_no_build(
    installed: Path, monkeypatch: pytest.MonkeyPatch, machine: str, build: str, says: str
) -> None:
    (installed / f"compiled-{RUNNABLE[0]}.so").unlink()
    monkeypatch.setattr(library.platform, "machine", lambda: machine)  # type: ignore[attr-defined]
    assert re.search(says, library.why_not(build) or "")


def test_the_start_up_check_says_what_a_build_may_claim() -> None:
    runner = without_pixels(random_checkpoint(), "int8", RUNNABLE[-1], num_slots=2)
    verdict = check_determinism(runner)
    runner.close()
    assert verdict.startswith("exact") and f"the same on every CPU (build {RUNNABLE[-1]} here)" in verdict
