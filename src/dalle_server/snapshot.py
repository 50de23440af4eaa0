"""What the events of a generation have told so far: one fold for each reader, from progress bars to streams. A leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from dalle_server.generation import (
    TERMINAL,
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.request import Pixels


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Immutable: the thread that reads the events replaces it, others may look at any time.

    snapshot = Snapshot()
    for event in generation.events():
        snapshot = snapshot.fold(event)
    """

    position: int | None = None  # images ahead of its first one; None before the first word
    queue_s: float | None = None
    progress: Progress | None = None
    previews: Mapping[int, Preview] = field(default_factory=dict)  # by position in the request; of unfinished pictures
    images: tuple[GeneratedImage, ...] = ()  # finished, in the order of the request
    shown: Pixels | None = None  # what was painted last: a preview, or a finished picture
    end: Done | Failed | Cancelled | None = None

    def fold(self, event: Event) -> Self:
        match event:
            case Queued(position):
                return replace(self, position=position)
            case Started(queue_s):
                return replace(self, position=0, queue_s=queue_s)
            case Progress():
                return replace(self, progress=event)
            case Preview(index, _, pixels):
                return replace(self, previews={**self.previews, index: event}, shown=pixels)
            case ImageReady(image):
                previews = {index: preview for index, preview in self.previews.items() if index != image.index}
                others = (each for each in self.images if each.index != image.index)  # the same event may be told again
                images = sorted((*others, image), key=lambda each: each.index)
                return replace(self, previews=previews, images=tuple(images), shown=image.pixels)
        assert isinstance(event, TERMINAL)
        return replace(self, end=event)

    @property
    def tokens_done(self) -> int:
        return 0 if self.progress is None else self.progress.tokens_done

    @property
    def eta_s(self) -> float | None:
        return None if self.progress is None else self.progress.eta_s
