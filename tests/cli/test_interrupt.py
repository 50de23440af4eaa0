"""Ctrl+C at the terminal that `generate` draws its bar on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What runs the tests in its background has made their children deaf to it.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from dalle_server.cli import main
sys.exit(main(sys.argv[1:]))
"""

if sys.platform != "win32":
    import pty


@pytest.mark.skipif(sys.platform == "win32", reason="no such terminals there")
def test_ctrl_c_ends_it_and_leaves_no_file(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    generating = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "generate", "a fox", "-n", "60", "--seed", "1", "-o", "drawn"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "DALLE_MODEL_VERSION": "nano",
            "DALLE_CACHE_DIR": str(tmp_path / "cache"),
            "TERM": "xterm",
        },
        stdout=subprocess.PIPE,
        stderr=its,
        text=True,
    )
    os.close(its)
    try:
        said = said_until(ours, "writing tokens")
        generating.send_signal(signal.SIGINT)
        said += said_until(ours, None)
        printed, _ = generating.communicate(timeout=120)
    finally:
        generating.kill()
        os.close(ours)
    assert generating.returncode == 130, said
    assert printed == "" and "Traceback" not in said, said
    assert list((tmp_path / "drawn").iterdir()) == []


def said_until(terminal: int, words: str | None) -> str:
    """None: until nobody writes there any more."""
    said = ""
    while words is None or words not in said:
        try:
            read = os.read(terminal, 1 << 16)
        except OSError:  # Linux's end of a terminal
            break
        if not read:
            break
        said += read.decode("utf-8", "replace")
    return said
