"""From a checkpoint's memory-mapped arrays to torch modules on a device, one tensor at a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.models.vqgan import VQGAN

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_transformer(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """A `StepModel`. Weights already of this dtype, on the CPU, are used where the file is mapped: no copy."""
    with torch.device("meta"):
        model = checkpoint.config.transformer.torch_module()
    _assign(model, checkpoint.transformer, device, dtype)
    return model


def pixel_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """bf16 has fp32's range, which the VQGAN's unnormalised activations need, unlike fp16; fp32 where there is none."""
    if dtype == torch.float32:
        return torch.float32
    try:
        torch.zeros(1, device=device, dtype=torch.bfloat16)
    except (TypeError, RuntimeError):  # an older macOS: MPS there has no bf16
        return torch.float32
    return torch.bfloat16


def load_detokenizer(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> VQGAN:
    """The half of the VQGAN that serving needs, with convolution weights in channels-last order.

    The last layer is fp32 always: bf16 has one step a level between ½ and 1, and truncating its pixels makes a picture
    brighter than it is.
    """
    with torch.device("meta"):
        model = VQGAN(checkpoint.config.vqgan, with_encoder=False)
    needed = {name: checkpoint.vqgan[name] for name in model.state_dict()}
    _assign(model, needed, device, dtype)
    last = model.decoder.conv_out
    last.weight, last.bias = (
        nn.Parameter(_tensor(needed[f"decoder.conv_out.{part}"]).to(device, torch.float32), requires_grad=False)
        for part in ("weight", "bias")
    )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def load_tokenizer(checkpoint: Checkpoint, device: torch.device) -> VQGAN:
    """The whole VQGAN in fp32: an id that a rounding changed would be a place redrawn."""
    with torch.device("meta"):
        model = VQGAN(checkpoint.config.vqgan)
    _assign(model, checkpoint.vqgan, device, torch.float32)
    return model


def _assign(model: nn.Module, arrays: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    state = {name: _tensor(array).to(device, dtype) for name, array in arrays.items()}
    model.load_state_dict(state, strict=True, assign=True)
    model.eval().requires_grad_(False)


def _tensor(array: Any) -> Tensor:
    with warnings.catch_warnings():
        # Mapped files are read-only, which torch cannot express. Nothing here writes to weights.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        if array.dtype.name == "bfloat16":  # ml_dtypes' type, unknown to torch: same bits
            return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
        return torch.from_numpy(array)
