"""What number formats do to the trained model, through the runner that serves it: fp32 and int8 of the compiled
runner, and bf16 of torch, side by side.

Two views. Along the same tokens: how far the guided logits move, how often the best and the sampled token stay the
same, and how far the pixels of the same grids move. And by the judge: the scores of the evaluation, with pictures
drawn by the server's own engine.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalle_server.checkpoints import open_checkpoint
from dalle_server.engine.runners.base import Runner, StepRow
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.cpu import load as cpu_load
from dalle_server.engine.runners.select import choose_runner
from dalle_server.engine.sampling import sample
from dalle_server.request import GenerationRequest, ImageKey
from dalle_server.text import TextTokenizer
from training.judging.evaluate import score
from training.judging.served import NUM_SLOTS, served, through
from training.recipe import Recipe

FORMATS = {  # name → runner and dtype
    "fp32": ("compiled", "fp32"),
    "int8": ("compiled", "int8"),
    "bf16": ("torch", "bf16"),
}
ASKED = ("single object, top-1", "single object, top-5", "background colour", "count")
PROMPTS = (
    "a red apple", "two cats", "a blue car on a green background", "a house", "three stars", "a robot",
    "a dog to the left of a tree", "a rocket in space",
)  # fmt: skip


def compare_formats(recipe: Recipe) -> None:
    """Print both views, and write formats.json."""
    # As a large model is served: packed weights and ranges are kept, and int8 paints in int8, too.
    cpu_load.WORTH_KEEPING_BYTES = 0
    path = recipe.checkpoint
    grids = _grids(path)
    truth = _along(path, _runner(path, "fp32"), grids)
    results: dict[str, object] = {}
    for name in FORMATS:
        runner = _runner(path, name)
        found: dict[str, object] = _difference(truth, _along(path, runner, grids))
        found["scores"] = _scores(recipe, path, runner)
        results[name] = found
        print(name, json.dumps(found), flush=True)
    (recipe.preset.work_dir / "formats.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _runner(path: Path, name: str) -> Runner:
    cache = path.parent / "packed"
    return choose_runner(
        open_checkpoint(path), RunnerSettings(*FORMATS[name], device="cpu", num_slots=NUM_SLOTS, cache_dir=cache)
    )


def _grids(path: Path) -> NDArray[np.int32]:
    """The token grids (N, I) of PROMPTS, as fp32 draws them."""
    with served(path, _runner(path, "fp32")) as engine:
        drawn = [engine.submit(GenerationRequest.of(prompt, seed=7)) for prompt in PROMPTS]
        return np.stack([generation.result()[0].tokens for generation in drawn])


def _along(path: Path, runner: Runner, grids: NDArray[np.int32]) -> tuple[NDArray[np.float32], Tensor, Tensor]:
    """Guided logits (I, N, C), sampled tokens (I, N) and pixels, when every token is forced to be the grid's."""
    tokenizer = TextTokenizer.from_checkpoint(open_checkpoint(path))
    for slot, prompt in enumerate(PROMPTS):
        runner.admit(slot, *runner.encode(tokenizer.pair(prompt)))
    logits, sampled = [], []
    for position in range(runner.config.picture.num_tokens):
        free = [StepRow(n, position, ImageKey(7, 0), runner.config.sampling) for n in range(len(PROMPTS))]
        forced = [
            StepRow(row.slot, position, row.key, row.sampling, int(grids[row.slot, position])) for row in free
        ]  # fmt: skip
        runner.step(forced).result()
        logits.append(runner.guided_logits())
        sampled.append(sample(logits[-1], free))
    return np.stack(logits), torch.from_numpy(np.stack(sampled)), torch.from_numpy(runner.detokenize(grids))


def _difference(
    truth: tuple[NDArray[np.float32], Tensor, Tensor], found: tuple[NDArray[np.float32], Tensor, Tensor]
) -> dict[str, object]:
    error = found[0] - truth[0]
    mse = float((found[2].float() - truth[2].float()).square().mean())
    return {
        "logits_rms_error": round(float(np.sqrt((error**2).mean()) / truth[0].std()), 4),
        "same_best": round(float((found[0].argmax(2) == truth[0].argmax(2)).mean()), 4),
        "same_sampled": round(float((found[1] == truth[1]).float().mean()), 4),
        "pixels_psnr_db": round(10 * float(np.log10(255**2 / mse)), 1) if mse else None,
    }


def _scores(recipe: Recipe, path: Path, runner: Runner) -> list[dict[str, object]]:
    asked = recipe.asking.thinned([question for question in recipe.questions if question.name in ASKED])
    seeds = recipe.asking.seeds
    with served(path, runner) as engine:
        return [
            asdict(score(question, through(engine, recipe.device), recipe.decoded, recipe.pictures, seeds=seeds))
            for question in asked
        ]
