"""What is being painted for whom: the AUTOMATIC1111 API asks for "the" progress, without naming a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from dalle_server.generation import Event, Generation, ImageReady, Pixels, Preview, Progress
from dalle_server.pictures.codec import ImageFormat, base64_text, encode_image
from dalle_server.web.automatic1111.schemas import ProgressReply, ProgressState

PREVIEWS_PER_IMAGE = 8


class Job:
    """One txt2img request in flight. Written by its own thread, read by others; each field is replaced whole."""

    def __init__(self, generation: Generation, image_length: int):
        self.generation = generation
        self.image_length = image_length
        self.started = datetime.now(UTC)
        self.progress = Progress(0, image_length * len(generation.request.images), None)
        self.images_done = 0
        self.preview: Pixels | None = None

    def note(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.progress = event
        elif isinstance(event, Preview):
            self.preview = event.pixels
        elif isinstance(event, ImageReady):
            self.images_done += 1
            self.preview = event.image.pixels

    def want_previews(self) -> None:
        """Paint previews from now on: somebody asked how it looks."""
        self.generation.preview_every = max(1, self.image_length // PREVIEWS_PER_IMAGE)

    def describe(self, with_image: bool) -> ProgressReply:
        done, total = self.progress.tokens_done, self.progress.num_tokens
        num_images = len(self.generation.request.images)
        preview = self.preview if with_image else None
        return ProgressReply(
            progress=min(done / total, 0.99),  # 1 would say that the reply has been sent
            eta_relative=self.progress.eta_s or 0.0,
            state=ProgressState(
                interrupted=self.generation.cancel_reason is not None,
                job=self.generation.request.id,
                job_count=num_images,
                job_timestamp=self.started.strftime("%Y%m%d%H%M%S"),
                job_no=self.images_done,
                sampling_step=done // num_images,
                sampling_steps=self.image_length,
            ),
            current_image=None if preview is None else base64_text(encode_image(preview, ImageFormat.PNG)),
        )


class Jobs:
    """The txt2img requests in flight, oldest first; a client sees and stops its own only."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    @contextmanager
    def track(self, job: Job) -> Iterator[None]:
        name = job.generation.request.id
        with self._lock:
            self._jobs[name] = job
        try:
            yield
        finally:
            with self._lock:
                del self._jobs[name]

    def of(self, client: str) -> list[Job]:
        with self._lock:
            return [job for job in self._jobs.values() if job.generation.request.client == client]
