"""Go on from an exported checkpoint, when the working files of its run are gone.

The weights come back in half precision and without the optimizer's memory, which a short warm-up makes good.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle_server.checkpoints import open_checkpoint
from training.learning.loop import new_state


def restore(checkpoint: Path, work_dir: Path, *, image_length: int) -> None:
    """Write vqgan.pt, transformer.pt and tokenizer.json into `work_dir`, as if a run had just reached these weights.

    Raises ValueError if it writes another number of tokens than the run's `image_length`, and FileExistsError rather
    than replace the files of a run.
    """
    opened = open_checkpoint(checkpoint)
    if (tokens := opened.config.transformer.image_length) != image_length:
        raise ValueError(
            f"{checkpoint} writes {tokens} tokens a picture and this preset {image_length}:"
            " restore it under the preset that made it"
        )
    targets = [work_dir / name for name in ("vqgan.pt", "transformer.pt", "tokenizer.json")]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists: restoring would replace a run; move {work_dir} away first")
    work_dir.mkdir(parents=True, exist_ok=True)
    for tensors, target in zip((opened.vqgan, opened.transformer), targets[:2], strict=True):
        weights: dict[str, Tensor] = {
            name: torch.from_numpy(np.asarray(value, dtype=np.float32).copy()) for name, value in tensors.items()
        }
        torch.save(new_state(weights), target)
    shutil.copy(opened.tokenizer_file, targets[2])
