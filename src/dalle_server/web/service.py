"""What the web layer talks to: the models of this server, each loading, loaded or on disk, and how the server is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal

from flask import Response, after_this_request, current_app, g, has_request_context

from dalle_server.config import Settings
from dalle_server.engine.checking import check_room
from dalle_server.engine.tracker import Place
from dalle_server.errors import DalleServerError, NotReady, Overloaded
from dalle_server.generation import Generation
from dalle_server.request import GenerationRequest
from dalle_server.web.bookkeeping import Bookkeeping, Parts
from dalle_server.web.operations.metrics import Metrics
from dalle_server.web.pool.metrics import PoolCollector
from dalle_server.web.pool.model import Model, ServingEngine, Source
from dalle_server.web.pool.pool import Pool
from dalle_server.web.serving.admission import asked, entered

State = Literal["loading", "ready", "failed", "draining"]
EXTENSION = "dalle_server"
ENCODERS = 2  # pictures that are made into files at the same time, whoever asks


class Service:
    """Owns the engines' lives. `load` makes the one model there is, or else `sources` tell of several, the first
    being the default. A model's engine should tell its `bookkeeping`.
    """

    def __init__(
        self, settings: Settings, load: Callable[[], ServingEngine] | None = None, *, sources: Sequence[Source] = ()
    ):
        self.settings = settings
        self.notes: dict[str, str] = {}  # what does not work though the model does: a part and the reason
        self.encoders = threading.BoundedSemaphore(ENCODERS)
        self.metrics = Metrics()
        if load is not None:
            sources = [Source(lambda observer: load())]
        models = [self._model(source) for source in sources]
        self.pool = Pool(models, budget_bytes=settings.memory_budget, idle_unload_s=settings.idle_unload_s)
        self.metrics.registry.register(PoolCollector(self.pool, lambda: self.state))
        self._is_draining = False

    def _model(self, source: Source) -> Model:
        model = Model(source, Bookkeeping(self.settings, self.metrics, lambda: model.name))
        return model

    @property
    def bookkeeping(self) -> Bookkeeping:
        """Of the first model."""
        return self.pool.first.bookkeeping

    @property
    def failure(self) -> DalleServerError | None:
        """Why the server could not start."""
        first = self.pool.first
        return first.failure if first.known is None else None

    @property
    def state(self) -> State:
        """Of the server: it is ready when the first model has been loaded once. Of one model, an engine that restarts
        after a fault counts as loading.
        """
        if self._is_draining:
            return "draining"
        if self.failure is not None:
            return "failed"
        first = self.pool.first
        if first.known is None:
            return "loading"
        engine = first.engine_now
        if engine is None or engine.state == "ready" or len(self.pool.models) > 1:
            return "ready"
        return "loading" if engine.state == "restarting" else "failed"

    def start_loading(self) -> threading.Thread:
        """Raises ConfigError for a model that can never fit."""
        return self.pool.start()

    def wait_until_loaded(self, timeout_s: float | None = None) -> bool:
        """True when the first loading ended within timeout_s, well or not."""
        entered()
        return self.pool.wait_until_first_is_over(timeout_s)

    def check_started(self) -> None:
        """Raises NotReady with the reason when no model was ever loaded."""
        if self.failure is not None:
            raise NotReady(f"the model is not available: {self.failure.message}")
        if self.pool.first.known is None:
            raise NotReady("the model is still loading; try again shortly", retry_after_s=2)

    def hold(self, client: str, model: Model | None = None) -> None:
        """A place in the queue for the current HTTP request: of any model while its body is unread, then of the one it
        names. Submitting takes it; otherwise it is given back with the answer. Raises as `submitter`'s does.
        """
        self.check_open()
        if model is None:
            g.place = self._hold_any(client)
            after_this_request(_give_back)
        elif (place := _held_place(model.engine)) is None:
            with model.bookkeeping.holding(client):
                g.place = model.engine, model.engine.hold()
        else:
            g.place = model.engine, place

    def _hold_any(self, client: str) -> tuple[ServingEngine, Place] | None:
        """None where a model is not loaded, and so has room. Raises Overloaded; of a single model RateLimited too."""
        refusal: Overloaded | None = None
        for model in self.pool.models:
            engine = model.engine_now
            if engine is None:
                continue
            try:
                with model.bookkeeping.holding(client) if len(self.pool.models) == 1 else nullcontext():
                    return engine, engine.hold()
            except Overloaded as error:
                refusal = error
        if refusal is not None and all(model.engine_now for model in self.pool.models):
            raise refusal
        return None

    def check_open(self) -> None:
        """Raises NotReady while draining."""
        if self._is_draining:
            raise NotReady("the server is shutting down; send the request to another, or again later", retry_after_s=5)

    def submitter(
        self, model: Model, *, num_parts: int = 1, num_images: int = 1, counted_as: str = "num_images"
    ) -> Callable[[GenerationRequest], Generation]:
        """Submits one client's request, to a model that he holds, and all that it is made of, `num_parts` generations
        with `num_images` at a time: what is accepted is finished, so a drain that begins meanwhile refuses no later
        window of a picture.

        Raises NotReady while draining, InvalidRequest when so many never find room at once. What it gives raises
        NotReady while the model is loading or failed; Overloaded when the queue is full, RateLimited when this client's
        share of it is; InvalidRequest.
        """
        self.check_open()
        check_room(num_images, model.engine.most_images, counted_as)
        return partial(self._submit, model, Parts(num_parts))

    def _submit(self, model: Model, parts: Parts, request: GenerationRequest) -> Generation:
        engine = model.engine
        place = _held_place(engine)
        asked()
        try:
            with model.bookkeeping.submitting(request, parts):
                return engine.submit(request, place)
        finally:
            if place is not None:
                place.give_back()  # an engine that refuses the request may not have come to it
            entered()

    def full_for_s(self, num_entering: int = 0) -> float | None:
        """None while a queue has room for a picture, else an estimate of the seconds until one has. Cheap.

        `num_entering` requests are about to take a place. A model that is not loaded has room.
        """
        waits = [self._full_for_s(model, num_entering) for model in self.pool.models]
        return None if None in waits else min(wait for wait in waits if wait is not None)

    def _full_for_s(self, model: Model, num_entering: int) -> float | None:
        engine = model.engine_now
        if engine is None:
            return None
        stats = engine.stats()
        busy = stats.running + stats.waiting + stats.detokenizing + num_entering
        if busy < stats.num_slots + self.settings.max_waiting_images:
            return None
        picture_s = (stats.step_s or 0.0) * engine.config.picture.num_tokens
        return max(1.0, picture_s / max(1, stats.num_slots))

    def drain(self) -> None:
        """Refuse new work from now on; what is accepted goes on."""
        self._is_draining = True

    def stop(self) -> None:
        """Cancel what still runs and close the engines."""
        self.drain()
        self.pool.stop()


def _held_place(engine: ServingEngine | None = None) -> Place | None:
    """The current HTTP request's, which is the caller's from now on. One of another engine is given back."""
    held: tuple[ServingEngine, Place] | None = g.pop("place", None) if has_request_context() else None
    if held is None:
        return None
    if held[0] is engine:
        return held[1]
    held[1].give_back()
    return None


def _give_back(response: Response) -> Response:
    _held_place()
    return response


def current_service() -> Service:
    """The service of the app that handles the current request."""
    service: Service = current_app.extensions[EXTENSION]
    return service
