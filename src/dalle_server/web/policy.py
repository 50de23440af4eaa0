"""What holds for a route before its view runs: who may call it, how big its body may be, what it costs."""

from __future__ import annotations

import re

# Answered without a key: life signs, the pages themselves (not what they call), and pictures under unguessable names.
_PUBLIC = re.compile(r"/|/health|/ready|/docs|/openapi\.json|/playground(/.*)?|/pictures/[^/]+")

# A POST here makes pictures: it counts against the rate limit and is refused when the threads run short.
_GENERATION = re.compile(r"/dalle|/v1/images/.*|/v1/jobs(/.*)?|/sdapi/v1/(txt2img|img2img)")

# Of those, the ones that cannot do without a place in the engine's queue; jobs have a queue of their own.
_NEEDS_QUEUE = re.compile(r"/dalle|/v1/images/(generations|edits|variations)|/sdapi/v1/(txt2img|img2img)")

# Bodies with pictures in them.
_UPLOAD = re.compile(r"/v1/images/(edits|variations)|/sdapi/v1/(img2img|png-info)")

# Any web page may call these, as it could the original's; the original's own first asks whether / answers.
# Jobs are owned, without keys by all who reach the server, and so is what AUTOMATIC1111's clients see and stop of their
# own; a page that someone merely visits reaches the server too: only origins that the operator names may see them. The
# other routes here are what a playground on such an origin asks besides.
CORS_PATHS = (r"/$", r"/dalle", r"/v1/(images|models).*", r"/sdapi/v1/(?!progress|interrupt).*", r"/pictures/.*")
CORS_OWNED_PATHS = (r"/v1/jobs.*", r"/sdapi/v1/(progress|interrupt)", r"/v1/info", r"/health", r"/ready")

# Must answer whatever the load is.
_VITAL = frozenset({"/", "/health", "/ready", "/metrics"})


def is_public(path: str) -> bool:
    return _PUBLIC.fullmatch(path) is not None


def is_generation(method: str, path: str) -> bool:
    return method == "POST" and _GENERATION.fullmatch(path) is not None


def needs_queue(method: str, path: str) -> bool:
    return method == "POST" and _NEEDS_QUEUE.fullmatch(path) is not None


def is_owned(path: str) -> bool:
    return any(re.fullmatch(owned, path) for owned in CORS_OWNED_PATHS)


def takes_uploads(path: str) -> bool:
    return _UPLOAD.fullmatch(path) is not None


def is_vital(path: str) -> bool:
    return path in _VITAL
