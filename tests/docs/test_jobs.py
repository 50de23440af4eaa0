"""docs/jobs.md: its example runs, and its tables name what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from dalle_server.web.jobs.schemas import JobBody, JobImage
from tests.fake_runner import FakeRunner
from tests.web.live import live

PAGE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="the example needs curl and bash")
def test_the_example_ends_with_a_picture(tmp_path: Path) -> None:
    (example,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    with live(tmp_path / "data", FakeRunner()) as server:
        script = example.replace("http://localhost:8000", server.url)
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True, timeout=60)
    told = re.findall(r"^event: (\w+)$", (tmp_path / "events.txt").read_text(), flags=re.M)
    assert told.count("image") == 2
    assert told[-1] == "done"
    assert set(told) <= set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.M))
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (32, 32)


def test_every_field_is_named() -> None:
    for name in (*JobBody.model_fields, *JobImage.model_fields):
        assert f"`{name}`" in PAGE, name
