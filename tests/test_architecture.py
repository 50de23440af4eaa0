"""The rule of layers, read from the imports: web → engine → models, and who may know torch, Flask or ray."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
PACKAGE = SRC / "dalle_server"
ASSEMBLERS = {"cli", "dalle_model", "cluster", "__main__"}
LEAVES = {"generation", "snapshot", "checks", "errors", "config", "variants", "assets"}
FILES = sorted(PACKAGE.rglob("*.py"))

# What each layer may import from the package, beyond itself and the leaves.
MAY_IMPORT = {
    "models": set(),
    "text": {"models", "checkpoints", "engine.runners.base"},
    "checkpoints": {"models"},
    "engine": {"models", "text", "checkpoints"},
    "web": {"engine", "models", "pictures", "replay"},
    "pictures": {"models"},
}
# Only these files may name the library; everything else must run without it installed.
ONLY_IN = {
    "torch": {"models/dalle_bart.py", "models/vqgan.py", "checkpoints/unpickle.py"},
    "flask": {"web/"},
    "apiflask": {"web/"},
    "ray": {"cluster/"},
    "openvino": {"engine/runners/cpu/openvino/"},
}
# select.py asks torch, once it is known to be installed, whether there is a GPU.
TORCH_RUNNERS = {"engine/runners/torch/", "engine/runners/select.py"}


def imports(path: Path) -> Iterator[str]:
    """Absolute names of every module that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the house style is absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_layers_are_imported_one_way(path: Path) -> None:
    layer = name_of(path).split("/")[0].removesuffix(".py")
    if layer in ASSEMBLERS or layer not in MAY_IMPORT:
        return
    for module in imports(path):
        if not module.startswith("dalle_server."):
            continue
        inner = module.removeprefix("dalle_server.")
        target = inner.split(".")[0]
        allowed = MAY_IMPORT[layer] | LEAVES | {layer, "__version__"}
        assert target in allowed or any(inner.startswith(name) for name in allowed), f"{layer} must not import {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    for module in imports(path):
        library = module.split(".")[0]
        if library not in ONLY_IN:
            continue
        rooms = ONLY_IN[library] | (TORCH_RUNNERS if library == "torch" else set())
        assert any(name_of(path).startswith(room) for room in rooms), f"{name_of(path)} must not import {library}"


@pytest.mark.parametrize("leaf", sorted(LEAVES - {"config", "assets"}))
def test_leaves_import_no_layer(leaf: str) -> None:
    for module in imports(PACKAGE / f"{leaf}.py"):
        if module.startswith("dalle_server."):
            assert module.split(".")[1] in LEAVES, f"{leaf} must not import {module}"
