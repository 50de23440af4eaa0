"""The rule of layers, read from the imports: web → engine → models, and who may know torch, Flask or ray."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
PACKAGE = SRC / "dalle_server"
ASSEMBLERS = {"cli", "dalle_model", "cluster", "__main__"}
LEAVES = {
    "request",
    "generation",
    "drawn",
    "snapshot",
    "wire",
    "checks",
    "errors",
    "words",
    "config",
    "variants",
    "assets",
}
FILES = sorted(PACKAGE.rglob("*.py"))

# What each layer may import from the package, beyond itself and the leaves.
MAY_IMPORT = {
    "models": {"families"},  # a family's torch module knows its sizes
    "families": {"models"},
    "text": {"models", "families", "checkpoints", "engine.runners.base"},
    "checkpoints": {"models", "families"},
    "engine": {"models", "families", "text", "checkpoints"},
    "drawing": {"models", "pictures"},
    "web": {"engine", "models", "pictures", "drawing"},
    "pictures": {"models"},
}
# Only these files may name the library; everything else must run without it installed.
ONLY_IN = {
    "torch": {"models/dalle_bart.py", "models/janus.py", "models/vqgan.py", "checkpoints/published/unpickle.py"},
    "flask": {"web/"},
    "ray": {"cluster/"},
}
# These two ask torch, once it is known to be installed, whether there is a GPU and what is free on it.
TORCH_RUNNERS = {"engine/runners/torch/", "engine/runners/choice.py", "engine/runners/sizing.py"}


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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_command_knows_the_cluster(path: Path) -> None:
    """So that everything else runs where ray is not installed."""
    if not name_of(path).startswith(("cluster/", "cli/")):
        assert not [module for module in imports(path) if module.startswith("dalle_server.cluster")]


# What is inside a transformer is its family's business: the others ask config.picture and config.text.
KNOW_TRANSFORMERS = ("families/", "models/", "checkpoints/", "engine/runners/")


@pytest.mark.parametrize(
    "path", [path for path in FILES if not name_of(path).startswith(KNOW_TRANSFORMERS)], ids=name_of
)
def test_only_families_and_runners_ask_for_a_transformer(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("transformer", "vqgan"), f"{name_of(path)}:{node.lineno} asks for .{node.attr}"


def test_no_two_classes_have_one_name() -> None:
    trees = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    named: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                named[node.name].append(name)
    assert {name: places for name, places in named.items() if len(places) > 1} == {}


ROOT = SRC.parent
CODE = [path for room in ("src", "tests", "benchmarks", "training") for path in (ROOT / room).rglob("*.py")]
MOST_LINES = 350
MOST_FILES = 16  # Python files of a room; where there are more, some of them belong together


def test_no_file_is_long() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_room_is_a_corridor() -> None:
    rooms = Counter(path.parent.relative_to(ROOT).as_posix() for path in CODE if path.name != "__init__.py")
    scripts = ROOT / "src/dalle_server/web/playground/static"
    rooms.update(path.parent.relative_to(ROOT).as_posix() for path in scripts.rglob("*.*"))
    assert {room: count for room, count in rooms.items() if count > MOST_FILES} == {}


@pytest.mark.parametrize("leaf", sorted(LEAVES - {"config", "assets"}))
def test_leaves_import_no_layer(leaf: str) -> None:
    for module in imports(PACKAGE / f"{leaf}.py"):
        if module.startswith("dalle_server."):
            assert module.split(".")[1] in LEAVES, f"{leaf} must not import {module}"
