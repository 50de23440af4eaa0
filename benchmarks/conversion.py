"""What converting and opening a published checkpoint costs: seconds and peak memory, at true size.

    python -m benchmarks.conversion [mini] [DIR]         writes DIR/flax (random weights), converts it, opens it
    python -m benchmarks.conversion mega DIR --dtype float32

DIR (benchmarks/work/conversion) needs room for twice the weights, and what is written stays there. Convert and open
run in processes of their own: peak memory is theirs alone ("private" leaves out mapped file pages, which the system
can drop). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.checkpoints.dalle_bart import write_random_flax
from benchmarks.checkpoints.prepared import WORK
from benchmarks.checkpoints.sizes import SIZES
from benchmarks.measuring.machine import describe

CONVERT = "from dalle_server.checkpoints import convert; convert({source!r}, {target!r}, overwrite=True)"
OPEN = "from dalle_server.checkpoints import open_checkpoint; open_checkpoint({target!r})"
IMPORT = "import dalle_server.checkpoints"
_POLL_S = 0.02


def measure(program: str) -> dict[str, float]:
    """Seconds and MiB of a Python program in a fresh process. Linux only: reads /proc."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program])
    status = Path(f"/proc/{process.pid}/status")
    private_kb = resident_kb = 0
    while process.poll() is None:
        fields = dict(
            line.split(":", 1) for line in status.read_text().splitlines() if line.startswith(("Rss", "VmHWM"))
        )
        private_kb = max(private_kb, int(fields.get("RssAnon", "0 kB").split()[0]))
        resident_kb = max(resident_kb, int(fields.get("VmHWM", "0 kB").split()[0]))
        time.sleep(_POLL_S)
    if process.returncode:
        raise SystemExit(f"the measured program ended with status {process.returncode}")
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 1),
        "peak_private_mib": round(private_kb / 1024),
        "peak_resident_mib": round(resident_kb / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="?", choices=SIZES, default="mini")
    parser.add_argument("directory", nargs="?", type=Path, default=WORK / "conversion")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    arguments = parser.parse_args()
    source, target = arguments.directory / "flax", arguments.directory / "native"
    write_random_flax(source, SIZES[arguments.size], arguments.dtype)
    paths = {"source": str(source), "target": str(target)}
    steps = {"import": IMPORT, "convert": CONVERT, "open_first": OPEN, "open_again": OPEN}
    result = {name: measure(program.format(**paths)) for name, program in steps.items()}
    weights_mib = sum(path.stat().st_size for path in target.iterdir()) >> 20
    print(
        json.dumps(
            {
                "benchmark": "conversion",
                "model": arguments.size,
                "dtype": arguments.dtype,
                "weights_mib": weights_mib,
                **result,
                **describe(),
            }
        )
    )


if __name__ == "__main__":
    main()
