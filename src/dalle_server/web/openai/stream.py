"""The streamed answer of /v1/images/generations: previews of the token grid so far, then each finished picture."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from flask import Response

from dalle_server.errors import DalleServerError, GenerationCancelled
from dalle_server.generation import Cancelled, Done, Event, Failed, GeneratedImage, Generation, ImageReady, Preview
from dalle_server.pictures.codec import base64_text, encode_image, encode_result
from dalle_server.web import sse
from dalle_server.web.errors import openai_error
from dalle_server.web.openai.schemas import ImageGenerationBody, Usage
from dalle_server.web.service import Engine


def preview_every(body: ImageGenerationBody, image_length: int) -> int:
    """Tokens between previews, so that `partial_images` of them spread evenly before the last token; 0 = none."""
    count = (body.partial_images or 0) if body.stream else 0
    return -(-image_length // (count + 1)) if count else 0


def respond(generation: Generation, body: ImageGenerationBody, engine: Engine) -> Response:
    return sse.stream(generation, _Translator(generation, body, engine).translate)


class _Translator:
    """Events of one generation → the API's events. Knows how many partial images each picture has had."""

    def __init__(self, generation: Generation, body: ImageGenerationBody, engine: Engine):
        self._generation, self._body, self._engine = generation, body, engine
        self._size_px = body.size_px(engine.config.image_px)
        self._partials: Counter[int] = Counter()
        self._unbilled_text_tokens = generation.text_token_count

    def translate(self, event: Event) -> Iterator[str]:
        match event:
            case Preview() if self._partials[event.index] < (self._body.partial_images or 0):
                yield self._partial(event)
            case ImageReady(image):
                yield self._completed(image)
            case Done():
                yield sse.DONE
            case Failed(error):
                yield _failure(error)
            case Cancelled(reason):
                yield _failure(GenerationCancelled(reason))

    def _partial(self, preview: Preview) -> str:
        file = encode_image(
            preview.pixels, self._body.format, size_px=self._size_px, quality=self._body.output_compression
        )
        number = self._partials[preview.index]
        self._partials[preview.index] += 1
        return self._event("partial_image", file, preview.index, {"partial_image_index": number})

    def _completed(self, image: GeneratedImage) -> str:
        file = encode_result(
            image,
            self._generation,
            self._engine,
            self._body.format,
            size_px=self._size_px,
            quality=self._body.output_compression,
        )
        # The text was read once for all pictures: counted with the first, so that a sum over events is right.
        usage = Usage.of(self._unbilled_text_tokens, len(image.tokens))
        self._unbilled_text_tokens = 0
        return self._event("completed", file, image.index, {"usage": usage.model_dump(), "seed": image.key.seed})

    def _event(self, kind: str, file: bytes, image_index: int, extra: dict[str, Any]) -> str:
        name = f"image_generation.{kind}"
        width, height = self._size_px
        data = {
            "type": name,
            "b64_json": base64_text(file),
            "created_at": int(time.time()),
            "size": f"{width}x{height}",
            "quality": self._body.quality or "auto",
            "background": "opaque",
            "output_format": self._body.format.value,
            "image_index": image_index,
        }
        return sse.format_event(name, data | extra)


def _failure(error: DalleServerError) -> str:
    return sse.format_event("error", {"type": "error", "error": openai_error(error)})
