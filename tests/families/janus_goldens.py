"""The tiny Janus checkpoints and what the reference made of them: tests/data/parity-janus."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dalle_server.checkpoints import open_checkpoint
from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.convert import convert

DATA = Path(__file__).parents[1] / "data" / "parity-janus"
NUM_PROMPTS = 3


@functools.cache
def goldens() -> Mapping[str, Any]:
    return dict(np.load(DATA / "goldens.npz"))


@functools.cache
def text_goldens() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / "text_goldens.json").read_text("utf-8"))
    return loaded


def converted(directory: Path, form: str = "hf-tiny") -> Checkpoint:
    """A published form as a native checkpoint below `directory`."""
    return open_checkpoint(convert(DATA / form, directory / form))
