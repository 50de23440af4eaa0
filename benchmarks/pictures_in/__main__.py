"""Pictures in, on the embedded model, by the judges that the training recipe has (none has seen a painted picture).

strength    the given picture shows one thing and the prompt asks for another: how near to the given picture the answer
            is (PSNR) against how often the judge sees what was asked for; for keeping each token by lot, as `strength`
            was once, and for drawing each towards codes near the given one, as it is
holes       a part of a true picture is hidden and painted anew: does the judge still name the thing, and how much
            more do neighbours differ across the hole's border than they did; 1, 4 and 16 candidates
particles   the same at the price of 16 candidates: sequential Monte Carlo over the kept tokens
shapes      3:2 by a sliding window: the step across the column where a window's own tokens begin, and other columns
cost        seconds of a picture, of an edit with 1 and 4 candidates

    python -m benchmarks.pictures_in --work DIR [--preset nano2] [--judge nearest] [--prompts 48] [--only …]

DIR is where the training recipe keeps its artwork and its runs. The judge `nearest` names the thing whose true
pictures, at every place where the recipe may put it, come nearest (training/judging/judge.py): it has learned nothing.
`trained` is the classifier that the stage `judge` of the preset has left in DIR. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import machine
from benchmarks.pictures_in.fills import Filler, Grids, forced_by, uniform
from dalle_server.drawing.painting import Shape, paint
from dalle_server.drawing.repaint import INDEX_BITS, Holes, Repaint
from dalle_server.drawing.repainting import draw_over
from dalle_server.drawn import result_of
from dalle_server.engine.engine import Engine
from dalle_server.pictures.canvas import Picture, Window, paste
from dalle_server.request import FREE, GenerationRequest, ImageKey, SamplingParams
from training.judging.classifier import Classifier
from training.judging.judge import Judge
from training.judging.prompts import Prompter
from training.preset import load_preset
from training.recipe import Recipe

Pixels = NDArray[np.uint8]
STRENGTHS = (0.1, 0.25, 0.5, 0.65, 0.75, 0.85, 0.95)
CANDIDATES = 16


class Bench:
    def __init__(self, recipe: Recipe, judge: str, num_prompts: int):
        self.filler, self.recipe = Filler(), recipe
        grid = self.filler.config.picture
        if recipe.preset.variety.grid != grid.grid_width:
            raise SystemExit(
                f"the embedded model has a grid of {grid.grid_width}, the preset {recipe.preset.name} one of"
                f" {recipe.preset.variety.grid}: its judge holds pictures to other places"
            )
        self.classifier = recipe.classifier if judge == "trained" else None  # at once, for it may not be there
        self.side, self.px = grid.grid_width, grid.px_per_token
        singles = Prompter(self.recipe.sampler, 2026, everyday=True).singles()
        self.everything = [spec for spec, _ in singles]
        self.asked = [singles[i * len(singles) // num_prompts] for i in range(num_prompts)]
        self.prompts = [prompt for _, prompt in self.asked]
        self.concepts = [spec.things[0].concept for spec, _ in self.asked]
        self.judge = Judge(self.recipe.small_composer, Classifier(1))
        composer = self.recipe.composer(grid.width_px)
        renders = composer.compose([spec for spec, _ in self.asked], random.Random("pictures in"))
        self.renders = (renders.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        self.given = self.filler.runner.tokenize(self.renders)
        self.keys = [ImageKey(7, index) for index in range(num_prompts)]

    def named(self, pictures: Pixels, concepts: list[int]) -> float:
        """Share of the pictures in which the judge sees the thing, among all concepts."""
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        if self.classifier is not None:
            with torch.no_grad():
                seen = self.classifier(images).argmax(1).tolist()
        else:
            nearest = self.judge.rank(images, self.everything)[:, 0]
            seen = [self.everything[int(place)].things[0].concept for place in nearest]
        right = sum(int(a == b) for a, b in zip(seen, concepts, strict=True))
        return round(right / len(concepts), 3)

    def pixels(self, grids: Grids) -> Pixels:
        return self.filler.runner.detokenize(grids)


def psnr(pictures: Pixels, given: Pixels) -> float:
    """Mean over the pictures, in dB."""
    errors = np.square(pictures.astype(float) - given).mean(axis=(1, 2, 3))
    return round(float((10 * np.log10(255**2 / np.maximum(errors, 1e-9))).mean()), 2)


def strength(bench: Bench) -> list[dict[str, Any]]:
    """Each thing is asked for over the picture of the next one."""
    given, renders = np.roll(bench.given, -1, 0), np.roll(bench.renders, -1, 0)
    others = bench.concepts[1:] + bench.concepts[:1]
    rows = []
    for by, value in [(by, each) for by in ("lot", "pull") for each in STRENGTHS] + [("either", 1.0)]:
        near = None
        if by != "pull":
            lots = np.stack([uniform(np.arange(given.shape[1]), key.index, key.seed) for key in bench.keys])
            forced = forced_by(given, lots < value)
        else:
            holes = Holes(given[0], np.ones(given.shape[1], bool), value, candidates=1)
            forced, near = np.full_like(given, FREE), (given, holes.pull)
        pictures = bench.pixels(bench.filler.fill(bench.prompts, forced, bench.keys, near=near).grids)
        row = {"by": by, "value": value, "psnr_db": psnr(pictures, renders)}
        row |= {"asked_for": bench.named(pictures, bench.concepts), "given": bench.named(pictures, others)}
        print(row, flush=True)
        rows.append(row)
    return rows


def hidden(side: int) -> dict[str, NDArray[np.bool_]]:
    """(I,) what is hidden, by name."""
    parts = {name: np.zeros((side, side), bool) for name in (
        "upper third", "upper half", "upper three quarters", "lower half", "middle quarter")}  # fmt: skip
    parts["upper third"][: round(side / 3)] = True
    parts["upper half"][: side // 2] = True
    parts["upper three quarters"][: 3 * side // 4] = True
    parts["lower half"][side // 2 :] = True
    parts["middle quarter"][side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
    return {name: part.reshape(-1) for name, part in parts.items()}


def holes(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for name, free in hidden(bench.side).items():
        forced = forced_by(bench.given, free)
        gone = np.where(_mask(bench, free)[None, :, :, None] > 0, np.uint8(127), bench.renders)
        whole = {"hidden": name, "true": bench.named(bench.renders, bench.concepts)}
        whole |= {"nothing painted": bench.named(gone, bench.concepts)}
        is_last = bool(free[-1])  # nothing is kept behind: candidates cannot be told apart
        filled, scores = _candidates(bench, forced, 1 if is_last else CANDIDATES)
        for count in (1,) if is_last else (1, 4, CANDIDATES):
            best = scores[:, :count].argmax(1)
            chosen = filled[np.arange(len(filled)), best]
            rows.append({**whole, "by": f"{count} candidates", **_judged(bench, chosen, free)})
            rows[-1]["likelihood"] = round(float(scores[np.arange(len(scores)), best].mean()), 1)
            print(rows[-1], flush=True)
    return rows


def particles(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for name in ("upper third", "upper half", "middle quarter"):
        free = hidden(bench.side)[name]
        forced, prompts, keys = _repeated(bench, forced_by(bench.given, free), CANDIDATES)
        found = bench.filler.fill(prompts, forced, keys, particles=CANDIDATES)
        scores = found.scores.reshape(-1, CANDIDATES)
        chosen = found.grids.reshape(len(scores), CANDIDATES, -1)[np.arange(len(scores)), scores.argmax(1)]
        row = {"hidden": name, "by": f"{CANDIDATES} particles", **_judged(bench, chosen, free)}
        row["likelihood"] = round(float(scores.max(1).mean()), 1)
        print(row, flush=True)
        rows.append(row)
    return rows


def _repeated(bench: Bench, forced: Grids, count: int) -> tuple[Grids, list[str], list[ImageKey]]:
    prompts = [prompt for prompt in bench.prompts for _ in range(count)]
    keys = [ImageKey(key.seed, key.index | (n << INDEX_BITS)) for key in bench.keys for n in range(count)]
    return forced.repeat(count, axis=0), prompts, keys


def _candidates(bench: Bench, forced: Grids, count: int) -> tuple[Grids, NDArray[np.float64]]:
    """(N, count, I) grids and (N, count) scores."""
    repeated, prompts, keys = _repeated(bench, forced, count)
    found = bench.filler.fill(prompts, repeated, keys)
    return found.grids.reshape(len(forced), count, -1), found.scores.reshape(len(forced), count)


def _mask(bench: Bench, free: NDArray[np.bool_]) -> NDArray[np.float32]:
    grid = free.reshape(bench.side, bench.side).astype(np.float32)
    return grid.repeat(bench.px, axis=0).repeat(bench.px, axis=1)


def _judged(bench: Bench, grids: Grids, free: NDArray[np.bool_]) -> dict[str, Any]:
    mask = _mask(bench, free)
    window = Window(0, 0, mask.shape[0])
    painted = bench.pixels(grids)
    pictures = np.stack([paste(a, b, window, mask) for a, b in zip(bench.renders, painted, strict=True)])
    seams = border_steps(pictures, mask) / border_steps(bench.renders, mask)
    return {"named": bench.named(pictures, bench.concepts), "seam": round(float(seams), 2)}


def border_steps(pictures: Pixels, mask: NDArray[np.float32]) -> float:
    """Mean difference of neighbours on either side of the mask's border."""
    wide, steps = pictures.astype(float), []
    for axis in (0, 1):
        crosses = np.diff(mask, axis=axis) != 0
        if crosses.any():
            steps.append(np.abs(np.diff(wide, axis=axis + 1))[:, crosses].mean())
    return float(np.mean(steps))


def shapes(bench: Bench) -> dict[str, Any]:
    engine, shape = _engine(bench), Shape.of((1536, 1024), bench.filler.config.picture)
    assert shape is not None
    try:
        drawn = [paint(engine.submit, shape, GenerationRequest.of(text, seed=7)) for text in bench.prompts[:24]]
        pictures = np.stack([result_of(each)[0].pixels for each in drawn]).astype(float)
    finally:
        engine.stop()
    steps = np.abs(np.diff(pictures, axis=2)).mean(axis=(0, 1, 3))[bench.px - 1 :: bench.px]  # at token borders
    begins = bench.side - 1  # the last column that the first window wrote: the next one is the second window's
    others = [float(step) for column, step in enumerate(steps) if column != begins]
    return {
        "pictures": len(pictures),
        "where_new_tokens_begin": round(float(steps[begins]), 2),
        "other_token_columns": round(statistics.mean(others), 2),
        "crossfade_column": round(float(steps[shape.columns // 2 - 1]), 2),
    }


def cost(bench: Bench) -> dict[str, float]:
    """Median seconds of one picture at a time, nothing else running on the engine."""
    engine = _engine(bench)
    mask = _mask(bench, hidden(bench.side)["upper half"])
    over = Picture(bench.renders[0], None)

    def edit(candidates: int) -> None:
        wanted = Repaint(picture=over, mask=mask, candidates=candidates)
        drawn, plan = draw_over(engine, wanted, prompt=bench.prompts[0], seed=7, sampling=SamplingParams())
        plan.frame.finished(result_of(drawn)[0].pixels)

    ways: dict[str, Callable[[], object]] = {
        "generation": lambda: engine.submit(GenerationRequest.of(bench.prompts[0], seed=7)).result(),
        "edit, 1 candidate": lambda: edit(1),
        "edit, 4 candidates": lambda: edit(4),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for _ in range(12):  # in turns, so that what else the machine does meets all alike
            for name, draw in ways.items():
                begun = time.perf_counter()
                draw()
                seconds[name].append(time.perf_counter() - begun)
    finally:
        engine.stop()
    return {name: round(statistics.median(found[1:]), 4) for name, found in seconds.items()}


def _engine(bench: Bench) -> Engine:
    """On a runner of its own: an engine closes it."""
    runner = Filler().runner
    engine = Engine(runner, bench.filler._tokenizer, max_waiting_images=256)
    engine.start()
    return engine


PARTS = {"cost": cost, "shapes": shapes, "strength": strength, "holes": holes, "particles": particles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--preset", default="nano2", help="the one that made the nano in the package")
    parser.add_argument("--judge", choices=("nearest", "trained"), default="nearest")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    bench = Bench(Recipe(load_preset(arguments.preset, arguments.work)), arguments.judge, arguments.prompts)
    found = {name: PARTS[name](bench) for name in arguments.only}
    for name in ("cost", "shapes"):
        if name in found:
            print(name, found[name])
    asked = {"benchmark": "pictures_in", "judge": arguments.judge, "prompts": arguments.prompts}
    print(json.dumps({**asked, **found, **machine.describe()}))


if __name__ == "__main__":
    main()
