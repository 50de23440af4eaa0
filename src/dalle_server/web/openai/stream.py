"""The streamed answer of the image routes: previews of the token grid so far, then each finished picture."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from flask import Response

from dalle_server.errors import DalleServerError, GenerationCancelled
from dalle_server.generation import Cancelled, Done, Event, Failed, GeneratedImage, ImageReady, Preview
from dalle_server.pictures.codec import base64_text
from dalle_server.web import sse
from dalle_server.web.drawing import Drawing
from dalle_server.web.errors import openai_error
from dalle_server.web.openai.schemas import OutputBody, Usage


def respond(drawing: Drawing, body: OutputBody, kind: str = "image_generation") -> Response:
    """`kind` begins the names of the events."""
    return sse.stream(drawing.generation, _ImageEvents(drawing, body, kind).translate)


class _ImageEvents:
    """Events of one drawing → the API's events. Knows how many partial images each picture has had."""

    def __init__(self, drawing: Drawing, body: OutputBody, kind: str):
        self._drawing, self._body, self._kind = drawing, body, kind
        self._partials: Counter[int] = Counter()
        self._unbilled_text_tokens = drawing.generation.text_token_count
        self._unbilled_pictures = drawing.num_drawn - drawing.order.num_images  # drawn in vain
        self._broken = False

    def translate(self, event: Event) -> Iterator[str]:
        if self._broken:
            return
        try:
            yield from self._translated(event)
        except DalleServerError as error:  # a picture that could not be made into a file, when the stream has begun
            self._broken = True
            self._drawing.generation.cancel(error.message)
            yield failure(error)

    def _translated(self, event: Event) -> Iterator[str]:
        match event:
            case Preview() if self._partials[event.index] < (self._body.partial_images or 0):
                yield self._partial(event)
            case ImageReady(image):
                yield self._completed(image)
            case Done():
                yield sse.DONE
            case Failed(error):
                yield failure(error)
            case Cancelled(reason):
                yield failure(GenerationCancelled(reason))

    def _partial(self, preview: Preview) -> str:
        file = self._drawing.preview_file(preview.pixels)
        number = self._partials[preview.index]
        self._partials[preview.index] += 1
        return self._event("partial_image", file, preview.index, {"partial_image_index": number})

    def _completed(self, image: GeneratedImage) -> str:
        file = self._drawing.file(image)
        # The text was read once for all pictures, and pictures that nobody gets have no event: counted with the first,
        # so that a sum over events is right.
        usage = Usage.of(self._unbilled_text_tokens, (1 + self._unbilled_pictures) * len(image.tokens))
        self._unbilled_text_tokens = self._unbilled_pictures = 0
        return self._event("completed", file, image.index, {"usage": usage.model_dump(), "seed": image.key.seed})

    def _event(self, kind: str, file: bytes, position: int, extra: dict[str, Any]) -> str:
        name = f"{self._kind}.{kind}"
        width, height = self._drawing.size_px
        data = {
            "type": name,
            "b64_json": base64_text(file),
            "created_at": int(time.time()),
            "size": f"{width}x{height}",
            "quality": self._body.quality or "auto",
            "background": "opaque",
            "output_format": self._drawing.order.form.format.value,
            "image_index": self._drawing.index_of(position),
        }
        return sse.format_event(name, data | extra)


def failure(error: DalleServerError) -> str:
    return sse.format_event("error", {"type": "error", "error": openai_error(error)})
