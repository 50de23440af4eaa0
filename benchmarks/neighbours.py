"""What a picture costs in bad company: beside a second server, on one core, under a quota of one CPU.

True shape of Mini, random weights, `compiled int8`. Counted is each process's own processor time while it draws, which
waiting would raise if threads spun; and the time by the clock. Targets: under a quota of one CPU a picture costs at
most 1.3 times the processor time that it costs alone; two servers at once take hardly longer than in turns.

    python -m benchmarks.neighbours [--steps 256] [--rounds 3]

The quota needs a control group that may be written (root on Linux). Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.checkpoints.prepared import random_model
from benchmarks.measuring import machine

GROUP_V1, GROUP_V2 = Path("/sys/fs/cgroup/cpu/dalle-neighbours"), Path("/sys/fs/cgroup/dalle-neighbours")
PERIOD_US = 100_000

Times = dict[str, float]  # "clock" and "processor", in seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=256, help="of each picture")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[list[Times]]] = {}
    with quota_of_one() as enter_quota:
        for _ in range(arguments.rounds):  # in turns, so that a busy machine disturbs all alike
            found.setdefault("alone", []).append(draw(arguments.steps, 1))
            found.setdefault("two at once", []).append(draw(arguments.steps, 2))
            if hasattr(os, "sched_setaffinity"):
                found.setdefault("one core", []).append(draw(arguments.steps, 1, on_one_core))
            if enter_quota:
                found.setdefault("quota of one CPU", []).append(draw(arguments.steps, 1, enter_quota))
    results = {name: summary(rounds) for name, rounds in found.items()}
    for name, figures in results.items():
        for kind in ("clock", "processor"):
            figures[f"{kind}_ratio"] = round(figures[f"{kind}_s"] / results["alone"][f"{kind}_s"], 2)
        print(f"{name:18}" + "".join(f"  {key} {value:6.2f}" for key, value in figures.items()), flush=True)
    answer = {"benchmark": "neighbours", "model": "mini", "steps": arguments.steps, "results": results}
    print(json.dumps({**answer, **machine.describe()}))


def draw(steps: int, servers: int, prepare: Callable[[], None] | None = None) -> list[Times]:
    """So many processes at once, each drawing one picture; `prepare` runs in each before it starts."""
    how = ("compiled int8", str(random_model("mini")), "1", str(steps), "wall")
    command = [sys.executable, "-m", "benchmarks.measuring.contestants", *how]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=prepare) for _ in range(servers)]
    answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return [
        {"clock": answer["text_s"] + sum(answer["steps_s"]) + answer["pixels_s"], "processor": answer["processor_s"]}
        for answer in answers
    ]


def summary(rounds: list[list[Times]]) -> dict[str, float]:
    """The slowest of those at once by the clock, their mean by processor time; medians of the rounds."""
    clock = statistics.median(max(times["clock"] for times in found) for found in rounds)
    processor = statistics.median(statistics.mean(times["processor"] for times in found) for found in rounds)
    return {"clock_s": round(clock, 2), "processor_s": round(processor, 2)}


def on_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@contextlib.contextmanager
def quota_of_one() -> Iterator[Callable[[], None] | None]:
    """What a process calls to put itself under a quota of one CPU; None where that is not allowed."""
    is_v2 = (GROUP_V2.parent / "cgroup.controllers").exists()
    group = GROUP_V2 if is_v2 else GROUP_V1
    try:
        group.mkdir(exist_ok=True)
        if is_v2:
            (group / "cpu.max").write_text(f"{PERIOD_US} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US))
    except OSError as error:
        print(f"no quota: {error}", flush=True)
        yield None
        return
    try:
        yield lambda: _enter(group)
    finally:
        group.rmdir()


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


if __name__ == "__main__":
    main()
