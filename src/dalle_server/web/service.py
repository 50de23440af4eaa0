"""What the web layer talks to: an engine that is loading, ready, failed or draining."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from flask import current_app
from numpy.typing import NDArray

from dalle_server.config import Settings
from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.engine.stats import EngineStats
from dalle_server.errors import DalleServerError, NotReady
from dalle_server.generation import Generation
from dalle_server.models.config import ModelConfig
from dalle_server.request import GenerationRequest
from dalle_server.web.bookkeeping import Bookkeeping
from dalle_server.web.metrics import Metrics
from dalle_server.web.serving.admission import asked, entered
from dalle_server.web.serving.workers import NO_THREADS

State = Literal["loading", "ready", "failed", "draining"]
EXTENSION = "dalle_server"
ENCODERS = 2  # pictures that are made into files at the same time, whoever asks

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What the web layer needs of `engine.Engine`: so much may a test's stand-in or a cluster's proxy offer instead."""

    config: ModelConfig
    info: RunnerInfo
    digest: str  # of the weights
    determinism: str

    @property
    def state(self) -> str: ...

    def stats(self) -> EngineStats: ...

    def submit(self, request: GenerationRequest) -> Generation: ...

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]: ...

    def stop(self, drain_s: float = 0.0) -> None: ...


class Service:
    """Owns the engine's life. `load` runs once, in a thread of its own; it returns a started engine, whose
    observer should be this service's `bookkeeping`.
    """

    def __init__(self, settings: Settings, load: Callable[[], Engine]):
        self.settings = settings
        self.failure: DalleServerError | None = None
        self.notes: dict[str, str] = {}  # what does not work though the model does: a part and the reason
        self._load = load
        self._engine: Engine | None = None
        self._state: State = "loading"
        self._changed = threading.Condition()
        self.encoders = threading.BoundedSemaphore(ENCODERS)
        self.metrics = Metrics()
        self.metrics.watch(lambda: self.state, lambda: self._engine.stats() if self._engine else None)
        self.bookkeeping = Bookkeeping(settings, self.metrics)

    @property
    def state(self) -> State:
        """An engine that restarts after a fault counts as loading."""
        if self._state != "ready" or self._engine is None or self._engine.state == "ready":
            return self._state
        return "loading" if self._engine.state == "restarting" else "failed"

    def start_loading(self) -> threading.Thread:
        thread = threading.Thread(target=self._run_load, name="load", daemon=True)
        thread.start()
        return thread

    def _run_load(self) -> None:
        try:
            engine = self._load()
        except DalleServerError as error:
            self._fail(error)
        except Exception as error:
            if "start new thread" in str(error):
                self._fail(NO_THREADS)
                return
            logger.exception("loading the model failed")
            self._fail(NotReady(f"loading the model failed: {type(error).__name__}; the server's log says more"))
        else:
            with self._changed:
                self._engine = engine
                if self._state == "loading":
                    self._state = "ready"
                self._changed.notify_all()

    def _fail(self, error: DalleServerError) -> None:
        with self._changed:
            self.failure = error
            if self._state == "loading":
                self._state = "failed"
            self._changed.notify_all()

    def wait_until_loaded(self, timeout_s: float | None = None) -> bool:
        """True when loading ended within timeout_s, well or not."""
        entered()
        with self._changed:
            return self._changed.wait_for(lambda: self._state != "loading", timeout_s)

    @property
    def engine(self) -> Engine:
        """The loaded engine, also while draining. Raises NotReady with the reason."""
        if self._engine is not None and self._state != "failed":
            return self._engine
        if self._state == "loading":
            raise NotReady("the model is still loading; try again shortly", retry_after_s=2)
        raise NotReady(f"the model is not available: {self.failure.message if self.failure else self._state}")

    def submit(self, request: GenerationRequest) -> Generation:
        """Raises NotReady while loading, failed or draining; Overloaded when the queue is full, RateLimited when
        this client's share of it is; InvalidRequest.
        """
        if self._state == "draining":
            raise NotReady("the server is shutting down; send the request to another, or again later", retry_after_s=5)
        engine = self.engine
        asked()
        try:
            with self.bookkeeping.submitting(request):
                return engine.submit(request)
        finally:
            entered()

    def full_for_s(self, num_entering: int = 0) -> float | None:
        """None while the queue has room for a picture, else an estimate of the seconds until it has. Cheap.

        `num_entering` requests are about to take a place.
        """
        engine = self._engine
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
        with self._changed:
            self._state = "draining"
            self._changed.notify_all()

    def stop(self) -> None:
        """Cancel what still runs and close the engine."""
        self.drain()
        if self._engine is not None:
            self._engine.stop()


def current_service() -> Service:
    """The service of the app that handles the current request."""
    service: Service = current_app.extensions[EXTENSION]
    return service
