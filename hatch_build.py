"""Compiles the C code of the CPU runner while the package is built: no compiler need be on the machine.

The C compiler is the one inside the `ziglang` wheel, a requirement of the build alone: pip fetches and forgets it.
DALLE_BUILD in the environment may be 0 (compile nothing) or the name of another system below (cross-compile for it).

    python hatch_build.py     compiles in place, for a checkout that runs without being installed
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILER = "ziglang==0.17.1"
ROOT = Path(__file__).parent


def _builds() -> Any:
    """The package's own list, read without importing the package, which is not installed yet."""
    path = ROOT / "src/dalle_server/engine/runners/cpu/compiled/builds.py"
    spec = importlib.util.spec_from_file_location("builds", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builds = _builds()


class System(NamedTuple):
    """What a kind of system is called by the compiler and by the wheel: the oldest of its kind that is supported."""

    processor: str
    compiler_target: str
    wheel_platform: str


SYSTEMS = {
    "linux-x86_64": System("x86_64", "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64"),
    "linux-aarch64": System("aarch64", "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64"),
    "linux-musl-x86_64": System("x86_64", "x86_64-linux-musl", "musllinux_1_1_x86_64"),
    "linux-musl-aarch64": System("aarch64", "aarch64-linux-musl", "musllinux_1_1_aarch64"),
    "darwin-x86_64": System("x86_64", "x86_64-macos.11.0", "macosx_11_0_x86_64"),
    "darwin-aarch64": System("aarch64", "aarch64-macos.11.0", "macosx_11_0_arm64"),
    "windows-x86_64": System("x86_64", "x86_64-windows-gnu", "win_amd64"),
}


def this_system() -> str:
    """The name that it has, or would have, among SYSTEMS."""
    processor = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    libc = "-musl" if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "") else ""
    return f"{platform.system().lower()}{libc}-{processor}"


def compile_builds(system: System, into: Path = builds.FOLDER) -> list[Path]:
    """Every build for the system's processor. Raises CalledProcessError, the compiler's messages on stderr."""
    into.mkdir(parents=True, exist_ok=True)
    names = builds.BUILDS[system.processor]
    with tempfile.TemporaryDirectory() as scratch:
        # The compiler's own library is compiled for a target once, which takes longer than our code.
        caches = {"ZIG_GLOBAL_CACHE_DIR": f"{scratch}/global", "ZIG_LOCAL_CACHE_DIR": f"{scratch}/local"}
        for name in names:
            made = Path(scratch) / builds.library_of(name).name
            defines = [f"-DBUILD={builds.define_of(name)}", f'-DSOURCES="{builds.sources_digest()}"']
            compiler = [sys.executable, "-m", "ziglang", "cc", "-target", system.compiler_target, "-shared", "-fPIC"]
            command = [*compiler, *builds.OPTIONS, *defines, "-o", str(made), str(builds.SOURCES / "library.c")]
            subprocess.run(command, check=True, env={**caches, **os.environ})
            _put(made, into / made.name)
    return [into / builds.library_of(name).name for name in names]


def _put(made: Path, library: Path) -> None:
    part = library.with_suffix(f".{os.getpid()}.part")  # two may be built at the same time
    try:
        part.write_bytes(made.read_bytes())
        part.replace(library)  # a server that runs keeps the old file
    finally:
        part.unlink(missing_ok=True)


def wanted_system() -> System | None:
    """None where nothing is to be compiled."""
    named = os.environ.get("DALLE_BUILD", "")
    if named == "0":
        return None
    if named and named not in SYSTEMS:
        sys.exit(f"DALLE_BUILD={named} is neither 0 nor one of {', '.join(SYSTEMS)}")
    return SYSTEMS.get(named or this_system())


class CompiledHook(BuildHookInterface[Any]):
    """Called by hatchling for a wheel and for an editable install."""

    def dependencies(self) -> list[str]:
        return [COMPILER] if wanted_system() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not (system := wanted_system()):
            return
        named = os.environ.get("DALLE_BUILD", "")
        try:  # another system's libraries must not take the place of this one's
            libraries = compile_builds(system, ROOT / "build" / named) if named else compile_builds(system)
        except (OSError, subprocess.CalledProcessError) as error:
            if named:
                raise
            self.app.display_warning(
                f"the CPU code was not compiled ({error}): on a CPU the server will need PyTorch"
                " (pip install 'dalle-server[torch]') and take many times as long"
            )
            return
        if named:
            folder = builds.FOLDER.relative_to(ROOT / "src").as_posix()
            build_data["force_include"] |= {str(library): f"{folder}/{library.name}" for library in libraries}
        else:
            build_data["artifacts"] += [library.relative_to(self.root).as_posix() for library in libraries]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{system.wheel_platform}"


if __name__ == "__main__":
    if not (here := wanted_system()):
        sys.exit(f"nothing to compile for {this_system()} (DALLE_BUILD={os.environ.get('DALLE_BUILD', '')})")
    compile_builds(here)
