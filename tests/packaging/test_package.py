"""The wheel holds what a fresh machine needs: code, the embedded checkpoint, the playground, the licences."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hatch_build
from dalle_server.engine.runners.cpu.compiled.builds import BUILDS, library_of
from hatch_build import System

ROOT = Path(__file__).parents[2]
MAX_WHEEL_BYTES = 40 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(ROOT)]
    subprocess.run(command, check=True, timeout=250)
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_wheel_holds_every_package_file(wheel: zipfile.ZipFile) -> None:
    packed = {name.removeprefix("dalle_server/") for name in wheel.namelist() if name.startswith("dalle_server/")}
    package = ROOT / "src" / "dalle_server"
    listed = subprocess.run(["git", "ls-files", "."], cwd=package, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split("\n")) - {""} <= packed


def test_wheel_holds_the_embedded_checkpoint_and_the_playground(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for needed in ("assets/nano/config.json", "assets/nano/transformer.safetensors", "assets/nano/tokenizer.json"):
        assert f"dalle_server/{needed}" in names
    assert any(name.startswith("dalle_server/web/playground/") and name.endswith(".html") for name in names)
    assert sum(info.file_size for info in wheel.infolist()) < MAX_WHEEL_BYTES


def test_wheel_holds_every_build_for_its_processor(wheel: zipfile.ZipFile) -> None:
    processor = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    folder = "dalle_server/engine/runners/cpu/compiled/"
    packed = {
        name.removeprefix(folder) for name in wheel.namelist() if name.startswith(folder) and name.endswith(".so")
    }
    assert packed == {library_of(name).name for name in BUILDS.get(processor, ())}
    assert str(wheel.filename).endswith("-py3-none-any.whl") != bool(packed)


def test_wheel_carries_licences_and_needs_no_torch(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/THIRD_PARTY_NOTICES.md") for name in names)
    metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
    requirements = [line for line in wheel.read(metadata).decode().splitlines() if line.startswith("Requires-Dist:")]
    assert not [line for line in requirements if "torch" in line and "extra ==" not in line]


def test_every_dependency_is_pinned_in_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(need for extra in project["optional-dependencies"].values() for need in extra),
    ]
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    names = {_distribution(need) for need in wanted}
    assert not names - pinned, f"tested versions are missing from constraints.txt: {sorted(names - pinned)}"


def test_the_types_are_checked_without_what_benchmarks_alone_need() -> None:
    """CI's clone has the extra `dev` only: another's package that mypy must find is red there and green elsewhere."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = config["project"]["optional-dependencies"]
    alone = {_distribution(need) for need in extras["bench"]} - {_distribution(need) for need in extras["dev"]}
    ignored = {module for rule in config["tool"]["mypy"]["overrides"] for module in rule["module"]}
    assert alone and {f"{name.replace('-', '_')}.*" for name in alone} <= ignored


def _distribution(requirement: str) -> str:
    name = requirement
    for separator in "[<>=!~; ":
        name = name.split(separator)[0]
    return name.lower().replace("_", "-")


def test_an_install_may_compile_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=250, env=os.environ | {"DALLE_BUILD": "0"})
    (made,) = tmp_path.glob("*.whl")
    assert made.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(made).namelist() if name.endswith(".so")]


def test_a_compiler_that_fails_leaves_an_install_that_works_and_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(system: System) -> list[Path]:
        raise subprocess.CalledProcessError(1, "cc")

    monkeypatch.setattr(hatch_build, "compile_builds", fail)
    warnings: list[str] = []
    nothing: Any = None
    hook = hatch_build.CompiledHook(str(ROOT), {}, nothing, nothing, str(tmp_path), "wheel")
    monkeypatch.setattr(hatch_build.CompiledHook, "app", SimpleNamespace(display_warning=warnings.append))
    built: dict[str, Any] = {"artifacts": []}
    hook.initialize("standard", built)
    assert built == {"artifacts": []}  # a wheel of Python alone
    assert len(warnings) == 1 and "dalle-server[torch]" in warnings[0] and "many times as long" in warnings[0]
    monkeypatch.setenv("DALLE_BUILD", "linux-aarch64")  # a wheel for others that lacks its library helps nobody
    monkeypatch.setattr(hatch_build, "compile_builds", lambda system, into: fail(system))
    with pytest.raises(subprocess.CalledProcessError):
        hook.initialize("standard", built)
