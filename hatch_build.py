"""Compiles the CPU decode step while the package is built: no compiler need be on the machine.

The C compiler is the one inside the `ziglang` wheel, a requirement of the build alone: pip fetches and forgets it.
Other processors than x86-64 get a wheel without the compiled step; the server says at start what it runs instead.

    python hatch_build.py     compiles in place, for a checkout that runs without being installed
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILER = "ziglang==0.17.1"
FOLDER = Path(__file__).parent / "src" / "dalle_server" / "engine" / "runners" / "cpu" / "compiled"
LIBRARY = FOLDER / "decode_step.so"  # by this name on every system
# What the oldest supported system of each kind calls itself, for the compiler and for the wheel.
TARGETS = {
    "Linux": ("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64"),
    "Darwin": ("x86_64-macos", "macosx_11_0_x86_64"),
    "Windows": ("x86_64-windows-gnu", "win_amd64"),
}


def target() -> tuple[str, str] | None:
    """The compiler's and the wheel's name of this system; None where the step is not compiled."""
    return TARGETS.get(platform.system()) if platform.machine() in ("x86_64", "AMD64") else None


def compile_decode_step(compiler_target: str) -> None:
    """Raises CalledProcessError, the compiler's messages on stderr."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / LIBRARY.name
        options = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-g0", "-s", "-fvisibility=hidden"]
        command = [sys.executable, "-m", "ziglang", "cc", "-target", compiler_target, "-shared", "-fPIC", *options]
        caches = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
        subprocess.run([*command, "-o", made, FOLDER / "decode_step.c"], check=True, env={**os.environ, **caches})
        part = LIBRARY.with_suffix(".part")
        try:
            part.write_bytes(made.read_bytes())
            part.replace(LIBRARY)  # a server that runs keeps the old file
        finally:
            part.unlink(missing_ok=True)


class DecodeStepHook(BuildHookInterface[Any]):
    """Called by hatchling for a wheel and for an editable install."""

    def dependencies(self) -> list[str]:
        return [COMPILER] if target() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if found := target():
            compiler_target, wheel_platform = found
            compile_decode_step(compiler_target)
            build_data["artifacts"].append(LIBRARY.relative_to(self.root).as_posix())
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{wheel_platform}"


if __name__ == "__main__":
    if not (here := target()):
        sys.exit(f"the decode step is compiled for x86-64 only, not for {platform.machine()}")
    compile_decode_step(here[0])
