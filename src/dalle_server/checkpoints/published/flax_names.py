"""Native tensor name → place in a Flax tree. Pure.

dalle-mini names modules by class and position (`LayerNorm_1`), vqgan-jax by level (`up_4/block_0`).
"""

from __future__ import annotations

import re

from dalle_server.checkpoints.tensor_file import Array

_MODULES = {
    "pre_self_attn_layer_norm": "LayerNorm_0",
    "self_attn": "FlaxBartAttention_0",
    "self_attn_layer_norm": "LayerNorm_1",
    "pre_encoder_attn_layer_norm": "LayerNorm_2",
    "encoder_attn": "FlaxBartAttention_1",
    "encoder_attn_layer_norm": "LayerNorm_3",
    "glu": "GLU_0",
    "ln0": "LayerNorm_0",
    "ln1": "LayerNorm_1",
    "fc0": "Dense_0",
    "fc1": "Dense_1",
    "fc2": "Dense_2",
}
_STACKED = {"encoder": "FlaxBartEncoderLayers", "decoder": "FlaxBartDecoderLayers"}
_SINGLE = {"encoder": "FlaxBartEncoderLayer", "decoder": "FlaxBartDecoderLayer"}


def stacked_prefix(half: str) -> str:
    """Where a half ("encoder" or "decoder") keeps its layers when they are stacked (`use_scan`)."""
    return f"model/{half}/layers/{_STACKED[half]}/"


def transformer_place(name: str, stacked: bool) -> tuple[str, int | None]:
    """Path of a DalleBart tensor, and the index into the layer axis when its layers are stacked."""
    if name == "lm_head.weight":
        return "lm_head/kernel", None
    half, *modules, leaf = name.split(".")
    if modules[0] != "layers":
        return f"model/{half}/{modules[0]}/{_leaf(modules[0], leaf)}", None
    layer = int(modules[1])
    inner = "/".join(_MODULES.get(module, module) for module in modules[2:])
    place = f"{inner}/{_leaf(modules[-1], leaf)}"
    if stacked:
        return stacked_prefix(half) + place, layer
    return f"model/{half}/layers/{_SINGLE[half]}_{layer}/{place}", None


def vqgan_place(name: str) -> tuple[str, None]:
    """Path of a VQGAN tensor."""
    module, leaf = name.rsplit(".", 1)
    path = re.sub(r"\.(up|down|block|attn)\.(\d+)", r".\1_\2", module).replace(".", "/")
    return f"{path}/{_leaf(path.rsplit('/', 1)[-1], leaf)}", None


def to_native(place: str, array: Array) -> Array:
    """Flax kernels are (in, out) and (height, width, in, out); ours (out, in) and (out, in, height, width)."""
    if not place.endswith("/kernel"):
        return array
    return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)


def to_native_shape(place: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`to_native(place, array).shape`, from the array's shape alone."""
    if not place.endswith("/kernel") or len(shape) not in (2, 4):
        return shape
    return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], shape[0], shape[1])


def _leaf(module: str, leaf: str) -> str:
    if leaf == "bias":
        return "bias"
    if module.startswith("embed"):
        return "embedding"
    return "scale" if "norm" in module or module in ("ln0", "ln1") else "kernel"
