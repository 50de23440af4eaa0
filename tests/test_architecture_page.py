"""docs/architecture.md and CONTRIBUTING.md name files and functions: each must exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dalle_server"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE + CONTRIBUTING)))
PLACES = sorted(
    set(re.findall(r"`([\w/.-]+(?:/|\.py|\.c|\.h|\.toml))`", CONTRIBUTING))
    - {"utils.py", "families/NAME.py", "benchmarks/NAME.py"}
)


def defined_names(path: Path) -> set[str]:
    """Functions, classes, methods as Class.method, and module-level assignments of a source file."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(("file", "name"), REFERENCES)
def test_what_the_page_names_exists(file, name):
    assert name in defined_names(PACKAGE / file if (PACKAGE / file).exists() else ROOT / file)


@pytest.mark.parametrize("place", PLACES)
def test_the_places_where_a_line_belongs_exist(place):
    """From the root, from the package, or by a name that is the only one."""
    found = [folder / place for folder in (ROOT, PACKAGE) if (folder / place).exists()]
    assert found or len(list(PACKAGE.rglob(place))) == 1


def test_the_page_follows_a_request_in_eight_steps():
    assert re.findall(r"^(\d)\. \*\*", PAGE, re.MULTILINE) == [str(n) for n in range(1, 9)]
    assert len(REFERENCES) > 20


@pytest.mark.parametrize("page", ["reliability.md", "http-api.md"])
def test_the_tests_that_a_page_names_exist(page):
    named = set(re.findall(r"`([\w/]*test_\w+\.py)", (ROOT / "docs" / page).read_text(encoding="utf-8")))
    assert named
    assert {name for name in named if not (ROOT / "tests" / name).exists()} == set()
