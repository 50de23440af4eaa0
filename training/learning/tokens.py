"""Stage 3: scenes as image tokens, made once and kept: an encoder costs more time than learning from what it says.

A scene is a function of the run's seed and its number, so that only its tokens are kept; the transformer sees every
scene several times, in new words each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.learning import parallel
from training.scenes.composer import Composer, Plan
from training.scenes.spec import SceneSampler, SceneSpec

_SHARD = 1024  # scenes of one file: what an interruption may cost
_BATCH = 16


def scene(sampler: SceneSampler, seed: int, number: int) -> SceneSpec:
    return sampler.sample(random.Random(f"{seed} scene {number}"))


def tokenize_scenes(
    seed: int,
    num_scenes: int,
    sampler: SceneSampler,
    composer: Composer,
    tokens_of: Callable[[list[Plan]], Tensor],
    folder: Path,
) -> None:
    """Write (or go on writing) the tokens of `num_scenes` scenes into `folder`; `tokens_of` gives ids (B, I)."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(-(-num_scenes // _SHARD))
    for shard in shards[parallel.rank() :: parallel.world_size()]:
        target = _file(folder, shard)
        numbers = range(shard * _SHARD, min(num_scenes, (shard + 1) * _SHARD))
        if target.exists() and len(np.load(target, mmap_mode="r")) == len(numbers):  # the last may have been shorter
            continue
        rng = random.Random(f"{seed} shard {shard}")
        specs = [scene(sampler, seed, number) for number in numbers]
        batches = [specs[start : start + _BATCH] for start in range(0, len(specs), _BATCH)]
        tokens = torch.cat([tokens_of(composer.plan(batch, rng)) for batch in batches])
        partial = target.with_suffix(".partial.npy")
        np.save(partial, tokens.cpu().numpy().astype(np.uint16))
        partial.replace(target)
        if shard % 8 == 0:
            print(f"tokens: file {shard} of {len(shards)}", flush=True)
    parallel.barrier()


def load_tokens(num_scenes: int, folder: Path) -> Tensor:
    """(scenes, I) int32. Raises FileNotFoundError or ValueError if the stage `tokens` has not finished."""
    files = [_file(folder, shard) for shard in range(-(-num_scenes // _SHARD))]
    tokens = np.concatenate([np.load(file) for file in files]).astype(np.int32)
    if len(tokens) != num_scenes:
        raise ValueError(f"{folder} has the tokens of {len(tokens)} scenes, not of {num_scenes}: run the stage tokens")
    return torch.from_numpy(tokens)


def _file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05}.npy"
