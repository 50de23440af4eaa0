"""The names under which clients ask for the model: its own, or any that OpenAI's have in their menus."""

from __future__ import annotations

import re

from dalle_server.errors import NotFound
from dalle_server.web.service import Engine

# Listed by /v1/models. Every other name of these families means the loaded model as well.
ALIASES = (
    "dall-e-2",
    "dall-e-3",
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "gpt-image-2.5-sunburst",
    "gpt-image-2.5-flare",
    "gpt-image-2.6-sunburst",
    "gpt-image-2.6-flare",
    "chatgpt-image-latest",
)
_FAMILY = re.compile(r"(gpt-image|chatgpt-image|dall-e)-[a-z0-9.-]{1,60}")
_BASE64_ONLY = re.compile(r"(chat)?gpt-image-")


def resolve_model(name: str | None, engine: Engine) -> str:
    """The loaded model's name for its own name, an alias or nothing. Raises NotFound (model_not_found)."""
    if not name or name.lower() == engine.config.name.lower() or _FAMILY.fullmatch(name):
        return engine.config.name
    error = NotFound(
        f"model {name[:60]!r} is not loaded; this server runs {engine.config.name!r} "
        f"(also as {', '.join(ALIASES)}, and other names that begin so)",
        param="model",
    )
    error.code = "model_not_found"
    raise error


def base64_only(name: str | None) -> bool:
    """The models of these names never had URLs; the older ones' clients may read either form."""
    return _BASE64_ONLY.match(name or "") is not None
