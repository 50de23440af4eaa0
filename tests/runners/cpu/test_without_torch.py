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

import base64, io
import numpy as np
from PIL import Image
from dalle_server.config import Settings
from dalle_server.dalle_model import load_engine
from dalle_server.web.app import create_app
from dalle_server.web.service import Service

source, target = sys.argv[1:]
paths = {name: f"{target}/{name}" for name in ("cache_dir", "data_dir", "output_dir")}
settings = Settings(model_dir=source, num_slots=2, num_threads=1, img_format="PNG", **paths)
engine = load_engine(settings)
assert engine.info.runner != "torch", engine.info
engine.start()
service = Service(settings, load=lambda: engine)
service.start_loading()
assert service.wait_until_loaded(60)
reply = create_app(settings, service).test_client().post("/dalle", json={"text": "a red apple", "num_images": 2})
assert reply.status_code == 200, reply.text
pictures = [Image.open(io.BytesIO(base64.b64decode(file))) for file in reply.json["generatedImages"]]
np.save(target + "/pixels.npy", np.stack(pictures))
engine.stop()
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
