"""python -m training --preset PRESET [STAGE…]: run the recipe, or some stages. Each resumes where it stopped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.run import main as torchrun

from training.judging.compare import compare
from training.judging.evaluate import Asking
from training.judging.formats import compare_formats
from training.learning import parallel
from training.preset import load_preset
from training.recipe import EXTRA_STAGES, LEARNING_STAGES, PARALLEL_STAGES, STAGES, Recipe

SCORING_STAGES = ("evaluate", "compare", "formats")
ALL_STAGES = {**STAGES, **EXTRA_STAGES, "formats": compare_formats, "compare": compare}


def main() -> None:
    arguments = parsed(sys.argv[1:])
    preset = load_preset(arguments.preset, arguments.work)
    if preset.processes > 1 and not parallel.is_started():
        torchrun(["--nproc-per-node", str(preset.processes), "-m", "training", *sys.argv[1:]])
        return
    parallel.start()
    if preset.base is not None and not arguments.stages:
        run(Recipe(preset.base), LEARNING_STAGES)
    run(Recipe(preset, arguments.asking), arguments.stages or list(STAGES))


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--preset", default="cpu", help="a name in training/presets, or a path to a .toml file")
    parser.add_argument("--work", type=Path, help="where runs are kept and resumed; default: training/work")
    parser.add_argument("stages", nargs="*", help=f"default: all, in order: {' '.join(STAGES)}")
    scoring = parser.add_argument_group(f"only of {', '.join(SCORING_STAGES)}")
    scoring.add_argument("--seeds", type=_positive, default=3, help="pictures of each prompt; default: 3")
    scoring.add_argument("--every", type=_positive, default=1, metavar="N", help="ask only every Nth prompt")
    scoring.add_argument("--things", choices=("all", "everyday"), help="default: all; of compare everyday")
    arguments = parser.parse_args(argv)
    for stage in arguments.stages:
        if stage not in ALL_STAGES:
            parser.error(f"no stage {stage!r}; there are {' '.join(ALL_STAGES)}")
    arguments.asking = Asking(arguments.seeds, arguments.every, arguments.things)
    others = set(arguments.stages or STAGES) - set(SCORING_STAGES)
    if others and arguments.asking != Asking():
        parser.error(f"--seeds, --every and --things are only of {', '.join(SCORING_STAGES)}, not of {min(others)}")
    return arguments


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def run(recipe: Recipe, stages: Sequence[str]) -> None:
    for stage in stages:
        if stage in PARALLEL_STAGES or parallel.rank() == 0:
            with parallel.threads(of_many=stage in PARALLEL_STAGES):
                ALL_STAGES[stage](recipe)
        parallel.barrier()


if __name__ == "__main__":
    main()
