"""Reading the golden checkpoints by the shortest way: an independent check of the real readers in checkpoints/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from dalle_server.models.config import TransformerConfig, VQGANConfig
from dalle_server.models.dalle_bart import DalleBart
from dalle_server.models.vqgan import VQGAN

PARITY = Path(__file__).parents[1] / "data" / "parity"

_LEAVES = {
    "FlaxBartAttention_0": "self_attn",
    "FlaxBartAttention_1": "encoder_attn",
    "GLU_0.LayerNorm_0": "glu.ln0",
    "GLU_0.LayerNorm_1": "glu.ln1",
    "GLU_0.Dense_": "glu.fc",
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "model.": "",
}
_NORMS = {
    "encoder": ["pre_self_attn_layer_norm", "self_attn_layer_norm"],
    "decoder": [
        "pre_self_attn_layer_norm",
        "self_attn_layer_norm",
        "pre_encoder_attn_layer_norm",
        "encoder_attn_layer_norm",
    ],
}


def _ndarray(code: int, data: bytes) -> Any:
    assert code == 1, "flax extension type 1 is an array"
    shape, dtype, raw = msgpack.unpackb(data)
    return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def read_flax(directory: Path) -> dict[str, np.ndarray]:
    raw = (directory / "flax_model.msgpack").read_bytes()
    return _flatten(msgpack.unpackb(raw, ext_hook=_ndarray, strict_map_key=False))


def _native_name(name: str) -> str:
    for old, new in _LEAVES.items():
        if old == "embedding":
            name = name.removesuffix(".embedding") + ".weight" if name.endswith(".embedding") else name
        else:
            name = name.replace(old, new)
    part = name.split(".")[0]
    for index, norm in enumerate(_NORMS.get(part, [])):
        name = name.replace(f".LayerNorm_{index}.", f".{norm}.")
    return name


def load_bart(name: str, dtype: torch.dtype = torch.float32) -> DalleBart:
    directory = PARITY / name
    state: dict[str, Tensor] = {}
    for path, array in read_flax(directory).items():
        tensor = torch.tensor(array)
        if path.endswith("kernel"):
            tensor = tensor.mT
        head, stacked, leaf = path.partition("Layers.")
        if stacked:
            prefix = head.removesuffix("FlaxBartEncoder").removesuffix("FlaxBartDecoder")
            state |= {_native_name(f"{prefix}{i}.{leaf}"): row for i, row in enumerate(tensor)}
        else:
            path = path.replace("FlaxBartEncoderLayer_", "").replace("FlaxBartDecoderLayer_", "")
            state[_native_name(path)] = tensor
    config = TransformerConfig.from_dict(json.loads((directory / "config.json").read_text()))
    model = DalleBart(config)
    model.load_state_dict(state, strict=True)
    return model.to(dtype).eval().requires_grad_(False)


def load_min_dalle(name: str) -> DalleBart:
    directory = PARITY / name
    dims = json.loads((directory / "dims.json").read_text())
    parts = {part: torch.load(directory / f"{part}.pt", weights_only=True) for part in ("encoder", "decoder")}
    state = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    state["lm_head.weight"] = state.pop("decoder.lm_head.weight")
    model = DalleBart(TransformerConfig.from_dict(dims))
    model.load_state_dict(state, strict=True)
    return model.float().eval().requires_grad_(False)


def load_vqgan(name: str = "tiny-vqgan") -> VQGAN:
    directory = PARITY / name
    model = VQGAN(VQGANConfig.from_dict(json.loads((directory / "config.json").read_text())))
    state = {}
    for path, array in read_flax(directory).items():
        for kind in ("down", "up", "block", "attn"):
            path = path.replace(f"{kind}_", f"{kind}.") if not path.startswith("x") else path
        for fixed in ("mid.block", "mid.attn"):
            path = path.replace(f"{fixed}.", f"{fixed}_")
        path = path.replace("kernel", "weight").replace("scale", "weight")
        path = path.removesuffix(".embedding") + ".weight" if path.endswith(".embedding") else path
        tensor = torch.tensor(array)
        state[path] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    model.load_state_dict(state, strict=True)
    return model.eval().requires_grad_(False)


def goldens(path: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / path) as file:
        return {name: file[name] for name in file.files}
