"""Memory of models: who can never have enough, and what a model that is gone gives back to the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence

from dalle_server.errors import InvalidRequest
from dalle_server.web.pool.model import Model


def release_memory() -> None:
    """Collect what only cycles hold, then hand the allocator's free pages back: glibc keeps them for itself."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc: musl, macOS and Windows give pages back by themselves
        return
    trim(0)


def does_not_fit(model: Model, models: Sequence[Model], budget_bytes: int) -> InvalidRequest:
    """What to tell whoever asks for it, with those of `models` that he could ask for."""
    fitting = [f"{each.name} ({_shown(each.memory_bytes)})" for each in models if 0 < each.memory_bytes <= budget_bytes]
    would = f"; {' or '.join(fitting)} would fit" if fitting else ""
    name = model.name or (model.card.name if model.card else "")
    error = InvalidRequest(
        f"model {name!r} takes about {_shown(model.memory_bytes)} of memory, and this server's memory_budget is "
        f"{_shown(budget_bytes)}{would}",
        param="model",
    )
    error.code = "model_does_not_fit"
    return error


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
