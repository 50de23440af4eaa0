"""The tiny Janus checkpoints and what the reference made of them: tests/data/parity-janus."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dalle_server.checkpoints import open_checkpoint
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.convert import convert
from dalle_server.families.janus import JanusConfig

DATA = Path(__file__).parents[1] / "data" / "parity-janus"
NUM_PROMPTS = 3


@functools.cache
def goldens() -> Mapping[str, Any]:
    return dict(np.load(DATA / "goldens.npz"))


def ids(prompt: int, branch: str) -> np.ndarray:
    """Of a golden's row, "cond" or "uncond"."""
    found: np.ndarray = goldens()[f"p{prompt}_ids_{branch}"]
    return found


@functools.cache
def text_goldens() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / "text_goldens.json").read_text("utf-8"))
    return loaded


@functools.cache
def opened(max_text_length: int) -> Checkpoint:
    """One form, converted once for all tests, with short slots; mapped files outlive their folder."""
    with TemporaryDirectory() as directory:
        checkpoint = converted(Path(directory))
    config = checkpoint.config
    transformer = replace(config.sizes(JanusConfig), max_text_length=max_text_length)
    return replace(checkpoint, config=replace(config, transformer=transformer))


def converted(directory: Path, form: str = "hf-tiny") -> Checkpoint:
    """A published form as a native checkpoint below `directory`."""
    return open_checkpoint(convert(DATA / form, directory / form))
