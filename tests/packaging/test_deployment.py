"""The deployment examples name settings that exist, and files that are there."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from dalle_server.config import CONFIG_ENV, ENV_PREFIX, Settings
from dalle_server.variants import ModelSize

ROOT = Path(__file__).parents[2]
EXAMPLES = ["Dockerfile", "compose.yaml", "deploy/dalle-server.service", "docs/deploying.md", "README.md"]
KNOWN = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_ENV}


@pytest.mark.parametrize("example", EXAMPLES)
def test_environment_variables_are_settings(example: str) -> None:
    text = (ROOT / example).read_text(encoding="utf-8")
    assert set(re.findall(r"\bDALLE_[A-Z_]+\b", text)) <= KNOWN


def test_settings_named_in_deploying_exist() -> None:
    text = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text)) | set(re.findall(r"`([a-z_]+) = ", text))
    assert named and named <= set(Settings.model_fields)


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").glob("*.md")) + sorted(ROOT.glob("*.md")), ids=lambda page: page.name
)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_no_page_installs_from_an_index_that_has_no_such_package() -> None:
    """Who has it may ask for more of it (`pip install 'dalle-server[torch]'`, as errors say): pages are for others."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").iterdir()]
    for page in pages:
        found = re.findall(r"install[^\n]*\bdalle-server(?:\[|\s*$)", page.read_text(encoding="utf-8"), re.M)
        assert not found, f"{page.name}: {found}"


def test_scaling_names_every_model_that_may_be_asked_for() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert all(f"`{model.folder_name}`" in text for model in ModelSize)


@pytest.mark.parametrize("page", ["docs/deploying.md", "Makefile", "training/README.md"])
def test_the_preset_of_the_shipped_model_is_named_where_one_is_told_to_train(page: str) -> None:
    named = re.findall(r"make train-nano +PRESET=(\w+)", (ROOT / page).read_text(encoding="utf-8"))
    assert "nano2" in named and all((ROOT / "training" / "presets" / f"{name}.toml").exists() for name in named)


def test_what_the_container_copies_is_in_its_context() -> None:
    """Docker's rules, as far as the file uses them: `*` leaves everything out, a later `!name` takes it back."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*" and all(line.startswith(("!", "**/")) for line in lines[1:])
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith(("COPY", "ADD")) and "--from=" not in line:
            copied |= set(line.split()[1:-1])
    assert copied and copied == kept


def test_what_the_build_reads_is_copied() -> None:
    """Files that pyproject.toml names, without which the package cannot be built."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hooks = project["tool"]["hatch"]["build"]
    text = json.dumps([project["project"].get("readme"), project["project"].get("license-files"), hooks])
    needed = {name for name in ("README.md", "LICENSE", "THIRD_PARTY_NOTICES.md", "hatch_build.py") if name in text}
    if '"custom"' in text:
        needed.add("hatch_build.py")
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert needed >= {"README.md", "hatch_build.py"} and all(name in dockerfile for name in needed)


def test_nginx_passes_on_what_the_server_needs_to_know() -> None:
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    headers = dict(re.findall(r"^ *proxy_set_header (\S+) (\S+);", text, re.MULTILINE))
    assert headers["Host"] == "$http_host"  # $host drops the port
    assert headers["X-Forwarded-Proto"] == "$scheme" and "X-Forwarded-For" in headers
    assert "proxy_buffering off;" in text
