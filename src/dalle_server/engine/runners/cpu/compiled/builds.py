"""The builds of the C code in c/: one library for each instruction set (target.h), from one source.

Read by hatch_build.py too, which compiles them: no import but of the standard library.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent  # of the libraries
SOURCES = FOLDER / "c"
# By processor as the compiler names it, the best first.
BUILDS = {
    "x86_64": ("avx512vnni", "avxvnni", "avx2", "x86-64-v2"),
    "aarch64": ("dotprod", "aarch64"),
}
NAMES = tuple(name for names in BUILDS.values() for name in names)
# No contraction: where a product and a sum are rounded once, the source says so, and every build does the same.
OPTIONS = ("-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-g0", "-s", "-fvisibility=hidden")


def library_of(build: str) -> Path:
    """Where the build's library lies, if it was made: by this name on every system."""
    return FOLDER / f"compiled-{build}.so"


def define_of(build: str) -> str:
    """What target.h calls it."""
    return build.upper().replace("-", "_")


def sources_digest() -> str:
    """Of everything that a library is made from; it remembers what it was made from, so a stale one is noticed."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.[ch]"), FOLDER / "builds.py"]):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
