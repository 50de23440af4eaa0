"""At the end of a run: what the README and the docs claim that this machine could not check."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest


def unchecked_claims() -> Iterator[str]:
    from dalle_server.engine.runners.cpu.compiled.builds import BUILDS
    from dalle_server.engine.runners.cpu.compiled.library import why_not

    for build in BUILDS["x86_64"]:
        if reason := why_not(build):
            yield f"the speed of build {build}, and that it draws what the others draw: {reason}"
    for build in BUILDS["aarch64"]:
        if why_not(build) is not None:
            how = "its bits only, emulated" if shutil.which("qemu-aarch64") else "nothing of it: no qemu-aarch64"
            yield f"the speed of build {build}; checked is {how}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("claims that this machine cannot check")
    for claim in unchecked_claims():
        terminalreporter.line(f"- {claim}")
    terminalreporter.line("- times on the clock: no test asserts any; `make bench` measures them beside their peers")
