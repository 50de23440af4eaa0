"""The deployment examples name settings that exist, and files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dalle_server.config import CONFIG_ENV, ENV_PREFIX, Settings

ROOT = Path(__file__).parent.parent
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
