"""Stage 5: the trained weights as an ordinary native checkpoint, in half precision, with their notices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dalle_server.checkpoints import write_native
from dalle_server.models.config import ModelConfig
from dalle_server.models.dalle_bart import DalleBart
from dalle_server.models.vqgan import VQGAN
from dalle_server.request import SamplingParams

CARD = Path(__file__).with_name("checkpoint_card.md")


def export(
    transformer: DalleBart,
    vqgan: VQGAN,
    tokenizer_file: Path,
    sampling: SamplingParams,
    target: Path,
    *,
    max_condition_scale: float | None = None,
) -> Path:
    """Write `target` (replacing it) and return it. Raises CheckpointError if anything does not fit."""
    config = ModelConfig(
        name="nano",
        transformer=transformer.config,
        vqgan=vqgan.config,
        sampling=sampling,
        max_condition_scale=max_condition_scale,
    )
    files = {"tokenizer.json": tokenizer_file, "README.md": CARD}
    return write_native(target, config, _half(transformer), _half(vqgan), files, overwrite=True)


def _half(module: nn.Module) -> dict[str, NDArray[np.float16]]:
    weights = {name: value.cpu().float().contiguous() for name, value in module.state_dict().items()}
    return {name: value.numpy().astype(np.float16) for name, value in weights.items()}
