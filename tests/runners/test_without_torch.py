"""Serving on a CPU needs no torch: checked in a process where importing it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import dalle_server
from tests.parity.loading import PARITY

# From a published checkpoint's files to pixels, through everything that serving uses.
PROGRAM = """
import sys
sys.modules["torch"] = None  # from here on `import torch` raises ImportError

from dalle_server.checkpoints import convert, open_checkpoint
from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.select import choose_runner
from dalle_server.generation import GenerationRequest
from dalle_server.text import TextTokenizer
import dalle_server.web.app  # what serves it
import numpy as np

source, target = sys.argv[1:]
checkpoint = open_checkpoint(convert(source, target + "/native"))
runner = choose_runner(checkpoint, num_slots=2, num_threads=1)
assert runner.info.runner == "openvino", runner.info
engine = Engine(runner, TextTokenizer.from_checkpoint(checkpoint))
handle = engine.submit(GenerationRequest.of("a red apple", num_images=2, seed=5))
while engine.step():
    pass
pictures = handle.result(timeout_s=0)
np.save(target + "/pixels.npy", np.stack([picture.pixels for picture in pictures]))
assert not any(name.startswith("torch.") for name in sys.modules)
"""


def test_a_picture_without_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(PARITY / "tiny-mini"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(dalle_server.__file__).parents[1])}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    pixels = np.load(tmp_path / "pixels.npy")
    assert pixels.shape == (2, 64, 64, 3)
    assert (pixels[0] != pixels[1]).any()
