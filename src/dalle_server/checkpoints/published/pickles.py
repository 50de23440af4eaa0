"""PyTorch pickles as safetensors, by a process of its own: unpickle.py, the only place that opens them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import dalle_server
from dalle_server.checkpoints.hub.damage import missing
from dalle_server.checkpoints.tensor_file import Progress
from dalle_server.errors import CheckpointError

SUFFIXES = (".pt", ".bin")


def unpickle(
    sources: Sequence[Path], targets: Sequence[Path], progress: Progress | None = None, skip: str = ""
) -> None:
    """Write each pickle's tensors as a safetensors file, without those whose names begin as the pattern `skip` says.

    Raises CheckpointError with what the process said.
    """
    for source in sources:
        if not source.is_file():
            raise CheckpointError(missing(source))
    total = sum(path.stat().st_size for path in sources)
    if progress:
        progress("unpickling", 0, total)
    package_root = str(Path(dalle_server.__file__).parents[1])
    search_path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    # -P: a numpy.py in the working directory must not be imported in numpy's place.
    command = [sys.executable, "-P", "-m", "dalle_server.checkpoints.published.unpickle"]
    finished = subprocess.run(
        [*command, skip, *map(str, chain(*zip(sources, targets, strict=True)))],
        env=os.environ | {"PYTHONPATH": search_path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if finished.returncode:
        last = finished.stderr.strip().split("\n")[-1]
        raise CheckpointError(last or f"reading {sources[0].parent} ended with status {finished.returncode}")
    if progress:
        progress("unpickling", total, total)
