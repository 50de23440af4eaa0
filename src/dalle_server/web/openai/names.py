"""The names under which clients ask for a model: its own, or any that OpenAI's have in their menus."""

from __future__ import annotations

import re

from dalle_server.web.drawing import hold_place
from dalle_server.web.pool.model import Model
from dalle_server.web.pool.using import find_model, use_model
from dalle_server.web.service import current_service

# Listed by /v1/models. Every other name of these families means the first model as well.
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


def is_alias(name: str) -> bool:
    return _FAMILY.fullmatch(name) is not None


def chosen_model(name: str | None) -> Model:
    """The model of that name, or the first for an alias or nothing; loaded, and kept for the current request.

    Raises NotFound (model_not_found), and what use_model raises.
    """
    current_service().check_started()
    return use_model(find_model(name, is_alias))


def model_with_room(name: str | None) -> Model:
    """`chosen_model`, before a picture is looked at: with a place in its queue. Raises what hold_place raises, too."""
    model = chosen_model(name)
    hold_place(model)
    return model


def base64_only(name: str | None) -> bool:
    """The models of these names never had URLs; the older ones' clients may read either form."""
    return _BASE64_ONLY.match(name or "") is not None
