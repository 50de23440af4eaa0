"""Memory of a model that is gone, given back to the system."""

from __future__ import annotations

import ctypes
import gc


def release_memory() -> None:
    """Collect what only cycles hold, then hand the allocator's free pages back: glibc keeps them for itself."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc: musl, macOS and Windows give pages back by themselves
        return
    trim(0)
