"""Self-hosted text-to-image: DALL·E Mini and Mega behind an HTTP API of your own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dalle_server import errors as errors
    from dalle_server.dalle_model import DalleModel as DalleModel
    from dalle_server.request import SamplingParams as SamplingParams
    from dalle_server.variants import ModelSize as ModelSize

_HOMES = {
    "DalleModel": "dalle_server.dalle_model",
    "ModelSize": "dalle_server.variants",
    "SamplingParams": "dalle_server.request",
}

__all__ = ["DalleModel", "ModelSize", "SamplingParams", "__version__", "errors"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import dalle_server` itself costs nothing."""
    if name == "errors":
        return importlib.import_module("dalle_server.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
