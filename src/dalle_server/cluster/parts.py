"""One request whose pictures are drawn one by one, wherever there is room, and told as one generation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dalle_server.engine.stats import Observer, notify
from dalle_server.errors import DalleServerError, DeadlineExceeded
from dalle_server.generation import (
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    Generation,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.request import GenerationRequest

PROGRESS_EVERY_S = 0.05
SHORTEST_S = 0.001  # of a time limit that has passed meanwhile: the replica refuses in the words of every engine


@dataclass(slots=True)
class Part:
    """One picture of the request."""

    tokens_done: int = 0
    eta_s: float | None = None
    image: GeneratedImage | None = None
    error: DalleServerError | None = None

    @property
    def is_settled(self) -> bool:
        return self.image is not None or self.error is not None


@dataclass(slots=True, eq=False)
class Assembly:
    """Called by one thread. A picture that was told is never told again, whoever draws it once more."""

    generation: Generation
    num_tokens: int  # of a picture
    observer: Observer
    ended: Callable[[Assembly], None]
    parts: list[Part] = field(default_factory=list)
    queue_s: float | None = None
    position: int | None = None
    told_at: float = 0.0

    def __post_init__(self) -> None:
        self.parts = [Part() for _ in self.generation.request.images]

    def request_of(self, index: int) -> GenerationRequest:
        """That asks a replica for one of the pictures, in the time that is left."""
        whole, deadline = self.generation.request, self.generation.deadline
        return replace(
            whole,
            images=(whole.images[index],),
            id=self.part_id(index),
            preview_every=self.preview_every(index),
            timeout_s=None if deadline is None else max(SHORTEST_S, deadline - time.monotonic()),
        )

    def part_id(self, index: int) -> str:
        return f"{self.generation.request.id}/{index}"

    def preview_every(self, index: int) -> int:
        return self.generation.preview_every if self.generation.previewed in (None, index) else 0

    def take(self, index: int, event: Event, weights: str) -> None:
        """What a replica says of one picture, drawn by weights of this digest."""
        part, generation = self.parts[index], self.generation
        match event:
            case Queued(position) if self.queue_s is None and position != self.position:
                self.position = position
                generation.emit(event)
            case Started():
                self._start()
            case Progress(tokens_done, _, eta_s):
                part.tokens_done, part.eta_s = max(part.tokens_done, tokens_done), eta_s
                self._tell_progress()
            case Preview() if part.image is None:
                if generation.emit(replace(event, index=index)):
                    notify(self.observer.on_preview, generation)
            case ImageReady(image) if part.image is None:
                part.image = replace(image, index=index, key=generation.request.images[index], weights=weights)
                part.tokens_done, part.eta_s = self.num_tokens, 0.0
                self._start()
                generation.emit(ImageReady(part.image))
                self._end_when_settled()
            case Failed(DeadlineExceeded()):  # the replica names what was left of the limit
                self.lose(index, DeadlineExceeded.after(generation.request.timeout_s))
            case Failed(error):
                self.lose(index, error)

    def lose(self, index: int, error: DalleServerError) -> None:
        """One picture failed. Its siblings go on; then the request ends with this error."""
        if not self.parts[index].is_settled:
            self.parts[index].error = error
            self._end_when_settled()

    def end(self, event: Done | Failed | Cancelled) -> None:
        if self.generation.emit(event):
            notify(self.observer.on_finished, self.generation, event)
            self.ended(self)

    def _start(self) -> None:
        if self.queue_s is None:
            self.queue_s = time.monotonic() - self.generation.submitted_at
            self.generation.emit(Started(self.queue_s))

    def _tell_progress(self) -> None:
        now = time.monotonic()
        if now - self.told_at < PROGRESS_EVERY_S:
            return
        self.told_at = now
        left = [part.eta_s for part in self.parts]
        eta_s = None if None in left else max(eta for eta in left if eta is not None)
        done = sum(part.tokens_done for part in self.parts)
        self.generation.emit(Progress(done, self.num_tokens * len(self.parts), eta_s))

    def _end_when_settled(self) -> None:
        if not all(part.is_settled for part in self.parts):
            return
        errors = [part.error for part in self.parts if part.error is not None]
        if errors:
            self.end(Failed(errors[0]))
            return
        images = tuple(part.image for part in self.parts if part.image is not None)
        self.end(Done(images, self.queue_s or 0.0, time.monotonic() - self.generation.submitted_at))
