"""Commands on the pages about figures are read by the programs that they name."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, ON_REQUEST
from training.__main__ import SCORING_STAGES, parsed

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "README.md",
    ROOT / "MODEL_CARD.md",
    ROOT / "training" / "README.md",
]
WHOLE = re.compile(
    r"`python -m ((?:benchmarks|training)[\w.]*)([^`]*)`|^python -m ((?:benchmarks|training)[\w.]*)([^#\n]*)", re.M
)
# As tables of figures name them.
ALONE = re.compile(rf"`({'|'.join((*BENCHMARKS, *ON_REQUEST, *SCORING_STAGES))}) ([^`]*)`")


def commands() -> Iterator[tuple[str, str, str]]:
    """(page, module, arguments); `NAME`, `STAGE…` and their like stand for what a reader puts there."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in WHOLE.finditer(text):
            yield page.name, found[1] or found[3], (found[2] or found[4] or "").replace("STAGE…", "").strip()
        for name, arguments in ALONE.findall(text):
            stage = name in SCORING_STAGES
            yield (
                page.name,
                "training" if stage else f"benchmarks.{name}",
                f"{name} {arguments}" if stage else arguments,
            )


@pytest.mark.parametrize(("page", "module", "arguments"), sorted(set(commands())))
def test_a_command_is_understood(page: str, module: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(arguments)
    if module == "training":
        parsed(words)
        return
    spec = importlib.util.find_spec(module.removesuffix(".NAME"))
    assert spec is not None
    if words:
        program = importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module)
        monkeypatch.setattr(sys, "argv", [module, *words, "--help"])  # read from the left: what is wrong ends it before
        with pytest.raises(SystemExit) as ended:
            program.main()
        assert ended.value.code == 0
