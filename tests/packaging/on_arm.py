"""A picture by the wheel for Linux on ARM, its Python and its libraries, emulated; the bytes must be this machine's.

python -m tests.packaging.on_arm     on Debian or Ubuntu, with qemu-user; a few minutes

Debian's Python for arm64 is unpacked into a directory, PyPI's wheels for aarch64 beside it: nothing is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from dalle_server.engine.runners.cpu.compiled.builds import BUILDS
from tests.packaging.wheels import ROOT, build

PYTHON = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib")
LIBRARIES = (
    "libc6 zlib1g libexpat1 libssl3 libsqlite3-0 libffi8 libbz2-1.0 liblzma5 libuuid1 libcrypt1 libstdc++6 libgcc-s1"
)
MANYLINUX = ("2_17", "2_24", "2_26", "2_27", "2_28")
PROMPT = ("a red apple on a blue background", "--model_version", "nano", "--seed", "7", "--output")


def unpack_python(scratch: Path) -> Path:
    """→ the root of Debian's arm64 files. Raises CalledProcessError where apt has none."""
    architectures = ("-o", "APT::Architectures::=arm64", "-qq")
    subprocess.run(["apt-get", *architectures, "update"], check=True)
    names = [f"{name}:arm64" for name in (*PYTHON, *LIBRARIES.split())]
    subprocess.run(["apt-get", *architectures, "download", *names], check=True, cwd=scratch)
    for package in scratch.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, scratch / "root"], check=True)
    return scratch / "root"


def unpack_packages(scratch: Path) -> Path:
    """→ a folder to import from: our wheel, and what it requires."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    platforms = [f"--platform=manylinux_{version}_aarch64" for version in MANYLINUX]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version=3.11"]
    pip += [*platforms, f"--constraint={ROOT / 'constraints.txt'}", f"--dest={scratch}"]
    subprocess.run([*pip, *requirements], check=True)
    build("linux-aarch64", scratch)
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(scratch / "packages")
    return scratch / "packages"


def picture(python: Sequence[str | Path], directory: Path, **variables: str) -> bytes:
    command = [*python, "-m", "dalle_server", "generate", *PROMPT, directory]
    subprocess.run(command, check=True, env=os.environ | variables)
    (file,) = directory.iterdir()
    return file.read_bytes()


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        root, packages = unpack_python(scratch), unpack_packages(scratch)
        expected = picture([sys.executable], scratch / "here")
        for name in BUILDS["aarch64"]:
            emulated = ("qemu-aarch64", "-L", root, root / "usr/bin/python3.11")
            found = picture(emulated, scratch / name, PYTHONPATH=str(packages), DALLE_CPU_BUILD=name)
            assert found == expected, f"build {name} draws another picture"
            print(f"build {name}: the same {len(found)} bytes as this machine")


if __name__ == "__main__":
    main()
