"""Graphs to programs on the CPU: the settings that were measured, in one place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import openvino as ov

from dalle_server.errors import ConfigError

VERSION = ov.__version__.partition("-")[0]
# dtype → (precision of activations, precision of the caches)
PRECISIONS = {
    "int8": (ov.Type.f32, ov.Type.f16),
    "bf16": (ov.Type.bf16, ov.Type.bf16),
    "fp32": (ov.Type.f32, ov.Type.f32),
}


# OpenVINO and oneDNN tell a lack of memory in words only.
_NO_MEMORY = re.compile(r"bad_alloc|out[ _]of[ _]memory|(failed|unable|cannot|could not)[^\n]*allocat", re.IGNORECASE)


@contextmanager
def memory_errors() -> Iterator[None]:
    """A context or a decorator: a lack of memory is Python's MemoryError, which costs less than a fault."""
    try:
        yield
    except RuntimeError as error:
        if _NO_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        raise


class Compiler:
    """Compiles for one CPU with one thread setting. `num_threads` None: the plugin's own count, physical cores."""

    def __init__(self, num_threads: int | None = None):
        self._core = ov.Core()
        self._settings: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        # Two servers that both bind their threads to the first cores would share those and leave the others idle.
        self._settings["ENABLE_CPU_PINNING"] = False
        if num_threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = num_threads
        self.device_name = str(self._core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
        self.has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    @memory_errors()
    def compile(self, model: ov.Model, precision: ov.Type, cache: ov.Type | None = None) -> ov.CompiledModel:
        """`precision` is that of activations, `cache` that of a paged cache.

        Raises ConfigError for bf16 on a CPU without it, MemoryError.
        """
        if precision == ov.Type.bf16 and not self.has_bf16:
            raise ConfigError(f"dtype bf16: {self.device_name} has no bf16 instructions; use --dtype int8 or fp32")
        settings = {**self._settings, "INFERENCE_PRECISION_HINT": precision}
        if cache is not None:
            settings["KV_CACHE_PRECISION"] = cache
        return self._core.compile_model(model, "CPU", settings)
