"""The models of this server: loaded when they are asked for, unloaded when others need the room or nobody asks.

One thread loads and unloads, one model after the other. A model that is held, or has running or queued pictures, is
never unloaded; so that one in constant use cannot shut out the others, it takes no new requests while another waits
for its room: they wait their turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from dalle_server.errors import ConfigError, DalleServerError, NotReady
from dalle_server.web.pool.memory import does_not_fit, release_memory
from dalle_server.web.pool.model import Known, Model, ServingEngine
from dalle_server.web.serving.workers import NO_THREADS

LOOK_S = 0.05  # how often it is asked whether a model has become idle that must make room
RETRY_S = 10.0  # a model that could not be loaded is tried again, at the earliest, after so long

logger = logging.getLogger(__name__)


class Hold:
    """One user's claim on a model: until `close`, it is not unloaded. `wait` before it is used."""

    def __init__(self, pool: Pool, model: Model, tell: Callable[[], None] = lambda: None):
        self.model = model
        self.tell = tell
        self.is_in = False
        self.failure: DalleServerError | None = None
        self._pool = pool

    def wait(self, timeout_s: float | None = None) -> bool:
        """True when the model is loaded. Raises what loading it failed with."""
        return self._pool.wait(self, timeout_s)

    def close(self) -> None:
        """May be called twice."""
        self._pool.let_go(self)


class Pool:
    """Any thread may call. `budget_bytes` None: no bound; `idle_unload_s` 0: nothing is unloaded for being idle."""

    def __init__(self, models: Sequence[Model], *, budget_bytes: int | None = None, idle_unload_s: float = 0.0):
        self.models = tuple(models)
        self.budget_bytes = budget_bytes
        self.loads: dict[str, int] = {}  # by model, for metrics
        self.unloads: dict[tuple[str, str], int] = {}  # by model and reason
        self._idle_unload_s = idle_unload_s
        self._changed = threading.Condition()
        self._wanted: deque[Model] = deque()
        self._waiting: list[Hold] = []
        self._stopping = False

    @property
    def first(self) -> Model:
        return self.models[0]

    def find(self, name: str) -> Model | None:
        """By name, any case, or by the digest of its weights, all of it or the ten digits that the web UI shows."""
        wanted = name.strip().lower()
        by_name = (model for model in self.models if model.name.lower() == wanted)
        by_digest = (model for model in self.models if model.digest and wanted in (model.digest, model.digest[:10]))
        return next(by_name, None) or next(by_digest, None)

    def start(self) -> threading.Thread:
        """Load the first model, in a thread of the pool's own. Where there is no other, and it stays, it then ends.

        Raises ConfigError where the first model can never fit.
        """
        if self.budget_bytes is not None and self.first.memory_bytes > self.budget_bytes:
            told = does_not_fit(self.first, self.models, self.budget_bytes)
            raise ConfigError(f"{told.message}; raise --memory_budget, or name another model first", param="models")
        with self._changed:
            self._want(self.first)
        thread = threading.Thread(target=self._run, name="load", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Cancel what still runs and close the engines."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            engines = [model.engine_now for model in self.models if model.engine_now is not None]
        for engine in engines:
            engine.stop()

    # -- users

    def hold(self, model: Model, tell: Callable[[], None] = lambda: None) -> Hold:
        """A claim, to be closed. A model that is not loaded will be. `tell`, for who does other things meanwhile, is
        called when the wait is over, in any thread and under the pool's lock.

        Raises InvalidRequest for a model that can never fit, NotReady for one that could not be loaded just now.
        """
        held = Hold(self, model, tell)
        with self._changed:
            if self._is_open(model):
                self._let_in(held)
                return held
            self._check(model)
            self._want(model)
            self._waiting.append(held)
        return held

    def keep(self, model: Model) -> Hold:
        """One more claim, for who holds the model already: in at once, though others may wait for its room."""
        held = Hold(self, model)
        with self._changed:
            self._let_in(held)
        return held

    def wait(self, held: Hold, timeout_s: float | None) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: held.is_in or held.failure is not None, timeout_s)
            if held.failure is not None:
                raise held.failure.with_traceback(None)
            return held.is_in

    def let_go(self, held: Hold) -> None:
        with self._changed:
            if held in self._waiting:
                self._waiting.remove(held)
                if held.model in self._wanted and not self._is_wanted(held.model):
                    self._wanted.remove(held.model)
            if held.is_in:
                held.is_in = False
                held.model.uses -= 1
                held.model.used_at = time.monotonic()
                self._changed.notify_all()

    def give_up(self, engine: ServingEngine) -> bool:
        """Of an engine that failed for good: its model can be loaded anew after RETRY_S, and until then whoever asks
        for it learns why not. False where it is the only model's.

        One that is no model's was given up before, or is being loaded: then the load says what becomes of it.
        """
        with self._changed:
            if len(self.models) == 1:
                return False
            model = next((each for each in self.models if each.engine_now is engine), None)
            if model is None:
                return True
            self._take_out(model, engine, "failed")
            model.failure = NotReady("its engine failed twice within an hour; the server's log says more")
            model.failed_at = time.monotonic()
            self._changed.notify_all()
        logger.error("model %s is given up for now: %s", model.name, model.failure.message)
        engine.stop()
        release_memory()
        return True

    def wait_until_first_is_over(self, timeout_s: float | None) -> bool:
        """True when the first load of the first model has ended within timeout_s, well or not."""
        first = self.first
        with self._changed:
            return self._changed.wait_for(lambda: first.known is not None or first.failure is not None, timeout_s)

    def _check(self, model: Model) -> None:
        if self._stopping:
            raise NotReady("the server is shutting down; send the request to another, or again later", retry_after_s=5)
        if self.budget_bytes is not None and model.memory_bytes > self.budget_bytes:
            raise does_not_fit(model, self.models, self.budget_bytes)
        if model.failure is not None and time.monotonic() - model.failed_at < RETRY_S:
            raise _told(model, model.failure)

    def _is_open(self, model: Model) -> bool:
        return model.engine_now is not None and not model.leaves

    def _let_in(self, held: Hold) -> None:
        held.is_in = True
        held.model.uses += 1
        held.model.used_at = time.monotonic()

    def _want(self, model: Model) -> None:
        if model not in self._wanted and not model.is_loading:
            self._wanted.append(model)
            self._changed.notify_all()

    def _is_wanted(self, model: Model) -> bool:
        """Somebody waits for it, or the start does."""
        is_first = model is self.first and model.known is None
        return is_first or any(held.model is model for held in self._waiting)

    def _admit(self, model: Model, failure: DalleServerError | None = None) -> None:
        """Those who wait for the model: they are in, or learn why not."""
        for held in [held for held in self._waiting if held.model is model]:
            self._waiting.remove(held)
            if failure is None:
                self._let_in(held)
            held.failure = failure
            held.tell()
        self._changed.notify_all()

    # -- the thread

    def _run(self) -> None:
        look_s = min(1.0, self._idle_unload_s / 10) if self._idle_unload_s else None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._stopping, look_s)
                if self._stopping:
                    return
                model = self._wanted.popleft() if self._wanted else None
                if model is not None and model.engine_now is None:
                    model.is_loading = True
            try:
                if model is not None:
                    self._serve(model)
                if look_s is not None:
                    self._unload_idle()
            except Exception:  # without this thread no model would ever be loaded again
                logger.exception("the pool of models")
                if model is not None:
                    self._settle(model, NotReady("making room for it failed; the server's log says more"))
            if look_s is None and len(self.models) == 1:
                return

    def _serve(self, model: Model) -> None:
        """What was wanted."""
        if model.engine_now is not None and not model.leaves:
            with self._changed:
                self._admit(model)
        elif self._make_room(model):
            self._load(model)

    def _load(self, model: Model) -> None:
        failure: DalleServerError | None = None
        engine: ServingEngine | None = None
        with self._changed:
            model.is_loading = True
        try:
            engine = model.source.load(model.bookkeeping)
        except DalleServerError as error:
            failure = error
        except Exception as error:
            if "start new thread" in str(error):
                failure = NO_THREADS
            else:
                logger.exception("loading the model failed")
                failure = NotReady(f"loading the model failed: {type(error).__name__}; the server's log says more")
        if failure is not None:
            self._settle(model, failure)
        elif engine is not None:
            self._adopt(model, engine)

    def _settle(self, model: Model, failure: DalleServerError) -> None:
        """It could not be loaded; whoever waits for it learns why."""
        with self._changed:
            model.is_loading, model.failure, model.failed_at = False, failure, time.monotonic()
            self._admit(model, _told(model, failure))
        if model.name:
            logger.error("model %s could not be loaded: %s", model.name, failure.message)

    def _adopt(self, model: Model, engine: ServingEngine) -> None:
        with self._changed:
            model.is_loading, model.failure, model.engine_now = False, None, engine
            model.known, model.used_at = Known.of(engine), time.monotonic()
            self.loads[model.name] = self.loads.get(model.name, 0) + 1
            self._admit(model)
            is_late = self._stopping
        if is_late:
            engine.stop()

    def _make_room(self, model: Model) -> bool:
        """Unload what must go, when it is idle. False when the server stops, or those who wanted the model give up."""
        while True:
            with self._changed:
                if self._stopping:
                    return False
                model.is_loading = self._is_wanted(model)
                chosen = self._in_the_way(model) if model.is_loading else []
                for each in self.models:
                    each.leaves = each in chosen
                    if self._is_open(each):
                        self._admit(each)
                victim = next((each for each in chosen if each.is_idle), None)
                if chosen and victim is None:
                    self._changed.wait(LOOK_S)
                    continue
            if victim is None:
                return model.is_loading
            self._unload(victim, f"{model.name} needs its memory", "evicted")

    def _in_the_way(self, model: Model) -> list[Model]:
        """The models whose memory is wanted: idle ones first, the longest unused first."""
        if self.budget_bytes is None:
            return []
        others = [each for each in self.models if each.engine_now is not None and each is not model]
        surplus = sum(each.memory_bytes for each in others) + model.memory_bytes - self.budget_bytes
        chosen = []
        for each in sorted(others, key=lambda each: (not each.is_idle, each.used_at)):
            if surplus > 0:
                chosen.append(each)
                surplus -= each.memory_bytes
        return chosen

    def _unload_idle(self) -> None:
        for model in self.models:
            with self._changed:
                if model.engine_now is None:
                    continue
                if not model.is_idle:
                    model.used_at = time.monotonic()
                if time.monotonic() - model.used_at < self._idle_unload_s:
                    continue
            self._unload(model, f"nobody asked for it for {self._idle_unload_s:g} s", "idle")

    def _take_out(self, model: Model, engine: ServingEngine, reason: str) -> None:
        model.engine_now, model.leaves = None, False
        model.past.add(engine.stats())
        self.unloads[model.name, reason] = self.unloads.get((model.name, reason), 0) + 1

    def _unload(self, model: Model, why: str, reason: str) -> None:
        with self._changed:
            if self._stopping or not model.is_idle or model.engine_now is None:
                return
            engine = model.engine_now
            self._take_out(model, engine, reason)
        logger.info("model %s is unloaded: %s", model.name, why)
        engine.stop()
        del engine
        release_memory()


def _told(model: Model, failure: DalleServerError) -> DalleServerError:
    """To those who wait for the model."""
    name = f"the model {model.name!r}" if model.source.name else "the model"
    return NotReady(f"{name} is not available: {failure.message}")
