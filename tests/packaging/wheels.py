"""Builds a wheel for every system of hatch_build.py and looks into each: its libraries, their processor and symbols.

python -m tests.packaging.wheels DIRECTORY [SYSTEM…]     `make wheels` gives dist
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import lief

from dalle_server.engine.runners.cpu.compiled.builds import BUILDS, library_of, sources_digest
from hatch_build import SYSTEMS, System

ROOT = Path(__file__).parents[2]
SYMBOLS = {"is_supported", "sources", "layout", "decode_step", "encode_text", "draw", "phase_bytes", "max_positions"}
# What each processor is called in the headers of ELF, Mach-O and PE.
MACHINES = {"x86_64": {"X86_64", "AMD64"}, "aarch64": {"AARCH64", "ARM64"}}


def build(name: str, directory: Path) -> Path:
    """In a directory of its own first, so that only a whole and checked wheel is left."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, str(ROOT)]
        subprocess.run(command, check=True, env=os.environ | {"DALLE_BUILD": name})
        (wheel,) = Path(scratch).glob("*.whl")
        check(wheel, SYSTEMS[name])
        return wheel.replace(directory / wheel.name)


def check(wheel: Path, system: System) -> None:
    """Raises AssertionError that says what is wrong with the wheel."""
    assert wheel.name.endswith(f"-py3-none-{system.wheel_platform}.whl"), wheel.name
    with zipfile.ZipFile(wheel) as packed:
        libraries = {Path(name).name: packed.read(name) for name in packed.namelist() if name.endswith(".so")}
        tags = next(packed.read(name).decode() for name in packed.namelist() if name.endswith(".dist-info/WHEEL"))
    assert f"Tag: py3-none-{system.wheel_platform}\n" in tags, tags
    wanted = {library_of(build).name for build in BUILDS[system.processor]}
    assert libraries.keys() == wanted, f"{wheel.name} holds {sorted(libraries)}, not {sorted(wanted)}"
    for name, contents in libraries.items():
        binary = lief.parse(contents)
        assert binary is not None, f"{name} in {wheel.name} is no library"
        exported = {str(function.name).removeprefix("_") for function in binary.exported_functions}
        assert exported >= SYMBOLS, f"{name} in {wheel.name} lacks {sorted(SYMBOLS - exported)}"
        machine = getattr(binary.header, "machine_type", None) or getattr(binary.header, "cpu_type", None)
        machine = machine or binary.header.machine
        assert machine.name in MACHINES[system.processor], f"{name} in {wheel.name} is for {machine.name}"
        assert sources_digest().encode() in contents, f"{name} in {wheel.name} is of other sources"


def main(arguments: list[str]) -> None:
    directory, *names = arguments
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name in names or SYSTEMS:
        print(build(name, Path(directory)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
