"""A checkpoint as clients of the server get it: captions to pictures, drawn by the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dalle_server.checkpoints import open_checkpoint
from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.select import choose_runner
from dalle_server.request import GenerationRequest, SamplingParams
from dalle_server.text import TextTokenizer
from training.judging.evaluate import Generate

NUM_SLOTS = 16
OWN = SamplingParams()  # the checkpoint's own


@contextmanager
def served(path: Path, runner: Runner | None = None) -> Iterator[Engine]:
    """A running engine of the checkpoint at `path`: in fp32, unless a `runner` is given, which is closed with it."""
    checkpoint = open_checkpoint(path)
    runner = runner or choose_runner(checkpoint, RunnerSettings(dtype="fp32", num_slots=NUM_SLOTS))
    engine = Engine(runner, TextTokenizer.from_checkpoint(checkpoint))
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()


def through(engine: Engine, device: torch.device, sampling: SamplingParams = OWN) -> Generate:
    """Captions (at most 10,000) and a seed to pictures (B,3,H,W) in [0, 1], each caption's seed its own."""

    def draw(captions: list[str], seed: int) -> Tensor:
        drawn = []
        for start in range(0, len(captions), NUM_SLOTS):
            generations = [
                engine.submit(GenerationRequest.of(caption, seed=10_000 * seed + start + n, sampling=sampling))
                for n, caption in enumerate(captions[start : start + NUM_SLOTS])
            ]
            drawn += [torch.from_numpy(generation.result()[0].pixels) for generation in generations]
        return torch.stack(drawn).to(device).permute(0, 3, 1, 2).float() / 255

    return draw
