"""The checkpoint in the package and this run's, asked the same questions by this run's judge, as clients of the server.

The questions are about the everyday concepts, which both know, unless asked otherwise; the judge chooses among all
concepts of this run.
Colours, backgrounds, places and counts are told by renders: of every artwork, and on each checkpoint's own grid, on
which its things stand. Ceilings are those of this run's tokens and decoder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch.nn.functional as F

from training.judging.evaluate import Generate, questions, remembered, score, seeds_differ
from training.judging.judge import Judge
from training.judging.served import served, through
from training.judging.sheets import SHEETS, save_sheet
from training.recipe import SHIPPED, Recipe
from training.scenes.artwork import STYLES
from training.scenes.composer import Composer

SHEET_PX = 256  # as a page shows them


def compare(recipe: Recipe) -> None:
    """Print both scores, write compare.json, and draw every sheet of both at the size of a page."""
    contestants = {"shipped": SHIPPED, "this run": recipe.checkpoint}
    results = {name: _judged(recipe, path, name) for name, path in contestants.items()}
    (recipe.preset.work_dir / "compare.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _enlarged(draw: Generate, side_px: int) -> Generate:
    return lambda captions, seed: F.interpolate(draw(captions, seed), (side_px, side_px), mode="bilinear")


def renders(recipe: Recipe, grid: int) -> Composer:
    """Of whatever may be right on this grid."""
    variety = replace(recipe.preset.variety, styles=STYLES, composed_styles=(), grid=grid, play=1)
    return Composer(recipe.atlas, recipe.preset.vqgan.resolution, variety, recipe.device)


def _judged(recipe: Recipe, path: Path, name: str) -> list[dict[str, object]]:
    with served(path) as engine:
        grid = engine.config.picture.grid_width
        judge = Judge(renders(recipe, grid), recipe.classifier)
        pictures = Composer(
            recipe.atlas, recipe.pictures.image_px, replace(recipe.preset.variety, grid=grid), recipe.device
        )
        draw = remembered(_enlarged(through(engine, recipe.device), recipe.pictures.image_px), recipe.asking.seeds)
        for sheet, prompts in SHEETS.items():
            target = recipe.preset.work_dir / f"{sheet} {name}.png"
            save_sheet(draw(prompts, 0), target, columns=8, side_px=SHEET_PX)
        asked = recipe.asking.thinned(questions(recipe.sampler, judge, everyday=recipe.asking.everyday(True)))
        apart = seeds_differ(draw, asked[0].prompts, pictures)
        rows: list[dict[str, object]] = [{"name": "seeds differ", "score": apart}]
        for question in asked:
            found = score(question, draw, recipe.decoded, pictures, seeds=recipe.asking.seeds)
            print(name, found, flush=True)
            rows.append(asdict(found))
        return rows
