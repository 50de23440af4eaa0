"""Words may be lost; the program and its pictures may not."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_server.cli.terminal import Speech

ROOT = Path(__file__).parents[2]


def shell(script: str, tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """`$dalle` in the script is the command, with nano."""
    return subprocess.run(
        ["bash", "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "dalle": f"{sys.executable} -m dalle_server",
            "DALLE_MODEL_VERSION": "nano",
            "DALLE_CACHE_DIR": str(tmp_path / "cache"),
            **environ,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_an_encoding_that_lacks_the_prompts_characters(tmp_path: Path, encoding: str) -> None:
    ended = shell('$dalle generate "a 🦊 狐" --seed 1 -n 2 && $dalle info *.jpeg', tmp_path, PYTHONIOENCODING=encoding)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    assert {path.name for path in tmp_path.glob("*.jpeg")} == {"a 🦊 狐-1-0.jpeg", "a 🦊 狐-1-1.jpeg"}
    assert "prompt:          a \\U0001f98a \\u72d0" in ended.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("$dalle models >&-", 0),
        ("$dalle models 2>&-", 0),
        ("$dalle models >&- 2>&- <&-", 0),
        ("$dalle models >/dev/full", 1),
        ("$dalle models 2>/dev/full", 0),
        ("$dalle nonsense 2>/dev/full", 2),
        ("set -o pipefail; $dalle models | true", 0),
        ("set -o pipefail; $dalle --help | true", 0),
        ('$dalle generate "a fox" --seed 1 >&- 2>&- && test -f "a fox-1-0.jpeg"', 0),
        ('set -o pipefail; $dalle generate "a fox" --seed 1 2>&1 | true && test -f "a fox-1-0.jpeg"', 0),
        ('$dalle generate "a fox" --seed 1 >/dev/full 2>&1; test -f "a fox-1-0.jpeg"', 0),
    ],
)
def test_nobody_listens(tmp_path: Path, script: str, code: int) -> None:
    ended = shell(script, tmp_path)
    assert ended.returncode == code and ended.stderr == "", ended.stderr


def test_what_is_lost_is_known_once() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="ascii") as stream:
        speech = Speech(stream)
        for _ in range(3):
            speech.write("é\n" * 10_000)
            speech.flush()
        assert isinstance(speech.lost, BrokenPipeError) and not speech.failed
    assert Speech(io.StringIO()).lost is None
