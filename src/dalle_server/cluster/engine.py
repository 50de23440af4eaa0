"""The engine that a front has in place of its own: it draws on the replicas of a Ray Serve application."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from dalle_server.cluster.connection import Connection, Deployed
from dalle_server.cluster.parts import Assembly
from dalle_server.cluster.streams import Streams
from dalle_server.cluster.watch import Introduction, Watch
from dalle_server.engine.checking import check_pixels, check_request
from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.engine.stats import Counters, EngineStats, Observer
from dalle_server.engine.tracker import Place
from dalle_server.errors import EngineDown, NotReady, Overloaded
from dalle_server.generation import Cancelled, Done, Generation, Queued
from dalle_server.models.config import ModelConfig
from dalle_server.request import GenerationRequest, Pixels, Tokens
from dalle_server.web.pool.model import ReplicaStatus
from dalle_server.wire import error_from_dict

ASIDE_S = 60.0
STOP_S = 10.0

logger = logging.getLogger(__name__)


class ClusterEngine:
    """Satisfies `web.pool.model.ServingEngine`. `most_slots`: what all replicas write at once when there are most.

    Its weights may be changed below it, by replicas that replace others: `digest` is the newest, and each picture names
    its own. Replicas of another model end this front by `on_fatal`, so that it starts again as theirs.
    """

    def __init__(
        self,
        connection: Connection,
        deployed: Deployed,
        *,
        most_slots: int,
        max_waiting_images: int,
        observer: Observer | None = None,
        on_fatal: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ):
        self._connection, self._deployed = connection, deployed
        self._most_slots = most_slots
        self._max_waiting_images = max_waiting_images
        self._observer = observer or Observer()
        self._on_fatal, self._on_stop = on_fatal, on_stop
        self._lock = threading.Lock()  # guards what follows
        self._live: set[Assembly] = set()
        self._held = 0
        self._counters = Counters(num_slots=0)
        self._is_stopped = False
        self._watch, self._known = connection.submit(self._meet()).result()
        self._streams = Streams(deployed.replicas, self._watch.front, self._watch.want_previews)
        self._watching = connection.submit(self._watch.run())

    async def _meet(self) -> tuple[Watch, Introduction]:
        watch = Watch(self._deployed, self._adopt)
        known = await watch.introduce()
        await watch.ask()
        return watch, known

    async def _adopt(self, found: Introduction) -> None:
        same = (found.config.picture, found.config.text) == (self._known.config.picture, self._known.config.text)
        self._known = found
        if not same:
            logger.critical("the cluster draws pictures of another shape now: this front starts again")
            threading.Thread(target=self._on_fatal, name="fatal", daemon=True).start()

    # -- what it is

    @property
    def config(self) -> ModelConfig:
        return self._known.config

    @property
    def info(self) -> RunnerInfo:
        return self._known.info

    @property
    def digest(self) -> str:
        return self._known.digest

    @property
    def determinism(self) -> str:
        return self._known.determinism

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        return self._watch.replicas

    @property
    def state(self) -> str:
        if self._is_stopped:
            return "stopped"
        return "restarting" if self._watch.is_silent else "ready"

    def start(self) -> None:
        """It has run since it was made."""

    def stats(self) -> EngineStats:
        """Slots and pictures of the whole cluster; counts of what this front was given."""
        replicas = self._watch.replicas
        with self._lock:
            mine = self._pictures()
            counters = self._counters
            counters.num_slots = sum(each.num_slots for each in replicas)
            counters.step_s = self._watch.step_s
            running = sum(each.running for each in replicas)
            waiting = max(mine - running, sum(each.waiting for each in replicas))
            return counters.snapshot(running=running, waiting=waiting, detokenizing=0, live_requests=len(self._live))

    def _pictures(self) -> int:
        """That this front waits for."""
        return sum(not part.is_settled for assembly in self._live for part in assembly.parts)

    # -- requests

    def hold(self) -> Place:
        self._take(1)
        return Place(lambda: self._release(1))

    def _take(self, num_images: int) -> None:
        """Raises Overloaded when the queue has no room, NotReady."""
        if (state := self.state) != "ready":
            kind = EngineDown if state == "stopped" else NotReady
            raise kind(f"the engine is {state}; try again shortly", retry_after_s=5)
        replicas, step_s = self._watch.replicas, self._watch.step_s
        slots = sum(each.num_slots for each in replicas)
        with self._lock:
            room = max(0, slots + self._max_waiting_images - self._pictures() - self._held)
            if num_images <= room:
                self._held += num_images
                return
        picture_s = (step_s or 0.0) * self._known.config.picture.num_tokens
        raise Overloaded.no_room(room, num_images, picture_s)

    def _release(self, num_images: int) -> None:
        with self._lock:
            self._held -= num_images

    @property
    def most_images(self) -> int:
        """As `engine.Engine.most_images`, when there are most replicas."""
        most_slots = max(self._most_slots, sum(each.num_slots for each in self._watch.replicas))
        return most_slots + self._max_waiting_images

    def submit(self, request: GenerationRequest, held: Place | None = None) -> Generation:
        """Accept a request: from now on it ends exactly once. Raises as `engine.Engine.submit` does."""
        known = self._known
        check_request(request, known.config, known.info, self.most_images)
        if held is not None:
            held.give_back()
        self._take(len(request.images))
        try:
            conditional, _ = known.tokenizer.pair(request.prompt, request.negative_prompt)
            generation = Generation(request, request.sampling.with_defaults(known.config.sampling), conditional.length)
            assembly = Assembly(generation, known.config.picture.num_tokens, self._observer, self._ended)
            generation.emit(Queued(0))
            with self._lock:
                self._live.add(assembly)
        finally:
            self._release(len(request.images))
        generation.on_cancel(lambda: self._soon(self._cancel, assembly))
        generation.on_want_previews(lambda every: self._soon(self._want_previews, assembly))
        self._soon(self._streams.begin, assembly)
        if generation.cancel_reason is not None or self._is_stopped:  # before anyone was told
            self._soon(self._cancel, assembly)
        return generation

    def _soon(self, call: Callable[[Assembly], None], assembly: Assembly) -> None:
        """In the loop's thread."""
        try:
            self._connection.loop.call_soon_threadsafe(call, assembly)
        except RuntimeError:  # the loop is closed, and so everything has ended
            logger.debug("this front has left the cluster")

    def _cancel(self, assembly: Assembly) -> None:
        assembly.end(Cancelled(assembly.generation.cancel_reason or "the server is shutting down"))

    def _want_previews(self, assembly: Assembly) -> None:
        for index, part in enumerate(assembly.parts):
            if not part.is_settled:
                self._watch.want_previews(assembly.part_id(index), assembly.preview_every(index))

    def _ended(self, assembly: Assembly) -> None:
        """In the loop's thread."""
        end = assembly.generation.terminal
        with self._lock:
            self._live.discard(assembly)
            images = end.images if isinstance(end, Done) else ()
            self._counters.images += len(images)
            self._counters.image_tokens += sum(image.tokens.size for image in images)
            self._counters.requests[type(end).__name__.lower()] += 1
        self._streams.end(assembly)

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
        """As `engine.Engine.tokenize`, by whichever replica is free."""
        check_pixels(pixels, self._known.config, self._known.info)
        return self._aside("tokenize", pixels)

    def detokenize(self, tokens: Tokens, *, seamless: bool = False) -> Pixels:
        """As `engine.Engine.detokenize`, by whichever replica is free."""
        return self._aside("detokenize", tokens, seamless)

    def _aside(self, method: str, *given: object) -> NDArray[Any]:
        try:
            told = getattr(self._deployed.replicas, method).remote(*given).result(timeout_s=ASIDE_S)
        except (RayError, RayServeException, TimeoutError) as error:
            raise NotReady("no replica could read the picture; try again shortly", retry_after_s=5) from error
        if "error" in told:
            raise error_from_dict(told["error"])
        array: NDArray[Any] = told["array"]
        return array

    # -- the end

    def stop(self, drain_s: float = 0.0) -> None:
        """Give what was accepted `drain_s` to finish, cancel the rest. The replicas go on, for others."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            live = list(self._live)
        self._connection.submit(self._end(live, drain_s)).result(timeout=drain_s + STOP_S)
        concurrent.futures.wait([self._watching], timeout=STOP_S)
        self._on_stop()

    async def _end(self, live: list[Assembly], drain_s: float) -> None:
        end = asyncio.get_running_loop().time() + drain_s
        while asyncio.get_running_loop().time() < end and any(each.generation.terminal is None for each in live):
            await asyncio.sleep(0.02)
        for assembly in live:
            self._cancel(assembly)
        self._watch.stop()
        await asyncio.sleep(0.1)  # for the replicas to hear that they are not needed
