"""The examples of docs/http-api.md do what the page says, on a live server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_runner import FakeRunner, fake_config
from tests.web.live import Live, live

PAGE = Path(__file__).parents[2] / "docs" / "http-api.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
COMMANDS = [
    (text, BLOCKS[number + 1][1] if BLOCKS[number + 1 : number + 2] and BLOCKS[number + 1][0] == "json" else None)
    for number, (language, text) in enumerate(BLOCKS)
    if language == "sh"
]
PROGRAMS = [text for language, text in BLOCKS if language == "python"]

needs_curl = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="the page's examples need curl and bash"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    # Slow enough that no preview is late, and so dropped.
    with live(tmp_path_factory.mktemp("data"), FakeRunner(fake_config(grid_side=16), step_s=0.005)) as server:
        yield server


def shape(value: Any) -> Any:
    """The names in a JSON value, to any depth, without what varies: a list by its first item."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_the_page_has_examples() -> None:
    assert len(COMMANDS) >= 8
    assert len(PROGRAMS) >= 2


@needs_curl
@pytest.mark.parametrize(("command", "reply"), COMMANDS, ids=range(len(COMMANDS)))
def test_commands_answer_as_shown(server: Live, tmp_path: Path, command: str, reply: str | None) -> None:
    script = command.replace("http://localhost:8000", server.url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if reply is not None:
        assert shape(json.loads(done.stdout)) == shape(json.loads(reply))
    elif "stream" in command:
        assert done.stdout.count("event: image_generation.partial_image\n") == 3
        assert done.stdout.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(done.stdout)["parameters"]["Prompt"] == "a red apple"


@needs_curl
def test_the_shown_error_is_the_real_one(server: Live) -> None:
    (shown,) = (reply for _, reply in COMMANDS if reply and reply.startswith('{"error"'))
    body = '{"prompt": "a red apple", "n": 11}'
    done = subprocess.run(
        ["curl", "-s", f"{server.url}/v1/images/generations", "-d", body], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == json.loads(shown)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_run(server: Live, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(program.replace("http://localhost:8000", server.url), names)
    if "result" in names:
        assert len(names["result"].data) == 2
    else:
        assert capsys.readouterr().out.count("partial_image ") == 3
