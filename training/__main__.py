"""python -m training --preset PRESET [STAGE…]: run the recipe, or some stages. Each resumes where it stopped."""

from __future__ import annotations

import argparse
import sys

from torch.distributed.run import main as torchrun

from training import parallel
from training.formats import compare_formats
from training.preset import load_preset
from training.recipe import EXTRA_STAGES, PARALLEL_STAGES, STAGES, Recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--preset", default="cpu", help="a name in training/presets, or a path to a .toml file")
    parser.add_argument("stages", nargs="*", help=f"default: all, in order: {' '.join(STAGES)}")
    arguments = parser.parse_args()
    stages = {**STAGES, **EXTRA_STAGES, "formats": compare_formats}
    for stage in arguments.stages:
        if stage not in stages:
            parser.error(f"no stage {stage!r}; there are {' '.join(stages)}")
    preset = load_preset(arguments.preset)
    if preset.processes > 1 and not parallel.is_started():
        torchrun(["--nproc-per-node", str(preset.processes), "-m", "training", *sys.argv[1:]])
        return
    parallel.start()
    recipe = Recipe(preset)
    for stage in arguments.stages or STAGES:
        if stage in PARALLEL_STAGES or parallel.rank() == 0:
            with parallel.threads(of_many=stage in PARALLEL_STAGES):
                stages[stage](recipe)
        parallel.barrier()


if __name__ == "__main__":
    main()
