"""One replica: an engine in a process of its own, which fronts ask for pictures and which tells what it does."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.context import ReplicaContext

from dalle_server.cluster.agreement import agree, drawn_as
from dalle_server.cluster.board import KEPT_S
from dalle_server.config import Settings
from dalle_server.drawing.joined import said_by_now
from dalle_server.engine.engine import Engine
from dalle_server.errors import DalleServerError
from dalle_server.generation import TERMINAL, Event, Failed, Generation, Progress
from dalle_server.request import GenerationRequest, Tokens
from dalle_server.wire import error_to_dict, event_to_dict

SWITCH_S = 0.001  # of the interpreter between threads: 0.005 is long for who waits for a message
ANSWER_S = 10.0  # that the board has to answer
PROGRESS_EVERY_S = 0.2  # a message costs both ends about a millisecond; progress by itself is not worth more
HELD_S = 1.0  # that a picture waits at an engine which is down, before its front hears so and may ask elsewhere
LOOK_S = 0.05  # how often it is asked whether the engine is back
FRONT_GONE = "the front that asked is silent"

Load = Callable[[Settings], Engine]  # returns an engine that is not started

logger = logging.getLogger(__name__)


def load_replica_engine(settings: Settings) -> Engine:
    from dalle_server.dalle_model import load_engine

    return load_engine(settings)


class EngineReplica:
    """A Ray Serve deployment. Serve calls `check_health` and, when it ends this replica, `__del__`."""

    def __init__(self, settings: Mapping[str, Any], revision: str, front_lease_s: float, load: Load, board: Any):
        """Raises DalleServerError for weights that cannot be loaded, or that draw other bytes than the others'."""
        sys.setswitchinterval(SWITCH_S)
        context = serve.get_replica_context()
        self._front_lease_s = front_lease_s
        self._id: str = context.replica_tag
        self._engine = load(Settings.model_validate(dict(settings)))
        self._agreed = agree(context.app_name, settings, revision, drawn_as(self._engine.digest, self._engine.info))
        self._engine.start()
        self._engine.submit(GenerationRequest.of("warm-up", seed=0)).result()
        self._heard: dict[str, float] = {}  # front → time.monotonic(), of those that it has pictures for and others
        self._judged: float = 0.0  # when the board last knew all fronts
        self._parts: dict[str, Generation] = {}
        self._board = board
        self._over = threading.Event()
        threading.Thread(target=self._report, name="report", daemon=True).start()

    def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):
            engine.stop()
        if over := getattr(self, "_over", None):
            over.set()

    def check_health(self) -> None:
        """Raises for an engine that its watchdog gave up: Serve then replaces this replica."""
        if self._engine.state in ("failed", "stopped"):
            raise RuntimeError(f"the engine is {self._engine.state}")

    # -- drawing

    async def submit(self, request: Mapping[str, Any], front: str) -> AsyncIterator[dict[str, Any]]:
        """Messages {"replica", "weights", "events"}, until the terminal event. Cancelled, it cancels the drawing."""
        self._heard[front] = time.monotonic()
        try:
            wanted = GenerationRequest.from_dict(request)
            await self._wait_while_down(HELD_S if wanted.timeout_s is None else min(HELD_S, wanted.timeout_s))
            generation = self._engine.submit(wanted)
        except DalleServerError as error:
            yield self._message([Failed(error)])
            return
        self._parts[wanted.id] = generation
        try:
            async for events in self._events(generation, front):
                yield self._message(events)
        finally:
            self._parts.pop(wanted.id, None)
            generation.cancel()

    async def _wait_while_down(self, at_most_s: float) -> None:
        """Until the engine is back from a restart. One that is down would refuse at once, so its replica would always
        have the fewest pictures and be chosen for the next ones; what waits here is counted.
        """
        end = time.monotonic() + at_most_s
        while self._engine.state != "ready" and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)

    def _message(self, events: Iterable[Event]) -> dict[str, Any]:
        told = [event_to_dict(event) for event in events]
        return {"replica": self._id, "weights": self._engine.digest, "events": told}

    async def _events(self, generation: Generation, front: str) -> AsyncIterator[list[Event]]:
        """What there is to tell, in as few messages as nobody minds."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        generation.on_event(lambda: _wake(loop, changed))
        held: list[Event] = []
        told_at = 0.0
        while True:
            events = _newest([*held, *said_by_now(generation.events(poll_s=0))])
            if events and isinstance(events[-1], TERMINAL):
                yield events
                return
            now = time.monotonic()
            is_minor = all(isinstance(event, Progress) for event in events) and now - told_at < PROGRESS_EVERY_S
            if not events or is_minor:
                held = events
            else:
                held, told_at = [], now
                yield events
            if self._is_gone(front):
                generation.cancel(FRONT_GONE)
            try:
                await asyncio.wait_for(changed.wait(), PROGRESS_EVERY_S if held else self._front_lease_s / 5)
            except TimeoutError:
                continue
            changed.clear()

    async def tokenize(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """{"array": (N, I)} or {"error": …}."""
        return await _aside(lambda: self._engine.tokenize(pixels))

    async def detokenize(self, tokens: Tokens, seamless: bool) -> dict[str, Any]:
        """{"array": (height, width, 3)} or {"error": …}."""
        return await _aside(lambda: self._engine.detokenize(tokens, seamless=seamless))

    # -- telling

    def _report(self) -> None:
        """In a thread: says how this replica is, hears which fronts live and what they want to see."""
        answered = 0.0
        while not self._over.is_set():
            try:
                answer = self._board.report.remote(self._told(), answered).result(timeout_s=ANSWER_S)
            except Exception as error:  # Serve starts another board; meanwhile nobody is judged
                logger.warning("the board does not answer: %s", error)
                self._over.wait(1.0)
                continue
            answered = answer["now"]
            self._hear(answer)

    def _hear(self, answer: Mapping[str, Any]) -> None:
        now = time.monotonic()
        self._heard = {front: at for front, at in self._heard.items() if now - at < 2 * self._front_lease_s + KEPT_S}
        for front, silent_s in answer["fronts"].items():
            self._heard[front] = max(self._heard.get(front, 0.0), now - silent_s)
        if answer["up_s"] > self._front_lease_s:
            self._judged = now
        for part, every in answer["previews"].items():
            if generation := self._parts.get(part):
                generation.want_previews(every)

    def _is_gone(self, front: str) -> bool:
        return self._judged - self._heard.get(front, 0.0) > self._front_lease_s

    def _told(self) -> dict[str, Any]:
        stats, info = self._engine.stats(), self._engine.info
        return {
            "replica": self._id,
            "weights": self._engine.digest,
            "drawn_as": self._agreed.drawn_as,
            "since": self._agreed.since,
            "state": self._engine.state,
            "may_be_none": may_be_none(serve.get_replica_context()),
            "runner": info.runner,
            "device_name": info.device_name,
            "dtype": info.dtype,
            "build": info.build,
            "num_slots": stats.num_slots,
            "running": stats.running,
            "waiting": stats.waiting + stats.detokenizing,
            "step_s": stats.step_s,
        }

    async def introduce(self) -> dict[str, Any]:
        """What does not change while it lives: the model, what runs it, and what reads its texts."""
        return {
            "drawn_as": self._agreed.drawn_as,
            "weights": self._engine.digest,
            "config": self._engine.config.to_dict(),
            "info": dataclasses.asdict(self._engine.info),
            "determinism": self._engine.determinism,
            "tokenizer": self._engine.tokenizer,
        }


def may_be_none(context: ReplicaContext) -> bool:
    """Whether Serve lets the last replica go when nobody asks. Our own args do not know: a Serve config may say
    otherwise in their place. Serve tells a running replica of changes, too.
    """
    scaling = context._deployment_config.autoscaling_config
    return scaling is not None and scaling.min_replicas == 0


async def _aside(work: Callable[[], NDArray[Any]]) -> dict[str, Any]:
    try:
        return {"array": await asyncio.to_thread(work)}
    except DalleServerError as error:
        return {"error": error_to_dict(error)}


def _newest(events: list[Event]) -> list[Event]:
    """Without progress that later progress replaces."""
    last = max((place for place, event in enumerate(events) if isinstance(event, Progress)), default=-1)
    return [event for place, event in enumerate(events) if not isinstance(event, Progress) or place == last]


def _wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    """In the engine's thread."""
    try:
        loop.call_soon_threadsafe(changed.set)
    except RuntimeError:  # the loop is closed: the replica ends
        logger.debug("nobody reads the events any more")
