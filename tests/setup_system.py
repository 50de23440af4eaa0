"""Makes sure that the tests have a Chromium, a PostgreSQL and an emulator of ARM: installs Debian's when we may.

`make test` runs this first. Where it cannot install one (no apt, no root), it says how, and the tests that need it
then skip with that reason, except under CI=true, where a missing browser or database is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """The Chromium to test with: TEST_BROWSER, or the first known name on the PATH."""
    return os.environ.get("TEST_BROWSER") or next(filter(None, map(shutil.which, CANDIDATES)), None)


def install_browser() -> bool:
    """Debian's package, if we may. True when a browser is there afterwards."""
    return _apt_install("chromium") and find_browser() is not None


def _apt_install(package: str) -> bool:
    """False where this is neither Debian nor Ubuntu, or we are not root, or it did not work."""
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    subprocess.run(["apt-get", "update", "-qq"], env=environment, stdout=subprocess.DEVNULL, check=False)
    return subprocess.run(install, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0


def install_emulator() -> None:
    """qemu-user, in which the compiled code's builds for ARM are run. Without it their tests skip, and say so."""
    if shutil.which("qemu-aarch64") is None and not _apt_install("qemu-user"):
        print("No qemu-aarch64 found; the ARM builds are not tested: install `qemu-user`.", file=sys.stderr)


def install_postgres() -> None:
    """The server alone: the tests start one of their own on a free port."""
    is_there = shutil.which("initdb") or any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not is_there and not _apt_install("postgresql"):
        print("No PostgreSQL found; its tests need one: install `postgresql`.", file=sys.stderr)


def main() -> int:
    install_emulator()
    install_postgres()
    if find_browser() or install_browser():
        return 0
    print("No Chromium found; the browser tests need one: install `chromium` or set TEST_BROWSER.", file=sys.stderr)
    return 1 if os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
