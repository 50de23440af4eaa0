"""What clients of the AUTOMATIC1111 API ask for on start and this server has none of: empty lists, in its words."""

from __future__ import annotations

import os
from typing import Any

from flask import Blueprint, Response, jsonify

from dalle_server.web.automatic1111.schemas import Empty, EmptyList, Nothing
from dalle_server.web.routing import for_keys

blueprint = Blueprint("automatic1111_empty", __name__, url_prefix="/sdapi/v1")

# Of GET routes: what has no members here.
NOTHING: dict[str, Any] = {
    "latent-upscale-modes": [],  # there are no latents to enlarge
    "loras": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "script-info": [],
    "extensions": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {},
}
# Of POST routes: nothing is to be read again, and models are unloaded when others need the room.
DONE: dict[str, Any] = {
    "refresh-checkpoints": None,
    "refresh-vae": None,
    "refresh-loras": None,
    "refresh-embeddings": None,
    "unload-checkpoint": {},
    "reload-checkpoint": {},
}


def _add(name: str, method: str, answer: Any, summary: str) -> None:
    reply = EmptyList if isinstance(answer, list) else Empty if isinstance(answer, dict) else Nothing

    @for_keys(summary, reply=reply)
    def view() -> Response:
        return jsonify(answer)

    blueprint.add_url_rule(f"/{name}", endpoint=name, view_func=view, methods=[method])


for _name, _answer in NOTHING.items():
    _add(_name, "GET", _answer, "Always empty: this belongs to diffusion models, or to the web UI")
for _name, _answer in DONE.items():
    _add(_name, "POST", _answer, "Does nothing: models are loaded and unloaded as they are needed")


@blueprint.get("/memory")
@for_keys("The machine's memory, in bytes")
def memory() -> Response:
    return jsonify({"ram": _ram(), "cuda": {"error": "unavailable"}})


def _ram() -> dict[str, Any]:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows, macOS
        return {"error": "unavailable"}
    return {"free": free, "used": total - free, "total": total}
