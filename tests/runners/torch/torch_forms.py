"""The torch runner's forms under test; the last needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

FORMS = [
    "host",  # eager, sampled by numpy
    "device",  # fused layers and sampling in torch, on CPU tensors
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


def options(form: str) -> dict[str, Any]:
    """TorchRunner's arguments for a form."""
    return {"device": "cuda" if form == "cuda" else "cpu", "on_device": form != "host"}
