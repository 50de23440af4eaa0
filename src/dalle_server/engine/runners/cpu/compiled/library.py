"""The compiled decode step (the C files beside this one) and the structures that it shares with Python.

The package's build compiles it (hatch_build.py); it exists on x86-64 only and runs on CPUs with AVX-512 VNNI.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_int, c_int32, c_uint32, c_uint64, c_void_p, sizeof
from pathlib import Path
from typing import Any, ClassVar

LIBRARY = Path(__file__).with_name("decode_step.so")


class TiledProduct(Structure):
    _fields_ = (("weights", c_void_p), ("tiles", c_int32), ("groups", c_int32))


class ProductInputs(Structure):
    _fields_ = (*((name, c_void_p) for name in ("floats", "values", "scales", "offsets")), ("is_exact", c_int32))


class LayerPointers(Structure):
    # The compiled step's name → that of families/dalle_bart.py, and the checkpoint's, behind the layer's prefix.
    PRODUCTS: ClassVar = {
        "qkv": "self_attn.qkv",
        "out": "self_attn.out",
        "cross_q": "encoder_attn.q",
        "cross_out": "encoder_attn.out",
        "gate_up": "glu.gate_up",
        "down": "glu.down",
    }
    VECTORS: ClassVar = {
        "pre_self_bias": "pre_self_attn_layer_norm.bias",
        "self_scale": "self_attn_layer_norm.weight",
        "self_bias": "self_attn_layer_norm.bias",
        "pre_cross_bias": "pre_encoder_attn_layer_norm.bias",
        "cross_scale": "encoder_attn_layer_norm.weight",
        "cross_bias": "encoder_attn_layer_norm.bias",
        "glu_bias": "glu.ln0.bias",
        "gated_bias": "glu.ln1.bias",
    }
    CACHES = ("keys", "values", "cross_keys", "cross_values")
    _fields_ = (*((name, TiledProduct) for name in PRODUCTS), *((name, c_void_p) for name in (*VECTORS, *CACHES)))


class DecoderPointers(Structure):
    SIZES = ("width", "ffn_width", "heads", "num_layers", "image_length", "text_length", "threads")
    _fields_ = (
        *((name, c_int32) for name in SIZES),
        ("layers", POINTER(LayerPointers)),
        *((name, c_void_p) for name in ("embedding_scale", "embedding_bias", "final_bias")),
        ("lm_head", TiledProduct),
        *((name, c_void_p) for name in ("text_lengths", "x", "mixed", "y")),
        ("inputs", ProductInputs),
        ("phases", c_void_p),
    )


class StepArguments(Structure):
    _fields_ = (
        ("images", c_int32),
        *((name, c_void_p) for name in ("slots", "positions", "guidance", "embeddings", "logits")),
    )


@functools.cache
def load_library() -> Any:
    """The library. Raises OSError, with the reason, where there is none or this CPU cannot run it."""
    if not LIBRARY.exists():
        raise OSError("this installation has no compiled decode step (it is built for x86-64 only)")
    library = ctypes.CDLL(str(LIBRARY))
    if not library.is_supported():
        raise OSError("this CPU has no AVX-512 VNNI instructions")
    if library.layout() != sizeof(LayerPointers) + sizeof(DecoderPointers) + sizeof(StepArguments):
        raise OSError("the compiled decode step is of another version than the package; install the package again")
    library.decode_step.argtypes = (POINTER(DecoderPointers), POINTER(StepArguments))
    library.decode_step.restype = None
    library.begin_step.argtypes = (POINTER(DecoderPointers),)
    library.begin_step.restype = None
    library.phase_bytes.argtypes = (c_int,)
    library.draw.argtypes = (c_void_p, c_void_p, c_int, c_uint64, c_uint32, c_uint32)
    return library


def why_not() -> str | None:
    """Why the compiled step cannot run here; None if it can."""
    try:
        load_library()
    except OSError as error:
        return str(error)
    return None
