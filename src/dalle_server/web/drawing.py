"""The life of a drawing request, the same in every dialect: count → seed → request → submit → events → files.

A dialect is two verbs: it decodes its body into an `Order`, and encodes what the `Drawing` gives into its reply.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import Semaphore

from dalle_server.drawing.best_of import BestOf
from dalle_server.drawing.form import Form
from dalle_server.drawing.repaint import Plan, Repaint
from dalle_server.drawn import Drawn
from dalle_server.errors import DeadlineExceeded, GenerationCancelled, InvalidRequest
from dalle_server.generation import Cancelled, Event, GeneratedImage, unwrap
from dalle_server.pictures.codec import describe_image
from dalle_server.pictures.metadata import PictureMetadata
from dalle_server.request import MAX_SEED, GenerationRequest, ImageKey, Pixels, SamplingParams
from dalle_server.snapshot import Snapshot
from dalle_server.web.access.security import client_id
from dalle_server.web.pool.model import Model, ServingEngine
from dalle_server.web.service import current_service
from dalle_server.web.submitting import submit_new, submit_over
from dalle_server.web.waiting import POLL_S, client_left, watched_events

INTERRUPTED = "interrupted"
MAX_PIXELS = 2**25  # of one answer's pictures that are to be enlarged: 33 of 1024 x 1024, four of 3840 x 2160


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a client wants, in nobody's words."""

    prompt: str
    num_images: int = 1
    counted_as: str = "num_images"  # what the dialect calls that number: an error names it
    seed: int | None = None  # None: a random one
    first_index: int = 0
    seed_each: bool = False  # picture i has the key (seed + i, 0) instead of (seed, i)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    negative_prompt: str = ""
    preview_every: int = 0
    best_of: int | None = None  # so many are drawn, and the likeliest num_images of them handed out
    logprobs: bool = False
    seamless: bool = False
    form: Form = field(default_factory=Form)

    @property
    def num_drawn(self) -> int:
        return self.best_of or self.num_images

    def request(self, timeout_s: float, client: str) -> GenerationRequest:
        """Raises InvalidRequest, naming the field."""
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        last = seed + self.num_images - 1
        if self.seed_each and seed <= MAX_SEED < last <= 2 * MAX_SEED:
            most = MAX_SEED - self.num_images + 1
            raise InvalidRequest(
                f"seed must be at most {most}, not {seed}: each of the {self.num_images} pictures takes the next one",
                param="seed",
            )
        return GenerationRequest(
            prompt=self.prompt,
            images=tuple(
                ImageKey(seed + i, 0) if self.seed_each else ImageKey(seed, self.first_index + i)
                for i in range(self.num_drawn)
            ),
            sampling=self.sampling,
            negative_prompt=self.negative_prompt,
            preview_every=self.preview_every,
            logprobs=self.logprobs or self.best_of is not None,
            seamless=self.seamless,
            timeout_s=timeout_s,
            client=client,
        )


class Drawing:
    """An accepted order. Read by the thread of its HTTP request; `snapshot` may be looked at from any."""

    def __init__(
        self,
        order: Order,
        generation: Drawn,
        model_name: str,
        engine: ServingEngine,
        encoders: Semaphore,
        left: Callable[[], bool],
        plan: Plan | None = None,
    ):
        self.order = order
        self.generation = generation
        self._plan = plan
        self.model_name = model_name  # this server's: its files tell the checkpoint's own, which others know too
        self.engine = engine
        self.snapshot = Snapshot()
        self._encoders = encoders
        self._left = left

    @property
    def num_drawn(self) -> int:
        """Pictures that were written, those that nobody gets included."""
        return self.generation.num_drawn

    @property
    def interrupted(self) -> bool:
        """Its own client asked to stop it, and is still there to be answered."""
        return isinstance(self.snapshot.end, Cancelled) and self.snapshot.end.reason == INTERRUPTED

    def interrupt(self) -> None:
        self.generation.cancel(INTERRUPTED)

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the files."""
        if self.order.form.size_px is not None:
            return self.order.form.size_px
        return self._plan.frame.size_px if self._plan else _native_px(self.engine)

    def events(self) -> Iterator[Event]:
        """Every event, folded into `snapshot`. The generation is cancelled when the client leaves."""
        for event in watched_events(self.generation, self._left):
            self.snapshot = self.snapshot.fold(event)
            yield event

    def images(self) -> tuple[GeneratedImage, ...]:
        """The finished pictures. Raises what the generation failed with, or GenerationCancelled."""
        for _ in self.events():
            pass
        return unwrap(self.snapshot.end)

    def index_of(self, position: int) -> int:
        """The image index under which the client finds a picture of the request again; the seed is the other half."""
        return self.generation.request.images[position].index

    def describe(self, image: GeneratedImage) -> PictureMetadata:
        return describe_image(image, self.generation, self.engine, self._plan.told if self._plan else None)

    def file(self, image: GeneratedImage, texts: Mapping[str, str] | None = None) -> bytes:
        """A finished picture as a whole file that tells how to make it again. Raises what `encode` raises."""
        return self._encode(image.pixels, self.describe(image), texts)

    def preview_file(self, pixels: Pixels) -> bytes:
        return self._encode(pixels, None, None)

    def _encode(self, pixels: Pixels, metadata: PictureMetadata | None, texts: Mapping[str, str] | None) -> bytes:
        """Pixels → file, in one of few places: what many clients want at once must not take every core.

        The wait is part of the request's time. Raises DeadlineExceeded, GenerationCancelled when the client left.
        """
        form = self.order.form
        with _place(self._encoders, self._left, self.generation.deadline):
            if self._plan is not None:
                pixels = self._plan.frame.finished(pixels)
            return form.file(pixels, self.generation, metadata, texts)


@contextmanager
def _place(places: Semaphore, left: Callable[[], bool], deadline: float | None) -> Iterator[None]:
    while True:
        if left():
            raise GenerationCancelled("the client left")
        if deadline is not None and time.monotonic() > deadline:
            raise DeadlineExceeded("the pictures were not read or made in the request's time; ask for fewer or smaller")
        if places.acquire(timeout=POLL_S):
            break
    try:
        yield
    finally:
        places.release()


def encoding() -> AbstractContextManager[None]:
    """A place to decode, resize or encode pictures in, for the current HTTP request. Raises as `Drawing.file` does."""
    service = current_service()
    return _place(service.encoders, client_left(), time.monotonic() + service.settings.request_timeout_s)


def hold_place(model: Model | None = None) -> None:
    """A place in the queue for the current HTTP request: of any model before its body is read, then of the one it
    names, before what came with it is decoded. A full queue refuses both. Raises Overloaded, NotReady, RateLimited.
    """
    current_service().hold(client_id(), model)


def draw(model: Model, order: Order, over: Repaint | None = None) -> Drawing:
    """Submit an order of the current HTTP request's client, who holds the model: of new pictures, or of drawings over
    a given one.

    Raises InvalidRequest; NotReady, Overloaded and RateLimited as `Service.submitter` does; NotSupported where the
    model cannot read pictures.
    """
    service = current_service()
    settings, engine = service.settings, model.engine
    if not 1 <= order.num_images <= settings.max_images:
        raise InvalidRequest(
            f"{order.counted_as} must lie between 1 and {settings.max_images}, not {order.num_images}",
            param=order.counted_as.split()[0],
        )
    check_best_of(order.best_of, order.num_images, order.counted_as, is_over=over is not None)
    check_pixels(order.form, order.num_images, engine, over)
    request = order.request(settings.request_timeout_s, client_id())
    if over is None:
        counted_as = order.counted_as if order.best_of is None else "best_of"
        drawn = submit_new(service, model, request, order.form, counted_as)
        drawn = drawn if order.best_of is None else BestOf(drawn, order.num_images)
        return Drawing(order, drawn, model.name, engine, service.encoders, client_left())
    order.form.check_over()
    with encoding():
        plan = Plan.of(over, engine)
    painted = submit_over(service, model, request, plan.holes)
    return Drawing(order, painted, model.name, engine, service.encoders, client_left(), plan)


def check_best_of(best_of: int | None, num_images: int, counted_as: str, *, is_over: bool) -> None:
    """That so many may be drawn to hand out `num_images`, which the dialect counts in `counted_as`.

    Raises InvalidRequest.
    """
    if best_of is None:
        return
    if is_over:
        raise InvalidRequest("best_of is for new pictures; over a given one, use candidates", param="best_of")
    limit = current_service().settings.max_images
    if not num_images <= best_of <= limit:
        message = f"best_of must lie between {counted_as}, {num_images}, and {limit}, not {best_of}"
        raise InvalidRequest(message, param="best_of")


def _native_px(engine: ServingEngine) -> tuple[int, int]:
    """(width, height) of what the model paints."""
    return engine.config.picture.width_px, engine.config.picture.height_px


def check_pixels(form: Form, num_images: int, engine: ServingEngine, over: Repaint | None) -> None:
    """Resizing and encoding cost more than painting does: enlarged pictures have a common bound.

    Raises InvalidRequest.
    """
    width, height = form.size_px or (over.picture.size_px if over else _native_px(engine))
    total = width * height * num_images
    if width * height > math.prod(_native_px(engine)) and total > MAX_PIXELS:
        raise InvalidRequest(
            f"size must be smaller for so many pictures: {num_images} of {width}x{height} are "
            f"{total:,} pixels, and one request may have {MAX_PIXELS:,}",
            param="size",
        )
