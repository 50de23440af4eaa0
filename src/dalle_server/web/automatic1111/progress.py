"""What is being painted for whom: the AUTOMATIC1111 API asks for "the" progress, without naming a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from dalle_server.pictures.codec import ImageFormat, base64_text, encode_image
from dalle_server.web.automatic1111.schemas import ProgressReply, ProgressState
from dalle_server.web.drawing import Drawing

PREVIEWS_PER_IMAGE = 8


class InFlight:
    """One txt2img request in flight. Its own thread folds the drawing's events; others look."""

    def __init__(self, drawing: Drawing):
        self.drawing = drawing
        self.image_length = drawing.engine.config.picture.num_tokens
        self.started = datetime.now(UTC)

    @property
    def timestamp(self) -> str:
        return self.started.strftime("%Y%m%d%H%M%S")

    def want_previews(self) -> None:
        """Paint previews from now on: somebody asked how it looks."""
        self.drawing.generation.want_previews(max(1, self.image_length // PREVIEWS_PER_IMAGE))

    def stop(self) -> None:
        self.drawing.interrupt()

    def describe(self, with_image: bool) -> ProgressReply:
        snapshot, generation = self.drawing.snapshot, self.drawing.generation
        num_images = len(generation.request.images)
        num_tokens = snapshot.progress.num_tokens if snapshot.progress else num_images * self.image_length
        preview = snapshot.shown if with_image else None
        stopped = generation.cancel_reason is not None
        return ProgressReply(
            # 1 would say that the reply has been sent
            progress=min(snapshot.tokens_done / num_tokens, 0.99),
            eta_relative=snapshot.eta_s or 0.0,
            state=ProgressState(
                interrupted=stopped,
                stopping_generation=stopped,
                job=generation.request.id,
                job_count=num_images,
                job_timestamp=self.timestamp,
                job_no=len(snapshot.images),
                sampling_step=snapshot.tokens_done // num_images,
                sampling_steps=num_tokens // num_images,
            ),
            current_image=None if preview is None else base64_text(encode_image(preview, ImageFormat.PNG)),
        )


class Paintings:
    """The txt2img requests in flight, oldest first; a client sees and stops its own only."""

    def __init__(self) -> None:
        self._paintings: dict[str, InFlight] = {}
        self._lock = threading.Lock()

    @contextmanager
    def track(self, painting: InFlight) -> Iterator[None]:
        name = painting.drawing.generation.request.id
        with self._lock:
            self._paintings[name] = painting
        try:
            yield
        finally:
            with self._lock:
                del self._paintings[name]

    def of(self, client: str) -> list[InFlight]:
        with self._lock:
            return [each for each in self._paintings.values() if each.drawing.generation.request.client == client]
