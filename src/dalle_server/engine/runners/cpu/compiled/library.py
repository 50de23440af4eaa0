"""The compiled code (the C files in c/): which build runs here, and the structures shared with Python.

The package's build compiles it (hatch_build.py).
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p, sizeof
from typing import Any

from dalle_server.engine.runners.cpu.compiled import operations
from dalle_server.engine.runners.cpu.compiled.builds import BUILDS, NAMES, library_of, sources_digest
from dalle_server.errors import first_line

logger = logging.getLogger(__name__)


class TiledProduct(Structure):
    _fields_ = (("weights", c_void_p), ("tiles", c_int32), ("groups", c_int32))


class ProductInputs(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("floats", "values", "scales", "sums")),
        ("rows", c_int32),
        ("is_exact", c_int32),
    )


class NormPointers(Structure):
    _fields_ = (("scale", c_void_p), ("bias", c_void_p))


class LayerPointers(Structure):
    _fields_ = (
        *((name, TiledProduct) for name in ("qkv", "out", "cross_q", "cross_out", "gate_up", "down")),
        *((name, NormPointers) for name in ("pre_self", "self", "pre_cross", "cross", "glu", "gated")),
        ("cache", c_void_p),
    )


class StackPointers(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("width", "ffn_width", "num_layers", "threads", "heads", "kv_heads")),
        *((name, c_int32) for name in ("is_swish", "cell")),
        ("rms_eps", c_float),
        ("layers", POINTER(LayerPointers)),
        ("embedding", NormPointers),
        ("final", NormPointers),
        *((name, c_void_p) for name in ("turns", "x", "mixed", "y")),
        ("inputs", ProductInputs),
        ("phases", c_void_p),
    )


class DecoderPointers(Structure):
    _fields_ = (
        ("stack", StackPointers),
        ("num_positions", c_int32),
        ("is_prefixed", c_int32),
        ("lm_head", TiledProduct),
        ("head_proj", TiledProduct),
        *((name, c_void_p) for name in ("head_bias", "texts", "text_lengths")),
    )


class StepArguments(Structure):
    _fields_ = (
        ("decoder", POINTER(DecoderPointers)),
        *((name, c_int32) for name in ("images", "guided")),
        *((name, c_void_p) for name in ("slots", "positions", "guidance", "embeddings", "logits")),
    )


class EncoderPointers(Structure):
    _fields_ = (
        ("stack", StackPointers),
        *((name, c_int32) for name in ("text_length", "is_prefix", "kept_heads", "kept_size", "cross_layers")),
        ("cross_kv", POINTER(TiledProduct)),
    )


class TextArguments(Structure):
    _fields_ = (
        ("encoder", POINTER(EncoderPointers)),
        *((name, c_int32) for name in ("length", "first", "rows")),
        *((name, c_void_p) for name in ("embeddings", "states", "kept")),
    )


STRUCTURES = (LayerPointers, DecoderPointers, StepArguments, EncoderPointers, TextArguments, *operations.STRUCTURES)


@functools.cache
def load_library(build: str = "auto") -> Any:
    """The named build, or the best one that this CPU runs; its `build` says which.

    Raises OSError, with the reason and the remedy, where there is none, or all that there are cannot be read or are of
    other sources than the package's. One of those is passed over, with a warning, where another runs.
    """
    existing = [name for name in (NAMES if build == "auto" else (build,)) if library_of(name).exists()]
    if not existing:
        raise OSError(_why_none(build))
    faults = []
    for name in existing:
        try:
            library = _opened(name)
        except OSError as error:
            faults.append(str(error))
            continue
        if library is not None:
            for fault in faults:
                logger.warning("%s; build %s runs instead", fault, name)
            return library
    if faults:
        raise OSError("; ".join(faults))
    raise OSError(f"this CPU has not the instructions of {', '.join(existing)}, the compiled code's builds here")


def _why_none(build: str) -> str:
    """Why no library is there, and what to do. `build` as for `load_library`."""
    machine = platform.machine().lower()
    processor = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if processor not in BUILDS:
        return f"the compiled code has no build for this processor ({machine})"
    if build != "auto" and build not in BUILDS[processor]:
        return f"this installation has no build {build} of the compiled code for {processor}; use --cpu_build auto"
    which = "compiled code" if build == "auto" else f"build {build} of the compiled code"
    return f"this installation has no {which}; install the package again, without DALLE_BUILD=0"


def _opened(name: str) -> Any | None:
    """The build's library; None where this CPU has not its instructions. Raises OSError for a file that is not one."""
    try:
        library = ctypes.CDLL(str(library_of(name)))
        is_supported = library.is_supported()
    except (OSError, AttributeError) as error:
        remedy = "install the package again (python hatch_build.py in a checkout)"
        raise OSError(f"{library_of(name).name} cannot be read ({first_line(error)}): {remedy}") from error
    if not is_supported:
        return None
    _check(library, name)
    library.build = name  # type: ignore[attr-defined]
    return _with_types(library)


def _check(library: Any, name: str) -> None:
    library.sources.restype = c_char_p
    if library.sources().decode() != sources_digest():
        remedy = "build it again (python hatch_build.py in a checkout) or install the package again"
        raise OSError(f"{library_of(name).name} was not made from this package's sources; {remedy}")
    if library.layout() != sum(map(sizeof, STRUCTURES)):
        raise OSError(f"{library_of(name).name} and library.py describe their structures differently; mend library.py")


def _with_types(library: Any) -> Any:
    library.decode_step.argtypes, library.decode_step.restype = (POINTER(StepArguments),), None
    library.encode_text.argtypes, library.encode_text.restype = (POINTER(TextArguments),), None
    library.run_operations.argtypes, library.run_operations.restype = (POINTER(operations.ProgramPointers),), None
    library.convolution_chunks.argtypes = (POINTER(operations.Convolve),)
    library.phase_bytes.argtypes = (c_int, c_int)
    library.cache_bytes.argtypes, library.cache_bytes.restype = (c_int, c_int, c_int, c_int), c_int64
    library.draw.argtypes = (c_void_p, c_void_p, c_int, c_uint64, c_uint32, c_uint32)
    return library


def why_not(build: str = "auto") -> str | None:
    """Why the compiled code cannot run here; None if it can."""
    try:
        load_library(build)
    except OSError as error:
        return str(error)
    return None
