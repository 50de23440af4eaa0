"""Makes sure that the browser tests have a Chromium: installs Debian's when we may.

`make test` runs this first. Where it cannot install one (no apt, no root), it says how, and the browser
tests then skip with that reason, except under CI=true, where a missing browser is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """The Chromium to test with: TEST_BROWSER, or the first known name on the PATH."""
    return os.environ.get("TEST_BROWSER") or next(filter(None, map(shutil.which, CANDIDATES)), None)


def install_browser() -> bool:
    """Debian's package, when this is Debian or Ubuntu and we are root. True when a browser is there afterwards."""
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
    ):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    return find_browser() is not None


def main() -> int:
    if find_browser() or install_browser():
        return 0
    print("No Chromium found; the browser tests need one: install `chromium` or set TEST_BROWSER.", file=sys.stderr)
    return 1 if os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
