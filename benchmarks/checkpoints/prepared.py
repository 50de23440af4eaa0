"""Random checkpoints of true shape, written once into benchmarks/work."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.checkpoints.dalle_bart import write_random_native
from benchmarks.checkpoints.sizes import SIZES

WORK = Path(__file__).parents[1] / "work"
STORED_AS = {"mini": np.float32, "mega": np.float16}  # as published


def random_model(size: str) -> Path:
    """The native checkpoint "mini" or "mega"."""
    directory = WORK / f"random-{size}"
    if not (directory / "config.json").exists():
        print(f"writing a random checkpoint of {size}'s shape …", flush=True)
        write_random_native(directory, SIZES[size], STORED_AS[size])
    return directory
