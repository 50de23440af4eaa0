"""One start of the engine alone, for start_up.py: DIRECTORY DTYPE CACHE_DIR, and the time.time() at which the process
was asked for.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(directory: str, dtype: str, cache_dir: str, asked_at: str) -> None:
    # Imported here, so that their time is counted.
    from benchmarks.measuring.contestants import PeakMemory

    with PeakMemory() as memory:
        from dalle_server.checkpoints import open_checkpoint
        from dalle_server.engine.engine import Engine
        from dalle_server.engine.runners.choice import RunnerSettings
        from dalle_server.engine.runners.select import choose_runner
        from dalle_server.request import GenerationRequest
        from dalle_server.text import TextTokenizer

        checkpoint = open_checkpoint(Path(directory))
        runner = choose_runner(checkpoint, RunnerSettings(dtype=dtype, device="cpu", cache_dir=Path(cache_dir)))
        engine = Engine(runner, TextTokenizer.from_checkpoint(checkpoint))
        ready_s = time.time() - float(asked_at)
        handle = engine.submit(GenerationRequest.of("a red apple", seed=1))
        while engine.step():
            pass
        handle.result(timeout_s=0)
    figures = {"ready_s": ready_s, "first_picture_s": time.time() - float(asked_at), "peak_gb": memory.peak_bytes / 1e9}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
